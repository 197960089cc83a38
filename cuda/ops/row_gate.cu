/* A gate per row: gate[t] = sigmoid(<x_t, w>), assigned; a warp has a row. Backward, with
 * d = dgate gate (1 - gate): dx_t += d w and dw += d x_t, in one pass; dw sums as columns.cuh
 * says. */
#include "ops/columns.cuh"

enum { GATE_THREADS = 256, GATE_WARPS = GATE_THREADS / 32 };

template <typename T, int W>
static __global__ void __launch_bounds__(GATE_THREADS) row_gate_kernel(const op_row_gate_t op) {
  int lane = threadIdx.x & 31;
  int64_t row = (int64_t)blockIdx.x * GATE_WARPS + (threadIdx.x >> 5);
  launch_next();
  launch_wait();
  if (row >= op.n) return;
  const T *from = (const T *)op.x + row * op.width;
  float sum = 0;
#pragma unroll 4
  for (int64_t c = lane * W; c < op.width; c += 32 * W) {
    float x[W], w[W];
    wide_load<W>(from + c, x);
    wide_load<W>((const T *)op.w + c, w);
#pragma unroll
    for (int j = 0; j < W; j++) sum = fmaf(x[j], w[j], sum);
  }
  sum = warp_sum(sum);
  if (lane == 0) op.gate[row] = 1 / (1 + expf(-sum));
}

/* A part of the rows, a tile of the columns. */
template <typename T, int W>
static __global__ void __launch_bounds__(COLUMNS_THREADS)
    row_gate_bwd_kernel(const op_row_gate_bwd_t op, int64_t rows, float *part) {
  __shared__ float room[COLUMNS_WARPS * 32 * W];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int64_t column = ((int64_t)blockIdx.x * 32 + lane) * W;
  int64_t row = blockIdx.y * rows, end = min(op.n, row + rows);
  const T *from = (const T *)op.x + column;
  T *to = (T *)op.dx + column;
  float sum[W] = {0}, w[W] = {0};
  launch_next();
  launch_wait();
  if (column < op.width) {
    wide_load<W>((const T *)op.w + column, w);
#pragma unroll 2
    for (row += warp; row < end; row += COLUMNS_WARPS) {
      float x[W], dx[W], gate = op.gate[row], d = op.dgate[row] * gate * (1 - gate);
      wide_load<W>(from + row * op.width, x);
      wide_load<W>(to + row * op.width, dx);
#pragma unroll
      for (int j = 0; j < W; j++) {
        sum[j] = fmaf(d, x[j], sum[j]);
        dx[j] = fmaf(d, w[j], dx[j]);
      }
      wide_store<W>(to + row * op.width, dx);
    }
  }
  columns_put<W>(sum, room, op.width, part, op.dw);
}

template <typename T>
static void row_gate_launch(backend_device_t *device, const op_row_gate_t *op) {
  constexpr int W = vec_t<T>::width;
  bool wide = op->width % W == 0 && wide_aligned(op->x, op->w);
  launch_chained(device, wide ? row_gate_kernel<T, W> : row_gate_kernel<T, 1>,
                 (unsigned)cuda_blocks(op->n, GATE_WARPS), GATE_THREADS, 0, 0, *op);
}

template <typename T, int W>
static void row_gate_bwd_run(backend_device_t *device, const op_row_gate_bwd_t *op, float *part) {
  columns_plan_t plan = columns_plan(device, op->n, op->width, W);
  dim3 grid((unsigned)plan.tiles, (unsigned)plan.parts);
  if (plan.parts == 1) part = NULL;
  launch_chained(device, row_gate_bwd_kernel<T, W>, grid, COLUMNS_THREADS, 0, 0, *op, plan.rows,
                 part);
  if (part) columns_finish(device, part, plan.parts, op->width, op->dw);
}

template <typename T>
static void row_gate_bwd_launch(backend_device_t *device, const op_row_gate_bwd_t *op,
                                float *part) {
  constexpr int W = vec_t<T>::width;
  if (op->width % W == 0 && wide_aligned(op->x, op->w, op->dx))
    row_gate_bwd_run<T, W>(device, op, part);
  else
    row_gate_bwd_run<T, 1>(device, op, part);
}

CUDA_OP(row_gate, op_row_gate_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "row_gate"));
  if (op->n == 0) return NN_OK;
  CUDA_BY_DTYPE(op->act_dtype, row_gate_launch, device, op);
  return cuda_launched(device, "row_gate");
}

CUDA_OP(row_gate_bwd, op_row_gate_bwd_t) {
  CUDA_TRY(cuda_enter(device, "row_gate_bwd"));
  if (op->n == 0) return NN_OK;
  cuda_arena_t arena = {(char *)scratch.data, 0};
  float *part = columns_take(device, &arena);
  CUDA_BY_DTYPE(op->act_dtype, row_gate_bwd_launch, device, op, part);
  return cuda_launched(device, "row_gate_bwd");
}
