/* Attention forward by tensor cores (FlashAttention-2): T bf16 or fp16, head dim up to D. A block
 * takes 128 or 64 packed rows, 32 or 16 a warp, and walks over tiles of 64 or 32 keys from the
 * first seen; o = sum_j exp(s_j - m) v_j / sum_j exp(s_j - m), in base 2.
 *
 * m is the largest score only up to a slack: it is raised, and what was summed is scaled down, when
 * a score exceeds it by 8, a factor of 256. Any m gives the same quotient.
 * Sums run over keys in order, 16 at a time. */
#include "attention/tile.cuh"

/* Fragments of 16 rows of a warp: registers have room for the sums of so many. */
template <int D>
constexpr int flash_m = D <= 128 ? 2 : 1;
template <int D>
constexpr int flash_rows = TILE_WARPS * 16 * flash_m<D>;

/* Head dims up to 64 keep the queries' fragments in registers; wider ones have no room, read them
 * again, and take fewer keys at once. */
template <int D>
constexpr int flash_keys = D <= 64 ? 64 : 32;
template <int D>
constexpr int flash_bytes = (flash_rows<D> + 4 * flash_keys<D>) * tile_pitch<D>;

static constexpr float flash_slack = 8;

/* m of a row that has seen no key: far below any score, and no infinity to be subtracted from
 * one. */
static constexpr float flash_none = -1e30f;

/* What a thread keeps of its rows: m * 16 + half * 8 + g of its warp's. */
template <int M>
struct flash_state_t {
  float shift[M][2]; /* log2(e) * scale * m */
  float sum[M][2];   /* this lane's columns */
};

/* Scores of keys that a row does not see become -infinity. */
template <int M, int N>
__device__ __forceinline__ void flash_mask(float (&s)[M][N][4], const attention_rows_t &rows,
                                           int kv_len, int row, int key) {
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int seen = rows_visible(rows, kv_len, row + m * 16 + half * 8 + g) - key - 2 * t;
      int from = seen - rows.window;
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int x = 0; x < 2; x++)
          if (n * 8 + x >= seen || n * 8 + x < from) s[m][n][2 * half + x] = -INFINITY;
    }
}

template <int D, int M>
__device__ __forceinline__ void flash_raise(flash_state_t<M> &state, float (&acc)[M][D / 8][4],
                                            const float (&most)[M][2], float scale) {
  bool over = false;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      over |= most[m][half] * scale > state.shift[m][half] + flash_slack;
  if (!__any_sync(0xffffffffu, over)) return;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float top = tile_row_max(most[m][half]) * scale;
      float shift = fmaxf(state.shift[m][half], top);
      float shrink = tile_exp2(state.shift[m][half] - shift);
      state.shift[m][half] = shift;
      state.sum[m][half] *= shrink;
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        acc[m][n][2 * half] *= shrink;
        acc[m][n][2 * half + 1] *= shrink;
      }
    }
}

/* The scores of a tile of keys become weights, and acc takes the values. */
template <typename T, int D, int M, int N>
__device__ __forceinline__ void flash_take(flash_state_t<M> &state, float (&acc)[M][D / 8][4],
                                           float (&s)[M][N][4], uint32_t values, float scale) {
  float most[M][2];
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float top = s[m][0][2 * half];
#pragma unroll
      for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
      most[m][half] = top;
    }
  flash_raise<D>(state, acc, most, scale);
#pragma unroll
  for (int k = 0; k < N / 2; k++) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int n = 2 * k; n < 2 * k + 2; n++)
#pragma unroll
        for (int x = 0; x < 4; x++) {
          s[m][n][x] = tile_exp2(fmaf(s[m][n][x], scale, -state.shift[m][x / 2]));
          state.sum[m][x / 2] += s[m][n][x];
        }
    tile_add<T, D, M, N / 2>(acc, s, k, values + k * 16 * tile_pitch<D>);
  }
}

template <typename T, int D, int M>
__device__ __forceinline__ void flash_write(const op_attention_t &op, const attention_rows_t &rows,
                                            const rows_place_t &place, flash_state_t<M> &state,
                                            const float (&acc)[M][D / 8][4], unsigned char *tile,
                                            int row) {
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  float scale[M][2];
  int dim = (int)op.head_dim;
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float sum = tile_row_sum(state.sum[m][half]);
      int r = row + m * 16 + half * 8 + g;
      int head = r < rows.count ? rows_head(rows, place.kv_head, r) : 0;
      rows_result_t result =
          rows_finish<T>(op.sinks, head, state.shift[m][half] * ATTENTION_LN_2, sum);
      scale[m][half] = result.scale;
      if (op.lse && t == 0 && r < rows.count)
        op.lse[rows_out(rows, place.b, place.kv_head, r)] = result.lse;
    }
  int64_t stride = (int64_t)rows.heads * dim;
  T *o = (T *)op.o + (int64_t)place.b * rows.q_len * stride +
         (int64_t)place.kv_head * rows.group * dim;
  tile_store_rows<D, M>(tile, o, stride, dim, rows, row, acc, scale);
}

