/* Clamping: y = x clamped to [-limit, limit], assigned; backward sets dx to 0 where x was
 * beyond. */
#include "vec/ops.h"

enum { CLIP_ROWS = 16 };

static void clip_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_clip_t *op = context;
  const float *x = op->x;
  float *y = op->y;
  vf most = vf_set1(op->limit), least = vf_set1(-op->limit);
  int64_t end = vec_min(op->n, (item + 1) * CLIP_ROWS);
  for (int64_t i = item * CLIP_ROWS; i < end; i++)
    for (int64_t j = 0; j < op->width; j += VEC_WIDTH) {
      int64_t left = op->width - j;
      vf value = vf_load_next(x + i * op->ldx + j, left);
      vf_store_next(y + i * op->ldy + j, left, vf_max(least, vf_min(most, value)));
    }
}

VEC_OP(clip, op_clip_t) {
  (void)scratch;
  op_clip_t job = *op;
  return vec_run(device, vec_blocks(op->n, CLIP_ROWS), op->n * op->width, clip_rows, &job);
}

static void clip_bwd_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_clip_bwd_t *op = context;
  const float *x = op->x;
  float *dx = op->dx;
  vf most = vf_set1(op->limit), least = vf_set1(-op->limit);
  int64_t end = vec_min(op->n, (item + 1) * CLIP_ROWS);
  for (int64_t i = item * CLIP_ROWS; i < end; i++)
    for (int64_t j = 0; j < op->width; j += VEC_WIDTH) {
      int64_t left = op->width - j;
      float *to = dx + i * op->lddx + j;
      vf value = vf_load_next(x + i * op->ldx + j, left), d = vf_load_next(to, left);
      d = vf_select(vf_at_least(most, value), d, vf_zero());
      vf_store_next(to, left, vf_select(vf_at_least(value, least), d, vf_zero()));
    }
}

VEC_OP(clip_bwd, op_clip_bwd_t) {
  (void)scratch;
  op_clip_bwd_t job = *op;
  return vec_run(device, vec_blocks(op->n, CLIP_ROWS), op->n * op->width, clip_bwd_rows, &job);
}
