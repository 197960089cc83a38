/* Attention backward on sm_90a: T bf16 or fp16, head dim 64; formulas and two kernels as in
 * flash_bwd.cu, with products by warpgroups whose left operands p and ds stay in registers.
 *
 * Keys held: blocks of 128 keys, 64 a warpgroup, and up to 96 packed rows at a time. What a cut of
 * the line of line_sm90.cuh leaves of a key block goes to `partial` in fp32 and is added in the
 * order of rows.
 *
 * Rows held: tiles of up to 192 packed rows, 64 a warpgroup, and 64 keys at a time. */
#include "attention/line_sm90.cuh"
#include "attention/tiles_sm90.cuh"

/* ---- dk and dv ------------------------------------------------------------------------------- */

enum {
  BWD90_KEYS = LINE90_KEYS,
  BWD90_KEY_GROUPS = 2,
  BWD90_STEP_ROWS = 96,
  BWD90_STAGES = 4,
  BWD90_HELD = BWD90_KEYS * TILES90_DIM, /* numbers of dk or dv of a key block */
  BWD90_HELD_BYTES = BWD90_HELD * 2,     /* of its keys or values */
  BWD90_STEP_BYTES = BWD90_STEP_ROWS * HOPPER_ROW_BYTES,
  BWD90_STATS_AT = 2 * BWD90_STEP_BYTES, /* in a stage: q, dout, statistics */
  BWD90_STAGE_BYTES = BWD90_STATS_AT + HOPPER_ALIGN,
  BWD90_STAGES_AT = 4 * BWD90_HELD_BYTES, /* two rooms of keys and values */
  BWD90_BARRIERS_AT = BWD90_STAGES_AT + BWD90_STAGES * BWD90_STAGE_BYTES,
  BWD90_PIECES_AT = BWD90_BARRIERS_AT + 8 * (4 + 2 * BWD90_STAGES),
  BWD90_KEYS_SHARED = HOPPER_ALIGN + BWD90_PIECES_AT + 2 * 32,
  BWD90_KEYS_THREADS = (1 + BWD90_KEY_GROUPS) * HOPPER_GROUP
};

typedef struct bwd90_keys_args {
  CUtensorMap q, dout, k, v;
  op_attention_bwd_t op;
  attention_rows_t rows;
  const float2 *stats;
  float *partial; /* [blocks, 2, 2 (dk, dv), keys, D]: sums of the key block that an earlier block
                     began, and of the one that this begins and the next goes on with */
  line90_t line;
  float scale; /* log2(e) * op.scale */
} bwd90_keys_args_t;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ uint32_t bwd90_held_full(uint32_t base, uint32_t i) {
  return base + BWD90_BARRIERS_AT + 8 * i;
}
__device__ __forceinline__ uint32_t bwd90_held_empty(uint32_t base, uint32_t i) {
  return bwd90_held_full(base, 2 + i);
}
__device__ __forceinline__ uint32_t bwd90_full(uint32_t base, uint32_t i) {
  return bwd90_held_full(base, 4 + i);
}
__device__ __forceinline__ uint32_t bwd90_empty(uint32_t base, uint32_t i) {
  return bwd90_full(base, BWD90_STAGES + i);
}

/* The thread that copies tells the others by shared memory, one for each room. */
static_assert(sizeof(line90_piece_t) <= 32, "two lie in shared memory");
__device__ __forceinline__ line90_piece_t *bwd90_piece(unsigned char *shared, uint32_t room) {
  return (line90_piece_t *)(shared + BWD90_PIECES_AT + room * 32);
}

