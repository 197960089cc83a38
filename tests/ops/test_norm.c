/* RMS norm and layer norm, forward and backward. */
#include <math.h>
#include <string.h>

#include "ops.h"

typedef struct norm_case {
  int64_t n, hidden;
  int32_t kind, dtype, biased;
} norm_case_t;

static const norm_case_t cases[] = {
    {1, 1, NN_NORM_RMS, NN_F32, 0},      {1, 64, NN_NORM_RMS, NN_F32, 0},
    {3, 17, NN_NORM_RMS, NN_BF16, 0},    {17, 65, NN_NORM_RMS, NN_F32, 0},
    {130, 768, NN_NORM_RMS, NN_F32, 0},  {9, 100, NN_NORM_RMS, NN_F32, 1},
    {1, 5, NN_NORM_LAYER, NN_F32, 1},    {65, 16, NN_NORM_LAYER, NN_BF16, 1},
    {17, 65, NN_NORM_RMS, NN_F16, 0},    {9, 130, NN_NORM_LAYER, NN_F16, 1},
    {9, 130, NN_NORM_LAYER, NN_F32, 0},  {130, 768, NN_NORM_LAYER, NN_F32, 1},
};

/* A case's data in fp64, gradients included. */
typedef struct norm64 {
  int64_t n, hidden;
  int32_t kind;
  double eps;
  double *x, *w, *b, *dy;                  /* b all zero where there is none */
  double *y, *mean, *rstd, *dx, *dw, *db;
} norm64_t;

static void norm64_row(const norm64_t *c, int64_t row, double *mean, double *rstd) {
  double sum = 0, square = 0;
  for (int64_t j = 0; j < c->hidden; j++) sum += c->x[row * c->hidden + j];
  *mean = c->kind == NN_NORM_LAYER ? sum / (double)c->hidden : 0;
  for (int64_t j = 0; j < c->hidden; j++) square += pow(c->x[row * c->hidden + j] - *mean, 2);
  *rstd = 1 / sqrt(square / (double)c->hidden + c->eps);
}

static double norm64_element(const norm64_t *c, int64_t i, double mean, double rstd) {
  return (c->x[i] - mean) * rstd * c->w[i % c->hidden] + c->b[i % c->hidden];
}

/* What gradients are the derivatives of. */
static double norm64_loss(const void *context) {
  const norm64_t *c = context;
  double loss = 0;
  for (int64_t row = 0; row < c->n; row++) {
    double mean, rstd;
    norm64_row(c, row, &mean, &rstd);
    for (int64_t i = row * c->hidden; i < (row + 1) * c->hidden; i++)
      loss += c->dy[i] * norm64_element(c, i, mean, rstd);
  }
  return loss;
}

static void norm64_run(norm64_t *c) {
  double h = (double)c->hidden;
  for (int64_t row = 0; row < c->n; row++) {
    int64_t begin = row * c->hidden, end = begin + c->hidden;
    norm64_row(c, row, &c->mean[row], &c->rstd[row]);
    double mean_g = 0, mean_gx = 0;
    for (int64_t i = begin; i < end; i++) {
      double xhat = (c->x[i] - c->mean[row]) * c->rstd[row], g = c->dy[i] * c->w[i - begin];
      c->y[i] = norm64_element(c, i, c->mean[row], c->rstd[row]);
      c->dw[i - begin] += c->dy[i] * xhat;
      c->db[i - begin] += c->dy[i];
      mean_g += c->kind == NN_NORM_LAYER ? g / h : 0;
      mean_gx += g * xhat / h;
    }
    for (int64_t i = begin; i < end; i++) {
      double xhat = (c->x[i] - c->mean[row]) * c->rstd[row], g = c->dy[i] * c->w[i - begin];
      c->dx[i] = c->rstd[row] * (g - mean_g - xhat * mean_gx);
    }
  }
}

typedef struct norm_data {
  float *x, *dy;
  void *w, *b;
  norm64_t exact;
} norm_data_t;

