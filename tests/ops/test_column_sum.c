/* Sums of columns, accumulated. */
#include <math.h>

#include "ops.h"

static void check_column_sum(int64_t n, int64_t width, int64_t pad, float alpha) {
  op_column_sum_t op = {.n = n, .width = width, .ldx = width + pad, .alpha = alpha};
  const float *x = ops_uniform(n * op.ldx, 1, 1);
  op.x = x;
  float *out = ops_uniform(width, 1, 2);
  double *want = ops_doubles(width), *slack = ops_doubles(width);
  for (int64_t j = 0; j < width; j++) {
    double size = fabs(out[j]);
    want[j] = out[j];
    for (int64_t i = 0; i < n; i++) {
      double value = (double)backend_factor(alpha) * x[i * op.ldx + j];
      want[j] += value;
      size += fabs(value);
    }
    slack[j] = ops_sum_error(n + 1) * size;
  }
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = n, .hidden = width, .training = 1});
  while (ops_next(&trial)) {
    op.out = ops_copy(out, width);
    OPS_RUN(&trial, column_sum, &op);
    ops_check(&trial, 0, "out", op.out, want, slack, width);
    if (n * width >= 1 << 16) OPS_RUN_CANCELLED(&trial, column_sum, &op);
  }
  ops_free();
}

static void test_column_sum(void **state) {
  (void)state;
  const int64_t sizes[] = {1, 3, 17, 65, 130, 600};
  for (int i = 0; i < 6; i++)
    for (int j = 0; j < 6; j++)
      check_column_sum(sizes[i], sizes[j], (i + j) % 2 ? 7 : 0, i == 4 ? 0.3f : 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_column_sum)};
  return cmocka_run_group_tests_name("column_sum", tests, NULL, NULL);
}
