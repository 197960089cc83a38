/* Attention forward on sm_90a (FlashAttention-3): T bf16 or fp16, head dim up to D;
 * o = sum_j exp(s_j - m) v_j / sum_j exp(s_j - m), in base 2.
 *
 * m is the row's largest score of the first step. Any m gives the same quotient while the weights
 * are numbers, so no other step looks for the largest: it looks at the sum of its weights, and only
 * where that is too much are the scores made once more, m raised, and what was summed scaled down.
 *
 * A block walks over tiles of packed rows, up to 64 a warpgroup, and over 64 to 128 keys at a time
 * from the first, or the first that a WINDOW shows to any row. One thread copies ahead, over the
 * ends of tiles. A warpgroup asks for the scores of the next keys, then for the values of these,
 * and makes weights of the scores under that product; the warpgroups take turns in asking, so that
 * one's products run under another's weights. */
#include "attention/tiles_sm90.cuh"

/* What follows from the head dim: warpgroups with rows and the keys of a step, which shared memory
 * and registers have room for, and where things lie. */
template <int D>
struct flash90_size {
  static_assert(D == 64 || D == 128 || D == 192 || D == 256, "registers are counted for these");
  static constexpr int groups = D == 64 ? 3 : 2;
  static constexpr int keys = D <= 128 ? 128 : D == 192 ? 96 : 64;
  static constexpr int stages = D == 64 ? 4 : 2; /* of keys, and of values */
  static constexpr int rooms = D <= 128 ? 2 : 1; /* of queries */
  static constexpr int rows = 64 * groups;
  static constexpr int q_half = rows * HOPPER_ROW_BYTES;
  static constexpr int key_half = keys * HOPPER_ROW_BYTES;
  static constexpr int q_bytes = D / TILES90_COLUMNS * q_half;
  static constexpr int key_bytes = D / TILES90_COLUMNS * key_half;
  static constexpr int key_at = rooms * q_bytes;
  static constexpr int value_at = key_at + stages * key_bytes;
  static constexpr int barriers_at = value_at + stages * key_bytes;
  static constexpr int barriers = 2 * rooms + 4 * stages;
  static constexpr int shared = HOPPER_ALIGN + barriers_at + 8 * barriers;
  static constexpr int consumer_warps = groups * HOPPER_GROUP / 32;
  static constexpr int threads = (1 + groups) * HOPPER_GROUP;
  /* of a thread of the warpgroup that copies, and of the others */
  static constexpr int producer_registers = D == 64 ? 32 : 24;
  static constexpr int consumer_registers = D == 64 ? 160 : 240;
  static_assert((producer_registers + groups * consumer_registers) * HOPPER_GROUP <= 65536, "");
};

/* m is raised where a thread's weights of one row and step sum to more. fp16 has no 65536. */
template <typename T>
[[maybe_unused]] static constexpr float flash90_most = half_is_f16<T> ? 32768 : 65536;

typedef struct flash90_args {
  CUtensorMap q, k, v;
  op_attention_t op;
  attention_rows_t rows;
  tiles90_t tiles;
  float scale; /* log2(e) * op.scale */
} flash90_args_t;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* Named barriers: each warpgroup's turn, and its own threads. */
enum { FLASH90_TURN = 1, FLASH90_OWN = 5 };

