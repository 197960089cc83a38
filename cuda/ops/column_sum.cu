/* out[j] += alpha * the sum over rows i of x[i, j], x [n, width] with a stride. Order:
 * columns.cuh. */
#include "ops/columns.cuh"

template <typename T, int W>
static __global__ void __launch_bounds__(COLUMNS_THREADS)
    column_sum_kernel(const op_column_sum_t op, int64_t rows, float *part) {
  __shared__ float room[COLUMNS_WARPS * 32 * W];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int64_t column = ((int64_t)blockIdx.x * 32 + lane) * W;
  int64_t row = blockIdx.y * rows, end = min(op.n, row + rows);
  const T *x = (const T *)op.x + column;
  float sum[W] = {0};
  if (column < op.width) {
#pragma unroll 4
    for (row += warp; row < end; row += COLUMNS_WARPS) {
      float add[W];
      wide_load<W>(x + row * op.ldx, add);
#pragma unroll
      for (int j = 0; j < W; j++) sum[j] += add[j];
    }
  }
#pragma unroll
  for (int j = 0; j < W; j++) sum[j] *= op.alpha;
  columns_put<W>(sum, room, op.width, part, op.out);
}

template <typename T, int W>
static void column_sum_run(backend_device_t *device, const op_column_sum_t *op, float *part) {
  columns_plan_t plan = columns_plan(device, op->n, op->width, W);
  dim3 grid((unsigned)plan.tiles, (unsigned)plan.parts);
  if (plan.parts == 1) part = NULL;
  column_sum_kernel<T, W><<<grid, COLUMNS_THREADS, 0, device->stream>>>(*op, plan.rows, part);
  if (part) columns_finish(device, part, plan.parts, op->width, op->out);
}

template <typename T>
static void column_sum_launch(backend_device_t *device, const op_column_sum_t *op, float *part) {
  constexpr int W = vec_t<T>::width;
  if (op->width % W == 0 && op->ldx % W == 0 && wide_aligned(op->x))
    column_sum_run<T, W>(device, op, part);
  else
    column_sum_run<T, 1>(device, op, part);
}

size_t cuda_column_sum_scratch(const backend_device_t *device, const backend_limits_t *limits) {
  cuda_arena_t arena = {NULL, 0};
  if (limits->training) columns_take(device, &arena);
  return arena.used;
}

CUDA_OP(column_sum, op_column_sum_t) {
  CUDA_TRY(cuda_enter(device, "column_sum"));
  if (op->n == 0 || op->width == 0) return NN_OK;
  cuda_arena_t arena = {(char *)scratch.data, 0};
  float *part = columns_take(device, &arena);
  op_column_sum_t whole = *op;
  whole.alpha = backend_factor(op->alpha);
  CUDA_BY_DTYPE(op->act_dtype, column_sum_launch, device, &whole, part);
  return cuda_launched(device, "column_sum");
}
