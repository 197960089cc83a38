/* Routing: probabilities, the choice and its order, sorting with and without capacity, statistics,
 * and gradients. */
#include <math.h>
#include <string.h>

#include "base/random.h"
#include "ops.h"

typedef struct route_case {
  int64_t n, hidden, experts, top_k, capacity;
  int32_t dtype, skewed; /* skewed: expert experts / 2 is everybody's first choice */
} route_case_t;

static const route_case_t cases[] = {
    {1, 1, 1, 1, 0, NN_F32, 0},       {1, 64, 4, 2, 0, NN_F32, 0},
    {17, 16, 4, 4, 0, NN_F32, 0},     {65, 100, 16, 4, 0, NN_F32, 0},
    {33, 20, 7, 3, 5, NN_F32, 0},     {40, 64, 70, 8, 6, NN_BF16, 0},
    {130, 65, 3, 1, 20, NN_F32, 1},   {5, 130, 130, 2, 1, NN_BF16, 0},
    {64, 32, 16, 1, 0, NN_F32, 1},    {130, 768, 16, 4, 0, NN_F32, 0},
    {200, 17, 16, 16, 0, NN_BF16, 1}, {33, 65, 33, 5, 9, NN_F32, 0},
};

typedef struct route64 {
  int64_t n, hidden, experts, top_k;
  double *x, *w;               /* [n, hidden], [E, hidden] */
  double *logit, *prob, *lse;  /* [n, E], [n, E], [n] */
  double logit_error;          /* of fp32 */
  /* backward */
  int32_t *expert;             /* [n, k], held fixed by the loss */
  double *weight, *dweight;    /* [n, k] */
  double *aux_share;           /* [E] */
  double aux_scale, z_scale;
  double *dlogit, *dlogit_error, *dx, *dw;
} route64_t;

static double dot64(const double *x, const double *y, int64_t n, double *size) {
  double sum = 0;
  *size = 0;
  for (int64_t i = 0; i < n; i++) {
    sum += x[i] * y[i];
    *size += fabs(x[i] * y[i]);
  }
  return sum;
}

static void route64_token(route64_t *r, int64_t t) {
  double *logit = r->logit + t * r->experts, *prob = r->prob + t * r->experts;
  double most = -INFINITY, sum = 0;
  for (int64_t e = 0; e < r->experts; e++) {
    double size;
    logit[e] = dot64(r->x + t * r->hidden, r->w + e * r->hidden, r->hidden, &size);
    r->logit_error = fmax(r->logit_error, ops_sum_error(r->hidden) * size);
    most = fmax(most, logit[e]);
  }
  for (int64_t e = 0; e < r->experts; e++) sum += exp(logit[e] - most);
  r->lse[t] = most + log(sum);
  for (int64_t e = 0; e < r->experts; e++) prob[e] = exp(logit[e] - r->lse[t]);
}

/* The k largest, ties to the lower index; returns the smallest gap between neighbours in that
 * order, the first one left out included. */
static double route64_choose(const route64_t *r, int64_t t, int32_t *expert) {
  const double *logit = r->logit + t * r->experts;
  double gap = INFINITY, last = INFINITY;
  uint8_t *taken = ops_memory(r->experts, 1);
  for (int64_t j = 0; j <= r->top_k && j < r->experts; j++) {
    int64_t best = -1;
    for (int64_t e = 0; e < r->experts; e++)
      if (!taken[e] && (best < 0 || logit[e] > logit[best])) best = e;
    taken[best] = 1;
    if (j < r->top_k) expert[j] = (int32_t)best;
    gap = fmin(gap, last - logit[best]);
    last = logit[best];
  }
  return gap;
}

static double *widen(const void *data, int32_t dtype, int64_t count) {
  double *wide = ops_doubles(count);
  for (int64_t i = 0; i < count; i++) wide[i] = ops_weight(data, dtype, i);
  return wide;
}

typedef struct route_data {
  float *x;
  void *w;
  route64_t exact;
} route_data_t;

