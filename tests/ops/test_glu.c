/* Gated linear units, plain and clamped, with and without factors of their rows, and gradients. */
#include <math.h>

#include "ops.h"

typedef struct glu_case {
  int64_t n, ffn;
  float limit;
  int32_t weighted;
} glu_case_t;

static const glu_case_t cases[] = {
    {1, 1, 0, 0},     {1, 64, 0, 1},    {3, 17, 0, 0},     {33, 65, 0, 1},
    {130, 600, 0, 0}, {1, 5, 1.5f, 1},  {17, 33, 1.5f, 0}, {130, 515, 2, 1},
};

typedef struct glu64 {
  int64_t n, ffn;
  double limit;
  double *x, *weight, *dy;       /* [n, 2F], [n], [n, F] */
  double *y, *dx, *dweight;
  double *y_slack, *dx_slack, *dweight_slack;
} glu64_t;

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

static double act64(double g, double u, double limit) {
  if (limit == 0) return g * sigmoid(g) * u;
  double inner = fmin(g, limit);
  return (fmax(fmin(u, limit), -limit) + 1) * inner * sigmoid(1.702 * inner);
}

static double glu64_loss(const void *context) {
  const glu64_t *c = context;
  double loss = 0;
  for (int64_t i = 0; i < c->n * c->ffn; i++) {
    const double *x = c->x + i / c->ffn * 2 * c->ffn + i % c->ffn;
    loss += c->dy[i] * c->weight[i / c->ffn] * act64(x[0], x[c->ffn], c->limit);
  }
  return loss;
}

/* fp32 evaluates a sigmoid of z to a few units in the last place of 1 + |z|, here of at most
 * 1.702 |g|, and u + 1 to one of 1 + |u|. */
static void glu64_run(glu64_t *c) {
  for (int64_t i = 0; i < c->n * c->ffn; i++) {
    int64_t row = i / c->ffn, at = row * 2 * c->ffn + i % c->ffn;
    double g = c->x[at], u = c->x[at + c->ffn], w = c->weight[row], d = c->dy[i];
    double a = act64(g, u, c->limit), off = 32 * OPS_U * (1 + fabs(g));
    double size = fabs(g) * (1 + fabs(u));
    c->y[i] = w * a;
    c->y_slack[i] = off * w * size;
    double k = c->limit == 0 ? 1 : 1.702;
    double up = c->limit == 0 ? u : fmax(fmin(u, c->limit), -c->limit) + 1;
    double inner = c->limit == 0 ? g : fmin(g, c->limit), s = sigmoid(k * inner);
    int g_moves = c->limit == 0 || g <= c->limit, u_moves = c->limit == 0 || fabs(u) <= c->limit;
    c->dx[at] = g_moves ? w * d * up * s * (1 + k * inner * (1 - s)) : 0;
    c->dx[at + c->ffn] = u_moves ? w * d * inner * s : 0;
    c->dx_slack[at] = 2 * off * w * fabs(d) * (1 + fabs(u));
    c->dx_slack[at + c->ffn] = 2 * off * w * fabs(d);
    c->dweight[row] += d * a;
    c->dweight_slack[row] += fabs(d) * (off * size + ops_sum_error(c->ffn) * fabs(a));
  }
}

typedef struct glu_data {
  float *x, *weight, *dy;
  glu64_t exact;
} glu_data_t;

static glu_data_t glu_make(const glu_case_t *c) {
  int64_t count = c->n * c->ffn;
  glu_data_t d = {ops_uniform(2 * count, 4, 1), ops_uniform(c->n, 0.5f, 2),
                  ops_uniform(count, 1, 3), {.n = c->n, .ffn = c->ffn, .limit = c->limit}};
  glu64_t *e = &d.exact;
  e->x = ops_doubles(2 * count), e->weight = ops_doubles(c->n), e->dy = ops_doubles(count);
  e->y = ops_doubles(count), e->dx = ops_doubles(2 * count), e->dweight = ops_doubles(c->n);
  e->y_slack = ops_doubles(count), e->dx_slack = ops_doubles(2 * count);
  e->dweight_slack = ops_doubles(c->n);
  for (int64_t i = 0; i < 2 * count; i++) e->x[i] = d.x[i];
  for (int64_t i = 0; i < count; i++) e->dy[i] = d.dy[i];
  for (int64_t i = 0; i < c->n; i++) {
    d.weight[i] += 0.75f;
    e->weight[i] = c->weighted ? d.weight[i] : 1;
  }
  glu64_run(e);
  return d;
}

