/* Embedding and its backward pass. */
#include <math.h>

#include "base/dtype.h"
#include "ops.h"

enum { VOCAB = 11, CONTEXT = 70 };

typedef struct embed_case {
  int64_t n, hidden;
  int32_t dtype, learned; /* learned positions */
  float alpha;
} embed_case_t;

static const embed_case_t cases[] = {
    {1, 1, NN_F32, 0, 0},    {1, 17, NN_F32, 1, 0},    {3, 16, NN_BF16, 1, 0},
    {17, 65, NN_F32, 0, 0},  {65, 64, NN_F32, 1, 0},   {40, 130, NN_BF16, 0, 0},
    {130, 768, NN_F32, 1, 0}, {5, 1, NN_BF16, 1, 0},   {33, 65, NN_F32, 1, 0.7f},
    {40, 130, NN_BF16, 0, 12}, {17, 65, NN_F16, 1, 0}, {40, 130, NN_F16, 0, 12},
};

static int32_t *indices(int64_t n, int64_t bound, uint64_t seed) {
  int32_t *ids = ops_ints(n);
  for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)ops_random_index(bound, seed, (uint64_t)i);
  return ids;
}

static void check_embed(const embed_case_t *c) {
  if (c->dtype != NN_F32 && !ops_widens()) return;
  op_embed_t op = {.n = c->n, .hidden = c->hidden, .weight_dtype = c->dtype, .alpha = c->alpha};
  double alpha = (double)backend_factor(c->alpha);
  op.ids = indices(c->n, VOCAB, 1);
  op.position = indices(c->n, CONTEXT, 2);
  op.wte = ops_weights(VOCAB * c->hidden, c->dtype, 1, 0, 3);
  if (c->learned) op.wpe = ops_weights(CONTEXT * c->hidden, c->dtype, 1, 0, 4);
  int64_t count = c->n * c->hidden;
  double *want = ops_doubles(count), *slack = ops_doubles(count);
  for (int64_t t = 0; t < c->n; t++) {
    for (int64_t j = 0; j < c->hidden; j++) {
      int64_t i = t * c->hidden + j;
      want[i] = alpha * ops_weight(op.wte, c->dtype, op.ids[t] * c->hidden + j);
      slack[i] = alpha == 1 ? 0 : OPS_U * fabs(want[i]); /* copied: exact */
      if (!c->learned) continue;
      want[i] += ops_weight(op.wpe, c->dtype, op.position[t] * c->hidden + j);
      slack[i] += 2 * OPS_U; /* one addition, result below 2 */
    }
  }
  op.out = ops_floats(count);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = c->n, .hidden = c->hidden, .vocab = VOCAB,
                                       .weight_dtype = c->dtype});
  while (ops_next(&trial)) {
    ops_garbage(op.out, count);
    OPS_RUN(&trial, embed, &op);
    ops_check(&trial, 0, "out", op.out, want, slack, count);
    if (count >= 1 << 16) OPS_RUN_CANCELLED(&trial, embed, &op);
  }
  ops_free();
}

/* want += alpha dout at the chosen rows; slack: the error of as many additions as a row
 * received. */
static void scatter(const int32_t *rows, const float *dout, double alpha, int64_t n, int64_t hidden,
                    double *want, double *slack) {
  for (int64_t t = 0; t < n; t++) {
    for (int64_t j = 0; j < hidden; j++) {
      want[rows[t] * hidden + j] += alpha * dout[t * hidden + j];
      /* partial sums of uniform numbers stay below 8, or 8 alpha */
      slack[rows[t] * hidden + j] += 4 * OPS_U * fmax(1, alpha);
    }
  }
}