/* Rows of x are drawn again until the choice is clear of rounding errors. */
static route_data_t route_make(const route_case_t *c) {
  route_data_t d = {0};
  d.x = ops_uniform(c->n * c->hidden, 1, 1);
  float *w =
      ops_weights(c->experts * c->hidden, NN_F32, (float)(2 / sqrt((double)c->hidden)), 0, 2);
  for (int64_t j = 0; c->skewed && j < c->hidden; j++) /* a logit of about 12 */
    w[c->experts / 2 * c->hidden + j] = 16.0f / (float)c->hidden;
  d.w = ops_pack(w, c->experts * c->hidden, c->dtype);
  route64_t *r = &d.exact;
  *r = (route64_t){.n = c->n, .hidden = c->hidden, .experts = c->experts, .top_k = c->top_k};
  r->x = ops_doubles(c->n * c->hidden);
  r->w = widen(d.w, c->dtype, c->experts * c->hidden);
  r->logit = ops_doubles(c->n * c->experts), r->prob = ops_doubles(c->n * c->experts);
  r->lse = ops_doubles(c->n), r->expert = ops_ints(c->n * c->top_k);
  for (int64_t t = 0; t < c->n; t++) {
    for (uint64_t draw = 0;; draw++) {
      assert_true(draw < 100);
      for (int64_t i = t * c->hidden; i < (t + 1) * c->hidden; i++) {
        double u = random_uniform(3 + draw, 0, (uint64_t)i);
        d.x[i] = (float)(c->skewed ? 0.5 + 0.5 * u : 2 * u - 1);
        r->x[i] = d.x[i];
      }
      route64_token(r, t);
      if (route64_choose(r, t, r->expert + t * c->top_k) > 1e-3) break;
    }
  }
  assert_true(2 * r->logit_error < 1e-3);
  return d;
}

static backend_limits_t route_limits(const route_case_t *c) {
  return (backend_limits_t){.rows = c->n, .hidden = c->hidden, .experts = c->experts,
                            .top_k = c->top_k, .ffn = 1, .weight_dtype = c->dtype, .training = 1};
}

/* Offsets, rows and slots from the choice, by the definition: per expert, tokens in order. */
typedef struct sorting {
  int32_t *offset, *row_slot, *slot_row;
  int64_t *chosen, dropped; /* [E] */
} sorting_t;

static sorting_t sort_slots(const route_case_t *c, const int32_t *expert) {
  int64_t slots = c->n * c->top_k;
  sorting_t s = {ops_ints(c->experts + 1), ops_ints(slots), ops_ints(slots),
                 ops_memory(c->experts, sizeof(int64_t)), 0};
  int32_t row = 0;
  for (int32_t e = 0; e < c->experts; e++) {
    s.offset[e] = row;
    for (int32_t slot = 0; slot < slots; slot++) {
      if (expert[slot] != e) continue;
      s.slot_row[slot] = -1;
      if (c->capacity && s.chosen[e] >= c->capacity) s.dropped++;
      else s.slot_row[slot] = row, s.row_slot[row++] = slot;
      s.chosen[e]++;
    }
  }
  s.offset[c->experts] = row;
  return s;
}

static void route_outputs(op_route_t *op, const route_case_t *c) {
  int64_t slots = c->n * c->top_k;
  op->out.expert = ops_ints(slots), op->out.weight = ops_floats(slots);
  op->out.offset = ops_ints(c->experts + 1);
  op->out.row_slot = ops_ints(slots), op->out.slot_row = ops_ints(slots);
  op->prob = ops_floats(c->n * c->experts), op->lse = ops_floats(c->n);
  op->share = ops_floats(c->experts), op->mean_prob = ops_floats(c->experts);
  op->mean_lse2 = ops_floats(1);
  op->stat_count = ops_memory(c->experts + 1, sizeof(int64_t));
  op->stat_prob = ops_doubles(c->experts);
  memset(op->out.expert, 0xff, (size_t)slots * sizeof(int32_t));
  memset(op->out.slot_row, 0x7f, (size_t)slots * sizeof(int32_t));
  memset(op->out.row_slot, 0x7f, (size_t)slots * sizeof(int32_t));
  memset(op->out.offset, 0x7f, (size_t)(c->experts + 1) * sizeof(int32_t));
  ops_garbage(op->out.weight, slots), ops_garbage(op->prob, c->n * c->experts);
  ops_garbage(op->lse, c->n), ops_garbage(op->share, c->experts);
  ops_garbage(op->mean_prob, c->experts), ops_garbage(op->mean_lse2, 1);
}