__device__ __forceinline__ void bwd90_keys_produce(const bwd90_keys_args_t &a,
                                                   unsigned char *shared, uint32_t base) {
  int64_t stat_count = attention_stat_count(a.rows);
  int step_rows = a.line.positions * a.rows.group;
  line90_walk_t walk = line90_begin(a.line);
  line90_piece_t piece = {};
  uint32_t slot = 0, parity = 0;
  for (uint32_t number = 0;; number++) {
    bool more = line90_next(a.line, &walk, &piece);
    int b = piece.pair / a.rows.kv_heads, kv_head = piece.pair % a.rows.kv_heads;
    uint32_t room = number & 1, held = base + room * 2 * BWD90_HELD_BYTES;
    uint32_t held_full = bwd90_held_full(base, room);
    hopper_wait(bwd90_held_empty(base, room), ~(number >> 1) & 1);
    *bwd90_piece(shared, room) = piece;
    if (!more) {
      hopper_arrive(held_full);
      return;
    }
    hopper_expect(held_full, 2 * BWD90_HELD_BYTES);
    tiles90_copy(a.k, held, held_full, kv_head, piece.block * BWD90_KEYS, b);
    tiles90_copy(a.v, held + BWD90_HELD_BYTES, held_full, kv_head, piece.block * BWD90_KEYS, b);
    const float2 *stats = a.stats + piece.pair * stat_count;
    for (int step = piece.first; step < piece.first + piece.count; step++) {
      uint32_t stage = base + BWD90_STAGES_AT + slot * BWD90_STAGE_BYTES;
      uint32_t full = bwd90_full(base, slot);
      int first = step * step_rows, known = (int)min((int64_t)step_rows, stat_count - first);
      hopper_wait(bwd90_empty(base, slot), parity ^ 1);
      hopper_expect(full, 2 * step_rows * HOPPER_ROW_BYTES + known * sizeof(float2));
      tiles90_copy(a.q, stage, full, kv_head * a.rows.group, step * a.line.positions, b);
      hopper_copy_bytes(stats + first, stage + BWD90_STATS_AT, full, known * sizeof(float2));
      tiles90_copy(a.dout, stage + BWD90_STEP_BYTES, full, kv_head * a.rows.group,
                   step * a.line.positions, b);
      if (++slot == BWD90_STAGES) slot = 0, parity ^= 1;
    }
  }
}

/* Weights become 0 of a step's rows before the first that sees the thread's key, or its second, and
 * of those from `end` on. */
__device__ __forceinline__ void bwd90_mask(float (&s)[48], int first0, int first1, int end) {
  int t = threadIdx.x & 3;
  uint32_t seen0 = max(end - first0, 0), seen1 = max(end - first1, 0);
#pragma unroll
  for (int n = 0; n < 12; n++)
#pragma unroll
    for (int x = 0; x < 2; x++) {
      if ((uint32_t)(n * 8 + x - (first0 - 2 * t)) >= seen0) s[4 * n + x] = 0;
      if ((uint32_t)(n * 8 + x - (first1 - 2 * t)) >= seen1) s[4 * n + 2 + x] = 0;
    }
}

/* acc of the warp's 16 keys of 64 goes to the tensor, or to a piece's sums. */
template <typename T>
__device__ __forceinline__ void bwd90_write(const bwd90_keys_args_t &a, const float (&acc)[32],
                                            T *to, float *partial, int block, int at,
                                            float scale) {
  int t = threadIdx.x & 3;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int inside = at + half * 8;
    int64_t key = block * BWD90_KEYS + inside;
    if (key >= a.rows.q_len) continue;
#pragma unroll
    for (int n = 0; n < 8; n++) {
      float x = acc[4 * n + 2 * half] * scale, y = acc[4 * n + 2 * half + 1] * scale;
      int d = n * 8 + 2 * t;
      if (partial)
        *(float2 *)(partial + inside * TILES90_DIM + d) = make_float2(x, y);
      else
        *(uint32_t *)(to + key * a.op.ldkv + d) = half_pair<T>(x, y);
    }
  }
}

