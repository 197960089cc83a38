/* Operations that follow one another on a GPU against the CPU: rows that a kernel of their own
 * takes together, and rows that it leaves to the single operations. */
#include <math.h>

#include "gpu.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* ---- norm, product, rotation, store ---------------------------------------------------------- */

enum { SEQUENCES = 3, POSITIONS = 40 };

typedef struct project_case {
  int64_t n, hidden, heads, kv_heads, head_dim, rotary_dim;
  int32_t interleaved, biased;
} project_case_t;

static const project_case_t project_cases[] = {
    {1, 768, 12, 1, 64, 64, 0, 0}, {4, 768, 12, 1, 64, 64, 0, 0}, {5, 768, 12, 1, 64, 64, 0, 0},
    {1, 1024, 4, 2, 128, 64, 1, 1}, {2, 1040, 4, 2, 64, 64, 0, 0}, {3, 256, 2, 2, 80, 32, 0, 1},
};

static void check_project(const project_case_t *c, int32_t dtype) {
  int64_t n = c->n, h = c->hidden, q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
  int64_t width = q + 2 * kv, cache = SEQUENCES * POSITIONS * kv;
  backend_limits_t limits = {.rows = n, .batch = SEQUENCES, .kv_len = POSITIONS, .hidden = h,
                             .heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim};
  gpu_begin(dtype, limits, "project n %lld, hidden %lld, %lld + %lld heads of %lld", (long long)n,
            (long long)h, (long long)c->heads, (long long)c->kv_heads, (long long)c->head_dim);
  float *table = gpu_memory(POSITIONS * c->rotary_dim, sizeof *table);
  int64_t half = c->rotary_dim / 2;
  for (int64_t i = 0; i < POSITIONS * half; i++) {
    double angle = (double)(i / half) * pow(100, -(double)(i % half) / (double)half);
    table[i / half * 2 * half + i % half] = (float)cos(angle);
    table[i / half * 2 * half + half + i % half] = (float)sin(angle);
  }
  int32_t *place = gpu_memory(n, sizeof *place), *sequence = gpu_memory(n, sizeof *sequence);
  for (int64_t i = 0; i < n; i++)
    place[i] = (int32_t)(i / SEQUENCES + 7), sequence[i] = i == 2 ? -1 : (int32_t)(i % SEQUENCES);
  gpu_tensor_t *position = gpu_ints(place, n), *into = gpu_ints(sequence, n);
  gpu_tensor_t *turns = gpu_tensor(GPU_F32, GPU_READ, table, POSITIONS * c->rotary_dim);
  gpu_tensor_t *x = gpu_in(n * h, 2, 0.5, 1), *scale = gpu_in(h, 0.5, 1, 2);
  gpu_tensor_t *w = gpu_in(width * h, 0.1, 0, 3);
  gpu_tensor_t *bias = c->biased ? gpu_in(width, 1, 0, 4) : NULL;
  gpu_tensor_t *y = gpu_out(GPU_ACT, n * h), *rstd = gpu_out(GPU_F32, n);
  gpu_tensor_t *d = gpu_out(GPU_ACT, n * width);
  float *zeros = gpu_memory(cache, sizeof *zeros);
  gpu_tensor_t *k = gpu_tensor(GPU_ACT, GPU_UPDATE, zeros, cache);
  gpu_tensor_t *v = gpu_tensor(GPU_ACT, GPU_UPDATE, zeros, cache);
  op_project_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++) {
    int32_t type = gpu_dtype(s);
    op[s] = (op_project_t){
        .norm = {.n = n, .hidden = h, .kind = NN_NORM_RMS, .eps = 1e-5f, .weight_dtype = type,
                 .act_dtype = type, .x = gpu_at(x, s, 0), .w = gpu_at(scale, s, 0),
                 .y = gpu_at(y, s, 0), .rstd = gpu_at(rstd, s, 0)},
        .matmul = {.m = n, .n = width, .k = h, .trans_b = 1, .a = gpu_at(y, s, 0), .lda = h,
                   .b = gpu_at(w, s, 0), .ldb = h, .a_dtype = type, .b_dtype = type,
                   .bias = gpu_at(bias, s, 0), .d = gpu_at(d, s, 0), .ldd = width,
                   .d_dtype = type},
        .rope = {.n = n, .heads = c->heads + c->kv_heads, .head_dim = c->head_dim,
                 .rotary_dim = c->rotary_dim, .interleaved = c->interleaved, .act_dtype = type,
                 .x = gpu_at(d, s, 0), .ldx = width, .position = gpu_at(position, s, 0),
                 .table = gpu_at(turns, s, 0)},
        .store = {.n = n, .width = kv, .act_dtype = type, .k = gpu_at(d, s, q),
                  .v = gpu_at(d, s, q + kv), .ld = width, .sequence = gpu_at(into, s, 0),
                  .position = gpu_at(position, s, 0), .k_cache = gpu_at(k, s, 0),
                  .v_cache = gpu_at(v, s, 0), .cache_batch = POSITIONS * kv}};
  }
  GPU_RUN(project, op);
  /* the norm, the product and the turn are rounded */
  gpu_check(y, "y", h, gpu_bound(1, h));
  gpu_check(rstd, "rstd", 1, gpu_bound_f32(h));
  gpu_check(d, "d", width, gpu_bound(3, h));
  gpu_check(k, "k", kv, gpu_bound(3, h));
  gpu_check(v, "v", kv, gpu_bound(2, h));
  gpu_end();
}

