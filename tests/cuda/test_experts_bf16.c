/* Routing and the experts on a GPU against the CPU: few tokens and many, experts without tokens and
 * with more than their capacity. */
#include <math.h>
#include <string.h>

#include "gpu.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* ---- routing ---- */

typedef struct route_case {
  int64_t n, hidden, experts, top_k, capacity;
} route_case_t;

static const route_case_t route_cases[] = {
    {1, 768, 16, 4, 0},    {5, 768, 16, 4, 0},   {300, 768, 16, 4, 0}, {4096, 768, 16, 4, 0},
    {4096, 768, 16, 4, 900}, {1, 64, 4, 2, 0},   {5, 33, 4, 2, 1},     {300, 64, 4, 2, 100},
    {1, 128, 64, 8, 0},    {5, 128, 64, 8, 0},   {300, 770, 64, 8, 30}, {4096, 128, 64, 8, 0},
    {33, 8, 3, 1, 0},      {70, 16, 5, 5, 0},    {40, 96, 128, 8, 0}, {70, 64, 256, 6, 40},
    {300, 96, 16, 2, 0},   {40, 64, 100, 2, 0},   {300, 96, 13, 3, 0}, {300, 64, 16, 7, 0},
    /* strips of columns and turns of a block that are not whole */
    {2500, 72, 5, 2, 0},   {17100, 520, 16, 4, 5000},
    /* many experts: a block and more, groups of 32 and others, more choices than a warp has lanes,
     * rows that products cannot take whole, a block's tokens in more than one turn of its warps */
    {1, 200, 128, 8, 0},   {32, 264, 256, 8, 0}, {1000, 72, 128, 8, 70}, {1000, 136, 256, 8, 0},
    {65, 33, 130, 2, 0},   {70, 40, 320, 40, 9}, {90, 24, 1024, 2, 0}, {4500, 8, 72, 3, 0},
    /* one expert a lane, a set of bits that is full, groups that leave lanes over */
    {64, 72, 24, 3, 20},   {300, 40, 32, 4, 0},  {70, 16, 384, 6, 0},
};

/* Ways of routing: those of the families, and all of them at once. */
typedef struct route_kind {
  const char *name;
  op_router_t router;
  int32_t bias, choice_bias;
} route_kind_t;

static const route_kind_t route_kinds[] = {
    {"softmax", {.score = NN_SCORE_SOFTMAX}, 0, 0},
    {"not divided", {.norm = NN_ROUTER_NORM_NONE, .scale = 2.5f}, 0, 0},
    {"biased", {.score = NN_SCORE_SOFTMAX}, 1, 0},
    {"sigmoid", {.score = NN_SCORE_SIGMOID, .scale = 0.5f}, 0, 1},
    {"groups by the best", {.groups = 4, .top_groups = 2, .norm = NN_ROUTER_NORM_NONE}, 0, 0},
    {"groups by two",
     {.score = NN_SCORE_SIGMOID, .groups = 4, .top_groups = 3, .group_score = NN_GROUP_TOP2,
      .scale = 2.5f}, 1, 1},
    {"sparse mixer",
     {.score = NN_SCORE_SPARSE_MIXER, .norm = NN_ROUTER_NORM_NONE, .eps = 0.3f, .scale = 1.5f}, 1,
     0},
};

/* Whether the groups leave enough experts. */
static int route_possible(const route_case_t *c, const op_router_t *r) {
  if (r->score == NN_SCORE_SPARSE_MIXER && c->top_k != 2) return 0;
  return !r->groups || (c->experts % r->groups == 0 &&
                        c->experts / r->groups * r->top_groups >= c->top_k);
}

/* routing_t's, in its order. */
typedef struct routing_tensors {
  gpu_tensor_t *expert, *weight, *offset, *row_slot, *slot_row;
} routing_tensors_t;

static routing_t routing_at(const routing_tensors_t *t, int side) {
  return (routing_t){gpu_at(t->expert, side, 0), gpu_at(t->weight, side, 0),
                     gpu_at(t->offset, side, 0), gpu_at(t->row_slot, side, 0),
                     gpu_at(t->slot_row, side, 0)};
}

/* Tensors of a case; what is NULL in the operation is not made. */
typedef struct route_tensors {
  gpu_tensor_t *x, *w, *bias, *choice_bias;
  op_router_t router;
  routing_tensors_t out;
  gpu_tensor_t *prob, *lse, *share, *mean_prob, *mean_lse2, *stat_count, *stat_prob;
} route_tensors_t;

static op_router_t route_router(const route_tensors_t *t, int side) {
  op_router_t router = t->router;
  router.bias = gpu_at(t->bias, side, 0), router.choice_bias = gpu_at(t->choice_bias, side, 0);
  return router;
}

