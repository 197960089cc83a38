/* Gated linear units: y = weight act(g, u), assigned, and the gradients; see glu.h. dweight is
 * summed over vectors of F in order, then over the lanes. */
#include "vec/glu.h"

#include "vec/ops.h"

enum { GLU_ROWS = 8 };

VEC_INLINE void glu_row(const op_glu_t *op, int64_t row, int32_t dtype) {
  const op_glu_t args = *op; /* which what is stored cannot change */
  op = &args;
  vf weight = vf_set1(op->weight ? op->weight[row] : 1.0f);
  for (int64_t f = 0; f < op->ffn; f += VEC_WIDTH) {
    int64_t left = op->ffn - f, at = row * 2 * op->ffn + f;
    vf g = vf_load_as_next(op->x, at, left, dtype);
    vf u = vf_load_as_next(op->x, at + op->ffn, left, dtype);
    vf act = glu_act(g, u, op->limit);
    vf_store_as_next(op->y, row * op->ffn + f, left, dtype, vf_mul(weight, act));
  }
}

static void glu_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_glu_t *op = context;
  int64_t end = vec_min(op->n, (item + 1) * GLU_ROWS);
  for (int64_t row = item * GLU_ROWS; row < end; row++)
    VEC_BY_ACT(op->act_dtype, glu_row(op, row, VEC_ACT));
}

VEC_OP(glu, op_glu_t) {
  (void)scratch;
  op_glu_t job = *op;
  return vec_run(device, vec_blocks(op->n, GLU_ROWS), op->n * op->ffn, glu_rows, &job);
}

VEC_INLINE void glu_bwd_row(const op_glu_bwd_t *op, int64_t row, int32_t dtype) {
  const op_glu_bwd_t args = *op; /* which what is stored cannot change */
  op = &args;
  vf weight = vf_set1(op->weight ? op->weight[row] : 1.0f), dot = vf_zero();
  for (int64_t f = 0; f < op->ffn; f += VEC_WIDTH) {
    int64_t left = op->ffn - f, at = row * op->ffn + f;
    int64_t at_g = row * 2 * op->ffn + f, at_u = at_g + op->ffn;
    vf g = vf_load_as_next(op->x, at_g, left, dtype);
    vf u = vf_load_as_next(op->x, at_u, left, dtype);
    vf d = vf_load_as_next(op->dy, at, left, dtype);
    vf act = glu_act_bwd(&g, &u, vf_mul(weight, d), op->limit);
    dot = vf_fma(d, act, dot);
    vf_store_as_next(op->dx, at_g, left, dtype, g);
    vf_store_as_next(op->dx, at_u, left, dtype, u);
    if (op->y) vf_store_as_next(op->y, at, left, dtype, vf_mul(weight, act));
  }
  if (op->weight) op->dweight[row] = vf_sum(dot);
}

static void glu_bwd_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_glu_bwd_t *op = context;
  int64_t end = vec_min(op->n, (item + 1) * GLU_ROWS);
  for (int64_t row = item * GLU_ROWS; row < end; row++)
    VEC_BY_ACT(op->act_dtype, glu_bwd_row(op, row, VEC_ACT));
}

VEC_OP(glu_bwd, op_glu_bwd_t) {
  (void)scratch;
  op_glu_bwd_t job = *op;
  return vec_run(device, vec_blocks(op->n, GLU_ROWS), op->n * op->ffn, glu_bwd_rows, &job);
}
