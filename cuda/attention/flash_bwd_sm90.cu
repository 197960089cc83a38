/* Attention backward on sm_90a: T bf16 or fp16, head dim up to D; formulas and two kernels as in
 * flash_bwd.cu, with products by warpgroups whose left operands p and ds stay in registers. dq is
 * made in flash_bwd_rows_sm90.cu; here are dk and dv.
 *
 * Blocks of 128 keys are held, 64 a warpgroup, and some packed rows come at a time. What a cut of
 * the line of line_sm90.cuh leaves of a key block goes to `partial` in fp32 and is added in the
 * order of rows. Above 128 columns, registers have room for dk or dv, and each is made by a kernel
 * of its own.
 *
 * WINDOW: rows see no more than so many keys; steps in which no row sees a key are left out. */
#include "attention/line_sm90.cuh"
#include "attention/tiles_sm90.cuh"
#include "launch.cuh"

enum { BWD90_KEYS = LINE90_KEYS, BWD90_KEY_GROUPS = 2 };

/* What a kernel makes. */
enum { BWD90_DK = 1, BWD90_DV = 2, BWD90_BOTH = BWD90_DK | BWD90_DV };

/* Which of a row's terms are added: left operands of 64 equal rows that begin with 8 numbers, one
 * of these, and go on with 8 zeros. Eight rows of 8 numbers are a core matrix. */
enum { BWD90_LSE, BWD90_DELTA, BWD90_ZEROS, BWD90_ONES };
enum { BWD90_CORE = 128 /* bytes */ };

/* What follows from the head dim: registers hold dk and dv, or one of them, and fewer rows of a
 * step beside wider ones. Without dk no values are held, which leaves room for a stage more. In
 * shared memory ones, barriers, pieces and terms lie in front of the keys: compute-sanitizer's
 * memcheck takes operands of wgmma for contiguous and looks for 2048 bytes behind the ones. */
template <int D, int MAKES>
struct bwd90_keys_size {
  static_assert(D == 64 || D == 128 || D == 192 || D == 256, "registers are counted for these");
  static constexpr int step_rows = D == 64 ? 96 : D == 256 ? 48 : 64;
  static constexpr int helds = MAKES & BWD90_DK ? 2 : 1; /* tiles: keys, and values */
  static constexpr int stages = D <= 128 ? 4 : helds == 2 ? 2 : 3;
  static constexpr int rooms = D == 64 ? 2 : 1;     /* of keys and values */
  static constexpr int held = BWD90_KEYS * D;       /* numbers of dk or dv of a key block */
  static constexpr int held_half = BWD90_KEYS * HOPPER_ROW_BYTES;
  static constexpr int held_bytes = held * 2;       /* of its keys or values */
  static constexpr int step_half = step_rows * HOPPER_ROW_BYTES;
  static constexpr int step_bytes = step_rows * D * 2;
  static constexpr int stage_bytes = 2 * step_bytes; /* q, dout */
  static constexpr int stages_at = rooms * helds * held_bytes;
  static constexpr int end = stages_at + stages * stage_bytes;
  static constexpr int terms_bytes = step_rows * (int)sizeof(attention_terms_t);
  static constexpr int barriers = 2 * rooms + 2 * stages;
  static constexpr int front_bytes =
      BWD90_ONES * BWD90_CORE + 8 * barriers + 32 * rooms + stages * terms_bytes;
  static constexpr int front = (front_bytes + HOPPER_ALIGN - 1) / HOPPER_ALIGN * HOPPER_ALIGN;
  static constexpr int ones_at = -front;
  static constexpr int barriers_at = ones_at + BWD90_ONES * BWD90_CORE;
  static constexpr int pieces_at = barriers_at + 8 * barriers;
  static constexpr int terms_at = -stages * terms_bytes; /* of each stage's rows */
  static constexpr int shared = HOPPER_ALIGN + front + end;
  static_assert(shared <= 227 * 1024, "a block has no more");
  static constexpr int threads = (1 + BWD90_KEY_GROUPS) * HOPPER_GROUP;
  static constexpr int sharers = 512 / D; /* attention_flash_bwd_partial has room for so many */
};

