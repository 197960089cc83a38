/* Embedding. Forward assigns out[t] = alpha wte[ids[t]] + wpe[position[t]]. Backward accumulates
 * alpha dout[t] and dout[t] into those rows in order of t, without atomics: rows are dealt out to blocks, each of which looks
 * for its tokens among all; a warp has a tile of columns of a row. */
#include "launch.cuh"
#include "ops/wide.cuh"

enum {
  EMBED_THREADS = 128,
  /* backward */
  EMBED_BWD_THREADS = 512,
  EMBED_WARPS = EMBED_BWD_THREADS / 32,
  EMBED_DEALT = 256, /* most blocks, a power of two: about two to a multiprocessor */
  EMBED_LOOK = 4,    /* tokens that a thread looks at between two barriers */
  EMBED_SCAN = EMBED_LOOK * EMBED_BWD_THREADS,
  EMBED_AHEAD = 4,   /* rows of dout read before the first is added */
  EMBED_FAR = 16,    /* the same, of a narrower tile */
  EMBED_MANY = 32,   /* tokens of a row that narrower tiles pay for */
  EMBED_BLOCKS = 2   /* of a multiprocessor: leaves the registers that those rows need */
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
#pragma unroll
    for (int j = 0; j < W; j++) x[j] *= op.alpha;
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
  op_embed_t whole = *op;
  whole.alpha = backend_factor(op->alpha);
  CUDA_BY_DTYPE(op->act_dtype, embed_launch, device, &whole);
  return cuda_launched(device, "embed");
}

/* ---- backward -------------------------------------------------------------------------------- */

/* Tokens of a block, in order, and the rows that they chose. */
typedef struct embed_list {
  int token[2 * EMBED_SCAN];
  int32_t row[2 * EMBED_SCAN];
  uint16_t times[2 * EMBED_SCAN]; /* tokens of the row, at its first one; 0 at the others */
  uint16_t many[2 * EMBED_SCAN / EMBED_MANY]; /* first tokens of rows with EMBED_MANY or more */
  int queue[EMBED_WARPS][EMBED_FAR + 32];
  int many_count;
  alignas(16) int found[2][EMBED_WARPS]; /* of a scan, by its warps; of two scans in turn */
} embed_list_t;

/* The rows of a thread's tokens among base .. base + EMBED_SCAN - 1: a warp has neighbours. */
static __device__ __forceinline__ void embed_look(const int32_t *rows, int n, int base,
                                                  int32_t (&row)[EMBED_LOOK]) {
  int first = base + (threadIdx.x >> 5) * 32 * EMBED_LOOK + (threadIdx.x & 31);
#pragma unroll
  for (int i = 0; i < EMBED_LOOK; i++) row[i] = first + i * 32 < n ? rows[first + i * 32] : -1;
}

/* Appends those of the looked-at tokens whose rows are this block's; returns the new count. */
static __device__ __forceinline__ int embed_append(const int32_t (&row)[EMBED_LOOK], int base,
                                                   embed_list_t &list, int count, int *found) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, mine = 0;
  uint32_t bits[EMBED_LOOK];
#pragma unroll
  for (int i = 0; i < EMBED_LOOK; i++) {
    bool here = row[i] >= 0 && (row[i] & (gridDim.x - 1)) == blockIdx.x;
    bits[i] = __ballot_sync(0xffffffffu, here);
    mine += __popc(bits[i]);
  }
  if (lane == 0) found[warp] = mine;
  __syncthreads();
  int at = count;
#pragma unroll
  for (int w = 0; w < EMBED_WARPS; w++) {
    at += w < warp ? found[w] : 0;
    count += found[w];
  }
#pragma unroll
  for (int i = 0; i < EMBED_LOOK; i++) {
    if (bits[i] >> lane & 1) {
      int to = at + __popc(bits[i] & ((1u << lane) - 1));
      list.token[to] = base + (warp * EMBED_LOOK + i) * 32 + lane;
      list.row[to] = row[i];
    }
    at += __popc(bits[i]);
  }
  return count;
}

/* Bytes on their way to a thread, in registers that nothing divides before they are used. */
template <int BYTES>
struct embed_raw;
template <>
struct embed_raw<16> {
  typedef uint4 type;
};
template <>
struct embed_raw<4> {
  typedef uint32_t type;
};
template <>
struct embed_raw<2> {
  typedef uint16_t type;
};

/* table[row] += alpha times the rows of dout of the `times` listed tokens from `first` on that chose the row,
 * in order; W columns of a lane, by one warp. */
