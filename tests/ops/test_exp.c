/* The vector paths' exp, by its bits: softmax of {0, x} with exp(x) below half a unit in the last
 * place of 1 divides by a sum of exactly 1, so what it gives for x is exp(x) itself. What
 * this does not reach takes the same steps; docs/numerics.md says how far off that was. */
#include <math.h>
#include <string.h>

#include "ops.h"

/* softmax(0, x[i]) of each i; y[i] receives the second of the pair. */
static void exp_run(ops_trial_t *trial, const float *x, float *y, int64_t count) {
  float *pair = ops_floats(2 * count);
  for (int64_t i = 0; i < count; i++) pair[2 * i + 1] = x[i];
  op_softmax_t op = {.n = count, .width = 2, .x = pair, .y = pair};
  OPS_RUN(trial, softmax, &op);
  for (int64_t i = 0; i < count; i++) {
    assert_true(pair[2 * i] == 1);
    y[i] = pair[2 * i + 1];
  }
}

/* From -17.4, where exp(x) falls below 2^-25, to where it is no normal number: an evenly spaced
 * part of all floats between. The bound of vf_exp, 1 ulp, is that of the result. */
static void test_one_ulp(void **state) {
  (void)state;
  enum { STEP = 257 }; /* odd, so that all ends of the significand occur */
  const float first = -17.4f, last = -87.3f;
  uint32_t begin, end;
  memcpy(&begin, &first, sizeof begin), memcpy(&end, &last, sizeof end);
  int64_t count = (end - begin) / STEP;
  float *x = ops_floats(count), *y = ops_floats(count);
  double *want = ops_doubles(count);
  for (int64_t i = 0; i < count; i++) {
    uint32_t bits = begin + (uint32_t)i * STEP;
    memcpy(&x[i], &bits, sizeof bits);
    want[i] = exp((double)x[i]);
  }
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = count, .vocab = 2});
  while (ops_next(&trial)) {
    exp_run(&trial, x, y, count);
    for (int64_t i = 0; i < count; i++) {
      int exponent;
      frexp(want[i], &exponent);
      if (!(fabs(y[i] - want[i]) <= ldexp(1, exponent - 24)))
        fail_msg("%s: exp(%.9g) gave %.9g, not %.9g", trial.path_name, x[i], y[i], want[i]);
    }
    ops_check_bits(&trial, 0, "exp", y, (size_t)count * sizeof *y);
  }
  ops_free();
}

/* Below the smallest normal number what is left may lose digits or be 0, but never more; from -104
 * down it is 0. */
static void test_underflow(void **state) {
  (void)state;
  enum { COUNT = 4000 };
  float x[COUNT], y[COUNT];
  for (int i = 0; i < COUNT; i++) x[i] = -87.3f - 0.01f * (float)i;
  x[COUNT - 2] = -3e38f, x[COUNT - 1] = -INFINITY;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = COUNT, .vocab = 2});
  while (ops_next(&trial)) {
    exp_run(&trial, x, y, COUNT);
    for (int i = 0; i < COUNT; i++) {
      double want = exp((double)x[i]);
      assert_true(y[i] >= 0 && fabs(y[i] - want) <= 0x1p-148 + 2 * OPS_U * want);
      if (x[i] <= -104) assert_true(y[i] == 0);
    }
  }
  ops_free();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_one_ulp),
      cmocka_unit_test(test_underflow),
  };
  return cmocka_run_group_tests_name("exp", tests, NULL, NULL);
}
