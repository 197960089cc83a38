/* Head with cross-entropy, forward alone and with gradients, over one chunk of rows and several;
 * and softmax of rows. */
#include <math.h>
#include <string.h>

#include "ops.h"
#include "select.h"

typedef struct loss_case {
  int64_t n, hidden, vocab;
  int32_t dtype, no_targets; /* no_targets: every row is left out */
  float alpha;
  int32_t biased;
} loss_case_t;

static const loss_case_t cases[] = {
    {1, 1, 1, NN_F32, 0, 0, 0}, {1, 17, 3, NN_F32, 0, 0, 0}, {3, 16, 65, NN_F32, 0, 0, 0},
    {65, 64, 130, NN_F32, 0, 0, 0}, {130, 33, 1000, NN_BF16, 0, 0, 0},
    {200, 20, 257, NN_F32, 0, 0, 0}, {17, 65, 17, NN_F32, 1, 0, 0}, {1100, 8, 50, NN_F32, 0, 0, 0},
    {66, 1, 262145, NN_F32, 0, 0, 0}, {200, 40, 300, NN_F32, 0, 0, 0},
    {65, 20, 130, NN_F32, 0, 0.4f, 0}, {33, 17, 65, NN_BF16, 0, 1.5f, 0},
    {65, 20, 130, NN_F32, 0, 0.4f, 1}, {200, 33, 300, NN_BF16, 0, 0, 1},
    {130, 33, 1000, NN_F16, 0, 0, 0}, {5, 65, 17, NN_F16, 0, 1.5f, 0},
};

typedef struct loss64 {
  int64_t n, hidden, vocab;
  const int32_t *target;
  double alpha, scale, rounding; /* relative, of the logits' gradients before they are multiplied */
  double *x, *w, *bias;              /* [n, hidden], [V, hidden], [V] */
  double *dbias, *dbias_slack;
  double *logit, *row_loss, *dx, *dw; /* logit: [V] of one row */
  double *row_slack, *dx_slack, *dw_slack;
} loss64_t;

/* Logits of a row; returns log-sum-exp, and the error of fp32 logits. */
static double loss64_row(const loss64_t *l, int64_t row, double *error) {
  double most = -INFINITY, sum = 0, size_most = 0;
  for (int64_t v = 0; v < l->vocab; v++) {
    double size = 0;
    l->logit[v] = l->alpha * l->bias[v];
    size = fabs(l->logit[v]);
    for (int64_t i = 0; i < l->hidden; i++) {
      double term = l->alpha * l->x[row * l->hidden + i] * l->w[v * l->hidden + i];
      l->logit[v] += term;
      size += fabs(term);
    }
    most = fmax(most, l->logit[v]);
    size_most = fmax(size_most, size);
  }
  for (int64_t v = 0; v < l->vocab; v++) sum += exp(l->logit[v] - most);
  *error = ops_sum_error(l->hidden + 1) * size_most;
  return most + log(sum);
}

static double loss64_loss(const void *context) {
  const loss64_t *l = context;
  double sum = 0, error;
  for (int64_t row = 0; row < l->n; row++) {
    double lse = loss64_row(l, row, &error);
    if (l->target[row] >= 0) sum += l->scale * (lse - l->logit[l->target[row]]);
  }
  return sum;
}

