/* Gradient norm and AdamW. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/dtype.h"
#include "ops.h"

static const int64_t counts[] = {1, 3, 17, 65, 1000, 40000, 100003, 1500001};
enum { COUNTS = sizeof counts / sizeof *counts };

/* ---- norm ---- */

/* Squares of fp32 are exact in fp64, so the sum has at most the relative error n 2^-53, the root
 * half. Unscaling by a power of two is exact. */
static void check_norm(int64_t count, float scale, double unscale) {
  float *g = ops_uniform(count, scale, 1);
  g[count / 2] = scale; /* not all zero */
  long double square = 0;
  for (int64_t i = 0; i < count; i++) square += (long double)g[i] * g[i];
  double want = (double)sqrtl(square) * unscale, *out = ops_doubles(2);
  const optim_now_t *now = OPS_PUT(optim_now_t, {.unscale = unscale});
  const float limits[] = {0, (float)(want * 0.25), (float)(want * 4)};
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .training = 1});
  while (ops_next(&trial)) {
    for (int i = 0; i < 3; i++) {
      out[0] = out[1] = NAN;
      op_grad_norm_t op = {.count = count, .g = g, .max_norm = limits[i], .now = now, .out = out};
      atomic_store(&trial.cancel, 1); /* deaf to it */
      OPS_RUN(&trial, grad_norm, &op);
      atomic_store(&trial.cancel, 0);
      assert_true(fabs(out[0] - want) <= want * (double)(count + 4) * 0x1p-53);
      double clip = limits[i] > 0 && limits[i] < out[0] ? limits[i] / out[0] : 1;
      assert_true(out[1] == unscale * clip);
      ops_check_bits(&trial, i, "norm and scale", out, 2 * sizeof *out);
    }
  }
  ops_free();
}

static void test_norm(void **state) {
  (void)state;
  for (int i = 0; i < COUNTS; i++) check_norm(counts[i], 1, 1);
  check_norm(100, 1e30f, 1); /* squares beyond fp32 */
  check_norm(100, 1e-30f, 1);
  check_norm(1000, 3e4f, 0x1p-16);
}

static void test_norm_of_what_is_not_finite(void **state) {
  (void)state;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .training = 1});
  while (ops_next(&trial)) {
    float *g = ops_floats(70);
    double *out = ops_doubles(2);
    const optim_now_t *now = OPS_PUT(optim_now_t, {.unscale = 1});
    op_grad_norm_t op = {.count = 70, .g = g, .max_norm = 1, .now = now, .out = out};
    OPS_RUN(&trial, grad_norm, &op);
    assert_true(out[0] == 0 && out[1] == 1);
    g[69] = INFINITY;
    OPS_RUN(&trial, grad_norm, &op);
    assert_true(isinf(out[0]));
    g[3] = NAN;
    OPS_RUN(&trial, grad_norm, &op);
    assert_true(isnan(out[0]));
  }
  ops_free();
}

/* ---- AdamW ---- */

typedef struct adamw_case {
  float lr, beta1, beta2, eps, weight_decay;
  double scale;
  int64_t step;
} adamw_case_t;

/* What the core makes of a step for the operations. */
static optim_now_t now_of(const adamw_case_t *c, int64_t step) {
  return (optim_now_t){.lr = c->lr,
                       .m_left = 1 - pow(c->beta1, (double)step),
                       .v_left = 1 - pow(c->beta2, (double)step),
                       .unscale = 1};
}

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
                    int decays, double want[3], double slack[3]) {
  double gradient = g[i] * c->scale, b1 = c->beta1, b2 = c->beta2;
  double m = b1 * s->m[i] + (1 - b1) * gradient, v = b2 * s->v[i] + (1 - b2) * gradient * gradient;
  double m_size = fabs(b1 * s->m[i]) + fabs((1 - b1) * gradient);
  double m_scale = 1 / (1 - pow(b1, (double)c->step)), v_scale = 1 / (1 - pow(b2, (double)c->step));
  double root = sqrt(v * v_scale) + c->eps, decay = decays ? c->weight_decay * (double)s->p[i] : 0;
  want[0] = s->p[i] - c->lr * (m * m_scale / root + decay);
  want[1] = m;
  want[2] = v;
  slack[0] = c->lr * (16 * m_size * m_scale / root + 4 * fabs(decay)) * OPS_U;
  slack[0] += OPS_U * (fabs(want[0]) + slack[0]);
  slack[1] = OPS_U * 4 * m_size + FLT_MIN;
  slack[2] = OPS_U * 6 * v + FLT_MIN;
}

