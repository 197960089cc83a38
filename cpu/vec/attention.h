/* Tiles of attention, shared by forward and backward.
 *
 * The rows of a tile are pairs (query, head of one key-value head's group), query-major, so a
 * key is read once for the whole group. Vectors run over rows: queries are packed transposed
 * [head_dim, rows], keys and values are read where they lie, one broadcast element at a time,
 * and softmax needs no sum over lanes. Score tiles are [keys, rows]. */
#ifndef NN_CPU_VEC_ATTENTION_H
#define NN_CPU_VEC_ATTENTION_H

#include "vec/ops_scratch.h"
#include "vec/outer.h"

enum {
  ATTENTION_DIM = 256,   /* largest head dim */
  ATTENTION_VECTORS = 4, /* of a tile's rows */
  ATTENTION_ROWS = ATTENTION_VECTORS * VEC_WIDTH
};
_Static_assert((int)ATTENTION_ROWS <= (int)ATTENTION_MAX_ROWS, "scratch counts shorter tiles");

/* A tile's rows: which query of the sequence and which head of q each is. */
typedef struct attention_rows {
  int64_t rows, last_query; /* rows in use; query of the last one */
  int64_t first_query;      /* row of q of the sequence's query 0 */
  int64_t head_dim;
  int64_t window;           /* keys that a row sees; 0: all */
  int32_t query[ATTENTION_ROWS], head[ATTENTION_ROWS];
} attention_rows_t;

/* Up to `most` rows from `first` on, of a sequence's q_len queries and the `group` heads of key-value
 * head kv_head. */
VEC_INLINE void attention_rows_set(attention_rows_t *tile, int64_t batch, int64_t kv_head,
                                   int64_t first, int64_t most, int64_t q_len, int64_t group,
                                   int64_t head_dim, int64_t window) {
  int64_t query = first / group, member = first % group;
  tile->rows = vec_min(most, q_len * group - first);
  tile->last_query = (first + tile->rows - 1) / group;
  tile->first_query = batch * q_len;
  tile->head_dim = head_dim;
  tile->window = window;
  for (int64_t r = 0; r < tile->rows; r++) {
    tile->query[r] = (int32_t)query;
    tile->head[r] = (int32_t)(kv_head * group + member);
    if (++member == group) {
      member = 0;
      query++;
    }
  }
}

/* Keys that the last row sees, when `past` keys are older than query 0: no row sees more. */
VEC_INLINE int64_t attention_seen(const attention_rows_t *tile, int64_t past) {
  return past + tile->last_query + 1;
}

/* The first key that a query sees whose own key is `own`. */
VEC_INLINE int64_t attention_first_key(int64_t window, int64_t own) {
  return window && own >= window ? own - window + 1 : 0;
}

/* The first key that the first row sees: no row sees older ones. */
VEC_INLINE int64_t attention_begin(const attention_rows_t *tile, int64_t past) {
  return attention_first_key(tile->window, past + tile->query[0]);
}

/* Elements from the start of a matrix [batch * q_len, heads * head_dim], stride ld, to row r. */
VEC_INLINE int64_t attention_offset(const attention_rows_t *tile, int64_t r, int64_t ld) {
  return (tile->first_query + tile->query[r]) * ld + tile->head[r] * tile->head_dim;
}

/* packed[d, r] = scale * x[row r, d], 0 for rows past the end; where plain is given also
 * plain[r, d] = scale * x[row r, d]. packed: [head_dim, ATTENTION_ROWS], plain: [rows,
 * head_dim], x: of dtype. */
VEC_INLINE void attention_pack(const attention_rows_t *tile, const void *x, int64_t ld, float scale,
                               float *packed, float *plain, int32_t dtype) {
  float room[VEC_WIDTH][ATTENTION_DIM];
  int64_t dim = tile->head_dim;
  for (int64_t r0 = 0; r0 < tile->rows; r0 += VEC_WIDTH) {
    const float *row[VEC_WIDTH];
    int64_t rows = vec_min(VEC_WIDTH, tile->rows - r0);
    for (int64_t r = 0; r < rows; r++)
      row[r] = vec_row(x, attention_offset(tile, r0 + r, ld), dim, dtype, room[r]);
    for (int64_t d = 0; d < dim; d += VEC_WIDTH) {
      int64_t count = vec_min(VEC_WIDTH, dim - d);
      vmask mask = vf_mask(count);
      vf block[VEC_WIDTH];
      for (int r = 0; r < VEC_WIDTH; r++) {
        block[r] = vf_zero();
        if (r >= rows) continue;
        block[r] = vf_mul(vf_load_mask(row[r] + d, mask), vf_set1(scale));
        if (plain) vf_store_mask(plain + (r0 + r) * dim + d, mask, block[r]);
      }
      vf_transpose(block);
      for (int c = 0; c < VEC_WIDTH; c++)
        if (c < count) vf_store(packed + (d + c) * ATTENTION_ROWS + r0, block[c]);
    }
  }
}

