/* Parts of the dense product that need no speed: any layout, one thread an element, k in order; and
 * GELU by its tanh form (Hendrycks and Gimpel, 2016) as a pass of its own. */
#include "../kernel.cuh"
#include "matmul.h"

enum { THREADS = 256 };

__device__ __forceinline__ float plain_load(const void *data, int32_t dtype, int64_t i) {
  if (dtype == NN_BF16) return to_float(((const bf16_t *)data)[i]);
  if (dtype == NN_F16) return to_float(((const f16_t *)data)[i]);
  return ((const float *)data)[i];
}

__device__ __forceinline__ void plain_store(void *data, int32_t dtype, int64_t i, float x) {
  if (dtype == NN_BF16)
    ((bf16_t *)data)[i] = from_float<bf16_t>(x);
  else if (dtype == NN_F16)
    ((f16_t *)data)[i] = from_float<f16_t>(x);
  else
    ((float *)data)[i] = x;
}

__global__ void plain_kernel(op_matmul_t op, void *d) {
  int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (at >= op.m * op.n) return;
  int64_t i = at / op.n, j = at % op.n;
  int64_t a = op.trans_a ? i : i * op.lda, a_step = op.trans_a ? op.lda : 1;
  int64_t b = op.trans_b ? j * op.ldb : j, b_step = op.trans_b ? 1 : op.ldb;
  float sum = 0;
  for (int64_t l = 0; l < op.k; l++)
    sum +=
        plain_load(op.a, op.a_dtype, a + l * a_step) * plain_load(op.b, op.b_dtype, b + l * b_step);
  if (op.bias) sum += plain_load(op.bias, op.b_dtype, j);
  if (op.alpha != 0) sum *= op.alpha;
  if (op.c) sum += plain_load(op.c, op.d_dtype, i * op.ldc + j);
  plain_store(d, op.d_dtype, i * op.ldd + j, sum);
}

void matmul_plain(backend_device_t *device, const op_matmul_t *op, void *d) {
  unsigned blocks = (unsigned)cuda_blocks(op->m * op->n, THREADS);
  plain_kernel<<<blocks, THREADS, 0, device->stream>>>(*op, d);
}

__global__ void bias_kernel(const op_matmul_t op, float alpha, void *v) {
  int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (at >= op.m * op.n) return;
  int64_t j = at % op.n, to = at / op.n * op.ldd + j;
  float sum = fmaf(alpha, plain_load(op.bias, op.b_dtype, j), plain_load(v, op.d_dtype, to));
  plain_store(v, op.d_dtype, to, sum);
}

void matmul_bias(backend_device_t *device, const op_matmul_t *op, void *v) {
  unsigned blocks = (unsigned)cuda_blocks(op->m * op->n, THREADS);
  bias_kernel<<<blocks, THREADS, 0, device->stream>>>(*op, backend_factor(op->alpha), v);
}

/* gelu(v) = v (1 + t) / 2, t = tanh(c (v + 0.044715 v^3)), c = sqrt(2 / pi). */
__device__ __forceinline__ float gelu_tanh(float v, float *slope) {
  const float c = 0.7978845608028654f;
  float t = tanhf(c * (v + 0.044715f * v * v * v));
  *slope = 0.5f * (1 + t) + 0.5f * v * (1 - t * t) * c * (1 + 3 * 0.044715f * v * v);
  return 0.5f * v * (1 + t);
}

template <typename T>
__global__ void gelu_kernel(int64_t m, int64_t n, int64_t ld, bool backward, const T *v,
                            const T *aux, T *d) {
  int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (at >= m * n) return;
  int64_t i = at / n * ld + at % n;
  float slope, x = to_float(v[i]);
  if (backward) {
    gelu_tanh(to_float(aux[i]), &slope);
    d[i] = from_float<T>(x * slope);
  } else {
    d[i] = from_float<T>(gelu_tanh(x, &slope));
  }
}

template <typename T>
static void gelu_run(backend_device_t *device, const op_matmul_t *op, const void *v) {
  unsigned blocks = (unsigned)cuda_blocks(op->m * op->n, THREADS);
  gelu_kernel<T><<<blocks, THREADS, 0, device->stream>>>(
      op->m, op->n, op->ldd, op->epilogue == MATMUL_GELU_BWD, (const T *)v, (const T *)op->aux,
      (T *)op->d);
}

void matmul_gelu(backend_device_t *device, const op_matmul_t *op, const void *v) {
  CUDA_BY_DTYPE(op->d_dtype, gelu_run, device, op, v);
}
