/* What the CUDA backend does not compute, in one place: members of operations that must be zero
 * here. Each answers NN_ERR_UNSUPPORTED and names what was asked. */
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

LACKS_PART(route, op_route_t, op->router.score == NN_SCORE_SPARSE_MIXER, "the sparse mixer")
LACKS_PART(route_bwd, op_route_bwd_t, op->router.score == NN_SCORE_SPARSE_MIXER,
           "the sparse mixer")
LACKS_PART(head_loss, op_head_loss_t, op->bias, "a bias of the head")

void cuda_lacks_table(backend_t *table) {
  table->route = lacks_route;
  table->route_bwd = lacks_route_bwd;
  table->head_loss = lacks_head_loss;
}