/* Barriers of slot i: full and empty, of queries, keys and values. */
template <int D>
__device__ __forceinline__ uint32_t flash90_q_full(uint32_t base, uint32_t i) {
  return base + flash90_size<D>::barriers_at + 8 * i;
}
template <int D>
__device__ __forceinline__ uint32_t flash90_q_empty(uint32_t base, uint32_t i) {
  return flash90_q_full<D>(base, flash90_size<D>::rooms + i);
}
template <int D>
__device__ __forceinline__ uint32_t flash90_k_full(uint32_t base, uint32_t i) {
  return flash90_q_full<D>(base, 2 * flash90_size<D>::rooms + i);
}
template <int D>
__device__ __forceinline__ uint32_t flash90_k_empty(uint32_t base, uint32_t i) {
  return flash90_k_full<D>(base, flash90_size<D>::stages + i);
}
template <int D>
__device__ __forceinline__ uint32_t flash90_v_full(uint32_t base, uint32_t i) {
  return flash90_k_full<D>(base, 2 * flash90_size<D>::stages + i);
}
template <int D>
__device__ __forceinline__ uint32_t flash90_v_empty(uint32_t base, uint32_t i) {
  return flash90_k_full<D>(base, 3 * flash90_size<D>::stages + i);
}

/* Keys that some row of a tile sees. */
__device__ __forceinline__ int flash90_keys(const flash90_args_t &a, const tiles90_tile_t &tile) {
  return min(tile.position + a.tiles.positions, a.rows.q_len);
}

/* The step that holds the first key which some row of a tile sees. */
template <int D, bool WINDOW>
__device__ __forceinline__ int flash90_begin(const flash90_args_t &a, const tiles90_tile_t &tile) {
  constexpr int step = flash90_size<D>::keys;
  return WINDOW ? max(0, tile.position + 1 - a.rows.window) / step * step : 0;
}

/* m of a row that has seen no key: any score makes it be raised. */
static constexpr float flash90_none = -1e30f;

template <int D, bool WINDOW>
__device__ __forceinline__ void flash90_produce(const flash90_args_t &a, uint32_t base) {
  typedef flash90_size<D> size;
  tiles90_tile_t tile;
  uint32_t slot = 0, parity = 0;
  for (int round = 0; tiles90_find(a.tiles, round, &tile); round++) {
    int b = tile.pair / a.rows.kv_heads, kv_head = tile.pair % a.rows.kv_heads;
    uint32_t room = round % size::rooms, full = flash90_q_full<D>(base, room);
    hopper_wait(flash90_q_empty<D>(base, room), ~(round / size::rooms) & 1);
    hopper_expect(full, a.tiles.positions * a.rows.group * (D * 2));
    tiles90_copy<D>(a.q, base + room * size::q_bytes, size::q_half, full, kv_head * a.rows.group,
                    tile.position, b);
    int keys = flash90_keys(a, tile);
    for (int key = flash90_begin<D, WINDOW>(a, tile); key < keys; key += size::keys) {
      uint32_t k = base + size::key_at + slot * size::key_bytes;
      uint32_t v = base + size::value_at + slot * size::key_bytes;
      hopper_wait(flash90_k_empty<D>(base, slot), parity ^ 1);
      hopper_expect(flash90_k_full<D>(base, slot), size::key_bytes);
      tiles90_copy<D>(a.k, k, size::key_half, flash90_k_full<D>(base, slot), kv_head, key, b);
      hopper_wait(flash90_v_empty<D>(base, slot), parity ^ 1);
      hopper_expect(flash90_v_full<D>(base, slot), size::key_bytes);
      tiles90_copy<D>(a.v, v, size::key_half, flash90_v_full<D>(base, slot), kv_head, key, b);
      if (++slot == size::stages) slot = 0, parity ^= 1;
    }
  }
}

/* What a thread keeps of its two rows, the second the eighth after the first. */
typedef struct flash90_state {
  float shift[2]; /* log2(e) * scale * m */
  float sum[2];   /* this lane's columns */
} flash90_state_t;

/* The consuming thread, read anew: what rare work computes from it is not kept in registers all the
 * way. */
__device__ __forceinline__ int flash90_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread - HOPPER_GROUP;
}