/* Probabilities have the relative error of two logits, of a sum over the vocabulary and of exp. */
static void loss64_run(loss64_t *l) {
  for (int64_t row = 0; row < l->n; row++) {
    double error, lse = loss64_row(l, row, &error);
    int64_t target = l->target[row];
    if (target < 0) continue;
    double relative = 2 * error + ops_sum_error(l->vocab) + 16 * OPS_U;
    l->row_loss[row] = lse - l->logit[target];
    l->row_slack[row] = relative + 8 * OPS_U * (fabs(lse) + fabs(l->logit[target]));
    relative += 8 * OPS_U * fabs(lse); /* where lse is rounded before it is used */
    for (int64_t v = 0; v < l->vocab; v++) {
      double p = exp(l->logit[v] - lse), scale = l->scale * l->alpha;
      double dl = scale * (p - (v == target));
      double off = scale * (p * relative + 2 * OPS_U * (v == target)) + l->rounding * fabs(dl);
      l->dbias[v] += dl;
      l->dbias_slack[v] += off + ops_sum_error(l->n + 1) * fabs(dl);
      for (int64_t i = 0; i < l->hidden; i++) {
        double x = l->x[row * l->hidden + i], w = l->w[v * l->hidden + i];
        l->dx[row * l->hidden + i] += dl * w;
        l->dw[v * l->hidden + i] += dl * x;
        l->dx_slack[row * l->hidden + i] += fabs(w) * (off + ops_sum_error(l->vocab) * fabs(dl));
        l->dw_slack[v * l->hidden + i] += fabs(x) * (off + ops_sum_error(l->n + 1) * fabs(dl));
      }
    }
  }
}

typedef struct loss_data {
  float *x;
  void *w, *bias;
  loss64_t exact;
} loss_data_t;

static loss_data_t loss_make(const loss_case_t *c, double rounding) {
  loss_data_t d = {0};
  int32_t *target = ops_ints(c->n);
  for (int64_t t = 0; t < c->n; t++) {
    target[t] = (int32_t)ops_random_index(c->vocab, 3, (uint64_t)t);
    if (c->no_targets || t % 7 == 5) target[t] = -1;
  }
  d.x = ops_inputs(c->n * c->hidden, c->dtype, 1, 1);
  d.w = ops_weights(c->vocab * c->hidden, c->dtype, (float)(4 / sqrt((double)c->hidden)), 0, 2);
  loss64_t *l = &d.exact;
  *l = (loss64_t){.n = c->n, .hidden = c->hidden, .vocab = c->vocab, .target = target};
  l->rounding = rounding, l->alpha = (double)backend_factor(c->alpha);
  l->scale = (float)(1 / (double)c->n);
  l->x = ops_widen(d.x, NN_F32, c->n * c->hidden);
  l->w = ops_widen(d.w, c->dtype, c->vocab * c->hidden);
  if (c->biased) d.bias = ops_weights(c->vocab, c->dtype, 1, 0, 6);
  l->bias = ops_widen(d.bias, c->dtype, c->vocab);
  l->dbias = ops_doubles(c->vocab), l->dbias_slack = ops_doubles(c->vocab);
  l->logit = ops_doubles(c->vocab);
  l->row_loss = ops_doubles(c->n), l->row_slack = ops_doubles(c->n);
  l->dx = ops_doubles(c->n * c->hidden), l->dx_slack = ops_doubles(c->n * c->hidden);
  l->dw = ops_doubles(c->vocab * c->hidden), l->dw_slack = ops_doubles(c->vocab * c->hidden);
  loss64_run(l);
  return d;
}

/* The sum is one of the fp32 row losses in fp64, or of what they were before rounding. */
static void check_rows(ops_trial_t *trial, const op_head_loss_t *op, const loss64_t *l) {
  double sum = 0;
  ops_check(trial, 0, "row_loss", op->row_loss, l->row_loss, l->row_slack, l->n);
  for (int64_t t = 0; t < l->n; t++) {
    sum += op->row_loss[t];
    if (l->target[t] < 0) assert_true(op->row_loss[t] == 0);
  }
  assert_true(fabs(*op->loss_sum - sum) <= 2 * OPS_U * fabs(sum));
  ops_check_bits(trial, 1, "loss_sum", op->loss_sum, sizeof(double));
}

/* The paths that round to bf16 what they multiply with bf16 weights, and those that do not. */
static void check_paths(void (*check)(const loss_case_t *c, double rounding),
                        const loss_case_t *c) {
  check(c, 0);
  if (c->dtype == NN_BF16) check(c, 0x1p-8);
}