typedef struct bwd90_keys_args {
  CUtensorMap q, dout, k, v;
  op_attention_bwd_t op;
  attention_rows_t rows;
  const attention_terms_t *terms;
  float *partial; /* [blocks, 2, 2 (dk, dv), keys, D]: sums of the key block that an earlier block
                     began, and of the one that this begins and the next goes on with */
  line90_t line;
  float scale; /* log2(e) * op.scale */
} bwd90_keys_args_t;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <typename Size>
__device__ __forceinline__ uint32_t bwd90_held_full(uint32_t base, uint32_t i) {
  return base + (uint32_t)Size::barriers_at + 8 * i;
}
template <typename Size>
__device__ __forceinline__ uint32_t bwd90_held_empty(uint32_t base, uint32_t i) {
  return bwd90_held_full<Size>(base, Size::rooms + i);
}
template <typename Size>
__device__ __forceinline__ uint32_t bwd90_full(uint32_t base, uint32_t i) {
  return bwd90_held_full<Size>(base, 2 * Size::rooms + i);
}
template <typename Size>
__device__ __forceinline__ uint32_t bwd90_empty(uint32_t base, uint32_t i) {
  return bwd90_full<Size>(base, Size::stages + i);
}

template <typename Size>
__device__ __forceinline__ uint32_t bwd90_terms(uint32_t base, uint32_t slot) {
  return base + (uint32_t)Size::terms_at + slot * Size::terms_bytes;
}

/* The thread that copies tells the others by shared memory, one for each room. */
static_assert(sizeof(line90_piece_t) <= 32, "they lie in shared memory");
template <typename Size>
__device__ __forceinline__ line90_piece_t *bwd90_piece(unsigned char *shared, uint32_t room) {
  return (line90_piece_t *)(shared + Size::pieces_at + room * 32);
}

/* Read by the lane that gives the room back, for its warp. */
template <typename Size>
__device__ __forceinline__ line90_piece_t bwd90_take_piece(unsigned char *shared, uint32_t room) {
  constexpr int words = sizeof(line90_piece_t) / sizeof(int);
  const int *from = (const int *)bwd90_piece<Size>(shared, room);
  line90_piece_t piece;
#pragma unroll
  for (int i = 0; i < words; i++) {
    int word = threadIdx.x % 32 == 0 ? from[i] : 0;
    ((int *)&piece)[i] = __shfl_sync(0xffffffffu, word, 0);
  }
  return piece;
}