/* It is the next warpgroup's turn; which that is, is not kept either. */
template <int D>
__device__ __forceinline__ void flash90_turn_end(int turn) {
  asm volatile(
      "{\n"
      ".reg .pred last;\n"
      ".reg .u32 next;\n"
      "setp.eq.u32 last, %0, %2;\n"
      "add.u32 next, %0, 1;\n"
      "@last mov.u32 next, %1;\n"
      "barrier.cta.arrive next, %3;\n"
      "}" ::"r"(turn),
      "n"((int)FLASH90_TURN), "n"(FLASH90_TURN + flash90_size<D>::groups - 1), "n"(2 * HOPPER_GROUP)
      : "memory");
}

/* Scores of keys that a row does not see become -infinity; position: the tile's first, of so many,
 * key: the first of these. */
template <bool WINDOW, int N>
__device__ __forceinline__ void flash90_mask(float (&s)[N], const attention_rows_t &rows,
                                             int position, int positions, int key) {
  bool all_see = key + 2 * N <= position + 1;
  if (all_see && (!WINDOW || key + rows.window >= position + positions)) return;
  int thread = flash90_thread(), t = thread & 3;
  int row = position * rows.group + thread / 32 * 16 + thread % 32 / 4;
  int seen0 = rows_query(rows, row) + 1 - key - 2 * t;
  int seen1 = rows_query(rows, row + 8) + 1 - key - 2 * t;
#pragma unroll
  for (int n = 0; n < N / 4; n++)
#pragma unroll
    for (int x = 0; x < 2; x++) {
      if (n * 8 + x >= seen0 || (WINDOW && n * 8 + x < seen0 - rows.window))
        s[4 * n + x] = -INFINITY;
      if (n * 8 + x >= seen1 || (WINDOW && n * 8 + x < seen1 - rows.window))
        s[4 * n + 2 + x] = -INFINITY;
    }
}

/* m becomes the largest of the row's scores so far; shrink: what the row's sums of values are still
 * to be scaled by. */
template <int N>
__device__ __forceinline__ void flash90_raise(flash90_state_t &state, const float (&s)[N],
                                              float scale, float (&shrink)[2]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float even = s[2 * half], odd = s[2 * half + 1];
#pragma unroll
    for (int n = 1; n < N / 4; n++) {
      even = fmaxf(even, s[4 * n + 2 * half]);
      odd = fmaxf(odd, s[4 * n + 2 * half + 1]);
    }
    float shift = fmaxf(state.shift[half], tile_row_max(fmaxf(even, odd)) * scale);
    shrink[half] = tile_exp2(state.shift[half] - shift);
    state.shift[half] = shift;
    state.sum[half] *= shrink[half];
  }
}

/* Scores become weights; sum: of each of the thread's rows. */
template <int N>
__device__ __forceinline__ void flash90_weigh(const flash90_state_t &state, float (&s)[N],
                                              float scale, float (&sum)[2]) {
  sum[0] = sum[1] = 0;
#pragma unroll
  for (int i = 0; i < N; i++) {
    s[i] = tile_exp2(fmaf(s[i], scale, -state.shift[i / 2 % 2]));
    sum[i / 2 % 2] += s[i];
  }
}

/* The scores once more, by one warp alone; queries: the tile's. */
template <typename T, int D>
__device__ __forceinline__ void flash90_again(float (&s)[flash90_size<D>::keys / 2],
                                              uint32_t queries, uint32_t keys) {
  uint32_t thread = (uint32_t)flash90_thread(), lane = thread % 32;
  uint32_t row = thread / 32 * 16 + lane % 16; /* from here as tile_by_rows, tile_by_columns */
  uint32_t x_at = queries + row * HOPPER_ROW_BYTES + (((lane >> 4) ^ (lane & 7)) << 4);
  uint32_t y_at = keys + ((lane >> 4) * 8 + (lane & 7)) * HOPPER_ROW_BYTES +
                  (((lane >> 3 & 1) ^ (lane & 7)) << 4);
  tiles90_zero(s);
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    uint32_t x[4];
    half_matrices(x, (x_at ^ (k % 4 << 5)) + k / 4 * flash90_size<D>::q_half);
#pragma unroll
    for (int n = 0; n < flash90_size<D>::keys / 16; n++) {
      uint32_t y[4];
      half_matrices(y, (y_at ^ (k % 4 << 5)) + k / 4 * flash90_size<D>::key_half +
                           n * 16 * HOPPER_ROW_BYTES);
      tile_mma<T>(reinterpret_cast<float(&)[4]>(s[8 * n]), x, y[0], y[1]);
      tile_mma<T>(reinterpret_cast<float(&)[4]>(s[8 * n + 4]), x, y[2], y[3]);
    }
  }
}

