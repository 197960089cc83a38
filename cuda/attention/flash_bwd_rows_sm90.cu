/* dq of attention backward on sm_90a, as flash_bwd_sm90.cu makes dk and dv. Tiles of packed rows
 * are held, up to 64 a warpgroup, and 64 or 48 keys come at a time; steps in which a WINDOW shows
 * no row a key are left out. Blocks begin where those of dk and dv have left, and wait for the
 * others last of all: neither reads or writes what the other writes. */
#include "attention/tiles_sm90.cuh"
#include "launch.cuh"

template <int D>
struct bwd90_rows_size {
  static constexpr int groups = D == 64 ? 3 : 2;
  static constexpr int stages = D == 64 ? 4 : D == 128 ? 3 : 2;
  static constexpr int rooms = D <= 128 ? 2 : 1; /* of q and dout */
  static constexpr int step_keys = D <= 192 ? 64 : 48;
  static constexpr int rows = 64 * groups;
  static constexpr int q_half = rows * HOPPER_ROW_BYTES;
  static constexpr int q_bytes = rows * D * 2;
  static constexpr int key_half = step_keys * HOPPER_ROW_BYTES;
  static constexpr int key_bytes = step_keys * D * 2;
  static constexpr int keys_at = rooms * 2 * q_bytes; /* a stage: k, v */
  static constexpr int barriers_at = keys_at + stages * 2 * key_bytes;
  static constexpr int shared = HOPPER_ALIGN + barriers_at + 8 * (2 * rooms + 2 * stages);
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
  return bwd90_q_full<D>(base, bwd90_rows_size<D>::rooms + i);
}
template <int D>
__device__ __forceinline__ uint32_t bwd90_key_full(uint32_t base, uint32_t i) {
  return bwd90_q_full<D>(base, 2 * bwd90_rows_size<D>::rooms + i);
}
template <int D>
__device__ __forceinline__ uint32_t bwd90_key_empty(uint32_t base, uint32_t i) {
  return bwd90_key_full<D>(base, bwd90_rows_size<D>::stages + i);
}

enum { BWD90_OWN = 1 }; /* named barriers of each warpgroup's own threads */

/* The steps of keys that some row of a tile sees: the first, and how many. */
template <int D, bool WINDOW>
__device__ __forceinline__ int bwd90_key_first(const bwd90_rows_args_t &a,
                                               const tiles90_tile_t &tile) {
  return WINDOW ? max(0, tile.position + 1 - a.rows.window) / bwd90_rows_size<D>::step_keys : 0;
}
template <int D, bool WINDOW>
__device__ __forceinline__ int bwd90_key_steps(const bwd90_rows_args_t &a,
                                               const tiles90_tile_t &tile) {
  int keys = min(tile.position + a.tiles.positions, a.rows.q_len);
  constexpr int step = bwd90_rows_size<D>::step_keys;
  return (keys + step - 1) / step - bwd90_key_first<D, WINDOW>(a, tile);
}

