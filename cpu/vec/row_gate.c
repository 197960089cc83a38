/* A gate per row: gate[t] = sigmoid(<x_t, w>), assigned. Backward, with d = dgate gate (1 - gate):
 * dx_t += d w, and dw += d x_t, rows in order; split over strips of columns. */
#include <math.h>

#include "vec/ops.h"

enum { GATE_ROWS = 16, GATE_STRIP = 4 * VEC_WIDTH };

VEC_INLINE float row_gate_dot(const op_row_gate_t *op, const float *x, int32_t dtype) {
  vf sum = vf_zero();
  for (int64_t j = 0; j < op->width; j += VEC_WIDTH) {
    int64_t left = op->width - j;
    sum = vf_fma(vf_load_next(x + j, left), vf_load_weight_next(op->w, j, left, dtype), sum);
  }
  return vf_sum(sum);
}

static void row_gate_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_row_gate_t *op = context;
  const float *x = op->x;
  int64_t end = vec_min(op->n, (item + 1) * GATE_ROWS);
  for (int64_t i = item * GATE_ROWS; i < end; i++) {
    float dot;
    VEC_BY_DTYPE(op->weight_dtype, dot = row_gate_dot(op, x + i * op->width, VEC_DTYPE));
    op->gate[i] = 1.0f / (1.0f + expf(-dot));
  }
}

VEC_OP(row_gate, op_row_gate_t) {
  (void)scratch;
  op_row_gate_t job = *op;
  return vec_run(device, vec_blocks(op->n, GATE_ROWS), op->n * op->width, row_gate_rows, &job);
}

static void row_gate_bwd_strip(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_row_gate_bwd_t *op = context;
  const float *x = op->x;
  float *dx = op->dx;
  int64_t end = vec_min(op->width, (item + 1) * GATE_STRIP);
  for (int64_t j = item * GATE_STRIP; j < end; j += VEC_WIDTH) {
    int64_t left = op->width - j;
    vf w = vf_load_weight_next(op->w, j, left, op->weight_dtype), sum = vf_zero();
    for (int64_t i = 0; i < op->n; i++) {
      vf d = vf_set1(op->dgate[i] * op->gate[i] * (1.0f - op->gate[i]));
      float *to = dx + i * op->width + j;
      sum = vf_fma(d, vf_load_next(x + i * op->width + j, left), sum);
      vf_store_next(to, left, vf_fma(d, w, vf_load_next(to, left)));
    }
    vf_store_next(op->dw + j, left, vf_add(vf_load_next(op->dw + j, left), sum));
  }
}

VEC_OP(row_gate_bwd, op_row_gate_bwd_t) {
  (void)scratch;
  op_row_gate_bwd_t job = *op;
  return vec_run(device, vec_blocks(op->width, GATE_STRIP), op->n * op->width, row_gate_bwd_strip,
                 &job);
}