/* o and lse of a warp's 16 rows from row on. */
template <typename T, int D>
__device__ __forceinline__ void flash90_write(const flash90_args_t &a, const tiles90_tile_t &tile,
                                              const flash90_state_t &state,
                                              const float (&o)[D / 2], unsigned char *queries) {
  int inside = flash90_thread() / 32 * 16, row = tile.position * a.rows.group + inside;
  int end = min((tile.position + a.tiles.positions) * a.rows.group, a.rows.count);
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  int b = tile.pair / a.rows.kv_heads, kv_head = tile.pair % a.rows.kv_heads;
  float scale[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float sum = tile_row_sum(state.sum[half]);
    int r = row + half * 8 + g, head = rows_head(a.rows, kv_head, min(r, end - 1));
    rows_result_t result =
        rows_finish<T>(a.op.sinks, head, state.shift[half] * ATTENTION_LN_2, sum);
    scale[half] = result.scale;
    if (a.op.lse && t == 0 && r < end)
      a.op.lse[rows_out(a.rows, b, kv_head, r)] = result.lse;
  }
  int dim = (int)a.op.head_dim;
  int64_t stride = (int64_t)a.rows.heads * dim;
  T *to = (T *)a.op.o + (int64_t)b * a.rows.q_len * stride + (int64_t)kv_head * a.rows.group * dim;
  tiles90_store<T, D>(queries + inside * HOPPER_ROW_BYTES, flash90_size<D>::q_half, to, stride,
                      dim, a.rows, row, end, o, scale[0], scale[1]);
}