static void test_project(void **state) {
  (void)state;
  for (size_t i = 0; i < 2 * LENGTH(project_cases); i++)
    check_project(&project_cases[i / 2], gpu_dtypes[i % 2]);
}

/* ---- norm, routing, experts ------------------------------------------------------------------ */

typedef struct moe_case {
  int64_t n, hidden, ffn, experts, top_k;
} moe_case_t;

static const moe_case_t moe_cases[] = {
    {1, 768, 1024, 16, 4}, {1, 768, 6144, 4, 2}, {1, 1024, 200, 8, 2}, {1, 64, 128, 4, 4},
    {1, 256, 96, 20, 3},   {1, 40, 24, 5, 1},    {2, 768, 1024, 16, 4},
};

typedef struct moe_tensors {
  gpu_tensor_t *x, *scale, *router, *w;
  gpu_tensor_t *y, *rstd, *out, *expert, *weight, *offset, *row_slot, *slot_row;
  gpu_tensor_t *prob, *lse, *share, *mean_prob, *mean_lse2, *stat_count, *stat_prob;
} moe_tensors_t;

static op_moe_t moe_op(const moe_case_t *c, const moe_tensors_t *t, int s) {
  int32_t type = gpu_dtype(s);
  int64_t size = 3 * c->hidden * c->ffn;
  routing_t routing = {gpu_at(t->expert, s, 0), gpu_at(t->weight, s, 0), gpu_at(t->offset, s, 0),
                       gpu_at(t->row_slot, s, 0), gpu_at(t->slot_row, s, 0)};
  return (op_moe_t){
      .norm = {.n = c->n, .hidden = c->hidden, .kind = NN_NORM_RMS, .eps = 1e-5f,
               .weight_dtype = type, .act_dtype = type, .x = gpu_at(t->x, s, 0),
               .w = gpu_at(t->scale, s, 0), .y = gpu_at(t->y, s, 0),
               .rstd = gpu_at(t->rstd, s, 0)},
      .route = {.n = c->n, .hidden = c->hidden, .experts = c->experts, .top_k = c->top_k,
                .x = gpu_at(t->y, s, 0), .w = gpu_at(t->router, s, 0), .weight_dtype = type,
                .act_dtype = type, .out = routing, .prob = gpu_at(t->prob, s, 0),
                .lse = gpu_at(t->lse, s, 0), .share = gpu_at(t->share, s, 0),
                .mean_prob = gpu_at(t->mean_prob, s, 0), .mean_lse2 = gpu_at(t->mean_lse2, s, 0),
                .stat_count = gpu_at(t->stat_count, s, 0),
                .stat_prob = gpu_at(t->stat_prob, s, 0)},
      .experts = {.n = c->n, .hidden = c->hidden, .ffn = c->ffn, .experts = c->experts,
                  .top_k = c->top_k, .x = gpu_at(t->y, s, 0), .routing = routing,
                  .gate = gpu_at(t->w, s, 0), .up = gpu_at(t->w, s, size / 3),
                  .down = gpu_at(t->w, s, size / 3 * 2), .expert_stride = size,
                  .weight_dtype = type, .act_dtype = type, .residual = gpu_at(t->x, s, 0),
                  .out = gpu_at(t->out, s, 0)}};
}

static moe_tensors_t moe_make(const moe_case_t *c) {
  int64_t n = c->n, h = c->hidden, slots = n * c->top_k;
  int64_t *counts = gpu_memory(c->experts + 1, sizeof *counts);
  double *sums = gpu_memory(c->experts, sizeof *sums);
  for (int64_t e = 0; e < c->experts; e++) counts[e] = 1000 * e, sums[e] = 0.5 * (double)e;
  return (moe_tensors_t){.x = gpu_in(n * h, 1, 0, 1),
                         .scale = gpu_in(h, 0.5, 1, 2),
                         .router = gpu_in(c->experts * h, 3 / sqrt((double)h), 0, 3),
                         .w = gpu_in(c->experts * 3 * h * c->ffn, 2 / sqrt((double)h), 0, 4),
                         .y = gpu_out(GPU_ACT, n * h),
                         .rstd = gpu_out(GPU_F32, n),
                         .out = gpu_out(GPU_ACT, n * h),
                         .expert = gpu_out(GPU_I32, slots),
                         .weight = gpu_out(GPU_F32, slots),
                         .offset = gpu_out(GPU_I32, c->experts + 1),
                         .row_slot = gpu_out(GPU_I32, slots),
                         .slot_row = gpu_out(GPU_I32, slots),
                         .prob = gpu_out(GPU_F32, n * c->experts),
                         .lse = gpu_out(GPU_F32, n),
                         .share = gpu_out(GPU_F32, c->experts),
                         .mean_prob = gpu_out(GPU_F32, c->experts),
                         .mean_lse2 = gpu_out(GPU_F32, 1),
                         .stat_count = gpu_tensor(GPU_I64, GPU_UPDATE, counts, c->experts + 1),
                         .stat_prob = gpu_tensor(GPU_F64, GPU_UPDATE, sums, c->experts)};
}

