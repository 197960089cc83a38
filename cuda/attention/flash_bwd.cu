/* Attention backward by tensor cores: T bf16 or fp16, head dim up to D. With p = exp(s - lse) made
 * again and ds = p * (<dout, v> - delta): dv = p^T dout, dk = scale ds^T q, dq = scale ds k.
 *
 * Two kernels, so that each sum has one writer and no order to chance: one holds a block of keys
 * and walks over packed query rows, with everything transposed (a warp's fragments are keys by
 * rows), the other holds rows and walks over keys. A block of keys sees up to q_len * group rows,
 * the last block few, so its rows are cut into chunks of equal length for several blocks; their
 * fp32 sums are added in the order of rows. Above 128 columns, registers have room for dk or dv:
 * there one block makes dk and another dv. */
#include "attention/tile.cuh"

enum {
  FLASH_BWD_STEP = 32,  /* rows or keys of a tile that are in registers at once */
  FLASH_BWD_CHUNKS = 16 /* most chunks of a block of keys */
};

/* Held 16-row fragments of a warp: two of few columns. */
template <int D>
constexpr int flash_bwd_m = D <= 64 ? 2 : 1;
template <int D>
constexpr int flash_bwd_held = TILE_WARPS * 16 * flash_bwd_m<D>; /* keys or rows */
template <int D>
constexpr int flash_bwd_numbers = flash_bwd_held<D> * D; /* of a held block's dk or dv */

/* Rows of a tile where keys are held, keys where rows are; stages of two such tiles. The widest
 * have one: every device has the 96 KiB that this takes. */
template <int D>
constexpr int flash_bwd_tile = D <= 128 ? 64 : 32;
template <int D>
constexpr int flash_bwd_stages = D <= 192 ? 2 : 1;
template <int D>
constexpr uint32_t flash_bwd_held_bytes = flash_bwd_held<D> * tile_pitch<D>;
template <int D>
constexpr uint32_t flash_bwd_tile_bytes = flash_bwd_tile<D> * tile_pitch<D>;
template <int D>
constexpr int flash_bwd_bytes =
    2 * flash_bwd_held_bytes<D> + flash_bwd_stages<D> * 2 * flash_bwd_tile_bytes<D>;

/* Blocks for a block of keys: dk and dv by one, or by one each. */
template <int D>
constexpr int flash_bwd_roles = D <= 128 ? 1 : 2;

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
  return (int)((int64_t)block * flash_bwd_held<D> * a.rows.group / flash_bwd_tile<D>);
}

/* The tile behind the last one that does. */
template <int D>
__device__ __forceinline__ int flash_bwd_end_tile(const flash_bwd_keys_t &a, int block) {
  int64_t row = ((int64_t)(block + 1) * flash_bwd_held<D> - 2 + a.rows.window) * a.rows.group;
  return (int)min((int64_t)a.tiles, (row + a.rows.group - 1) / flash_bwd_tile<D> + 1);
}

