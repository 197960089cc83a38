/* RMS norm and layer norm over each of the G groups of rows [n, G, hidden].
 *
 * Forward assigns y = xhat w + b with xhat = (x - mean) rstd (mean 0 for RMS). Backward, g = dy w:
 *   dx += rstd (g - mean(g) - xhat mean(g xhat)), without mean(g) for RMS,
 *   dw += sum of dy xhat and db += sum of dy over the rows and their groups, in order.
 * Sums over a group run over columns in order. dw and db come first, since dx may be dy. */
#include <math.h>

#include "ref.h"

enum { NORM_ROWS = 8, NORM_COLS = 64 };

static int64_t norm_groups(int64_t groups) { return groups ? groups : 1; }

/* First element of a group, counted over all rows. */
static int64_t norm_at(int64_t group, int64_t groups, int64_t hidden, int64_t ld) {
  groups = norm_groups(groups);
  return group / groups * (ld ? ld : groups * hidden) + group % groups * hidden;
}

static void norm_group(const op_norm_t *op, int64_t group) {
  int64_t from = norm_at(group, op->groups, op->hidden, op->ldx);
  int64_t to = norm_at(group, op->groups, op->hidden, op->ldy);
  double mean = 0, square = 0;
  if (op->kind == NN_NORM_LAYER) {
    for (int64_t c = 0; c < op->hidden; c++) mean += ref_load(op->x, op->act_dtype, from + c);
    mean /= (double)op->hidden;
  }
  for (int64_t c = 0; c < op->hidden; c++) {
    double x = ref_load(op->x, op->act_dtype, from + c);
    square += (x - mean) * (x - mean);
  }
  double rstd = 1 / sqrt(square / (double)op->hidden + op->eps);
  for (int64_t c = 0; c < op->hidden; c++) {
    double bias = op->b ? ref_load(op->b, op->weight_dtype, c) : 0;
    double normed = (ref_load(op->x, op->act_dtype, from + c) - mean) * rstd;
    float y = (float)(normed * ref_load(op->w, op->weight_dtype, c) + bias);
    ref_store(op->y, op->act_dtype, to + c, y);
  }
  if (op->mean && op->kind == NN_NORM_LAYER) op->mean[group] = (float)mean;
  if (op->rstd) op->rstd[group] = (float)rstd;
}

static void norm_rows(void *context, int64_t item, int32_t thread) {
  const op_norm_t *op = context;
  (void)thread;
  int64_t end = ref_min(op->n * norm_groups(op->groups), (item + 1) * NORM_ROWS);
  for (int64_t group = item * NORM_ROWS; group < end; group++) norm_group(op, group);
}

nn_status_t ref_norm(backend_device_t *device, const op_norm_t *op, backend_scratch_t scratch) {
  (void)scratch;
  int64_t count = op->n * norm_groups(op->groups);
  return pool_run(device->pool, ref_blocks(count, NORM_ROWS), norm_rows, (void *)op);
}

static double norm_mean(const op_norm_bwd_t *op, int64_t group) {
  return op->kind == NN_NORM_LAYER ? op->mean[group] : 0;
}

static void norm_bwd_group(const op_norm_bwd_t *op, int64_t group) {
  int64_t at = norm_at(group, op->groups, op->hidden, op->ldy);
  int64_t from = norm_at(group, op->groups, op->hidden, op->ldx);
  double mean = norm_mean(op, group), rstd = op->rstd[group], sum = 0, dot = 0;
  for (int64_t c = 0; c < op->hidden; c++) {
    double dy = ref_load(op->dy, op->act_dtype, at + c);
    double g = dy * ref_load(op->w, op->weight_dtype, c);
    sum += g;
    dot += g * (ref_load(op->x, op->act_dtype, from + c) - mean) * rstd;
  }
  sum = op->kind == NN_NORM_LAYER ? sum / (double)op->hidden : 0;
  dot /= (double)op->hidden;
  for (int64_t c = 0; c < op->hidden; c++) {
    double dy = ref_load(op->dy, op->act_dtype, at + c);
    double g = dy * ref_load(op->w, op->weight_dtype, c);
    double xhat = (ref_load(op->x, op->act_dtype, from + c) - mean) * rstd;
    double before = op->assign ? 0 : ref_load(op->dx, op->act_dtype, at + c);
    ref_store(op->dx, op->act_dtype, at + c, (float)(before + rstd * (g - sum - xhat * dot)));
  }
}

static void norm_bwd_rows(void *context, int64_t item, int32_t thread) {
  const op_norm_bwd_t *op = context;
  (void)thread;
  int64_t end = ref_min(op->n * norm_groups(op->groups), (item + 1) * NORM_ROWS);
  for (int64_t group = item * NORM_ROWS; group < end; group++) norm_bwd_group(op, group);
}

static void norm_bwd_columns(void *context, int64_t item, int32_t thread) {
  const op_norm_bwd_t *op = context;
  (void)thread;
  double dw[NORM_COLS] = {0}, db[NORM_COLS] = {0};
  int64_t begin = item * NORM_COLS, cols = ref_min(op->hidden - begin, NORM_COLS);
  for (int64_t group = 0; group < op->n * norm_groups(op->groups); group++) {
    int64_t from = norm_at(group, op->groups, op->hidden, op->ldx) + begin;
    int64_t at = norm_at(group, op->groups, op->hidden, op->ldy) + begin;
    double mean = norm_mean(op, group), rstd = op->rstd[group];
    for (int64_t c = 0; c < cols; c++) {
      double dy = ref_load(op->dy, op->act_dtype, at + c);
      dw[c] += dy * (ref_load(op->x, op->act_dtype, from + c) - mean) * rstd;
      db[c] += dy;
    }
  }
  for (int64_t c = 0; c < cols; c++) op->dw[begin + c] = (float)(op->dw[begin + c] + dw[c]);
  if (!op->db) return;
  for (int64_t c = 0; c < cols; c++) op->db[begin + c] = (float)(op->db[begin + c] + db[c]);
}

nn_status_t ref_norm_bwd(backend_device_t *device, const op_norm_bwd_t *op,
                         backend_scratch_t scratch) {
  (void)scratch;
  int64_t count = op->n * norm_groups(op->groups);
  STATUS_TRY(
      pool_run(device->pool, ref_blocks(op->hidden, NORM_COLS), norm_bwd_columns, (void *)op));
  return pool_run(device->pool, ref_blocks(count, NORM_ROWS), norm_bwd_rows, (void *)op);
}
