/* Clamping: y = x clamped to [-limit, limit], assigned; backward sets dx to 0 where x was
 * beyond. */
#include "vec/ops.h"

enum { CLIP_ROWS = 16 };

VEC_INLINE void clip_row(const op_clip_t *op, int64_t i, int32_t act) {
  const op_clip_t args = *op; /* which what is stored cannot change */
  op = &args;
  vf most = vf_set1(op->limit), least = vf_set1(-op->limit);
  for (int64_t j = 0; j < op->width; j += VEC_WIDTH) {
    int64_t left = op->width - j;
    vf value = vf_load_as_next(op->x, i * op->ldx + j, left, act);
    vf_store_as_next(op->y, i * op->ldy + j, left, act, vf_max(least, vf_min(most, value)));
  }
}

static void clip_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_clip_t *op = context;
  int64_t end = vec_min(op->n, (item + 1) * CLIP_ROWS);
  for (int64_t i = item * CLIP_ROWS; i < end; i++)
    VEC_BY_ACT(op->act_dtype, clip_row(op, i, VEC_ACT));
}

VEC_OP(clip, op_clip_t) {
  (void)scratch;
  op_clip_t job = *op;
  return vec_run(device, vec_blocks(op->n, CLIP_ROWS), op->n * op->width, clip_rows, &job);
}

VEC_INLINE void clip_bwd_row(const op_clip_bwd_t *op, int64_t i, int32_t act) {
  const op_clip_bwd_t args = *op; /* which what is stored cannot change */
  op = &args;
  vf most = vf_set1(op->limit), least = vf_set1(-op->limit);
  for (int64_t j = 0; j < op->width; j += VEC_WIDTH) {
    int64_t left = op->width - j, to = i * op->lddx + j;
    vf value = vf_load_as_next(op->x, i * op->ldx + j, left, act);
    vf d = vf_load_as_next(op->dx, to, left, act);
    d = vf_select(vf_at_least(most, value), d, vf_zero());
    d = vf_select(vf_at_least(value, least), d, vf_zero());
    vf_store_as_next(op->dx, to, left, act, d);
  }
}

static void clip_bwd_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_clip_bwd_t *op = context;
  int64_t end = vec_min(op->n, (item + 1) * CLIP_ROWS);
  for (int64_t i = item * CLIP_ROWS; i < end; i++)
    VEC_BY_ACT(op->act_dtype, clip_bwd_row(op, i, VEC_ACT));
}

VEC_OP(clip_bwd, op_clip_bwd_t) {
  (void)scratch;
  op_clip_bwd_t job = *op;
  return vec_run(device, vec_blocks(op->n, CLIP_ROWS), op->n * op->width, clip_bwd_rows, &job);
}
