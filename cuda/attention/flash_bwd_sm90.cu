/* Attention backward on sm_90a: T bf16 or fp16, head dim D; formulas and two kernels as in
 * flash_bwd.cu, with products by warpgroups whose left operands p and ds stay in registers.
 *
 * Keys held: blocks of 128 keys, 64 a warpgroup, and some packed rows at a time. What a cut of the
 * line of line_sm90.cuh leaves of a key block goes to `partial` in fp32 and is added in the order
 * of rows.
 *
 * Rows held: tiles of packed rows, up to 64 a warpgroup, and 64 keys at a time.
 *
 * WINDOW: rows see no more than so many keys; steps in which no row sees a key are left out. */
#include "attention/line_sm90.cuh"
#include "attention/tiles_sm90.cuh"

/* ---- dk and dv ------------------------------------------------------------------------------- */

enum { BWD90_KEYS = LINE90_KEYS, BWD90_KEY_GROUPS = 2 };

/* What follows from the head dim: registers hold dk and dv, and fewer rows of a step beside wider
 * ones. A tile of 128 columns is two, `half` bytes apart. */
template <int D>
struct bwd90_keys_size {
  static_assert(D == 64 || D == 128, "registers are counted for these");
  static constexpr int step_rows = D == 64 ? 96 : 64;
  static constexpr int stages = 4;
  static constexpr int rooms = D == 64 ? 2 : 1;     /* of keys and values */
  static constexpr int held = BWD90_KEYS * D;       /* numbers of dk or dv of a key block */
  static constexpr int held_half = BWD90_KEYS * HOPPER_ROW_BYTES;
  static constexpr int held_bytes = held * 2;       /* of its keys or values */
  static constexpr int step_half = step_rows * HOPPER_ROW_BYTES;
  static constexpr int step_bytes = step_rows * D * 2;
  static constexpr int stats_at = 2 * step_bytes;   /* in a stage: q, dout, statistics */
  static constexpr int stage_bytes = stats_at + HOPPER_ALIGN;
  static constexpr int stages_at = rooms * 2 * held_bytes;
  static constexpr int barriers_at = stages_at + stages * stage_bytes;
  static constexpr int pieces_at = barriers_at + 8 * (2 * rooms + 2 * stages);
  static constexpr int shared = HOPPER_ALIGN + pieces_at + rooms * 32;
  static constexpr int threads = (1 + BWD90_KEY_GROUPS) * HOPPER_GROUP;
  static constexpr int sharers = 512 / D; /* attention_flash_bwd_partial has room for so many */
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

template <int D>
__device__ __forceinline__ uint32_t bwd90_held_full(uint32_t base, uint32_t i) {
  return base + bwd90_keys_size<D>::barriers_at + 8 * i;
}
template <int D>
__device__ __forceinline__ uint32_t bwd90_held_empty(uint32_t base, uint32_t i) {
  return bwd90_held_full<D>(base, bwd90_keys_size<D>::rooms + i);
}
template <int D>
__device__ __forceinline__ uint32_t bwd90_full(uint32_t base, uint32_t i) {
  return bwd90_held_full<D>(base, 2 * bwd90_keys_size<D>::rooms + i);
}
template <int D>
__device__ __forceinline__ uint32_t bwd90_empty(uint32_t base, uint32_t i) {
  return bwd90_full<D>(base, bwd90_keys_size<D>::stages + i);
}

/* The thread that copies tells the others by shared memory, one for each room. */
static_assert(sizeof(line90_piece_t) <= 32, "they lie in shared memory");
template <int D>
__device__ __forceinline__ line90_piece_t *bwd90_piece(unsigned char *shared, uint32_t room) {
  return (line90_piece_t *)(shared + bwd90_keys_size<D>::pieces_at + room * 32);
}

/* Read by the lane that gives the room back, for its warp. */
template <int D>
__device__ __forceinline__ line90_piece_t bwd90_take_piece(unsigned char *shared, uint32_t room) {
  constexpr int words = sizeof(line90_piece_t) / sizeof(int);
  const int *from = (const int *)bwd90_piece<D>(shared, room);
  line90_piece_t piece;
#pragma unroll
  for (int i = 0; i < words; i++) {
    int word = threadIdx.x % 32 == 0 ? from[i] : 0;
    ((int *)&piece)[i] = __shfl_sync(0xffffffffu, word, 0);
  }
  return piece;
}

template <int D>
__device__ __forceinline__ void bwd90_keys_produce(const bwd90_keys_args_t &a,
                                                   unsigned char *shared, uint32_t base) {
  typedef bwd90_keys_size<D> size;
  int64_t stat_count = attention_stat_count(a.rows);
  int step_rows = a.line.positions * a.rows.group;
  line90_walk_t walk = line90_begin(a.line);
  line90_piece_t piece = {};
  uint32_t slot = 0, parity = 0;
  for (uint32_t number = 0;; number++) {
    bool more = line90_next(a.line, &walk, &piece);
    int b = piece.pair / a.rows.kv_heads, kv_head = piece.pair % a.rows.kv_heads;
    uint32_t room = number % size::rooms, held = base + room * 2 * size::held_bytes;
    uint32_t held_full = bwd90_held_full<D>(base, room);
    hopper_wait(bwd90_held_empty<D>(base, room), ~(number / size::rooms) & 1);
    *bwd90_piece<D>(shared, room) = piece;
    if (!more) {
      hopper_arrive(held_full);
      return;
    }
    int key = piece.block * BWD90_KEYS;
    hopper_expect(held_full, 2 * size::held_bytes);
    tiles90_copy<D>(a.k, held, size::held_half, held_full, kv_head, key, b);
    tiles90_copy<D>(a.v, held + size::held_bytes, size::held_half, held_full, kv_head, key, b);
    const float2 *stats = a.stats + piece.pair * stat_count;
    for (int step = piece.first; step < piece.first + piece.count; step++) {
      uint32_t stage = base + size::stages_at + slot * size::stage_bytes;
      uint32_t full = bwd90_full<D>(base, slot);
      int first = step * step_rows, known = (int)min((int64_t)step_rows, stat_count - first);
      int head = kv_head * a.rows.group, position = step * a.line.positions;
      hopper_wait(bwd90_empty<D>(base, slot), parity ^ 1);
      hopper_expect(full, 2 * step_rows * (D * 2) + known * sizeof(float2));
      tiles90_copy<D>(a.q, stage, size::step_half, full, head, position, b);
      hopper_copy_bytes(stats + first, stage + size::stats_at, full, known * sizeof(float2));
      tiles90_copy<D>(a.dout, stage + size::step_bytes, size::step_half, full, head, position, b);
      if (++slot == size::stages) slot = 0, parity ^= 1;
    }
  }
}

/* Weights become 0 of a step's rows before the first that sees the thread's key, or its second, of
 * those behind the `most` rows that do, and of those from `end` on. */
template <int N>
__device__ __forceinline__ void bwd90_mask(float (&s)[N], int first0, int first1, int end,
                                           int most = INT32_MAX) {
  int t = threadIdx.x & 3;
  uint32_t seen0 = max(min(end - first0, most), 0), seen1 = max(min(end - first1, most), 0);
#pragma unroll
  for (int n = 0; n < N / 4; n++)
#pragma unroll
    for (int x = 0; x < 2; x++) {
      if ((uint32_t)(n * 8 + x - (first0 - 2 * t)) >= seen0) s[4 * n + x] = 0;
      if ((uint32_t)(n * 8 + x - (first1 - 2 * t)) >= seen1) s[4 * n + 2 + x] = 0;
    }
}

/* acc of the warp's 16 keys of 64 goes to the tensor, or to a piece's sums. */
template <typename T, int D>
__device__ __forceinline__ void bwd90_write(const bwd90_keys_args_t &a, const float (&acc)[D / 2],
                                            T *to, float *partial, int block, int at,
                                            float scale) {
  int t = threadIdx.x & 3;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int inside = at + half * 8;
    int64_t key = block * BWD90_KEYS + inside;
    if (key >= a.rows.q_len) continue;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      float x = acc[4 * n + 2 * half] * scale, y = acc[4 * n + 2 * half + 1] * scale;
      int d = n * 8 + 2 * t;
      if (partial)
        *(float2 *)(partial + inside * D + d) = make_float2(x, y);
      else
        *(uint32_t *)(to + key * a.op.ldkv + d) = half_pair<T>(x, y);
    }
  }
}

