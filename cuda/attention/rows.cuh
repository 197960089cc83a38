/* Packed query rows on the device: where they lie and which keys they see. */
#ifndef NN_CUDA_ATTENTION_ROWS_CUH
#define NN_CUDA_ATTENTION_ROWS_CUH

#include "attention/attention.h"
#include "kernel.cuh"

__device__ __forceinline__ int rows_query(const attention_rows_t &rows, int r) {
  return (int)((__umulhi((uint32_t)r, rows.divide) + (uint32_t)r) >> rows.shift);
}

/* Elements from a sequence's first row and the group's first head to packed row r, where queries
 * are `stride` apart. */
__device__ __forceinline__ int64_t rows_at(const attention_rows_t &rows, int r, int64_t stride,
                                           int dim) {
  int i = rows_query(rows, r);
  return i * stride + (int64_t)(r - i * rows.group) * dim;
}

/* Row of o, of lse and of parts: (b * q_len + i) * A + head. */
__device__ __forceinline__ int64_t rows_out(const attention_rows_t &rows, int b, int kv_head,
                                            int r) {
  int i = rows_query(rows, r);
  return ((int64_t)b * rows.q_len + i) * rows.heads + kv_head * rows.group + (r - i * rows.group);
}

/* How many keys, from the first on, packed row r sees when its sequence has kv_len. */
__device__ __forceinline__ int rows_visible(const attention_rows_t &rows, int kv_len, int r) {
  return kv_len ? max(0, kv_len - rows.q_len + rows_query(rows, r) + 1) : 0;
}

/* The first key that packed row r sees: its last is rows_visible() - 1. */
__device__ __forceinline__ int rows_first(const attention_rows_t &rows, int kv_len, int r) {
  return max(0, rows_visible(rows, kv_len, r) - rows.window);
}

/* What makes a result of a row's sums: of values weighted by exp(score - largest), and of these
 * weights, to which the sink of its head comes; a row without keys stays without. */
typedef struct rows_result {
  float scale, lse; /* of the sum of values; log of all weights */
} rows_result_t;

template <typename T>
__device__ __forceinline__ rows_result_t rows_finish(const void *sinks, int head, float largest,
                                                     float sum) {
  if (sum == 0) return {0, -INFINITY};
  if (!sinks) return {1 / sum, largest + logf(sum)};
  float sink = to_float(((const T *)sinks)[head]), top = fmaxf(largest, sink);
  float own = expf(largest - top), all = sum * own + expf(sink - top);
  return {own / all, top + logf(all)};
}

/* The query head of packed row r. */
__device__ __forceinline__ int rows_head(const attention_rows_t &rows, int kv_head, int r) {
  return kv_head * rows.group + r - rows_query(rows, r) * rows.group;
}

/* What a block needs to know about its sequence and key-value head. */
typedef struct rows_place {
  int b, kv_head, kv_len;
  int64_t kv; /* elements from k and v to the first key */
} rows_place_t;

__device__ __forceinline__ rows_place_t rows_place(const op_attention_t &op,
                                                   const attention_rows_t &rows, int pair) {
  rows_place_t place;
  place.b = pair / rows.kv_heads;
  place.kv_head = pair % rows.kv_heads;
  place.kv_len = op.kv_len ? op.kv_len[place.b] : rows.q_len;
  int64_t sequence = op.sequence && place.kv_len ? op.sequence[place.b] : place.b;
  place.kv = sequence * op.kv_batch + place.kv_head * op.head_dim;
  return place;
}

/* The keys of one part among equal parts of those from `first` on and before `keys`, in whole
 * steps; empty: begin >= end. */
__device__ __forceinline__ void rows_part(int first, int keys, int parts, int part, int step,
                                          int *begin, int *end) {
  int share = ((keys - first + parts - 1) / parts + step - 1) / step * step;
  *begin = min(keys, first + part * share);
  *end = min(keys, *begin + share);
}

#endif
