/* Rotary positions: the rotation of halves and of neighbours, its inverse, and that only the named
 * heads turn, and of these the first elements. */
#include <math.h>

#include "ops.h"

typedef struct rope_case {
  int64_t n, heads, head_dim, rest; /* rest: elements of a row behind the heads */
  int64_t rotary_dim;               /* 0: head_dim */
  int32_t interleaved;
} rope_case_t;

static const rope_case_t cases[] = {
    {1, 1, 2, 0, 0, 0},      {1, 1, 8, 3, 0, 0},       {3, 2, 16, 16, 0, 0},
    {17, 5, 20, 40, 0, 0},   {9, 5, 64, 64, 0, 0},     {65, 3, 80, 1, 0, 0},
    {33, 4, 128, 0, 0, 0},   {7, 2, 256, 10, 0, 0},    {130, 13, 64, 64, 0, 0},
    {5, 2, 12, 3, 6, 0},     {17, 3, 128, 0, 64, 0},   {9, 2, 7, 2, 2, 0},
    {1, 1, 2, 0, 0, 1},      {17, 5, 20, 40, 0, 1},    {33, 3, 192, 7, 64, 1},
    {130, 13, 64, 64, 0, 1}, {9, 4, 80, 1, 78, 1},     {6, 3, 24, 2, 16, 0},
    {6, 3, 20, 1, 8, 0},
};

enum { POSITIONS = 200 };

/* Cosines and sines of [POSITIONS, head_dim] as the core makes them: base 10000. */
static float *rope_table(int64_t head_dim) {
  float *table = ops_floats(POSITIONS * head_dim);
  for (int64_t p = 0; p < POSITIONS; p++) {
    for (int64_t i = 0; i < head_dim / 2; i++) {
      double angle = (double)p * pow(10000, -2.0 * (double)i / (double)head_dim);
      table[p * head_dim + i] = (float)cos(angle);
      table[p * head_dim + head_dim / 2 + i] = (float)sin(angle);
    }
  }
  return table;
}

/* Each result is two products and a sum of numbers below 1. */
static void check_rope(const rope_case_t *c, int32_t inverse) {
  int64_t ldx = c->heads * c->head_dim + c->rest, count = c->n * ldx;
  int64_t width = c->rotary_dim ? c->rotary_dim : c->head_dim, half = width / 2;
  int64_t apart = c->interleaved ? 1 : half; /* elements from a pair's first to its second */
  int32_t *position = ops_ints(c->n);
  for (int64_t t = 0; t < c->n; t++)
    position[t] = (int32_t)ops_random_index(POSITIONS, 3, (uint64_t)t);
  float *x = ops_uniform(count, 1, 1);
  op_rope_t op = {.n = c->n, .heads = c->heads, .head_dim = c->head_dim, .ldx = ldx,
                  .rotary_dim = c->rotary_dim, .interleaved = c->interleaved,
                  .position = position, .table = rope_table(width), .inverse = inverse};
  double *want = ops_doubles(count), *slack = ops_doubles(count);
  for (int64_t at = 0; at < count; at++) {
    int64_t t = at / ldx, j = at % ldx, i = j % c->head_dim;
    want[at] = x[at];
    if (j >= c->heads * c->head_dim || i >= width) continue;
    const float *row = op.table + position[t] * width;
    int64_t pair = c->interleaved ? i / 2 : i % half;
    int first = c->interleaved ? i % 2 == 0 : i < half;
    double cosine = row[pair], sine = inverse ? -row[half + pair] : row[half + pair];
    want[at] = x[at] * cosine + (first ? -x[at + apart] * sine : x[at - apart] * sine);
    slack[at] = 4 * OPS_U;
  }
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = c->n, .heads = c->heads, .kv_heads = 1,
                                       .head_dim = c->head_dim, .hidden = ldx});
  while (ops_next(&trial)) {
    op.x = ops_copy(x, count);
    OPS_RUN(&trial, rope, &op);
    ops_check(&trial, 0, "x", op.x, want, slack, count);
    if (count >= 1 << 16) OPS_RUN_CANCELLED(&trial, rope, &op);
  }
  ops_free();
}

static void test_both_ways(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    check_rope(&cases[i], 0);
    check_rope(&cases[i], 1);
  }
}

/* The rotation R is linear and orthogonal, so its gradient is the inverse: <R x, y> = <x, R^T y>.
 * Each side is a sum of head_dim products; their magnitudes sum to less than head_dim. */
static void test_inverse_is_the_gradient(void **state) {
  (void)state;
  enum { DIM = 20 };
  op_rope_t op = {.n = 1, .heads = 1, .head_dim = DIM, .ldx = DIM,
                  .position = OPS_PUT(int32_t, 37), .table = rope_table(DIM)};
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .heads = 1, .kv_heads = 1, .head_dim = DIM,
                                       .hidden = DIM});
  while (ops_next(&trial)) {
    float *x = ops_uniform(DIM, 1, 1), *y = ops_uniform(DIM, 1, 2);
    float *turned = ops_copy(x, DIM), *back = ops_copy(y, DIM);
    op.x = turned, op.inverse = 0;
    OPS_RUN(&trial, rope, &op);
    op.x = back, op.inverse = 1;
    OPS_RUN(&trial, rope, &op);
    double forward = 0, backward = 0;
    for (int i = 0; i < DIM; i++) {
      forward += (double)turned[i] * y[i];
      backward += (double)x[i] * back[i];
    }
    assert_true(fabs(forward) > 0.1 && fabs(forward - backward) <= 8 * OPS_U * DIM);
  }
  ops_free();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_both_ways),
      cmocka_unit_test(test_inverse_is_the_gradient),
  };
  return cmocka_run_group_tests_name("rope", tests, NULL, NULL);
}
