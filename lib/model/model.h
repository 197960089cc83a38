/* The model handle: configuration, parameters in one buffer, and what training adds to them. */
#ifndef NN_MODEL_MODEL_H
#define NN_MODEL_MODEL_H

#include "base/tensor.h"
#include "model/params.h"
#include "model/weights.h"

typedef struct training training_t; /* model/training.h */

struct nn_model {
  atomic_int references;
  nn_device_t *device; /* retained */
  nn_model_config_t config;
  int32_t dtype;
  param_table_t params;
  storage_t *buffer;
  weights_t weights;
  training_t *training; /* NULL until prepared */
  float loss_scale;     /* of gradients to come: see nn_model_loss_scale() */
  char *source; /* the folder that it was loaded from; NULL: none */
};

/* A model with a parameter buffer that is not filled yet, or the given one, which it retains. The
 * configuration is validated. */
nn_status_t model_allocate(nn_device_t *device, const nn_model_config_t *config, int32_t dtype,
                           storage_t *buffer, nn_model_t **model);

/* Fills the parameters with random numbers. */
nn_status_t model_initialise(nn_model_t *model, uint64_t seed);

void model_retain(nn_model_t *model);
void model_release(nn_model_t *model);

/* NN_ERR_ARGUMENT unless dtype is one that parameters can have. */
nn_status_t model_check_dtype(int32_t dtype);

/* NN_ERR_ARGUMENT naming the first id that is not in the vocabulary. */
nn_status_t model_check_ids(const nn_model_config_t *config, const int32_t *ids, int64_t count);

/* A named parameter's part of a buffer that the table lays out. */
nn_status_t model_tensor(const nn_model_t *model, storage_t *buffer, int32_t dtype,
                         const char *name, nn_tensor_t **tensor);

/* Router statistics [layers, E + 1] and [layers, E] as nn_model_expert_stats() gives them. Holds
 * the device's lock. */
nn_status_t model_expert_stats(const nn_model_t *model, const int64_t *stat_count,
                               const double *stat_prob, int64_t layer, int64_t *counts,
                               double *mean_prob, nn_expert_stats_t *stats);

#endif