/* Assigned, dw is what it is added to zeros. */
static void check_assigned(ops_trial_t *trial, const loss_case_t *c, op_head_loss_t op) {
  int64_t count = c->vocab * c->hidden;
  float *added = op.dw = ops_floats(count);
  OPS_RUN(trial, head_loss, &op);
  op.dw = ops_floats(count), op.assign = 1;
  ops_garbage(op.dw, count);
  OPS_RUN(trial, head_loss, &op);
  for (int64_t i = 0; i < count; i++) assert_true(op.dw[i] == added[i]);
}

static void check_loss(const loss_case_t *c, double rounding) {
  if (c->dtype != NN_F32 && !ops_widens()) return;
  loss_data_t d = loss_make(c, rounding);
  loss64_t *l = &d.exact;
  int64_t x_count = c->n * c->hidden, w_count = c->vocab * c->hidden;
  float *dw = ops_uniform(w_count, 1, 5);
  for (int64_t i = 0; i < w_count; i++) {
    l->dw[i] += dw[i];
    l->dw_slack[i] += ops_sum_error(c->n + 1) * fabs(dw[i]) + OPS_U * fabs(l->dw[i]);
  }
  double *loss_sum = ops_doubles(1);
  op_head_loss_t op = {.n = c->n, .hidden = c->hidden, .vocab = c->vocab, .x = d.x, .w = d.w,
                       .weight_dtype = c->dtype, .target = l->target, .loss_sum = loss_sum,
                       .scale = OPS_PUT(float, (float)l->scale), .alpha = c->alpha,
                       .bias = d.bias};
  float *dbias = ops_uniform(c->vocab, 1, 7);
  for (int64_t v = 0; v < c->vocab; v++) {
    l->dbias[v] += dbias[v];
    l->dbias_slack[v] += ops_sum_error(c->n + 1) * fabs(dbias[v]) + OPS_U * fabs(l->dbias[v]);
  }
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = c->n, .hidden = c->hidden, .vocab = c->vocab,
                                       .weight_dtype = c->dtype, .training = 1});
  while (ops_next(&trial)) {
    if (ops_rounding(&trial, c->dtype) != rounding) continue;
    if (trial.repeat && c->n * w_count >= 1 << 23) continue; /* slow, and there for its chunks */
    op.row_loss = ops_floats(c->n), op.dx = ops_floats(x_count), op.dw = ops_copy(dw, w_count);
    ops_garbage(op.row_loss, c->n), ops_garbage(op.dx, x_count), *loss_sum = NAN;
    if (c->biased) op.dbias = ops_copy(dbias, c->vocab);
    OPS_RUN(&trial, head_loss, &op);
    if (c->biased) ops_check(&trial, 4, "dbias", op.dbias, l->dbias, l->dbias_slack, c->vocab);
    check_rows(&trial, &op, l);
    ops_check(&trial, 2, "dx", op.dx, l->dx, l->dx_slack, x_count);
    ops_check(&trial, 3, "dw", op.dw, l->dw, l->dw_slack, w_count);
    check_assigned(&trial, c, op);
    ops_garbage(op.row_loss, c->n), *loss_sum = NAN;
    op.dx = op.dw = NULL, op.dbias = NULL;
    OPS_RUN(&trial, head_loss, &op);
    check_rows(&trial, &op, l);
    if (c->n * w_count >= 1 << 21) OPS_RUN_CANCELLED(&trial, head_loss, &op);
  }
  ops_free();
}

static void test_head_loss(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const loss_case_t *c = &cases[i];
    double work = (double)(c->n * c->vocab) * (3.0 * (double)c->hidden + 30); /* and exponentials */
    if (select_case(work)) check_paths(check_loss, c);
  }
}

/* A target whose logit is -infinity has an infinite loss, and softmax(l) - onehot(target) is
 * finite: the gradients tell all the same, without a change to those of other rows. */