template <int D, bool WINDOW>
__device__ __forceinline__ void bwd90_rows_produce(const bwd90_rows_args_t &a, uint32_t base) {
  typedef bwd90_rows_size<D> size;
  tiles90_tile_t tile;
  uint32_t slot = 0, parity = 0;
  for (int round = 0; tiles90_find(a.tiles, round, &tile); round++) {
    int b = tile.pair / a.rows.kv_heads, kv_head = tile.pair % a.rows.kv_heads;
    int head = kv_head * a.rows.group;
    uint32_t room = round % size::rooms, q = base + room * 2 * size::q_bytes;
    uint32_t full = bwd90_q_full<D>(base, room);
    hopper_wait(bwd90_q_empty<D>(base, room), ~(round / size::rooms) & 1);
    hopper_expect(full, 2 * a.tiles.positions * a.rows.group * (D * 2));
    tiles90_copy<D>(a.q, q, size::q_half, full, head, tile.position, b);
    tiles90_copy<D>(a.dout, q + size::q_bytes, size::q_half, full, head, tile.position, b);
    int steps = bwd90_key_steps<D, WINDOW>(a, tile), key = bwd90_key_first<D, WINDOW>(a, tile);
    for (int step = 0; step < steps; step++) {
      uint32_t k = base + size::keys_at + slot * 2 * size::key_bytes;
      full = bwd90_key_full<D>(base, slot);
      hopper_wait(bwd90_key_empty<D>(base, slot), parity ^ 1);
      hopper_expect(full, 2 * size::key_bytes);
      int first = (key + step) * size::step_keys;
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
    uint32_t room = round % size::rooms;
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
      stat[half] = __ldcg(stats + min(row + half * 8 + g, a.rows.count - 1));
    }

    constexpr bool late = D == 256; /* registers have room for ds once r is done with */
    constexpr int numbers = size::step_keys / 2; /* of 64 rows by a step's keys, a thread's */
    float dq[D / 2], s[numbers], ds[numbers];
    uint32_t r[numbers / 2];
    hopper_wait(bwd90_q_full<D>(base, room), round / size::rooms & 1);
    int steps = bwd90_key_steps<D, WINDOW>(a, tile);
    int first_key = bwd90_key_first<D, WINDOW>(a, tile) * size::step_keys;
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
      for (int i = 0; i < numbers; i++) s[i] = tile_exp2(fmaf(s[i], a.scale, -stat[i / 2 % 2].x));
      int key = first_key + step * size::step_keys;
      bool partly = WINDOW && key + a.rows.window < tile.position + a.tiles.positions;
      if (key + size::step_keys - 1 > all_see || partly) {
#pragma unroll
        for (int i = 0; i < numbers; i++) {
          int behind = last[i / 2 % 2] - key - (i / 4 * 8 + i % 2);
          if (behind < 0 || (WINDOW && behind >= a.rows.window)) s[i] = 0;
        }
      }
      hopper_done<0>();
      hopper_hold(ds);
#pragma unroll
      for (int i = 0; i < numbers; i++) ds[i] = s[i] * (ds[i] - stat[i / 2 % 2].y);
      tiles90_round<T>(r, ds);
      hopper_hold(r);
      if (step + 1 == steps) break;
      uint32_t before = k;
      if (++slot == size::stages) slot = 0, parity ^= 1;
      k = base + size::keys_at + slot * 2 * size::key_bytes;
      hopper_wait(bwd90_key_full<D>(base, slot), parity);
      hopper_hold(s);
      if constexpr (!late) hopper_hold(ds);
      if constexpr (late) hopper_hold(q); /* registers have no room for operands made of it */
      hopper_hold(dq);
      hopper_begin();
      tiles90_add<T, D>(dq, r, before, size::key_half, step);
      hopper_commit();
      tiles90_dot<T, D>(s, q, size::q_half, k, size::key_half);
      hopper_commit();
      if constexpr (late) {
        hopper_done<1>();
        tiles90_zero(ds);
        hopper_hold(ds);
        hopper_begin();
      }
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
                 (int64_t)kv_head * a.rows.group * a.op.head_dim;
    tiles90_store<T, D>(shared + own_warp, size::q_half, to, a.op.ldq, (int)a.op.head_dim, a.rows,
                        row, end, dq, a.op.scale, a.op.scale);
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
    for (uint32_t i = 0; i < size::rooms; i++) {
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
  /* 64 columns: 128 registers a thread at the start; 128 * 32 + 384 * 160 are all 65536. Wider: as
   * in flash_bwd_sm90.cu. */
  if (threadIdx.x < HOPPER_GROUP) {
    hopper_give_registers<size::producer_registers>();
    if (threadIdx.x == 0) bwd90_rows_produce<D, WINDOW>(a, base);
  } else {
    hopper_take_registers<size::consumer_registers>();
    int group = __shfl_sync(0xffffffffu, threadIdx.x / HOPPER_GROUP, 0); /* one for the warp */
    bwd90_rows_consume<T, D, WINDOW>(a, bwd90_shared + (base - start), base, group - 1);
  }
  launch_wait();
  launch_next();
#endif
}

/* ---- launches -------------------------------------------------------------------------------- */

template <typename T, int D>
static nn_status_t bwd90_launch_rows(backend_device_t *device, const op_attention_bwd_t *op,
                                     const float2 *stats) {
  typedef bwd90_rows_size<D> size;
  bwd90_rows_args_t a = {};
  a.op = *op;
  a.rows = attention_rows(op->q_len, op->heads, op->kv_heads, op->window, op->q_len);
  a.stats = stats, a.scale = op->scale * ATTENTION_LOG2_E;
  a.tiles = tiles90_make(&a.rows, op->batch, size::rows);
  CUDA_TRY(tiles90_maps(device, op, &a.rows, a.tiles.positions, size::step_keys, &a.q, &a.dout,
                        &a.k, &a.v));
  auto kernel = attention_windowed(&a.rows) ? bwd90_rows<T, D, true> : bwd90_rows<T, D, false>;
  CUDA_TRY(cuda_check(device, "attention_bwd",
                      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           size::shared)));
  launch_chained(device, kernel, tiles90_grid(device, &a.tiles), size::threads, size::shared, 0, a);
  return NN_OK;
}

template <typename T>
static nn_status_t bwd90_launch(backend_device_t *device, const op_attention_bwd_t *op,
                                const float2 *stats) {
  return tiles90_by_head(op->head_dim, [&](auto columns) {
    return bwd90_launch_rows<T, columns.count>(device, op, stats);
  });
}

int attention_flash90_bwd_rows_takes(const backend_device_t *device) {
  return device->shared_bytes >= bwd90_rows_size<64>::shared &&
         device->shared_bytes >= bwd90_rows_size<128>::shared &&
         device->shared_bytes >= bwd90_rows_size<192>::shared &&
         device->shared_bytes >= bwd90_rows_size<256>::shared;
}

nn_status_t attention_flash90_bwd_rows(backend_device_t *device, const op_attention_bwd_t *op,
                                       const float2 *stats) {
  return CUDA_BY_HALF(op->act_dtype, bwd90_launch, device, op, stats);
}