template <typename T, int W>
static __device__ __forceinline__ void embed_add(const embed_list_t &list, int first, int times,
                                                 int count, int64_t hidden, int64_t column,
                                                 const T *dout, float alpha, float *table) {
  typedef typename embed_raw<W * sizeof(T)>::type raw_t;
  int lane = threadIdx.x & 31;
  int32_t row = list.row[first];
  bool inside = column < hidden;
  float *to = table + row * hidden + column, sum[W] = {0};
  raw_t one = {};
  if (inside) {
    one = *(const raw_t *)(dout + list.token[first] * hidden + column);
    wide_load<W>(to, sum);
  }
#pragma unroll
  for (int j = 0; j < W; j++) sum[j] = fmaf(alpha, to_float(((const T *)&one)[j]), sum[j]);
  times--;
  for (int base = first + 1; times; base += 32) {
    uint32_t same = __ballot_sync(0xffffffffu, base + lane < count && list.row[base + lane] == row);
    times -= __popc(same);
    while (same) {
      raw_t x[EMBED_AHEAD];
      uint32_t rest = same;
#pragma unroll
      for (int u = 0; u < EMBED_AHEAD; u++) {
        if (inside && rest)
          x[u] = *(const raw_t *)(dout + list.token[base + __ffs(rest) - 1] * hidden + column);
        rest &= rest - 1;
      }
#pragma unroll
      for (int u = 0; u < EMBED_AHEAD; u++) {
        if (same) {
#pragma unroll
          for (int j = 0; j < W; j++)
            sum[j] = fmaf(alpha, to_float(((const T *)&x[u])[j]), sum[j]);
        }
        same &= same - 1;
      }
    }
  }
  if (inside) wide_store<W>(to, sum);
}

/* sum += alpha times rows of dout, in order: of EMBED_FAR tokens where FULL, else of `now` fewer,
 * without branches: behind the last, the last is read again, and not added. */
template <typename T, int W, bool FULL>
static __device__ __forceinline__ void embed_add_queue(const int *queue, int now, int64_t hidden,
                                                       const T *from, float alpha,
                                                       float (&sum)[W]) {
  typedef typename embed_raw<W * sizeof(T)>::type raw_t;
  raw_t x[EMBED_FAR];
#pragma unroll
  for (int u = 0; u < EMBED_FAR; u++)
    x[u] = *(const raw_t *)(from + queue[FULL ? u : min(u, now - 1)] * hidden);
#pragma unroll
  for (int u = 0; u < EMBED_FAR; u++) {
    if (!FULL && u >= now) continue;
#pragma unroll
    for (int j = 0; j < W; j++) sum[j] = fmaf(alpha, to_float(((const T *)&x[u])[j]), sum[j]);
  }
}

/* The same of a row with many tokens: these are queued first, so that EMBED_FAR rows of dout are
 * on their way at once. queue: the warp's, [EMBED_FAR + 32]. */
template <typename T, int W>
static __device__ __forceinline__ void embed_add_many(const embed_list_t &list, int first,
                                                      int count, int64_t hidden, int64_t column,
                                                      const T *dout, float alpha, float *table,
                                                      int *queue) {
  int lane = threadIdx.x & 31, waiting = 0;
  int32_t row = list.row[first];
  bool inside = column < hidden;
  float *to = table + row * hidden + column, sum[W] = {0};
  if (inside) wide_load<W>(to, sum);
  const T *from = dout + (inside ? column : 0);
  for (int base = first; base < count; base += 32) {
    bool here = base + lane < count && list.row[base + lane] == row;
    uint32_t same = __ballot_sync(0xffffffffu, here);
    if (here) queue[waiting + __popc(same & ((1u << lane) - 1))] = list.token[base + lane];
    waiting += __popc(same);
    __syncwarp();
    while (waiting >= EMBED_FAR) {
      embed_add_queue<T, W, true>(queue, EMBED_FAR, hidden, from, alpha, sum);
      waiting -= EMBED_FAR;
      int rest = queue[EMBED_FAR + lane]; /* of which `waiting` are tokens */
      __syncwarp();
      queue[lane] = rest;
      __syncwarp();
    }
  }
  if (waiting) embed_add_queue<T, W, false>(queue, waiting, hidden, from, alpha, sum);
  __syncwarp();
  if (inside) wide_store<W>(to, sum);
}

