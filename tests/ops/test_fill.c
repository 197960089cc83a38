/* Normal numbers: the formula, their distribution, and that element i depends on nothing but i. */
#include <math.h>
#include <string.h>

#include "base/random.h"
#include "ops.h"

enum { COUNT = 1 << 20 };

/* Element i in fp64: of the block i / 4, two words are a radius and an angle. */
static double normal64(uint64_t seed, uint64_t stream, int64_t i, double *radius) {
  random_block_t block = random_block(seed, stream, (uint64_t)i / 4);
  const uint32_t *word = block.word + (i & 2);
  *radius = sqrt(-2 * log(((double)word[0] + 1) * 0x1p-32));
  double angle = 2 * acos(-1.0) * (double)word[1] * 0x1p-32;
  return *radius * (i & 1 ? sin(angle) : cos(angle));
}

/* The uniform number is rounded to fp32 before its logarithm is taken: r^2 is off by up to 2^-24,
 * which moves r by that over 2r, but by no more than 2^-12. The logarithm and the root then make r
 * good to 2 u, cosine and sine to 2 u, and their product is rounded. */
static void test_formula(void **state) {
  (void)state;
  enum { N = 50001 };
  double *want = ops_doubles(N), *slack = ops_doubles(N);
  for (int64_t i = 0; i < N; i++) {
    double radius;
    want[i] = 3 * normal64(11, 22, i, &radius);
    slack[i] = 3 * (fmin(0x1p-24 / radius, 0x1p-12) + 5 * OPS_U * radius);
  }
  float *out = ops_floats(N);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1});
  while (ops_next(&trial)) {
    ops_garbage(out, N);
    op_fill_normal_t op = {
        .out = out, .dtype = NN_F32, .count = N, .std = 3, .seed = 11, .stream = 22};
    atomic_store(&trial.cancel, 1); /* deaf to it */
    OPS_RUN(&trial, fill_normal, &op);
    atomic_store(&trial.cancel, 0);
    ops_check(&trial, 0, "out", out, want, slack, N);
  }
  ops_free();
}

/* Means of x^power, and of products. */
static double moment(const float *x, int64_t n, int power) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += pow(x[i], power);
  return sum / (double)n;
}

static double correlation(const float *x, const float *y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * y[i];
  return sum / (double)n;
}

/* Means of n values of variance s^2 lie within 5 s / sqrt(n): x has s = 1, x^2 s^2 = 2, x^3 15,
 * x^4 96, and products of independent ones 1. */
static void test_distribution(void **state) {
  (void)state;
  float *x = ops_floats(COUNT), *y = ops_floats(COUNT);
  double bound = 5 / sqrt(COUNT);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1});
  assert_true(ops_next(&trial));
  for (uint64_t seed = 0; seed < 3; seed++) {
    op_fill_normal_t op = {.out = x, .dtype = NN_F32, .count = COUNT, .std = 1, .seed = seed};
    OPS_RUN(&trial, fill_normal, &op);
    assert_true(fabs(moment(x, COUNT, 1)) <= bound);
    assert_true(fabs(moment(x, COUNT, 2) - 1) <= bound * sqrt(2));
    assert_true(fabs(moment(x, COUNT, 3)) <= bound * sqrt(15));
    assert_true(fabs(moment(x, COUNT, 4) - 3) <= bound * sqrt(96));
    for (int64_t lag = 1; lag <= 8; lag++)
      assert_true(fabs(correlation(x, x + lag, COUNT - 8)) <= bound * 1.01);
    op.out = y, op.stream = 1;
    OPS_RUN(&trial, fill_normal, &op);
    assert_true(fabs(correlation(x, y, COUNT)) <= bound);
    op.stream = 0, op.seed = seed + 1;
    OPS_RUN(&trial, fill_normal, &op);
    assert_true(fabs(correlation(x, y, COUNT)) <= bound);
  }
  while (ops_next(&trial)) {}
  ops_free();
}

/* Shorter fills are prefixes of longer ones, nothing is written behind them, and every path makes
 * the same bits. */
static void test_prefixes(void **state) {
  (void)state;
  enum { N = 70000 };
  float *whole = ops_floats(N), *part = ops_floats(N + 1);
  int begun = 0;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1});
  while (ops_next(&trial)) {
    op_fill_normal_t op = {
        .out = begun ? part : whole, .dtype = NN_F32, .count = N, .std = 0.02f, .seed = 9};
    OPS_RUN(&trial, fill_normal, &op);
    if (begun) assert_memory_equal(part, whole, N * sizeof *whole);
    begun = 1;
    const int64_t counts[] = {1, 2, 3, 5, 255, 257, 16385};
    for (int i = 0; i < 7; i++) {
      ops_garbage(part, N + 1);
      part[counts[i]] = 5;
      op.out = part, op.count = counts[i];
      OPS_RUN(&trial, fill_normal, &op);
      assert_memory_equal(part, whole, (size_t)counts[i] * sizeof *whole);
      assert_true(part[counts[i]] == 5);
    }
  }
  ops_free();
}

/* 16 bits are the nearest of the fp32 number: at most half a unit of their 8 or 11 bits away;
 * fp16's unit is no smaller than 2^-24. */
static void check_half(int32_t dtype, int bits) {
  enum { N = 20001 };
  float *wide = ops_floats(N);
  uint16_t *narrow = ops_memory(N, sizeof *narrow);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1});
  while (ops_next(&trial)) {
    op_fill_normal_t op = {.out = wide, .dtype = NN_F32, .count = N, .std = 0.5f, .seed = 4};
    OPS_RUN(&trial, fill_normal, &op);
    op.out = narrow, op.dtype = dtype;
    OPS_RUN(&trial, fill_normal, &op);
    double off = 0;
    for (int64_t i = 0; i < N; i++) {
      double got = ops_weight(narrow, dtype, i), half_unit = ldexp(1, ilogb(wide[i]) - bits);
      if (dtype == NN_F16 && half_unit < 0x1p-25) half_unit = 0x1p-25;
      assert_true(fabs(got - wide[i]) <= half_unit);
      off += (got - wide[i]) / half_unit;
    }
    /* evenly spread over -1 to 1, not truncated: five standard deviations of the mean */
    assert_true(fabs(off / N) <= 5 / sqrt(3.0 * N));
    ops_check_bits(&trial, 0, "numbers of 16 bits", narrow, N * sizeof *narrow);
  }
  ops_free();
}

static void test_half(void **state) {
  (void)state;
  check_half(NN_BF16, 8);
  check_half(NN_F16, 11);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_formula),
      cmocka_unit_test(test_distribution),
      cmocka_unit_test(test_prefixes),
      cmocka_unit_test(test_half),
  };
  return cmocka_run_group_tests_name("fill", tests, NULL, NULL);
}