static op_route_t route_op(const route_case_t *c, const route_tensors_t *t, int side) {
  return (op_route_t){.n = c->n,
                      .hidden = c->hidden,
                      .experts = c->experts,
                      .top_k = c->top_k,
                      .capacity = c->capacity,
                      .x = gpu_at(t->x, side, 0),
                      .w = gpu_at(t->w, side, 0),
                      .weight_dtype = gpu_dtype(side),
                      .act_dtype = gpu_dtype(side),
                      .router = route_router(t, side),
                      .out = routing_at(&t->out, side),
                      .prob = gpu_at(t->prob, side, 0),
                      .lse = gpu_at(t->lse, side, 0),
                      .share = gpu_at(t->share, side, 0),
                      .mean_prob = gpu_at(t->mean_prob, side, 0),
                      .mean_lse2 = gpu_at(t->mean_lse2, side, 0),
                      .stat_count = gpu_at(t->stat_count, side, 0),
                      .stat_prob = gpu_at(t->stat_prob, side, 0)};
}

static route_tensors_t route_make(const route_case_t *c, const route_kind_t *kind) {
  int64_t slots = c->n * c->top_k;
  int64_t *counts = gpu_memory(c->experts + 1, sizeof *counts);
  double *sums = gpu_memory(c->experts, sizeof *sums);
  for (int64_t e = 0; e < c->experts; e++) counts[e] = 1000 * e, sums[e] = 0.5 * (double)e;
  return (route_tensors_t){
      .x = gpu_in(c->n * c->hidden, 1, 0, 1),
      /* logits of order 1 */
      .w = gpu_in(c->experts * c->hidden, 3 / sqrt((double)c->hidden), 0, 2),
      .bias = kind->bias ? gpu_in(c->experts, 1, 0.2, 6) : NULL,
      .choice_bias = kind->choice_bias ? gpu_in(c->experts, 0.3, -0.2, 7) : NULL,
      .router = kind->router,
      .out = {.expert = gpu_out(GPU_I32, slots),
              .weight = gpu_out(GPU_F32, slots),
              .offset = gpu_out(GPU_I32, c->experts + 1),
              .row_slot = gpu_out(GPU_I32, slots),
              .slot_row = gpu_out(GPU_I32, slots)},
      .prob = gpu_out(GPU_F32, c->n * c->experts),
      .lse = gpu_out(GPU_F32, c->n),
      .share = gpu_out(GPU_F32, c->experts),
      .mean_prob = gpu_out(GPU_F32, c->experts),
      .mean_lse2 = gpu_out(GPU_F32, 1),
      .stat_count = gpu_tensor(GPU_I64, GPU_UPDATE, counts, c->experts + 1),
      .stat_prob = gpu_tensor(GPU_F64, GPU_UPDATE, sums, c->experts)};
}

/* What the choice goes by. */
static double route_choice(const route_case_t *c, const route_tensors_t *t, int64_t token,
                           int64_t e) {
  double bias = t->choice_bias ? gpu_value(t->choice_bias, GPU_CPU, e) : 0;
  return gpu_value(t->prob, GPU_CPU, token * c->experts + e) + bias;
}

/* The closest that two of a token's groups come. */
static double route_group_margin(const route_case_t *c, const route_tensors_t *t, int64_t token) {
  double score[64], margin = 1;
  int64_t groups = t->router.groups, size = groups ? c->experts / groups : 0;
  for (int64_t g = 0; g < groups; g++) {
    double first = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < size; i++) {
      double x = route_choice(c, t, token, g * size + i);
      second = fmax(second, fmin(first, x)), first = fmax(first, x);
    }
    score[g] = first + (t->router.group_score == NN_GROUP_TOP2 && size > 1 ? second : 0);
    for (int64_t h = 0; h < g; h++) margin = fmin(margin, fabs(score[g] - score[h]));
  }
  return margin;
}

/* The closest that a token's experts come to a tie where the choice or its order depends on it, in
 * relation to the score. */
static double route_margin(const route_case_t *c, const route_tensors_t *t, int64_t token) {
  double margin = route_group_margin(c, t, token);
  for (int64_t j = 0; j < c->top_k; j++) {
    int64_t chosen = (int64_t)gpu_value(t->out.expert, GPU_CPU, token * c->top_k + j);
    double p = gpu_value(t->prob, GPU_CPU, token * c->experts + chosen);
    for (int64_t e = 0; e < c->experts; e++) {
      double apart = route_choice(c, t, token, chosen) - route_choice(c, t, token, e);
      if (e != chosen) margin = fmin(margin, fabs(apart) / p);
    }
  }
  return margin;
}

/* Draws tokens anew until none comes so near to a tie that fp32 may decide it otherwise: logits of
 * order 1, sums of `hidden` terms, are off by about 2^-24 sqrt(hidden), 2e-6. */
