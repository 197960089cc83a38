/* A gate per row: gate[t] = sigmoid(<x_t, w>), assigned. Backward, with d = dgate gate (1 - gate):
 * dx_t += d w, and dw += d x_t, rows in order. */
#include <math.h>

#include "ref.h"

enum { GATE_ROWS = 16, GATE_COLS = 64 };

static void row_gate_rows(void *context, int64_t item, int32_t thread) {
  const op_row_gate_t *op = context;
  (void)thread;
  int64_t end = ref_min(op->n, (item + 1) * GATE_ROWS);
  for (int64_t row = item * GATE_ROWS; row < end; row++) {
    double sum = 0;
    for (int64_t c = 0; c < op->width; c++)
      sum += (double)ref_load(op->x, op->act_dtype, row * op->width + c) *
             ref_load(op->w, op->weight_dtype, c);
    op->gate[row] = (float)(1 / (1 + exp(-sum)));
  }
}

nn_status_t ref_row_gate(backend_device_t *device, const op_row_gate_t *op,
                         backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->n, GATE_ROWS), row_gate_rows, (void *)op);
}

/* item: GATE_COLS columns. */
static void row_gate_bwd_columns(void *context, int64_t item, int32_t thread) {
  const op_row_gate_bwd_t *op = context;
  (void)thread;
  int64_t begin = item * GATE_COLS, cols = ref_min(op->width - begin, GATE_COLS);
  double sum[GATE_COLS] = {0};
  for (int64_t row = 0; row < op->n; row++) {
    int64_t at = row * op->width + begin;
    double gate = op->gate[row], d = op->dgate[row] * gate * (1 - gate);
    for (int64_t c = 0; c < cols; c++) {
      sum[c] += d * ref_load(op->x, op->act_dtype, at + c);
      double dx = ref_load(op->dx, op->act_dtype, at + c);
      dx += d * ref_load(op->w, op->weight_dtype, begin + c);
      ref_store(op->dx, op->act_dtype, at + c, (float)dx);
    }
  }
  for (int64_t c = 0; c < cols; c++) op->dw[begin + c] = (float)(op->dw[begin + c] + sum[c]);
}

nn_status_t ref_row_gate_bwd(backend_device_t *device, const op_row_gate_bwd_t *op,
                             backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->width, GATE_COLS), row_gate_bwd_columns, (void *)op);
}