static void check_choice(ops_trial_t *trial, const route_case_t *c, const op_route_t *op,
                         const route64_t *r, const sorting_t *s) {
  size_t ints = (size_t)(c->n * c->top_k) * sizeof(int32_t);
  size_t rows = (size_t)s->offset[c->experts] * sizeof(int32_t);
  assert_memory_equal(op->out.expert, r->expert, ints);
  assert_memory_equal(op->out.offset, s->offset, (size_t)(c->experts + 1) * sizeof(int32_t));
  assert_memory_equal(op->out.row_slot, s->row_slot, rows);
  assert_memory_equal(op->out.slot_row, s->slot_row, ints);
  double *want = ops_doubles(c->n * c->top_k), *slack = ops_doubles(c->n * c->top_k);
  for (int64_t t = 0; t < c->n; t++) {
    double sum = 0;
    for (int64_t j = 0; j < c->top_k; j++)
      sum += r->prob[t * c->experts + r->expert[t * c->top_k + j]];
    for (int64_t i = t * c->top_k; i < (t + 1) * c->top_k; i++) {
      want[i] = r->prob[t * c->experts + r->expert[i]] / sum;
      /* relative: two logits off, a sum over k, exp and a division */
      slack[i] = want[i] * (2 * r->logit_error + ops_sum_error(c->top_k) + 16 * OPS_U);
    }
  }
  ops_check(trial, 0, "weight", op->out.weight, want, slack, c->n * c->top_k);
}

/* Probabilities have the relative errors of two logits, of a sum over the experts, of exp and of a
 * division; means add a sum over the tokens. */
static void check_probabilities(ops_trial_t *trial, const route_case_t *c, const op_route_t *op,
                                const route64_t *r, const sorting_t *s) {
  int64_t count = c->n * c->experts;
  double relative = 2 * r->logit_error + ops_sum_error(c->experts) + 16 * OPS_U, lse2 = 0,
         lse_most = 1;
  double *slack = ops_doubles(count), *slack_lse = ops_doubles(c->n);
  double *mean = ops_doubles(c->experts), *slack_mean = ops_doubles(c->experts);
  double *share = ops_doubles(c->experts), *slack_share = ops_doubles(c->experts);
  for (int64_t i = 0; i < count; i++) slack[i] = r->prob[i] * relative + 0x1p-126;
  for (int64_t t = 0; t < c->n; t++) {
    slack_lse[t] = relative + 4 * OPS_U * fabs(r->lse[t]);
    lse2 += r->lse[t] * r->lse[t] / (double)c->n;
    lse_most = fmax(lse_most, fabs(r->lse[t]));
  }
  for (int64_t e = 0; e < c->experts; e++) {
    for (int64_t t = 0; t < c->n; t++) mean[e] += r->prob[t * c->experts + e] / (double)c->n;
    slack_mean[e] = mean[e] * (relative + ops_sum_error(c->n));
    share[e] = (double)s->chosen[e] / (double)(c->n * c->top_k);
    slack_share[e] = 2 * OPS_U * share[e];
  }
  double slack_lse2 = 2 * lse_most * (relative + (ops_sum_error(c->n) + 8 * OPS_U) * lse_most);
  ops_check(trial, 1, "prob", op->prob, r->prob, slack, count);
  ops_check(trial, 2, "lse", op->lse, r->lse, slack_lse, c->n);
  ops_check(trial, 3, "mean_prob", op->mean_prob, mean, slack_mean, c->experts);
  ops_check(trial, 4, "share", op->share, share, slack_share, c->experts);
  ops_check(trial, 5, "mean_lse2", op->mean_lse2, &lse2, &slack_lse2, 1);
  if (!op->stat_count) return;
  for (int64_t e = 0; e < c->experts; e++) {
    assert_int_equal(op->stat_count[e], 1000 + e + s->chosen[e]);
    double sum = mean[e] * (double)c->n;
    assert_true(fabs(op->stat_prob[e] - 0.5 - sum) <=
                sum * (relative + ops_sum_error(c->n)) + 1e-15);
  }
  assert_int_equal(op->stat_count[c->experts], 7 + s->dropped);
  ops_check_bits(trial, 6, "stat_prob", op->stat_prob, (size_t)c->experts * sizeof(double));
}

