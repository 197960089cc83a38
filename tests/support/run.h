/* One training run: a model, its optimizer and one batch that every step takes again. */
#ifndef NN_TEST_RUN_H
#define NN_TEST_RUN_H

#include "fixture.h"

typedef struct run {
  nn_device_t *device;
  nn_model_t *model;
  nn_optim_t *optim;
  nn_model_config_t config;
  int64_t batch, seq;
  int32_t *tokens, *targets;
} run_t;

/* AdamW with a decay of 0.1 and gradients clipped to 1. */
nn_optim_options_t run_options(void);

/* An F32 model of seed 1, prepared for the batch, with run_options(). */
void run_open(run_t *run, nn_device_t *device, const nn_model_config_t *config, int64_t batch,
              int64_t seq, int32_t recompute);

/* The batch alone, for the configuration that is there. */
void run_batch(run_t *run, int64_t batch, int64_t seq);

/* Everything but the device. */
void run_close(run_t *run);

nn_status_t run_backward(run_t *run, nn_loss_t *loss);

/* One step; losses [4] receives the three losses and the norm. */
void run_step(run_t *run, float lr, double *losses);

#endif
