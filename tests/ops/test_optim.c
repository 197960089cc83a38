/* Gradient norm and AdamW. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "ops.h"

static const int64_t counts[] = {1, 3, 17, 65, 1000, 40000, 100003, 1500001};
enum { COUNTS = sizeof counts / sizeof *counts };

/* ---- norm ---- */

/* Squares of fp32 are exact in fp64, so the sum has at most the relative error n 2^-53, the root
 * half. */
static void check_norm(int64_t count, float scale) {
  float *g = ops_uniform(count, scale, 1);
  g[count / 2] = scale; /* not all zero */
  long double square = 0;
  for (int64_t i = 0; i < count; i++) square += (long double)g[i] * g[i];
  double want = (double)sqrtl(square), out[2];
  const float limits[] = {0, (float)(want * 0.25), (float)(want * 4)};
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .training = 1});
  while (ops_next(&trial)) {
    for (int i = 0; i < 3; i++) {
      out[0] = out[1] = NAN;
      op_grad_norm_t op = {.count = count, .g = g, .max_norm = limits[i], .out = out};
      atomic_store(&trial.cancel, 1); /* deaf to it */
      OPS_RUN(&trial, grad_norm, &op);
      atomic_store(&trial.cancel, 0);
      assert_true(fabs(out[0] - want) <= want * (double)(count + 4) * 0x1p-53);
      assert_true(out[1] == (limits[i] > 0 && limits[i] < out[0] ? limits[i] / out[0] : 1));
      ops_check_bits(&trial, i, "norm and scale", out, sizeof out);
    }
  }
  ops_free();
}

static void test_norm(void **state) {
  (void)state;
  for (int i = 0; i < COUNTS; i++) check_norm(counts[i], 1);
  check_norm(100, 1e30f); /* squares beyond fp32 */
  check_norm(100, 1e-30f);
}

static void test_norm_of_what_is_not_finite(void **state) {
  (void)state;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .training = 1});
  while (ops_next(&trial)) {
    float g[70] = {0};
    double out[2];
    op_grad_norm_t op = {.count = 70, .g = g, .max_norm = 1, .out = out};
    OPS_RUN(&trial, grad_norm, &op);
    assert_true(out[0] == 0 && out[1] == 1);
    g[69] = INFINITY;
    OPS_RUN(&trial, grad_norm, &op);
    assert_true(isinf(out[0]));
    g[3] = NAN;
    OPS_RUN(&trial, grad_norm, &op);
    assert_true(isnan(out[0]));
  }
}

/* ---- AdamW ---- */

typedef struct adamw_case {
  float lr, beta1, beta2, eps, weight_decay;
  double scale;
  int64_t step;
} adamw_case_t;

static const adamw_case_t cases[] = {
    {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 1},  {1e-2f, 0.9f, 0.999f, 1e-8f, 0, 0.25, 2},
    {0.5f, 0, 0.5f, 1e-3f, 0.5f, 1e-3, 1000}, {0, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 3},
};

typedef struct adamw_state {
  float *p, *m, *v;
} adamw_state_t;

/* What one step makes of element i, and how far fp32 may be from it: m and v have the error of
 * three operations on their terms, the update that of m and of eight more, the decay that of its
 * factor and of two more, and p is rounded once. */
static void adamw64(const adamw_case_t *c, const adamw_state_t *s, const float *g, int64_t i,
                    double want[3], double slack[3]) {
  double gradient = g[i] * c->scale, b1 = c->beta1, b2 = c->beta2;
  double m = b1 * s->m[i] + (1 - b1) * gradient, v = b2 * s->v[i] + (1 - b2) * gradient * gradient;
  double m_size = fabs(b1 * s->m[i]) + fabs((1 - b1) * gradient);
  double m_scale = 1 / (1 - pow(b1, (double)c->step)), v_scale = 1 / (1 - pow(b2, (double)c->step));
  double root = sqrt(v * v_scale) + c->eps, decay = c->weight_decay * (double)s->p[i];
  want[0] = s->p[i] - c->lr * (m * m_scale / root + decay);
  want[1] = m;
  want[2] = v;
  slack[0] = c->lr * (16 * m_size * m_scale / root + 4 * fabs(decay)) * OPS_U;
  slack[0] += OPS_U * (fabs(want[0]) + slack[0]);
  slack[1] = OPS_U * 4 * m_size + FLT_MIN;
  slack[2] = OPS_U * 6 * v + FLT_MIN;
}

