/* Attention backward of any shape and dtype, by fp32 arithmetic. With p = exp(s - lse) made
 * again and ds = p * (<dout, v> - delta): dv = p^T dout, dk = scale ds^T q, dq = scale ds k. The
 * same kernel twice, so that each output has one writer: a block holds a tile of keys and walks
 * over packed rows, or holds rows and walks over keys. Sums run over rows, or keys, in order. */
#include "attention/general.cuh"

struct general_bwd_t {
  op_attention_bwd_t op;
  attention_rows_t rows;
  const float2 *stats; /* lse and delta of packed rows */
  int pairs;           /* sequences times key-value heads */
  int vector;          /* rows of q, k, v and dout are whole aligned 16 bytes */
};

/* Rows and keys of a tile; it divides ATTENTION_STAT_ROWS. */
template <int D>
constexpr int general_bwd_tile = 4096 / D;
template <int D>
constexpr int general_bwd_bytes =
    (4 * general_bwd_tile<D> * general_pitch<D> + general_bwd_tile<D> * (general_bwd_tile<D> + 4)) *
    4;

/* s and ds hold <q, k> and <dout, v> of the held tile (r) and the other (c); they become p and the
 * gradient of the scaled score. */
template <int R, bool KEYS>
__device__ __forceinline__ void general_bwd_weights(const general_bwd_t &a, const float2 *stats,
                                                    float (&s)[R][R], float (&ds)[R][R], int held,
                                                    int other) {
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int c = 0; c < R; c++) {
      int mine = held + r * 16 + (int)threadIdx.x / 16;
      int theirs = other + c * 16 + (int)threadIdx.x % 16;
      int row = KEYS ? theirs : mine, key = KEYS ? mine : theirs;
      float2 stat = stats[row];
      int before = rows_query(a.rows, row) - key; /* keys between the row's own and this one */
      bool seen = row < a.rows.count && before >= 0 && before < a.rows.window;
      s[r][c] = seen ? expf(s[r][c] * a.op.scale - stat.x) : 0;
      ds[r][c] = seen ? s[r][c] * (ds[r][c] - stat.y) : 0;
    }
}

/* KEYS: k and v are held, dk and dv written. Else q and dout are held, dq written. Blocks: tiles
 * from the one that sees, or is seen by, the most; in each, sequences and key-value heads. */
