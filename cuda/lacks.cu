/* What the CUDA backend does not compute, in one place: operations that it lacks, and members of
 * others that must be zero here. Each answers NN_ERR_UNSUPPORTED and names what was asked. */
#include <stdio.h>

#include "device.h"

static nn_status_t lacks(backend_device_t *device, const char *operation, const char *what) {
  char message[192];
  snprintf(message, sizeof message,
           "cuda:%d: %s: %s is not computed on a GPU by this release; use the CPU", device->index,
           operation, what);
  device->failed = 1;
  return device->options.fail(NN_ERR_UNSUPPORTED, message);
}

/* An operation that computes but for what a condition asks of it. */
#define LACKS_PART(name, args, condition, what)                                                     \
  static nn_status_t lacks_##name(backend_device_t *device, const args *op,                         \
                                  backend_scratch_t scratch) {                                      \
    if (condition) return lacks(device, #name, what);                                               \
    return cuda_##name(device, op, scratch);                                                        \
  }

static int router(const op_router_t *r) {
  return r->score != NN_SCORE_SOFTMAX || r->norm != NN_ROUTER_NORM_SUM || r->groups ||
         backend_factor(r->scale) != 1.0f || r->bias || r->choice_bias;
}

/* An operation that is not there at all. */
#define LACKS_OP(name, args)                                                                        \
  static nn_status_t lacks_##name(backend_device_t *device, const args *op,                         \
                                  backend_scratch_t scratch) {                                      \
    (void)op, (void)scratch;                                                                        \
    return lacks(device, #name, "this operation");                                                  \
  }

LACKS_OP(copy_heads, op_copy_heads_t)
LACKS_PART(attention, op_attention_t, op->window || op->sinks, "a window or sinks")
LACKS_PART(attention_bwd, op_attention_bwd_t, op->window || op->sinks, "a window or sinks")
LACKS_PART(route, op_route_t, router(&op->router),
           "routing other than by softmax with weights that sum to 1")
LACKS_PART(route_bwd, op_route_bwd_t, router(&op->router),
           "routing other than by softmax with weights that sum to 1")
LACKS_PART(experts, op_experts_t, op->limit != 0.0f || op->gate_bias, "a clamped or biased expert")
LACKS_PART(experts_bwd, op_experts_bwd_t, op->limit != 0.0f || op->down_bias,
           "a clamped or biased expert")

void cuda_lacks_table(backend_t *table) {
  table->copy_heads = lacks_copy_heads;
  table->attention = lacks_attention;
  table->attention_bwd = lacks_attention_bwd;
  table->route = lacks_route;
  table->route_bwd = lacks_route_bwd;
  table->experts = lacks_experts;
  table->experts_bwd = lacks_experts_bwd;
}