static void check_embed_bwd(const embed_case_t *c, int32_t one_row) {
  int64_t wte_count = VOCAB * c->hidden, wpe_count = CONTEXT * c->hidden;
  op_embed_bwd_t op = {.n = c->n, .hidden = c->hidden, .vocab = VOCAB, .context = CONTEXT};
  op.alpha = c->alpha;
  int32_t *ids = indices(c->n, VOCAB, 1);
  for (int64_t t = 0; one_row && t < c->n; t++) ids[t] = VOCAB - 1;
  op.ids = ids;
  op.position = indices(c->n, CONTEXT, 2);
  op.dout = ops_uniform(c->n * c->hidden, 0.25f, 5);
  float *dwte = ops_uniform(wte_count, 1, 6), *dwpe = ops_uniform(wpe_count, 1, 7);
  double *want = ops_doubles(wte_count), *slack = ops_doubles(wte_count);
  double *want_wpe = ops_doubles(wpe_count), *slack_wpe = ops_doubles(wpe_count);
  for (int64_t i = 0; i < wte_count; i++) want[i] = dwte[i];
  for (int64_t i = 0; i < wpe_count; i++) want_wpe[i] = dwpe[i];
  scatter(op.ids, op.dout, (double)backend_factor(c->alpha), c->n, c->hidden, want, slack);
  scatter(op.position, op.dout, 1, c->n, c->hidden, want_wpe, slack_wpe);

  ops_trial_t trial;
  ops_begin(&trial,
            (backend_limits_t){.rows = c->n, .hidden = c->hidden, .vocab = VOCAB, .training = 1});
  while (ops_next(&trial)) {
    op.dwte = ops_copy(dwte, wte_count);
    op.dwpe = c->learned ? ops_copy(dwpe, wpe_count) : NULL;
    OPS_RUN(&trial, embed_bwd, &op);
    ops_check(&trial, 0, "dwte", op.dwte, want, slack, wte_count);
    if (c->learned) ops_check(&trial, 1, "dwpe", op.dwpe, want_wpe, slack_wpe, wpe_count);
    if (c->n * c->hidden >= 1 << 16) OPS_RUN_CANCELLED(&trial, embed_bwd, &op);
  }
  ops_free();
}

static void test_forward(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_embed(&cases[i]);
}

static void test_backward(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    check_embed_bwd(&cases[i], 0);
    check_embed_bwd(&cases[i], 1);
  }
}

/* Half a unit in the last place of a bf16 number as bf16, or next to it; of either sign. */
static uint16_t half_unit(uint16_t of, int64_t which) {
  int32_t half = (of & 0x7f80) - (8 << 7);
  if (half <= 0x80) return 0;
  return (uint16_t)((half + (which % 3 - 1)) | (which % 2) << 15);
}

/* Rows of 16 bits: each element is the fp32 sum, rounded to the nearest, ties to even; the largest
 * become infinite, and what is no number stays so. wte has every sign and exponent. */
static void test_rounding(void **state) {
  (void)state;
  enum { WIDTH = 67, ROWS = 128, COUNT = ROWS * WIDTH };
  uint16_t *wte = ops_memory(COUNT, sizeof *wte), *wpe = ops_memory(COUNT, sizeof *wpe);
  uint16_t *want = ops_memory(COUNT, sizeof *want);
  int32_t *row = ops_ints(ROWS);
  for (int32_t t = 0; t < ROWS; t++) row[t] = t;
  for (int64_t i = 0; i < COUNT; i++) {
    wte[i] = (uint16_t)(i * 0xffff / (COUNT - 1));
    wpe[i] = half_unit(wte[i], i);
    want[i] = dtype_f32_to_bf16((float)ops_weight(wte, NN_BF16, i) +
                                (float)ops_weight(wpe, NN_BF16, i));
  }
  op_embed_t op = {.n = ROWS, .hidden = WIDTH, .ids = row, .position = row, .wte = wte, .wpe = wpe,
                   .weight_dtype = NN_BF16, .act_dtype = NN_BF16};
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = ROWS, .hidden = WIDTH, .weight_dtype = NN_BF16,
                                       .act_dtype = NN_BF16});
  while (ops_next(&trial)) {
    uint16_t *out = op.out = ops_memory(COUNT, sizeof *out);
    OPS_RUN(&trial, embed, &op);
    for (int64_t i = 0; i < COUNT; i++)
      if (out[i] != want[i] && !(isnan(ops_weight(out, NN_BF16, i)) &&
                                 isnan(ops_weight(want, NN_BF16, i))))
        fail_msg("%s: %#x and %#x are %#x, not %#x", trial.path_name, wte[i], wpe[i], out[i],
                 want[i]);
  }
  ops_free();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_forward),
      cmocka_unit_test(test_backward),
      cmocka_unit_test(test_rounding),
  };
  return cmocka_run_group_tests_name("embed", tests, NULL, NULL);
}