static void route_avoid_ties(const route_case_t *c, route_tensors_t *t) {
  float *x = gpu_memory(c->n * c->hidden, sizeof *x);
  memcpy(x, gpu_at(t->x, GPU_CPU, 0), (size_t)(c->n * c->hidden) * sizeof *x);
  for (uint64_t round = 0, close = 1; close; round++) {
    assert_true(round < 20);
    op_route_t op[GPU_SIDES] = {route_op(c, t, GPU_CPU)};
    GPU_RUN_CPU(route, op);
    close = 0;
    for (int64_t i = 0; i < c->n; i++) {
      if (route_margin(c, t, i) >= 2e-5) continue;
      for (int64_t j = 0; j < c->hidden; j++) /* another token's mirror image */
        x[i * c->hidden + j] = -x[(i + (int64_t)round + 1) % c->n * c->hidden + j] +
                               (j == (int64_t)round % c->hidden);
      close++;
    }
    if (close) gpu_change(t->x, x);
  }
}

static void check_route_forward(const route_case_t *c, const route_tensors_t *t) {
  op_route_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++) op[s] = route_op(c, t, s);
  GPU_RUN(route, op);
  int64_t slots = c->n * c->top_k;
  double bound = gpu_bound_f32(c->hidden);
  gpu_check_equal(t->out.expert, "expert", slots);
  gpu_check_equal(t->out.offset, "offset", c->experts + 1);
  gpu_check_equal(t->out.slot_row, "slot_row", slots);
  int64_t rows = (int64_t)gpu_value(t->out.offset, GPU_CPU, c->experts);
  gpu_check_equal(t->out.row_slot, "row_slot", rows);
  gpu_check_equal(t->stat_count, "stat_count", c->experts + 1);
  gpu_check(t->out.weight, "weight", c->top_k, bound);
  gpu_check(t->prob, "prob", c->experts, bound);
  gpu_check(t->lse, "lse", 1, bound);
  gpu_check(t->share, "share", c->experts, gpu_bound_f32(1));
  gpu_check(t->mean_prob, "mean_prob", c->experts, bound + gpu_bound_f32(c->n));
  gpu_check(t->mean_lse2, "mean_lse2", 1, 2 * bound + gpu_bound_f32(c->n));
  gpu_check(t->stat_prob, "stat_prob", c->experts, bound + gpu_bound_f32(c->n));
  for (int s = 0; s < GPU_SIDES; s++) op[s].stat_count = NULL, op[s].stat_prob = NULL;
  GPU_RUN(route, op);
  gpu_check_equal(t->out.slot_row, "slot_row without counts", slots);
  gpu_check_equal(t->stat_count, "untouched stat_count", c->experts + 1);
}

/* What the backward pass reads is what the CPU's forward pass made. */
static void route_freeze(gpu_tensor_t **tensor, gpu_kind_t kind, int64_t count) {
  *tensor = gpu_tensor(kind, GPU_READ, gpu_at(*tensor, GPU_CPU, 0), count);
}

static void check_route_backward(const route_case_t *c, route_tensors_t *t) {
  int64_t slots = c->n * c->top_k, h = c->hidden;
  float *dweight = gpu_uniform(slots, 1, 0, 3);
  for (int64_t i = 0; i < slots; i++)
    if (gpu_value(t->out.slot_row, GPU_CPU, i) < 0) dweight[i] = 0;
  route_freeze(&t->out.expert, GPU_I32, slots), route_freeze(&t->out.weight, GPU_F32, slots);
  route_freeze(&t->prob, GPU_F32, c->n * c->experts), route_freeze(&t->lse, GPU_F32, c->n);
  route_freeze(&t->share, GPU_F32, c->experts);
  gpu_tensor_t *dw_slot = gpu_tensor(GPU_F32, GPU_READ, dweight, slots);
  gpu_tensor_t *dx = gpu_sum(GPU_ACT, c->n * h, 4), *dw = gpu_sum(GPU_F32, c->experts * h, 5);
  gpu_tensor_t *dbias = t->bias ? gpu_sum(GPU_F32, c->experts, 8) : NULL;
  /* not lost beside dweight */
  float losses = t->router.score == NN_SCORE_SIGMOID ? 0 : (float)c->n;
  op_route_bwd_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++)
    op[s] = (op_route_bwd_t){.n = c->n,
                             .hidden = h,
                             .experts = c->experts,
                             .top_k = c->top_k,
                             .x = gpu_at(t->x, s, 0),
                             .w = gpu_at(t->w, s, 0),
                             .weight_dtype = gpu_dtype(s),
                             .act_dtype = gpu_dtype(s),
                             .router = route_router(t, s),
                             .routing = routing_at(&t->out, s),
                             .prob = gpu_at(t->prob, s, 0),
                             .lse = gpu_at(t->lse, s, 0),
                             .dweight = gpu_at(dw_slot, s, 0),
                             .aux_share = gpu_at(t->share, s, 0),
                             .aux_scale = 0.5f * losses,
                             .z_scale = 0.01f * losses,
                             .dx = gpu_at(dx, s, 0),
                             .dw = gpu_at(dw, s, 0),
                             .dbias = gpu_at(dbias, s, 0)};
  GPU_RUN(route_bwd, op);
  /* the logits' gradients may be stored, then dx is */
  gpu_check(dx, "dx", h, gpu_bound(2, c->experts));
  gpu_check(dw, "dw", h, gpu_bound(1, c->n));
  if (dbias) gpu_check(dbias, "dbias", c->experts, gpu_bound_f32(c->n));
}

