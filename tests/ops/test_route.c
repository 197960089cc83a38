/* Routing: scores, the choice and its order, weights, sorting with and without capacity,
 * statistics, and gradients, of every kind of router. */
#include <math.h>
#include <string.h>

#include "base/random.h"
#include "ops.h"

typedef struct route_case {
  int64_t n, hidden, experts, top_k, capacity;
  int32_t dtype, skewed; /* skewed: expert experts / 2 is everybody's first choice */
  int32_t score, norm;
  int32_t biased, choice_biased;
  int64_t groups, top_groups;
  int32_t group_score;
  float scale;
} route_case_t;

static const route_case_t cases[] = {
    {.n = 1, .hidden = 1, .experts = 1, .top_k = 1},
    {.n = 1, .hidden = 64, .experts = 4, .top_k = 2},
    {.n = 17, .hidden = 16, .experts = 4, .top_k = 4},
    {.n = 65, .hidden = 100, .experts = 16, .top_k = 4},
    {.n = 33, .hidden = 20, .experts = 7, .top_k = 3, .capacity = 5},
    {.n = 40, .hidden = 64, .experts = 70, .top_k = 8, .capacity = 6, .dtype = NN_BF16},
    {.n = 130, .hidden = 65, .experts = 3, .top_k = 1, .capacity = 20, .skewed = 1},
    {.n = 5, .hidden = 130, .experts = 130, .top_k = 2, .capacity = 1, .dtype = NN_BF16},
    {.n = 64, .hidden = 32, .experts = 16, .top_k = 1, .skewed = 1},
    {.n = 130, .hidden = 768, .experts = 16, .top_k = 4},
    {.n = 200, .hidden = 17, .experts = 16, .top_k = 16, .dtype = NN_BF16, .skewed = 1},
    {.n = 65, .hidden = 100, .experts = 17, .top_k = 4, .dtype = NN_F16},
    {.n = 33, .hidden = 65, .experts = 33, .top_k = 5, .capacity = 9},
    {.n = 33, .hidden = 20, .experts = 7, .top_k = 3, .norm = NN_ROUTER_NORM_NONE, .scale = 2.5f},
    {.n = 65, .hidden = 33, .experts = 20, .top_k = 4, .biased = 1, .scale = 0.5f},
    {.n = 40, .hidden = 64, .experts = 70, .top_k = 6, .dtype = NN_BF16, .biased = 1,
     .choice_biased = 1},
    {.n = 33, .hidden = 65, .experts = 33, .top_k = 5, .score = NN_SCORE_SIGMOID},
    {.n = 130, .hidden = 768, .experts = 16, .top_k = 4, .score = NN_SCORE_SIGMOID,
     .choice_biased = 1, .scale = 2.5f, .groups = 4, .top_groups = 2,
     .group_score = NN_GROUP_TOP2},
    {.n = 33, .hidden = 20, .experts = 24, .top_k = 5, .score = NN_SCORE_SIGMOID,
     .norm = NN_ROUTER_NORM_NONE, .groups = 8, .top_groups = 3, .biased = 1, .dtype = NN_BF16},
    {.n = 100, .hidden = 65, .experts = 128, .top_k = 8, .capacity = 7},
    {.n = 70, .hidden = 36, .experts = 256, .top_k = 8, .score = NN_SCORE_SIGMOID,
     .choice_biased = 1, .scale = 2.5f, .groups = 8, .top_groups = 4,
     .group_score = NN_GROUP_TOP2},
    {.n = 90, .hidden = 33, .experts = 100, .top_k = 7, .capacity = 9, .score = NN_SCORE_SIGMOID},
    {.n = 130, .hidden = 24, .experts = 64, .top_k = 6, .dtype = NN_F16, .biased = 1,
     .choice_biased = 1, .groups = 2, .top_groups = 1},
    {.n = 17, .hidden = 40, .experts = 12, .top_k = 3, .groups = 12, .top_groups = 5,
     .group_score = NN_GROUP_TOP2, .norm = NN_ROUTER_NORM_NONE},
};

