/* Copies of parts of heads from rows to rows, y[t, h] = x[t, h], assigned; where y has no step, the
 * sum over heads, in order. */
#include "ref.h"

enum { COPY_ROWS = 16 };

/* x, y: the row's first elements. */
static void copy_row(const op_copy_heads_t *op, int64_t x, int64_t y) {
  int32_t dtype = op->act_dtype;
  for (int64_t c = 0; c < op->width && !op->step_y; c++) {
    double sum = 0;
    for (int64_t h = 0; h < op->heads; h++) sum += ref_load(op->x, dtype, x + h * op->step_x + c);
    ref_store(op->y, dtype, y + c, (float)sum);
  }
  for (int64_t h = 0; h < op->heads && op->step_y; h++)
    for (int64_t c = 0; c < op->width; c++)
      ref_store(op->y, dtype, y + h * op->step_y + c,
                ref_load(op->x, dtype, x + h * op->step_x + c));
  for (int64_t h = 0; h < op->heads; h++)
    for (int64_t c = 0; c < op->zeros; c++)
      ref_store(op->y, dtype, y + h * op->step_y + op->width + c, 0);
}

static void copy_rows(void *context, int64_t item, int32_t thread) {
  const op_copy_heads_t *op = context;
  (void)thread;
  int64_t end = ref_min(op->n, (item + 1) * COPY_ROWS);
  for (int64_t row = item * COPY_ROWS; row < end; row++)
    copy_row(op, row * op->ldx, row * op->ldy);
}

nn_status_t ref_copy_heads(backend_device_t *device, const op_copy_heads_t *op,
                           backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->n, COPY_ROWS), copy_rows, (void *)op);
}