static void check_route(const route_case_t *c, const route_kind_t *kind, int32_t dtype) {
  if (!route_possible(c, &kind->router)) return;
  if (gpu_leaves(dtype, 3.0 * (double)(c->n * c->hidden * c->experts))) return;
  backend_limits_t limits = {.rows = c->n, .hidden = c->hidden, .experts = c->experts,
                             .top_k = c->top_k, .training = 1};
  gpu_begin(dtype, limits, "route n %lld, hidden %lld, %lld of %lld, capacity %lld, %s",
            (long long)c->n, (long long)c->hidden, (long long)c->top_k, (long long)c->experts,
            (long long)c->capacity, kind->name);
  route_tensors_t t = route_make(c, kind);
  route_avoid_ties(c, &t);
  check_route_forward(c, &t);
  check_route_backward(c, &t);
  gpu_end();
}

static void test_route(void **state) {
  (void)state;
  for (size_t k = 0; k < LENGTH(route_kinds); k++)
    for (size_t i = 0; i < 2 * LENGTH(route_cases); i++)
      check_route(&route_cases[i / 2], &route_kinds[k], gpu_dtypes[i % 2]);
}

/* Whether a token's scores come in the order of its choice: falling, and among equals by index.
 * What is no number counts as 0. */
static int route_in_order(const route_case_t *c, const route_tensors_t *t, int side,
                          int64_t token) {
  int32_t order[64];
  int left[64];
  for (int64_t e = 0; e < c->experts; e++) left[e] = 1;
  for (int64_t j = 0; j < c->top_k; j++) {
    order[j] = -1;
    double best = -1;
    for (int32_t e = 0; e < c->experts; e++) {
      double p = fmax(gpu_value(t->prob, side, token * c->experts + e), 0);
      if (left[e] && p > best) best = p, order[j] = e;
    }
    left[order[j]] = 0;
    if (order[j] != (int32_t)gpu_value(t->out.expert, side, token * c->top_k + j)) return 0;
  }
  return 1;
}

/* Pairs of experts whose rows are the same but for one element, so that scores are equal or differ
 * in their last bits; tokens of zeros, to which all experts are equal, and ones with NaN. */
static void check_route_close(const route_case_t *c, int32_t dtype) {
  static const route_kind_t plain = {"close", {.score = NN_SCORE_SOFTMAX}, 0, 0};
  if (gpu_leaves(dtype, 3.0 * (double)(c->n * c->hidden * c->experts))) return;
  backend_limits_t limits = {.rows = c->n, .hidden = c->hidden, .experts = c->experts,
                             .top_k = c->top_k, .training = 1};
  gpu_begin(dtype, limits, "close route n %lld, %lld of %lld", (long long)c->n,
            (long long)c->top_k, (long long)c->experts);
  route_tensors_t t = route_make(c, &plain);
  float *x = gpu_uniform(c->n * c->hidden, 1, 0, 1);
  float *w = gpu_uniform(c->experts * c->hidden, 3 / sqrt((double)c->hidden), 0, 2);
  for (int64_t e = 1; e < c->experts; e += 2) {
    memcpy(w + e * c->hidden, w + (e - 1) * c->hidden, (size_t)c->hidden * sizeof *w);
    w[e * c->hidden] = 0, w[(e - 1) * c->hidden] = (float)(e / 2 % 4 - 1) * 0x1p-21f;
  }
  for (int64_t i = 0; i < c->n; i++) {
    x[i * c->hidden] = i % 3 ? 1 : 0.25f;
    for (int64_t j = 0; i % 7 == 5 && j < c->hidden; j++) x[i * c->hidden + j] = 0;
    if (i % 29 == 13) x[i * c->hidden + i % c->hidden] = NAN;
  }
  gpu_change(t.x, x), gpu_change(t.w, w);
  op_route_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++) op[s] = route_op(c, &t, s);
  GPU_RUN(route, op);
  for (int s = 0; s < GPU_SIDES; s++)
    for (int64_t i = 0; i < c->n; i++)
      if (!route_in_order(c, &t, s, i)) fail_msg("side %d, token %lld", s, (long long)i);
  gpu_end();
}