static void check_adamw(const adamw_case_t *c, int64_t count, int64_t decayed) {
  adamw_state_t s = {ops_uniform(count, 1, 1), ops_uniform(count, 1, 2), ops_uniform(count, 1, 3)};
  float *g = ops_uniform(count, 1, 4);
  for (int64_t i = 0; i < count; i++) s.v[i] = c->step == 1 ? 0 : s.v[i] * s.v[i];
  if (c->step == 1) memset(s.m, 0, (size_t)count * sizeof *s.m);
  if (count > 10) g[7] = s.m[7] = s.v[7] = 0; /* no gradient ever: decay alone */
  double *want[3], *slack[3];
  const double *scale = OPS_PUT(double, 1, c->scale);
  const optim_now_t *now = OPS_PUT(optim_now_t, now_of(c, c->step));
  for (int j = 0; j < 3; j++) want[j] = ops_doubles(count), slack[j] = ops_doubles(count);
  for (int64_t i = 0; i < count; i++) {
    double w[3], o[3];
    adamw64(c, &s, g, i, i < decayed, w, o);
    for (int j = 0; j < 3; j++) want[j][i] = w[j], slack[j][i] = o[j];
  }
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .training = 1});
  while (ops_next(&trial)) {
    op_adamw_t op = {.count = count,
                     .decayed = decayed,
                     .p = ops_copy(s.p, count),
                     .g = g,
                     .m = ops_copy(s.m, count),
                     .v = ops_copy(s.v, count),
                     .scale = scale,
                     .now = now,
                     .beta1 = c->beta1,
                     .beta2 = c->beta2,
                     .eps = c->eps,
                     .weight_decay = c->weight_decay};
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
    for (int j = 0; j < COUNTS - 1; j++) {
      check_adamw(&cases[i], counts[j], counts[j]);
      check_adamw(&cases[i], counts[j], counts[j] / 3); /* within a vector, a tile, a chunk */
    }
  check_adamw(&cases[0], 100003, 0);
}

/* A decay of a few units in the last place of p is the right one on average: each p in [1, 2) is
 * rounded by at most 2^-24, with a standard deviation of that over sqrt(3), so the mean of COUNT
 * is off by at most five times that over sqrt(3 COUNT). */
static void test_small_decay_is_exact_on_average(void **state) {
  (void)state;
  enum { COUNT = 10000 };
  float *before = ops_uniform(COUNT, 0.5f, 1), *nothing = ops_floats(COUNT);
  const double *scale = OPS_PUT(double, 0, 1);
  const adamw_case_t c = {.lr = 3e-5f, .beta1 = 0.9f, .beta2 = 0.95f};
  const optim_now_t *now = OPS_PUT(optim_now_t, now_of(&c, 1));
  double mean = 0;
  for (int64_t i = 0; i < COUNT; i++) before[i] += 1.5f, mean += before[i] / COUNT;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .training = 1});
  while (ops_next(&trial)) {
    op_adamw_t op = {.count = COUNT,
                     .decayed = COUNT,
                     .p = ops_copy(before, COUNT),
                     .g = nothing,
                     .m = ops_floats(COUNT),
                     .v = ops_floats(COUNT),
                     .scale = scale,
                     .now = now,
                     .beta1 = c.beta1,
                     .beta2 = c.beta2,
                     .eps = 1e-8f,
                     .weight_decay = 0.1f};
    OPS_RUN(&trial, adamw, &op);
    const float *after = op.p;
    double lost = 0;
    for (int64_t i = 0; i < COUNT; i++) lost += ((double)before[i] - after[i]) / COUNT;
    double want = (double)c.lr * op.weight_decay * mean;
    if (fabs(lost - want) > 5 * OPS_U / sqrt(3.0 * COUNT))
      fail_msg("%s: p lost %.6g on average, not %.6g", trial.path_name, lost, want);
  }
  ops_free();
}

/* ---- masters of bf16 parameters ---- */

static uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* p is as near to the master as either neighbour; of two that are, it is the one away from zero. */
static int is_nearest(uint16_t p, float master) {
  uint16_t outer = (uint16_t)(p + 1), inner = (uint16_t)(p - 1);
  double off = fabs(ops_weight(&p, NN_BF16, 0) - master);
  int zero = (p & 0x7fff) == 0;
  return off < fabs(ops_weight(&outer, NN_BF16, 0) - master) &&
         (zero || off <= fabs(ops_weight(&inner, NN_BF16, 0) - master));
}

/* Numbers half way between two of bf16, next to that, zeros, subnormals, and one that is rounded to
 * the next power of two. */
static const uint32_t masters[] = {0x3f808000, 0x3f818000, 0xbf808000, 0xbf818000, 0x3f807fff,
                                   0x3f808001, 0xbf817fff, 0x00000000, 0x80000000, 0x00000001,
                                   0x00008000, 0x80008000, 0x3f7fffff, 0xc07fffff, 0x7f7f7fff};
enum { MASTERS = sizeof masters / sizeof *masters, STEPS = 5 };

typedef struct masters_data {
  float *p;        /* [count] what both begin with */
  float *g[STEPS]; /* [count] each */
} masters_data_t;

static masters_data_t masters_make(int64_t count) {
  masters_data_t d = {.p = ops_uniform(count, 1, 1)};
  for (uint64_t s = 0; s < STEPS; s++) d.g[s] = ops_uniform(count, 1, 10 + s);
  for (int64_t i = 0; count > MASTERS && i < MASTERS; i++) {
    d.p[i] = float_of(masters[i]);
    for (int s = 0; s < STEPS; s++) d.g[s][i] = 0; /* without decay, it stays what it is */
  }
  return d;
}

static void check_masters_step(const ops_trial_t *trial, int step, const op_adamw_t *wide,
                               const op_adamw_t *narrow) {
  const float *want = wide->p;
  const uint16_t *p = narrow->p;
  for (int64_t i = 0; i < wide->count; i++) {
    uint32_t got = p[i] * 65536u + (uint32_t)narrow->p_low[i];
    if (got != bits_of(want[i]) || !is_nearest(p[i], want[i]))
      fail_msg("%s, step %d: %lld of %lld: %04x and %d for the master %08x", trial->path_name,
               step, (long long)i, (long long)wide->count, p[i], narrow->p_low[i],
               bits_of(want[i]));
  }
  size_t bytes = (size_t)wide->count * sizeof(float);
  assert_memory_equal(narrow->m, wide->m, bytes);
  assert_memory_equal(narrow->v, wide->v, bytes);
}

/* An update of the masters as fp32 parameters, from no moments. */
static op_adamw_t masters_wide(const adamw_case_t *c, const masters_data_t *d, int64_t count,
                               const double *scale, const optim_now_t *now) {
  return (op_adamw_t){.count = count, .decayed = count / 2, .p = ops_copy(d->p, count),
                      .m = ops_floats(count), .v = ops_floats(count), .scale = scale, .now = now,
                      .beta1 = c->beta1, .beta2 = c->beta2, .eps = c->eps,
                      .weight_decay = c->weight_decay};
}

/* The same updates of fp32 parameters and of bf16 ones with their masters' rests. */
static void check_masters(const adamw_case_t *c, int64_t count) {
  masters_data_t d = masters_make(count);
  const double *scale = OPS_PUT(double, 1, c->scale);
  optim_now_t *now = ops_memory(1, sizeof *now);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .weight_dtype = NN_BF16, .training = 1});
  while (ops_next(&trial)) {
    op_adamw_t wide = masters_wide(c, &d, count, scale, now), narrow = wide;
    uint16_t *p = ops_memory(count, sizeof *p);
    int16_t *low = ops_memory(count, sizeof *low);
    for (int64_t i = 0; i < count; i++) {
      uint32_t bits = bits_of(d.p[i]), up = (bits & 0x8000) != 0;
      p[i] = (uint16_t)((bits >> 16) + up);
      low[i] = (int16_t)((int32_t)(bits & 0xffff) - 65536 * (int32_t)up);
    }
    narrow.weight_dtype = NN_BF16, narrow.p = p, narrow.p_low = low;
    narrow.m = ops_floats(count), narrow.v = ops_floats(count);
    for (int s = 0; s < STEPS; s++) {
      wide.g = narrow.g = d.g[s], *now = now_of(c, s + 1);
      OPS_RUN(&trial, adamw, &wide);
      OPS_RUN(&trial, adamw, &narrow);
      check_masters_step(&trial, s + 1, &wide, &narrow);
    }
    ops_check_bits(&trial, 0, "p", p, (size_t)count * sizeof *p);
    ops_check_bits(&trial, 1, "p_low", low, (size_t)count * sizeof *low);
  }
  ops_free();
}

