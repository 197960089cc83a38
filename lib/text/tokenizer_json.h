/* tokenizer.json: the file of the tokenizers package. */
#ifndef NN_TEXT_TOKENIZER_JSON_H
#define NN_TEXT_TOKENIZER_JSON_H

#include <jansson.h>

#include "text/pipeline.h"

/* True for a text that begins with a brace. */
bool tokenizer_json_is(const void *data, size_t bytes);

/* Fills an initialised description. NN_ERR_FORMAT: the text is no such file. NN_ERR_UNSUPPORTED: it
 * asks for what the engine does not have. */
nn_status_t tokenizer_json_read(const void *data, size_t bytes, pipeline_t *pipeline);

/* The special tokens that a tokenizer_config.json names. Its tokens that the description does not
 * have are left out. */
nn_status_t tokenizer_config_read(const void *data, size_t bytes, pipeline_t *pipeline);

/* ---- parts (tokenizer_json_steps.c) ---------------------------------------------------------- */

nn_status_t value_read_normalizer(const json_t *json, pipeline_t *pipeline);
nn_status_t value_read_pre(const json_t *json, pipeline_t *pipeline);
nn_status_t value_read_decoder(const json_t *json, pipeline_t *pipeline);

/* ---- members of objects (tokenizer_json_values.c) -------------------------------------------- */

/* The object's "type", "" when there is none. */
const char *value_type(const json_t *object);

/* Each leaves the target as it is when the member is absent or null, and fails when it is of
 * another type. Texts live as long as the JSON does. */
nn_status_t value_get_bool(const json_t *object, const char *key, bool *value);
nn_status_t value_get_size(const json_t *object, const char *key, int64_t *value);
nn_status_t value_get_text(const json_t *object, const char *key, text_t *value);
/* {"String": ...} or {"Regex": ...}; must be there. */
nn_status_t value_get_pattern(const json_t *object, const char *key, pattern_t *pattern);

/* NN_ERR_UNSUPPORTED when the object has a member that is not in the list, which NULL ends. "type"
 * need not be listed. what: for the message. */
nn_status_t value_check_members(const json_t *object, const char *what, const char *const *known);

/* Calls read with each element of the array that the member is. */
typedef nn_status_t (*value_read_fn)(const json_t *json, pipeline_t *pipeline);
nn_status_t value_read_sequence(const json_t *object, const char *key, value_read_fn read,
                               pipeline_t *pipeline);

#endif
