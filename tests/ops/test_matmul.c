/* Matrix products: all sizes around the edges of tiles, all transpositions, strides, bias, addend,
 * epilogues and weights in bf16. */
#include <math.h>

#include "ops.h"
#include "select.h"

typedef struct matmul_case {
  int64_t m, n, k;
  int32_t trans_a, trans_b, b_dtype, epilogue;
  int32_t biased, addend; /* addend: 0 none, 1 another matrix, 2 d itself */
  int64_t pad;            /* elements between rows */
  float alpha;
} matmul_case_t;

typedef struct matmul_data {
  op_matmul_t op;
  float *d, *aux;        /* what d and aux hold before, with padding */
  int64_t d_count;
  double *want, *slack;  /* as d, with padding */
  double *want_aux, *slack_aux;
} matmul_data_t;

static double gelu64(double x) {
  return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

/* By the four-point formula with step 1e-3: truncation h^4 f'''''/30, below 1e-12. */
static double gelu64_slope(double x) {
  const double h = 1e-3;
  return (8 * (gelu64(x + h) - gelu64(x - h)) - (gelu64(x + 2 * h) - gelu64(x - 2 * h))) / (12 * h);
}

static int64_t stored(int64_t rows, int64_t ld) { return rows * ld; }

static matmul_data_t matmul_make(const matmul_case_t *c) {
  matmul_data_t data = {0};
  op_matmul_t *op = &data.op;
  *op = (op_matmul_t){.m = c->m, .n = c->n, .k = c->k, .trans_a = c->trans_a, .trans_b = c->trans_b,
                      .b_dtype = c->b_dtype, .epilogue = c->epilogue, .alpha = c->alpha};
  op->lda = (c->trans_a ? c->m : c->k) + c->pad;
  op->ldb = (c->trans_b ? c->k : c->n) + c->pad;
  op->ldd = c->n + c->pad;
  op->ldc = c->addend == 2 ? op->ldd : c->n + 2 * c->pad;
  op->a = ops_inputs(stored(c->trans_a ? c->k : c->m, op->lda), c->b_dtype, 1, 1);
  op->b = ops_weights(stored(c->trans_b ? c->n : c->k, op->ldb), c->b_dtype, 1, 0, 2);
  if (c->biased) op->bias = ops_weights(c->n, c->b_dtype, 1, 0, 3);
  if (c->addend == 1) op->c = ops_uniform(stored(c->m, op->ldc), 1, 4);
  data.d_count = stored(c->m, op->ldd);
  data.d = ops_uniform(data.d_count, 1, 5);
  data.aux = ops_uniform(data.d_count, 3, 6);
  return data;
}

/* The error of the sum is that of its k + 2 terms. |gelu'| < 1.13, and its own evaluation is off by
 * a few units in the last place of terms below 4 (1 + |v|). */
static void matmul_expect(const matmul_case_t *c, matmul_data_t *data) {
  const op_matmul_t *op = &data->op;
  const float *left = op->a, *addend = c->addend == 2 ? data->d : op->c;
  data->want = ops_doubles(data->d_count), data->slack = ops_doubles(data->d_count);
  data->want_aux = ops_doubles(data->d_count), data->slack_aux = ops_doubles(data->d_count);
  for (int64_t at = 0; at < data->d_count; at++) {
    int64_t i = at / op->ldd, j = at % op->ldd;
    data->want[at] = data->d[at];
    data->want_aux[at] = data->aux[at];
    if (j >= c->n) continue; /* padding stays */
    double bias = c->biased ? ops_weight(op->bias, c->b_dtype, j) : 0;
    double before = addend ? addend[i * op->ldc + j] : 0;
    double alpha = (double)backend_factor(c->alpha);
    double v = bias, size = fabs(bias);
    for (int64_t p = 0; p < c->k; p++) {
      double a = left[c->trans_a ? p * op->lda + i : i * op->lda + p];
      double b = ops_weight(op->b, c->b_dtype, c->trans_b ? j * op->ldb + p : p * op->ldb + j);
      v += a * b;
      size += fabs(a * b);
    }
    v = alpha * v + before, size = fabs(alpha) * size + fabs(before);
    double error = ops_sum_error(c->k + 2) * size;
    data->want[at] = v;
    data->slack[at] = error;
    if (c->epilogue == MATMUL_GELU) {
      data->want[at] = gelu64(v);
      data->slack[at] = 1.13 * error + 16 * OPS_U * (1 + fabs(v));
      data->want_aux[at] = v;
      data->slack_aux[at] = error;
    } else if (c->epilogue == MATMUL_GELU_BWD) {
      data->want[at] = v * gelu64_slope(data->aux[at]);
      data->slack[at] = 1.13 * error + 16 * OPS_U * fabs(v) * (1 + fabs(data->aux[at]));
    }
  }
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static void check_matmul(const matmul_case_t *c) {
  if (c->b_dtype != NN_F32 && !ops_widens()) return;
  if (!select_case((double)(c->m * c->n * c->k))) return;
  matmul_data_t data = matmul_make(c);
  matmul_expect(c, &data);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = most(c->m, c->k), .hidden = most(c->n, c->k),
                                       .weight_dtype = c->b_dtype, .training = 1});
  while (ops_next(&trial)) {
    op_matmul_t op = data.op;
    op.d = ops_copy(data.d, data.d_count);
    if (c->addend == 2) op.c = op.d;
    if (c->epilogue) op.aux = ops_copy(data.aux, data.d_count);
    OPS_RUN(&trial, matmul, &op);
    ops_check(&trial, 0, "d", op.d, data.want, data.slack, data.d_count);
    if (op.aux) ops_check(&trial, 1, "aux", op.aux, data.want_aux, data.slack_aux, data.d_count);
    if (c->m * c->n * c->k >= 1 << 24) OPS_RUN_CANCELLED(&trial, matmul, &op);
  }
  ops_free();
}