static void test_route_close(void **state) {
  (void)state;
  static const route_case_t cases[] = {{300, 64, 16, 1, 0}, {300, 64, 16, 2, 0},
                                       {300, 64, 16, 3, 0}, {300, 64, 16, 4, 0},
                                       {300, 64, 16, 5, 0}, {300, 64, 16, 16, 0},
                                       {300, 64, 11, 4, 0}, {40, 64, 16, 4, 0}};
  for (size_t i = 0; i < 2 * LENGTH(cases); i++)
    check_route_close(&cases[i / 2], gpu_dtypes[i % 2]);
}

static void check_router_loss(int64_t layers, int64_t experts, int32_t kind) {
  gpu_begin(NN_BF16, (backend_limits_t){.experts = experts, .top_k = 2, .training = 1},
            "router_loss of %lld layers, %lld experts, kind %d", (long long)layers,
            (long long)experts, kind);
  int64_t count = layers * (2 * experts + 1);
  gpu_tensor_t *stats = gpu_tensor(GPU_F32, GPU_READ, gpu_uniform(count, 0.5, 0.5, 1), count);
  gpu_tensor_t *loss = gpu_out(GPU_F64, 2), *share = gpu_out(GPU_F32, experts);
  op_router_loss_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++)
    op[s] = (op_router_loss_t){.layers = layers,
                               .experts = experts,
                               .top_k = 2,
                               .kind = kind,
                               .stats = gpu_at(stats, s, 0),
                               .loss = gpu_at(loss, s, 0),
                               .mean_share = gpu_at(share, s, 0)};
  GPU_RUN(router_loss, op);
  gpu_check(loss, "loss", 1, gpu_bound_f32(layers * experts));
  gpu_check(share, "mean_share", experts, gpu_bound_f32(layers));
  gpu_end();
}

static void test_router_loss(void **state) {
  (void)state;
  static const int64_t layers[] = {1, 30}, experts[] = {3, 16, 64};
  static const int32_t kinds[] = {NN_AUX_SWITCH, NN_AUX_JOINT};
  for (int i = 0; i < 12; i++) check_router_loss(layers[i % 2], experts[i / 2 % 3], kinds[i / 6]);
}

/* ---- experts ---- */

/* Who chooses what. */
enum {
  SPREAD, /* any expert */
  FEW,    /* the first top_k only: the others have no tokens */
  ONE     /* the last expert before all others */
};

typedef struct experts_case {
  int64_t n, hidden, ffn, experts, top_k, capacity;
  int32_t choice;
  int64_t pad;  /* elements between one expert's matrices and the next one's */
  int32_t rare; /* to be quick, 1: in 16 bits alone; 2: and of two kinds */
} experts_case_t;

static const experts_case_t experts_cases[] = {
    {1, 64, 128, 4, 2, 0, SPREAD, 0, 0},      {5, 64, 128, 4, 2, 0, SPREAD, 0, 0},
    {70, 64, 128, 4, 2, 0, SPREAD, 0, 0},     {70, 64, 128, 4, 2, 20, ONE, 0, 0},
    {130, 64, 128, 4, 2, 0, FEW, 64, 0},      {17, 33, 21, 5, 3, 0, SPREAD, 5, 0},
    {3, 33, 21, 5, 3, 0, SPREAD, 5, 0},
    {300, 8, 20, 3, 1, 0, ONE, 0, 0},         {40, 770, 99, 4, 4, 9, SPREAD, 1, 0},
    {300, 200, 328, 4, 2, 0, SPREAD, 16, 0},  {2600, 64, 72, 2, 2, 0, SPREAD, 0, 1},
    {1, 384, 512, 16, 4, 0, SPREAD, 0, 0},    {3, 384, 512, 16, 4, 0, SPREAD, 0, 0},
    {32, 384, 512, 16, 4, 0, SPREAD, 0, 1},   {130, 384, 512, 16, 4, 0, SPREAD, 0, 1},
    {130, 384, 512, 16, 4, 20, ONE, 0, 1},    {300, 384, 512, 16, 4, 0, FEW, 0, 1},
    {1500, 768, 1024, 16, 4, 400, SPREAD, 0, 2},
};

/* What experts have beside matrices. Biases are [E][gate, up, down] and a gap, too. */
typedef struct experts_kind {
  float limit;
  int32_t biased, interleaved;
} experts_kind_t;

static const experts_kind_t experts_kinds[] = {{0, 0, 0}, {0.7f, 1, 1}, {0, 1, 0}, {0.7f, 0, 1}};