template <typename T>
__device__ __forceinline__ void bwd90_keys_consume(const bwd90_keys_args_t &a,
                                                   unsigned char *shared, uint32_t base,
                                                   int group) {
  int lane = threadIdx.x & 31, t = lane & 3;
  int own = group * 64 + threadIdx.x / 32 % 4 * 16 + (lane >> 2); /* the thread's first key */
  bool signals = lane == 0;
  int step_rows = a.line.positions * a.rows.group;
  uint32_t slot = 0, parity = 0;
  for (uint32_t number = 0;; number++) {
    uint32_t room = number & 1;
    hopper_wait(bwd90_held_full(base, room), number >> 1 & 1);
    const line90_piece_t *piece = bwd90_piece(shared, room);
    if (piece->count == 0) break;
    uint32_t k = base + room * 2 * BWD90_HELD_BYTES + group * 64 * HOPPER_ROW_BYTES;
    float dk[32], dv[32], s[48], ds[48];
    uint32_t p[24], r[24];
    hopper_wait(bwd90_full(base, slot), parity);
    uint32_t q = base + BWD90_STAGES_AT + slot * BWD90_STAGE_BYTES;
    hopper_hold(s);
    hopper_hold(ds);
    hopper_begin();
    tiles90_dot<T>(s, k, q);
    hopper_commit();
    tiles90_dot<T>(ds, k + BWD90_HELD_BYTES, q + BWD90_STEP_BYTES);
    hopper_commit();
    for (int step = 0;; step++) {
      const float4 *stats =
          (const float4 *)(shared + BWD90_STAGES_AT + slot * BWD90_STAGE_BYTES + BWD90_STATS_AT);
      hopper_done<1>();
      hopper_hold(dk);
      hopper_hold(dv);
      hopper_hold(s);
      __syncwarp(); /* all have read the statistics */
      if (step && signals) hopper_arrive(bwd90_empty(base, slot ? slot - 1 : BWD90_STAGES - 1));
#pragma unroll
      for (int n = 0; n < 12; n++) {
        float4 stat = stats[4 * n + t]; /* lse, delta of two rows */
#pragma unroll
        for (int i = 0; i < 4; i++)
          s[4 * n + i] = tile_exp2(fmaf(s[4 * n + i], a.scale, i & 1 ? -stat.z : -stat.x));
      }
      int position = (piece->first + step) * a.line.positions, key = piece->block * BWD90_KEYS;
      int end = min(step_rows, a.rows.count - position * a.rows.group);
      if (position < key + group * 64 + 63 || end < BWD90_STEP_ROWS) {
        int first = (key + own - position) * a.rows.group;
        bwd90_mask(s, first, first + 8 * a.rows.group, end);
      }
      tiles90_round<T>(p, s);
      hopper_done<0>();
      hopper_hold(ds);
#pragma unroll
      for (int n = 0; n < 12; n++) {
        float4 stat = stats[4 * n + t];
#pragma unroll
        for (int i = 0; i < 4; i++)
          ds[4 * n + i] = s[4 * n + i] * (ds[4 * n + i] - (i & 1 ? stat.w : stat.y));
      }
      tiles90_round<T>(r, ds);
      hopper_hold(p);
      hopper_hold(r);
      if (step + 1 == piece->count) break;
      uint32_t last = q;
      if (++slot == BWD90_STAGES) slot = 0, parity ^= 1;
      q = base + BWD90_STAGES_AT + slot * BWD90_STAGE_BYTES;
      hopper_wait(bwd90_full(base, slot), parity);
      hopper_hold(s);
      hopper_hold(ds);
      hopper_hold(dk);
      hopper_hold(dv);
      hopper_begin();
      tiles90_add<T>(dv, p, last + BWD90_STEP_BYTES, step);
      tiles90_add<T>(dk, r, last, step);
      hopper_commit();
      tiles90_dot<T>(s, k, q);
      hopper_commit();
      tiles90_dot<T>(ds, k + BWD90_HELD_BYTES, q + BWD90_STEP_BYTES);
      hopper_commit();
    }
    hopper_hold(dk);
    hopper_hold(dv);
    hopper_begin();
    tiles90_add<T>(dv, p, q + BWD90_STEP_BYTES, piece->count > 1);
    tiles90_add<T>(dk, r, q, piece->count > 1);
    hopper_commit();
    hopper_done<0>();
    hopper_hold(dk);
    hopper_hold(dv);
    __syncwarp();
    if (signals) hopper_arrive(bwd90_empty(base, slot));
    if (++slot == BWD90_STAGES) slot = 0, parity ^= 1;
    int block = piece->block;
    int64_t kv = piece->pair / a.rows.kv_heads * a.op.kv_batch +
                 piece->pair % a.rows.kv_heads * TILES90_DIM;
    float *partial = NULL;
    if (!piece->whole)
      partial = a.partial + (2 * (int64_t)blockIdx.x + piece->begins) * 2 * BWD90_HELD;
    __syncwarp();
    if (signals) hopper_arrive(bwd90_held_empty(base, room));
    bwd90_write<T>(a, dk, (T *)a.op.dk + kv, partial, block, own, a.op.scale);
    bwd90_write<T>(a, dv, (T *)a.op.dv + kv, partial ? partial + BWD90_HELD : NULL, block, own,
                1);
  }
}

