/* out[j] += alpha * sum over i of x[i, j], rows in order; split over strips of columns. */
#include "vec/ops.h"

enum { COLUMN_VECTORS = 4, COLUMN_STRIP = COLUMN_VECTORS * VEC_WIDTH };

VEC_INLINE void column_sum_from(const op_column_sum_t *op, int64_t j, int32_t act) {
  int64_t left = op->width - j;
  vf alpha = vf_set1(backend_factor(op->alpha));
  int64_t count[COLUMN_VECTORS];
  vf sum[COLUMN_VECTORS];
  for (int v = 0; v < COLUMN_VECTORS; v++) {
    int64_t lanes = vec_min(VEC_WIDTH, left - v * VEC_WIDTH);
    count[v] = lanes > 0 ? lanes : 0;
    sum[v] = vf_zero();
  }
  for (int64_t i = 0; i < op->n; i++)
    for (int v = 0; v < COLUMN_VECTORS; v++)
      sum[v] = vf_add(
          sum[v], vf_load_as_next(op->x, i * op->ldx + j + v * VEC_WIDTH, count[v], act));
  for (int v = 0; v < COLUMN_VECTORS; v++) {
    float *out = op->out + j + v * VEC_WIDTH;
    vf_store_next(out, count[v], vf_fma(alpha, sum[v], vf_load_next(out, count[v])));
  }
}

static void column_sum_strip(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_column_sum_t *op = context;
  VEC_BY_ACT(op->act_dtype, column_sum_from(op, item * COLUMN_STRIP, VEC_ACT));
}

VEC_OP(column_sum, op_column_sum_t) {
  (void)scratch;
  op_column_sum_t job = *op;
  return vec_run(device, vec_blocks(op->width, COLUMN_STRIP), op->n * op->width, column_sum_strip,
                 &job);
}