/* y[row r, d] = packed[d, r] * factor[r]: the way back. */
VEC_INLINE void attention_unpack(const attention_rows_t *tile, const float *packed,
                                 const float *factor, void *y, int64_t ld, int32_t dtype) {
  float room[VEC_WIDTH][ATTENTION_DIM];
  int64_t dim = tile->head_dim;
  for (int64_t r0 = 0; r0 < tile->rows; r0 += VEC_WIDTH) {
    float *row[VEC_WIDTH];
    int64_t rows = vec_min(VEC_WIDTH, tile->rows - r0);
    for (int64_t r = 0; r < rows; r++)
      row[r] = dtype == NN_F32 ? (float *)y + attention_offset(tile, r0 + r, ld) : room[r];
    vf scale = vf_load(factor + r0);
    for (int64_t d = 0; d < dim; d += VEC_WIDTH) {
      int64_t count = vec_min(VEC_WIDTH, dim - d);
      vmask mask = vf_mask(count);
      vf block[VEC_WIDTH];
      for (int c = 0; c < VEC_WIDTH; c++)
        block[c] =
            c < count ? vf_mul(vf_load(packed + (d + c) * ATTENTION_ROWS + r0), scale) : vf_zero();
      vf_transpose(block);
      for (int r = 0; r < VEC_WIDTH; r++)
        if (r < rows) vf_store_mask(row[r] + d, mask, block[r]);
    }
    for (int64_t r = 0; dtype != NN_F32 && r < rows; r++)
      vec_row_to_bf16(room[r], dim, (uint16_t *)y + attention_offset(tile, r0 + r, ld));
  }
}

/* Rows of keys or values as floats, ld apart. */
typedef struct attention_keys {
  const float *data;
  int64_t ld;
} attention_keys_t;

/* Rows j .. j + count - 1 of x, ld apart: where they lie, or widened in room [count, dim]. */
static inline attention_keys_t attention_keys(const void *x, int64_t ld, int64_t j, int64_t count,
                                              int64_t dim, int32_t dtype, float *room) {
  if (dtype == NN_F32) return (attention_keys_t){(const float *)x + j * ld, ld};
  for (int64_t i = 0; i < count; i++) vec_row(x, (j + i) * ld, dim, dtype, room + i * dim);
  return (attention_keys_t){room, dim};
}

/* last_key[r]: the last key that row r sees, `past` keys being older than query 0. Rows past the
 * end see what the last row sees. Floats, exact up to 2^24 keys. Returns the vectors of rows in
 * use. */
VEC_INLINE int64_t attention_last_keys(const attention_rows_t *tile, int64_t past,
                                       float *last_key) {
  int64_t vectors = vec_blocks(tile->rows, VEC_WIDTH);
  for (int64_t r = 0; r < vectors * VEC_WIDTH; r++)
    last_key[r] = (float)(past + tile->query[vec_min(r, tile->rows - 1)]);
  return vectors;
}

/* The first vector of rows of which any sees key j. Later rows see at least as much. */
VEC_INLINE int64_t attention_first_vector(const float *last_key, int64_t vectors, int64_t j) {
  int64_t v = 0;
  while (v < vectors - 1 && last_key[v * VEC_WIDTH + VEC_WIDTH - 1] < (float)j) v++;
  return v;
}

/* Of a vector of rows, whose last keys begin at last_key: whether some row does not see all of keys
 * j .. j + count - 1. */
VEC_INLINE int attention_masked(const float *last_key, int64_t window, int64_t j, int64_t count) {
  return last_key[0] < (float)(j + count - 1) ||
         (window && last_key[VEC_WIDTH - 1] - (float)window >= (float)j);
}

/* The scores of the rows that see key j; `other` for the others. */
VEC_INLINE vf attention_mask(vf score, vf other, vf last_key, int64_t window, int64_t j) {
  vf key = vf_set1((float)j);
  score = vf_select(vf_at_least(last_key, key), score, other);
  if (!window) return score;
  vf first = vf_sub(last_key, vf_set1((float)(window - 1)));
  return vf_select(vf_at_least(key, first), score, other);
}

#endif
