/* Rotary positions, in place, and the storing of key and value rows into a cache. */
#include "launch.cuh"
#include "ops/rope.cuh"
#include "ops/wide.cuh"

/* ---- rotation -------------------------------------------------------------------------------- */

/* Rotates W pairs of a head from pair i on: columns i and i + half, or neighbours. */
template <typename T, int W, bool NEIGHBOURS>
static __device__ __forceinline__ void rope_turn(T *head, int i, int half, const float (&cosine)[W],
                                                 const float (&sine)[W], float sign) {
  constexpr bool MIXED = NEIGHBOURS && W > 1; /* both of each pair come in one access */
  constexpr int STEP = MIXED ? 2 : 1, APART = MIXED ? 1 : W;
  T *first = head + (NEIGHBOURS ? 2 * i : i), *second = NEIGHBOURS ? first + W : first + half;
  float x[2 * W];
  wide_load<W>(first, *(float(*)[W])x);
  wide_load<W>(second, *(float(*)[W])(x + W));
#pragma unroll
  for (int j = 0; j < W; j++)
    rope_pair(x[j * STEP], x[j * STEP + APART], cosine[j], sign * sine[j]);
  wide_store<W>(first, *(float(*)[W])x);
  wide_store<W>(second, *(float(*)[W])(x + W));
}

/* Positions and their table come from the host: those of a thread's first item are read ahead. */
template <typename T, int W, bool NEIGHBOURS>
static __global__ void __launch_bounds__(ROW_THREADS) rope_kernel(const op_rope_t op) {
  int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
  int half = (int)op.rotary_dim / 2, across = half / W, items = (int)op.heads * across;
  launch_next();
  const float *at = op.table + op.position[min(row, op.n - 1)] * op.rotary_dim;
  float cosine[W], sine[W], sign = op.inverse ? -1.0f : 1.0f;
  int item = threadIdx.x, i = item % across * W;
  wide_load<W>(at + i, cosine);
  wide_load<W>(at + half + i, sine);
  launch_wait();
  if (row >= op.n) return;
  T *x = (T *)op.x + row * op.ldx;
  while (item < items) {
    rope_turn<T, W, NEIGHBOURS>(x + item / across * op.head_dim, i, half, cosine, sine, sign);
    item += blockDim.x, i = item % across * W;
    if (item >= items) break;
    wide_load<W>(at + i, cosine);
    wide_load<W>(at + half + i, sine);
  }
}

template <typename T, int W>
static void rope_run(backend_device_t *device, const op_rope_t *op) {
  dim3 block = row_block(op->heads * (op->rotary_dim / 2 / W));
  unsigned grid = (unsigned)cuda_blocks(op->n, block.y);
  auto kernel = op->interleaved ? rope_kernel<T, W, true> : rope_kernel<T, W, false>;
  launch_chained(device, kernel, grid, block, 0, 0, *op);
}

template <typename T>
static void rope_launch(backend_device_t *device, const op_rope_t *op) {
  constexpr int W = vec_t<T>::width;
  if (op->rotary_dim / 2 % W == 0 && op->head_dim % W == 0 && op->ldx % W == 0 &&
      wide_aligned(op->x, op->table))
    rope_run<T, W>(device, op);
  else
    rope_run<T, 1>(device, op);
}

CUDA_OP(rope, op_rope_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "rope"));
  if (op->n == 0 || op->heads == 0) return NN_OK;
  op_rope_t whole = *op;
  if (!whole.rotary_dim) whole.rotary_dim = op->head_dim;
  CUDA_BY_DTYPE(op->act_dtype, rope_launch, device, &whole);
  return cuda_launched(device, "rope");
}

/* ---- cache ----------------------------------------------------------------------------------- */

/* Sizes and strides in units of type U; blockIdx.y is 0 for keys and 1 for values. Sequences and
 * positions come from the host. */
template <typename U>
static __global__ void __launch_bounds__(ROW_THREADS)
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
  dim3 block = row_block(width), grid((unsigned)cuda_blocks(op->n, block.y), 2);
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
