/* Attention backward by tensor cores: T bf16 or fp16, head dim D 64 or 128. With p = exp(s - lse)
 * made again and ds = p * (<dout, v> - delta): dv = p^T dout, dk = scale ds^T q, dq = scale ds k.
 *
 * Two kernels, so that each sum has one writer and no order to chance: one holds a block of keys
 * and walks over packed query rows, with everything transposed (a warp's fragments are keys by
 * rows), the other holds rows and walks over keys. A block of keys sees up to q_len * group rows,
 * the last block few, so its rows are cut into chunks of equal length for several blocks; their
 * fp32 sums are added in the order of rows. */
#include "attention/tile.cuh"

enum {
  FLASH_BWD_ROWS = ATTENTION_STAT_ROWS, /* packed rows of a tile, when keys are held */
  FLASH_BWD_STEP = 32,                  /* rows or keys of a tile that are in registers at once */
  FLASH_BWD_CHUNKS = 16,                /* most chunks of a block of keys */
  FLASH_BWD_HELD = 8192                 /* numbers of a held block: keys or rows times D */
};

/* Held 16-row fragments of a warp: two of head dim 64, one of 128. */
template <int D>
constexpr int flash_bwd_m = 128 / D;
template <int D>
constexpr int flash_bwd_held = FLASH_BWD_HELD / D; /* = TILE_WARPS * 16 * flash_bwd_m */

/* Two held blocks, then two stages of two tiles. */
template <int D>
constexpr int flash_bwd_bytes = 2 * FLASH_BWD_HELD * 2 + 4 * TILE_KEYS * 2 * D;

/* ---- dk and dv ------------------------------------------------------------------------------- */

struct flash_bwd_keys_t {
  op_attention_bwd_t op;
  attention_rows_t rows;
  const float2 *stats;
  float *partial; /* [blocks of keys, pairs, chunks, 2 (dk, dv), held, D]; NULL: one chunk */
  int pairs, chunks, chunk; /* tiles of rows of a chunk */
  int tiles;                /* tiles of rows */
  float scale;              /* log2(e) * op.scale */
};

/* The first tile of rows that sees a block of keys. */
template <int D>
__device__ __forceinline__ int flash_bwd_first_tile(const flash_bwd_keys_t &a, int block) {
  return (int)((int64_t)block * flash_bwd_held<D> * a.rows.group / FLASH_BWD_ROWS);
}

/* The tile behind the last one that does. */
template <int D>
__device__ __forceinline__ int flash_bwd_end_tile(const flash_bwd_keys_t &a, int block) {
  int64_t row = ((int64_t)(block + 1) * flash_bwd_held<D> - 2 + a.rows.window) * a.rows.group;
  return (int)min((int64_t)a.tiles, (row + a.rows.group - 1) / FLASH_BWD_ROWS + 1);
}

/* Tile `at` of the rows of a pair: q, dout behind it, and the statistics. */
template <typename T, int D>
__device__ __forceinline__ void flash_bwd_load_rows(const flash_bwd_keys_t &a, uint32_t tile,
                                                    uint32_t stats, int pair, int at) {
  int64_t width = (int64_t)a.rows.heads * D;
  int64_t first_row = (int64_t)(pair / a.rows.kv_heads) * a.rows.q_len;
  int head = pair % a.rows.kv_heads * a.rows.group * D;
  tile_load_rows<D, FLASH_BWD_ROWS>(tile, (const T *)a.op.q + first_row * a.op.ldq + head,
                                    a.op.ldq, a.rows, at * FLASH_BWD_ROWS);
  tile_load_rows<D, FLASH_BWD_ROWS>(tile + FLASH_BWD_ROWS * 2 * D,
                                    (const T *)a.op.dout + first_row * width + head, width,
                                    a.rows, at * FLASH_BWD_ROWS);
  if (threadIdx.x < FLASH_BWD_ROWS / 2)
    tile_copy(stats + threadIdx.x * 16,
              a.stats + ((int64_t)pair * a.tiles + at) * FLASH_BWD_ROWS + threadIdx.x * 2, true);
  tile_copy_end();
}