#endif

template <typename T>
__global__ void __launch_bounds__(BWD90_KEYS_THREADS, 1)
    bwd90_keys(const __grid_constant__ bwd90_keys_args_t a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char bwd90_shared[];
  uint32_t start = tile_address(bwd90_shared);
  uint32_t base = (start + HOPPER_ALIGN - 1) / HOPPER_ALIGN * HOPPER_ALIGN;
  unsigned char *shared = bwd90_shared + (base - start);
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < 2; i++) {
      hopper_barrier_init(bwd90_held_full(base, i), 1);
      hopper_barrier_init(bwd90_held_empty(base, i), BWD90_KEY_GROUPS * HOPPER_GROUP / 32);
    }
    for (uint32_t i = 0; i < BWD90_STAGES; i++) {
      hopper_barrier_init(bwd90_full(base, i), 1);
      hopper_barrier_init(bwd90_empty(base, i), BWD90_KEY_GROUPS * HOPPER_GROUP / 32);
    }
    hopper_barrier_ready();
  }
  /* Nothing may be copied to a stage's last rows and statistics; they must be numbers. */
  for (int i = threadIdx.x * 16; i < BWD90_STAGES * BWD90_STAGE_BYTES; i += BWD90_KEYS_THREADS * 16)
    *(uint4 *)(shared + BWD90_STAGES_AT + i) = make_uint4(0, 0, 0, 0);
  hopper_fence();
  __syncthreads();
  /* 168 registers a thread at the start; 128 * 24 + 256 * 240 fit into the 65536 too. */
  if (threadIdx.x < HOPPER_GROUP) {
    hopper_give_registers<24>();
    if (threadIdx.x == 0) bwd90_keys_produce(a, shared, base);
  } else {
    hopper_take_registers<240>();
    bwd90_keys_consume<T>(a, shared, base, (int)(threadIdx.x / HOPPER_GROUP) - 1);
  }
#endif
}

/* dk and dv of key blocks that were cut, four numbers a thread. */
enum { BWD90_SUM_THREADS = 256, BWD90_SUM_BLOCKS = 2 * BWD90_HELD / (4 * BWD90_SUM_THREADS) };

template <typename T>
__global__ void __launch_bounds__(BWD90_SUM_THREADS)
    bwd90_keys_sum(const __grid_constant__ bwd90_keys_args_t a) {
  int item = blockIdx.x / BWD90_SUM_BLOCKS, pair = item % a.line.pairs, block = item / a.line.pairs;
  int first, last;
  line90_sharers(a.line, block, pair, &first, &last);
  if (first == last) return;
  int inside = (blockIdx.x % BWD90_SUM_BLOCKS * BWD90_SUM_THREADS + threadIdx.x) * 4;
  int which = inside / BWD90_HELD, key = inside % BWD90_HELD / TILES90_DIM;
  int64_t row = block * BWD90_KEYS + key;
  if (row >= a.rows.q_len) return;
  const float *from = a.partial + inside;
  float4 sum = *(const float4 *)(from + (2 * (int64_t)first + 1) * 2 * BWD90_HELD);
  for (int x = first + 1; x <= last; x++) {
    float4 more = *(const float4 *)(from + 2 * (int64_t)x * 2 * BWD90_HELD);
    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
  }
  int64_t kv = pair / a.rows.kv_heads * a.op.kv_batch + pair % a.rows.kv_heads * TILES90_DIM;
  T *to = (T *)(which ? a.op.dv : a.op.dk) + kv + row * a.op.ldkv + inside % TILES90_DIM;
  *(uint2 *)to = make_uint2(half_pair<T>(sum.x, sum.y), half_pair<T>(sum.z, sum.w));
}

