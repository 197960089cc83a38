/* Embedding. Forward assigns out[t] = alpha wte[ids[t]] + wpe[position[t]]; a warp has a token.
 * Backward accumulates alpha dout[t] and dout[t] into those rows, without atomics: rows are dealt
 * out to blocks, each of which looks for its tokens among all and adds those of a list of them. A
 * warp has a tile of columns of a row, and adds in order of t; of a row that many tokens of a list
 * chose, each of the block's warps adds up every EMBED_WARPS-th 32 of the list, in order, and these
 * sums are added in order of warps. */
#include "launch.cuh"
#include "ops/wide.cuh"

enum {
  EMBED_THREADS = 128,
  EMBED_LOADS = 4, /* vectors of a lane, read before the first is written */
  /* backward */
  EMBED_BWD_THREADS = 512,
  EMBED_WARPS = EMBED_BWD_THREADS / 32,
  EMBED_DEALT = 256, /* most blocks, a power of two: about two to a multiprocessor */
  EMBED_LOOK = 4,    /* tokens that a thread looks at between two barriers */
  EMBED_SCAN = EMBED_LOOK * EMBED_BWD_THREADS,
  EMBED_LIST = 3072, /* room for tokens */
  EMBED_AHEAD = 4,   /* rows of dout read before the first is added */
  EMBED_MANY = 32,   /* tokens of a row that a whole block pays for */
  EMBED_BLOCKS = 2   /* of a multiprocessor: leaves the registers that those rows need */
};

template <typename T, int W>
static __global__ void __launch_bounds__(EMBED_THREADS, 8) embed_kernel(const op_embed_t op) {
  constexpr int STEP = 32 * W;
  int64_t t = (int64_t)blockIdx.x * (EMBED_THREADS / 32) + threadIdx.x / 32;
  launch_next();
  launch_wait();
  if (t >= op.n) return;
  const T *token = (const T *)op.wte + op.ids[t] * op.hidden;
  const T *place = op.wpe ? (const T *)op.wpe + op.position[t] * op.hidden : NULL;
  T *out = (T *)op.out + t * op.hidden;
  for (int64_t c = threadIdx.x % 32 * W; c < op.hidden; c += EMBED_LOADS * STEP) {
    T x[EMBED_LOADS][W];
#pragma unroll
    for (int i = 0; i < EMBED_LOADS; i++)
      if (c + i * STEP < op.hidden) wide_read<W>(token + c + i * STEP, x[i]);
#pragma unroll
    for (int i = 0; i < EMBED_LOADS; i++) {
      if (c + i * STEP >= op.hidden) continue;
      float sum[W], add[W] = {0};
      if (place) wide_load<W>(place + c + i * STEP, add);
#pragma unroll
      for (int j = 0; j < W; j++) {
        sum[j] = to_float(x[i][j]) * op.alpha;
        if (place) sum[j] += add[j];
      }
      wide_store<W>(out + c + i * STEP, sum);
    }
  }
}