template <typename T, int D, bool WINDOW>
__device__ __forceinline__ void bwd90_keys_consume(const bwd90_keys_args_t &a,
                                                   unsigned char *shared, uint32_t base,
                                                   int group) {
  typedef bwd90_keys_size<D> size;
  constexpr int numbers = size::step_rows / 2; /* of a step's rows by 64 keys, a thread's */
  int lane = threadIdx.x & 31, t = lane & 3;
  int own = group * 64 + threadIdx.x / 32 % 4 * 16 + (lane >> 2); /* the thread's first key */
  bool signals = lane == 0;
  int step_rows = a.line.positions * a.rows.group;
  uint32_t slot = 0, parity = 0;
  for (uint32_t number = 0;; number++) {
    uint32_t room = number % size::rooms;
    hopper_wait(bwd90_held_full<D>(base, room), number / size::rooms & 1);
    line90_piece_t piece = bwd90_take_piece<D>(shared, room);
    if (piece.count == 0) break;
    uint32_t k = base + room * 2 * size::held_bytes + group * 64 * HOPPER_ROW_BYTES;
    float dk[D / 2], dv[D / 2], s[numbers], ds[numbers];
    uint32_t p[numbers / 2], r[numbers / 2];
    hopper_wait(bwd90_full<D>(base, slot), parity);
    uint32_t q = base + size::stages_at + slot * size::stage_bytes;
    hopper_hold(s);
    hopper_hold(ds);
    hopper_begin();
    tiles90_dot<T, D>(s, k, size::held_half, q, size::step_half);
    hopper_commit();
    tiles90_dot<T, D>(ds, k + size::held_bytes, size::held_half, q + size::step_bytes,
                      size::step_half);
    hopper_commit();
    for (int step = 0;; step++) {
      const float4 *stats =
          (const float4 *)(shared + size::stages_at + slot * size::stage_bytes + size::stats_at);
      hopper_done<1>();
      hopper_hold(dk);
      hopper_hold(dv);
      hopper_hold(s);
      /* by every lane: it has read the statistics, over which the copy engine writes next */
      if (step) hopper_arrive(bwd90_empty<D>(base, slot ? slot - 1 : size::stages - 1));
#pragma unroll
      for (int n = 0; n < numbers / 4; n++) {
        float4 stat = stats[4 * n + t]; /* lse, delta of two rows */
#pragma unroll
        for (int i = 0; i < 4; i++)
          s[4 * n + i] = tile_exp2(fmaf(s[4 * n + i], a.scale, i & 1 ? -stat.z : -stat.x));
      }
      int position = (piece.first + step) * a.line.positions, key = piece.block * BWD90_KEYS;
      int end = min(step_rows, a.rows.count - position * a.rows.group);
      bool beyond = WINDOW && position + a.line.positions > key + group * 64 + a.rows.window;
      if (position < key + group * 64 + 63 || end < size::step_rows || beyond) {
        int first = (key + own - position) * a.rows.group;
        if constexpr (WINDOW)
          bwd90_mask(s, first, first + 8 * a.rows.group, end, a.rows.window * a.rows.group);
        else
          bwd90_mask(s, first, first + 8 * a.rows.group, end);
      }
      tiles90_round<T>(p, s);
      hopper_done<0>();
      hopper_hold(ds);
#pragma unroll
      for (int n = 0; n < numbers / 4; n++) {
        float4 stat = stats[4 * n + t];
#pragma unroll
        for (int i = 0; i < 4; i++)
          ds[4 * n + i] = s[4 * n + i] * (ds[4 * n + i] - (i & 1 ? stat.w : stat.y));
      }
      tiles90_round<T>(r, ds);
      hopper_hold(p);
      hopper_hold(r);
      if (step + 1 == piece.count) break;
      uint32_t last = q;
      if (++slot == size::stages) slot = 0, parity ^= 1;
      q = base + size::stages_at + slot * size::stage_bytes;
      hopper_wait(bwd90_full<D>(base, slot), parity);
      hopper_hold(s);
      if constexpr (D == 64) hopper_hold(ds);
      hopper_hold(dk);
      hopper_hold(dv);
      hopper_begin();
      tiles90_add<T, D>(dv, p, last + size::step_bytes, size::step_half, step);
      tiles90_add<T, D>(dk, r, last, size::step_half, step);
      hopper_commit();
      tiles90_dot<T, D>(s, k, size::held_half, q, size::step_half);
      hopper_commit();
      if constexpr (D == 128) { /* there are registers for ds once p and r are done with */
        hopper_done<1>();
        tiles90_zero(ds);
        hopper_hold(ds);
        hopper_begin();
      }
      tiles90_dot<T, D>(ds, k + size::held_bytes, size::held_half, q + size::step_bytes,
                        size::step_half);
      hopper_commit();
    }
    hopper_hold(dk);
    hopper_hold(dv);
    hopper_begin();
    tiles90_add<T, D>(dv, p, q + size::step_bytes, size::step_half, piece.count > 1);
    tiles90_add<T, D>(dk, r, q, size::step_half, piece.count > 1);
    hopper_commit();
    hopper_done<0>();
    hopper_hold(dk);
    hopper_hold(dv);
    hopper_arrive(bwd90_empty<D>(base, slot));
    if (++slot == size::stages) slot = 0, parity ^= 1;
    int block = piece.block;
    int64_t kv = piece.pair / a.rows.kv_heads * a.op.kv_batch +
                 piece.pair % a.rows.kv_heads * D;
    float *partial = NULL;
    if (!piece.whole)
      partial = a.partial + (2 * (int64_t)blockIdx.x + piece.begins) * 2 * size::held;
    __syncwarp();
    if (signals) hopper_arrive(bwd90_held_empty<D>(base, room));
    bwd90_write<T, D>(a, dk, (T *)a.op.dk + kv, partial, block, own, a.op.scale);
    bwd90_write<T, D>(a, dv, (T *)a.op.dv + kv, partial ? partial + size::held : NULL, block, own,
                1);
  }
}

