/* Embedding. Forward assigns out[t] = wte[ids[t]] + wpe[position[t]]. Backward accumulates dout[t]
 * into those rows in order of t, without atomics: a row belongs to the block of the first token
 * that chose it, and the blocks of the others leave. */
#include "ops/wide.cuh"

enum {
  EMBED_THREADS = 128,
  EMBED_WARPS = EMBED_THREADS / 32,
  EMBED_LOOK = 4, /* tokens that a thread looks at between two barriers */
  EMBED_SCAN = EMBED_LOOK * EMBED_THREADS,
  EMBED_AHEAD = 8, /* rows read before the first is added */
  EMBED_BLOCKS = 8 /* of a multiprocessor: leaves the registers that those rows need */
};

/* One block per token. */
template <typename T, int W>
static __global__ void __launch_bounds__(EMBED_THREADS) embed_kernel(const op_embed_t op) {
  int64_t t = blockIdx.x;
  const T *token = (const T *)op.wte + op.ids[t] * op.hidden;
  const T *place = op.wpe ? (const T *)op.wpe + op.position[t] * op.hidden : NULL;
  T *out = (T *)op.out + t * op.hidden;
  for (int64_t c = threadIdx.x * W; c < op.hidden; c += EMBED_THREADS * W) {
    float x[W], add[W];
    wide_load<W>(token + c, x);
    if (place) {
      wide_load<W>(place + c, add);
#pragma unroll
      for (int j = 0; j < W; j++) x[j] += add[j];
    }
    wide_store<W>(out + c, x);
  }
}

template <typename T>
static void embed_launch(backend_device_t *device, const op_embed_t *op) {
  constexpr int W = vec_t<T>::width;
  unsigned grid = (unsigned)op->n;
  if (op->hidden % W == 0 && wide_aligned(op->wte, op->wpe, op->out))
    embed_kernel<T, W><<<grid, EMBED_THREADS, 0, device->stream>>>(*op);
  else
    embed_kernel<T, 1><<<grid, EMBED_THREADS, 0, device->stream>>>(*op);
}

CUDA_OP(embed, op_embed_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "embed"));
  if (op->n == 0) return NN_OK;
  CUDA_BY_DTYPE(op->act_dtype, embed_launch, device, op);
  return cuda_launched(device, "embed");
}

/* ---- backward -------------------------------------------------------------------------------- */

/* Whether a token before `first` chose the row; the same answer in all threads. */
static __device__ __forceinline__ bool embed_taken(const int32_t *rows, int first, int32_t row) {
  for (int base = 0; base < first; base += EMBED_SCAN) {
    int found = 0;
#pragma unroll
    for (int i = 0; i < EMBED_LOOK; i++) {
      int t = base + i * EMBED_THREADS + threadIdx.x;
      if (t < first) found |= rows[t] == row;
    }
    if (__syncthreads_or(found)) return true;
  }
  return false;
}

/* Appends the tokens of base .. base + EMBED_SCAN - 1 that chose the row to list, in order; returns
 * the new count. Threads may still read the list's old content when others come here: it is written
 * behind the first barrier. mask: shared, [EMBED_SCAN / 32]. */
static __device__ __forceinline__ int embed_append(const int32_t *rows, int n, int base,
                                                   int32_t row, int *list, int count,
                                                   uint32_t *mask) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  uint32_t bits[EMBED_LOOK], any = 0;
#pragma unroll
  for (int i = 0; i < EMBED_LOOK; i++) {
    int t = base + i * EMBED_THREADS + threadIdx.x;
    bits[i] = __ballot_sync(0xffffffffu, t < n && rows[t] == row);
    if (lane == 0) mask[i * EMBED_WARPS + warp] = bits[i];
    any |= bits[i];
  }
  if (!__syncthreads_or(any != 0)) return count;
#pragma unroll
  for (int i = 0; i < EMBED_SCAN / 32; i++) {
    if (i % EMBED_WARPS == warp && bits[i / EMBED_WARPS] >> lane & 1)
      list[count + __popc(mask[i] & ((1u << lane) - 1))] = base + i * 32 + lane;
    count += __popc(mask[i]);
  }
  __syncthreads();
  return count;
}

/* sum += W columns of the listed rows of dout, in order. */
template <typename T, int W>
static __device__ __forceinline__ void embed_add(float (&sum)[W], const T *dout, int64_t hidden,
                                                 const int *list, int count) {
  int i = 0;
  for (; i + EMBED_AHEAD <= count; i += EMBED_AHEAD) {
    T x[EMBED_AHEAD][W];
#pragma unroll
    for (int u = 0; u < EMBED_AHEAD; u++) wide_read<W>(dout + list[i + u] * hidden, x[u]);
#pragma unroll
    for (int u = 0; u < EMBED_AHEAD; u++)
#pragma unroll
      for (int j = 0; j < W; j++) sum[j] += to_float(x[u][j]);
  }
  for (; i < count; i++) {
    float x[W];
    wide_load<W>(dout + list[i] * hidden, x);
#pragma unroll
    for (int j = 0; j < W; j++) sum[j] += x[j];
  }
}

/* One block per token and tile of EMBED_THREADS * W columns. */
template <typename T, int W>
static __global__ void __launch_bounds__(EMBED_THREADS, EMBED_BLOCKS)
    embed_bwd_kernel(int n, int64_t hidden, const int32_t *rows, const T *dout, float *table) {
  __shared__ int list[2 * EMBED_SCAN];
  __shared__ uint32_t mask[EMBED_SCAN / 32];
  int first = blockIdx.x;
  int32_t row = rows[first];
  if (embed_taken(rows, first, row)) return;
  int64_t column = ((int64_t)blockIdx.y * EMBED_THREADS + threadIdx.x) * W;
  float *to = table + row * hidden + column;
  float sum[W] = {0};
  if (column < hidden) wide_load<W>(to, sum);
  int count = 0;
  for (int base = first; base < n; base += EMBED_SCAN) {
    count = embed_append(rows, n, base, row, list, count, mask);
    if (count <= EMBED_SCAN && base + EMBED_SCAN < n) continue;
    if (column < hidden) embed_add<T, W>(sum, dout + column, hidden, list, count);
    count = 0;
  }
  if (column < hidden) wide_store<W>(to, sum);
}

template <typename T, int W>
static void embed_bwd_run(backend_device_t *device, const op_embed_bwd_t *op, const int32_t *rows,
                          float *table) {
  dim3 grid((unsigned)op->n, (unsigned)cuda_blocks(op->hidden, EMBED_THREADS * W));
  embed_bwd_kernel<T, W><<<grid, EMBED_THREADS, 0, device->stream>>>(
      (int)op->n, op->hidden, rows, (const T *)op->dout, table);
}

template <typename T>
static void embed_bwd_launch(backend_device_t *device, const op_embed_bwd_t *op,
                             const int32_t *rows, float *table) {
  constexpr int W = vec_t<T>::width;
  if (op->hidden % W == 0 && wide_aligned(op->dout, table))
    embed_bwd_run<T, W>(device, op, rows, table);
  else
    embed_bwd_run<T, 1>(device, op, rows, table);
}

CUDA_OP(embed_bwd, op_embed_bwd_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "embed_bwd"));
  if (op->n == 0) return NN_OK;
  CUDA_BY_DTYPE(op->act_dtype, embed_bwd_launch, device, op, op->ids, op->dwte);
  if (op->dwpe) CUDA_BY_DTYPE(op->act_dtype, embed_bwd_launch, device, op, op->position, op->dwpe);
  return cuda_launched(device, "embed_bwd");
}
