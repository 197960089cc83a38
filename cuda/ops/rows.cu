/* y[i, j] = <a_i, b_j> + bias_j + c[i, j] for a few rows i: a warp an output column j reads the weight's
 * row j once, 16 bytes a lane, and keeps a sum for each i. Lanes' sums are added in one fixed order. */
#include "../kernel.cuh"
#include "matmul.h"

enum { ROWS = 8, WARPS = 4 };

int matmul_rows_fit(const op_matmul_t *op) {
  int64_t width = op->a_dtype == NN_BF16 ? 8 : 4;
  return op->m <= ROWS && !op->trans_a && op->trans_b && op->a_dtype == op->b_dtype &&
         op->k % width == 0 && op->lda % width == 0 && op->ldb % width == 0 &&
         (((uintptr_t)op->a | (uintptr_t)op->b) & 15) == 0;
}

template <typename T, typename D, int M>
__global__ void __launch_bounds__(32 * WARPS) rows_kernel(op_matmul_t op, D *d) {
  int64_t j = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
  int lane = threadIdx.x % 32;
  if (j >= op.n) return;
  const T *a = (const T *)op.a, *b = (const T *)op.b + j * op.ldb;
  constexpr int W = vec_t<T>::width;
  float sum[M] = {};
#pragma unroll 4
  for (int64_t l = lane * W; l < op.k; l += 32 * W) {
    vec_t<T> w = vec_load(b + l);
#pragma unroll
    for (int i = 0; i < M; i++) {
      if (i >= op.m) break;
      vec_t<T> x = vec_load(a + i * op.lda + l);
#pragma unroll
      for (int e = 0; e < W; e++) sum[i] += to_float(x.at[e]) * to_float(w.at[e]);
    }
  }
#pragma unroll
  for (int i = 0; i < M; i++) {
    if (i >= op.m) break;
    float v = warp_sum(sum[i]);
    if (lane) continue;
    if (op.bias) v += to_float(((const T *)op.bias)[j]);
    if (op.c) v += to_float(((const D *)op.c)[i * op.ldc + j]);
    d[i * op.ldd + j] = from_float<D>(v);
  }
}

template <typename T, typename D>
static void rows_run(backend_device_t *device, const op_matmul_t *op, void *d) {
  unsigned blocks = (unsigned)cuda_blocks(op->n, WARPS);
  if (op->m == 1)
    rows_kernel<T, D, 1><<<blocks, 32 * WARPS, 0, device->stream>>>(*op, (D *)d);
  else
    rows_kernel<T, D, ROWS><<<blocks, 32 * WARPS, 0, device->stream>>>(*op, (D *)d);
}

void matmul_rows(backend_device_t *device, const op_matmul_t *op, void *d) {
  if (op->a_dtype == NN_F32)
    rows_run<float, float>(device, op, d);
  else if (op->d_dtype == NN_F32)
    rows_run<bf16_t, float>(device, op, d);
  else
    rows_run<bf16_t, bf16_t>(device, op, d);
}