/* The tensors of a case; weights are [E][gate, up, down] and a gap, of which gate and up may be
 * interleaved. */
typedef struct experts_tensors {
  const experts_kind_t *kind;
  gpu_tensor_t *biases; /* or NULL */
  int64_t up, bias_up;  /* where up's lie behind gate's */
  int64_t bias_stride;
  gpu_tensor_t *x, *residual, *weights;
  routing_tensors_t routing;
  int64_t size, stride, rows; /* of a matrix; of an expert; of all experts */
} experts_tensors_t;

static int64_t experts_choose(const experts_case_t *c, const int32_t *first, int64_t t, int64_t j) {
  if (c->choice == FEW) return (t + j) % c->top_k;
  return ((c->choice == ONE ? c->experts - 1 : first[t]) + j) % c->experts;
}

static void experts_route(const experts_case_t *c, experts_tensors_t *t) {
  int64_t slots = c->n * c->top_k;
  int32_t *first = gpu_indices(c->n, c->experts, 21), *expert = gpu_memory(slots, sizeof *expert);
  int32_t *offset = gpu_memory(c->experts + 1, sizeof *offset);
  int32_t *row_slot = gpu_memory(slots, sizeof *row_slot);
  int32_t *slot_row = gpu_memory(slots, sizeof *slot_row), row = 0;
  for (int64_t s = 0; s < slots; s++) {
    expert[s] = (int32_t)experts_choose(c, first, s / c->top_k, s % c->top_k);
    slot_row[s] = -1;
  }
  for (int32_t e = 0; e < c->experts; e++) {
    offset[e] = row;
    for (int32_t s = 0; s < slots; s++)
      if (expert[s] == e && (!c->capacity || row - offset[e] < c->capacity))
        slot_row[s] = row, row_slot[row++] = s;
  }
  offset[c->experts] = row;
  t->rows = row;
  float *weight = gpu_uniform(slots, 0.45, 0.55, 22);
  t->routing = (routing_tensors_t){
      gpu_ints(expert, slots), gpu_tensor(GPU_F32, GPU_READ, weight, slots),
      gpu_ints(offset, c->experts + 1), gpu_ints(row_slot, slots), gpu_ints(slot_row, slots)};
}

static experts_tensors_t experts_make(const experts_case_t *c, const experts_kind_t *kind) {
  experts_tensors_t t = {.kind = kind, .size = c->ffn * c->hidden};
  t.stride = 3 * t.size + c->pad;
  t.up = kind->interleaved ? c->hidden : t.size, t.bias_up = kind->interleaved ? 1 : c->ffn;
  t.bias_stride = 2 * c->ffn + c->hidden + c->pad;
  if (kind->biased) t.biases = gpu_in(c->experts * t.bias_stride, 0.5, 0.1, 28);
  float *weights = gpu_uniform(c->experts * t.stride, 3 / sqrt((double)c->hidden), 0, 23);
  float down = (float)sqrt((double)c->hidden / (double)c->ffn); /* each product is of order 1 */
  for (int64_t i = 0; i < c->experts * t.stride; i++)
    if (i % t.stride >= 2 * t.size) weights[i] *= down;
  t.weights = gpu_tensor(GPU_ACT, GPU_READ, weights, c->experts * t.stride);
  t.x = gpu_in(c->n * c->hidden, 1, 0, 24);
  t.residual = gpu_in(c->n * c->hidden, 1, 0, 25);
  experts_route(c, &t);
  return t;
}

static op_experts_t experts_op(const experts_case_t *c, const experts_tensors_t *t, int side,
                               gpu_tensor_t *pre, gpu_tensor_t *residual, gpu_tensor_t *out) {
  return (op_experts_t){.n = c->n,
                        .hidden = c->hidden,
                        .ffn = c->ffn,
                        .experts = c->experts,
                        .top_k = c->top_k,
                        .limit = t->kind->limit,
                        .interleaved = t->kind->interleaved,
                        .x = gpu_at(t->x, side, 0),
                        .routing = routing_at(&t->routing, side),
                        .gate = gpu_at(t->weights, side, 0),
                        .up = gpu_at(t->weights, side, t->up),
                        .down = gpu_at(t->weights, side, 2 * t->size),
                        .expert_stride = t->stride,
                        .gate_bias = gpu_at(t->biases, side, 0),
                        .up_bias = gpu_at(t->biases, side, t->bias_up),
                        .down_bias = gpu_at(t->biases, side, 2 * c->ffn),
                        .bias_stride = t->bias_stride,
                        .weight_dtype = gpu_dtype(side),
                        .act_dtype = gpu_dtype(side),
                        .pre = gpu_at(pre, side, 0),
                        .residual = gpu_at(residual, side, 0),
                        .out = gpu_at(out, side, 0)};
}

