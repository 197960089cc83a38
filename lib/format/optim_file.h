/* Optimizer state as one safetensors file: for each parameter "<name>.exp_avg" and
 * "<name>.exp_avg_sq", F32 in its published shape (so that tools pair them with the model's
 * tensors), and the number of updates as "step" in __metadata__. */
#ifndef NN_FORMAT_OPTIM_FILE_H
#define NN_FORMAT_OPTIM_FILE_H

#include <stdatomic.h>

#include "model/params.h"

/* m and v are [table->elements], and so is low: the lower 16 bits of bf16 parameters' masters, or NULL
 * where parameters are fp32. device: whose memory they are, or NULL: host memory. The file appears
 * whole or not at all. cancel may be NULL. */
nn_status_t optim_file_save(const char *path, const param_table_t *table, const float *m,
                            const float *v, const int16_t *low, int64_t steps,
                            const atomic_int *cancel, nn_device_t *device);

/* The whole file is checked, with every moment in it (finite, second ones not negative, steps at
 * most 2^53), before m, v, low and steps are written; then only NN_ERR_CANCELLED can leave them
 * half written. */
nn_status_t optim_file_load(const char *path, const param_table_t *table, float *m, float *v,
                            int16_t *low, int64_t *steps, const atomic_int *cancel,
                            nn_device_t *device);

#endif