typedef struct route64 {
  int64_t n, hidden, experts, top_k;
  const route_case_t *router;
  double scale;
  double *x, *w;               /* [n, hidden], [E, hidden] */
  double *bias, *choice_bias;  /* [E]; of zeros where there is none */
  double *logit, *prob, *lse;  /* [n, E], [n, E], [n]; prob: what the router makes of logits */
  double logit_error;          /* of fp32 */
  /* backward */
  int32_t *expert;             /* [n, k], held fixed by the loss */
  double *weight, *dweight;    /* [n, k] */
  double *aux_share;           /* [E] */
  double aux_scale, z_scale;
  double *dlogit, *dlogit_error, *dx, *dw, *dbias;
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
    logit[e] = dot64(r->x + t * r->hidden, r->w + e * r->hidden, r->hidden, &size) + r->bias[e];
    r->logit_error =
        fmax(r->logit_error, ops_sum_error(r->hidden + 1) * (size + fabs(r->bias[e])));
    most = fmax(most, logit[e]);
  }
  for (int64_t e = 0; e < r->experts; e++) sum += exp(logit[e] - most);
  r->lse[t] = most + log(sum);
  int sigmoid = r->router->score == NN_SCORE_SIGMOID;
  for (int64_t e = 0; e < r->experts; e++)
    prob[e] = sigmoid ? 1 / (1 + exp(-logit[e])) : exp(logit[e] - r->lse[t]);
}

/* How far apart what is compared must be: logits, or scores, of which even the sum of two changes
 * by at most half of what a logit does. */
static int route_by_logit(const route_case_t *c) { return !c->groups && !c->choice_biased; }
static double route_clear(const route_case_t *c) { return route_by_logit(c) ? 1e-3 : 5e-4; }

/* The k best of `count` candidates that are not taken yet, ties to the lower index; returns the
 * smallest gap between neighbours in that order, the first one left out included. */
static double best64(const double *score, int64_t count, int64_t k, uint8_t *taken, int32_t *best) {
  double gap = INFINITY, last = INFINITY;
  for (int64_t j = 0; j <= k; j++) {
    int64_t found = -1;
    for (int64_t i = 0; i < count; i++)
      if (!taken[i] && (found < 0 || score[i] > score[found])) found = i;
    if (found < 0) break;
    taken[found] = 1;
    if (j < k) best[j] = (int32_t)found;
    gap = fmin(gap, last - score[found]);
    last = score[found];
  }
  return gap;
}

/* A token's choice; returns how clear it is. Scores of softmax are compared by their logits, which
 * are as far apart whatever the other experts' are, unless something is added to them. */
static double route64_choose(const route64_t *r, int64_t t, int32_t *expert) {
  const route_case_t *c = r->router;
  int64_t groups = c->groups ? c->groups : 1, top = c->groups ? c->top_groups : 1;
  int64_t size = r->experts / groups;
  double *score = ops_doubles(r->experts), *group = ops_doubles(groups);
  uint8_t *taken = ops_memory(r->experts, 1), *group_taken = ops_memory(groups, 1);
  int32_t *best = ops_ints(groups);
  for (int64_t e = 0; e < r->experts; e++)
    score[e] = route_by_logit(c) ? r->logit[t * r->experts + e]
                        : r->prob[t * r->experts + e] + r->choice_bias[e];
  for (int64_t g = 0; g < groups; g++) {
    double most = -INFINITY, second = -INFINITY;
    for (int64_t e = g * size; e < (g + 1) * size; e++) {
      second = fmax(second, fmin(most, score[e]));
      most = fmax(most, score[e]);
    }
    group[g] = c->group_score == NN_GROUP_TOP2 && size > 1 ? most + second : most;
  }
  double gap = best64(group, groups, top, group_taken, best);
  for (int64_t e = 0; e < r->experts; e++) taken[e] = 1;
  for (int64_t g = 0; g < top; g++)
    for (int64_t e = best[g] * size; e < (best[g] + 1) * size; e++) taken[e] = 0;
  return fmin(gap, best64(score, r->experts, r->top_k, taken, expert));
}

/* What the weights of a token's choice are multiples of: their sum, or 1. */
static double route64_divisor(const route64_t *r, int64_t t) {
  double sum = 0;
  if (r->router->norm == NN_ROUTER_NORM_NONE) return 1;
  for (int64_t i = t * r->top_k; i < (t + 1) * r->top_k; i++)
    sum += r->prob[t * r->experts + r->expert[i]];
  return sum;
}