/* Every combination of sizes and transpositions; the rest varies along with them, by a step that
 * meets all of its combinations. */
static void test_sizes(void **state) {
  (void)state;
  const int64_t sizes[] = {1, 3, 17, 65, 130};
  int32_t turn = 0;
  for (int32_t i = 0; i < 5 * 5 * 5 * 4; i++, turn += 7) {
    matmul_case_t c = {.m = sizes[i % 5], .n = sizes[i / 5 % 5], .k = sizes[i / 25 % 5]};
    c.trans_a = i / 125 % 2;
    c.trans_b = i / 250;
    c.b_dtype = turn % 2 && ops_widens() ? (turn / 2 % 2 ? NN_F16 : NN_BF16) : NN_F32;
    c.biased = turn / 2 % 2;
    c.addend = turn / 4 % 3;
    c.epilogue = turn / 12 % 3;
    c.pad = turn / 36 % 2 ? 5 : 0;
    c.alpha = turn / 18 % 2 ? -0.375f : 0;
    check_matmul(&c);
  }
}

/* Beyond the blocks in which caches hold panels. */
static void test_large(void **state) {
  (void)state;
  const matmul_case_t cases[] = {
      {.m = 200, .n = 300, .k = 700, .trans_b = 1, .biased = 1},
      {.m = 300, .n = 200, .k = 513, .trans_a = 1, .addend = 2},
      {.m = 129, .n = 400, .k = 300, .b_dtype = NN_BF16, .epilogue = MATMUL_GELU},
      {.m = 1, .n = 1500, .k = 700, .trans_b = 1, .b_dtype = NN_BF16, .addend = 1},
      {.m = 1, .n = 70, .k = 6150, .trans_b = 1, .b_dtype = NN_BF16},
      {.m = 2, .n = 700, .k = 1500, .trans_b = 1},
      {.m = 2, .n = 700, .k = 1501, .trans_b = 1, .b_dtype = NN_BF16, .pad = 1},
      {.m = 5, .n = 700, .k = 1501, .trans_b = 1, .b_dtype = NN_BF16, .pad = 1},
      {.m = 200, .n = 300, .k = 701, .trans_b = 1, .b_dtype = NN_BF16, .biased = 1},
      {.m = 200, .n = 300, .k = 701, .trans_a = 1, .addend = 2, .pad = 3},
      {.m = 700, .n = 1, .k = 1600, .trans_a = 1, .addend = 2},
      {.m = 20, .n = 24, .k = 5000, .trans_a = 1, .addend = 2},
      {.m = 1000, .n = 40, .k = 64, .pad = 3},
      {.m = 560, .n = 790, .k = 400, .trans_a = 1, .addend = 2},
      {.m = 130, .n = 1600, .k = 390, .trans_b = 1, .b_dtype = NN_BF16},
      {.m = 130, .n = 1600, .k = 390, .trans_b = 1, .b_dtype = NN_F16},
      {.m = 129, .n = 400, .k = 301, .b_dtype = NN_F16, .epilogue = MATMUL_GELU},
      {.m = 5, .n = 700, .k = 1501, .trans_b = 1, .b_dtype = NN_F16, .pad = 1},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_matmul(&cases[i]);
}

/* Operands that caches hold are not packed: every height of a last tile, several blocks of k,
 * and rows a power of two apart, which are copied. */
static void test_near(void **state) {
  (void)state;
  for (int64_t m = 9; m < 27; m++)
    for (int32_t i = 0; i < 8; i++)
      check_matmul(&(matmul_case_t){.m = m, .n = 64 + 3 * (i / 4), .k = 30 + m % 2,
                                    .trans_a = i % 2, .trans_b = i / 2 % 2,
                                    .addend = (int32_t)m % 3});
  const matmul_case_t cases[] = {
      {.m = 100, .n = 70, .k = 900, .addend = 1},
      {.m = 100, .n = 70, .k = 900, .trans_b = 1, .biased = 1},
      {.m = 70, .n = 64, .k = 900, .trans_a = 1, .addend = 2},
      {.m = 100, .n = 40, .k = 1024, .epilogue = MATMUL_GELU},
      {.m = 1024, .n = 40, .k = 50, .trans_a = 1, .addend = 2},
      {.m = 600, .n = 64, .k = 40, .pad = 3, .addend = 1},
      {.m = 260, .n = 530, .k = 500, .trans_b = 1, .addend = 1}, /* b is not near: many rows, */
      {.m = 270, .n = 300, .k = 1024, .trans_b = 1, .addend = 2},
      {.m = 300, .n = 500, .k = 400}, /* and packed */
      {.m = 260, .n = 70, .k = 1536, .trans_b = 1}, /* the longest block of k, */
      {.m = 300, .n = 40, .k = 1800, .trans_b = 1, .addend = 1}, /* and two */
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_matmul(&cases[i]);
}

/* Gradients of weights that go past the caches, in whole tiles and parts of one, from one block of
 * k and from two; and two that do not: rows that begin within lines, and an addend. */
static void test_gradients_of_weights(void **state) {
  (void)state;
  const matmul_case_t cases[] = {
      {.m = 1030, .n = 1040, .k = 5, .trans_a = 1},
      {.m = 1030, .n = 1040, .k = 5, .trans_a = 1, .b_dtype = NN_BF16},
      {.m = 1030, .n = 1040, .k = 5, .trans_a = 1, .pad = 3},
      {.m = 1030, .n = 1040, .k = 5, .trans_a = 1, .addend = 2},
      {.m = 1030, .n = 1040, .k = 390, .trans_a = 1},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_matmul(&cases[i]);
}

/* Rows some of which are summed by fours of k: short k and weights from far, few rows and several
 * passes of them, whole and other blocks of columns and of k, one item and several. */
static void test_fours(void **state) {
  (void)state;
  for (int32_t m = 6; m < 18; m++) {
    for (int32_t i = 0; i < 12; i++)
      check_matmul(&(matmul_case_t){.m = m, .n = (int64_t[]){8, 40, 44, 520}[i % 4],
                                    .k = (int64_t[]){16, 64, 128}[i / 4], .trans_b = 1,
                                    .biased = i % 2, .addend = (m + i) % 3,
                                    .epilogue = (m + i / 3) % 3, .pad = m % 2 ? 4 : 0});
    for (int32_t i = 0; i < 4; i++)
      check_matmul(&(matmul_case_t){.m = m, .n = 600 + 4 * (i % 2), .k = 144 + 8 * (i / 2),
                                    .trans_b = 1, .addend = (m + i) % 3, .pad = m % 2 ? 4 : 0});
  }
  const int64_t rows[] = {17, 20, 28, 29, 44, 63, 64, 65};
  for (int32_t i = 0; i < 8; i++)
    for (int32_t j = 0; j < 3; j++)
      check_matmul(&(matmul_case_t){.m = rows[i], .n = 328 + 4 * (j == 1),
                                    .k = j == 2 ? 272 : 256, .trans_b = 1, .biased = j == 2,
                                    .addend = i % 3, .pad = i % 2 ? 4 : 0});
  check_matmul(&(matmul_case_t){.m = 20, .n = 2600, .k = 256, .trans_b = 1});
}

/* One and two rows by weights from far: rows of x that are read again for each row of w and longer
 * ones, and all kinds of columns that a last tile can have. */
static void test_lines(void **state) {
  (void)state;
  const int32_t dtypes[] = {NN_F32, NN_BF16, NN_F16};
  for (int32_t i = 0; i < 12; i++)
    for (int64_t j = 0; j < 11; j++)
      check_matmul(&(matmul_case_t){.m = 1 + i % 2, .n = 65 + 3 * j, .trans_b = 1,
                                    .k = (int64_t[]){2570 + j, 5130 + j}[i / 6],
                                    .b_dtype = dtypes[i / 2 % 3], .addend = (int32_t)j % 3});
  for (int32_t i = 0; i < 6; i++)
    check_matmul(&(matmul_case_t){.m = 1 + i % 2, .n = 301, .k = 768 + i, .trans_b = 1,
                                  .b_dtype = dtypes[i / 2], .biased = i % 2});
}

/* GELU's forward may be asked for without aux. */
static void test_gelu_without_aux(void **state) {
  (void)state;
  matmul_case_t c = {.m = 5, .n = 33, .k = 20, .epilogue = MATMUL_GELU};
  matmul_data_t data = matmul_make(&c);
  matmul_expect(&c, &data);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 20, .hidden = 33});
  while (ops_next(&trial)) {
    op_matmul_t op = data.op;
    op.d = ops_floats(data.d_count);
    ops_garbage(op.d, data.d_count);
    OPS_RUN(&trial, matmul, &op);
    ops_check(&trial, 0, "d", op.d, data.want, data.slack, data.d_count);
  }
  ops_free();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sizes),
      cmocka_unit_test(test_large),
      cmocka_unit_test(test_near),
      cmocka_unit_test(test_gradients_of_weights),
      cmocka_unit_test(test_fours),
      cmocka_unit_test(test_lines),
      cmocka_unit_test(test_gelu_without_aux),
  };
  return cmocka_run_group_tests_name("matmul", tests, NULL, NULL);
}