template <int D, int MAKES>
__device__ __forceinline__ void bwd90_keys_produce(const bwd90_keys_args_t &a,
                                                   unsigned char *shared, uint32_t base) {
  typedef bwd90_keys_size<D, MAKES> size;
  int64_t stat_count = attention_stat_count(a.rows);
  int step_rows = a.line.positions * a.rows.group;
  line90_walk_t walk = line90_begin(a.line);
  line90_piece_t piece = {};
  uint32_t slot = 0, parity = 0;
  for (uint32_t number = 0;; number++) {
    bool more = line90_next(a.line, &walk, &piece);
    int b = piece.pair / a.rows.kv_heads, kv_head = piece.pair % a.rows.kv_heads;
    uint32_t room = number % size::rooms, held = base + room * size::helds * size::held_bytes;
    uint32_t held_full = bwd90_held_full<size>(base, room);
    hopper_wait(bwd90_held_empty<size>(base, room), ~(number / size::rooms) & 1);
    *bwd90_piece<size>(shared, room) = piece;
    if (!more) {
      hopper_arrive(held_full);
      return;
    }
    int key = piece.block * BWD90_KEYS;
    hopper_expect(held_full, size::helds * size::held_bytes);
    tiles90_copy<D>(a.k, held, size::held_half, held_full, kv_head, key, b);
    if constexpr (MAKES & BWD90_DK)
      tiles90_copy<D>(a.v, held + size::held_bytes, size::held_half, held_full, kv_head, key, b);
    const attention_terms_t *terms = a.terms + piece.pair * stat_count;
    for (int step = piece.first; step < piece.first + piece.count; step++) {
      uint32_t stage = base + size::stages_at + slot * size::stage_bytes;
      uint32_t full = bwd90_full<size>(base, slot);
      int first = step * step_rows, known = (int)min((int64_t)step_rows, stat_count - first);
      int head = kv_head * a.rows.group, position = step * a.line.positions;
      hopper_wait(bwd90_empty<size>(base, slot), parity ^ 1);
      hopper_expect(full, 2 * step_rows * (D * 2) + known * sizeof(*terms));
      tiles90_copy<D>(a.q, stage, size::step_half, full, head, position, b);
      hopper_copy_bytes(terms + first, bwd90_terms<size>(base, slot), full,
                        known * sizeof(*terms));
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

/* A step's products become weights: of the warpgroup's keys, whose block begins with `key` and of
 * which the thread's first is `own` further, with rows that begin with a position. */
template <bool WINDOW, int N>
__device__ __forceinline__ void bwd90_weights(float (&s)[N], const bwd90_keys_args_t &a, int key,
                                              int group, int own, int position, int step_rows) {
#pragma unroll
  for (int i = 0; i < N; i++) s[i] = tile_exp2(s[i] * a.scale);
  int end = min(step_rows, a.rows.count - position * a.rows.group);
  bool beyond = WINDOW && position + a.line.positions > key + group * 64 + a.rows.window;
  if (position < key + group * 64 + 63 || end < 2 * N || beyond) {
    int first = (key + own - position) * a.rows.group;
    if constexpr (WINDOW)
      bwd90_mask(s, first, first + 8 * a.rows.group, end, a.rows.window * a.rows.group);
    else
      bwd90_mask(s, first, first + 8 * a.rows.group, end);
  }
}

/* acc of the warp's 16 keys of 64 goes to the tensor, or to a piece's sums, of D columns. */
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
      else if (n * 8 < a.op.head_dim)
        *(uint32_t *)(to + key * a.op.ldkv + d) = half_pair<T>(x, y);
    }
  }
}

/* One row of them. */
__device__ __forceinline__ uint4 bwd90_ones(int which) {
  const uint32_t one = 0x3f80, two = one << 16 | one;
  if (which == BWD90_LSE) return make_uint4(two, one, 0, 0);
  return which == BWD90_DELTA ? make_uint4(0, one << 16, two, 0) : make_uint4(0, 0, 0, 0);
}

/* Asks for s or ds of the rows at q: their products with the keys or values that are held, to which
 * their own terms come as a product more, so that no thread has to read them. The terms are bf16
 * for any T; their 8 numbers are taken twice, the second time by zeros. */
template <typename T, int D, int MAKES, int TERM, int N>
__device__ __forceinline__ void bwd90_dot(float (&d)[N], uint32_t base, uint32_t slot, uint32_t k,
                                          uint32_t q) {
  typedef bwd90_keys_size<D, MAKES> size;
  uint32_t ones = base + (uint32_t)size::ones_at + TERM * BWD90_CORE;
  uint64_t x = hopper_core_operand(ones, (BWD90_ZEROS - TERM) * BWD90_CORE, 0);
  uint64_t y = hopper_core_operand(bwd90_terms<size>(base, slot), 0, BWD90_CORE);
  if constexpr (N == 24) hopper_multiply_48<bf16_t, false, false>(d, x, y, 0);
  if constexpr (N == 32) hopper_multiply_64<bf16_t, false, false>(d, x, y, 0);
  if constexpr (N == 48) hopper_multiply_96<bf16_t, false, false>(d, x, y, 0);
  uint32_t a = TERM == BWD90_LSE ? k : k + size::held_bytes;
  tiles90_dot<T, D>(d, a, size::held_half, TERM == BWD90_LSE ? q : q + size::step_bytes,
                    size::step_half, 1);
}

