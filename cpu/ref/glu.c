/* Gated linear units: y = weight act(g, u), assigned, with act = silu(g) u, or with a limit
 * g' sigmoid(1.702 g') (u' + 1) of the clamped g' and u'. Backward: dg = weight dy dact/dg and
 * du = weight dy dact/du are assigned, and dweight = <dy, act>, summed over F in order. */
#include <math.h>

#include "ref.h"

enum { GLU_ROWS = 8 };

static const double clamped_slope = 1.702;

double ref_act(double g, double u, double limit) {
  if (limit == 0) return g / (1 + exp(-g)) * u;
  g = fmin(g, limit), u = fmax(fmin(u, limit), -limit);
  return g / (1 + exp(-clamped_slope * g)) * (u + 1);
}

void ref_act_slopes(double g, double u, double limit, double *by_g, double *by_u) {
  double factor = limit == 0 ? 1 : clamped_slope, shift = limit == 0 ? 0 : 1;
  int g_moves = limit == 0 || g <= limit, u_moves = limit == 0 || fabs(u) <= limit;
  if (limit != 0) g = fmin(g, limit), u = fmax(fmin(u, limit), -limit);
  double s = 1 / (1 + exp(-factor * g));
  *by_g = g_moves ? (u + shift) * s * (1 + factor * g * (1 - s)) : 0;
  *by_u = u_moves ? g * s : 0;
}

static void glu_rows(void *context, int64_t item, int32_t thread) {
  const op_glu_t *op = context;
  (void)thread;
  int64_t end = ref_min(op->n, (item + 1) * GLU_ROWS);
  for (int64_t row = item * GLU_ROWS; row < end; row++) {
    double weight = op->weight ? op->weight[row] : 1;
    for (int64_t c = 0; c < op->ffn; c++) {
      double g = ref_load(op->x, op->act_dtype, row * 2 * op->ffn + c);
      double u = ref_load(op->x, op->act_dtype, (row * 2 + 1) * op->ffn + c);
      ref_store(op->y, op->act_dtype, row * op->ffn + c,
                (float)(weight * ref_act(g, u, op->limit)));
    }
  }
}

nn_status_t ref_glu(backend_device_t *device, const op_glu_t *op, backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->n, GLU_ROWS), glu_rows, (void *)op);
}

static void glu_bwd_row(const op_glu_bwd_t *op, int64_t row) {
  int32_t dtype = op->act_dtype;
  double weight = op->weight ? op->weight[row] : 1, dot = 0;
  for (int64_t c = 0; c < op->ffn; c++) {
    int64_t at_g = row * 2 * op->ffn + c, at_u = at_g + op->ffn, at = row * op->ffn + c;
    double g = ref_load(op->x, dtype, at_g), u = ref_load(op->x, dtype, at_u);
    double d = ref_load(op->dy, dtype, at), by_g, by_u;
    double act = ref_act(g, u, op->limit);
    ref_act_slopes(g, u, op->limit, &by_g, &by_u);
    dot += d * act;
    ref_store(op->dx, dtype, at_g, (float)(weight * d * by_g));
    ref_store(op->dx, dtype, at_u, (float)(weight * d * by_u));
    if (op->y) ref_store(op->y, dtype, at, (float)(weight * act));
  }
  if (op->weight) op->dweight[row] = (float)dot;
}

static void glu_bwd_rows(void *context, int64_t item, int32_t thread) {
  const op_glu_bwd_t *op = context;
  (void)thread;
  int64_t end = ref_min(op->n, (item + 1) * GLU_ROWS);
  for (int64_t row = item * GLU_ROWS; row < end; row++) glu_bwd_row(op, row);
}

nn_status_t ref_glu_bwd(backend_device_t *device, const op_glu_bwd_t *op,
                        backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->n, GLU_ROWS), glu_bwd_rows, (void *)op);
}