static norm_data_t norm_make(const norm_case_t *c) {
  int64_t count = c->n * c->hidden;
  norm_data_t d = {0};
  d.x = ops_uniform(count, 2, 1);
  for (int64_t i = 0; i < count; i++) d.x[i] += 0.5f; /* a mean that matters */
  d.dy = ops_uniform(count, 1, 2);
  d.w = ops_weights(c->hidden, c->dtype, 0.5f, 1, 3);
  d.b = c->biased ? ops_weights(c->hidden, c->dtype, 1, 0, 4) : NULL;
  norm64_t *e = &d.exact;
  *e = (norm64_t){.n = c->n, .hidden = c->hidden, .kind = c->kind, .eps = 1e-5f};
  e->x = ops_widen(d.x, NN_F32, count);
  e->dy = ops_widen(d.dy, NN_F32, count);
  e->w = ops_widen(d.w, c->dtype, c->hidden);
  e->b = ops_widen(d.b, c->dtype, c->hidden);
  e->y = ops_doubles(count), e->dx = ops_doubles(count);
  e->mean = ops_doubles(c->n), e->rstd = ops_doubles(c->n);
  e->dw = ops_doubles(c->hidden), e->db = ops_doubles(c->hidden);
  norm64_run(e);
  return d;
}

static backend_limits_t norm_limits(const norm_case_t *c) {
  return (backend_limits_t){
      .rows = c->n, .hidden = c->hidden, .weight_dtype = c->dtype, .training = 1};
}

/* Errors of a row: its sums have relative errors of ops_sum_error(hidden) against sums of
 * magnitudes; |x| <= 2.5, and the mean and the deviation of such rows are of the order of |x|, so
 * that subtracting the mean loses at most a factor of 4 (a layer norm of hidden = 1, whose
 * deviation is 0, is no case). */
static void check_norm(const norm_case_t *c) {
  if (c->dtype != NN_F32 && !ops_widens()) return;
  norm_data_t d = norm_make(c);
  int64_t count = c->n * c->hidden;
  double relative = 4 * (ops_sum_error(c->hidden) + 4 * OPS_U);
  double *slack = ops_doubles(count), *slack_mean = ops_doubles(c->n),
         *slack_rstd = ops_doubles(c->n);
  for (int64_t row = 0; row < c->n; row++) {
    slack_mean[row] = 2.5 * relative;
    slack_rstd[row] = d.exact.rstd[row] * relative * (1 + 2.5 * d.exact.rstd[row]);
    for (int64_t i = row * c->hidden; i < (row + 1) * c->hidden; i++)
      slack[i] = relative * (5 * 1.5 * d.exact.rstd[row] * (1 + d.exact.rstd[row]) + 1);
  }
  op_norm_t op = {.n = c->n, .hidden = c->hidden, .kind = c->kind, .eps = 1e-5f, .x = d.x, .w = d.w,
                  .b = d.b, .weight_dtype = c->dtype};
  ops_trial_t trial;
  ops_begin(&trial, norm_limits(c));
  while (ops_next(&trial)) {
    op.y = ops_floats(count);
    op.rstd = ops_floats(c->n);
    op.mean = c->kind == NN_NORM_LAYER ? ops_floats(c->n) : NULL;
    ops_garbage(op.y, count);
    ops_garbage(op.rstd, c->n);
    OPS_RUN(&trial, norm, &op);
    ops_check(&trial, 0, "y", op.y, d.exact.y, slack, count);
    ops_check(&trial, 1, "rstd", op.rstd, d.exact.rstd, slack_rstd, c->n);
    if (op.mean) ops_check(&trial, 2, "mean", op.mean, d.exact.mean, slack_mean, c->n);
    op.mean = op.rstd = NULL;
    ops_garbage(op.y, count);
    OPS_RUN(&trial, norm, &op);
    ops_check(&trial, 0, "y without statistics", op.y, d.exact.y, slack, count);
    if (count >= 1 << 16) OPS_RUN_CANCELLED(&trial, norm, &op);
  }
  ops_free();
}

/* dx: as above, with g below 1.5 in place of x. dw and db: sums over n rows of terms below the
 * largest |dy xhat|. What is accumulated to is below 1. */
