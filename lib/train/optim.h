/* AdamW over a model's one parameter buffer. */
#ifndef NN_TRAIN_OPTIM_H
#define NN_TRAIN_OPTIM_H

#include "model/model.h"
#include "model/optim_state.h"
#include "model/replay.h"

struct nn_optim {
  nn_model_t *model;         /* retained */
  nn_optim_options_t options; /* defaults filled in */
  storage_t *moments;        /* [2, params.elements] fp32: first, then second; behind them what
                                op_grad_norm writes and optim_now_t */
  storage_t *masters;        /* [params.elements] lower 16 bits of bf16 parameters' masters, fp16
                                parameters' whole masters, or NULL */
  int64_t steps;
  int64_t loss_scale_steps;  /* since the model's loss scale last changed */
  replay_t replay;                 /* the update's operations */
  const void *gradients, *scratch; /* that they were given */
};

/* Checks options and fills the defaults in. */
nn_status_t optim_check(const nn_optim_options_t *options, nn_optim_options_t *checked);

/* Bytes of an optimizer's state. */
size_t optim_bytes(int64_t elements);

/* Bytes that fp32 masters take beside parameters of a dtype. */
size_t optim_master_bytes(int64_t elements, int32_t dtype);

nn_status_t optim_create(nn_model_t *model, const nn_optim_options_t *checked, nn_optim_t **optim);
void optim_free(nn_optim_t *optim);

/* First element of a moment (NN_MOMENT_) in device memory. */
float *optim_moment(const nn_optim_t *optim, int32_t moment);

/* What a file of the state holds, and the way back of its numbers. */
optim_state_t optim_state(const nn_optim_t *optim);
void optim_restore(nn_optim_t *optim, const optim_state_t *state);

/* One update, or none where fp16 gradients overflowed; the calling code holds the device. */
nn_status_t optim_step(nn_optim_t *optim, float lr, double *grad_norm);

#endif
