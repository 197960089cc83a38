/* RMS norm and layer norm over rows of [n, hidden].
 *
 * Forward assigns y = xhat w + b with xhat = (x - mean) rstd (mean 0 for RMS). Backward, g = dy w:
 *   dx += rstd (g - mean(g) - xhat mean(g xhat)), without mean(g) for RMS,
 *   dw += sum of dy xhat and db += sum of dy over the rows, in order.
 * Row sums run over columns in order. */
#include <math.h>

#include "ref.h"

enum { NORM_ROWS = 8, NORM_COLS = 64 };

static void norm_row(const op_norm_t *op, int64_t row) {
  const float *x = op->x;
  float *y = op->y;
  x += row * op->hidden, y += row * op->hidden;
  double mean = 0, square = 0;
  if (op->kind == NN_NORM_LAYER) {
    for (int64_t c = 0; c < op->hidden; c++) mean += x[c];
    mean /= (double)op->hidden;
  }
  for (int64_t c = 0; c < op->hidden; c++) square += (x[c] - mean) * (x[c] - mean);
  double rstd = 1 / sqrt(square / (double)op->hidden + op->eps);
  for (int64_t c = 0; c < op->hidden; c++) {
    double bias = op->b ? ref_load(op->b, op->weight_dtype, c) : 0;
    y[c] = (float)((x[c] - mean) * rstd * ref_load(op->w, op->weight_dtype, c) + bias);
  }
  if (op->mean && op->kind == NN_NORM_LAYER) op->mean[row] = (float)mean;
  if (op->rstd) op->rstd[row] = (float)rstd;
}

static void norm_rows(void *context, int64_t item, int32_t thread) {
  const op_norm_t *op = context;
  (void)thread;
  int64_t end = ref_min(op->n, (item + 1) * NORM_ROWS);
  for (int64_t row = item * NORM_ROWS; row < end; row++) norm_row(op, row);
}

nn_status_t ref_norm(backend_device_t *device, const op_norm_t *op, backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->n, NORM_ROWS), norm_rows, (void *)op);
}

static double norm_mean(const op_norm_bwd_t *op, int64_t row) {
  return op->kind == NN_NORM_LAYER ? op->mean[row] : 0;
}

static void norm_bwd_row(const op_norm_bwd_t *op, int64_t row) {
  const float *x = op->x, *dy = op->dy;
  float *dx = op->dx;
  x += row * op->hidden, dy += row * op->hidden, dx += row * op->hidden;
  double mean = norm_mean(op, row), rstd = op->rstd[row], sum = 0, dot = 0;
  for (int64_t c = 0; c < op->hidden; c++) {
    double g = (double)dy[c] * ref_load(op->w, op->weight_dtype, c);
    sum += g;
    dot += g * (x[c] - mean) * rstd;
  }
  sum = op->kind == NN_NORM_LAYER ? sum / (double)op->hidden : 0;
  dot /= (double)op->hidden;
  for (int64_t c = 0; c < op->hidden; c++) {
    double g = (double)dy[c] * ref_load(op->w, op->weight_dtype, c);
    dx[c] = (float)(dx[c] + rstd * (g - sum - (x[c] - mean) * rstd * dot));
  }
}

static void norm_bwd_rows(void *context, int64_t item, int32_t thread) {
  const op_norm_bwd_t *op = context;
  (void)thread;
  int64_t end = ref_min(op->n, (item + 1) * NORM_ROWS);
  for (int64_t row = item * NORM_ROWS; row < end; row++) norm_bwd_row(op, row);
}

static void norm_bwd_columns(void *context, int64_t item, int32_t thread) {
  const op_norm_bwd_t *op = context;
  (void)thread;
  double dw[NORM_COLS] = {0}, db[NORM_COLS] = {0};
  int64_t begin = item * NORM_COLS, cols = ref_min(op->hidden - begin, NORM_COLS);
  for (int64_t row = 0; row < op->n; row++) {
    const float *x = op->x, *dy = op->dy;
    x += row * op->hidden + begin, dy += row * op->hidden + begin;
    double mean = norm_mean(op, row), rstd = op->rstd[row];
    for (int64_t c = 0; c < cols; c++) {
      dw[c] += dy[c] * (x[c] - mean) * rstd;
      db[c] += dy[c];
    }
  }
  for (int64_t c = 0; c < cols; c++) op->dw[begin + c] = (float)(op->dw[begin + c] + dw[c]);
  if (!op->db) return;
  for (int64_t c = 0; c < cols; c++) op->db[begin + c] = (float)(op->db[begin + c] + db[c]);
}

nn_status_t ref_norm_bwd(backend_device_t *device, const op_norm_bwd_t *op,
                         backend_scratch_t scratch) {
  (void)scratch;
  STATUS_TRY(pool_run(device->pool, ref_blocks(op->n, NORM_ROWS), norm_bwd_rows, (void *)op));
  return pool_run(device->pool, ref_blocks(op->hidden, NORM_COLS), norm_bwd_columns, (void *)op);
}