/* ---- dq -------------------------------------------------------------------------------------- */

enum {
  BWD90_ROW_GROUPS = TILES90_ROWS / 64,
  BWD90_STEP_KEYS = 64,
  BWD90_ROW_STAGES = 4,
  BWD90_Q_BYTES = TILES90_ROWS * HOPPER_ROW_BYTES,
  BWD90_KEY_BYTES = BWD90_STEP_KEYS * HOPPER_ROW_BYTES,
  BWD90_KEYS_AT = 4 * BWD90_Q_BYTES, /* two rooms of q and dout; a stage: k, v */
  BWD90_ROW_BARRIERS_AT = BWD90_KEYS_AT + BWD90_ROW_STAGES * 2 * BWD90_KEY_BYTES,
  BWD90_ROWS_SHARED = HOPPER_ALIGN + BWD90_ROW_BARRIERS_AT + 8 * (4 + 2 * BWD90_ROW_STAGES),
  BWD90_ROWS_THREADS = (1 + BWD90_ROW_GROUPS) * HOPPER_GROUP
};

typedef struct bwd90_rows_args {
  CUtensorMap q, dout, k, v;
  op_attention_bwd_t op;
  attention_rows_t rows;
  tiles90_t tiles;
  const float2 *stats;
  float scale; /* log2(e) * op.scale */
} bwd90_rows_args_t;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ uint32_t bwd90_q_full(uint32_t base, uint32_t i) {
  return base + BWD90_ROW_BARRIERS_AT + 8 * i;
}
__device__ __forceinline__ uint32_t bwd90_q_empty(uint32_t base, uint32_t i) {
  return bwd90_q_full(base, 2 + i);
}
__device__ __forceinline__ uint32_t bwd90_key_full(uint32_t base, uint32_t i) {
  return bwd90_q_full(base, 4 + i);
}
__device__ __forceinline__ uint32_t bwd90_key_empty(uint32_t base, uint32_t i) {
  return bwd90_key_full(base, BWD90_ROW_STAGES + i);
}

enum { BWD90_OWN = 1 }; /* named barriers of each warpgroup's own threads */

__device__ __forceinline__ int bwd90_key_steps(const bwd90_rows_args_t &a,
                                               const tiles90_tile_t &tile) {
  int keys = min(tile.position + a.tiles.positions, a.rows.q_len);
  return (keys + BWD90_STEP_KEYS - 1) / BWD90_STEP_KEYS;
}

__device__ __forceinline__ void bwd90_rows_produce(const bwd90_rows_args_t &a, uint32_t base) {
  tiles90_tile_t tile;
  uint32_t slot = 0, parity = 0;
  for (int round = 0; tiles90_find(a.tiles, round, &tile); round++) {
    int b = tile.pair / a.rows.kv_heads, kv_head = tile.pair % a.rows.kv_heads;
    int head = kv_head * a.rows.group;
    uint32_t room = round & 1, q = base + room * 2 * BWD90_Q_BYTES, full = bwd90_q_full(base, room);
    hopper_wait(bwd90_q_empty(base, room), ~(round >> 1) & 1);
    hopper_expect(full, 2 * a.tiles.positions * a.rows.group * HOPPER_ROW_BYTES);
    tiles90_copy(a.q, q, full, head, tile.position, b);
    tiles90_copy(a.dout, q + BWD90_Q_BYTES, full, head, tile.position, b);
    int steps = bwd90_key_steps(a, tile);
    for (int step = 0; step < steps; step++) {
      uint32_t k = base + BWD90_KEYS_AT + slot * 2 * BWD90_KEY_BYTES;
      full = bwd90_key_full(base, slot);
      hopper_wait(bwd90_key_empty(base, slot), parity ^ 1);
      hopper_expect(full, 2 * BWD90_KEY_BYTES);
      tiles90_copy(a.k, k, full, kv_head, step * BWD90_STEP_KEYS, b);
      tiles90_copy(a.v, k + BWD90_KEY_BYTES, full, kv_head, step * BWD90_STEP_KEYS, b);
      if (++slot == BWD90_ROW_STAGES) slot = 0, parity ^= 1;
    }
  }
}

