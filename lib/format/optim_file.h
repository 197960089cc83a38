/* Optimizer state as one safetensors file: for each parameter "<name>.exp_avg" and
 * "<name>.exp_avg_sq", F32 in its published shape (so that tools pair them with the model's
 * tensors), beside bf16 parameters "<name>.master_low" (I16) and beside fp16 ones "<name>.master"
 * (F32). __metadata__ has the number of updates as "step" and, beside fp16 parameters, the loss
 * scale as "loss_scale" and the updates since it last changed as "loss_scale_steps". */
#ifndef NN_FORMAT_OPTIM_FILE_H
#define NN_FORMAT_OPTIM_FILE_H

#include <stdatomic.h>

#include "model/optim_state.h"
#include "model/params.h"

/* device: whose memory m, v and masters are, or NULL: host memory. The file appears whole or not at
 * all. cancel may be NULL. */
nn_status_t optim_file_save(const char *path, const param_table_t *table,
                            const optim_state_t *state, const atomic_int *cancel,
                            nn_device_t *device);

/* The whole file is checked, with every number in it (finite, second moments not negative, the
 * bounds above), before anything of the state is written; then only NN_ERR_CANCELLED can leave it
 * half written. */
nn_status_t optim_file_load(const char *path, const param_table_t *table, optim_state_t *state,
                            const atomic_int *cancel, nn_device_t *device);

#endif