static backend_limits_t glu_limits(const glu_case_t *c) {
  return (backend_limits_t){.rows = c->n, .ffn = c->ffn, .training = 1};
}

static void check_glu(const glu_case_t *c) {
  glu_data_t d = glu_make(c);
  int64_t count = c->n * c->ffn;
  op_glu_t op = {.n = c->n, .ffn = c->ffn, .limit = c->limit, .x = d.x};
  if (c->weighted) op.weight = d.weight;
  ops_trial_t trial;
  ops_begin(&trial, glu_limits(c));
  while (ops_next(&trial)) {
    op.y = ops_floats(count);
    ops_garbage(op.y, count);
    OPS_RUN(&trial, glu, &op);
    ops_check(&trial, 0, "y", op.y, d.exact.y, d.exact.y_slack, count);
    if (count >= 1 << 16) OPS_RUN_CANCELLED(&trial, glu, &op);
  }
  ops_free();
}

/* Apart, and with the results where the inputs are. */
static void check_glu_bwd(const glu_case_t *c) {
  glu_data_t d = glu_make(c);
  const glu64_t *e = &d.exact;
  int64_t count = c->n * c->ffn;
  op_glu_bwd_t op = {.n = c->n, .ffn = c->ffn, .limit = c->limit};
  if (c->weighted) op.weight = d.weight;
  ops_trial_t trial;
  ops_begin(&trial, glu_limits(c));
  while (ops_next(&trial)) {
    for (int way = 0; way < 3; way++) { /* apart without y, apart, in place */
      float *x = ops_copy(d.x, 2 * count), *dy = ops_copy(d.dy, count);
      op.x = x, op.dy = dy;
      op.dx = way < 2 ? ops_floats(2 * count) : x;
      op.y = way == 0 ? NULL : way == 1 ? ops_floats(count) : dy;
      op.dweight = c->weighted ? ops_floats(c->n) : NULL;
      OPS_RUN(&trial, glu_bwd, &op);
      ops_check(&trial, 0, "dx", op.dx, e->dx, e->dx_slack, 2 * count);
      if (op.y) ops_check(&trial, 1, "y", op.y, e->y, e->y_slack, count);
      if (op.dweight)
        ops_check(&trial, 2, "dweight", op.dweight, e->dweight, e->dweight_slack, c->n);
    }
    if (count >= 1 << 16) OPS_RUN_CANCELLED(&trial, glu_bwd, &op);
  }
  ops_free();
}

static void test_forward(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_glu(&cases[i]);
}

static void test_backward(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_glu_bwd(&cases[i]);
}

/* The published check values of the clamped form with a limit of 7, of nine digits. */
static void test_clamped_values(void **state) {
  (void)state;
  enum { N = 4 };
  const float *x = OPS_PUT(float, 1, .5f, -1, 2, 10, -9, -20, 3);
  const double want[N] = {1.26869365, -.462612702, -41.9997188, -1.3173641e-13};
  double slack[N];
  for (int i = 0; i < N; i++) slack[i] = 1e-8 * fabs(want[i]) + 32 * 21 * OPS_U * fabs(want[i]);
  op_glu_t op = {.n = N, .ffn = 1, .limit = 7, .x = x};
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = N, .ffn = 1});
  while (ops_next(&trial)) {
    op.y = ops_floats(N);
    OPS_RUN(&trial, glu, &op);
    ops_check(&trial, 0, "y", op.y, want, slack, N);
  }
  ops_free();
}

static void test_gradients_by_finite_differences(void **state) {
  (void)state;
  const glu_case_t small[] = {{3, 5, 0, 1}, {3, 5, 1.5f, 1}};
  for (int i = 0; i < 2; i++) {
    glu64_t e = glu_make(&small[i]).exact;
    ops_check_gradient("dx", glu64_loss, &e, e.x, e.dx, 2 * e.n * e.ffn);
    ops_check_gradient("dweight", glu64_loss, &e, e.weight, e.dweight, e.n);
    ops_free();
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_forward),
      cmocka_unit_test(test_backward),
      cmocka_unit_test(test_clamped_values),
      cmocka_unit_test(test_gradients_by_finite_differences),
  };
  return cmocka_run_group_tests_name("glu", tests, NULL, NULL);
}