static void test_infinite_loss(void **state) {
  (void)state;
  enum { N = 3, H = 20, V = 65, BAD = 1, MASKED = 2 };
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = N, .hidden = H, .vocab = V, .training = 1});
  while (ops_next(&trial)) {
    float *bias = ops_uniform(V, 1, 3), *dx = ops_floats(N * H);
    bias[MASKED] = -INFINITY;
    op_head_loss_t op = {.n = N, .hidden = H, .vocab = V, .x = ops_uniform(N * H, 1, 1),
                         .w = ops_uniform(V * H, 1, 2), .bias = bias,
                         .target = OPS_PUT(int32_t, 7, MASKED, 64), .scale = OPS_PUT(float, 0.5f),
                         .row_loss = ops_floats(N), .loss_sum = ops_doubles(1),
                         .dx = dx, .dw = ops_floats(V * H), .dbias = ops_floats(V)};
    OPS_RUN(&trial, head_loss, &op);
    assert_true(isinf(op.row_loss[BAD]) && isinf(*op.loss_sum));
    for (int64_t i = 0; i < N * H; i++)
      assert_true(i / H == BAD ? isnan(dx[i]) : isfinite(dx[i]));
    for (int64_t i = 0; i < V * H; i++) assert_true(isnan(op.dw[i]));
    for (int64_t i = 0; i < V; i++) assert_true(isnan(op.dbias[i]));
  }
  ops_free();
}

static void test_gradients_by_finite_differences(void **state) {
  (void)state;
  const loss_case_t c = {8, 5, 7, NN_F32, 0, 0.5f, 1};
  loss64_t l = loss_make(&c, 0).exact;
  ops_check_gradient("dx", loss64_loss, &l, l.x, l.dx, c.n * c.hidden);
  ops_check_gradient("dw", loss64_loss, &l, l.w, l.dw, c.vocab * c.hidden);
  ops_check_gradient("dbias", loss64_loss, &l, l.bias, l.dbias, c.vocab);
  ops_free();
}

/* ---- softmax ---- */

/* The argument x - max of exp is rounded, which exp turns into a relative error of u |x - max|.
 * What would be below the smallest normal number may be flushed. */
static void check_softmax(int64_t n, int64_t width, float scale, int hole) {
  int64_t count = n * width;
  float *x = ops_uniform(count, scale, 1);
  for (int64_t i = 0; hole && i < count; i += 3) x[i] = width > 1 ? -INFINITY : 0;
  double *want = ops_doubles(count), *slack = ops_doubles(count);
  for (int64_t row = 0; row < n; row++) {
    double most = -INFINITY, sum = 0;
    for (int64_t i = row * width; i < (row + 1) * width; i++) most = fmax(most, x[i]);
    for (int64_t i = row * width; i < (row + 1) * width; i++) sum += exp(x[i] - most);
    for (int64_t i = row * width; i < (row + 1) * width; i++) {
      want[i] = exp(x[i] - most) / sum;
      slack[i] = isinf(x[i])
                     ? 0
                     : want[i] * (ops_sum_error(width) + OPS_U * (16 + most - x[i])) + 0x1p-126;
    }
  }
  op_softmax_t op = {.n = n, .width = width, .x = x};
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = n, .vocab = width});
  while (ops_next(&trial)) {
    op.x = x, op.y = ops_floats(count);
    ops_garbage(op.y, count);
    OPS_RUN(&trial, softmax, &op);
    ops_check(&trial, 0, "y", op.y, want, slack, count);
    op.y = ops_copy(x, count), op.x = op.y;
    OPS_RUN(&trial, softmax, &op);
    ops_check(&trial, 0, "y in place", op.y, want, slack, count);
    if (count >= 1 << 16) OPS_RUN_CANCELLED(&trial, softmax, &op);
  }
  ops_free();
}

static void test_softmax(void **state) {
  (void)state;
  const int64_t widths[] = {1, 2, 3, 17, 65, 130, 1000};
  for (int i = 0; i < 7; i++) {
    check_softmax(1, widths[i], 1, 0);
    check_softmax(7, widths[i], 50, 0);
    check_softmax(5, widths[i], 1e4f, 1);
  }
  check_softmax(130, 700, 10, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_head_loss),
      cmocka_unit_test(test_infinite_loss),
      cmocka_unit_test(test_gradients_by_finite_differences),
      cmocka_unit_test(test_softmax),
  };
  return cmocka_run_group_tests_name("loss", tests, NULL, NULL);
}
