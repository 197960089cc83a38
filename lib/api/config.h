/* Configurations between the caller's header and this library's, which may be newer. */
#ifndef NN_API_CONFIG_H
#define NN_API_CONFIG_H

#include "moenn.h"

/* The caller's configuration, validated. name: of it in messages. */
nn_status_t api_config_read(const nn_model_config_t *config, const char *name,
                            nn_model_config_t *valid);

/* Whether a configuration can be written there at all; asked before any work is done. */
nn_status_t api_config_check(const nn_model_config_t *target, const char *name);

/* Writes a configuration. NN_ERR_STRUCT_SIZE: a member is set that the caller's header lacks. */
nn_status_t api_config_write(nn_model_config_t *target, const nn_model_config_t *config);

#endif
