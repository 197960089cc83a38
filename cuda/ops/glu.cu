/* Gated linear units: y = weight act(g, u) of rows [gate F | up F], assigned. Backward:
 * dx = weight dy (dact/dg, dact/du) and, where wanted, y are assigned, and dweight = <dy, act>:
 * sums of a thread's elements in order, of a warp's threads, of the warps. A block has a row. */
#include "launch.cuh"
#include "ops/glu.cuh"
#include "ops/wide.cuh"

template <typename T, int W>
static __global__ void __launch_bounds__(ROW_THREADS) glu_kernel(const op_glu_t op) {
  int64_t row = blockIdx.x;
  const T *x = (const T *)op.x + row * 2 * op.ffn;
  T *y = (T *)op.y + row * op.ffn;
  launch_next();
  launch_wait();
  float weight = op.weight ? op.weight[row] : 1;
  for (int64_t c = threadIdx.x * W; c < op.ffn; c += blockDim.x * W) {
    float g[W], u[W];
    wide_load<W>(x + c, g);
    wide_load<W>(x + op.ffn + c, u);
#pragma unroll
    for (int j = 0; j < W; j++) g[j] = weight * glu_act(g[j], u[j], op.limit);
    wide_store<W>(y + c, g);
  }
}

template <typename T, int W>
static __global__ void __launch_bounds__(ROW_THREADS) glu_bwd_kernel(const op_glu_bwd_t op) {
  __shared__ float room[32];
  int64_t row = blockIdx.x;
  const T *x = (const T *)op.x + row * 2 * op.ffn, *dy = (const T *)op.dy + row * op.ffn;
  T *dx = (T *)op.dx + row * 2 * op.ffn, *y = op.y ? (T *)op.y + row * op.ffn : NULL;
  launch_next();
  launch_wait();
  float weight = op.weight ? op.weight[row] : 1, dot = 0;
  for (int64_t c = threadIdx.x * W; c < op.ffn; c += blockDim.x * W) {
    float g[W], u[W], d[W], act[W];
    wide_load<W>(x + c, g);
    wide_load<W>(x + op.ffn + c, u);
    wide_load<W>(dy + c, d);
#pragma unroll
    for (int j = 0; j < W; j++) {
      float by_g, by_u;
      act[j] = glu_slopes(g[j], u[j], op.limit, &by_g, &by_u);
      dot = fmaf(d[j], act[j], dot);
      g[j] = weight * d[j] * by_g, u[j] = weight * d[j] * by_u, act[j] *= weight;
    }
    wide_store<W>(dx + c, g);
    wide_store<W>(dx + op.ffn + c, u);
    if (y) wide_store<W>(y + c, act);
  }
  if (!op.weight) return;
  dot = block_sum(dot, room);
  if (threadIdx.x == 0) op.dweight[row] = dot;
}

/* Threads of a block: a vector each, as far as a block goes. */
static unsigned glu_threads(int64_t items) { return row_block(items).x; }

template <typename T>
static void glu_launch(backend_device_t *device, const op_glu_t *op) {
  constexpr int W = vec_t<T>::width;
  bool wide = op->ffn % W == 0 && wide_aligned(op->x, op->y);
  launch_chained(device, wide ? glu_kernel<T, W> : glu_kernel<T, 1>, (unsigned)op->n,
                 glu_threads(wide ? op->ffn / W : op->ffn), 0, 0, *op);
}

template <typename T>
static void glu_bwd_launch(backend_device_t *device, const op_glu_bwd_t *op) {
  constexpr int W = vec_t<T>::width;
  bool wide = op->ffn % W == 0 && wide_aligned(op->x, op->dy, op->dx, op->y);
  launch_chained(device, wide ? glu_bwd_kernel<T, W> : glu_bwd_kernel<T, 1>, (unsigned)op->n,
                 glu_threads(wide ? op->ffn / W : op->ffn), 0, 0, *op);
}

CUDA_OP(glu, op_glu_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "glu"));
  if (op->n == 0) return NN_OK;
  CUDA_BY_DTYPE(op->act_dtype, glu_launch, device, op);
  return cuda_launched(device, "glu");
}

CUDA_OP(glu_bwd, op_glu_bwd_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "glu_bwd"));
  if (op->n == 0) return NN_OK;
  CUDA_BY_DTYPE(op->act_dtype, glu_bwd_launch, device, op);
  return cuda_launched(device, "glu_bwd");
}
