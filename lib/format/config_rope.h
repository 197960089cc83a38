/* How RoPE is scaled, as config.json says it: rope_scaling (transformers 4, beside rope_theta) or
 * rope_parameters (5, around it). */
#ifndef NN_FORMAT_CONFIG_ROPE_H
#define NN_FORMAT_CONFIG_ROPE_H

#include <jansson.h>

#include "format/config_keys.h"

/* Reads either object, or null. A key that its rope_type does not have is refused by name. */
nn_status_t rope_read(const char *name, const json_t *value, reading_t *reading);

/* The key of the object whose value is the member at this offset of reading_t, or NULL. */
const char *rope_key(size_t offset);

/* What rope_scaling is for a configuration: an object, or null without scaling. NULL: no memory. */
json_t *rope_write(const nn_model_config_t *config);

#endif