static void check_norm_bwd(const norm_case_t *c) {
  if (c->dtype != NN_F32 && !ops_widens()) return;
  norm_data_t d = norm_make(c);
  norm64_t *e = &d.exact;
  int64_t count = c->n * c->hidden;
  float *dx = ops_uniform(count, 1, 5), *dw = ops_uniform(c->hidden, 1, 6);
  float *db = ops_uniform(c->hidden, 1, 7), *mean = ops_floats(c->n), *rstd = ops_floats(c->n);
  double *slack_dx = ops_doubles(count), *slack_dw = ops_doubles(c->hidden);
  double xhat_most = 0;
  for (int64_t row = 0; row < c->n; row++) {
    mean[row] = (float)e->mean[row];
    rstd[row] = (float)e->rstd[row];
    for (int64_t i = row * c->hidden; i < (row + 1) * c->hidden; i++) {
      double xhat = fabs(e->x[i] - e->mean[row]) * e->rstd[row];
      xhat_most = fmax(xhat_most, xhat);
      slack_dx[i] = 4 * (ops_sum_error(c->hidden) + 6 * OPS_U) * e->rstd[row] * 1.5 *
                        (2 + xhat) * (1 + e->rstd[row]) + 4 * OPS_U;
      e->dx[i] += dx[i];
    }
  }
  for (int64_t j = 0; j < c->hidden; j++) {
    slack_dw[j] = (ops_sum_error(c->n + 1) + 6 * OPS_U) * (1 + (double)c->n * (1 + xhat_most));
    e->dw[j] += dw[j];
    e->db[j] += db[j];
  }
  op_norm_bwd_t op = {.n = c->n,
                      .hidden = c->hidden,
                      .kind = c->kind,
                      .x = d.x,
                      .dy = d.dy,
                      .w = d.w,
                      .weight_dtype = c->dtype,
                      .rstd = rstd};
  op.mean = c->kind == NN_NORM_LAYER ? mean : NULL;
  ops_trial_t trial;
  ops_begin(&trial, norm_limits(c));
  while (ops_next(&trial)) {
    op.dx = ops_copy(dx, count);
    op.dw = ops_copy(dw, c->hidden);
    op.db = c->biased ? ops_copy(db, c->hidden) : NULL;
    OPS_RUN(&trial, norm_bwd, &op);
    ops_check(&trial, 0, "dx", op.dx, e->dx, slack_dx, count);
    ops_check(&trial, 1, "dw", op.dw, e->dw, slack_dw, c->hidden);
    if (c->biased) ops_check(&trial, 2, "db", op.db, e->db, slack_dw, c->hidden);
    if (count >= 1 << 16) OPS_RUN_CANCELLED(&trial, norm_bwd, &op);
  }
  ops_free();
}

/* ---- groups of a row, between strides ---- */

typedef struct group_case {
  int64_t n, groups, pad;
  norm_case_t norm; /* n: rows times groups */
} group_case_t;

static const group_case_t group_cases[] = {
    {1, 1, 3, {1, 16, NN_NORM_RMS, NN_F32, 0}},     {3, 4, 0, {12, 6, NN_NORM_RMS, NN_F32, 0}},
    {17, 3, 5, {51, 20, NN_NORM_RMS, NN_BF16, 0}},  {9, 5, 64, {45, 64, NN_NORM_RMS, NN_F32, 0}},
    {70, 12, 128, {840, 128, NN_NORM_RMS, NN_F32, 0}},
    {40, 2, 7, {80, 33, NN_NORM_LAYER, NN_F32, 1}}, {5, 1, 90, {5, 130, NN_NORM_RMS, NN_F32, 0}},
};

/* Dense [n, groups * hidden] as rows ld apart; `pad` fills what is between. */
static float *apart(const float *dense, const group_case_t *c, int64_t ld, float pad) {
  int64_t width = c->groups * c->norm.hidden;
  float *rows = ops_floats(c->n * ld);
  for (int64_t i = 0; i < c->n * ld; i++)
    rows[i] = i % ld < width ? dense[i / ld * width + i % ld] : pad;
  return rows;
}

/* The way back; what is between is as it was. */
static float *together(const float *rows, const group_case_t *c, int64_t ld, float pad) {
  int64_t width = c->groups * c->norm.hidden;
  float *dense = ops_floats(c->n * width);
  for (int64_t i = 0; i < c->n * ld; i++) {
    if (i % ld < width) dense[i / ld * width + i % ld] = rows[i];
    else assert_true(rows[i] == pad);
  }
  return dense;
}

static double norm_relative(const norm_case_t *c) {
  return 4 * (ops_sum_error(c->hidden) + 6 * OPS_U);
}

