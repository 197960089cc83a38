/* The auxiliary losses of a pass from its layers' router statistics, [layers, 2E + 1]; assigns. A
 * thread takes an expert and sums over the layers in order; the block sums over the experts. All in
 * double. */
#include "kernel.cuh"

enum { ROUTER_LOSS_THREADS = 256 };

static __global__ void __launch_bounds__(ROUTER_LOSS_THREADS)
    router_loss(const op_router_loss_t op) {
  __shared__ double room[32];
  int64_t experts = op.experts, width = 2 * experts + 1;
  double layers = (double)op.layers, by_layer = 0, joint = 0, lse2 = 0;
  for (int64_t e = threadIdx.x; e < experts; e += ROUTER_LOSS_THREADS) {
    double share_mean = 0, prob_mean = 0;
#pragma unroll 4
    for (int64_t l = 0; l < op.layers; l++) {
      double share = op.stats[l * width + e], prob = op.stats[l * width + experts + e];
      share_mean += share / layers;
      prob_mean += prob / layers;
      by_layer += share * prob;
    }
    joint += share_mean * prob_mean;
    op.mean_share[e] = (float)share_mean;
  }
  for (int64_t l = threadIdx.x; l < op.layers; l += ROUTER_LOSS_THREADS)
    lse2 += op.stats[l * width + 2 * experts];
  by_layer = block_sum(by_layer, room);
  joint = block_sum(joint, room);
  lse2 = block_sum(lse2, room);
  if (threadIdx.x) return;
  op.loss[0] = op.kind == NN_AUX_JOINT ? (double)(experts * op.top_k) * joint
                                       : (double)experts * by_layer;
  op.loss[1] = lse2;
}

CUDA_OP(router_loss, op_router_loss_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "router_loss"));
  router_loss<<<1, ROUTER_LOSS_THREADS, 0, device->stream>>>(*op);
  return cuda_launched(device, "router_loss");
}