#endif

template <typename T, int D, bool WINDOW>
__global__ void __launch_bounds__(bwd90_keys_size<D>::threads, 1)
    bwd90_keys(const __grid_constant__ bwd90_keys_args_t a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  typedef bwd90_keys_size<D> size;
  extern __shared__ unsigned char bwd90_shared[];
  uint32_t start = tile_address(bwd90_shared);
  uint32_t base = (start + HOPPER_ALIGN - 1) / HOPPER_ALIGN * HOPPER_ALIGN;
  unsigned char *shared = bwd90_shared + (base - start);
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < size::rooms; i++) {
      hopper_barrier_init(bwd90_held_full<D>(base, i), 1);
      hopper_barrier_init(bwd90_held_empty<D>(base, i), BWD90_KEY_GROUPS * HOPPER_GROUP / 32);
    }
    for (uint32_t i = 0; i < size::stages; i++) {
      hopper_barrier_init(bwd90_full<D>(base, i), 1);
      hopper_barrier_init(bwd90_empty<D>(base, i), BWD90_KEY_GROUPS * HOPPER_GROUP);
    }
    hopper_barrier_ready();
  }
  /* Nothing may be copied to a stage's last rows and statistics; they must be numbers. */
  for (int i = threadIdx.x * 16; i < size::stages * size::stage_bytes; i += size::threads * 16)
    *(uint4 *)(shared + size::stages_at + i) = make_uint4(0, 0, 0, 0);
  hopper_fence();
  __syncthreads();
  /* 168 registers a thread at the start; 128 * 24 + 256 * 240 fit into the 65536 too. */
  if (threadIdx.x < HOPPER_GROUP) {
    hopper_give_registers<24>();
    if (threadIdx.x == 0) bwd90_keys_produce<D>(a, shared, base);
  } else {
    hopper_take_registers<240>();
    bwd90_keys_consume<T, D, WINDOW>(a, shared, base, (int)(threadIdx.x / HOPPER_GROUP) - 1);
  }