static void check_experts_forward(const experts_case_t *c, const experts_tensors_t *t,
                                  gpu_tensor_t *pre) {
  gpu_tensor_t *out = gpu_out(GPU_ACT, c->n * c->hidden);
  gpu_tensor_t *both = gpu_tensor(GPU_ACT, GPU_UPDATE, gpu_at(t->residual, GPU_CPU, 0),
                                  c->n * c->hidden);
  const struct {
    const char *name;
    gpu_tensor_t *pre, *residual, *out;
  } forms[] = {{"out", NULL, NULL, out},
               {"out with residual and pre", pre, t->residual, out},
               {"out over the residual", NULL, both, both},
               {"pre alone", pre, NULL, NULL}};
  for (size_t i = 0; i < LENGTH(forms); i++) {
    op_experts_t op[GPU_SIDES];
    for (int s = 0; s < GPU_SIDES; s++)
      op[s] = experts_op(c, t, s, forms[i].pre, forms[i].residual, forms[i].out);
    GPU_RUN(experts, op);
    /* gate and up, the activation, the row's result, out */
    if (forms[i].out)
      gpu_check(forms[i].out, forms[i].name, c->hidden, gpu_bound(5, c->hidden + c->ffn));
    if (forms[i].pre)
      gpu_check_rows(pre, "pre", 0, t->rows, 2 * c->ffn, 2 * c->ffn, gpu_bound(1, c->hidden));
  }
}

static op_experts_bwd_t experts_bwd_op(const experts_case_t *c, const experts_tensors_t *t,
                                       int side) {
  return (op_experts_bwd_t){.n = c->n,
                            .hidden = c->hidden,
                            .ffn = c->ffn,
                            .experts = c->experts,
                            .top_k = c->top_k,
                            .limit = t->kind->limit,
                            .interleaved = t->kind->interleaved,
                            .x = gpu_at(t->x, side, 0),
                            .routing = routing_at(&t->routing, side),
                            .gate = gpu_at(t->weights, side, 0),
                            .up = gpu_at(t->weights, side, t->up),
                            .down = gpu_at(t->weights, side, 2 * t->size),
                            .expert_stride = t->stride,
                            .down_bias = gpu_at(t->biases, side, 2 * c->ffn),
                            .bias_stride = t->bias_stride,
                            .weight_dtype = gpu_dtype(side),
                            .act_dtype = gpu_dtype(side)};
}

/* The gradients of every expert's three matrices, and that nothing was added between experts. */
static void check_experts_gradients(const experts_case_t *c, const experts_tensors_t *t,
                                    const gpu_tensor_t *d) {
  static const char *const names[] = {"dgate", "dup", "ddown"};
  double bound = gpu_bound(2, c->hidden + c->n); /* down^T dout, and what is made of it */
  for (int64_t e = 0; e < c->experts; e++)
    for (int m = 0; m < 3; m++) {
      int64_t width = m == 2 ? c->ffn : c->hidden;
      gpu_check_rows(d, names[m], e * t->stride + m * t->size, t->size / width, width, width,
                     bound);
    }
  gpu_check_gaps(d, "gradients", 3 * t->size, t->stride);
}

/* Assigned, these gradients are what they are added to zeros, for experts without rows too. */
static void check_experts_assigned(const experts_case_t *c, const experts_tensors_t *t,
                                   const op_experts_bwd_t from[GPU_SIDES]) {
  int64_t count = c->experts * t->stride;
  gpu_tensor_t *d[] = {gpu_tensor(GPU_F32, GPU_UPDATE, gpu_memory(count, sizeof(float)), count),
                       gpu_out(GPU_F32, count)};
  double *added = gpu_memory(count, sizeof *added);
  for (int32_t assign = 0; assign < 2; assign++) {
    op_experts_bwd_t op[GPU_SIDES] = {from[0], from[1]};
    for (int s = 0; s < GPU_SIDES; s++) {
      op[s].dgate = gpu_at(d[assign], s, 0), op[s].dup = gpu_at(d[assign], s, t->up);
      op[s].ddown = gpu_at(d[assign], s, 2 * t->size), op[s].assign = assign;
    }
    gpu_prepare(GPU_GPU, 0); /* the CPU has no part in it */
    gpu_expect(NN_OK, GPU_CALL(experts_bwd, GPU_GPU, &op[GPU_GPU]), "experts_bwd");
    gpu_collect("experts_bwd", 0);
    for (int64_t i = 0; i < count && !assign; i++) added[i] = gpu_value(d[0], GPU_GPU, i);
  }
  for (int64_t i = 0; i < count; i++)
    assert_true(i % t->stride >= 3 * t->size || gpu_value(d[1], GPU_GPU, i) == added[i]);
  gpu_check_gaps(d[1], "assigned gradients", 3 * t->size, t->stride);
}

