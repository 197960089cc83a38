/* Model configurations as the text of a Hugging Face config.json, both ways. */
#ifndef NN_FORMAT_CONFIG_JSON_H
#define NN_FORMAT_CONFIG_JSON_H

#include <jansson.h>
#include <stddef.h>

#include "moenn.h"

/* The validated configuration that a text describes. NN_ERR_FORMAT: the text is no such
 * description. NN_ERR_UNSUPPORTED: a key that is not understood could change the numbers. The text
 * may end in a NUL, which bytes then counts. */
nn_status_t config_json_read(const char *text, size_t bytes, nn_model_config_t *config);

/* The text of a validated configuration, ending in a newline and NUL, to be freed with mem_free;
 * bytes (or NULL) receives its length without the NUL.
 * dtype: NN_ dtype of the weights beside it, or -1: not said. others: keys that say nothing of the
 * model, written too, or NULL. */
nn_status_t config_json_write(const nn_model_config_t *config, int32_t dtype, json_t *others,
                              char **text, size_t *bytes);

#endif
