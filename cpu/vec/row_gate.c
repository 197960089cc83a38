/* A gate per row: gate[t] = sigmoid(<x_t, w>), assigned. Backward, with d = dgate gate (1 - gate):
 * dx_t += d w, and dw += d x_t, rows in order; split over strips of columns. */
#include <math.h>

#include "vec/ops.h"

enum { GATE_ROWS = 16, GATE_STRIP = 4 * VEC_WIDTH };

VEC_INLINE float row_gate_dot(const op_row_gate_t *op, int64_t at, int32_t dtype, int32_t act) {
  vf sum = vf_zero();
  for (int64_t j = 0; j < op->width; j += VEC_WIDTH) {
    int64_t left = op->width - j;
    sum = vf_fma(vf_load_as_next(op->x, at + j, left, act),
                 vf_load_as_next(op->w, j, left, dtype), sum);
  }
  return vf_sum(sum);
}

static void row_gate_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_row_gate_t *op = context;
  int64_t end = vec_min(op->n, (item + 1) * GATE_ROWS);
  for (int64_t i = item * GATE_ROWS; i < end; i++) {
    float dot;
    VEC_BY_DTYPES(op->weight_dtype, op->act_dtype,
                  dot = row_gate_dot(op, i * op->width, VEC_DTYPE, VEC_ACT));
    op->gate[i] = 1.0f / (1.0f + expf(-dot));
  }
}

VEC_OP(row_gate, op_row_gate_t) {
  (void)scratch;
  op_row_gate_t job = *op;
  return vec_run(device, vec_blocks(op->n, GATE_ROWS), op->n * op->width, row_gate_rows, &job);
}

VEC_INLINE void row_gate_bwd_columns(const op_row_gate_bwd_t *op, int64_t begin, int64_t end,
                                     int32_t act) {
  for (int64_t j = begin; j < end; j += VEC_WIDTH) {
    int64_t left = op->width - j;
    vf w = vf_load_as_next(op->w, j, left, op->weight_dtype), sum = vf_zero();
    for (int64_t i = 0; i < op->n; i++) {
      vf d = vf_set1(op->dgate[i] * op->gate[i] * (1.0f - op->gate[i]));
      int64_t at = i * op->width + j;
      sum = vf_fma(d, vf_load_as_next(op->x, at, left, act), sum);
      vf dx = vf_fma(d, w, vf_load_as_next(op->dx, at, left, act));
      vf_store_as_next(op->dx, at, left, act, dx);
    }
    vf_store_next(op->dw + j, left, vf_add(vf_load_next(op->dw + j, left), sum));
  }
}

static void row_gate_bwd_strip(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_row_gate_bwd_t *op = context;
  int64_t begin = item * GATE_STRIP, end = vec_min(op->width, begin + GATE_STRIP);
  VEC_BY_ACT(op->act_dtype, row_gate_bwd_columns(op, begin, end, VEC_ACT));
}

VEC_OP(row_gate_bwd, op_row_gate_bwd_t) {
  (void)scratch;
  op_row_gate_bwd_t job = *op;
  return vec_run(device, vec_blocks(op->width, GATE_STRIP), op->n * op->width, row_gate_bwd_strip,
                 &job);
}