#endif
}

/* dk and dv of key blocks that were cut, four numbers a thread. */
enum { BWD90_SUM_THREADS = 256 };
template <int D>
constexpr int bwd90_sum_blocks = 2 * bwd90_keys_size<D>::held / (4 * BWD90_SUM_THREADS);

template <typename T, int D>
__global__ void __launch_bounds__(BWD90_SUM_THREADS)
    bwd90_keys_sum(const __grid_constant__ bwd90_keys_args_t a) {
  constexpr int held = bwd90_keys_size<D>::held;
  int item = blockIdx.x / bwd90_sum_blocks<D>;
  int pair = item % a.line.pairs, block = item / a.line.pairs;
  int first, last;
  line90_sharers(a.line, block, pair, &first, &last);
  if (first == last) return;
  int inside = (blockIdx.x % bwd90_sum_blocks<D> * BWD90_SUM_THREADS + threadIdx.x) * 4;
  int which = inside / held, key = inside % held / D;
  int64_t row = block * BWD90_KEYS + key;
  if (row >= a.rows.q_len) return;
  const float *from = a.partial + inside;
  float4 sum = *(const float4 *)(from + (2 * (int64_t)first + 1) * 2 * held);
  for (int x = first + 1; x <= last; x++) {
    float4 more = *(const float4 *)(from + 2 * (int64_t)x * 2 * held);
    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
  }
  int64_t kv = pair / a.rows.kv_heads * a.op.kv_batch + pair % a.rows.kv_heads * D;
  T *to = (T *)(which ? a.op.dv : a.op.dk) + kv + row * a.op.ldkv + inside % D;
  *(uint2 *)to = make_uint2(half_pair<T>(sum.x, sum.y), half_pair<T>(sum.z, sum.w));
}