/* Asks for what a step's rows, at q, add to dk and, by their weights, to dv. */
template <typename T, int D, int MAKES, int N>
__device__ __forceinline__ void bwd90_add_dk(float (&dk)[D / 2], uint32_t (&r)[N], uint32_t q,
                                             int add) {
  hopper_hold(dk);
  hopper_begin();
  tiles90_add<T, D>(dk, r, q, bwd90_keys_size<D, MAKES>::step_half, add);
}
template <typename T, int D, int MAKES, int N>
__device__ __forceinline__ void bwd90_add_dv(float (&dv)[D / 2], uint32_t (&p)[N], uint32_t q,
                                             int add) {
  typedef bwd90_keys_size<D, MAKES> size;
  hopper_hold(dv);
  hopper_begin();
  tiles90_add<T, D>(dv, p, q + size::step_bytes, size::step_half, add);
}

/* Steps of a piece before and behind those whose rows see any of the 64 keys from `key` on. One is
 * always left. */
template <bool WINDOW>
__device__ __forceinline__ int2 bwd90_unseen(const line90_t &line, const line90_piece_t &piece,
                                             int key) {
  int before = min(max(key / line.positions - piece.first, 0), piece.count - 1), behind = 0;
  if constexpr (WINDOW) {
    int last = (key + 62 + line.window) / line.positions;
    behind = min(max(piece.first + piece.count - 1 - last, 0), piece.count - 1 - before);
  }
  return make_int2(before, behind);
}

/* The warp takes no part in so many steps. */
template <typename Size>
__device__ __forceinline__ void bwd90_pass_over(uint32_t base, int steps, uint32_t *slot,
                                                uint32_t *parity) {
  for (; steps > 0; steps--) {
    hopper_wait(bwd90_full<Size>(base, *slot), *parity);
    __syncwarp();
    if (threadIdx.x % 32 == 0) hopper_arrive(bwd90_empty<Size>(base, *slot));
    if (++*slot == Size::stages) *slot = 0, *parity ^= 1;
  }
}

template <typename Size>
__device__ __forceinline__ void bwd90_clear(unsigned char *shared, int begin, int end) {
  for (int i = begin + threadIdx.x * 16; i < end; i += Size::threads * 16)
    *(uint4 *)(shared + i) = make_uint4(0, 0, 0, 0);
}

