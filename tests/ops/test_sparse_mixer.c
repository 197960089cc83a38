/* Routing by the sparse mixer: the two choices, their weights, and gradients. The router's weights
 * are the identity, so that a token is its own logits. */
#include <math.h>
#include <string.h>

#include "base/random.h"
#include "ops.h"

typedef struct mixer64 {
  int64_t n, experts;
  double eps, scale, aux_scale, z_scale;
  double *logit, *prob, *lse;           /* [n, E], [n, E], [n] */
  int32_t *expert;                      /* [n, 2] */
  double *weight, *dweight, *aux_share; /* [n, 2], [n, 2], [E] */
  double *dlogit;                       /* [n, E] */
  double clear; /* how far the nearest logit is from where it would begin or cease to count */
} mixer64_t;

static int mixes(mixer64_t *m, int64_t t, int64_t e, int turn) {
  const double *l = m->logit + t * m->experts;
  double most = l[m->expert[2 * t + turn]], far = (most - l[e]) / fmax(fabs(l[e]), most);
  if (turn && e == m->expert[2 * t]) return 0;
  m->clear = fmin(m->clear, fabs(far - 2 * m->eps));
  return far <= 2 * m->eps;
}

static void mixer64_token(mixer64_t *m, int64_t t) {
  double *l = m->logit + t * m->experts, sum = 0, most = -INFINITY;
  for (int64_t e = 0; e < m->experts; e++) most = fmax(most, l[e]);
  for (int64_t e = 0; e < m->experts; e++) sum += exp(l[e] - most);
  m->lse[t] = most + log(sum);
  for (int64_t e = 0; e < m->experts; e++) m->prob[t * m->experts + e] = exp(l[e] - m->lse[t]);
  for (int turn = 0; turn < 2; turn++) {
    int32_t best = -1;
    for (int32_t e = 0; e < m->experts; e++)
      if (!(turn && e == m->expert[2 * t]) && (best < 0 || l[e] > l[best])) best = e;
    m->expert[2 * t + turn] = best;
    double near = 0;
    for (int64_t e = 0; e < m->experts; e++)
      if (mixes(m, t, e, turn)) near += exp(l[e] - l[best]);
    m->weight[2 * t + turn] = m->scale / near;
  }
}

static double mixer64_loss(const void *context) {
  mixer64_t m = *(const mixer64_t *)context;
  double loss = 0, n = (double)m.n;
  for (int64_t t = 0; t < m.n; t++) {
    mixer64_token(&m, t);
    for (int turn = 0; turn < 2; turn++) loss += m.dweight[2 * t + turn] * m.weight[2 * t + turn];
    for (int64_t e = 0; e < m.experts; e++)
      loss += m.aux_scale * m.aux_share[e] * m.prob[t * m.experts + e] / n;
    loss += m.z_scale * m.lse[t] * m.lse[t] / n;
  }
  return loss;
}

static void mixer64_backward(mixer64_t *m) {
  for (int64_t t = 0; t < m->n; t++) {
    double *d = m->dlogit + t * m->experts, *p = m->prob + t * m->experts, dot = 0;
    for (int64_t e = 0; e < m->experts; e++) dot += p[e] * m->aux_scale * m->aux_share[e];
    for (int64_t e = 0; e < m->experts; e++)
      d[e] = p[e] * (m->aux_scale * m->aux_share[e] - dot + 2 * m->z_scale * m->lse[t]) /
             (double)m->n;
    for (int turn = 0; turn < 2; turn++) {
      int64_t chosen = m->expert[2 * t + turn];
      double w = m->weight[2 * t + turn], by = m->dweight[2 * t + turn] * w;
      for (int64_t e = 0; e < m->experts; e++)
        if (mixes(m, t, e, turn))
          d[e] -= by * w / m->scale * p[e] / p[chosen];
      d[chosen] += by;
    }
  }
}

/* Tokens are drawn again until no logit is at the edge of counting. */
static mixer64_t mixer_make(int64_t n, int64_t experts, double eps, double scale) {
  mixer64_t m = {.n = n, .experts = experts, .eps = (float)eps, .scale = (float)scale};
  m.aux_scale = 0.75, m.z_scale = 0.125;
  m.logit = ops_doubles(n * experts), m.prob = ops_doubles(n * experts), m.lse = ops_doubles(n);
  m.expert = ops_ints(2 * n), m.weight = ops_doubles(2 * n), m.dweight = ops_doubles(2 * n);
  m.aux_share = ops_doubles(experts), m.dlogit = ops_doubles(n * experts);
  for (int64_t e = 0; e < experts; e++) m.aux_share[e] = random_uniform(9, 0, (uint64_t)e);
  for (int64_t i = 0; i < 2 * n; i++)
    m.dweight[i] = (float)(random_uniform(8, 0, (uint64_t)i) - 0.5);
  for (int64_t t = 0; t < n; t++)
    for (uint64_t draw = 0;; draw++) {
      assert_true(draw < 1000);
      for (int64_t e = 0; e < experts; e++)
        m.logit[t * experts + e] =
            (float)(3 * random_uniform(10 + draw, (uint64_t)t, (uint64_t)e) - 1);
      m.clear = INFINITY;
      mixer64_token(&m, t);
      if (m.clear > 1e-3) break;
    }
  mixer64_backward(&m);
  return m;
}

