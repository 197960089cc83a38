/* AdamW over a model's one parameter buffer. */
#ifndef NN_TRAIN_OPTIM_H
#define NN_TRAIN_OPTIM_H

#include "model/model.h"
#include "model/replay.h"

/* Most updates an optimizer counts: what a double holds exactly. */
#define OPTIM_MOST_STEPS ((int64_t)1 << 53)

struct nn_optim {
  nn_model_t *model;         /* retained */
  nn_optim_options_t options; /* defaults filled in */
  storage_t *moments;        /* [2, params.elements] fp32: first, then second; behind them what
                                op_grad_norm writes and optim_now_t */
  storage_t *low;            /* [params.elements] lower 16 bits of bf16 parameters' masters, or NULL */
  int64_t steps;
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

/* First element of the masters' lower bits in device memory; NULL for fp32 parameters. */
int16_t *optim_low(const nn_optim_t *optim);

/* One update; the calling code holds the device. */
nn_status_t optim_step(nn_optim_t *optim, float lr, double *grad_norm);

#endif