/* s [keys, rows] = scores become p; rows that do not see a key weigh nothing. stats: of the step's
 * rows. */
template <int M>
__device__ __forceinline__ void flash_bwd_weights(float (&s)[M][FLASH_BWD_STEP / 8][4],
                                                  const float4 *stats, float scale, bool masked,
                                                  const attention_rows_t &rows, int key, int row) {
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int n = 0; n < FLASH_BWD_STEP / 8; n++) {
    float4 stat = stats[n * 4 + t]; /* lse, delta of two rows */
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int x = 0; x < 4; x++)
        s[m][n][x] = tile_exp2(fmaf(s[m][n][x], scale, x & 1 ? -stat.z : -stat.x));
    if (!masked) continue;
#pragma unroll
    for (int x = 0; x < 2; x++) {
      int last = rows_query(rows, row + n * 8 + 2 * t + x) - key - g, out = last - rows.window;
#pragma unroll
      for (int m = 0; m < M; m++) {
        if (m * 16 > last || m * 16 <= out) s[m][n][x] = 0;
        if (m * 16 + 8 > last || m * 16 + 8 <= out) s[m][n][2 + x] = 0;
      }
    }
  }
}

/* One tile of rows: dk and dv of the warp's keys take its two steps. v lies behind k, and dout
 * behind q, in shared memory. */
template <typename T, int D>
__device__ __forceinline__ void flash_bwd_keys_tile(const flash_bwd_keys_t &a,
                                                    float (&dk)[flash_bwd_m<D>][D / 8][4],
                                                    float (&dv)[flash_bwd_m<D>][D / 8][4],
                                                    uint32_t k, uint32_t q, const float4 *stats,
                                                    int key, int row, bool masked) {
  constexpr int M = flash_bwd_m<D>, N = FLASH_BWD_STEP / 16;
  constexpr uint32_t held = FLASH_BWD_HELD * 2, tile = FLASH_BWD_ROWS * 2 * D;
  int t = threadIdx.x & 3;
#pragma unroll 1
  for (int step = 0; step < FLASH_BWD_ROWS / FLASH_BWD_STEP; step++) {
    float s[M][2 * N][4], ds[M][2 * N][4];
    tile_zero(s);
    tile_dot_shared<T, D, M, N>(s, k, q);
    flash_bwd_weights<M>(s, stats, a.scale, masked, a.rows, key, row);
#pragma unroll
    for (int x = 0; x < N; x++) tile_add<T, D, M, N>(dv, s, x, q + tile + x * 32 * D);
    tile_zero(ds);
    tile_dot_shared<T, D, M, N>(ds, k + held, q + tile);
#pragma unroll
    for (int n = 0; n < 2 * N; n++) {
      float4 stat = stats[n * 4 + t];
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int x = 0; x < 4; x++)
          ds[m][n][x] = s[m][n][x] * (ds[m][n][x] - (x & 1 ? stat.w : stat.y));
    }
#pragma unroll
    for (int x = 0; x < N; x++) tile_add<T, D, M, N>(dk, ds, x, q + x * 32 * D);
    q += FLASH_BWD_STEP * 2 * D, stats += FLASH_BWD_STEP / 2, row += FLASH_BWD_STEP;
  }
}

template <typename T, int D>
__device__ __forceinline__ void flash_bwd_keys_write(const flash_bwd_keys_t &a,
                                                     const float (&acc)[flash_bwd_m<D>][D / 8][4],
                                                     T *to, float *partial, int key,
                                                     int warp_key, float scale) {
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int m = 0; m < flash_bwd_m<D>; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int at = warp_key + m * 16 + half * 8 + g; /* in the block */
      if (key + at >= a.rows.q_len) continue;
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        float x = acc[m][n][2 * half] * scale, y = acc[m][n][2 * half + 1] * scale;
        int d = n * 8 + 2 * t;
        if (partial)
          *(float2 *)(partial + at * D + d) = make_float2(x, y);
        else
          *(uint32_t *)(to + (int64_t)(key + at) * a.op.ldkv + d) = half_pair<T>(x, y);
      }
    }
}

/* Blocks: the first keys, which the most rows see, come first; in each, pairs of sequence and
 * key-value head, and chunks. A block without rows leaves at once. */
