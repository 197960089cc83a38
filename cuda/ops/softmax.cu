/* y = softmax of each row of x [n, width], fp32; y may be x. One block per row; a row is read three
 * times, from the caches but for the first. A NaN makes its whole row NaN. */
#include "ops/wide.cuh"

enum { SOFTMAX_FEW = 128, SOFTMAX_MANY = 1024 /* threads */ };

template <int W>
static __global__ void __launch_bounds__(SOFTMAX_MANY) softmax_kernel(const op_softmax_t op) {
  __shared__ float room[32];
  const float *x = op.x + blockIdx.x * op.width;
  float *y = op.y + blockIdx.x * op.width;
  int64_t begin = threadIdx.x * W, step = blockDim.x * W;
  float e[W], largest = -INFINITY, sum = 0;
  for (int64_t i = begin; i < op.width; i += step) {
    wide_load<W>(x + i, e);
#pragma unroll
    for (int j = 0; j < W; j++) largest = fmaxf(largest, e[j]);
  }
  largest = block_max(largest, room);
  for (int64_t i = begin; i < op.width; i += step) {
    wide_load<W>(x + i, e);
#pragma unroll
    for (int j = 0; j < W; j++) sum += expf(e[j] - largest);
  }
  sum = block_sum(sum, room);
  for (int64_t i = begin; i < op.width; i += step) {
    wide_load<W>(x + i, e);
#pragma unroll
    for (int j = 0; j < W; j++) e[j] = expf(e[j] - largest) / sum;
    wide_store<W>(y + i, e);
  }
}

CUDA_OP(softmax, op_softmax_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "softmax"));
  if (op->n == 0 || op->width == 0) return NN_OK;
  unsigned grid = (unsigned)op->n;
  unsigned block = op->width <= 4 * SOFTMAX_FEW ? SOFTMAX_FEW : SOFTMAX_MANY;
  if (op->width % 4 == 0 && wide_aligned(op->x, op->y))
    softmax_kernel<4><<<grid, block, 0, device->stream>>>(*op);
  else
    softmax_kernel<1><<<grid, block, 0, device->stream>>>(*op);
  return cuda_launched(device, "softmax");
}