/* Tile `at` of the rows of a pair: q, dout behind it, and the statistics. */
template <typename T, int D>
__device__ __forceinline__ void flash_bwd_load_rows(const flash_bwd_keys_t &a, uint32_t tile,
                                                    uint32_t stats, int pair, int at) {
  constexpr int ROWS = flash_bwd_tile<D>;
  int dim = (int)a.op.head_dim, head = pair % a.rows.kv_heads * a.rows.group * dim;
  int64_t width = (int64_t)a.rows.heads * dim;
  int64_t first_row = (int64_t)(pair / a.rows.kv_heads) * a.rows.q_len;
  tile_load_rows<D, ROWS>(tile, (const T *)a.op.q + first_row * a.op.ldq + head, a.op.ldq, dim,
                          a.rows, at * ROWS);
  tile_load_rows<D, ROWS>(tile + flash_bwd_tile_bytes<D>,
                          (const T *)a.op.dout + first_row * width + head, width, dim, a.rows,
                          at * ROWS);
  if (threadIdx.x < ROWS / 2)
    tile_copy(stats + threadIdx.x * 16,
              a.stats + pair * attention_stat_count(a.rows) + at * ROWS + threadIdx.x * 2, true);
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

/* One tile of rows: dk and dv of the warp's keys, those that are asked for, take its steps; where
 * only one is, both are the same array. v lies behind k, and dout behind q, in shared memory. */
template <typename T, int D>
__device__ __forceinline__ void flash_bwd_keys_tile(const flash_bwd_keys_t &a,
                                                    float (&dk)[flash_bwd_m<D>][D / 8][4],
                                                    float (&dv)[flash_bwd_m<D>][D / 8][4],
                                                    bool make_dk, bool make_dv, uint32_t k,
                                                    uint32_t q, const float4 *stats, int key,
                                                    int row, bool masked) {
  constexpr int M = flash_bwd_m<D>, N = FLASH_BWD_STEP / 16;
  constexpr uint32_t held = flash_bwd_held_bytes<D>, tile = flash_bwd_tile_bytes<D>;
  constexpr uint32_t next = 16 * tile_pitch<D>;
  int t = threadIdx.x & 3;
#pragma unroll 1
  for (int step = 0; step < flash_bwd_tile<D> / FLASH_BWD_STEP; step++) {
    float s[M][2 * N][4], ds[M][2 * N][4];
    tile_zero(s);
    tile_dot_shared<T, D, M, N>(s, k, q);
    flash_bwd_weights<M>(s, stats, a.scale, masked, a.rows, key, row);
    if (make_dv) {
#pragma unroll
      for (int x = 0; x < N; x++) tile_add<T, D, M, N>(dv, s, x, q + tile + x * next);
    }
    if (make_dk) {
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
      for (int x = 0; x < N; x++) tile_add<T, D, M, N>(dk, ds, x, q + x * next);
    }
    q += 2 * next, stats += FLASH_BWD_STEP / 2, row += FLASH_BWD_STEP;
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
        else if (n * 8 < a.op.head_dim)
          *(uint32_t *)(to + (int64_t)(key + at) * a.op.ldkv + d) = half_pair<T>(x, y);
      }
    }
}

/* Blocks: the first keys, which the most rows see, come first; in each, pairs of sequence and
 * key-value head, chunks, and roles. A block without rows leaves at once. */
template <typename T, int D>
__global__ void __launch_bounds__(TILE_THREADS, 2) flash_bwd_keys(const flash_bwd_keys_t a) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int M = flash_bwd_m<D>, ROWS = flash_bwd_tile<D>, STAGES = flash_bwd_stages<D>;
  constexpr int ROLES = flash_bwd_roles<D>, HELD = flash_bwd_held<D>;
  __shared__ float4 stat_room[STAGES][ROWS / 2];
  constexpr uint32_t held = flash_bwd_held_bytes<D>, tile = flash_bwd_tile_bytes<D>;
  constexpr uint32_t stat_bytes = ROWS * 8;
  int item = blockIdx.x / ROLES, dim = (int)a.op.head_dim;
  bool make_dk = ROLES == 1 || blockIdx.x % ROLES == 0, make_dv = ROLES == 1 || !make_dk;
  int pair = item / a.chunks % a.pairs, block = item / a.chunks / a.pairs;
  int at = flash_bwd_first_tile<D>(a, block) + item % a.chunks * a.chunk;
  int end = min(flash_bwd_end_tile<D>(a, block), at + a.chunk);
  if (at >= end) return;

  int b = pair / a.rows.kv_heads, kv_head = pair % a.rows.kv_heads, warp = threadIdx.x >> 5;
  int key = block * HELD, warp_key = warp * 16 * M;
  int64_t kv = b * a.op.kv_batch + kv_head * dim;

  uint32_t k = tile_address(shared), v = k + held, stages = v + held;
  uint32_t stats = tile_address(stat_room);
  tile_load<D, HELD>(k, (const T *)a.op.k + kv, a.op.ldkv, dim, key, a.rows.q_len);
  if (make_dk) tile_load<D, HELD>(v, (const T *)a.op.v + kv, a.op.ldkv, dim, key, a.rows.q_len);
  flash_bwd_load_rows<T, D>(a, stages, stats, pair, at);

  float sums[3 - ROLES][M][D / 8][4];
  auto &dk = sums[0], &dv = sums[2 - ROLES];
  tile_zero(dk);
  tile_zero(dv);
  int stage = 0;
  for (; at < end; at++) {
    tile_copy_wait();
    __syncthreads(); /* this tile is there, and the other stage has been read */
    uint32_t now = stages + stage * 2 * tile, next = STAGES - 1 - stage;
    if (STAGES > 1 && at + 1 < end)
      flash_bwd_load_rows<T, D>(a, stages + next * 2 * tile, stats + next * stat_bytes, pair,
                                at + 1);
    int row = at * ROWS, first_key = key + warp_key;
    int last = rows_query(a.rows, row + ROWS - 1);
    bool seen = rows_query(a.rows, min(row + ROWS, a.rows.count) - 1) >= first_key &&
                rows_query(a.rows, row) - a.rows.window < first_key + 16 * M - 1;
    bool masked = rows_query(a.rows, row) < first_key + 16 * M - 1 ||
                  last - a.rows.window >= first_key;
    if (seen)
      flash_bwd_keys_tile<T, D>(a, dk, dv, make_dk, make_dv, k + warp_key * tile_pitch<D>, now,
                                stat_room[stage], first_key, row, masked);
    if (STAGES == 1 && at + 1 < end) {
      __syncthreads(); /* this tile has been read */
      flash_bwd_load_rows<T, D>(a, stages, stats, pair, at + 1);
    }
    stage = next;
  }

  float *partial = a.partial ? a.partial + (int64_t)item * 2 * flash_bwd_numbers<D> : NULL;
  if (make_dk)
    flash_bwd_keys_write<T, D>(a, dk, (T *)a.op.dk + kv, partial, key, warp_key, a.op.scale);
  if (make_dv)
    flash_bwd_keys_write<T, D>(a, dv, (T *)a.op.dv + kv,
                               partial ? partial + flash_bwd_numbers<D> : NULL, key, warp_key, 1);
}