template <typename T, int D, bool WINDOW>
__device__ __forceinline__ void flash90_consume(const flash90_args_t &a, unsigned char *shared,
                                                uint32_t base, int group) {
  typedef flash90_size<D> size;
  bool signals = threadIdx.x % 32 == 0;
  int turn = FLASH90_TURN + group;
  if (group == size::groups - 1) flash90_turn_end<D>(turn);
  uint32_t count = 0; /* steps so far, of which the newest has the slot */
  tiles90_tile_t tile;
  for (int round = 0; tiles90_find(a.tiles, round, &tile); round++) {
    uint32_t room = round % size::rooms;
    uint32_t own = room * size::q_bytes + group * 64 * HOPPER_ROW_BYTES;
    constexpr float none = WINDOW ? flash90_none : -INFINITY;
    flash90_state_t state = {{none, none}, {0, 0}};
    float s[size::keys / 2], o[D / 2];
    uint32_t p[size::keys / 4];
    tiles90_zero(o);
    hopper_wait(flash90_q_full<D>(base, room), round / size::rooms & 1);
    uint32_t slot = count % size::stages;
    hopper_wait(flash90_k_full<D>(base, slot), count / size::stages & 1);
    hopper_hold(s);
    hopper_begin();
    tiles90_dot<T, D>(s, base + own, size::q_half, base + size::key_at + slot * size::key_bytes,
                      size::key_half);
    hopper_commit();
    hopper_done<0>();
    hopper_hold(s);
    if (signals) hopper_arrive(flash90_k_empty<D>(base, slot));
    int begin = flash90_begin<D, WINDOW>(a, tile);
    flash90_mask<WINDOW>(s, a.rows, tile.position, a.tiles.positions, begin);
    float shrink[2] = {0, 0};
    flash90_raise(state, s, a.scale, shrink);
    flash90_weigh(state, s, a.scale, state.sum);
    tiles90_round<T>(p, s);

    for (int key = begin + size::keys; key < flash90_keys(a, tile); key += size::keys) {
      uint32_t before = count % size::stages;
      hopper_wait(flash90_v_full<D>(base, before), count / size::stages & 1);
      slot = ++count % size::stages;
      hopper_wait(flash90_k_full<D>(base, slot), count / size::stages & 1);
      hopper_named_sync(turn, 2 * HOPPER_GROUP);
      /* so that the operands of the queries are made anew: registers have no room for them */
      if constexpr (D == 256) asm volatile("" : "+r"(own));
      hopper_hold(s);
      hopper_hold(o);
      hopper_hold(p);
      hopper_begin();
      tiles90_dot<T, D>(s, base + own, size::q_half, base + size::key_at + slot * size::key_bytes,
                        size::key_half);
      hopper_commit();
      tiles90_add<T, D>(o, p, base + size::value_at + before * size::key_bytes, size::key_half, 1);
      hopper_commit();
      hopper_done<1>();
      flash90_turn_end<D>(turn);
      hopper_hold(s);
      float sum[2];
      flash90_mask<WINDOW>(s, a.rows, tile.position, a.tiles.positions, key);
      flash90_weigh(state, s, a.scale, sum);
      shrink[0] = shrink[1] = 1;
      bool raised = __any_sync(0xffffffffu, fmaxf(sum[0], sum[1]) > flash90_most<T>);
      if (raised) {
        flash90_again<T, D>(s, base + room * size::q_bytes,
                      base + size::key_at + slot * size::key_bytes);
        flash90_mask<WINDOW>(s, a.rows, tile.position, a.tiles.positions, key);
        flash90_raise(state, s, a.scale, shrink);
        flash90_weigh(state, s, a.scale, sum);
      }
      state.sum[0] += sum[0], state.sum[1] += sum[1];
      __syncwarp();
      if (signals) hopper_arrive(flash90_k_empty<D>(base, slot));
      hopper_done<0>();
      hopper_hold(o);
      hopper_hold(s);
      if (signals) hopper_arrive(flash90_v_empty<D>(base, (count - 1) % size::stages));
      if (raised) {
#pragma unroll
        for (int i = 0; i < D / 2; i++) o[i] *= shrink[i / 2 % 2];
      }
      tiles90_round<T>(p, s);
    }
    slot = count % size::stages;
    hopper_wait(flash90_v_full<D>(base, slot), count / size::stages & 1);
    hopper_hold(o);
    hopper_hold(p);
    hopper_begin();
    tiles90_add<T, D>(o, p, base + size::value_at + slot * size::key_bytes, size::key_half, 1);
    hopper_commit();
    hopper_done<0>();
    hopper_hold(o);
    if (signals) hopper_arrive(flash90_v_empty<D>(base, slot));
    count++;

    hopper_named_sync(FLASH90_OWN + group, HOPPER_GROUP); /* all have read the queries */
    flash90_write<T, D>(a, tile, state, o, shared + room * size::q_bytes);
    hopper_fence();
    __syncwarp();
    if (signals) hopper_arrive(flash90_q_empty<D>(base, room));
  }
  if (group == 0) hopper_named_sync(turn, 2 * HOPPER_GROUP); /* the last group's last turn */
}

#endif