/* Blocks: tiles of rows from the last, which sees the most keys, to the first; in each, sequences
 * and key-value heads. scale: log2(e) * op.scale. */
template <typename T, int D>
__global__ void __launch_bounds__(TILE_THREADS, 2)
    flash_forward(const op_attention_t op, const attention_rows_t rows, int pairs, float scale) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int M = flash_m<D>, ROWS = flash_rows<D>, KEYS = flash_keys<D>;
  const rows_place_t place = rows_place(op, rows, blockIdx.x % pairs);
  int first = (gridDim.x / pairs - 1 - blockIdx.x / pairs) * ROWS;
  int warp = threadIdx.x >> 5, row = first + warp * 16 * M, dim = (int)op.head_dim;

  int begin = rows_first(rows, place.kv_len, first) / KEYS * KEYS;
  int end = rows_visible(rows, place.kv_len, min(first + ROWS, rows.count) - 1);
  int warp_begin = 0, warp_end = 0;    /* keys that some row of the warp sees */
  int all_see_from = 0, all_see = 0; /* that every row sees */
  if (row < rows.count) {
    int last = min(row + 16 * M, rows.count) - 1;
    warp_begin = rows_first(rows, place.kv_len, row);
    warp_end = rows_visible(rows, place.kv_len, last);
    all_see_from = rows_first(rows, place.kv_len, last);
    all_see = rows_visible(rows, place.kv_len, row);
  }

  const T *q = (const T *)op.q + (int64_t)place.b * rows.q_len * op.ldq +
                    (int64_t)place.kv_head * rows.group * dim;
  const T *k = (const T *)op.k + place.kv, *v = (const T *)op.v + place.kv;
  constexpr uint32_t key_bytes = KEYS * tile_pitch<D>;
  uint32_t queries = tile_address(shared), keys = queries + ROWS * tile_pitch<D>;
  uint32_t own = queries + warp * 16 * M * tile_pitch<D>;
  tile_load_rows<D, ROWS>(queries, q, op.ldq, dim, rows, first);
  tile_load<D, KEYS>(keys, k, op.ldkv, dim, begin, end);
  tile_load<D, KEYS>(keys + key_bytes, v, op.ldkv, dim, begin, end);
  tile_copy_end();

  constexpr bool keep = D <= 64;
  uint32_t a[keep ? D / 16 : 1][M][4];
  float acc[M][D / 8][4];
  flash_state_t<M> state = {};
#pragma unroll
  for (int m = 0; m < M; m++) state.shift[m][0] = state.shift[m][1] = flash_none;
  tile_zero(acc);
  uint32_t stage = keys;
  for (int key = begin; key < end; key += KEYS) {
    tile_copy_wait();
    __syncthreads(); /* this tile is there, and the other stage has been read */
    uint32_t next = stage == keys ? keys + 2 * key_bytes : keys;
    if (key + KEYS < end) {
      tile_load<D, KEYS>(next, k, op.ldkv, dim, key + KEYS, end);
      tile_load<D, KEYS>(next + key_bytes, v, op.ldkv, dim, key + KEYS, end);
      tile_copy_end();
    }
    if constexpr (keep)
      if (key == begin) tile_load_a<D, M>(a, own);
    if (key < warp_end && key + KEYS > warp_begin) {
      float s[M][KEYS / 8][4];
      tile_zero(s);
      if constexpr (keep)
        tile_dot<T, D, M, KEYS / 16>(s, a, stage);
      else
        tile_dot_shared<T, D, M, KEYS / 16>(s, own, stage);
      if (key + KEYS > all_see || key < all_see_from)
        flash_mask(s, rows, place.kv_len, row, key);
      flash_take<T, D>(state, acc, s, stage + key_bytes, scale);
    }
    stage = next;
  }
  tile_copy_wait(); /* without keys, the queries may still be on their way */
  __syncthreads();
  flash_write<T, D>(op, rows, place, state, acc, shared + warp * 16 * M * tile_pitch<D>, row);
}

template <typename T, int D>
static void flash_launch(backend_device_t *device, const op_attention_t *op) {
  int64_t keys = op->kv_len ? op->kv_batch / op->ldkv : op->q_len;
  attention_rows_t rows =
      attention_rows(op->q_len, op->heads, op->kv_heads, op->window, keys);
  int pairs = (int)(op->batch * op->kv_heads);
  unsigned blocks = (unsigned)(cuda_blocks(rows.count, flash_rows<D>) * pairs);
  cudaFuncSetAttribute(flash_forward<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       flash_bytes<D>);
  flash_forward<T, D><<<blocks, TILE_THREADS, flash_bytes<D>, device->stream>>>(
      *op, rows, pairs, op->scale * ATTENTION_LOG2_E);
}

template <typename T>
static void flash_choose(backend_device_t *device, const op_attention_t *op) {
  tile_by_head(op->head_dim,
               [&](auto columns) { flash_launch<T, columns.count>(device, op); });
}

void attention_flash(backend_device_t *device, const op_attention_t *op) {
  CUDA_BY_HALF(op->act_dtype, flash_choose, device, op);
}
