/* Copies of heads: y[t, h] = x[t, h], assigned, with zeros behind each head; or x's one head to all
 * of y's, or the sum of x's heads, in order, to the one that y has. */
#include "launch.cuh"
#include "ops/wide.cuh"

/* An item is W numbers of y. */
template <typename T, int W>
static __global__ void __launch_bounds__(ROW_THREADS) copy_heads_kernel(const op_copy_heads_t op) {
  int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  int across = (int)(op.width + op.zeros) / W, items = (op.step_y ? (int)op.heads : 1) * across;
  int adds = op.step_y ? 1 : (int)op.heads;
  launch_next();
  launch_wait();
  if (row >= op.n) return;
  const T *from = (const T *)op.x + row * op.ldx;
  T *to = (T *)op.y + row * op.ldy;
  for (int item = threadIdx.x; item < items; item += blockDim.x) {
    int head = item / across, c = item % across * W;
    float sum[W] = {0};
    for (int i = 0; c < op.width && i < adds; i++) {
      float x[W];
      wide_load<W>(from + (head + i) * op.step_x + c, x);
#pragma unroll
      for (int j = 0; j < W; j++) sum[j] = i ? sum[j] + x[j] : x[j];
    }
    wide_store<W>(to + head * op.step_y + c, sum);
  }
}

template <typename T>
static void copy_heads_launch(backend_device_t *device, const op_copy_heads_t *op) {
  constexpr int W = vec_t<T>::width;
  int64_t all = op->width | op->zeros | op->ldx | op->step_x | op->ldy | op->step_y;
  bool wide = all % W == 0 && wide_aligned(op->x, op->y);
  int64_t items = (op->step_y ? op->heads : 1) * (op->width + op->zeros);
  dim3 block = row_block(wide ? items / W : items);
  launch_chained(device, wide ? copy_heads_kernel<T, W> : copy_heads_kernel<T, 1>,
                 (unsigned)cuda_blocks(op->n, block.y), block, 0, 0, *op);
}

CUDA_OP(copy_heads, op_copy_heads_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "copy_heads"));
  if (op->n == 0 || op->heads == 0 || op->width == 0) return NN_OK;
  CUDA_BY_DTYPE(op->act_dtype, copy_heads_launch, device, op);
  return cuda_launched(device, "copy_heads");
}