template <typename T, int D, bool WINDOW>
__global__ void __launch_bounds__(flash90_size<D>::threads, 1)
    flash90_forward(const __grid_constant__ flash90_args_t a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  typedef flash90_size<D> size;
  extern __shared__ unsigned char flash90_shared[];
  uint32_t start = tile_address(flash90_shared);
  uint32_t base = (start + HOPPER_ALIGN - 1) / HOPPER_ALIGN * HOPPER_ALIGN;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < size::rooms; i++) {
      hopper_barrier_init(flash90_q_full<D>(base, i), 1);
      hopper_barrier_init(flash90_q_empty<D>(base, i), size::consumer_warps);
    }
    for (uint32_t i = 0; i < size::stages; i++) {
      hopper_barrier_init(flash90_k_full<D>(base, i), 1);
      hopper_barrier_init(flash90_v_full<D>(base, i), 1);
      hopper_barrier_init(flash90_k_empty<D>(base, i), size::consumer_warps);
      hopper_barrier_init(flash90_v_empty<D>(base, i), size::consumer_warps);
    }
    hopper_barrier_ready();
  }
  /* Nothing may be copied to a tile's last rows; a warp treats its rows alike, so they must be the
   * same in every run. */
  for (int i = threadIdx.x * 16; i < size::key_at; i += size::threads * 16)
    *(uint4 *)(flash90_shared + (base - start) + i) = make_uint4(0, 0, 0, 0);
  hopper_fence();
  __syncthreads();
  if (threadIdx.x < HOPPER_GROUP) {
    hopper_give_registers<size::producer_registers>();
    if (threadIdx.x == 0) flash90_produce<D, WINDOW>(a, base);
  } else {
    hopper_take_registers<size::consumer_registers>();
    int group = __shfl_sync(0xffffffffu, threadIdx.x / HOPPER_GROUP, 0); /* one for the warp */
    flash90_consume<T, D, WINDOW>(a, flash90_shared + (base - start), base, group - 1);
  }
#endif
}

int attention_flash90_takes(const backend_device_t *device, const op_attention_t *op) {
  return device->capability == 90 && device->shared_bytes >= flash90_size<64>::shared &&
         device->shared_bytes >= flash90_size<128>::shared &&
         device->shared_bytes >= flash90_size<192>::shared &&
         device->shared_bytes >= flash90_size<256>::shared && !op->kv_len && !op->sequence &&
         op->heads / op->kv_heads <= TILES90_MOST_GROUP;
}

template <typename T, int D>
static nn_status_t flash90_run(backend_device_t *device, const op_attention_t *op) {
  typedef flash90_size<D> size;
  flash90_args_t a = {};
  a.op = *op;
  a.rows = attention_rows(op->q_len, op->heads, op->kv_heads, op->window, op->q_len);
  a.scale = op->scale * ATTENTION_LOG2_E;
  a.tiles = tiles90_make(&a.rows, op->batch, size::rows);
  hopper_tensor_t q =
      tiles90_tensor(op->q, op->batch, op->q_len, op->heads, op->head_dim, op->q_len * op->ldq,
                     op->ldq, a.tiles.positions, a.rows.group);
  hopper_tensor_t k = tiles90_tensor(op->k, op->batch, op->q_len, op->kv_heads, op->head_dim,
                                     op->kv_batch, op->ldkv, size::keys, 1);
  hopper_tensor_t v = k;
  v.base = op->v;
  CUDA_TRY(hopper_map(device, "attention", &q, &a.q));
  CUDA_TRY(hopper_map(device, "attention", &k, &a.k));
  CUDA_TRY(hopper_map(device, "attention", &v, &a.v));
  auto kernel =
      attention_windowed(&a.rows) ? flash90_forward<T, D, true> : flash90_forward<T, D, false>;
  CUDA_TRY(cuda_check(device, "attention",
                      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           size::shared)));
  kernel<<<tiles90_grid(device, &a.tiles), size::threads, size::shared, device->stream>>>(a);
  return NN_OK;
}

template <typename T>
static nn_status_t flash90_launch(backend_device_t *device, const op_attention_t *op) {
  return tiles90_by_head(op->head_dim,
                         [&](auto columns) { return flash90_run<T, columns.count>(device, op); });
}

nn_status_t attention_flash90(backend_device_t *device, const op_attention_t *op) {
  return CUDA_BY_HALF(op->act_dtype, flash90_launch, device, op);
}