/* How near, in relation to itself, one of a token's chosen probabilities comes to another. */
static double moe_margin(const moe_case_t *c, const moe_tensors_t *t, int64_t token) {
  double margin = 1;
  for (int64_t j = 0; j < c->top_k; j++) {
    int64_t chosen = (int64_t)gpu_value(t->expert, GPU_CPU, token * c->top_k + j);
    double p = gpu_value(t->prob, GPU_CPU, token * c->experts + chosen);
    for (int64_t e = 0; e < c->experts; e++) {
      double apart = fabs(p - gpu_value(t->prob, GPU_CPU, token * c->experts + e)) / p;
      if (e != chosen) margin = fmin(margin, apart);
    }
  }
  return margin;
}

/* Draws tokens until none is so near to a tie that the norm's rounding may decide it. */
static void moe_avoid_ties(const moe_case_t *c, const moe_tensors_t *t, double bound) {
  double margin = 0;
  for (uint64_t seed = 11; margin < bound; seed++) {
    assert_true(seed < 200);
    gpu_change(t->x, gpu_uniform(c->n * c->hidden, 1, 0, seed));
    op_moe_t op[GPU_SIDES] = {moe_op(c, t, GPU_CPU)};
    GPU_RUN_CPU(moe, op);
    margin = 1;
    for (int64_t i = 0; i < c->n; i++) margin = fmin(margin, moe_margin(c, t, i));
  }
}

static void check_moe(const moe_case_t *c, int32_t dtype) {
  int64_t slots = c->n * c->top_k;
  backend_limits_t limits = {.rows = c->n, .hidden = c->hidden, .ffn = c->ffn,
                             .experts = c->experts, .top_k = c->top_k};
  gpu_begin(dtype, limits, "moe n %lld, hidden %lld, ffn %lld, %lld of %lld", (long long)c->n,
            (long long)c->hidden, (long long)c->ffn, (long long)c->top_k, (long long)c->experts);
  moe_tensors_t t = moe_make(c);
  /* The norm's rounding reaches logits of up to 8 in size, which move by that part of themselves,
   * and a probability by twice that part of itself; act, and the result, are rounded beside. */
  double norm = gpu_bound(1, c->hidden), prob = 16 * norm;
  moe_avoid_ties(c, &t, prob);
  op_moe_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++) op[s] = moe_op(c, &t, s);
  GPU_RUN(moe, op);
  gpu_check_equal(t.expert, "expert", slots);
  gpu_check_equal(t.offset, "offset", c->experts + 1);
  gpu_check_equal(t.slot_row, "slot_row", slots);
  gpu_check_equal(t.row_slot, "row_slot", slots);
  gpu_check_equal(t.stat_count, "stat_count", c->experts + 1);
  gpu_check(t.y, "y", c->hidden, norm);
  gpu_check(t.rstd, "rstd", 1, gpu_bound_f32(c->hidden));
  gpu_check(t.prob, "prob", c->experts, prob);
  gpu_check(t.weight, "weight", c->top_k, prob);
  gpu_check(t.lse, "lse", 1, prob);
  gpu_check(t.share, "share", c->experts, gpu_bound_f32(1));
  gpu_check(t.mean_prob, "mean_prob", c->experts, prob);
  gpu_check(t.mean_lse2, "mean_lse2", 1, 2 * prob);
  gpu_check(t.stat_prob, "stat_prob", c->experts, prob);
  gpu_check(t.out, "out", c->hidden, prob + gpu_bound(4, c->hidden + c->ffn));
  gpu_end();
}

static void test_moe(void **state) {
  (void)state;
  for (size_t i = 0; i < 2 * LENGTH(moe_cases); i++)
    check_moe(&moe_cases[i / 2], gpu_dtypes[i % 2]);
}

int main(void) {
  int skipped = gpu_open();
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_project), cmocka_unit_test(test_moe)};
  return cmocka_run_group_tests_name("sequences_bf16", tests, NULL, gpu_close);
}