typedef struct route_data {
  float *x;
  void *w;
  op_router_t router;
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
  r->router = c, r->scale = (double)backend_factor(c->scale);
  d.router = (op_router_t){.score = c->score, .norm = c->norm, .group_score = c->group_score,
                           .groups = c->groups, .top_groups = c->top_groups, .scale = c->scale};
  if (c->biased) d.router.bias = ops_weights(c->experts, c->dtype, 1, 0, 8);
  if (c->choice_biased) d.router.choice_bias = ops_weights(c->experts, c->dtype, 0.5f, 0, 9);
  r->bias = ops_widen(d.router.bias, c->dtype, c->experts);
  r->choice_bias = ops_widen(d.router.choice_bias, c->dtype, c->experts);
  r->x = ops_doubles(c->n * c->hidden);
  r->w = ops_widen(d.w, c->dtype, c->experts * c->hidden);
  r->logit = ops_doubles(c->n * c->experts), r->prob = ops_doubles(c->n * c->experts);
  r->lse = ops_doubles(c->n), r->expert = ops_ints(c->n * c->top_k);
  for (int64_t t = 0; t < c->n; t++) {
    for (uint64_t draw = 0;; draw++) {
      assert_true(draw < 1000);
      for (int64_t i = t * c->hidden; i < (t + 1) * c->hidden; i++) {
        double u = random_uniform(3 + draw, 0, (uint64_t)i);
        d.x[i] = (float)(c->skewed ? 0.5 + 0.5 * u : 2 * u - 1);
        r->x[i] = d.x[i];
      }
      route64_token(r, t);
      if (route64_choose(r, t, r->expert + t * c->top_k) > route_clear(c)) break;
    }
  }
  assert_true((route_by_logit(c) ? 2 : 1) * r->logit_error < route_clear(c));
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
    double divisor = route64_divisor(r, t);
    for (int64_t i = t * c->top_k; i < (t + 1) * c->top_k; i++) {
      want[i] = r->scale * r->prob[t * c->experts + r->expert[i]] / divisor;
      /* relative: two logits off, a sum over experts or those chosen, exp and a division */
      slack[i] = want[i] * (2 * r->logit_error + ops_sum_error(c->experts) + 16 * OPS_U);
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
    for (int64_t t = 0; t < c->n; t++) {
      double all = c->score == NN_SCORE_SIGMOID ? 0 : 1;
      for (int64_t i = 0; c->score == NN_SCORE_SIGMOID && i < c->experts; i++)
        all += r->prob[t * c->experts + i];
      mean[e] += r->prob[t * c->experts + e] / all / (double)c->n;
    }
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
  if (c->dtype != NN_F32 && !ops_widens()) return;
  route_data_t d = route_make(c);
  sorting_t sorting = sort_slots(c, d.exact.expert);
  op_route_t op = {.n = c->n, .hidden = c->hidden, .experts = c->experts, .top_k = c->top_k,
                   .capacity = c->capacity, .x = d.x, .w = d.w, .weight_dtype = c->dtype,
                   .router = d.router};
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
static void ties_go_to_the_lower_index(int64_t n, int64_t experts) {
  enum { HIDDEN = 20, TOP_K = 6 };
  route_case_t c = {.n = n, .hidden = HIDDEN, .experts = experts, .top_k = TOP_K};
  float *x = ops_floats(n * HIDDEN), *w = ops_floats(experts * HIDDEN);
  for (int64_t i = 0; i < n * HIDDEN; i++) x[i] = (float)(i % 3 - 1);
  for (int64_t i = 0; i < experts * HIDDEN; i++)
    w[i] = (float)(ops_random_index(3, 1, (uint64_t)i) - 1);
  memcpy(w + 36 * HIDDEN, w + 2 * HIDDEN, HIDDEN * sizeof(float));
  memset(x, 0, HIDDEN * sizeof(float)); /* the first token cannot tell experts apart */
  route64_t r = {.n = n, .hidden = HIDDEN, .experts = experts, .top_k = TOP_K, .router = &c};
  r.bias = ops_doubles(experts), r.choice_bias = ops_doubles(experts);
  r.x = ops_widen(x, NN_F32, n * HIDDEN), r.w = ops_widen(w, NN_F32, experts * HIDDEN);
  r.logit = ops_doubles(n * experts), r.prob = ops_doubles(n * experts), r.lse = ops_doubles(n);
  r.expert = ops_ints(n * TOP_K);
  int ties = 0;
  for (int64_t t = 0; t < n; t++) {
    route64_token(&r, t);
    ties += route64_choose(&r, t, r.expert + t * TOP_K) == 0;
  }
  assert_true(ties >= n / 2);
  for (int32_t j = 0; j < TOP_K; j++) assert_int_equal(r.expert[j], j);
  op_route_t op = {.n = n, .hidden = HIDDEN, .experts = experts, .top_k = TOP_K, .x = x, .w = w};
  ops_trial_t trial;
  ops_begin(&trial, route_limits(&c));
  while (ops_next(&trial)) {
    route_outputs(&op, &c);
    OPS_RUN(&trial, route, &op);
    assert_memory_equal(op.out.expert, r.expert, (size_t)n * TOP_K * sizeof(int32_t));
  }
  ops_free();
}

static void test_ties_go_to_the_lower_index(void **state) {
  (void)state;
  ties_go_to_the_lower_index(9, 37);
  ties_go_to_the_lower_index(70, 40);
}

/* Numbers that are none may give any choice, but a valid one: later operations index by it. */
static void nan_gives_valid_indices(int64_t n, int64_t experts) {
  route_case_t c = {.n = n, .hidden = 17, .experts = experts, .top_k = 3, .capacity = 2};
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

static void test_nan_gives_valid_indices(void **state) {
  (void)state;
  nan_gives_valid_indices(20, 21);
  nan_gives_valid_indices(90, 24);
}

/* ---- backward ---- */

/* What gradients are the derivatives of: <dweight, weight> for the choice held fixed, and of
 * softmax the two auxiliary losses with the share held fixed. */
static double route64_loss(const void *context) {
  route64_t r = *(const route64_t *)context;
  double loss = 0;
  for (int64_t t = 0; t < r.n; t++) {
    route64_token(&r, t);
    const double *prob = r.prob + t * r.experts;
    double divisor = route64_divisor(&r, t);
    for (int64_t i = t * r.top_k; i < (t + 1) * r.top_k; i++)
      loss += r.dweight[i] * r.scale * prob[r.expert[i]] / divisor;
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
  double n = (double)r->n, sum = route64_divisor(r, t), mean = 0, dot = 0, most = 0;
  for (int64_t i = t * r->top_k; i < (t + 1) * r->top_k; i++) {
    r->weight[i] = r->scale * prob[r->expert[i]] / sum;
    if (r->router->norm == NN_ROUTER_NORM_SUM) mean += r->dweight[i] * r->weight[i];
  }
  for (int64_t e = 0; e < r->experts; e++) dlogit[e] = r->aux_scale * r->aux_share[e] / n;
  for (int64_t i = t * r->top_k; i < (t + 1) * r->top_k; i++) {
    dlogit[r->expert[i]] += (r->scale * r->dweight[i] - mean) / sum;
    most = fmax(most, (r->scale * fabs(r->dweight[i]) + fabs(mean)) / sum);
  }
  for (int64_t e = 0; r->router->score == NN_SCORE_SIGMOID && e < r->experts; e++) {
    dlogit[e] *= prob[e] * (1 - prob[e]);
    /* 1 - p has the error of p as it was rounded */
    error[e] = prob[e] * most * (ops_sum_error(r->top_k) + 16 * OPS_U);
  }
  if (r->router->score == NN_SCORE_SIGMOID) return;
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
      r->dbias[e] += g;
    }
  }
}

static void route64_prepare_backward(route64_t *r) {
  int64_t slots = r->n * r->top_k;
  r->weight = ops_doubles(slots);
  r->dweight = ops_widen(ops_uniform(slots, 1, 11), NN_F32, slots);
  for (int64_t i = 5; i < slots; i += 6) r->dweight[i] = 0; /* as if dropped */
  r->aux_share = ops_widen(ops_uniform(r->experts, 1, 12), NN_F32, r->experts);
  if (r->router->score == NN_SCORE_SOFTMAX) r->aux_scale = 0.75, r->z_scale = 0.125;
  r->dlogit = ops_doubles(r->n * r->experts), r->dlogit_error = ops_doubles(r->n * r->experts);
  r->dx = ops_doubles(r->n * r->hidden), r->dw = ops_doubles(r->experts * r->hidden);
  r->dbias = ops_doubles(r->experts);
  route64_backward(r);
}

/* Sums over experts (dx) or tokens (dw) of products with an inexact dlogit, and of a number
 * below 1. */
static void route_bwd_slack(const route64_t *r, double *dx, double *dw, double *dbias) {
  double over_e = ops_sum_error(r->experts + 1), over_t = ops_sum_error(r->n + 1);
  for (int64_t i = 0; i < r->n * r->hidden; i++) dx[i] = over_e;
  for (int64_t i = 0; i < r->experts * r->hidden; i++) dw[i] = over_t;
  for (int64_t i = 0; i < r->n * r->experts; i++) {
    int64_t t = i / r->experts, e = i % r->experts;
    dbias[e] += r->dlogit_error[i] + over_t * fabs(r->dlogit[i]);
    for (int64_t j = 0; j < r->hidden; j++) {
      double g = fabs(r->dlogit[i]), w = fabs(r->w[e * r->hidden + j]),
             x = fabs(r->x[t * r->hidden + j]);
      dx[t * r->hidden + j] += w * (r->dlogit_error[i] + over_e * g);
      dw[e * r->hidden + j] += x * (r->dlogit_error[i] + over_t * g);
    }
  }
}

static void check_route_bwd(const route_case_t *c) {
  if (c->dtype != NN_F32 && !ops_widens()) return;
  route_data_t d = route_make(c);
  route64_t *r = &d.exact;
  route64_prepare_backward(r);
  int64_t x_count = c->n * c->hidden, w_count = c->experts * c->hidden;
  double *slack_dx = ops_doubles(x_count), *slack_dw = ops_doubles(w_count);
  double *slack_dbias = ops_doubles(c->experts);
  route_bwd_slack(r, slack_dx, slack_dw, slack_dbias);
  float *dx = ops_uniform(x_count, 1, 13), *dw = ops_uniform(w_count, 1, 14);
  for (int64_t i = 0; i < x_count; i++) r->dx[i] += dx[i];
  for (int64_t i = 0; i < w_count; i++) r->dw[i] += dw[i];
  float *dbias = ops_uniform(c->experts, 1, 15);
  for (int64_t e = 0; e < c->experts; e++) {
    r->dbias[e] += dbias[e];
    slack_dbias[e] += ops_sum_error(c->n + 1) * fabs(dbias[e]) + OPS_U * fabs(r->dbias[e]);
  }
  op_route_bwd_t op = {.n = c->n, .hidden = c->hidden, .experts = c->experts, .top_k = c->top_k,
                       .x = d.x, .w = d.w, .weight_dtype = c->dtype, .router = d.router};
  op.routing.expert = r->expert, op.routing.weight = ops_narrow(r->weight, c->n * c->top_k);
  op.prob = ops_narrow(r->prob, c->n * c->experts), op.lse = ops_narrow(r->lse, c->n);
  op.dweight = ops_narrow(r->dweight, c->n * c->top_k);
  op.aux_share = ops_narrow(r->aux_share, c->experts);
  op.aux_scale = (float)r->aux_scale, op.z_scale = (float)r->z_scale;
  ops_trial_t trial;
  ops_begin(&trial, route_limits(c));
  while (ops_next(&trial)) {
    op.dx = ops_copy(dx, x_count), op.dw = ops_copy(dw, w_count);
    if (c->biased) op.dbias = ops_copy(dbias, c->experts);
    OPS_RUN(&trial, route_bwd, &op);
    if (c->biased)
      ops_check(&trial, 2, "dbias", op.dbias, r->dbias, slack_dbias, c->experts);
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
  const route_case_t small[] = {
      {.n = 4, .hidden = 5, .experts = 6, .top_k = 3},
      {.n = 4, .hidden = 5, .experts = 6, .top_k = 3, .norm = NN_ROUTER_NORM_NONE, .scale = 2,
       .biased = 1},
      {.n = 4, .hidden = 5, .experts = 6, .top_k = 3, .score = NN_SCORE_SIGMOID, .scale = 2.5f,
       .biased = 1, .choice_biased = 1, .groups = 3, .top_groups = 2},
      {.n = 4, .hidden = 5, .experts = 6, .top_k = 2, .score = NN_SCORE_SIGMOID,
       .norm = NN_ROUTER_NORM_NONE}};
  for (size_t i = 0; i < sizeof small / sizeof *small; i++) {
    const route_case_t c = small[i];
    route64_t r = route_make(&small[i]).exact;
    route64_prepare_backward(&r);
    ops_check_gradient("dx", route64_loss, &r, r.x, r.dx, c.n * c.hidden);
    ops_check_gradient("dw", route64_loss, &r, r.w, r.dw, c.experts * c.hidden);
    if (c.biased) ops_check_gradient("dbias", route64_loss, &r, r.bias, r.dbias, c.experts);
    ops_free();
  }
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
