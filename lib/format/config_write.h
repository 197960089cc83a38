/* Members of a configuration as values of config.json. */
#ifndef NN_FORMAT_CONFIG_WRITE_H
#define NN_FORMAT_CONFIG_WRITE_H

#include <jansson.h>
#include <stdbool.h>

#include "format/config_keys.h"

/* The value of a key that has a member, or one that is always the same. NULL: no memory. */
json_t *key_value(const key_line_t *key, const reading_t *written);

/* Whether its member is 0. */
bool key_value_is_zero(const key_line_t *key, const reading_t *written);

#endif