static float *identity(int64_t size) {
  float *w = ops_floats(size * size);
  for (int64_t i = 0; i < size; i++) w[i * size + i] = 1;
  return w;
}

static op_route_t mixer_op(const mixer64_t *m, const float *x, const float *w) {
  op_route_t op = {.n = m->n, .hidden = m->experts, .experts = m->experts, .top_k = 2, .x = x,
                   .w = w};
  op.router = (op_router_t){.score = NN_SCORE_SPARSE_MIXER, .norm = NN_ROUTER_NORM_NONE,
                            .eps = (float)m->eps, .scale = (float)m->scale};
  op.out.expert = ops_ints(2 * m->n), op.out.weight = ops_floats(2 * m->n);
  op.out.offset = ops_ints(m->experts + 1);
  op.out.row_slot = ops_ints(2 * m->n), op.out.slot_row = ops_ints(2 * m->n);
  op.prob = ops_floats(m->n * m->experts), op.lse = ops_floats(m->n);
  op.share = ops_floats(m->experts), op.mean_prob = ops_floats(m->experts);
  op.mean_lse2 = ops_floats(1);
  return op;
}

/* Logits are exact; each exponential, sum and quotient adds a few units in the last place. Backward
 * has the logits from probabilities and log-sum-exps rounded to fp32, which are below 8. */
static void check_mixer(int64_t n, int64_t experts, double eps, double scale) {
  mixer64_t m = mixer_make(n, experts, eps, scale);
  int64_t count = n * experts;
  const float *x = ops_narrow(m.logit, count), *w = identity(experts);
  double relative = ops_sum_error(experts) + 16 * OPS_U;
  double *slack_w = ops_doubles(2 * n), *slack_p = ops_doubles(count);
  double *slack_d = ops_doubles(count);
  for (int64_t i = 0; i < 2 * n; i++) slack_w[i] = relative * m.weight[i];
  for (int64_t i = 0; i < count; i++) {
    slack_p[i] = (relative + 8 * OPS_U) * m.prob[i];
    slack_d[i] = 4 * (relative + 32 * OPS_U) * (2 * m.scale + 1);
  }
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = n, .hidden = experts, .experts = experts, .top_k = 2,
                                       .ffn = 1, .training = 1});
  while (ops_next(&trial)) {
    op_route_t op = mixer_op(&m, x, w);
    OPS_RUN(&trial, route, &op);
    assert_memory_equal(op.out.expert, m.expert, (size_t)(2 * n) * sizeof(int32_t));
    ops_check(&trial, 0, "weight", op.out.weight, m.weight, slack_w, 2 * n);
    ops_check(&trial, 1, "prob", op.prob, m.prob, slack_p, count);
    op_route_bwd_t bwd = {.n = n, .hidden = experts, .experts = experts, .top_k = 2, .x = x, .w = w,
                          .router = op.router, .routing = op.out, .prob = op.prob, .lse = op.lse};
    bwd.dweight = ops_narrow(m.dweight, 2 * n), bwd.aux_share = ops_narrow(m.aux_share, experts);
    bwd.aux_scale = (float)m.aux_scale, bwd.z_scale = (float)m.z_scale;
    bwd.dx = ops_floats(count), bwd.dw = ops_floats(experts * experts);
    OPS_RUN(&trial, route_bwd, &bwd);
    ops_check(&trial, 2, "dx", bwd.dx, m.dlogit, slack_d, count);
  }
  ops_free();
}

static void test_random_logits(void **state) {
  (void)state;
  check_mixer(1, 2, 0.1, 1);
  check_mixer(33, 16, 0.01, 1);
  check_mixer(130, 16, 0.2, 0.5);
  check_mixer(65, 5, 0.4, 1);
}

/* Of the published form's definition, computed in double precision; nine digits or more. */
static void test_published_values(void **state) {
  (void)state;
  mixer64_t m = {.n = 1, .experts = 4, .eps = 0.01f, .scale = 1};
  const float *x = OPS_PUT(float, 2, 1.99f, 1.97f, -1), *w = identity(4);
  const double want[2] = {.337781308847, .50499983334};
  /* logits rounded to fp32 move a weight by at most as much */
  const double slack[2] = {4 * OPS_U, 4 * OPS_U};
  ops_trial_t trial;
  ops_begin(&trial,
            (backend_limits_t){.rows = 1, .hidden = 4, .experts = 4, .top_k = 2, .ffn = 1});
  while (ops_next(&trial)) {
    op_route_t op = mixer_op(&m, x, w);
    OPS_RUN(&trial, route, &op);
    assert_int_equal(op.out.expert[0], 0);
    assert_int_equal(op.out.expert[1], 1);
    ops_check(&trial, 0, "weight", op.out.weight, want, slack, 2);
  }
  ops_free();
}

static void test_gradient_by_finite_differences(void **state) {
  (void)state;
  mixer64_t m = mixer_make(5, 6, 0.2, 0.75);
  ops_check_gradient("dlogit", mixer64_loss, &m, m.logit, m.dlogit, 5 * 6);
  ops_free();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_random_logits),
      cmocka_unit_test(test_published_values),
      cmocka_unit_test(test_gradient_by_finite_differences),
  };
  return cmocka_run_group_tests_name("sparse_mixer", tests, NULL, NULL);
}