template <typename T, int D, bool WINDOW, int MAKES>
__device__ __forceinline__ void bwd90_keys_consume(const bwd90_keys_args_t &a,
                                                   unsigned char *shared, uint32_t base,
                                                   int group) {
  typedef bwd90_keys_size<D, MAKES> size;
  constexpr int numbers = size::step_rows / 2; /* of a step's rows by 64 keys, a thread's */
  constexpr bool DK = MAKES & BWD90_DK, DV = MAKES & BWD90_DV;
  /* So many columns leave registers for ds only once p and r are done with. */
  constexpr bool late = D == 128 || D == 256;
  /* What a step adds to dv is computed while ds is; of 64 columns that takes longer. */
  constexpr bool early = DK && DV && D == 128;
  int lane = threadIdx.x & 31;
  int own = group * 64 + threadIdx.x / 32 % 4 * 16 + (lane >> 2); /* the thread's first key */
  bool signals = lane == 0;
  int step_rows = a.line.positions * a.rows.group;
  uint32_t slot = 0, parity = 0;
  for (uint32_t number = 0;; number++) {
    uint32_t room = number % size::rooms;
    hopper_wait(bwd90_held_full<size>(base, room), number / size::rooms & 1);
    line90_piece_t piece = bwd90_take_piece<size>(shared, room);
    if (piece.count == 0) break;
    int2 unseen = bwd90_unseen<WINDOW>(a.line, piece, piece.block * BWD90_KEYS + group * 64);
    piece.first += unseen.x, piece.count -= unseen.x + unseen.y;
    bwd90_pass_over<size>(base, unseen.x, &slot, &parity);
    uint32_t k = base + room * size::helds * size::held_bytes + group * 64 * HOPPER_ROW_BYTES;
    float dk[D / 2], dv[D / 2], s[numbers], ds[numbers];
    uint32_t p[numbers / 2], r[numbers / 2];
    hopper_wait(bwd90_full<size>(base, slot), parity);
    uint32_t q = base + size::stages_at + slot * size::stage_bytes;
    hopper_hold(s);
    if constexpr (DK) hopper_hold(ds);
    hopper_begin();
    bwd90_dot<T, D, MAKES, BWD90_LSE>(s, base, slot, k, q);
    hopper_commit();
    if constexpr (DK) {
      bwd90_dot<T, D, MAKES, BWD90_DELTA>(ds, base, slot, k, q);
      hopper_commit();
    }
    for (int step = 0;; step++) {
      hopper_done<DK ? 1 : 0>();
      if constexpr (DK) hopper_hold(dk);
      if constexpr (DV) hopper_hold(dv);
      hopper_hold(s);
      if (step && signals)
        hopper_arrive(bwd90_empty<size>(base, slot ? slot - 1 : size::stages - 1));
      bwd90_weights<WINDOW>(s, a, piece.block * BWD90_KEYS, group, own,
                            (piece.first + step) * a.line.positions, step_rows);
      if constexpr (DV) {
        tiles90_round<T>(p, s);
        hopper_hold(p);
      }
      if constexpr (early) {
        bwd90_add_dv<T, D, MAKES>(dv, p, q, step);
        hopper_commit();
      }
      if constexpr (DK) {
        hopper_done<early ? 1 : 0>();
        hopper_hold(ds);
#pragma unroll
        for (int i = 0; i < numbers; i++) ds[i] *= s[i];
        tiles90_round<T>(r, ds);
        hopper_hold(r);
      }
      if (step + 1 == piece.count) break;
      uint32_t last = q;
      if (++slot == size::stages) slot = 0, parity ^= 1;
      q = base + size::stages_at + slot * size::stage_bytes;
      hopper_wait(bwd90_full<size>(base, slot), parity);
      hopper_hold(s);
      if constexpr (DK && !late) hopper_hold(ds);
      if constexpr (D == 256) hopper_hold(k); /* registers have no room for operands made of it */
      if constexpr (DV && !early) bwd90_add_dv<T, D, MAKES>(dv, p, last, step);
      if constexpr (DK) bwd90_add_dk<T, D, MAKES>(dk, r, last, step);
      hopper_commit();
      bwd90_dot<T, D, MAKES, BWD90_LSE>(s, base, slot, k, q);
      hopper_commit();
      if constexpr (DK && late) {
        hopper_done<1>();
        if constexpr (early) hopper_hold(dv);
        tiles90_zero(ds);
        hopper_hold(ds);
        hopper_begin();
      }
      if constexpr (DK) {
        bwd90_dot<T, D, MAKES, BWD90_DELTA>(ds, base, slot, k, q);
        hopper_commit();
      }
    }
    if constexpr (DV && !early) bwd90_add_dv<T, D, MAKES>(dv, p, q, piece.count > 1);
    if constexpr (DK) bwd90_add_dk<T, D, MAKES>(dk, r, q, piece.count > 1);
    hopper_commit();
    hopper_done<0>();
    if constexpr (DK) hopper_hold(dk);
    if constexpr (DV) hopper_hold(dv);
    if (signals) hopper_arrive(bwd90_empty<size>(base, slot));
    if (++slot == size::stages) slot = 0, parity ^= 1;
    if constexpr (WINDOW) bwd90_pass_over<size>(base, unseen.y, &slot, &parity);
    int block = piece.block;
    int64_t kv = piece.pair / a.rows.kv_heads * a.op.kv_batch +
                 piece.pair % a.rows.kv_heads * a.op.head_dim;
    float *partial = NULL;
    if (!piece.whole)
      partial = a.partial + (2 * (int64_t)blockIdx.x + piece.begins) * 2 * size::held;
    __syncwarp();
    if (signals) hopper_arrive(bwd90_held_empty<size>(base, room));
    if constexpr (DK) bwd90_write<T, D>(a, dk, (T *)a.op.dk + kv, partial, block, own, a.op.scale);
    if constexpr (DV)
      bwd90_write<T, D>(a, dv, (T *)a.op.dv + kv, partial ? partial + size::held : NULL, block,
                        own, 1);
  }
}

#endif