template <typename T, int D>
__global__ void __launch_bounds__(TILE_THREADS, 2) flash_bwd_keys(const flash_bwd_keys_t a) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float4 stat_room[2][FLASH_BWD_ROWS / 2];
  constexpr int M = flash_bwd_m<D>;
  constexpr uint32_t held = FLASH_BWD_HELD * 2, tile = FLASH_BWD_ROWS * 2 * D;
  constexpr uint32_t stat_bytes = FLASH_BWD_ROWS * 8;
  int pair = blockIdx.x / a.chunks % a.pairs, block = blockIdx.x / a.chunks / a.pairs;
  int at = flash_bwd_first_tile<D>(a, block) + blockIdx.x % a.chunks * a.chunk;
  int end = min(flash_bwd_end_tile<D>(a, block), at + a.chunk);
  if (at >= end) return;

  int b = pair / a.rows.kv_heads, kv_head = pair % a.rows.kv_heads, warp = threadIdx.x >> 5;
  int key = block * flash_bwd_held<D>, warp_key = warp * 16 * M;
  int64_t kv = b * a.op.kv_batch + kv_head * D;

  uint32_t k = tile_address(shared), v = k + held, stages = v + held;
  uint32_t stats = tile_address(stat_room);
  tile_load<D, flash_bwd_held<D>>(k, (const T *)a.op.k + kv, a.op.ldkv, key, a.rows.q_len);
  tile_load<D, flash_bwd_held<D>>(v, (const T *)a.op.v + kv, a.op.ldkv, key, a.rows.q_len);
  flash_bwd_load_rows<T, D>(a, stages, stats, pair, at);

  float dk[M][D / 8][4], dv[M][D / 8][4];
  tile_zero(dk);
  tile_zero(dv);
  int stage = 0;
  for (; at < end; at++, stage ^= 1) {
    tile_copy_wait();
    __syncthreads(); /* this tile is there, and the other stage has been read */
    uint32_t now = stages + stage * 2 * tile, other = stages + (stage ^ 1) * 2 * tile;
    if (at + 1 < end)
      flash_bwd_load_rows<T, D>(a, other, stats + (stage ^ 1) * stat_bytes, pair, at + 1);
    int row = at * FLASH_BWD_ROWS, first_key = key + warp_key;
    if (rows_query(a.rows, min(row + FLASH_BWD_ROWS, a.rows.count) - 1) < first_key) continue;
    int last = rows_query(a.rows, row + FLASH_BWD_ROWS - 1);
    if (rows_query(a.rows, row) - a.rows.window >= first_key + 16 * M - 1) continue;
    bool masked = rows_query(a.rows, row) < first_key + 16 * M - 1 ||
                  last - a.rows.window >= first_key;
    flash_bwd_keys_tile<T, D>(a, dk, dv, k + warp_key * 2 * D, now, stat_room[stage], first_key,
                              row, masked);
  }

  float *partial = a.partial ? a.partial + (int64_t)blockIdx.x * 2 * FLASH_BWD_HELD : NULL;
  flash_bwd_keys_write<T, D>(a, dk, (T *)a.op.dk + kv, partial, key, warp_key, a.op.scale);
  flash_bwd_keys_write<T, D>(a, dv, (T *)a.op.dv + kv, partial ? partial + FLASH_BWD_HELD : NULL,
                          key, warp_key, 1);
}