/* The same with fp16 ones and their masters, which begin as zeros; then with a parameter that
 * somebody wrote, in both. */
static void check_whole_masters(const adamw_case_t *c, int64_t count) {
  masters_data_t d = masters_make(count);
  uint16_t *first = ops_pack(d.p, count, NN_F16);
  for (int64_t i = 0; i < count; i++) d.p[i] = (float)ops_weight(first, NN_F16, i);
  const double *scale = OPS_PUT(double, 1, c->scale);
  optim_now_t *now = ops_memory(1, sizeof *now);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .weight_dtype = NN_F16, .training = 1});
  while (ops_next(&trial)) {
    op_adamw_t wide = masters_wide(c, &d, count, scale, now), narrow = wide;
    float *want = wide.p, *master = ops_floats(count);
    uint16_t *p = ops_memory(count, sizeof *p);
    memcpy(p, first, (size_t)count * sizeof *p);
    narrow.weight_dtype = NN_F16, narrow.p = p, narrow.master = master;
    narrow.m = ops_floats(count), narrow.v = ops_floats(count);
    for (int s = 0; s < STEPS; s++) {
      wide.g = narrow.g = d.g[s], *now = now_of(c, s + 1);
      if (s == 3) p[count / 2] = 0xbe00, want[count / 2] = -1.5f;
      OPS_RUN(&trial, adamw, &wide);
      OPS_RUN(&trial, adamw, &narrow);
      assert_memory_equal(master, want, (size_t)count * sizeof *want);
      for (int64_t i = 0; i < count; i++) assert_int_equal(p[i], dtype_f32_to_f16(want[i]));
    }
    ops_check_bits(&trial, 0, "p", p, (size_t)count * sizeof *p);
  }
  ops_free();
}

static void test_masters_of_fp16_follow_fp32(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int j = 0; j < COUNTS - 1; j++) check_whole_masters(&cases[i], counts[j]);
}

static void test_masters_of_bf16_follow_fp32(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int j = 0; j < COUNTS - 1; j++) check_masters(&cases[i], counts[j]);
}

static void test_adamw_refuses_a_norm_that_is_not_finite(void **state) {
  (void)state;
  enum { COUNT = 100 };
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .training = 1});
  while (ops_next(&trial)) {
    const double norms[] = {NAN, INFINITY};
    for (int i = 0; i < 4; i++) {
      float *p = ops_uniform(COUNT, 1, 1), *m = ops_uniform(COUNT, 1, 2),
            *v = ops_uniform(COUNT, 1, 3);
      float *low = ops_uniform(COUNT, 1, 4); /* holds more than is needed, as p does for bf16 */
      const double *scale = OPS_PUT(double, norms[i % 2], 1);
      op_adamw_t op = {.count = COUNT,
                       .decayed = COUNT,
                       .p = ops_copy(p, COUNT),
                       .g = p,
                       .m = ops_copy(m, COUNT),
                       .v = ops_copy(v, COUNT),
                       .scale = scale,
                       .now = OPS_PUT(optim_now_t, now_of(&cases[0], 1)),
                       .beta1 = 0.9f,
                       .beta2 = 0.95f,
                       .eps = 1e-8f};
      void *rest = ops_copy(low, COUNT);
      if (i / 2) op.weight_dtype = NN_BF16, op.p_low = rest;
      OPS_RUN(&trial, adamw, &op);
      assert_memory_equal(op.p, p, COUNT * sizeof *p);
      assert_memory_equal(rest, low, COUNT * sizeof *low);
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
      cmocka_unit_test(test_masters_of_bf16_follow_fp32),
      cmocka_unit_test(test_masters_of_fp16_follow_fp32),
      cmocka_unit_test(test_adamw_refuses_a_norm_that_is_not_finite),
  };
  return cmocka_run_group_tests_name("optim", tests, NULL, NULL);
}