template <typename T>
__device__ __forceinline__ void bwd90_rows_consume(const bwd90_rows_args_t &a,
                                                   unsigned char *shared, uint32_t base,
                                                   int group) {
  int warp = threadIdx.x / 32 % 4, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  bool signals = lane == 0;
  uint32_t slot = 0, parity = 0;
  tiles90_tile_t tile;
  for (int round = 0; tiles90_find(a.tiles, round, &tile); round++) {
    uint32_t room = round & 1;
    uint32_t own = room * 2 * BWD90_Q_BYTES + group * 64 * HOPPER_ROW_BYTES;
    uint32_t own_warp = own + warp * 16 * HOPPER_ROW_BYTES;
    int first = tile.position * a.rows.group, row = first + group * 64 + warp * 16;
    int end = min(first + a.tiles.positions * a.rows.group, a.rows.count);
    int all_see = rows_query(a.rows, row);
    int last[2]; /* key that the thread's rows see, less the thread's columns */
    float2 stat[2];
    const float2 *stats = a.stats + tile.pair * attention_stat_count(a.rows);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      last[half] = rows_query(a.rows, row + half * 8 + g) - 2 * t;
      stat[half] = stats[min(row + half * 8 + g, a.rows.count - 1)];
    }

    float dq[32], s[32], ds[32];
    uint32_t r[16];
    hopper_wait(bwd90_q_full(base, room), round >> 1 & 1);
    int steps = bwd90_key_steps(a, tile);
    uint32_t q = base + own, k = base + BWD90_KEYS_AT + slot * 2 * BWD90_KEY_BYTES;
    hopper_wait(bwd90_key_full(base, slot), parity);
    hopper_hold(s);
    hopper_hold(ds);
    hopper_begin();
    tiles90_dot<T>(s, q, k);
    hopper_commit();
    tiles90_dot<T>(ds, q + BWD90_Q_BYTES, k + BWD90_KEY_BYTES);
    hopper_commit();
    for (int step = 0;; step++) {
      hopper_done<1>();
      hopper_hold(dq);
      hopper_hold(s);
      if (step && signals)
        hopper_arrive(bwd90_key_empty(base, slot ? slot - 1 : BWD90_ROW_STAGES - 1));
#pragma unroll
      for (int i = 0; i < 32; i++) s[i] = tile_exp2(fmaf(s[i], a.scale, -stat[i / 2 % 2].x));
      int key = step * BWD90_STEP_KEYS;
      if (key + BWD90_STEP_KEYS - 1 > all_see) {
#pragma unroll
        for (int i = 0; i < 32; i++)
          if (key + i / 4 * 8 + i % 2 > last[i / 2 % 2]) s[i] = 0;
      }
      hopper_done<0>();
      hopper_hold(ds);
#pragma unroll
      for (int i = 0; i < 32; i++) ds[i] = s[i] * (ds[i] - stat[i / 2 % 2].y);
      tiles90_round<T>(r, ds);
      hopper_hold(r);
      if (step + 1 == steps) break;
      uint32_t before = k;
      if (++slot == BWD90_ROW_STAGES) slot = 0, parity ^= 1;
      k = base + BWD90_KEYS_AT + slot * 2 * BWD90_KEY_BYTES;
      hopper_wait(bwd90_key_full(base, slot), parity);
      hopper_hold(s);
      hopper_hold(ds);
      hopper_hold(dq);
      hopper_begin();
      tiles90_add<T>(dq, r, before, step);
      hopper_commit();
      tiles90_dot<T>(s, q, k);
      hopper_commit();
      tiles90_dot<T>(ds, q + BWD90_Q_BYTES, k + BWD90_KEY_BYTES);
      hopper_commit();
    }
    hopper_hold(dq);
    hopper_begin();
    tiles90_add<T>(dq, r, k, steps > 1);
    hopper_commit();
    hopper_done<0>();
    hopper_hold(dq);
    if (signals) hopper_arrive(bwd90_key_empty(base, slot));
    if (++slot == BWD90_ROW_STAGES) slot = 0, parity ^= 1;

    hopper_named_sync(BWD90_OWN + group, HOPPER_GROUP); /* all have read the queries */
    int b = tile.pair / a.rows.kv_heads, kv_head = tile.pair % a.rows.kv_heads;
    T *to = (T *)a.op.dq + (int64_t)b * a.rows.q_len * a.op.ldq +
                 (int64_t)kv_head * a.rows.group * TILES90_DIM;
    tiles90_store(shared + own_warp, to, a.op.ldq, a.rows, row, end, dq, a.op.scale, a.op.scale);
    hopper_fence();
    __syncwarp();
    if (signals) hopper_arrive(bwd90_q_empty(base, room));
  }
}

