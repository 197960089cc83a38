/* Rotary positions, in place: element i of the first half of a head's first rotary_dim elements and
 * element i of the second, or elements 2i and 2i + 1, are turned by the angle that the table gives
 * for (position, i); inverse is the transpose. */
#include "vec/ops.h"

enum { ROPE_ROWS = 16 };

VEC_INLINE void rope_head(void *x, int64_t at, const float *table, int64_t half, int32_t inverse,
                          int32_t act) {
  vf sign = vf_set1(inverse ? -1.0f : 1.0f);
  for (int64_t i = 0; i < half; i += VEC_WIDTH) {
    int64_t left = half - i;
    vf a = vf_load_as_next(x, at + i, left, act), b = vf_load_as_next(x, at + half + i, left, act);
    vf c = vf_load_next(table + i, left);
    vf s = vf_mul(sign, vf_load_next(table + half + i, left));
    vf_store_as_next(x, at + i, left, act, vf_fnma(b, s, vf_mul(a, c)));
    vf_store_as_next(x, at + half + i, left, act, vf_fma(a, s, vf_mul(b, c)));
  }
}

/* Heads of one vector, whose halves are turned at once: reads of the next head would wait for a
 * write of half a vector. */
VEC_INLINE void rope_vectors(void *x, int64_t at, int64_t step, int64_t heads, const float *table,
                             int32_t inverse, int32_t act) {
  vmask first = vf_mask(VEC_WIDTH / 2);
  vf sign = vf_set1(inverse ? -1.0f : 1.0f);
  vf both = vf_load(table), swapped = vf_swap(both), c = vf_select(first, both, swapped);
  vf s = vf_mul(vf_select(first, vf_sub(vf_zero(), sign), sign), vf_select(first, swapped, both));
  for (int64_t head = 0; head < heads; head++, at += step) {
    vf v = vf_load_as(x, at, act);
    vf_store_as_next(x, at, VEC_WIDTH, act, vf_fma(vf_swap(v), s, vf_mul(v, c)));
  }
}

VEC_INLINE void rope_pairs(void *x, int64_t at, const float *table, int64_t half, int32_t inverse,
                           int32_t act) {
  float signs[VEC_WIDTH];
  for (int i = 0; i < VEC_WIDTH; i++) signs[i] = i % 2 == (inverse ? 1 : 0) ? -1.0f : 1.0f;
  vf sign = vf_load(signs);
  for (int64_t i = 0; i < half; i += VEC_WIDTH / 2) {
    int64_t left = half - i;
    vf v = vf_load_as_next(x, at + 2 * i, 2 * left, act);
    vf c = vf_twice(vf_load_next(table + i, left));
    vf s = vf_mul(sign, vf_twice(vf_load_next(table + half + i, left)));
    vf_store_as_next(x, at + 2 * i, 2 * left, act, vf_fma(vf_swap_pairs(v), s, vf_mul(v, c)));
  }
}

static void rope_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_rope_t *op = context;
  int64_t width = op->rotary_dim ? op->rotary_dim : op->head_dim;
  int64_t end = vec_min(op->n, (item + 1) * ROPE_ROWS);
  for (int64_t i = item * ROPE_ROWS; i < end; i++) {
    const float *table = op->table + op->position[i] * width;
    if (width == VEC_WIDTH && !op->interleaved) {
      VEC_BY_ACT(op->act_dtype, rope_vectors(op->x, i * op->ldx, op->head_dim, op->heads, table,
                                             op->inverse, VEC_ACT));
      continue;
    }
    for (int64_t head = 0; head < op->heads; head++) {
      int64_t at = i * op->ldx + head * op->head_dim;
      if (op->interleaved)
        VEC_BY_ACT(op->act_dtype, rope_pairs(op->x, at, table, width / 2, op->inverse, VEC_ACT));
      else
        VEC_BY_ACT(op->act_dtype, rope_head(op->x, at, table, width / 2, op->inverse, VEC_ACT));
    }
  }
}

VEC_OP(rope, op_rope_t) {
  (void)scratch;
  op_rope_t job = *op;
  return vec_run(device, vec_blocks(op->n, ROPE_ROWS), op->n * op->heads * op->head_dim, rope_rows,
                 &job);
}