template <typename T, int D, bool KEYS>
__global__ void __launch_bounds__(GENERAL_THREADS, 1) general_backward(const general_bwd_t a) {
  extern __shared__ __align__(16) float shared[];
  constexpr int TILE = general_bwd_tile<D>, R = TILE / 16, SIZE = TILE * general_pitch<D>;
  float *p = shared + 4 * SIZE;
  int pair = blockIdx.x % a.pairs, b = pair / a.rows.kv_heads, kv_head = pair % a.rows.kv_heads;
  int block = blockIdx.x / a.pairs, dim = (int)a.op.head_dim;
  int64_t ldo = (int64_t)a.rows.heads * dim, head = (int64_t)kv_head * a.rows.group * dim;
  int64_t first_row = (int64_t)b * a.rows.q_len, kv = b * a.op.kv_batch + (int64_t)kv_head * dim;
  int64_t queries = first_row * a.op.ldq + head;
  const T *q = (const T *)a.op.q + queries, *dout = (const T *)a.op.dout + first_row * ldo + head;
  const T *k = (const T *)a.op.k + kv, *v = (const T *)a.op.v + kv;
  const float2 *stats = a.stats + pair * attention_stat_count(a.rows);

  auto load_rows = [&](float *to, int first) {
    auto take = [&](int row) { return first + row < a.rows.count; };
    general_load<T, D, TILE>(to, dim, a.vector, [&](int row) {
      return take(row) ? q + rows_at(a.rows, first + row, a.op.ldq, dim) : NULL;
    });
    general_load<T, D, TILE>(to + SIZE, dim, a.vector, [&](int row) {
      return take(row) ? dout + rows_at(a.rows, first + row, ldo, dim) : NULL;
    });
  };
  auto load_keys = [&](float *to, int first) {
    general_load<T, D, TILE>(to, dim, a.vector, [&](int row) {
      return first + row < a.rows.q_len ? k + (first + row) * a.op.ldkv : NULL;
    });
    general_load<T, D, TILE>(to + SIZE, dim, a.vector, [&](int row) {
      return first + row < a.rows.q_len ? v + (first + row) * a.op.ldkv : NULL;
    });
  };

  float *mine = shared, *theirs = shared + 2 * SIZE;
  int held, begin, end;
  if (KEYS) {
    held = block * TILE;
    int64_t behind = ((int64_t)held + TILE - 1 + a.rows.window) * a.rows.group;
    begin = (int)((int64_t)held * a.rows.group / TILE * TILE);
    end = (int)min((int64_t)a.rows.count, behind);
    load_keys(mine, held);
  } else {
    held = ((int)gridDim.x / a.pairs - 1 - block) * TILE;
    begin = rows_first(a.rows, a.rows.q_len, held) / TILE * TILE;
    end = rows_query(a.rows, min(held + TILE, a.rows.count) - 1) + 1;
    load_rows(mine, held);
  }

  float4 first[R][D / 64], second[R][D / 64]; /* dk and dv; dq */
  general_zero(first);
  general_zero(second);
  for (int other = begin; other < end; other += TILE) {
    __syncthreads(); /* the last tile has been read */
    if (KEYS)
      load_rows(theirs, other);
    else
      load_keys(theirs, other);
    __syncthreads();
    float s[R][R], ds[R][R];
    general_dot<D>(s, mine, theirs, dim);
    general_dot<D>(ds, mine + SIZE, theirs + SIZE, dim);
    general_bwd_weights<R, KEYS>(a, stats, s, ds, held, other);
    if (KEYS) {
      general_put(p, s);
      general_add<D, R, R>(second, p, theirs + SIZE);
    }
    general_put(p, ds);
    general_add<D, R, R>(first, p, theirs);
  }

#pragma unroll
  for (int r = 0; r < R; r++) {
    int at = held + r * 16 + threadIdx.x / 16;
    if (at >= (KEYS ? a.rows.q_len : a.rows.count)) continue;
    if (KEYS) {
      int64_t to = kv + at * a.op.ldkv;
      general_store<T, D>((T *)a.op.dk + to, first[r], dim, a.op.scale);
      general_store<T, D>((T *)a.op.dv + to, second[r], dim, 1);
    } else {
      int64_t to = queries + rows_at(a.rows, at, a.op.ldq, dim);
      general_store<T, D>((T *)a.op.dq + to, first[r], dim, a.op.scale);
    }
  }
}

template <typename T, int D>
static void general_bwd_launch(backend_device_t *device, const general_bwd_t *a) {
  constexpr int bytes = general_bwd_bytes<D>;
  auto keys = general_backward<T, D, true>, queries = general_backward<T, D, false>;
  int64_t tile = general_bwd_tile<D>;
  unsigned key_blocks = (unsigned)(cuda_blocks(a->rows.q_len, tile) * a->pairs);
  unsigned row_blocks = (unsigned)(cuda_blocks(a->rows.count, tile) * a->pairs);
  cudaFuncSetAttribute(keys, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaFuncSetAttribute(queries, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  keys<<<key_blocks, GENERAL_THREADS, bytes, device->stream>>>(*a);
  queries<<<row_blocks, GENERAL_THREADS, bytes, device->stream>>>(*a);
}

template <typename T>
static void general_bwd_choose(backend_device_t *device, const general_bwd_t *a) {
  if (a->op.head_dim <= 64)
    general_bwd_launch<T, 64>(device, a);
  else if (a->op.head_dim <= 128)
    general_bwd_launch<T, 128>(device, a);
  else
    general_bwd_launch<T, 256>(device, a);
}

void attention_general_bwd(backend_device_t *device, const op_attention_bwd_t *op,
                           const float2 *stats) {
  general_bwd_t a = {*op,
                     attention_rows(op->q_len, op->heads, op->kv_heads, op->window, op->q_len),
                     stats, 0, 0};
  const void *pointers[] = {op->q, op->k, op->v, op->dout};
  const int64_t strides[] = {op->ldq, op->ldkv, op->kv_batch};
  a.pairs = (int)(op->batch * op->kv_heads);
  a.vector = attention_aligned(pointers, 4, strides, 3, op->head_dim, op->act_dtype);
  CUDA_BY_DTYPE(op->act_dtype, general_bwd_choose, device, &a);
}
