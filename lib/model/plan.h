/* What the byte plans of training and of sessions share: the parameters, and the total. */
#ifndef NN_MODEL_PLAN_H
#define NN_MODEL_PLAN_H

#include "base/device.h"

/* Counts and bytes of the parameters alone; checks the dtype. The configuration is validated. */
nn_status_t plan_model(const nn_model_config_t *config, int32_t dtype, nn_plan_t *plan);

/* Adds the byte members up. */
nn_status_t plan_total(nn_plan_t *plan);

#endif
