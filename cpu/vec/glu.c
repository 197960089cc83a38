/* Gated linear units: y = weight act(g, u), assigned, and the gradients; see glu.h. dweight is
 * summed over vectors of F in order, then over the lanes. */
#include "vec/glu.h"

#include "vec/ops.h"

enum { GLU_ROWS = 8 };

static void glu_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_glu_t *op = context;
  int64_t end = vec_min(op->n, (item + 1) * GLU_ROWS);
  for (int64_t row = item * GLU_ROWS; row < end; row++) {
    const float *g = op->x;
    float *y = op->y;
    g += row * 2 * op->ffn, y += row * op->ffn;
    vf weight = vf_set1(op->weight ? op->weight[row] : 1.0f);
    for (int64_t f = 0; f < op->ffn; f += VEC_WIDTH) {
      int64_t left = op->ffn - f;
      vf act = glu_act(vf_load_next(g + f, left), vf_load_next(g + op->ffn + f, left), op->limit);
      vf_store_next(y + f, left, vf_mul(weight, act));
    }
  }
}

VEC_OP(glu, op_glu_t) {
  (void)scratch;
  op_glu_t job = *op;
  return vec_run(device, vec_blocks(op->n, GLU_ROWS), op->n * op->ffn, glu_rows, &job);
}

static void glu_bwd_row(const op_glu_bwd_t *op, int64_t row) {
  const float *x = op->x, *dy = op->dy;
  float *dx = op->dx, *y = op->y;
  x += row * 2 * op->ffn, dx += row * 2 * op->ffn, dy += row * op->ffn;
  vf weight = vf_set1(op->weight ? op->weight[row] : 1.0f), dot = vf_zero();
  for (int64_t f = 0; f < op->ffn; f += VEC_WIDTH) {
    int64_t left = op->ffn - f;
    vf g = vf_load_next(x + f, left), u = vf_load_next(x + op->ffn + f, left);
    vf d = vf_load_next(dy + f, left), act = glu_act_bwd(&g, &u, vf_mul(weight, d), op->limit);
    dot = vf_fma(d, act, dot);
    vf_store_next(dx + f, left, g);
    vf_store_next(dx + op->ffn + f, left, u);
    if (y) vf_store_next(y + row * op->ffn + f, left, vf_mul(weight, act));
  }
  if (op->weight) op->dweight[row] = vf_sum(dot);
}

static void glu_bwd_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_glu_bwd_t *op = context;
  int64_t end = vec_min(op->n, (item + 1) * GLU_ROWS);
  for (int64_t row = item * GLU_ROWS; row < end; row++) glu_bwd_row(op, row);
}

VEC_OP(glu_bwd, op_glu_bwd_t) {
  (void)scratch;
  op_glu_bwd_t job = *op;
  return vec_run(device, vec_blocks(op->n, GLU_ROWS), op->n * op->ffn, glu_bwd_rows, &job);
}
