/* out[j] += alpha * sum over i of x[i, j], rows in order; split over strips of columns. */
#include "vec/ops.h"

enum { COLUMN_VECTORS = 4, COLUMN_STRIP = COLUMN_VECTORS * VEC_WIDTH };

static void column_sum_strip(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_column_sum_t *op = context;
  const float *x = op->x;
  int64_t j = item * COLUMN_STRIP, left = op->width - j;
  vf alpha = vf_set1(backend_factor(op->alpha));
  vmask mask[COLUMN_VECTORS];
  vf sum[COLUMN_VECTORS];
  for (int v = 0; v < COLUMN_VECTORS; v++) {
    int64_t lanes = vec_min(VEC_WIDTH, left - v * VEC_WIDTH);
    mask[v] = vf_mask(lanes > 0 ? lanes : 0);
    sum[v] = vf_zero();
  }
  for (int64_t i = 0; i < op->n; i++)
    for (int v = 0; v < COLUMN_VECTORS; v++)
      sum[v] = vf_add(sum[v], vf_load_mask(x + i * op->ldx + j + v * VEC_WIDTH, mask[v]));
  for (int v = 0; v < COLUMN_VECTORS; v++) {
    float *out = op->out + j + v * VEC_WIDTH;
    vf_store_mask(out, mask[v], vf_fma(alpha, sum[v], vf_load_mask(out, mask[v])));
  }
}

VEC_OP(column_sum, op_column_sum_t) {
  (void)scratch;
  op_column_sum_t job = *op;
  return vec_run(device, vec_blocks(op->width, COLUMN_STRIP), op->n * op->width, column_sum_strip,
                 &job);
}