template <typename T>
static void embed_launch(backend_device_t *device, const op_embed_t *op) {
  constexpr int W = vec_t<T>::width;
  bool wide = op->hidden % W == 0 && wide_aligned(op->wte, op->wpe, op->out);
  launch_chained(device, wide ? embed_kernel<T, W> : embed_kernel<T, 1>,
                 (unsigned)cuda_blocks(op->n, EMBED_THREADS / 32), EMBED_THREADS, 0, 0, *op);
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
  int token[EMBED_LIST];
  int32_t row[EMBED_LIST];
  uint16_t times[EMBED_LIST]; /* tokens of the row, at its first one; 0 at the others */
  uint16_t many[EMBED_LIST / EMBED_MANY]; /* first tokens of rows with EMBED_MANY or more */
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

/* Appends those of the looked-at tokens whose rows are this block's, and asks for their rows of
 * dout; returns the new count. */
template <typename T>
static __device__ __forceinline__ int embed_append(const int32_t (&row)[EMBED_LOOK], int base,
                                                   embed_list_t &list, int count, int *found,
                                                   const T *dout, int64_t hidden) {
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
      launch_prefetch(dout + list.token[to] * hidden, hidden * (int64_t)sizeof(T));
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

/* sum += alpha times the rows of dout of listed tokens that chose the row, in order: of those among
 * 32 from base on, then from base + step on, until `times` are found. from: a lane's W columns of
 * dout, of which there are any where inside. */
template <typename T, int W>
static __device__ __forceinline__ void embed_sum(const embed_list_t &list, int32_t row, int base,
                                                 int step, int times, int count, int64_t hidden,
                                                 const T *from, bool inside, float alpha,
                                                 float (&sum)[W]) {
  typedef typename embed_raw<W * sizeof(T)>::type raw_t;
  int lane = threadIdx.x & 31;
  for (; times > 0 && base < count; base += step) {
    uint32_t same = __ballot_sync(0xffffffffu, base + lane < count && list.row[base + lane] == row);
    times -= __popc(same);
    while (same) {
      raw_t x[EMBED_AHEAD];
      uint32_t rest = same;
#pragma unroll
      for (int u = 0; u < EMBED_AHEAD; u++) {
        if (inside && rest)
          x[u] = *(const raw_t *)(from + list.token[base + __ffs(rest) - 1] * hidden);
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
}

/* Adds a row's tokens, `times` of them from list.token[first] on; W columns of a lane, by one
 * warp. */
template <typename T, int W>
static __device__ __forceinline__ void embed_add(const embed_list_t &list, int first, int times,
                                                 int count, int64_t hidden, int64_t column,
                                                 const T *dout, float alpha, float *table) {
  int32_t row = list.row[first];
  bool inside = column < hidden;
  float *to = table + row * hidden + column, sum[W] = {0};
  if (inside) wide_load<W>(to, sum);
  embed_sum<T, W>(list, row, first, 32, times, count, hidden, dout + column, inside, alpha, sum);
  if (inside) wide_store<W>(to, sum);
}

/* The same of a row with many tokens, by the whole block. room: shared, [EMBED_WARPS * 32 * W]. */
template <typename T, int W>
static __device__ __forceinline__ void embed_add_many(const embed_list_t &list, int32_t row,
                                                      int count, int64_t hidden, const T *dout,
                                                      float alpha, float *table, float *room) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (int64_t tile = 0; tile < hidden; tile += 32 * W) {
    int64_t column = tile + lane * W, mine = tile + threadIdx.x;
    float sum[W] = {0}, total = 0;
    embed_sum<T, W>(list, row, 32 * warp, 32 * EMBED_WARPS, count, count, hidden, dout + column,
                    column < hidden, alpha, sum);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < W; j++) room[(warp * W + j) * 32 + lane] = sum[j];
    __syncthreads();
    if (threadIdx.x >= 32 * W || mine >= hidden) continue;
#pragma unroll
    for (int w = 0; w < EMBED_WARPS; w++)
      total += room[(w * W + threadIdx.x % W) * 32 + threadIdx.x / W];
    table[row * hidden + mine] += total;
  }
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
                                                      const T *dout, float alpha, float *table,
                                                      float *room) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  embed_count(list, count);
  for (int i = 0; i < list.many_count; i++)
    embed_add_many<T, W>(list, list.row[list.many[i]], count, hidden, dout, alpha, table, room);
  int tiles = (int)((hidden + 32 * W - 1) / (32 * W));
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
  __shared__ float room[EMBED_WARPS * 32 * W];
  int count = 0, turn = 0;
  int32_t row[EMBED_LOOK];
  launch_next();
  launch_wait();
  embed_look(rows, n, 0, row);
  for (int base = 0; base < n; base += EMBED_SCAN) {
    int32_t next[EMBED_LOOK];
    embed_look(rows, n, base + EMBED_SCAN, next);
    count = embed_append(row, base, list, count, list.found[turn ^= 1], dout, hidden);
    if (count <= EMBED_LIST - EMBED_SCAN && base + EMBED_SCAN < n) {
#pragma unroll
      for (int i = 0; i < EMBED_LOOK; i++) row[i] = next[i];
      continue;
    }
    __syncthreads();
    embed_add_list<T, W>(list, count, hidden, dout, alpha, table, room);
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
  launch_chained(device, embed_bwd_kernel<T, W>, grid, EMBED_BWD_THREADS, 0, 0, (int)op->n,
                 op->hidden, rows, (const T *)op->dout, alpha, table);
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