/* dk and dv from the chunks' sums, four numbers a thread. */
template <typename T, int D>
__global__ void __launch_bounds__(256) flash_bwd_keys_sum(const flash_bwd_keys_t a) {
  int64_t at = ((int64_t)blockIdx.x * 256 + threadIdx.x) * 4;
  int inside = (int)(at % (2 * FLASH_BWD_HELD)), which = inside / FLASH_BWD_HELD;
  int64_t item = at / (2 * FLASH_BWD_HELD);
  int pair = (int)(item % a.pairs), block = (int)(item / a.pairs);
  int key = block * flash_bwd_held<D> + inside % FLASH_BWD_HELD / D, d = inside % D;
  if (key >= a.rows.q_len) return;
  int tiles = flash_bwd_end_tile<D>(a, block) - flash_bwd_first_tile<D>(a, block);
  int count = (tiles + a.chunk - 1) / a.chunk;
  const float *from = a.partial + item * a.chunks * 2 * FLASH_BWD_HELD + inside;
  float4 sum = *(const float4 *)from;
  for (int x = 1; x < count; x++) {
    float4 more = *(const float4 *)(from + (int64_t)x * 2 * FLASH_BWD_HELD);
    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
  }
  int64_t kv = pair / a.rows.kv_heads * a.op.kv_batch + pair % a.rows.kv_heads * D;
  T *to = (T *)(which ? a.op.dv : a.op.dk) + kv + (int64_t)key * a.op.ldkv + d;
  *(uint2 *)to = make_uint2(half_pair<T>(sum.x, sum.y), half_pair<T>(sum.z, sum.w));
}

/* ---- dq -------------------------------------------------------------------------------------- */

struct flash_bwd_queries_t {
  op_attention_bwd_t op;
  attention_rows_t rows;
  const float2 *stats;
  int pairs;
  float scale; /* log2(e) * op.scale */
};

/* s [rows, keys] = scores become p; keys that a row does not see weigh nothing. */
template <int M>
__device__ __forceinline__ void flash_bwd_row_weights(float (&s)[M][FLASH_BWD_STEP / 8][4],
                                                      const float2 (&stat)[M][2], float scale,
                                                      bool masked, const attention_rows_t &rows,
                                                      int row, int key) {
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int n = 0; n < FLASH_BWD_STEP / 8; n++)
#pragma unroll
        for (int x = 2 * half; x < 2 * half + 2; x++)
          s[m][n][x] = tile_exp2(fmaf(s[m][n][x], scale, -stat[m][half].x));
      if (!masked) continue;
      int last = rows_query(rows, row + m * 16 + half * 8 + g) - key - 2 * t;
#pragma unroll
      for (int n = 0; n < FLASH_BWD_STEP / 8; n++)
#pragma unroll
        for (int x = 0; x < 2; x++)
          if (n * 8 + x > last || n * 8 + x <= last - rows.window) s[m][n][2 * half + x] = 0;
    }
}

/* One tile of keys: dq of the warp's rows takes its two steps. */
template <typename T, int D>
__device__ __forceinline__ void flash_bwd_queries_tile(
    const flash_bwd_queries_t &a, float (&dq)[flash_bwd_m<D>][D / 8][4],
    const uint32_t (&q)[D / 16][flash_bwd_m<D>][4],
    const uint32_t (&dout)[D / 16][flash_bwd_m<D>][4], const float2 (&stat)[flash_bwd_m<D>][2],
    uint32_t k, uint32_t v, int row, int key, bool masked) {
  constexpr int M = flash_bwd_m<D>, N = FLASH_BWD_STEP / 16;
#pragma unroll 1
  for (int step = 0; step < TILE_KEYS / FLASH_BWD_STEP; step++) {
    float s[M][2 * N][4], ds[M][2 * N][4];
    tile_zero(s);
    tile_dot<T, D, M, N>(s, q, k);
    flash_bwd_row_weights<M>(s, stat, a.scale, masked, a.rows, row, key);
    tile_zero(ds);
    tile_dot<T, D, M, N>(ds, dout, v);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < 2 * N; n++)
#pragma unroll
        for (int x = 0; x < 4; x++) ds[m][n][x] = s[m][n][x] * (ds[m][n][x] - stat[m][x / 2].y);
#pragma unroll
    for (int x = 0; x < N; x++) tile_add<T, D, M, N>(dq, ds, x, k + x * 32 * D);
    k += FLASH_BWD_STEP * 2 * D, v += FLASH_BWD_STEP * 2 * D, key += FLASH_BWD_STEP;
  }
}

