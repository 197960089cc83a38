/* Copies of heads: from rows to rows, of one to all, and their sum; what is between stays. */
#include <math.h>

#include "ops.h"

typedef struct copy_case {
  int64_t n, heads, width, zeros;
  int64_t ldx, step_x, ldy, step_y;
} copy_case_t;

static const copy_case_t cases[] = {
    {1, 1, 1, 0, 1, 1, 1, 1},          {3, 2, 5, 0, 10, 5, 14, 7},
    {17, 3, 20, 4, 100, 33, 90, 30},   {65, 16, 64, 0, 64, 0, 3072, 192},
    {130, 16, 128, 64, 4096, 256, 3072, 192}, {9, 5, 7, 0, 50, 10, 7, 0},
    {130, 16, 64, 0, 3072, 192, 80, 0},
};

static float *rows_of(int64_t count, int32_t dtype, uint64_t seed) {
  float *rows = ops_inputs(count, dtype, 1, seed);
  const void *packed = ops_pack(rows, count, dtype);
  for (int64_t i = 0; i < count; i++) rows[i] = (float)ops_weight(packed, dtype, i);
  return rows;
}

/* Copies are exact; a sum is rounded once more where rows are of 16 bits, by half a unit in its
 * last place. */
static void check_copy(const copy_case_t *c, int32_t dtype) {
  int64_t x_count = c->n * c->ldx, y_count = c->n * c->ldy;
  float *x = rows_of(x_count, dtype, 1), *before = rows_of(y_count, dtype, 2);
  double *want = ops_doubles(y_count), *slack = ops_doubles(y_count);
  for (int64_t i = 0; i < y_count; i++) want[i] = before[i];
  for (int64_t row = 0; row < c->n; row++)
    for (int64_t h = 0; h < c->heads; h++)
      for (int64_t i = 0; i < c->width + c->zeros; i++) {
        int64_t at = row * c->ldy + h * c->step_y + i;
        double value = i < c->width ? x[row * c->ldx + h * c->step_x + i] : 0;
        int adds = !c->step_y && h > 0;
        want[at] = adds ? want[at] + value : value;
        if (!c->step_y) slack[at] = ops_sum_error(c->heads) * (double)c->heads;
      }
  const double rounding = dtype == NN_BF16 ? 0x1p-8 : dtype == NN_F16 ? 0x1p-11 : 0;
  for (int64_t i = 0; i < y_count; i++)
    if (slack[i] > 0) slack[i] += rounding * fabs(want[i]);
  op_copy_heads_t op = {.n = c->n, .heads = c->heads, .width = c->width, .zeros = c->zeros,
                        .act_dtype = dtype, .x = ops_pack(x, x_count, dtype),
                        .ldx = c->ldx, .step_x = c->step_x, .ldy = c->ldy, .step_y = c->step_y};
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = c->n, .hidden = c->ldy, .weight_dtype = dtype,
                                       .act_dtype = dtype});
  while (ops_next(&trial)) {
    op.y = ops_pack(ops_copy(before, y_count), y_count, dtype);
    OPS_RUN(&trial, copy_heads, &op);
    float *y = ops_floats(y_count);
    for (int64_t i = 0; i < y_count; i++) y[i] = (float)ops_weight(op.y, dtype, i);
    ops_check(&trial, 0, "y", y, want, slack, y_count);
    if (c->n * c->heads * c->width >= 1 << 16) OPS_RUN_CANCELLED(&trial, copy_heads, &op);
  }
  ops_free();
}

static void test_copies(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    check_copy(&cases[i], NN_F32);
    check_copy(&cases[i], NN_BF16);
    if (!ops_widens()) check_copy(&cases[i], NN_F16); /* a CPU has no rows of fp16 */
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_copies)};
  return cmocka_run_group_tests_name("copy_heads", tests, NULL, NULL);
}