/* Tolerances as above, where they are derived: a group is a row. */
static void check_groups(const group_case_t *g) {
  const norm_case_t *c = &g->norm;
  if (c->dtype != NN_F32 && !ops_widens()) return;
  norm_data_t d = norm_make(c);
  norm64_t *e = &d.exact;
  int64_t count = c->n * c->hidden, width = g->groups * c->hidden;
  int64_t ldx = width + g->pad, ldy = g->pad ? width + 2 * g->pad : 0, rows_y = ldy ? ldy : width;
  double *slack = ops_doubles(count), *slack_dx = ops_doubles(count);
  double *slack_rstd = ops_doubles(c->n), *slack_dw = ops_doubles(c->hidden), xhat_most = 0;
  float *mean = ops_floats(c->n), *rstd = ops_floats(c->n);
  for (int64_t row = 0; row < c->n; row++) {
    double relative = norm_relative(c), r = e->rstd[row];
    mean[row] = (float)e->mean[row], rstd[row] = (float)r;
    slack_rstd[row] = r * relative * (1 + 2.5 * r);
    for (int64_t i = row * c->hidden; i < (row + 1) * c->hidden; i++) {
      double xhat = fabs(e->x[i] - e->mean[row]) * r;
      xhat_most = fmax(xhat_most, xhat);
      slack[i] = relative * (5 * 1.5 * r * (1 + r) + 1);
      slack_dx[i] = relative * r * 1.5 * (2 + xhat) * (1 + r) + 4 * OPS_U;
    }
  }
  for (int64_t j = 0; j < c->hidden; j++)
    slack_dw[j] = (ops_sum_error(c->n + 1) + 6 * OPS_U) * (1 + (double)c->n * (1 + xhat_most));
  op_norm_t op = {.n = g->n, .hidden = c->hidden, .groups = g->groups, .kind = c->kind, .w = d.w,
                  .b = d.b, .eps = 1e-5f, .weight_dtype = c->dtype, .ldx = ldx, .ldy = ldy};
  op_norm_bwd_t bwd = {.n = g->n, .hidden = c->hidden, .groups = g->groups, .kind = c->kind,
                       .w = d.w, .weight_dtype = c->dtype, .ldx = ldx, .ldy = ldy, .assign = 1,
                       .rstd = rstd};
  bwd.mean = c->kind == NN_NORM_LAYER ? mean : NULL;
  float *zeros = ops_floats(c->hidden);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = g->n, .hidden = c->hidden, .weight_dtype = c->dtype,
                                       .training = 1});
  while (ops_next(&trial)) {
    float *y = apart(d.dy, g, rows_y, 7);
    op.x = apart(d.x, g, ldx, 3), op.y = y;
    op.rstd = ops_floats(c->n), op.mean = c->kind == NN_NORM_LAYER ? ops_floats(c->n) : NULL;
    OPS_RUN(&trial, norm, &op);
    ops_check(&trial, 0, "y", together(y, g, rows_y, 7), e->y, slack, count);
    ops_check(&trial, 1, "rstd", op.rstd, e->rstd, slack_rstd, c->n);

    float *dx = apart(d.dy, g, rows_y, 7); /* in place of dy */
    bwd.x = op.x, bwd.dy = dx, bwd.dx = dx;
    bwd.dw = ops_copy(zeros, c->hidden), bwd.db = c->biased ? ops_copy(zeros, c->hidden) : NULL;
    OPS_RUN(&trial, norm_bwd, &bwd);
    ops_check(&trial, 2, "dx", together(dx, g, rows_y, 7), e->dx, slack_dx, count);
    ops_check(&trial, 3, "dw", bwd.dw, e->dw, slack_dw, c->hidden);
    if (c->biased) ops_check(&trial, 4, "db", bwd.db, e->db, slack_dw, c->hidden);
    if (count < 1 << 16) continue;
    OPS_RUN_CANCELLED(&trial, norm, &op);
    OPS_RUN_CANCELLED(&trial, norm_bwd, &bwd);
  }
  ops_free();
}

static void test_groups(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof group_cases / sizeof *group_cases; i++)
    check_groups(&group_cases[i]);
}

static void test_forward(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_norm(&cases[i]);
}

static void test_backward(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_norm_bwd(&cases[i]);
}

/* The gradients that backward is compared with are those of the forward formula. */
static void test_gradients_by_finite_differences(void **state) {
  (void)state;
  for (int32_t kind = NN_NORM_RMS; kind <= NN_NORM_LAYER; kind++) {
    norm_case_t c = {3, 7, kind, NN_F32, 1};
    norm64_t e = norm_make(&c).exact;
    ops_check_gradient("dx", norm64_loss, &e, e.x, e.dx, c.n * c.hidden);
    ops_check_gradient("dw", norm64_loss, &e, e.w, e.dw, c.hidden);
    ops_check_gradient("db", norm64_loss, &e, e.b, e.db, c.hidden);
    ops_free();
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_forward),
      cmocka_unit_test(test_backward),
      cmocka_unit_test(test_groups),
      cmocka_unit_test(test_gradients_by_finite_differences),
  };
  return cmocka_run_group_tests_name("norm", tests, NULL, NULL);
}