static void check_adamw(const adamw_case_t *c, int64_t count) {
  adamw_state_t s = {ops_uniform(count, 1, 1), ops_uniform(count, 1, 2), ops_uniform(count, 1, 3)};
  float *g = ops_uniform(count, 1, 4);
  for (int64_t i = 0; i < count; i++) s.v[i] = c->step == 1 ? 0 : s.v[i] * s.v[i];
  if (c->step == 1) memset(s.m, 0, (size_t)count * sizeof *s.m);
  if (count > 10) g[7] = s.m[7] = s.v[7] = 0; /* no gradient ever: decay alone */
  double *want[3], *slack[3], scale[2] = {1, c->scale};
  for (int j = 0; j < 3; j++) want[j] = ops_doubles(count), slack[j] = ops_doubles(count);
  for (int64_t i = 0; i < count; i++) {
    double w[3], o[3];
    adamw64(c, &s, g, i, w, o);
    for (int j = 0; j < 3; j++) want[j][i] = w[j], slack[j][i] = o[j];
  }
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .training = 1});
  while (ops_next(&trial)) {
    op_adamw_t op = {.count = count,
                     .p = ops_copy(s.p, count),
                     .g = g,
                     .m = ops_copy(s.m, count),
                     .v = ops_copy(s.v, count),
                     .scale = scale,
                     .lr = c->lr,
                     .beta1 = c->beta1,
                     .beta2 = c->beta2,
                     .eps = c->eps,
                     .weight_decay = c->weight_decay,
                     .step = c->step};
    atomic_store(&trial.cancel, 1); /* an update is made whole */
    OPS_RUN(&trial, adamw, &op);
    atomic_store(&trial.cancel, 0);
    ops_check(&trial, 0, "p", op.p, want[0], slack[0], count);
    ops_check(&trial, 1, "m", op.m, want[1], slack[1], count);
    ops_check(&trial, 2, "v", op.v, want[2], slack[2], count);
  }
  ops_free();
}

static void test_adamw(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int j = 0; j < COUNTS - 1; j++) check_adamw(&cases[i], counts[j]);
}

/* A decay of a few units in the last place of p is the right one on average: each p in [1, 2) is
 * rounded by at most 2^-24, with a standard deviation of that over sqrt(3), so the mean of COUNT
 * is off by at most five times that over sqrt(3 COUNT). */
static void test_small_decay_is_exact_on_average(void **state) {
  (void)state;
  enum { COUNT = 10000 };
  float *before = ops_uniform(COUNT, 0.5f, 1), *nothing = ops_floats(COUNT);
  double mean = 0, scale[2] = {0, 1};
  for (int64_t i = 0; i < COUNT; i++) before[i] += 1.5f, mean += before[i] / COUNT;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .training = 1});
  while (ops_next(&trial)) {
    op_adamw_t op = {.count = COUNT,
                     .p = ops_copy(before, COUNT),
                     .g = nothing,
                     .m = ops_floats(COUNT),
                     .v = ops_floats(COUNT),
                     .scale = scale,
                     .lr = 3e-5f,
                     .beta1 = 0.9f,
                     .beta2 = 0.95f,
                     .eps = 1e-8f,
                     .weight_decay = 0.1f,
                     .step = 1};
    OPS_RUN(&trial, adamw, &op);
    double lost = 0;
    for (int64_t i = 0; i < COUNT; i++) lost += ((double)before[i] - op.p[i]) / COUNT;
    double want = (double)op.lr * op.weight_decay * mean;
    if (fabs(lost - want) > 5 * OPS_U / sqrt(3.0 * COUNT))
      fail_msg("%s: p lost %.6g on average, not %.6g", trial.path_name, lost, want);
  }
  ops_free();
}

static void test_adamw_refuses_a_norm_that_is_not_finite(void **state) {
  (void)state;
  enum { COUNT = 100 };
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .training = 1});
  while (ops_next(&trial)) {
    const double norms[] = {NAN, INFINITY};
    for (int i = 0; i < 2; i++) {
      float *p = ops_uniform(COUNT, 1, 1), *m = ops_uniform(COUNT, 1, 2),
            *v = ops_uniform(COUNT, 1, 3);
      double scale[2] = {norms[i], 1};
      op_adamw_t op = {.count = COUNT,
                       .p = ops_copy(p, COUNT),
                       .g = p,
                       .m = ops_copy(m, COUNT),
                       .v = ops_copy(v, COUNT),
                       .scale = scale,
                       .lr = 1,
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .eps = 1e-8f,
                       .step = 1};
      OPS_RUN(&trial, adamw, &op);
      assert_memory_equal(op.p, p, COUNT * sizeof *p);
      assert_memory_equal(op.m, m, COUNT * sizeof *m);
      assert_memory_equal(op.v, v, COUNT * sizeof *v);
    }
  }
  ops_free();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_norm),
      cmocka_unit_test(test_norm_of_what_is_not_finite),
      cmocka_unit_test(test_adamw),
      cmocka_unit_test(test_small_decay_is_exact_on_average),
      cmocka_unit_test(test_adamw_refuses_a_norm_that_is_not_finite),
  };
  return cmocka_run_group_tests_name("optim", tests, NULL, NULL);
}
