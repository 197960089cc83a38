/* Model configurations: the presets, the defaults, and what makes a configuration valid. */
#ifndef NN_MODEL_CONFIG_H
#define NN_MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moenn.h"

enum {
  CONFIG_FIRST_BYTES = offsetof(nn_model_config_t, dense_ffn), /* of the first release's struct */
  CONFIG_PATTERN_LAYERS = 256, /* dense_layers and window_layers have bits for */
  CONFIG_ROPE_FACTORS = 128 /* rope_short_factors and rope_long_factors have room for */
};

/* The validated configuration of a name; NN_ERR_NOT_FOUND lists the names. */
nn_status_t config_preset(const char *name, nn_model_config_t *config);

/* Writes the defaults in place of zeros, in members before dense_ffn, and checks every member:
 * NN_ERR_ARGUMENT names the member, its value and what it must be; NN_ERR_UNSUPPORTED a combination
 * that the family has no published form for. On failure the configuration is as before. Validating
 * twice changes nothing. */
nn_status_t config_validate(nn_model_config_t *config);

/* NN_ERR_UNSUPPORTED, naming the member, where no block code computes what a validated
 * configuration asks for. Whoever makes or plans a model asks first. */
nn_status_t config_check_computed(const nn_model_config_t *config);

/* Offset of the member of this name, which need not end in NUL; 0: no member that the messages of
 * config_validate() name has it. */
size_t config_member(const char *name, size_t length);

/* Of a validated configuration; layer is from 0 to layers - 1. */
bool config_layer_is_dense(const nn_model_config_t *config, int64_t layer); /* has no experts */
int64_t config_layer_window(const nn_model_config_t *config, int64_t layer); /* 0: all keys */
int64_t config_sparse_layers(const nn_model_config_t *config); /* layers with experts */

/* Members of which 0 stands for another. */
int64_t config_dense_ffn(const nn_model_config_t *config); /* width inside dense layers */
int64_t config_value_dim(const nn_model_config_t *config); /* width of a value */
int64_t config_original_context(const nn_model_config_t *config);

#endif
