/* Gates of rows, forward and backward. */
#include <math.h>

#include "ops.h"

typedef struct gate_case {
  int64_t n, width;
  int32_t dtype;
} gate_case_t;

static const gate_case_t cases[] = {
    {1, 1, NN_F32},   {1, 64, NN_BF16},   {17, 5, NN_F32},   {33, 65, NN_BF16},
    {65, 130, NN_F32}, {130, 600, NN_F32}, {600, 17, NN_BF16}, {33, 65, NN_F16},
};

typedef struct gate64 {
  int64_t n, width;
  double *x, *w, *dgate; /* [n, width], [width], [n] */
  double *gate, *gate_slack, *dx, *dx_slack, *dw, *dw_slack;
} gate64_t;

static double gate64_row(const gate64_t *c, int64_t t, double *size) {
  double sum = 0;
  *size = 0;
  for (int64_t j = 0; j < c->width; j++) {
    sum += c->x[t * c->width + j] * c->w[j];
    *size += fabs(c->x[t * c->width + j] * c->w[j]);
  }
  return 1 / (1 + exp(-sum));
}

static double gate64_loss(const void *context) {
  const gate64_t *c = context;
  double loss = 0, size;
  for (int64_t t = 0; t < c->n; t++) loss += c->dgate[t] * gate64_row(c, t, &size);
  return loss;
}

/* A sigmoid has a slope of at most 1/4. Backward is given the gate rounded to fp32, which 1 - gate
 * keeps as an error of a unit in the last place of 1. */
static void gate64_run(gate64_t *c) {
  for (int64_t t = 0; t < c->n; t++) {
    double size, gate = gate64_row(c, t, &size), d = c->dgate[t] * gate * (1 - gate);
    double off = 4 * OPS_U * fabs(c->dgate[t]);
    c->gate[t] = gate;
    c->gate_slack[t] = ops_sum_error(c->width) * size / 4 + 8 * OPS_U;
    for (int64_t j = 0; j < c->width; j++) {
      int64_t at = t * c->width + j;
      c->dx[at] += d * c->w[j];
      c->dx_slack[at] += fabs(c->w[j]) * (off + 4 * OPS_U * fabs(d)) + 2 * OPS_U * fabs(c->dx[at]);
      c->dw[j] += d * c->x[at];
      c->dw_slack[j] += fabs(c->x[at]) * (off + (ops_sum_error(c->n + 1) + 4 * OPS_U) * fabs(d));
    }
  }
}

static double *widen(const void *data, int32_t dtype, int64_t count) {
  double *wide = ops_doubles(count);
  for (int64_t i = 0; i < count; i++) wide[i] = ops_weight(data, dtype, i);
  return wide;
}

typedef struct gate_data {
  float *x, *dgate, *dx, *dw; /* dx, dw: what is accumulated to */
  void *w;
  gate64_t exact;
} gate_data_t;

static gate_data_t gate_make(const gate_case_t *c, float before) {
  int64_t count = c->n * c->width;
  gate_data_t d = {.x = ops_uniform(count, 1, 1), .dgate = ops_uniform(c->n, 1, 2)};
  d.dx = ops_uniform(count, before, 4), d.dw = ops_uniform(c->width, before, 5);
  d.w = ops_weights(c->width, c->dtype, (float)(2 / sqrt((double)c->width)), 0, 3);
  gate64_t *e = &d.exact;
  *e = (gate64_t){.n = c->n, .width = c->width};
  e->x = widen(d.x, NN_F32, count), e->w = widen(d.w, c->dtype, c->width);
  e->dgate = widen(d.dgate, NN_F32, c->n);
  e->gate = ops_doubles(c->n), e->gate_slack = ops_doubles(c->n);
  e->dx = widen(d.dx, NN_F32, count), e->dx_slack = ops_doubles(count);
  e->dw = widen(d.dw, NN_F32, c->width), e->dw_slack = ops_doubles(c->width);
  for (int64_t j = 0; j < c->width; j++)
    e->dw_slack[j] = ops_sum_error(c->n + 1) * fabs(e->dw[j]);
  gate64_run(e);
  return d;
}

static void check_gate(const gate_case_t *c) {
  if (c->dtype != NN_F32 && !ops_widens()) return;
  gate_data_t d = gate_make(c, 1);
  const gate64_t *e = &d.exact;
  int64_t count = c->n * c->width;
  op_row_gate_t op = {.n = c->n, .width = c->width, .x = d.x, .w = d.w, .weight_dtype = c->dtype};
  op_row_gate_bwd_t bwd = {.n = c->n, .width = c->width, .x = d.x, .w = d.w,
                           .weight_dtype = c->dtype, .dgate = d.dgate};
  float *gate = ops_floats(c->n);
  for (int64_t t = 0; t < c->n; t++) gate[t] = (float)e->gate[t];
  bwd.gate = gate;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = c->n, .hidden = c->width, .weight_dtype = c->dtype,
                                       .training = 1});
  while (ops_next(&trial)) {
    op.gate = ops_floats(c->n);
    ops_garbage(op.gate, c->n);
    OPS_RUN(&trial, row_gate, &op);
    ops_check(&trial, 0, "gate", op.gate, e->gate, e->gate_slack, c->n);
    bwd.dx = ops_copy(d.dx, count), bwd.dw = ops_copy(d.dw, c->width);
    OPS_RUN(&trial, row_gate_bwd, &bwd);
    ops_check(&trial, 1, "dx", bwd.dx, e->dx, e->dx_slack, count);
    ops_check(&trial, 2, "dw", bwd.dw, e->dw, e->dw_slack, c->width);
    if (count < 1 << 16) continue;
    OPS_RUN_CANCELLED(&trial, row_gate, &op);
    OPS_RUN_CANCELLED(&trial, row_gate_bwd, &bwd);
  }
  ops_free();
}

static void test_gate(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_gate(&cases[i]);
}

static void test_gradients_by_finite_differences(void **state) {
  (void)state;
  const gate_case_t c = {4, 6, NN_F32};
  gate64_t e = gate_make(&c, 0).exact;
  ops_check_gradient("dx", gate64_loss, &e, e.x, e.dx, c.n * c.width);
  ops_check_gradient("dw", gate64_loss, &e, e.w, e.dw, c.width);
  ops_free();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_gate),
      cmocka_unit_test(test_gradients_by_finite_differences),
  };
  return cmocka_run_group_tests_name("row_gate", tests, NULL, NULL);
}
