/* Sums of columns, rows in order, times alpha; accumulates. Threads divide the columns. */
#include "ref.h"

enum { SUM_COLS = 64 };

static void column_sum_columns(void *context, int64_t item, int32_t thread) {
  const op_column_sum_t *op = context;
  (void)thread;
  double sum[SUM_COLS] = {0};
  int64_t begin = item * SUM_COLS, cols = ref_min(op->width - begin, SUM_COLS);
  for (int64_t row = 0; row < op->n; row++)
    for (int64_t c = 0; c < cols; c++)
      sum[c] += ref_load(op->x, op->act_dtype, row * op->ldx + begin + c);
  double alpha = backend_factor(op->alpha);
  for (int64_t c = 0; c < cols; c++)
    op->out[begin + c] = (float)(op->out[begin + c] + alpha * sum[c]);
}

nn_status_t ref_column_sum(backend_device_t *device, const op_column_sum_t *op,
                           backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->width, SUM_COLS), column_sum_columns, (void *)op);
}