/* dk and dv from the chunks' sums, four numbers a thread. */
enum { FLASH_BWD_SUM = 256 * 4 }; /* numbers of a block */

template <typename T, int D>
__global__ void __launch_bounds__(256) flash_bwd_keys_sum(const flash_bwd_keys_t a) {
  constexpr int numbers = flash_bwd_numbers<D>;
  int64_t at = (int64_t)blockIdx.x * FLASH_BWD_SUM + threadIdx.x * 4;
  int inside = (int)(at % (2 * numbers)), which = inside / numbers;
  int64_t item = at / (2 * numbers);
  int pair = (int)(item % a.pairs), block = (int)(item / a.pairs);
  int key = block * flash_bwd_held<D> + inside % numbers / D, d = inside % D;
  if (key >= a.rows.q_len || d >= a.op.head_dim) return;
  int tiles = flash_bwd_end_tile<D>(a, block) - flash_bwd_first_tile<D>(a, block);
  int count = (tiles + a.chunk - 1) / a.chunk;
  const float *from = a.partial + item * a.chunks * 2 * numbers + inside;
  float4 sum = *(const float4 *)from;
  for (int x = 1; x < count; x++) {
    float4 more = *(const float4 *)(from + (int64_t)x * 2 * numbers);
    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
  }
  int64_t kv = pair / a.rows.kv_heads * a.op.kv_batch + pair % a.rows.kv_heads * a.op.head_dim;
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

/* q and dout of a warp's rows: fragments in registers, or where they lie in shared memory for want
 * of room. */
template <int D>
constexpr bool flash_bwd_keeps = D <= 128;
template <int D>
struct flash_bwd_own_t {
  uint32_t q_at, dout_at;
  uint32_t q[flash_bwd_keeps<D> ? D / 16 : 1][flash_bwd_m<D>][4];
  uint32_t dout[flash_bwd_keeps<D> ? D / 16 : 1][flash_bwd_m<D>][4];
};

/* One tile of keys: dq of the warp's rows takes its steps. */
template <typename T, int D>
__device__ __forceinline__ void flash_bwd_queries_tile(
    const flash_bwd_queries_t &a, float (&dq)[flash_bwd_m<D>][D / 8][4],
    const flash_bwd_own_t<D> &own, const float2 (&stat)[flash_bwd_m<D>][2], uint32_t k, uint32_t v,
    int row, int key, bool masked) {
  constexpr int M = flash_bwd_m<D>, N = FLASH_BWD_STEP / 16;
  constexpr uint32_t next = 16 * tile_pitch<D>;
#pragma unroll 1
  for (int step = 0; step < flash_bwd_tile<D> / FLASH_BWD_STEP; step++) {
    float s[M][2 * N][4], ds[M][2 * N][4];
    tile_zero(s);
    tile_zero(ds);
    if constexpr (flash_bwd_keeps<D>) {
      tile_dot<T, D, M, N>(s, own.q, k);
      flash_bwd_row_weights<M>(s, stat, a.scale, masked, a.rows, row, key);
      tile_dot<T, D, M, N>(ds, own.dout, v);
    } else {
      tile_dot_shared<T, D, M, N>(s, own.q_at, k);
      flash_bwd_row_weights<M>(s, stat, a.scale, masked, a.rows, row, key);
      tile_dot_shared<T, D, M, N>(ds, own.dout_at, v);
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 0; n < 2 * N; n++)
#pragma unroll
        for (int x = 0; x < 4; x++) ds[m][n][x] = s[m][n][x] * (ds[m][n][x] - stat[m][x / 2].y);
#pragma unroll
    for (int x = 0; x < N; x++) tile_add<T, D, M, N>(dq, ds, x, k + x * next);
    k += 2 * next, v += 2 * next, key += FLASH_BWD_STEP;
  }
}

/* Blocks: tiles of rows from the last, which sees the most keys, to the first; in each, pairs. */
template <typename T, int D>
__global__ void __launch_bounds__(TILE_THREADS, 2) flash_bwd_queries(const flash_bwd_queries_t a) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int M = flash_bwd_m<D>, ROWS = flash_bwd_held<D>, KEYS = flash_bwd_tile<D>;
  constexpr int STAGES = flash_bwd_stages<D>;
  constexpr uint32_t held = flash_bwd_held_bytes<D>, tile = flash_bwd_tile_bytes<D>;
  int pair = blockIdx.x % a.pairs, b = pair / a.rows.kv_heads, kv_head = pair % a.rows.kv_heads;
  int first = (gridDim.x / a.pairs - 1 - blockIdx.x / a.pairs) * ROWS, dim = (int)a.op.head_dim;
  int warp = threadIdx.x >> 5, row = first + warp * 16 * M;
  int begin = rows_first(a.rows, a.rows.q_len, first) / KEYS * KEYS;
  int end = rows_query(a.rows, min(first + ROWS, a.rows.count) - 1) + 1;
  int warp_end =
      row < a.rows.count ? rows_query(a.rows, min(row + 16 * M, a.rows.count) - 1) + 1 : 0;

  int64_t width = (int64_t)a.rows.heads * dim, head = (int64_t)kv_head * a.rows.group * dim;
  int64_t first_row = (int64_t)b * a.rows.q_len, kv = b * a.op.kv_batch + kv_head * dim;
  const T *k = (const T *)a.op.k + kv, *v = (const T *)a.op.v + kv;
  uint32_t queries = tile_address(shared), stages = queries + 2 * held;
  tile_load_rows<D, ROWS>(queries, (const T *)a.op.q + first_row * a.op.ldq + head, a.op.ldq, dim,
                          a.rows, first);
  tile_load_rows<D, ROWS>(queries + held, (const T *)a.op.dout + first_row * width + head,
                          width, dim, a.rows, first);
  auto load = [&](uint32_t to, int key) {
    constexpr bool anew = D == 64; /* whose registers are all taken */
    tile_load<D, KEYS, anew>(to, k, a.op.ldkv, dim, key, end);
    tile_load<D, KEYS, anew>(to + tile, v, a.op.ldkv, dim, key, end);
    tile_copy_end();
  };
  load(stages, begin);

  /* Rows behind the last have zeros for q and dout: whatever they weigh, they add nothing. */
  float2 stat[M][2];
  const float2 *stats = a.stats + pair * attention_stat_count(a.rows);
  int g = (threadIdx.x & 31) >> 2;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      stat[m][half] = stats[min(row + m * 16 + half * 8 + g, a.rows.count - 1)];

  flash_bwd_own_t<D> own;
  own.q_at = queries + warp * 16 * M * tile_pitch<D>, own.dout_at = own.q_at + held;
  float dq[M][D / 8][4];
  tile_zero(dq);
  for (int key = begin; key < end; key += KEYS) {
    tile_copy_wait();
    __syncthreads(); /* this tile is there, and the other stage has been read */
    int stage = STAGES > 1 ? (key - begin) / KEYS & 1 : 0;
    uint32_t now = stages + stage * 2 * tile;
    if (STAGES > 1 && key + KEYS < end) load(stages + (stage ^ 1) * 2 * tile, key + KEYS);
    if constexpr (flash_bwd_keeps<D>)
      if (key == begin) {
        tile_load_a<D, M>(own.q, own.q_at);
        tile_load_a<D, M>(own.dout, own.dout_at);
      }
    if (key < warp_end && key + KEYS > rows_first(a.rows, a.rows.q_len, row)) {
      bool masked = key + KEYS - 1 > rows_query(a.rows, row) || key < warp_end - a.rows.window;
      flash_bwd_queries_tile<T, D>(a, dq, own, stat, now, now + tile, row, key, masked);
    }
    if (STAGES == 1 && key + KEYS < end) {
      __syncthreads(); /* this tile has been read */
      load(stages, key + KEYS);
    }
  }
  if (!flash_bwd_keeps<D>) __syncthreads();

  float scale[M][2];
#pragma unroll
  for (int m = 0; m < M; m++) scale[m][0] = scale[m][1] = a.op.scale;
  tile_store_rows<D, M>(shared + warp * 16 * M * tile_pitch<D>,
                        (T *)a.op.dq + first_row * a.op.ldq + head, a.op.ldq, dim, a.rows, row, dq,
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

/* Numbers of a held block, up to 128 columns and above; 96 columns have fewer. */
static int64_t flash_bwd_most_numbers(int64_t head_dim) {
  return head_dim <= 128 ? flash_bwd_numbers<128> : flash_bwd_numbers<256>;
}

int64_t attention_flash_bwd_partial(const backend_device_t *device, int64_t rows, int64_t batch,
                                    int64_t kv_heads, int64_t head_dim) {
  int64_t blocks = (rows / flash_bwd_held<256> + batch) * kv_heads; /* wide ones hold the fewest */
  int64_t most = flash_bwd_blocks(device);
  if (blocks * FLASH_BWD_CHUNKS < most) most = blocks * FLASH_BWD_CHUNKS;
  return most * 2 * flash_bwd_most_numbers(head_dim);
}

template <typename T, int D>
static void flash_bwd_launch_keys(backend_device_t *device, const op_attention_bwd_t *op,
                                  const attention_rows_t *rows, const float2 *stats,
                                  float *partial) {
  flash_bwd_keys_t a = {*op, *rows, stats, NULL, 0, 0, 0, 0, op->scale * ATTENTION_LOG2_E};
  int64_t key_blocks = cuda_blocks(op->q_len, flash_bwd_held<D>);
  a.pairs = (int)(op->batch * op->kv_heads);
  a.tiles = (int)cuda_blocks(rows->count, flash_bwd_tile<D>);
  a.chunks = (int)flash_bwd_chunks(device, key_blocks * a.pairs);
  a.chunk = (int)cuda_blocks(a.tiles, a.chunks);
  a.chunks = (int)cuda_blocks(a.tiles, a.chunk);
  if (a.chunks > 1) a.partial = partial;
  unsigned blocks = (unsigned)(key_blocks * a.pairs);
  cudaFuncSetAttribute(flash_bwd_keys<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       flash_bwd_bytes<D>);
  flash_bwd_keys<T, D><<<blocks * a.chunks * flash_bwd_roles<D>, TILE_THREADS, flash_bwd_bytes<D>,
                         device->stream>>>(a);
  constexpr unsigned sums = 2 * flash_bwd_numbers<D> / FLASH_BWD_SUM;
  if (a.partial) flash_bwd_keys_sum<T, D><<<blocks * sums, 256, 0, device->stream>>>(a);
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
  tile_by_head(op->head_dim, [&](auto columns) {
    flash_bwd_launch<T, columns.count>(device, op, stats, partial);
  });
}

void attention_flash_bwd(backend_device_t *device, const op_attention_bwd_t *op,
                         const float2 *stats, float *partial) {
  CUDA_BY_HALF(op->act_dtype, flash_bwd_choose, device, op, stats, partial);
}