#endif

template <typename T>
__global__ void __launch_bounds__(BWD90_ROWS_THREADS, 1)
    bwd90_rows(const __grid_constant__ bwd90_rows_args_t a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char bwd90_shared[];
  uint32_t start = tile_address(bwd90_shared);
  uint32_t base = (start + HOPPER_ALIGN - 1) / HOPPER_ALIGN * HOPPER_ALIGN;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < 2; i++) {
      hopper_barrier_init(bwd90_q_full(base, i), 1);
      hopper_barrier_init(bwd90_q_empty(base, i), BWD90_ROW_GROUPS * HOPPER_GROUP / 32);
    }
    for (uint32_t i = 0; i < BWD90_ROW_STAGES; i++) {
      hopper_barrier_init(bwd90_key_full(base, i), 1);
      hopper_barrier_init(bwd90_key_empty(base, i), BWD90_ROW_GROUPS * HOPPER_GROUP / 32);
    }
    hopper_barrier_ready();
  }
  __syncthreads();
  /* 128 registers a thread at the start; 128 * 32 + 384 * 160 are all 65536. */
  if (threadIdx.x < HOPPER_GROUP) {
    hopper_give_registers<32>();
    if (threadIdx.x == 0) bwd90_rows_produce(a, base);
  } else {
    hopper_take_registers<160>();
    bwd90_rows_consume<T>(a, bwd90_shared + (base - start), base,
                       (int)(threadIdx.x / HOPPER_GROUP) - 1);
  }
#endif
}

/* ---- launches -------------------------------------------------------------------------------- */

static nn_status_t bwd90_maps(backend_device_t *device, const op_attention_bwd_t *op,
                              const attention_rows_t *rows, int positions, int keys,
                              CUtensorMap *q, CUtensorMap *dout, CUtensorMap *k, CUtensorMap *v) {
  int64_t width = op->heads * TILES90_DIM;
  hopper_tensor_t at = tiles90_tensor(op->q, op->batch, op->q_len, op->heads, op->q_len * op->ldq,
                                      op->ldq, positions, rows->group);
  CUDA_TRY(hopper_map(device, "attention_bwd", &at, q));
  at = tiles90_tensor(op->dout, op->batch, op->q_len, op->heads, op->q_len * width, width,
                      positions, rows->group);
  CUDA_TRY(hopper_map(device, "attention_bwd", &at, dout));
  at = tiles90_tensor(op->k, op->batch, op->q_len, op->kv_heads, op->kv_batch, op->ldkv, keys, 1);
  CUDA_TRY(hopper_map(device, "attention_bwd", &at, k));
  at.base = op->v;
  return hopper_map(device, "attention_bwd", &at, v);
}