/* ---- dq -------------------------------------------------------------------------------------- */

enum { BWD90_STEP_KEYS = 64 };

template <int D>
struct bwd90_rows_size {
  static constexpr int groups = D == 64 ? 3 : 2;
  static constexpr int stages = D == 64 ? 4 : 3;
  static constexpr int rows = 64 * groups;
  static constexpr int q_half = rows * HOPPER_ROW_BYTES;
  static constexpr int q_bytes = rows * D * 2;
  static constexpr int key_half = BWD90_STEP_KEYS * HOPPER_ROW_BYTES;
  static constexpr int key_bytes = BWD90_STEP_KEYS * D * 2;
  static constexpr int keys_at = 4 * q_bytes; /* two rooms of q and dout; a stage: k, v */
  static constexpr int barriers_at = keys_at + stages * 2 * key_bytes;
  static constexpr int shared = HOPPER_ALIGN + barriers_at + 8 * (4 + 2 * stages);
  static constexpr int threads = (1 + groups) * HOPPER_GROUP;
  /* as in flash_sm90.cu */
  static constexpr int producer_registers = D == 64 ? 32 : 24;
  static constexpr int consumer_registers = D == 64 ? 160 : 240;
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

template <int D>
__device__ __forceinline__ uint32_t bwd90_q_full(uint32_t base, uint32_t i) {
  return base + bwd90_rows_size<D>::barriers_at + 8 * i;
}
template <int D>
__device__ __forceinline__ uint32_t bwd90_q_empty(uint32_t base, uint32_t i) {
  return bwd90_q_full<D>(base, 2 + i);
}
template <int D>
__device__ __forceinline__ uint32_t bwd90_key_full(uint32_t base, uint32_t i) {
  return bwd90_q_full<D>(base, 4 + i);
}
template <int D>
__device__ __forceinline__ uint32_t bwd90_key_empty(uint32_t base, uint32_t i) {
  return bwd90_key_full<D>(base, bwd90_rows_size<D>::stages + i);
}

enum { BWD90_OWN = 1 }; /* named barriers of each warpgroup's own threads */

/* The steps of keys that some row of a tile sees: the first, and how many. */
template <bool WINDOW>
__device__ __forceinline__ int bwd90_key_first(const bwd90_rows_args_t &a,
                                               const tiles90_tile_t &tile) {
  return WINDOW ? max(0, tile.position + 1 - a.rows.window) / BWD90_STEP_KEYS : 0;
}
template <bool WINDOW>
__device__ __forceinline__ int bwd90_key_steps(const bwd90_rows_args_t &a,
                                               const tiles90_tile_t &tile) {
  int keys = min(tile.position + a.tiles.positions, a.rows.q_len);
  return (keys + BWD90_STEP_KEYS - 1) / BWD90_STEP_KEYS - bwd90_key_first<WINDOW>(a, tile);
}

template <int D, bool WINDOW>
__device__ __forceinline__ void bwd90_rows_produce(const bwd90_rows_args_t &a, uint32_t base) {
  typedef bwd90_rows_size<D> size;
  tiles90_tile_t tile;
  uint32_t slot = 0, parity = 0;
  for (int round = 0; tiles90_find(a.tiles, round, &tile); round++) {
    int b = tile.pair / a.rows.kv_heads, kv_head = tile.pair % a.rows.kv_heads;
    int head = kv_head * a.rows.group;
    uint32_t room = round & 1, q = base + room * 2 * size::q_bytes;
    uint32_t full = bwd90_q_full<D>(base, room);
    hopper_wait(bwd90_q_empty<D>(base, room), ~(round >> 1) & 1);
    hopper_expect(full, 2 * a.tiles.positions * a.rows.group * (D * 2));
    tiles90_copy<D>(a.q, q, size::q_half, full, head, tile.position, b);
    tiles90_copy<D>(a.dout, q + size::q_bytes, size::q_half, full, head, tile.position, b);
    int steps = bwd90_key_steps<WINDOW>(a, tile), key = bwd90_key_first<WINDOW>(a, tile);
    for (int step = 0; step < steps; step++) {
      uint32_t k = base + size::keys_at + slot * 2 * size::key_bytes;
      full = bwd90_key_full<D>(base, slot);
      hopper_wait(bwd90_key_empty<D>(base, slot), parity ^ 1);
      hopper_expect(full, 2 * size::key_bytes);
      int first = (key + step) * BWD90_STEP_KEYS;
      tiles90_copy<D>(a.k, k, size::key_half, full, kv_head, first, b);
      tiles90_copy<D>(a.v, k + size::key_bytes, size::key_half, full, kv_head, first, b);
      if (++slot == size::stages) slot = 0, parity ^= 1;
    }
  }
}

template <typename T, int D, bool WINDOW>
__device__ __forceinline__ void bwd90_rows_consume(const bwd90_rows_args_t &a,
                                                   unsigned char *shared, uint32_t base,
                                                   int group) {
  typedef bwd90_rows_size<D> size;
  int warp = threadIdx.x / 32 % 4, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  bool signals = lane == 0;
  uint32_t slot = 0, parity = 0;
  tiles90_tile_t tile;
  for (int round = 0; tiles90_find(a.tiles, round, &tile); round++) {
    uint32_t room = round & 1;
    uint32_t own = room * 2 * size::q_bytes + group * 64 * HOPPER_ROW_BYTES;
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

    float dq[D / 2], s[32], ds[32];
    uint32_t r[16];
    hopper_wait(bwd90_q_full<D>(base, room), round >> 1 & 1);
    int steps = bwd90_key_steps<WINDOW>(a, tile);
    int first_key = bwd90_key_first<WINDOW>(a, tile) * BWD90_STEP_KEYS;
    uint32_t q = base + own, k = base + size::keys_at + slot * 2 * size::key_bytes;
    hopper_wait(bwd90_key_full<D>(base, slot), parity);
    hopper_hold(s);
    hopper_hold(ds);
    hopper_begin();
    tiles90_dot<T, D>(s, q, size::q_half, k, size::key_half);
    hopper_commit();
    tiles90_dot<T, D>(ds, q + size::q_bytes, size::q_half, k + size::key_bytes, size::key_half);
    hopper_commit();
    for (int step = 0;; step++) {
      hopper_done<1>();
      hopper_hold(dq);
      hopper_hold(s);
      if (step && signals)
        hopper_arrive(bwd90_key_empty<D>(base, slot ? slot - 1 : size::stages - 1));
#pragma unroll
      for (int i = 0; i < 32; i++) s[i] = tile_exp2(fmaf(s[i], a.scale, -stat[i / 2 % 2].x));
      int key = first_key + step * BWD90_STEP_KEYS;
      bool partly = WINDOW && key + a.rows.window < tile.position + a.tiles.positions;
      if (key + BWD90_STEP_KEYS - 1 > all_see || partly) {
#pragma unroll
        for (int i = 0; i < 32; i++) {
          int behind = last[i / 2 % 2] - key - (i / 4 * 8 + i % 2);
          if (behind < 0 || (WINDOW && behind >= a.rows.window)) s[i] = 0;
        }
      }
      hopper_done<0>();
      hopper_hold(ds);
#pragma unroll
      for (int i = 0; i < 32; i++) ds[i] = s[i] * (ds[i] - stat[i / 2 % 2].y);
      tiles90_round<T>(r, ds);
      hopper_hold(r);
      if (step + 1 == steps) break;
      uint32_t before = k;
      if (++slot == size::stages) slot = 0, parity ^= 1;
      k = base + size::keys_at + slot * 2 * size::key_bytes;
      hopper_wait(bwd90_key_full<D>(base, slot), parity);
      hopper_hold(s);
      hopper_hold(ds);
      hopper_hold(dq);
      hopper_begin();
      tiles90_add<T, D>(dq, r, before, size::key_half, step);
      hopper_commit();
      tiles90_dot<T, D>(s, q, size::q_half, k, size::key_half);
      hopper_commit();
      tiles90_dot<T, D>(ds, q + size::q_bytes, size::q_half, k + size::key_bytes, size::key_half);
      hopper_commit();
    }
    hopper_hold(dq);
    hopper_begin();
    tiles90_add<T, D>(dq, r, k, size::key_half, steps > 1);
    hopper_commit();
    hopper_done<0>();
    hopper_hold(dq);
    if (signals) hopper_arrive(bwd90_key_empty<D>(base, slot));
    if (++slot == size::stages) slot = 0, parity ^= 1;

    hopper_named_sync(BWD90_OWN + group, HOPPER_GROUP); /* all have read the queries */
    int b = tile.pair / a.rows.kv_heads, kv_head = tile.pair % a.rows.kv_heads;
    T *to = (T *)a.op.dq + (int64_t)b * a.rows.q_len * a.op.ldq +
                 (int64_t)kv_head * a.rows.group * D;
    tiles90_store<T, D>(shared + own_warp, size::q_half, to, a.op.ldq, a.rows, row, end, dq,
                        a.op.scale, a.op.scale);
    hopper_fence();
    __syncwarp();
    if (signals) hopper_arrive(bwd90_q_empty<D>(base, room));
  }
}

#endif

template <typename T, int D, bool WINDOW>
__global__ void __launch_bounds__(bwd90_rows_size<D>::threads, 1)
    bwd90_rows(const __grid_constant__ bwd90_rows_args_t a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  typedef bwd90_rows_size<D> size;
  extern __shared__ unsigned char bwd90_shared[];
  uint32_t start = tile_address(bwd90_shared);
  uint32_t base = (start + HOPPER_ALIGN - 1) / HOPPER_ALIGN * HOPPER_ALIGN;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < 2; i++) {
      hopper_barrier_init(bwd90_q_full<D>(base, i), 1);
      hopper_barrier_init(bwd90_q_empty<D>(base, i), size::groups * HOPPER_GROUP / 32);
    }
    for (uint32_t i = 0; i < size::stages; i++) {
      hopper_barrier_init(bwd90_key_full<D>(base, i), 1);
      hopper_barrier_init(bwd90_key_empty<D>(base, i), size::groups * HOPPER_GROUP / 32);
    }
    hopper_barrier_ready();
  }
  __syncthreads();
  /* 128 registers a thread at the start; 128 * 32 + 384 * 160 are all 65536. */
  if (threadIdx.x < HOPPER_GROUP) {
    hopper_give_registers<size::producer_registers>();
    if (threadIdx.x == 0) bwd90_rows_produce<D, WINDOW>(a, base);
  } else {
    hopper_take_registers<size::consumer_registers>();
    bwd90_rows_consume<T, D, WINDOW>(a, bwd90_shared + (base - start), base,
                                     (int)(threadIdx.x / HOPPER_GROUP) - 1);
  }
