/* Operations that follow one another give what the same operations give one by one. */
#include <string.h>

#include "ops.h"

enum { SEQUENCES = 3, POSITIONS = 20 };

/* ---- norm, product, rotation, store ---------------------------------------------------------- */

typedef struct project_case {
  int64_t n, hidden, heads, kv_heads, head_dim, rotary_dim; /* rotary_dim -1: no rotation */
  int32_t interleaved, stores, biased, layer_norm;
} project_case_t;

static const project_case_t project_cases[] = {
    {1, 64, 3, 1, 16, 0, 0, 1, 0, 0},  {4, 64, 3, 1, 16, 0, 0, 1, 0, 0},
    {1, 64, 2, 2, 16, 8, 1, 1, 1, 0},  {3, 512, 2, 1, 32, 12, 0, 1, 1, 0},
    {2, 64, 3, 1, 16, -1, 0, 1, 0, 0}, {2, 64, 3, 1, 15, -1, 0, 0, 0, 0},
    {9, 64, 3, 1, 16, 0, 0, 1, 0, 0},  {2, 33, 2, 1, 6, 4, 0, 1, 0, 0},
    {1, 64, 2, 1, 16, 0, 0, 1, 1, 1},
};

/* What a run writes. */
typedef struct project_room {
  float *y, *rstd, *mean, *d, *k, *v;
} project_room_t;

static project_room_t project_room(int64_t n, int64_t hidden, int64_t width, int64_t cache) {
  project_room_t room = {ops_floats(n * hidden), ops_floats(n),     ops_floats(n),
                         ops_floats(n * width),  ops_floats(cache), ops_floats(cache)};
  ops_garbage(room.y, n * hidden), ops_garbage(room.rstd, n), ops_garbage(room.d, n * width);
  return room;
}

static void project_into(op_project_t *op, const project_room_t *room, int64_t q) {
  op->norm.y = room->y, op->norm.rstd = room->rstd, op->norm.mean = room->mean;
  op->matmul.a = room->y, op->matmul.d = room->d, op->rope.x = room->d;
  op->store.k = room->d + q, op->store.v = room->d + q + op->store.width;
  op->store.k_cache = room->k, op->store.v_cache = room->v;
}

static op_project_t project_make(const project_case_t *c) {
  int64_t h = c->hidden, n = c->n, kv = c->kv_heads * c->head_dim;
  int64_t width = c->heads * c->head_dim + 2 * kv;
  int32_t *position = ops_ints(n), *sequence = ops_ints(n);
  for (int64_t i = 0; i < n; i++) {
    position[i] = (int32_t)(i / SEQUENCES + 2); /* no place twice */
    sequence[i] = i == 2 ? -1 : (int32_t)(i % SEQUENCES);
  }
  op_project_t op = {.norm = {.n = n, .hidden = h, .eps = 1e-5f}};
  op.norm.kind = c->layer_norm ? NN_NORM_LAYER : NN_NORM_RMS;
  op.norm.x = ops_uniform(n * h, 1, 1), op.norm.w = ops_uniform(h, 1, 2);
  op.matmul = (op_matmul_t){.m = n, .n = width, .k = h, .trans_b = 1, .lda = h, .ldb = h};
  op.matmul.b = ops_uniform(width * h, 1, 3), op.matmul.ldd = width;
  if (c->biased) op.matmul.bias = ops_uniform(width, 1, 4);
  if (c->rotary_dim >= 0) {
    op.rope = (op_rope_t){.n = n, .heads = c->heads + c->kv_heads, .head_dim = c->head_dim};
    op.rope.rotary_dim = c->rotary_dim, op.rope.interleaved = c->interleaved, op.rope.ldx = width;
    op.rope.position = position, op.rope.table = ops_uniform(POSITIONS * c->head_dim, 1, 5);
  }
  if (!c->stores) return op;
  op.store = (op_kv_store_t){.n = n, .width = kv, .ld = width, .cache_batch = POSITIONS * kv};
  op.store.sequence = sequence, op.store.position = position;
  return op;
}

static void check_project(const project_case_t *c) {
  op_project_t op = project_make(c);
  int64_t n = c->n, q = c->heads * c->head_dim, width = op.matmul.n, kv = c->kv_heads * c->head_dim;
  int64_t cache = SEQUENCES * POSITIONS * kv;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = n,
                                       .batch = SEQUENCES,
                                       .kv_len = POSITIONS,
                                       .hidden = c->hidden,
                                       .heads = c->heads,
                                       .kv_heads = c->kv_heads,
                                       .head_dim = c->head_dim});
  while (ops_next(&trial)) {
    project_room_t one = project_room(n, c->hidden, width, cache);
    project_room_t many = project_room(n, c->hidden, width, cache);
    project_into(&op, &one, q);
    OPS_RUN(&trial, project, &op);
    project_into(&op, &many, q);
    OPS_RUN(&trial, norm, &op.norm);
    OPS_RUN(&trial, matmul, &op.matmul);
    if (op.rope.n) OPS_RUN(&trial, rope, &op.rope);
    if (op.store.n) OPS_RUN(&trial, kv_store, &op.store);
    assert_memory_equal(one.y, many.y, (size_t)(n * c->hidden) * sizeof(float));
    assert_memory_equal(one.rstd, many.rstd, (size_t)n * sizeof(float));
    assert_memory_equal(one.d, many.d, (size_t)(n * width) * sizeof(float));
    assert_memory_equal(one.k, many.k, (size_t)cache * sizeof(float));
    assert_memory_equal(one.v, many.v, (size_t)cache * sizeof(float));
    ops_check_bits(&trial, 0, "d", one.d, (size_t)(n * width) * sizeof(float));
  }
  ops_free();
}