static void check_experts_backward(const experts_case_t *c, const experts_tensors_t *t,
                                   const gpu_tensor_t *forward_pre) {
  int64_t tokens = c->n * c->hidden, slots = c->n * c->top_k;
  gpu_tensor_t *pre = gpu_tensor(GPU_ACT, GPU_SPENT, gpu_at(forward_pre, GPU_CPU, 0),
                                 slots * 2 * c->ffn);
  gpu_tensor_t *dout = gpu_in(tokens, 1, 0, 26), *dx = gpu_out(GPU_ACT, tokens);
  gpu_tensor_t *dweight = gpu_out(GPU_F32, slots);
  gpu_tensor_t *d = gpu_sum(GPU_F32, c->experts * t->stride, 27), *dbias = NULL;
  if (t->biases) dbias = gpu_sum(GPU_F32, c->experts * t->bias_stride, 29);
  op_experts_bwd_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++) {
    op[s] = experts_bwd_op(c, t, s);
    op[s].pre = gpu_at(pre, s, 0), op[s].dout = gpu_at(dout, s, 0);
    op[s].dx = gpu_at(dx, s, 0), op[s].dweight = gpu_at(dweight, s, 0);
    op[s].dgate = gpu_at(d, s, 0), op[s].dup = gpu_at(d, s, t->up);
    op[s].ddown = gpu_at(d, s, 2 * t->size);
    op[s].dgate_bias = gpu_at(dbias, s, 0), op[s].dup_bias = gpu_at(dbias, s, t->bias_up);
    op[s].ddown_bias = gpu_at(dbias, s, 2 * c->ffn);
  }
  GPU_RUN(experts_bwd, op);
  /* down^T dout, dg and du, the row's result, dx */
  gpu_check(dx, "dx", c->hidden, gpu_bound(4, c->hidden + 2 * c->ffn));
  gpu_check(dweight, "dweight", slots, gpu_bound(2, c->hidden + c->ffn));
  for (int64_t i = 0; i < slots; i++)
    if (gpu_value(t->routing.slot_row, GPU_CPU, i) < 0)
      assert_true(gpu_value(dweight, GPU_GPU, i) == 0);
  check_experts_gradients(c, t, d);
  check_experts_assigned(c, t, op);
  for (int64_t e = 0; dbias && e < c->experts; e++) { /* of dg and du, which are rounded; of dout */
    gpu_check_rows(dbias, "dgate_bias and dup_bias", e * t->bias_stride, 1, 2 * c->ffn, 2 * c->ffn,
                   gpu_bound(2, c->hidden + c->n));
    gpu_check_rows(dbias, "ddown_bias", e * t->bias_stride + 2 * c->ffn, 1, c->hidden, c->hidden,
                   gpu_bound_f32(c->n));
  }
}

static void check_experts(const experts_case_t *c, const experts_kind_t *kind, int32_t dtype) {
  if (gpu_leaves(dtype, 9.0 * (double)(c->n * c->top_k * c->hidden * c->ffn))) return;
  backend_limits_t limits = {.rows = c->n, .hidden = c->hidden, .ffn = c->ffn,
                             .experts = c->experts, .top_k = c->top_k, .training = 1};
  gpu_begin(dtype, limits,
            "experts n %lld, hidden %lld, ffn %lld, %lld of %lld, capacity %lld, choice %d, "
            "limit %g, biased %d, interleaved %d",
            (long long)c->n, (long long)c->hidden, (long long)c->ffn, (long long)c->top_k,
            (long long)c->experts, (long long)c->capacity, c->choice, (double)kind->limit,
            kind->biased, kind->interleaved);
  experts_tensors_t t = experts_make(c, kind);
  gpu_tensor_t *pre = gpu_out(GPU_ACT, c->n * c->top_k * 2 * c->ffn);
  check_experts_forward(c, &t, pre);
  check_experts_backward(c, &t, pre);
  gpu_end();
}

static void test_experts(void **state) {
  (void)state;
  for (size_t k = 0; k < LENGTH(experts_kinds); k++)
    for (size_t i = 0; i < LENGTH(experts_cases); i++) {
      if (k > 1 && experts_cases[i].rare > 1) continue;
      check_experts(&experts_cases[i], &experts_kinds[k], gpu_dtypes[0]);
      if (!experts_cases[i].rare) check_experts(&experts_cases[i], &experts_kinds[k], NN_F32);
    }
}

int main(void) {
  int skipped = gpu_open();
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_route),
      cmocka_unit_test(test_route_close),
      cmocka_unit_test(test_router_loss),
      cmocka_unit_test(test_experts),
  };
  return cmocka_run_group_tests_name("experts on a GPU", tests, NULL, gpu_close);
}