#endif
}

/* ---- launches -------------------------------------------------------------------------------- */

static nn_status_t bwd90_maps(backend_device_t *device, const op_attention_bwd_t *op,
                              const attention_rows_t *rows, int positions, int keys,
                              CUtensorMap *q, CUtensorMap *dout, CUtensorMap *k, CUtensorMap *v) {
  int64_t dim = op->head_dim, width = op->heads * dim;
  hopper_tensor_t at = tiles90_tensor(op->q, op->batch, op->q_len, op->heads, dim,
                                      op->q_len * op->ldq, op->ldq, positions, rows->group);
  CUDA_TRY(hopper_map(device, "attention_bwd", &at, q));
  at = tiles90_tensor(op->dout, op->batch, op->q_len, op->heads, dim, op->q_len * width, width,
                      positions, rows->group);
  CUDA_TRY(hopper_map(device, "attention_bwd", &at, dout));
  at = tiles90_tensor(op->k, op->batch, op->q_len, op->kv_heads, dim, op->kv_batch, op->ldkv, keys,
                      1);
  CUDA_TRY(hopper_map(device, "attention_bwd", &at, k));
  at.base = op->v;
  return hopper_map(device, "attention_bwd", &at, v);
}

template <typename T, int D>
static nn_status_t bwd90_launch_keys(backend_device_t *device, const op_attention_bwd_t *op,
                                     const float2 *stats, float *partial) {
  typedef bwd90_keys_size<D> size;
  bwd90_keys_args_t a = {};
  a.op = *op;
  a.rows = attention_rows(op->q_len, op->heads, op->kv_heads, op->window, op->q_len);
  a.stats = stats, a.partial = partial, a.scale = op->scale * ATTENTION_LOG2_E;
  a.line = line90_make(device, &a.rows, op->batch, tiles90_positions(&a.rows, size::step_rows),
                       size::sharers);
  CUDA_TRY(bwd90_maps(device, op, &a.rows, a.line.positions, BWD90_KEYS, &a.q, &a.dout, &a.k,
                      &a.v));
  auto kernel = attention_windowed(&a.rows) ? bwd90_keys<T, D, true> : bwd90_keys<T, D, false>;
  CUDA_TRY(cuda_check(device, "attention_bwd",
                      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           size::shared)));
  unsigned grid = (unsigned)cuda_blocks(a.line.total, a.line.share);
  kernel<<<grid, size::threads, size::shared, device->stream>>>(a);
  unsigned blocks = (unsigned)(line90_key_blocks(&a.rows) * a.line.pairs * bwd90_sum_blocks<D>);
  bwd90_keys_sum<T, D><<<blocks, BWD90_SUM_THREADS, 0, device->stream>>>(a);
  return NN_OK;
}