/* Fills times and many; the order within many is any. By the whole block. */
static __device__ __forceinline__ void embed_count(embed_list_t &list, int count) {
  int lane = threadIdx.x & 31;
  if (threadIdx.x == 0) list.many_count = 0;
  __syncthreads();
  for (int first = threadIdx.x >> 5; first < count; first += EMBED_WARPS) {
    int32_t row = list.row[first];
    bool before = false;
    for (int i = 0; i < first && !before; i += 32)
      before = __any_sync(0xffffffffu, i + lane < first && list.row[i + lane] == row);
    int times = 0;
    for (int i = first; i < count && !before; i += 32)
      times += __popc(__ballot_sync(0xffffffffu, i + lane < count && list.row[i + lane] == row));
    if (lane) continue;
    list.times[first] = (uint16_t)times;
    if (times >= EMBED_MANY) list.many[atomicAdd(&list.many_count, 1)] = (uint16_t)first;
  }
  __syncthreads();
}

/* The list's rows, by the whole block: a warp has a row and a tile of columns at a time. */
template <typename T, int W>
static __device__ __forceinline__ void embed_add_list(embed_list_t &list, int count, int64_t hidden,
                                                      const T *dout, float alpha, float *table) {
  constexpr int NARROW = W > 1 ? 4 / sizeof(T) : 1;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  /* what is read comes near meanwhile */
  for (int i = threadIdx.x; i < count; i += EMBED_BWD_THREADS)
    launch_prefetch(dout + list.token[i] * hidden, hidden * (int64_t)sizeof(T));
  embed_count(list, count);
  int tiles = (int)((hidden + 32 * NARROW - 1) / (32 * NARROW));
  for (int u = warp; u < list.many_count * tiles; u += EMBED_WARPS)
    embed_add_many<T, NARROW>(list, list.many[u / tiles], count, hidden,
                              (u % tiles * 32 + lane) * NARROW, dout, alpha, table,
                              list.queue[warp]);
  tiles = (int)((hidden + 32 * W - 1) / (32 * W));
  for (int u = warp; u < count * tiles; u += EMBED_WARPS) {
    int first = u / tiles, times = list.times[first];
    if (times && times < EMBED_MANY)
      embed_add<T, W>(list, first, times, count, hidden, (u % tiles * 32 + lane) * W, dout, alpha,
                      table);
  }
}

/* The grid's size is a power of two; a block has the rows whose lowest bits are its index. */
template <typename T, int W>
static __global__ void __launch_bounds__(EMBED_BWD_THREADS, EMBED_BLOCKS)
    embed_bwd_kernel(int n, int64_t hidden, const int32_t *rows, const T *dout, float alpha,
                     float *table) {
  __shared__ embed_list_t list;
  int count = 0, turn = 0;
  int32_t row[EMBED_LOOK];
  embed_look(rows, n, 0, row);
  for (int base = 0; base < n; base += EMBED_SCAN) {
    int32_t next[EMBED_LOOK];
    embed_look(rows, n, base + EMBED_SCAN, next);
    count = embed_append(row, base, list, count, list.found[turn ^= 1]);
    if (count <= EMBED_SCAN && base + EMBED_SCAN < n) {
#pragma unroll
      for (int i = 0; i < EMBED_LOOK; i++) row[i] = next[i];
      continue;
    }
    __syncthreads();
    embed_add_list<T, W>(list, count, hidden, dout, alpha, table);
    embed_look(rows, n, base + EMBED_SCAN, row);
    count = 0;
    __syncthreads();
  }
}

template <typename T, int W>
static void embed_bwd_run(backend_device_t *device, const op_embed_bwd_t *op, const int32_t *rows,
                          float alpha, float *table) {
  unsigned grid = 1;
  while (grid < EMBED_DEALT && grid < op->n) grid *= 2;
  embed_bwd_kernel<T, W><<<grid, EMBED_BWD_THREADS, 0, device->stream>>>(
      (int)op->n, op->hidden, rows, (const T *)op->dout, alpha, table);
}

template <typename T>
static void embed_bwd_launch(backend_device_t *device, const op_embed_bwd_t *op,
                             const int32_t *rows, float alpha, float *table) {
  constexpr int W = vec_t<T>::width;
  if (op->hidden % W == 0 && wide_aligned(op->dout, table))
    embed_bwd_run<T, W>(device, op, rows, alpha, table);
  else
    embed_bwd_run<T, 1>(device, op, rows, alpha, table);
}

CUDA_OP(embed_bwd, op_embed_bwd_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "embed_bwd"));
  if (op->n == 0) return NN_OK;
  float alpha = backend_factor(op->alpha);
  CUDA_BY_DTYPE(op->act_dtype, embed_bwd_launch, device, op, op->ids, alpha, op->dwte);
  if (op->dwpe)
    CUDA_BY_DTYPE(op->act_dtype, embed_bwd_launch, device, op, op->position, 1.0f, op->dwpe);
  return cuda_launched(device, "embed_bwd");
}