static void test_project(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof project_cases / sizeof *project_cases; i++)
    check_project(&project_cases[i]);
}

/* ---- norm, routing, experts ------------------------------------------------------------------ */

typedef struct moe_room {
  float *y, *rstd, *out, *prob, *lse, *share, *mean_prob, *mean_lse2;
  int64_t *count;
  double *sum;
  routing_t routing;
} moe_room_t;

static moe_room_t moe_room(int64_t n, int64_t hidden, int64_t experts, int64_t slots) {
  return (moe_room_t){.y = ops_floats(n * hidden),
                      .rstd = ops_floats(n),
                      .out = ops_floats(n * hidden),
                      .prob = ops_floats(n * experts),
                      .lse = ops_floats(n),
                      .share = ops_floats(experts),
                      .mean_prob = ops_floats(experts),
                      .mean_lse2 = ops_floats(1),
                      .count = ops_memory(experts + 1, sizeof(int64_t)),
                      .sum = ops_doubles(experts),
                      .routing = {ops_ints(slots), ops_floats(slots), ops_ints(experts + 1),
                                  ops_ints(slots), ops_ints(slots)}};
}

static void moe_into(op_moe_t *op, const moe_room_t *room) {
  op->norm.y = room->y, op->norm.rstd = room->rstd;
  op->route.x = room->y, op->route.out = room->routing, op->route.prob = room->prob;
  op->route.lse = room->lse, op->route.share = room->share, op->route.mean_prob = room->mean_prob;
  op->route.mean_lse2 = room->mean_lse2;
  op->route.stat_count = room->count, op->route.stat_prob = room->sum;
  op->experts.x = room->y, op->experts.routing = room->routing, op->experts.out = room->out;
}

/* What is chosen, and the token's norm, have the same bits; the rest may be added up in another
 * order on a GPU, where tests/cuda compares it with the CPU's. */
static void check_moe(int64_t n, int64_t experts, int64_t top_k) {
  int64_t h = 64, f = 96, slots = n * top_k, size = 3 * h * f;
  op_moe_t op = {.norm = {.n = n, .hidden = h, .kind = NN_NORM_RMS, .eps = 1e-5f}};
  op.norm.x = ops_uniform(n * h, 1, 1), op.norm.w = ops_uniform(h, 1, 2);
  op.route = (op_route_t){.n = n, .hidden = h, .experts = experts, .top_k = top_k};
  op.route.w = ops_uniform(experts * h, 0.5f, 3);
  float *w = ops_uniform(experts * size, 0.3f, 4);
  op.experts = (op_experts_t){.n = n, .hidden = h, .ffn = f, .experts = experts, .top_k = top_k};
  op.experts.gate = w, op.experts.up = w + h * f, op.experts.down = w + 2 * h * f;
  op.experts.expert_stride = size, op.experts.residual = op.norm.x;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){
                        .rows = n, .hidden = h, .ffn = f, .experts = experts, .top_k = top_k});
  while (ops_next(&trial)) {
    moe_room_t one = moe_room(n, h, experts, slots), many = moe_room(n, h, experts, slots);
    moe_into(&op, &one);
    OPS_RUN(&trial, moe, &op);
    moe_into(&op, &many);
    OPS_RUN(&trial, norm, &op.norm);
    OPS_RUN(&trial, route, &op.route);
    OPS_RUN(&trial, experts, &op.experts);
    assert_memory_equal(one.y, many.y, (size_t)(n * h) * sizeof(float));
    assert_memory_equal(one.rstd, many.rstd, (size_t)n * sizeof(float));
    assert_memory_equal(one.routing.expert, many.routing.expert, (size_t)slots * sizeof(int32_t));
    assert_memory_equal(one.routing.offset, many.routing.offset,
                        (size_t)(experts + 1) * sizeof(int32_t));
    assert_memory_equal(one.routing.row_slot, many.routing.row_slot,
                        (size_t)slots * sizeof(int32_t));
    assert_memory_equal(one.routing.slot_row, many.routing.slot_row,
                        (size_t)slots * sizeof(int32_t));
    assert_memory_equal(one.share, many.share, (size_t)experts * sizeof(float));
    assert_memory_equal(one.count, many.count, (size_t)(experts + 1) * sizeof(int64_t));
    if (ops_widens()) assert_memory_equal(one.out, many.out, (size_t)(n * h) * sizeof(float));
    ops_check_bits(&trial, 0, "out", one.out, (size_t)(n * h) * sizeof(float));
  }
  ops_free();
}

static void test_moe(void **state) {
  (void)state;
  check_moe(1, 16, 4);
  check_moe(1, 5, 5);
  check_moe(1, 40, 3);
  check_moe(7, 8, 2);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_project), cmocka_unit_test(test_moe)};
  return cmocka_run_group_tests_name("sequences", tests, NULL, NULL);
}
