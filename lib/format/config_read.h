/* Values of config.json, one at a time. */
#ifndef NN_FORMAT_CONFIG_READ_H
#define NN_FORMAT_CONFIG_READ_H

#include <jansson.h>

#include "format/config_keys.h"

/* Refuses the value of a key: "config.json: <name> is <value>; it must be <needed>". */
nn_status_t key_refuse(nn_status_t status, const char *name, const json_t *value,
                       const char *needed);

/* Refuses a key that no line knows. */
nn_status_t key_unknown(const char *name, const json_t *value, const char *model_type);

/* Reads one key's value as its line says. A member that another key gave already must get the same
 * value again. */
nn_status_t key_read(const key_line_t *key, const json_t *value, reading_t *reading);

#endif
