/* Attention forward of any shape and dtype, by fp32 arithmetic: o = softmax(scale q k^T,
 * causal) v. A block takes a tile of packed rows and walks over tiles of keys with a running
 * maximum and a running sum (FlashAttention). Few rows take smaller tiles, and against a cache
 * several blocks share the keys. Sums run over keys in order. */
#include "attention/general.cuh"

struct general_t {
  op_attention_t op;
  attention_rows_t rows;
  attention_parts_t parts;
  int pairs;  /* sequences times key-value heads */
  int vector; /* rows of q, k and v are whole aligned 16 bytes */
};

/* Keys of a tile: what fits beside its rows in 96 KiB of shared memory. */
template <int D>
constexpr int general_keys = 4096 / D;
template <int D, int R>
constexpr int general_bytes =
    ((16 * R + 2 * general_keys<D>)*general_pitch<D> + 16 * R * (general_keys<D> + 4)) * 4;

/* Scores become weights; what was summed so far is scaled to the new largest score. A row sees the
 * tile's keys from `from` on and before `seen`. */
template <int D, int R, int C>
__device__ __forceinline__ void general_weights(float (&s)[R][C], float (&largest)[R],
                                                float (&sum)[R], float4 (&acc)[R][D / 64],
                                                const int (&from)[R], const int (&seen)[R],
                                                float scale) {
#pragma unroll
  for (int r = 0; r < R; r++) {
    float top = -INFINITY;
#pragma unroll
    for (int c = 0; c < C; c++) {
      int key = (int)threadIdx.x % 16 + c * 16;
      s[r][c] = key >= from[r] && key < seen[r] ? s[r][c] * scale : -INFINITY;
      top = fmaxf(top, s[r][c]);
    }
    top = fmaxf(largest[r], general_row_max(top));
    float base = top == -INFINITY ? 0 : top; /* without keys so far, weights are 0 */
    float shrink = expf(largest[r] - base);
    largest[r] = top;
    sum[r] *= shrink;
#pragma unroll
    for (int c = 0; c < C; c++) {
      s[r][c] = expf(s[r][c] - base);
      sum[r] += s[r][c];
    }
#pragma unroll
    for (int c = 0; c < D / 64; c++) {
      acc[r][c].x *= shrink, acc[r][c].y *= shrink;
      acc[r][c].z *= shrink, acc[r][c].w *= shrink;
    }
  }
}

template <typename T, int D, int R>
__device__ __forceinline__ void general_write(const general_t &a, const rows_place_t &place,
                                              int row, int part, const float4 (&acc)[R][D / 64],
                                              const float (&largest)[R], const float (&sum)[R]) {
  int dim = (int)a.op.head_dim;
#pragma unroll
  for (int r = 0; r < R; r++) {
    float weight = general_row_sum(sum[r]);
    int at = row + r * 16 + threadIdx.x / 16;
    if (at >= a.rows.count) continue;
    int64_t out = rows_out(a.rows, place.b, place.kv_head, at);
    if (a.parts.count > 1) {
      out += (int64_t)part * a.op.batch * a.rows.q_len * a.rows.heads;
      if (weight != 0) general_store<float, D>(a.parts.sum + out * dim, acc[r], dim, 1);
      if (threadIdx.x % 16 == 0) a.parts.weight[out] = make_float2(largest[r], weight);
    } else {
      int head = rows_head(a.rows, place.kv_head, at);
      rows_result_t result = rows_finish<T>(a.op.sinks, head, largest[r], weight);
      general_store<T, D>((T *)a.op.o + out * dim, acc[r], dim, result.scale);
      if (a.op.lse && threadIdx.x % 16 == 0) a.op.lse[out] = result.lse;
    }
  }
}

/* Blocks: tiles of rows from the last, which sees the most keys, to the first; in each, sequences
 * and key-value heads; in each, parts. */
