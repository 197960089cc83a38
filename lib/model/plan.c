#include "model/plan.h"

#include "base/mem.h"
#include "model/config.h"
#include "model/model.h"

nn_status_t plan_model(const nn_model_config_t *config, int32_t dtype, nn_plan_t *plan) {
  STATUS_TRY(model_check_dtype(dtype));
  STATUS_TRY(config_check_computed(config));
  param_table_t counts;
  STATUS_TRY(param_table_count(config, &counts));
  plan->parameters = counts.elements;
  plan->active_parameters = counts.active;
  plan->parameter_bytes = counts.elements * (int64_t)nn_dtype_bytes(dtype);
  return NN_OK;
}

nn_status_t plan_total(nn_plan_t *plan) {
  const int64_t parts[] = {plan->parameter_bytes,  plan->master_bytes,     plan->gradient_bytes,
                           plan->optimizer_bytes,  plan->activation_bytes, plan->workspace_bytes,
                           plan->cache_bytes};
  plan->total_bytes = 0;
  for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
    if (!mem_add(plan->total_bytes, parts[i], &plan->total_bytes))
      return status_fail(NN_ERR_ARGUMENT, "the plan's total overflows 64 bits");
  return NN_OK;
}