static void check_route(const route_case_t *c) {
  if (c->dtype == NN_BF16 && !ops_widens()) return;
  route_data_t d = route_make(c);
  sorting_t sorting = sort_slots(c, d.exact.expert);
  op_route_t op = {.n = c->n, .hidden = c->hidden, .experts = c->experts, .top_k = c->top_k,
                   .capacity = c->capacity, .x = d.x, .w = d.w, .weight_dtype = c->dtype};
  ops_trial_t trial;
  ops_begin(&trial, route_limits(c));
  while (ops_next(&trial)) {
    route_outputs(&op, c);
    for (int64_t e = 0; e < c->experts; e++) op.stat_count[e] = 1000 + e, op.stat_prob[e] = 0.5;
    op.stat_count[c->experts] = 7;
    OPS_RUN(&trial, route, &op);
    check_choice(&trial, c, &op, &d.exact, &sorting);
    check_probabilities(&trial, c, &op, &d.exact, &sorting);
    route_outputs(&op, c);
    op.stat_count = NULL, op.stat_prob = NULL;
    OPS_RUN(&trial, route, &op);
    check_choice(&trial, c, &op, &d.exact, &sorting);
    check_probabilities(&trial, c, &op, &d.exact, &sorting);
    if (c->n * c->hidden >= 1 << 16) OPS_RUN_CANCELLED(&trial, route, &op);
  }
  ops_free();
}

static void test_route(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_route(&cases[i]);
}

/* Small whole numbers have exact products and sums, so equal logits are equal in any arithmetic. */
static void test_ties_go_to_the_lower_index(void **state) {
  (void)state;
  enum { N = 9, HIDDEN = 20, EXPERTS = 37, TOP_K = 6 };
  route_case_t c = {N, HIDDEN, EXPERTS, TOP_K, 0, NN_F32, 0};
  float *x = ops_floats(N * HIDDEN), *w = ops_floats(EXPERTS * HIDDEN);
  for (int64_t i = 0; i < N * HIDDEN; i++) x[i] = (float)(i % 3 - 1);
  for (int64_t i = 0; i < EXPERTS * HIDDEN; i++)
    w[i] = (float)(ops_random_index(3, 1, (uint64_t)i) - 1);
  memcpy(w + 36 * HIDDEN, w + 2 * HIDDEN, HIDDEN * sizeof(float));
  memset(x, 0, HIDDEN * sizeof(float)); /* the first token cannot tell experts apart */
  route64_t r = {.n = N, .hidden = HIDDEN, .experts = EXPERTS, .top_k = TOP_K};
  r.x = widen(x, NN_F32, N * HIDDEN), r.w = widen(w, NN_F32, EXPERTS * HIDDEN);
  r.logit = ops_doubles(N * EXPERTS), r.prob = ops_doubles(N * EXPERTS), r.lse = ops_doubles(N);
  r.expert = ops_ints(N * TOP_K);
  int ties = 0;
  for (int64_t t = 0; t < N; t++) {
    route64_token(&r, t);
    ties += route64_choose(&r, t, r.expert + t * TOP_K) == 0;
  }
  assert_true(ties >= N / 2);
  for (int32_t j = 0; j < TOP_K; j++) assert_int_equal(r.expert[j], j);
  op_route_t op = {.n = N, .hidden = HIDDEN, .experts = EXPERTS, .top_k = TOP_K, .x = x, .w = w};
  ops_trial_t trial;
  ops_begin(&trial, route_limits(&c));
  while (ops_next(&trial)) {
    route_outputs(&op, &c);
    OPS_RUN(&trial, route, &op);
    assert_memory_equal(op.out.expert, r.expert, N * TOP_K * sizeof(int32_t));
  }
  ops_free();
}

/* Numbers that are none may give any choice, but a valid one: later operations index by it. */
static void test_nan_gives_valid_indices(void **state) {
  (void)state;
  route_case_t c = {20, 17, 21, 3, 2, NN_F32, 0};
  int64_t slots = c.n * c.top_k;
  float *x = ops_uniform(c.n * c.hidden, 1, 1), *w = ops_uniform(c.experts * c.hidden, 1, 2);
  for (int64_t t = 0; t < c.n; t++) x[t * c.hidden + t % c.hidden] = t % 2 ? NAN : INFINITY;
  op_route_t op = {.n = c.n, .hidden = c.hidden, .experts = c.experts, .top_k = c.top_k,
                   .capacity = c.capacity, .x = x, .w = w};
  ops_trial_t trial;
  ops_begin(&trial, route_limits(&c));
  while (ops_next(&trial)) {
    route_outputs(&op, &c);
    OPS_RUN(&trial, route, &op);
    for (int64_t i = 0; i < slots; i++) {
      assert_in_range(op.out.expert[i], 0, c.experts - 1);
      for (int64_t j = i / c.top_k * c.top_k; j < i; j++)
        assert_int_not_equal(op.out.expert[i], op.out.expert[j]);
    }
    sorting_t s = sort_slots(&c, op.out.expert);
    assert_memory_equal(op.out.offset, s.offset, (size_t)(c.experts + 1) * sizeof(int32_t));
    assert_memory_equal(op.out.slot_row, s.slot_row, (size_t)slots * sizeof(int32_t));
    assert_memory_equal(op.out.row_slot, s.row_slot, (size_t)s.offset[c.experts] * sizeof(int32_t));
  }
  ops_free();
}

