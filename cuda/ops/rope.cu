/* Rotary positions, in place, and the storing of key and value rows into a cache. */
#include "launch.cuh"
#include "ops/wide.cuh"

enum { ROPE_THREADS = 256 };

/* A block whose x runs over the items of a row and whose y over rows. */
static dim3 rope_block(int64_t items) {
  int64_t x = cuda_blocks(items, 32) * 32;
  if (x > ROPE_THREADS) x = ROPE_THREADS;
  return dim3((unsigned)x, (unsigned)(ROPE_THREADS / x));
}

/* ---- rotation -------------------------------------------------------------------------------- */

/* Rotates W pairs: low and high are columns i and i + head_dim / 2 of a head. */
template <typename T, int W>
static __device__ __forceinline__ void rope_turn(T *low, T *high, const float (&cosine)[W],
                                                 const float (&sine)[W], float sign) {
  float a[W], b[W];
  wide_load<W>(low, a);
  wide_load<W>(high, b);
#pragma unroll
  for (int j = 0; j < W; j++) {
    float x = a[j], y = b[j], turn = sign * sine[j];
    a[j] = x * cosine[j] - y * turn;
    b[j] = y * cosine[j] + x * turn;
  }
  wide_store<W>(low, a);
  wide_store<W>(high, b);
}

/* Positions and their table come from the host: those of a thread's first item are read ahead. */
template <typename T, int W>
static __global__ void __launch_bounds__(ROPE_THREADS) rope_kernel(const op_rope_t op) {
  int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  int half = (int)op.head_dim / 2, across = half / W, items = (int)op.heads * across;
  launch_next();
  const float *at = op.table + op.position[min(row, op.n - 1)] * op.head_dim;
  float cosine[W], sine[W], sign = op.inverse ? -1.0f : 1.0f;
  int item = threadIdx.x, i = item % across * W;
  wide_load<W>(at + i, cosine);
  wide_load<W>(at + half + i, sine);
  launch_wait();
  if (row >= op.n) return;
  T *x = (T *)op.x + row * op.ldx;
  while (item < items) {
    T *low = x + item / across * op.head_dim + i;
    rope_turn<T, W>(low, low + half, cosine, sine, sign);
    item += blockDim.x, i = item % across * W;
    if (item >= items) break;
    wide_load<W>(at + i, cosine);
    wide_load<W>(at + half + i, sine);
  }
}

template <typename T, int W>
static void rope_run(backend_device_t *device, const op_rope_t *op) {
  dim3 block = rope_block(op->heads * (op->head_dim / 2 / W));
  unsigned grid = (unsigned)cuda_blocks(op->n, block.y);
  launch_chained(device, rope_kernel<T, W>, grid, block, 0, 0, *op);
}

template <typename T>
static void rope_launch(backend_device_t *device, const op_rope_t *op) {
  constexpr int W = vec_t<T>::width;
  if (op->head_dim / 2 % W == 0 && op->ldx % W == 0 && wide_aligned(op->x, op->table))
    rope_run<T, W>(device, op);
  else
    rope_run<T, 1>(device, op);
}

CUDA_OP(rope, op_rope_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "rope"));
  if (op->n == 0 || op->heads == 0) return NN_OK;
  CUDA_BY_DTYPE(op->act_dtype, rope_launch, device, op);
  return cuda_launched(device, "rope");
}

/* ---- cache ----------------------------------------------------------------------------------- */

/* Sizes and strides in units of type U; blockIdx.y is 0 for keys and 1 for values. Sequences and
 * positions come from the host. */
template <typename U>
static __global__ void __launch_bounds__(ROPE_THREADS)
    kv_store_kernel(const op_kv_store_t op, int64_t width, int64_t ld, int64_t cache_batch) {
  int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y, at = min(row, op.n - 1);
  launch_next();
  int64_t sequence = op.sequence[at], position = op.position[at];
  launch_wait();
  if (row >= op.n || sequence < 0) return;
  const U *from = (const U *)(blockIdx.y ? op.v : op.k) + row * ld;
  U *to = (U *)(blockIdx.y ? op.v_cache : op.k_cache);
  to += sequence * cache_batch + position * width;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
}

template <typename U>
static void kv_store_run(backend_device_t *device, const op_kv_store_t *op, int64_t per_unit) {
  int64_t width = op->width / per_unit;
  dim3 block = rope_block(width), grid((unsigned)cuda_blocks(op->n, block.y), 2);
  launch_chained(device, kv_store_kernel<U>, grid, block, 0, 0, *op, width, op->ld / per_unit,
                 op->cache_batch / per_unit);
}

template <typename T>
static void kv_store_launch(backend_device_t *device, const op_kv_store_t *op) {
  constexpr int W = vec_t<T>::width;
  if (op->width % W == 0 && op->ld % W == 0 && op->cache_batch % W == 0 &&
      wide_aligned(op->k, op->v, op->k_cache, op->v_cache))
    kv_store_run<uint4>(device, op, W);
  else
    kv_store_run<T>(device, op, 1);
}

CUDA_OP(kv_store, op_kv_store_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "kv_store"));
  if (op->n == 0 || op->width == 0) return NN_OK;
  CUDA_BY_DTYPE(op->act_dtype, kv_store_launch, device, op);
  return cuda_launched(device, "kv_store");
}
