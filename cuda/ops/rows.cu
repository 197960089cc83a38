/* y[i, j] = alpha <a_i, b_j> + bias_j + c[i, j], without bias or alpha = 1, for a few rows i: a
 * warp an output column j reads the weight's row j once, 16 bytes a lane, and keeps a sum for each
 * i. Lanes' sums are added in one fixed order. */
#include "../launch.cuh"
#include "matmul.h"

enum {
  ROWS = 8,
  WARPS = 4,
  LOADS = 4 /* of the weight's row that a lane has in flight */
};

int matmul_rows_fit(const op_matmul_t *op) {
  int64_t width = cuda_is_half(op->a_dtype) ? 8 : 4;
  return op->m <= ROWS && !op->trans_a && op->trans_b && op->a_dtype == op->b_dtype &&
         op->k % width == 0 && op->lda % width == 0 && op->ldb % width == 0 &&
         (((uintptr_t)op->a | (uintptr_t)op->b) & 15) == 0;
}

/* Vectors of a lane from column l on; zero behind the row's end. */
template <typename T>
__device__ __forceinline__ void rows_load(vec_t<T> (&to)[LOADS], const T *row, int64_t l,
                                          int64_t k) {
  constexpr int W = vec_t<T>::width;
#pragma unroll
  for (int u = 0; u < LOADS; u++) {
    *(uint4 *)&to[u] = make_uint4(0, 0, 0, 0);
    if (l + u * 32 * W < k) to[u] = vec_load(row + l + u * 32 * W);
  }
}

template <typename T, typename D, int M>
__global__ void __launch_bounds__(32 * WARPS) rows_kernel(const op_matmul_t op, D *d) {
  constexpr int W = vec_t<T>::width;
  int64_t j = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
  int lane = threadIdx.x % 32;
  const T *a = (const T *)op.a, *b = (const T *)op.b + j * op.ldb;
  launch_next();
  if (lane == 0 && j < op.n) launch_prefetch(b, op.k * (int64_t)sizeof(T));
  launch_wait();
  if (j >= op.n) return;
  float add = 0; /* to row `lane`, which this lane writes */
  float alpha = op.alpha == 0 ? 1 : op.alpha;
  if (lane < M && lane < op.m) {
    if (op.bias) add = to_float(((const T *)op.bias)[j]);
    if (op.c) add += to_float(((const D *)op.c)[lane * op.ldc + j]);
  }
  float sum[M] = {};
  for (int64_t l = lane * W; l - lane * W < op.k; l += 32 * W * LOADS) {
    vec_t<T> w[LOADS];
    rows_load(w, b, l, op.k);
#pragma unroll
    for (int i = 0; i < M; i++) {
      if (i >= op.m) break;
      vec_t<T> x[LOADS];
      rows_load(x, a + i * op.lda, l, op.k);
#pragma unroll
      for (int u = 0; u < LOADS; u++)
#pragma unroll
        for (int e = 0; e < W; e++)
          sum[i] = fmaf(to_float(x[u].at[e]), to_float(w[u].at[e]), sum[i]);
    }
  }
  float v = 0;
#pragma unroll
  for (int i = 0; i < M; i++) {
    if (i >= op.m) break;
    float whole = warp_sum(sum[i]);
    if (lane == i) v = whole;
  }
  if (lane < M && lane < op.m) d[lane * op.ldd + j] = from_float<D>(fmaf(alpha, v, add));
}

template <typename T, typename D>
static void rows_run(backend_device_t *device, const op_matmul_t *op, void *d) {
  launch_chained(device, op->m == 1 ? rows_kernel<T, D, 1> : rows_kernel<T, D, ROWS>,
                 (unsigned)cuda_blocks(op->n, WARPS), 32 * WARPS, 0, 0, *op, (D *)d);
}

template <typename T>
static void rows_run_half(backend_device_t *device, const op_matmul_t *op, void *d) {
  if (op->d_dtype == NN_F32)
    rows_run<T, float>(device, op, d);
  else
    rows_run<T, T>(device, op, d);
}

void matmul_rows(backend_device_t *device, const op_matmul_t *op, void *d) {
  if (op->a_dtype == NN_F32)
    rows_run<float, float>(device, op, d);
  else
    CUDA_BY_HALF(op->a_dtype, rows_run_half, device, op, d);
}