template <typename T, int D, int R>
__global__ void __launch_bounds__(GENERAL_THREADS, D == 256 || R == 1 ? 2 : 0)
    general_forward(const general_t a) {
  extern __shared__ __align__(16) float shared[];
  constexpr int ROWS = 16 * R, KEYS = general_keys<D>, C = KEYS / 16;
  float *q = shared, *k = q + ROWS * general_pitch<D>, *v = k + KEYS * general_pitch<D>;
  float *p = v + KEYS * general_pitch<D>;
  int parts = (int)a.parts.count, part = blockIdx.x % parts, tile = blockIdx.x / parts / a.pairs;
  const rows_place_t place = rows_place(a.op, a.rows, blockIdx.x / parts % a.pairs);
  int dim = (int)a.op.head_dim, first = ((int)gridDim.x / parts / a.pairs - 1 - tile) * ROWS;

  int begin, end, starts[R], sees[R];
  int last = min(first + ROWS, a.rows.count) - 1;
  rows_part(rows_first(a.rows, place.kv_len, first), rows_visible(a.rows, place.kv_len, last),
            parts, part, KEYS, &begin, &end);
#pragma unroll
  for (int r = 0; r < R; r++) {
    int row = first + r * 16 + (int)threadIdx.x / 16;
    starts[r] = rows_first(a.rows, place.kv_len, row);
    sees[r] = rows_visible(a.rows, place.kv_len, row);
  }

  const T *q_rows = (const T *)a.op.q + (int64_t)place.b * a.rows.q_len * a.op.ldq +
                    (int64_t)place.kv_head * a.rows.group * dim;
  const T *keys = (const T *)a.op.k + place.kv, *values = (const T *)a.op.v + place.kv;
  general_load<T, D, ROWS>(q, dim, a.vector, [&](int row) {
    return first + row < a.rows.count ? q_rows + rows_at(a.rows, first + row, a.op.ldq, dim) : NULL;
  });

  float largest[R], sum[R];
  float4 acc[R][D / 64];
  general_zero(acc);
#pragma unroll
  for (int r = 0; r < R; r++) largest[r] = -INFINITY, sum[r] = 0;
  for (int key = begin; key < end; key += KEYS) {
    __syncthreads(); /* the last tile has been read */
    general_load<T, D, KEYS>(k, dim, a.vector, [&](int row) {
      return key + row < end ? keys + (key + row) * a.op.ldkv : NULL;
    });
    general_load<T, D, KEYS>(v, dim, a.vector, [&](int row) {
      return key + row < end ? values + (key + row) * a.op.ldkv : NULL;
    });
    __syncthreads();
    float s[R][C];
    int from[R], seen[R];
#pragma unroll
    for (int r = 0; r < R; r++) from[r] = starts[r] - key, seen[r] = min(end, sees[r]) - key;
    general_dot<D>(s, q, k, dim);
    general_weights<D>(s, largest, sum, acc, from, seen, a.op.scale);
    general_put(p, s);
    general_add<D, R, C>(acc, p, v);
  }
  general_write<T, D>(a, place, first, part, acc, largest, sum);
}

/* ---- launches -------------------------------------------------------------------------------- */

int64_t attention_general_rows(int64_t count, int64_t head_dim) {
  return count <= 16 ? 16 : head_dim <= 128 ? 64 : 32;
}

template <typename T, int D, int R>
static void general_launch(backend_device_t *device, const general_t *a) {
  constexpr int bytes = general_bytes<D, R>;
  int64_t blocks = cuda_blocks(a->rows.count, 16 * R) * a->pairs * a->parts.count;
  cudaFuncSetAttribute(general_forward<T, D, R>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       bytes);
  general_forward<T, D, R><<<(unsigned)blocks, GENERAL_THREADS, bytes, device->stream>>>(*a);
}

template <typename T, int D, int MOST>
static void general_size(backend_device_t *device, const general_t *a) {
  if (attention_general_rows(a->rows.count, D) == 16)
    general_launch<T, D, 1>(device, a);
  else
    general_launch<T, D, MOST>(device, a);
}

template <typename T>
static void general_choose(backend_device_t *device, const general_t *a) {
  if (a->op.head_dim <= 64)
    general_size<T, 64, 4>(device, a);
  else if (a->op.head_dim <= 128)
    general_size<T, 128, 4>(device, a);
  else
    general_size<T, 256, 2>(device, a);
}

void attention_general(backend_device_t *device, const op_attention_t *op,
                       const attention_parts_t *parts) {
  int64_t keys = op->kv_len ? op->kv_batch / op->ldkv : op->q_len;
  general_t a = {*op, attention_rows(op->q_len, op->heads, op->kv_heads, op->window, keys), *parts,
                 0, 0};
  const void *pointers[] = {op->q, op->k, op->v};
  const int64_t strides[] = {op->ldq, op->ldkv, op->kv_batch};
  a.pairs = (int)(op->batch * op->kv_heads);
  a.vector = attention_aligned(pointers, 3, strides, 3, op->head_dim, op->act_dtype);
  CUDA_BY_DTYPE(op->act_dtype, general_choose, device, &a);
}