/* ---- backward ---- */

/* What gradients are the derivatives of: <dweight, weight> for the choice held fixed, and the two
 * auxiliary losses with the share held fixed. */
static double route64_loss(const void *context) {
  route64_t r = *(const route64_t *)context;
  double loss = 0;
  for (int64_t t = 0; t < r.n; t++) {
    route64_token(&r, t);
    const double *prob = r.prob + t * r.experts;
    double sum = 0;
    for (int64_t i = t * r.top_k; i < (t + 1) * r.top_k; i++) sum += prob[r.expert[i]];
    for (int64_t i = t * r.top_k; i < (t + 1) * r.top_k; i++)
      loss += r.dweight[i] * prob[r.expert[i]] / sum;
    for (int64_t e = 0; e < r.experts; e++)
      loss += r.aux_scale * r.aux_share[e] * prob[e] / (double)r.n;
    loss += r.z_scale * r.lse[t] * r.lse[t] / (double)r.n;
  }
  return loss;
}

/* dlogit of a token, and its error: sums over k and E of numbers up to `most`, and inputs
 * (probabilities, weights, lse) rounded to fp32. */
static void route64_dlogit(route64_t *r, int64_t t) {
  const double *prob = r->prob + t * r->experts;
  double *dlogit = r->dlogit + t * r->experts, *error = r->dlogit_error + t * r->experts;
  double n = (double)r->n, sum = 0, mean = 0, dot = 0, most = 0;
  for (int64_t i = t * r->top_k; i < (t + 1) * r->top_k; i++) sum += prob[r->expert[i]];
  for (int64_t i = t * r->top_k; i < (t + 1) * r->top_k; i++) {
    r->weight[i] = prob[r->expert[i]] / sum;
    mean += r->dweight[i] * r->weight[i];
  }
  for (int64_t e = 0; e < r->experts; e++) dlogit[e] = r->aux_scale * r->aux_share[e] / n;
  for (int64_t i = t * r->top_k; i < (t + 1) * r->top_k; i++) {
    dlogit[r->expert[i]] += (r->dweight[i] - mean) / sum;
    most = fmax(most, (fabs(r->dweight[i]) + fabs(mean)) / sum);
  }
  for (int64_t e = 0; e < r->experts; e++) dot += prob[e] * dlogit[e];
  double z = 2 * r->z_scale * r->lse[t] / n;
  most += fabs(dot) + fabs(z) + r->aux_scale;
  for (int64_t e = 0; e < r->experts; e++) {
    dlogit[e] = prob[e] * (dlogit[e] - dot + z);
    error[e] =
        2 * prob[e] * most * (ops_sum_error(r->experts) + ops_sum_error(r->top_k) + 16 * OPS_U);
  }
}

static void route64_backward(route64_t *r) {
  for (int64_t t = 0; t < r->n; t++) {
    route64_dlogit(r, t);
    for (int64_t e = 0; e < r->experts; e++) {
      double g = r->dlogit[t * r->experts + e];
      for (int64_t j = 0; j < r->hidden; j++) {
        r->dx[t * r->hidden + j] += g * r->w[e * r->hidden + j];
        r->dw[e * r->hidden + j] += g * r->x[t * r->hidden + j];
      }
    }
  }
}

static void route64_prepare_backward(route64_t *r) {
  int64_t slots = r->n * r->top_k;
  r->weight = ops_doubles(slots);
  r->dweight = widen(ops_uniform(slots, 1, 11), NN_F32, slots);
  for (int64_t i = 5; i < slots; i += 6) r->dweight[i] = 0; /* as if dropped */
  r->aux_share = widen(ops_uniform(r->experts, 1, 12), NN_F32, r->experts);
  r->aux_scale = 0.75, r->z_scale = 0.125;
  r->dlogit = ops_doubles(r->n * r->experts), r->dlogit_error = ops_doubles(r->n * r->experts);
  r->dx = ops_doubles(r->n * r->hidden), r->dw = ops_doubles(r->experts * r->hidden);
  route64_backward(r);
}