template <typename T, int D, bool WINDOW, int MAKES>
__global__ void __launch_bounds__(bwd90_keys_size<D, MAKES>::threads, 1)
    bwd90_keys(const __grid_constant__ bwd90_keys_args_t a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  typedef bwd90_keys_size<D, MAKES> size;
  extern __shared__ unsigned char bwd90_shared[];
  uint32_t start = tile_address(bwd90_shared);
  uint32_t base = (start + size::front + HOPPER_ALIGN - 1) / HOPPER_ALIGN * HOPPER_ALIGN;
  unsigned char *shared = bwd90_shared + (base - start);
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < size::rooms; i++) {
      hopper_barrier_init(bwd90_held_full<size>(base, i), 1);
      hopper_barrier_init(bwd90_held_empty<size>(base, i), BWD90_KEY_GROUPS * HOPPER_GROUP / 32);
    }
    for (uint32_t i = 0; i < size::stages; i++) {
      hopper_barrier_init(bwd90_full<size>(base, i), 1);
      hopper_barrier_init(bwd90_empty<size>(base, i), BWD90_KEY_GROUPS * HOPPER_GROUP / 32);
    }
    hopper_barrier_ready();
  }
  /* Nothing may be copied to a stage's last rows and their terms; they must be numbers. */
  bwd90_clear<size>(shared, size::terms_at, 0);
  bwd90_clear<size>(shared, size::stages_at, size::end);
  if (threadIdx.x < BWD90_ONES * 8)
    *(uint4 *)(shared + size::ones_at + threadIdx.x * sizeof(uint4)) = bwd90_ones(threadIdx.x / 8);
  hopper_fence();
  launch_wait();
  launch_next();
  __syncthreads();
  /* 168 registers a thread at the start; 128 * 24 + 256 * 240 fit into the 65536 too. */
  if (threadIdx.x < HOPPER_GROUP) {
    hopper_give_registers<24>();
    if (threadIdx.x == 0) bwd90_keys_produce<D, MAKES>(a, shared, base);
  } else {
    hopper_take_registers<240>();
    int group = __shfl_sync(0xffffffffu, threadIdx.x / HOPPER_GROUP, 0); /* one for the warp */
    bwd90_keys_consume<T, D, WINDOW, MAKES>(a, shared, base, group - 1);
  }
#endif
}

/* dk and dv of key blocks that were cut, four numbers a thread. bwd90_keys is done when this
 * begins: bwd90_rows has waited for it, and may still run. */
enum { BWD90_SUM_THREADS = 256 };
template <int D>
constexpr int bwd90_sum_blocks = 2 * BWD90_KEYS * D / (4 * BWD90_SUM_THREADS);

template <typename T, int D>
__device__ __forceinline__ void bwd90_add_cut(const bwd90_keys_args_t &a) {
  constexpr int held = BWD90_KEYS * D;
  int item = blockIdx.x / bwd90_sum_blocks<D>;
  int pair = item % a.line.pairs, block = item / a.line.pairs;
  int first, last;
  line90_sharers(a.line, block, pair, &first, &last);
  if (first == last) return;
  int inside = (blockIdx.x % bwd90_sum_blocks<D> * BWD90_SUM_THREADS + threadIdx.x) * 4;
  int which = inside / held, key = inside % held / D;
  int64_t row = block * BWD90_KEYS + key;
  if (row >= a.rows.q_len || inside % D >= a.op.head_dim) return;
  const float *from = a.partial + inside;
  float4 sum = __ldcg((const float4 *)(from + (2 * (int64_t)first + 1) * 2 * held));
  for (int x = first + 1; x <= last; x++) {
    float4 more = __ldcg((const float4 *)(from + 2 * (int64_t)x * 2 * held));
    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
  }
  int64_t kv = pair / a.rows.kv_heads * a.op.kv_batch + pair % a.rows.kv_heads * a.op.head_dim;
  T *to = (T *)(which ? a.op.dv : a.op.dk) + kv + row * a.op.ldkv + inside % D;
  *(uint2 *)to = make_uint2(half_pair<T>(sum.x, sum.y), half_pair<T>(sum.z, sum.w));
}