/* Blocks: tiles of rows from the last, which sees the most keys, to the first; in each, pairs. */
template <typename T, int D>
__global__ void __launch_bounds__(TILE_THREADS, 2) flash_bwd_queries(const flash_bwd_queries_t a) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int M = flash_bwd_m<D>, ROWS = flash_bwd_held<D>;
  constexpr uint32_t held = FLASH_BWD_HELD * 2, tile = TILE_KEYS * 2 * D;
  int pair = blockIdx.x % a.pairs, b = pair / a.rows.kv_heads, kv_head = pair % a.rows.kv_heads;
  int first = (gridDim.x / a.pairs - 1 - blockIdx.x / a.pairs) * ROWS;
  int warp = threadIdx.x >> 5, row = first + warp * 16 * M;
  int begin = rows_first(a.rows, a.rows.q_len, first) / TILE_KEYS * TILE_KEYS;
  int end = rows_query(a.rows, min(first + ROWS, a.rows.count) - 1) + 1;
  int warp_end =
      row < a.rows.count ? rows_query(a.rows, min(row + 16 * M, a.rows.count) - 1) + 1 : 0;

  int64_t width = (int64_t)a.rows.heads * D, head = (int64_t)kv_head * a.rows.group * D;
  int64_t first_row = (int64_t)b * a.rows.q_len, kv = b * a.op.kv_batch + kv_head * D;
  const T *k = (const T *)a.op.k + kv, *v = (const T *)a.op.v + kv;
  uint32_t queries = tile_address(shared), stages = queries + 2 * held;
  tile_load_rows<D, ROWS>(queries, (const T *)a.op.q + first_row * a.op.ldq + head, a.op.ldq,
                          a.rows, first);
  tile_load_rows<D, ROWS>(queries + held, (const T *)a.op.dout + first_row * width + head,
                          width, a.rows, first);
  tile_load<D, TILE_KEYS>(stages, k, a.op.ldkv, begin, end);
  tile_load<D, TILE_KEYS>(stages + tile, v, a.op.ldkv, begin, end);
  tile_copy_end();

  /* Rows behind the last have zeros for q and dout: whatever they weigh, they add nothing. */
  float2 stat[M][2];
  const float2 *stats = a.stats + pair * attention_stat_count(a.rows);
  int g = (threadIdx.x & 31) >> 2;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      stat[m][half] = stats[min(row + m * 16 + half * 8 + g, a.rows.count - 1)];

  uint32_t q[D / 16][M][4], dout[D / 16][M][4], own = queries + warp * 16 * M * 2 * D;
  float dq[M][D / 8][4];
  tile_zero(dq);
  for (int key = begin; key < end; key += TILE_KEYS) {
    tile_copy_wait();
    __syncthreads(); /* this tile is there, and the other stage has been read */
    uint32_t now = stages + ((key - begin) / TILE_KEYS & 1) * 2 * tile;
    if (key + TILE_KEYS < end) {
      uint32_t next = stages + (~((key - begin) / TILE_KEYS) & 1) * 2 * tile;
      tile_load<D, TILE_KEYS>(next, k, a.op.ldkv, key + TILE_KEYS, end);
      tile_load<D, TILE_KEYS>(next + tile, v, a.op.ldkv, key + TILE_KEYS, end);
      tile_copy_end();
    }
    if (key == begin) {
      tile_load_a<D, M>(q, own);
      tile_load_a<D, M>(dout, own + held);
    }
    if (key >= warp_end || key + TILE_KEYS <= rows_first(a.rows, a.rows.q_len, row)) continue;
    bool masked = key + TILE_KEYS - 1 > rows_query(a.rows, row) || key < warp_end - a.rows.window;
    flash_bwd_queries_tile<T, D>(a, dq, q, dout, stat, now, now + tile, row, key, masked);
  }

  float scale[M][2];
#pragma unroll
  for (int m = 0; m < M; m++) scale[m][0] = scale[m][1] = a.op.scale;
  tile_store_rows<D, M>(shared + warp * 16 * M * 2 * D,
                        (T *)a.op.dq + first_row * a.op.ldq + head, a.op.ldq, a.rows, row, dq,
                        scale);
}

/* ---- launches -------------------------------------------------------------------------------- */

/* How many blocks are wanted, so that the last ones leave few multiprocessors idle. */
static int64_t flash_bwd_blocks(const backend_device_t *device) {
  return 12 * (int64_t)device->multiprocessors;
}