template <typename T>
static nn_status_t bwd90_launch_keys(backend_device_t *device, const op_attention_bwd_t *op,
                                     const float2 *stats, float *partial) {
  bwd90_keys_args_t a = {};
  a.op = *op, a.rows = attention_rows(op->q_len, op->heads, op->kv_heads);
  a.stats = stats, a.partial = partial, a.scale = op->scale * ATTENTION_LOG2_E;
  a.line = line90_make(device, &a.rows, op->batch, tiles90_positions(&a.rows, BWD90_STEP_ROWS));
  CUDA_TRY(bwd90_maps(device, op, &a.rows, a.line.positions, BWD90_KEYS, &a.q, &a.dout, &a.k,
                      &a.v));
  CUDA_TRY(cuda_check(device, "attention_bwd",
                      cudaFuncSetAttribute(bwd90_keys<T>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           BWD90_KEYS_SHARED)));
  unsigned grid = (unsigned)cuda_blocks(a.line.total, a.line.share);
  bwd90_keys<T><<<grid, BWD90_KEYS_THREADS, BWD90_KEYS_SHARED, device->stream>>>(a);
  unsigned blocks = (unsigned)(line90_key_blocks(&a.rows) * a.line.pairs * BWD90_SUM_BLOCKS);
  bwd90_keys_sum<T><<<blocks, BWD90_SUM_THREADS, 0, device->stream>>>(a);
  return NN_OK;
}

template <typename T>
static nn_status_t bwd90_launch_rows(backend_device_t *device, const op_attention_bwd_t *op,
                                     const float2 *stats) {
  bwd90_rows_args_t a = {};
  a.op = *op, a.rows = attention_rows(op->q_len, op->heads, op->kv_heads);
  a.stats = stats, a.scale = op->scale * ATTENTION_LOG2_E;
  a.tiles = tiles90_make(&a.rows, op->batch);
  CUDA_TRY(bwd90_maps(device, op, &a.rows, a.tiles.positions, BWD90_STEP_KEYS, &a.q, &a.dout, &a.k,
                      &a.v));
  CUDA_TRY(cuda_check(device, "attention_bwd",
                      cudaFuncSetAttribute(bwd90_rows<T>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           BWD90_ROWS_SHARED)));
  bwd90_rows<T><<<tiles90_grid(device, &a.tiles), BWD90_ROWS_THREADS, BWD90_ROWS_SHARED,
               device->stream>>>(a);
  return NN_OK;
}

int attention_flash90_bwd_takes(const backend_device_t *device, const op_attention_bwd_t *op) {
  /* No line of steps is longer. */
  int64_t group = op->heads / op->kv_heads, steps = op->q_len * group / BWD90_STEP_ROWS * 2;
  int64_t line = (op->q_len / BWD90_KEYS + 1) * (steps + 4 + LINE90_START);
  if (line * op->batch * op->kv_heads > INT32_MAX) return 0;
  return device->capability == 90 && device->shared_bytes >= BWD90_KEYS_SHARED &&
         device->shared_bytes >= BWD90_ROWS_SHARED && op->head_dim == TILES90_DIM &&
         op->heads / op->kv_heads <= TILES90_MOST_GROUP;
}

template <typename T>
static nn_status_t bwd90_launch(backend_device_t *device, const op_attention_bwd_t *op,
                                const float2 *stats, float *partial) {
  CUDA_TRY(bwd90_launch_keys<T>(device, op, stats, partial));
  return bwd90_launch_rows<T>(device, op, stats);
}

nn_status_t attention_flash90_bwd(backend_device_t *device, const op_attention_bwd_t *op,
                                  const float2 *stats, float *partial) {
  return CUDA_BY_HALF(op->act_dtype, bwd90_launch, device, op, stats, partial);
}