template <typename T, int D>
__global__ void __launch_bounds__(BWD90_SUM_THREADS)
    bwd90_keys_sum(const __grid_constant__ bwd90_keys_args_t a) {
  bwd90_add_cut<T, D>(a);
  launch_wait();
}

/* ---- launches -------------------------------------------------------------------------------- */

template <typename T, int D, int MAKES>
static nn_status_t bwd90_make(backend_device_t *device, const bwd90_keys_args_t *a) {
  typedef bwd90_keys_size<D, MAKES> size;
  auto kernel = attention_windowed(&a->rows) ? bwd90_keys<T, D, true, MAKES>
                                             : bwd90_keys<T, D, false, MAKES>;
  CUDA_TRY(cuda_check(device, "attention_bwd",
                      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           size::shared)));
  unsigned grid = (unsigned)cuda_blocks(a->line.total, a->line.share);
  launch_chained(device, kernel, grid, size::threads, size::shared, 0, *a);
  return NN_OK;
}

template <typename T, int D>
static nn_status_t bwd90_launch_all(backend_device_t *device, const op_attention_bwd_t *op,
                                    const float2 *stats, const attention_terms_t *terms,
                                    float *partial) {
  typedef bwd90_keys_size<D, BWD90_DK> size;
  bwd90_keys_args_t a = {};
  a.op = *op;
  a.rows = attention_rows(op->q_len, op->heads, op->kv_heads, op->window, op->q_len);
  a.terms = terms, a.partial = partial, a.scale = op->scale * ATTENTION_LOG2_E;
  a.line = line90_make(device, &a.rows, op->batch, size::step_rows / a.rows.group, size::sharers);
  CUDA_TRY(tiles90_maps(device, op, &a.rows, a.line.positions, BWD90_KEYS, &a.q, &a.dout, &a.k,
                        &a.v));
  if constexpr (D <= 128) {
    CUDA_TRY((bwd90_make<T, D, BWD90_BOTH>(device, &a)));
  } else {
    CUDA_TRY((bwd90_make<T, D, BWD90_DK>(device, &a)));
    CUDA_TRY((bwd90_make<T, D, BWD90_DV>(device, &a)));
  }
  CUDA_TRY(attention_flash90_bwd_rows(device, op, stats));
  unsigned blocks = (unsigned)(line90_key_blocks(&a.rows) * a.line.pairs * bwd90_sum_blocks<D>);
  launch_chained(device, bwd90_keys_sum<T, D>, blocks, BWD90_SUM_THREADS, 0, 0, a);
  return NN_OK;
}

template <int D>
static int bwd90_takes(const backend_device_t *device, const op_attention_bwd_t *op) {
  typedef bwd90_keys_size<D, BWD90_DK> size; /* dv needs less */
  /* No line of steps is longer. */
  int64_t group = op->heads / op->kv_heads, steps = op->q_len * group / size::step_rows * 2;
  int64_t line = (op->q_len / BWD90_KEYS + 1) * (steps + 4 + LINE90_START);
  return line * op->batch * op->kv_heads <= INT32_MAX && device->shared_bytes >= size::shared &&
         group <= size::step_rows / 2;
}

int attention_flash90_bwd_takes(const backend_device_t *device, const op_attention_bwd_t *op) {
  if (device->capability != 90 || !attention_flash90_bwd_rows_takes(device)) return 0;
  if (op->scale == 0) return 0; /* terms are over the scale */
  return tiles90_by_head(op->head_dim,
                         [&](auto columns) { return bwd90_takes<columns.count>(device, op); });
}

template <typename T>
static nn_status_t bwd90_launch(backend_device_t *device, const op_attention_bwd_t *op,
                                const float2 *stats, const attention_terms_t *terms,
                                float *partial) {
  return tiles90_by_head(op->head_dim, [&](auto columns) {
    return bwd90_launch_all<T, columns.count>(device, op, stats, terms, partial);
  });
}

nn_status_t attention_flash90_bwd(backend_device_t *device, const op_attention_bwd_t *op,
                                  const float2 *stats, const attention_terms_t *terms,
                                  float *partial) {
  return CUDA_BY_HALF(op->act_dtype, bwd90_launch, device, op, stats, terms, partial);
}
