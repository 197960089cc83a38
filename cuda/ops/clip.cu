/* Clamping: y = x clamped to [-limit, limit], assigned; backward sets dx to 0 where x was beyond.
 * NaN stays what it is. */
#include "launch.cuh"
#include "ops/wide.cuh"

/* Backward, y is dx, and forward's input says where it becomes 0. */
template <typename T, int W, bool BACKWARD>
static __global__ void __launch_bounds__(ROW_THREADS)
    clip_kernel(int64_t n, int64_t width, float limit, const T *x, int64_t ldx, T *y, int64_t ldy) {
  int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  launch_next();
  launch_wait();
  if (row >= n) return;
  x += row * ldx, y += row * ldy;
  for (int64_t c = threadIdx.x * W; c < width; c += blockDim.x * W) {
    float from[W], to[W];
    wide_load<W>(x + c, from);
    if (BACKWARD) wide_load<W>(y + c, to);
#pragma unroll
    for (int j = 0; j < W; j++) {
      bool beyond = fabsf(from[j]) > limit;
      if (BACKWARD)
        to[j] = beyond ? 0 : to[j];
      else
        to[j] = beyond ? copysignf(limit, from[j]) : from[j];
    }
    wide_store<W>(y + c, to);
  }
}

template <typename T, bool BACKWARD>
static void clip_launch(backend_device_t *device, int64_t n, int64_t width, float limit,
                        const void *x, int64_t ldx, void *y, int64_t ldy) {
  constexpr int W = vec_t<T>::width;
  bool wide = width % W == 0 && ldx % W == 0 && ldy % W == 0 && wide_aligned(x, y);
  auto kernel = wide ? clip_kernel<T, W, BACKWARD> : clip_kernel<T, 1, BACKWARD>;
  dim3 block = row_block(wide ? width / W : width);
  launch_chained(device, kernel, (unsigned)cuda_blocks(n, block.y), block, 0, 0, n, width, limit,
                 (const T *)x, ldx, (T *)y, ldy);
}

template <typename T>
static void clip_forward(backend_device_t *device, const op_clip_t *op) {
  clip_launch<T, false>(device, op->n, op->width, op->limit, op->x, op->ldx, op->y, op->ldy);
}

template <typename T>
static void clip_backward(backend_device_t *device, const op_clip_bwd_t *op) {
  clip_launch<T, true>(device, op->n, op->width, op->limit, op->x, op->ldx, op->dx, op->lddx);
}

CUDA_OP(clip, op_clip_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "clip"));
  if (op->n == 0 || op->width == 0) return NN_OK;
  CUDA_BY_DTYPE(op->act_dtype, clip_forward, device, op);
  return cuda_launched(device, "clip");
}

CUDA_OP(clip_bwd, op_clip_bwd_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "clip_bwd"));
  if (op->n == 0 || op->width == 0) return NN_OK;
  CUDA_BY_DTYPE(op->act_dtype, clip_backward, device, op);
  return cuda_launched(device, "clip_bwd");
}