/* Sums over experts (dx) or tokens (dw) of products with an inexact dlogit, and of a number
 * below 1. */
static void route_bwd_slack(const route64_t *r, double *dx, double *dw) {
  double over_e = ops_sum_error(r->experts + 1), over_t = ops_sum_error(r->n + 1);
  for (int64_t i = 0; i < r->n * r->hidden; i++) dx[i] = over_e;
  for (int64_t i = 0; i < r->experts * r->hidden; i++) dw[i] = over_t;
  for (int64_t i = 0; i < r->n * r->experts; i++) {
    int64_t t = i / r->experts, e = i % r->experts;
    for (int64_t j = 0; j < r->hidden; j++) {
      double g = fabs(r->dlogit[i]), w = fabs(r->w[e * r->hidden + j]),
             x = fabs(r->x[t * r->hidden + j]);
      dx[t * r->hidden + j] += w * (r->dlogit_error[i] + over_e * g);
      dw[e * r->hidden + j] += x * (r->dlogit_error[i] + over_t * g);
    }
  }
}

static float *narrow(const double *data, int64_t count) {
  float *copy = ops_floats(count);
  for (int64_t i = 0; i < count; i++) copy[i] = (float)data[i];
  return copy;
}

static void check_route_bwd(const route_case_t *c) {
  if (c->dtype == NN_BF16 && !ops_widens()) return;
  route_data_t d = route_make(c);
  route64_t *r = &d.exact;
  route64_prepare_backward(r);
  int64_t x_count = c->n * c->hidden, w_count = c->experts * c->hidden;
  double *slack_dx = ops_doubles(x_count), *slack_dw = ops_doubles(w_count);
  route_bwd_slack(r, slack_dx, slack_dw);
  float *dx = ops_uniform(x_count, 1, 13), *dw = ops_uniform(w_count, 1, 14);
  for (int64_t i = 0; i < x_count; i++) r->dx[i] += dx[i];
  for (int64_t i = 0; i < w_count; i++) r->dw[i] += dw[i];
  op_route_bwd_t op = {.n = c->n, .hidden = c->hidden, .experts = c->experts, .top_k = c->top_k,
                       .x = d.x, .w = d.w, .weight_dtype = c->dtype};
  op.routing.expert = r->expert, op.routing.weight = narrow(r->weight, c->n * c->top_k);
  op.prob = narrow(r->prob, c->n * c->experts), op.lse = narrow(r->lse, c->n);
  op.dweight = narrow(r->dweight, c->n * c->top_k), op.aux_share = narrow(r->aux_share, c->experts);
  op.aux_scale = (float)r->aux_scale, op.z_scale = (float)r->z_scale;
  ops_trial_t trial;
  ops_begin(&trial, route_limits(c));
  while (ops_next(&trial)) {
    op.dx = ops_copy(dx, x_count), op.dw = ops_copy(dw, w_count);
    OPS_RUN(&trial, route_bwd, &op);
    ops_check(&trial, 0, "dx", op.dx, r->dx, slack_dx, x_count);
    ops_check(&trial, 1, "dw", op.dw, r->dw, slack_dw, w_count);
    if (x_count >= 1 << 16) OPS_RUN_CANCELLED(&trial, route_bwd, &op);
  }
  ops_free();
}

static void test_backward(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_route_bwd(&cases[i]);
}

static void test_gradients_by_finite_differences(void **state) {
  (void)state;
  const route_case_t c = {4, 5, 6, 3, 0, NN_F32, 0};
  route64_t r = route_make(&c).exact;
  route64_prepare_backward(&r);
  ops_check_gradient("dx", route64_loss, &r, r.x, r.dx, c.n * c.hidden);
  ops_check_gradient("dw", route64_loss, &r, r.w, r.dw, c.experts * c.hidden);
  ops_free();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_route),
      cmocka_unit_test(test_ties_go_to_the_lower_index),
      cmocka_unit_test(test_nan_gives_valid_indices),
      cmocka_unit_test(test_backward),
      cmocka_unit_test(test_gradients_by_finite_differences),
  };
  return cmocka_run_group_tests_name("route", tests, NULL, NULL);
}