/* Chunks times blocks of keys is at most flash_bwd_blocks, where there is more than one chunk. */
static int64_t flash_bwd_chunks(const backend_device_t *device, int64_t blocks) {
  int64_t chunks = flash_bwd_blocks(device) / blocks;
  if (chunks < 1) return 1;
  return chunks < FLASH_BWD_CHUNKS ? chunks : (int64_t)FLASH_BWD_CHUNKS;
}

int64_t attention_flash_bwd_partial(const backend_device_t *device, int64_t rows, int64_t batch,
                                    int64_t kv_heads) {
  int64_t blocks = (rows / flash_bwd_held<128> + batch) * kv_heads; /* head dim 128 has the most */
  int64_t most = flash_bwd_blocks(device);
  if (blocks * FLASH_BWD_CHUNKS < most) most = blocks * FLASH_BWD_CHUNKS;
  return most * 2 * FLASH_BWD_HELD;
}

template <typename T, int D>
static void flash_bwd_launch_keys(backend_device_t *device, const op_attention_bwd_t *op,
                                  const attention_rows_t *rows, const float2 *stats,
                                  float *partial) {
  flash_bwd_keys_t a = {*op, *rows, stats, NULL, 0, 0, 0, 0, op->scale * ATTENTION_LOG2_E};
  int64_t key_blocks = cuda_blocks(op->q_len, flash_bwd_held<D>);
  a.pairs = (int)(op->batch * op->kv_heads);
  a.tiles = (int)cuda_blocks(rows->count, FLASH_BWD_ROWS);
  a.chunks = (int)flash_bwd_chunks(device, key_blocks * a.pairs);
  a.chunk = (int)cuda_blocks(a.tiles, a.chunks);
  a.chunks = (int)cuda_blocks(a.tiles, a.chunk);
  if (a.chunks > 1) a.partial = partial;
  unsigned blocks = (unsigned)(key_blocks * a.pairs);
  cudaFuncSetAttribute(flash_bwd_keys<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       flash_bwd_bytes<D>);
  flash_bwd_keys<T, D><<<blocks * a.chunks, TILE_THREADS, flash_bwd_bytes<D>, device->stream>>>(a);
  if (a.partial)
    flash_bwd_keys_sum<T, D><<<blocks * (2 * FLASH_BWD_HELD / 1024), 256, 0, device->stream>>>(a);
}

template <typename T, int D>
static void flash_bwd_launch_queries(backend_device_t *device, const op_attention_bwd_t *op,
                                     const attention_rows_t *rows, const float2 *stats) {
  int pairs = (int)(op->batch * op->kv_heads);
  flash_bwd_queries_t a = {*op, *rows, stats, pairs, op->scale * ATTENTION_LOG2_E};
  unsigned blocks = (unsigned)(cuda_blocks(rows->count, flash_bwd_held<D>) * pairs);
  cudaFuncSetAttribute(flash_bwd_queries<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       flash_bwd_bytes<D>);
  flash_bwd_queries<T, D><<<blocks, TILE_THREADS, flash_bwd_bytes<D>, device->stream>>>(a);
}

template <typename T, int D>
static void flash_bwd_launch(backend_device_t *device, const op_attention_bwd_t *op,
                             const float2 *stats, float *partial) {
  attention_rows_t rows = attention_rows(op->q_len, op->heads, op->kv_heads, op->window, op->q_len);
  flash_bwd_launch_keys<T, D>(device, op, &rows, stats, partial);
  flash_bwd_launch_queries<T, D>(device, op, &rows, stats);
}

template <typename T>
static void flash_bwd_choose(backend_device_t *device, const op_attention_bwd_t *op,
                             const float2 *stats, float *partial) {
  if (op->head_dim == 64)
    flash_bwd_launch<T, 64>(device, op, stats, partial);
  else
    flash_bwd_launch<T, 128>(device, op, stats, partial);
}

void attention_flash_bwd(backend_device_t *device, const op_attention_bwd_t *op,
                         const float2 *stats, float *partial) {
  CUDA_BY_HALF(op->act_dtype, flash_bwd_choose, device, op, stats, partial);
}
