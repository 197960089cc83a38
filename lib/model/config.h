/* Model configurations: the presets, the defaults, and what makes a configuration valid. */
#ifndef NN_MODEL_CONFIG_H
#define NN_MODEL_CONFIG_H

#include "moenn.h"

/* The validated configuration of a name; NN_ERR_NOT_FOUND lists the names. */
nn_status_t config_preset(const char *name, nn_model_config_t *config);

/* Writes the defaults in place of zeros and checks every member: NN_ERR_ARGUMENT names the member,
 * its value and what it must be; NN_ERR_UNSUPPORTED a combination that the family has no published
 * form for. On failure the configuration is as before. Validating twice changes nothing. */
nn_status_t config_validate(nn_model_config_t *config);

#endif