template <typename T, int D>
static nn_status_t bwd90_launch_rows(backend_device_t *device, const op_attention_bwd_t *op,
                                     const float2 *stats) {
  typedef bwd90_rows_size<D> size;
  bwd90_rows_args_t a = {};
  a.op = *op;
  a.rows = attention_rows(op->q_len, op->heads, op->kv_heads, op->window, op->q_len);
  a.stats = stats, a.scale = op->scale * ATTENTION_LOG2_E;
  a.tiles = tiles90_make(&a.rows, op->batch, size::rows);
  CUDA_TRY(bwd90_maps(device, op, &a.rows, a.tiles.positions, BWD90_STEP_KEYS, &a.q, &a.dout, &a.k,
                      &a.v));
  auto kernel = attention_windowed(&a.rows) ? bwd90_rows<T, D, true> : bwd90_rows<T, D, false>;
  CUDA_TRY(cuda_check(device, "attention_bwd",
                      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           size::shared)));
  kernel<<<tiles90_grid(device, &a.tiles), size::threads, size::shared, device->stream>>>(a);
  return NN_OK;
}

template <int D>
static int bwd90_takes(const backend_device_t *device, const op_attention_bwd_t *op) {
  typedef bwd90_keys_size<D> size;
  /* No line of steps is longer. */
  int64_t group = op->heads / op->kv_heads, steps = op->q_len * group / size::step_rows * 2;
  int64_t line = (op->q_len / BWD90_KEYS + 1) * (steps + 4 + LINE90_START);
  return line * op->batch * op->kv_heads <= INT32_MAX && device->shared_bytes >= size::shared &&
         device->shared_bytes >= bwd90_rows_size<D>::shared && group <= size::step_rows / 2;
}

int attention_flash90_bwd_takes(const backend_device_t *device, const op_attention_bwd_t *op) {
  if (device->capability != 90) return 0;
  return (op->head_dim == 64 && bwd90_takes<64>(device, op)) ||
         (op->head_dim == 128 && bwd90_takes<128>(device, op));
}

template <typename T, int D>
static nn_status_t bwd90_run(backend_device_t *device, const op_attention_bwd_t *op,
                             const float2 *stats, float *partial) {
  CUDA_TRY((bwd90_launch_keys<T, D>(device, op, stats, partial)));
  return bwd90_launch_rows<T, D>(device, op, stats);
}

template <typename T>
static nn_status_t bwd90_launch(backend_device_t *device, const op_attention_bwd_t *op,
                                const float2 *stats, float *partial) {
  return op->head_dim == 64 ? bwd90_run<T, 64>(device, op, stats, partial)
                            : bwd90_run<T, 128>(device, op, stats, partial);
}

nn_status_t attention_flash90_bwd(backend_device_t *device, const op_attention_bwd_t *op,
                                  const float2 *stats, float *partial) {
  return CUDA_BY_HALF(op->act_dtype, bwd90_launch, device, op, stats, partial);
}
