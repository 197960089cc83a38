/* The auxiliary losses of a pass from its layers' router statistics, both kinds. */
#include <math.h>

#include "ops.h"

typedef struct router_loss_case {
  int64_t layers, experts, top_k;
} router_loss_case_t;

static const router_loss_case_t cases[] = {
    {1, 1, 1}, {1, 16, 4}, {3, 4, 2}, {30, 16, 4}, {12, 130, 8},
};

/* By the definition. Every term is positive: a sum of n of them in fp64, in any order, has at most
 * the relative error n 2^-53, and the terms themselves a few times that. */
static void check_router_loss(const router_loss_case_t *c, int32_t kind) {
  int64_t width = 2 * c->experts + 1;
  float *stats = ops_uniform(c->layers * width, 0.5f, 1);
  for (int64_t i = 0; i < c->layers * width; i++) stats[i] += 0.5f;
  double *share = ops_doubles(c->experts), *slack = ops_doubles(c->experts), want[2] = {0};
  for (int64_t e = 0; e < c->experts; e++) {
    double prob = 0, same_layer = 0, layers = (double)c->layers;
    for (int64_t l = 0; l < c->layers; l++) {
      const float *row = stats + l * width;
      share[e] += row[e] / layers;
      prob += row[c->experts + e] / layers;
      same_layer += (double)row[e] * row[c->experts + e];
    }
    want[0] += kind == NN_AUX_SWITCH ? (double)c->experts * same_layer
                                     : (double)(c->experts * c->top_k) * share[e] * prob;
    slack[e] = share[e] * (OPS_U + (layers + 4) * 0x1p-53); /* rounded to fp32 */
  }
  for (int64_t l = 0; l < c->layers; l++) want[1] += stats[l * width + 2 * c->experts];
  double relative = (double)(2 * c->layers * c->experts + 16) * 0x1p-53;

  double *loss = ops_doubles(2);
  op_router_loss_t op = {.layers = c->layers, .experts = c->experts, .top_k = c->top_k,
                         .kind = kind, .stats = stats, .loss = loss};
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .experts = c->experts, .top_k = c->top_k,
                                       .hidden = 1, .ffn = 1, .training = 1});
  while (ops_next(&trial)) {
    op.mean_share = ops_floats(c->experts);
    ops_garbage(op.mean_share, c->experts), loss[0] = loss[1] = NAN;
    OPS_RUN(&trial, router_loss, &op);
    for (int i = 0; i < 2; i++) assert_true(fabs(loss[i] - want[i]) <= relative * want[i]);
    ops_check_bits(&trial, 0, "loss", loss, 2 * sizeof *loss);
    ops_check(&trial, 1, "mean_share", op.mean_share, share, slack, c->experts);
  }
  ops_free();
}

static void test_router_loss(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    check_router_loss(&cases[i], NN_AUX_SWITCH);
    check_router_loss(&cases[i], NN_AUX_JOINT);
  }
}

/* Routers that treat all experts alike: 1 for each layer, or top_k. */
static void test_balance(void **state) {
  (void)state;
  enum { LAYERS = 3, EXPERTS = 4, TOP_K = 2, WIDTH = 2 * EXPERTS + 1 };
  float *stats = ops_floats(LAYERS * WIDTH), *mean_share = ops_floats(EXPERTS);
  double *loss = ops_doubles(2);
  for (int i = 0; i < LAYERS * WIDTH; i++) stats[i] = i % WIDTH == WIDTH - 1 ? 2 : 0.25f;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .experts = EXPERTS, .top_k = TOP_K, .hidden = 1,
                                       .ffn = 1, .training = 1});
  while (ops_next(&trial)) {
    op_router_loss_t op = {.layers = LAYERS, .experts = EXPERTS, .top_k = TOP_K,
                           .kind = NN_AUX_SWITCH, .stats = stats, .loss = loss,
                           .mean_share = mean_share};
    OPS_RUN(&trial, router_loss, &op);
    assert_true(loss[0] == LAYERS && loss[1] == 2 * LAYERS);
    op.kind = NN_AUX_JOINT;
    OPS_RUN(&trial, router_loss, &op);
    assert_true(loss[0] == TOP_K && loss[1] == 2 * LAYERS);
    for (int e = 0; e < EXPERTS; e++) assert_true(mean_share[e] == 0.25f);
  }
  ops_free();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_router_loss),
      cmocka_unit_test(test_balance),
  };
  return cmocka_run_group_tests_name("router_loss", tests, NULL, NULL);
}
