/* The auxiliary losses of a pass from the statistics of its layers' routers, and the experts' mean
 * shares; assigns. Sums are taken in double: switch over layers and then experts, in order; joint
 * over layers for each expert's means, then over experts. A few microseconds, so no threads. */
#include "ref.h"

nn_status_t ref_router_loss(backend_device_t *device, const op_router_loss_t *op,
                            backend_scratch_t scratch) {
  (void)device;
  (void)scratch;
  int64_t experts = op->experts, width = 2 * experts + 1;
  double layers = (double)op->layers, each = 0, joint = 0, z = 0;
  for (int64_t l = 0; l < op->layers; l++) {
    const float *share = op->stats + l * width, *prob = share + experts;
    for (int64_t e = 0; e < experts; e++) each += (double)experts * share[e] * prob[e];
    z += prob[experts];
  }
  for (int64_t e = 0; e < experts; e++) {
    double share = 0, prob = 0;
    for (int64_t l = 0; l < op->layers; l++) {
      share += op->stats[l * width + e];
      prob += op->stats[l * width + experts + e];
    }
    op->mean_share[e] = (float)(share / layers);
    joint += (double)(experts * op->top_k) * (share / layers) * (prob / layers);
  }
  op->loss[0] = op->kind == NN_AUX_JOINT ? joint : each;
  op->loss[1] = z;
  return NN_OK;
}
