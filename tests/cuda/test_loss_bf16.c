/* The head's loss, softmax, the gradient norm, AdamW, the choice of tokens and random filling on a
 * GPU, against the CPU. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "gpu.h"
#include "select.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* ---- head and cross-entropy ---- */

typedef struct loss_case {
  int64_t n, hidden, vocab;
  int32_t heavy;  /* 1: in bf16 only, to be quick */
  int32_t biased; /* and scaled */
} loss_case_t;

static const loss_case_t loss_cases[] = {
    {1, 8, 5, 0, 0},        {3, 33, 77, 0, 0},     {1, 768, 1000, 0, 0},
    {70, 64, 1000, 0, 0},   {300, 768, 1000, 0, 0}, {130, 770, 1001, 0, 0},
    {1, 768, 32000, 0, 0},  {70, 768, 32000, 1, 0}, {300, 768, 32000, 1, 0},
    {9000, 16, 8200, 1, 0}, /* several chunks of rows */
    {3, 33, 77, 0, 1},      {70, 64, 1000, 0, 1},   {9000, 16, 8200, 1, 1},
};

static gpu_tensor_t *loss_targets(const loss_case_t *c) {
  int32_t *target = gpu_indices(c->n, c->vocab, 3);
  for (int64_t i = 2; i < c->n; i += 7) target[i] = -1;
  return gpu_ints(target, c->n);
}

/* Assigned, dw is what it is added to zeros. */
static void check_assigned(const loss_case_t *c, const op_head_loss_t from[GPU_SIDES]) {
  int64_t count = c->vocab * c->hidden;
  gpu_tensor_t *dw[] = {gpu_tensor(GPU_F32, GPU_UPDATE, gpu_memory(count, sizeof(float)), count),
                        gpu_out(GPU_F32, count)};
  double *added = gpu_memory(count, sizeof *added);
  for (int32_t assign = 0; assign < 2; assign++) {
    op_head_loss_t op[GPU_SIDES] = {from[0], from[1]};
    for (int s = 0; s < GPU_SIDES; s++) op[s].dw = gpu_at(dw[assign], s, 0), op[s].assign = assign;
    gpu_prepare(GPU_GPU, 0); /* the CPU has no part in it */
    gpu_expect(NN_OK, GPU_CALL(head_loss, GPU_GPU, &op[GPU_GPU]), "head_loss");
    gpu_collect("head_loss", 0);
    for (int64_t i = 0; i < count && !assign; i++) added[i] = gpu_value(dw[0], GPU_GPU, i);
  }
  for (int64_t i = 0; i < count; i++) assert_true(gpu_value(dw[1], GPU_GPU, i) == added[i]);
}

static void check_loss(const loss_case_t *c, int32_t dtype) {
  int64_t h = c->hidden;
  if (gpu_leaves(dtype, 3.0 * (double)(c->n * h * c->vocab))) return;
  backend_limits_t limits = {.rows = c->n, .hidden = h, .vocab = c->vocab, .training = 1};
  gpu_begin(dtype, limits, "head_loss n %lld, hidden %lld, vocab %lld, biased %d", (long long)c->n,
            (long long)h, (long long)c->vocab, c->biased);
  gpu_tensor_t *x = gpu_in(c->n * h, 1, 0, 1), *target = loss_targets(c);
  gpu_tensor_t *w = gpu_in(c->vocab * h, 4 / sqrt((double)h), 0, 2); /* logits of order 1 */
  gpu_tensor_t *row_loss = gpu_out(GPU_F32, c->n), *sum = gpu_out(GPU_F64, 1);
  gpu_tensor_t *dx = gpu_out(GPU_ACT, c->n * h), *dw = gpu_sum(GPU_F32, c->vocab * h, 4);
  gpu_tensor_t *scale = gpu_tensor(GPU_F32, GPU_READ, &(float){0.75f}, 1);
  gpu_tensor_t *bias = c->biased ? gpu_in(c->vocab, 1, 0, 5) : NULL;
  gpu_tensor_t *dbias = c->biased ? gpu_sum(GPU_F32, c->vocab, 6) : NULL;
  for (int gradients = 0; gradients < 2; gradients++) {
    op_head_loss_t op[GPU_SIDES];
    for (int s = 0; s < GPU_SIDES; s++)
      op[s] = (op_head_loss_t){.n = c->n,
                               .hidden = h,
                               .vocab = c->vocab,
                               .x = gpu_at(x, s, 0),
                               .w = gpu_at(w, s, 0),
                               .weight_dtype = gpu_dtype(s),
                               .act_dtype = gpu_dtype(s),
                               .alpha = c->biased ? 0.5f : 0,
                               .bias = gpu_at(bias, s, 0),
                               .target = gpu_at(target, s, 0),
                               .row_loss = gpu_at(row_loss, s, 0),
                               .loss_sum = gpu_at(sum, s, 0),
                               .scale = gpu_at(scale, s, 0),
                               .dx = gradients ? gpu_at(dx, s, 0) : NULL,
                               .dw = gradients ? gpu_at(dw, s, 0) : NULL,
                               .dbias = gradients ? gpu_at(dbias, s, 0) : NULL};
    GPU_RUN(head_loss, op);
    /* logits are sums in fp32, and the loss is made of them */
    double bound = gpu_bound_f32(h) + gpu_bound_f32(c->vocab);
    gpu_check(row_loss, "row_loss", 1, bound);
    gpu_check(sum, "loss_sum", 1, bound);
    if (!gradients) continue;
    /* the logits' gradients, then dx */
    gpu_check(dx, "dx", h, gpu_bound(2, h + c->vocab));
    gpu_check(dw, "dw", h, gpu_bound(1, h + c->n));
    if (dbias) gpu_check(dbias, "dbias", c->vocab, gpu_bound(1, h + c->n));
    check_assigned(c, op);
  }
  gpu_end();
}

static void test_head_loss(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(loss_cases); i++) {
    check_loss(&loss_cases[i], gpu_dtypes[0]);
    if (!loss_cases[i].heavy) check_loss(&loss_cases[i], NN_F32);
  }
}

/* ---- softmax ---- */

static void check_softmax(int64_t n, int64_t width) {
  gpu_begin(NN_BF16, (backend_limits_t){.rows = n, .vocab = width}, "softmax n %lld, width %lld",
            (long long)n, (long long)width);
  float *values = gpu_uniform(n * width, 8, 0, 11);
  if (width > 1) values[1] = -INFINITY;
  gpu_tensor_t *x = gpu_tensor(GPU_F32, GPU_READ, values, n * width);
  gpu_tensor_t *both = gpu_tensor(GPU_F32, GPU_SPENT, values, n * width);
  gpu_tensor_t *y = gpu_out(GPU_F32, n * width);
  const gpu_tensor_t *from[] = {x, both}, *to[] = {y, both};
  for (int i = 0; i < 2; i++) {
    op_softmax_t op[GPU_SIDES];
    for (int s = 0; s < GPU_SIDES; s++)
      op[s] = (op_softmax_t){n, width, gpu_at(from[i], s, 0), gpu_at(to[i], s, 0)};
    GPU_RUN(softmax, op);
    gpu_check(to[i], i ? "y in place" : "y", width, gpu_bound_f32(width));
  }
  gpu_end();
}

static void test_softmax(void **state) {
  (void)state;
  static const int64_t rows[] = {1, 5, 300}, widths[] = {1, 7, 1000, 32000, 50257};
  for (size_t i = 0; i < LENGTH(rows); i++)
    for (size_t j = 0; j < LENGTH(widths); j++)
      if (rows[i] * widths[j] < 1 << 21) check_softmax(rows[i], widths[j]);
}

/* ---- optimizer ---- */

/* What the core makes of a learning rate and a step for the operations. */
static gpu_tensor_t *optim_now(double lr, int64_t step, double unscale) {
  double now[4] = {lr, 1 - pow(0.9f, (double)step), 1 - pow(0.95f, (double)step), unscale};
  assert_int_equal(sizeof now, sizeof(optim_now_t));
  return gpu_tensor(GPU_F64, GPU_READ, now, 4);
}

static void check_grad_norm(int64_t count, float max_norm, float first) {
  gpu_begin(NN_BF16, (backend_limits_t){.training = 1}, "grad_norm of %lld up to %g, first %g",
            (long long)count, max_norm, first);
  float *values = gpu_uniform(count, 4, 0, 21);
  values[0] = 4 * first;
  gpu_tensor_t *g = gpu_tensor(GPU_F32, GPU_READ, values, count), *out = gpu_out(GPU_F64, 2);
  gpu_tensor_t *now = optim_now(0, 1, 0.25);
  op_grad_norm_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++)
    op[s] = (op_grad_norm_t){count, gpu_at(g, s, 0), max_norm, gpu_at(now, s, 0),
                             gpu_at(out, s, 0)};
  GPU_RUN(grad_norm, op);
  gpu_check(out, "out", 1, gpu_bound_f32(count));
  gpu_end();
}

static void test_grad_norm(void **state) {
  (void)state;
  static const int64_t counts[] = {1, 1003, 3000001};
  for (size_t i = 0; i < LENGTH(counts); i++) {
    check_grad_norm(counts[i], 0, 1);
    check_grad_norm(counts[i], 0.5f, 3);
    check_grad_norm(counts[i], 1e9f, -3);
    check_grad_norm(counts[i], 1, INFINITY);
  }
}

#define ADAMW_LR 0.01

/* Parameters of the CPU, and of the GPU in fp32; of the GPU in bf16: p and what is left of it; in
 * fp16: p and the whole. */
typedef struct adamw_tensors {
  gpu_tensor_t *master, *p, *low, *whole, *g, *m, *v, *scale, *now;
} adamw_tensors_t;

static adamw_tensors_t adamw_make(int64_t count, double norm, int64_t step) {
  float *master = gpu_uniform(count, 1, 0, 31);
  int16_t *p = gpu_memory(count, sizeof *p), *low = gpu_memory(count, sizeof *low);
  for (int64_t i = 0; i < count; i++) {
    uint32_t bits;
    memcpy(&bits, &master[i], sizeof bits);
    uint32_t high = (bits + 0x8000) >> 16;
    p[i] = (int16_t)(uint16_t)high, low[i] = (int16_t)(int32_t)(bits - (high << 16));
    if (gpu_dtype(GPU_GPU) == NN_F16) p[i] = (int16_t)dtype_f32_to_f16(master[i]);
  }
  const double scale[] = {norm, 0.5};
  float *v = gpu_uniform(count, 0.25, 0.3, 34); /* of the order of g^2, and not near 0 */
  return (adamw_tensors_t){.master = gpu_tensor(GPU_F32, GPU_UPDATE, master, count),
                           .p = gpu_tensor(GPU_I16, GPU_UPDATE, p, count),
                           .low = gpu_tensor(GPU_I16, GPU_UPDATE, low, count),
                           .whole = gpu_tensor(GPU_F32, GPU_UPDATE, master, count),
                           .g = gpu_tensor(GPU_F32, GPU_READ, gpu_uniform(count, 1, 0, 32), count),
                           .m = gpu_sum(GPU_F32, count, 33),
                           .v = gpu_tensor(GPU_F32, GPU_UPDATE, v, count),
                           .scale = gpu_tensor(GPU_F64, GPU_READ, scale, 2),
                           .now = optim_now(ADAMW_LR, step, 1)};
}

/* What the GPU's parameter is now: two integers that make one number in bf16, the nearest of the
 * whole in fp16. */
static double adamw_got(const adamw_tensors_t *t, int64_t i) {
  if (gpu_dtype(GPU_GPU) == NN_F32) return gpu_value(t->master, GPU_GPU, i);
  if (gpu_dtype(GPU_GPU) == NN_F16) {
    double whole = gpu_value(t->whole, GPU_GPU, i);
    assert_int_equal((int16_t)gpu_value(t->p, GPU_GPU, i), (int16_t)dtype_f32_to_f16((float)whole));
    return whole;
  }
  uint32_t high = (uint16_t)(int16_t)gpu_value(t->p, GPU_GPU, i);
  uint32_t bits = (high << 16) + (uint32_t)(int32_t)gpu_value(t->low, GPU_GPU, i);
  float master;
  memcpy(&master, &bits, sizeof master);
  return master;
}

/* Both round the result once, and the update's few operations round its terms, which are of the
 * order of the learning rate. */
static void check_masters(const adamw_tensors_t *t, int64_t first, int64_t count) {
  const float *before = gpu_uniform(count, 1, 0, 31);
  for (int64_t i = first; i < count; i++) {
    double got = adamw_got(t, i), want = gpu_value(t->master, GPU_CPU, i);
    double allowed = 0x1p-23 * fabs(want) + 16 * 0x1p-24 * (fabs(want - before[i]) + ADAMW_LR);
    if (!(fabs(got - want) <= allowed))
      fail_msg("adamw of %lld: parameter %lld is %.9g, not %.9g (allowed %.3g)", (long long)count,
               (long long)i, got, want, allowed);
    assert_true(want != before[i]);
  }
}

/* The first elements are left out of the call. */
static void check_adamw(int64_t count, int64_t first, int64_t step, double norm, int32_t dtype) {
  gpu_begin(dtype, (backend_limits_t){.training = 1}, "adamw of %lld from %lld, step %lld, norm %g",
            (long long)count, (long long)first, (long long)step, norm);
  adamw_tensors_t t = adamw_make(count, norm, step);
  op_adamw_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++) {
    int32_t of = gpu_dtype(s);
    op[s] = (op_adamw_t){.count = count - first,
                         .decayed = (count - first) / 3,
                         .weight_dtype = of,
                         .p = gpu_at(of == NN_F32 ? t.master : t.p, s, first),
                         .p_low = of == NN_BF16 ? gpu_at(t.low, s, first) : NULL,
                         .master = of == NN_F16 ? gpu_at(t.whole, s, first) : NULL,
                         .g = gpu_at(t.g, s, first),
                         .m = gpu_at(t.m, s, first),
                         .v = gpu_at(t.v, s, first),
                         .scale = gpu_at(t.scale, s, 0),
                         .now = gpu_at(t.now, s, 0),
                         .beta1 = 0.9f,
                         .beta2 = 0.95f,
                         .eps = 1e-8f,
                         .weight_decay = 0.1f};
  }
  GPU_RUN(adamw, op);
  if (isfinite(norm)) {
    check_masters(&t, first, count);
    gpu_check(t.m, "m", count, gpu_bound_f32(1));
    gpu_check(t.v, "v", count, gpu_bound_f32(1));
  }
  const gpu_tensor_t *updated[] = {t.master, t.p, t.low, t.whole, t.m, t.v};
  for (size_t i = 0; i < LENGTH(updated); i++) {
    if (!isfinite(norm)) /* as rows of no element, so that all is between rows */
      gpu_check_gaps(updated[i], "what an infinite norm leaves", 0, 1);
    else if (first)
      assert_true(gpu_value(updated[i], GPU_GPU, 0) == gpu_value(updated[i], GPU_CPU, 0));
  }
  gpu_end();
}

static void test_adamw(void **state) {
  (void)state;
  static const int64_t counts[] = {2, 1003, 100003};
  for (size_t i = 0; i < LENGTH(counts); i++)
    for (int k = 0; k < 4; k++) {
      check_adamw(counts[i], k / 2, k / 2 ? 1 : 7, 3, gpu_dtypes[k % 2]);
      check_adamw(counts[i], 0, 3, k / 2 ? INFINITY : NAN, gpu_dtypes[k % 2]);
    }
}

/* ---- choice of tokens ---- */

typedef struct sample_case {
  int64_t vocab;
  float temperature, top_p, min_p, penalty;
  int32_t top_k;
  int64_t history;
} sample_case_t;

static const sample_case_t sample_cases[] = {
    {1, 1, 0, 0, 0, 0, 0},              {1000, 0, 0, 0, 0, 0, 0},
    {32000, 0, 0, 0, 1.3f, 0, 500},     {1000, 1, 0, 0, 0, 0, 0},
    {32000, 0.7f, 0, 0, 0, 0, 0},       {1000, 1, 0, 0, 0, 1, 0},
    {32000, 1, 0, 0, 0, 40, 0},         {32000, 1, 0.9f, 0, 0, 0, 0},
    {32000, 0.8f, 0.95f, 0, 0, 50, 0},  {32000, 1, 0, 0.05f, 0, 0, 0},
    {1000, 1.5f, 0.9f, 0.02f, 1.2f, 200, 100}, {50257, 1, 0.5f, 0, 0.9f, 0, 1000},
    {1000, 2, 1, 0, 1, 1000, 10},       {130000, 1, 0.9f, 0, 0, 40, 0},
    {130000, 2, 0, 0.01f, 0, 100, 0},   {32000, 1, 0.8f, 0, 0, 300, 0},
};

/* Logits with a few likely tokens, and some that are equal. */
static gpu_tensor_t *sample_logits(int64_t vocab, int32_t with_nan) {
  float *logits = gpu_uniform(vocab, 1, 0, 41);
  for (int64_t i = 0; i < vocab; i++) logits[i] = 14 * powf(logits[i], 5);
  for (int64_t i = 3; i + 50 < vocab; i += 97) logits[i + 50] = logits[i];
  if (vocab > 20) logits[11] = -INFINITY;
  if (with_nan) logits[vocab / 2] = NAN;
  return gpu_tensor(GPU_F32, GPU_READ, logits, vocab);
}

/* Draws are the CPU's: both add weights in double, in other orders, so one falls on the other side
 * of a border between tokens for 1e-15 of the draws. */
static void check_sample(const sample_case_t *c, int32_t with_nan) {
  if (gpu_leaves(NN_BF16, (double)c->vocab)) return;
  gpu_begin(NN_BF16, (backend_limits_t){.rows = 1, .vocab = c->vocab},
            "sample %d of %lld, temperature %g, top_p %g, top_k %d", (int)(c - sample_cases),
            (long long)c->vocab, c->temperature, c->top_p, c->top_k);
  gpu_tensor_t *logits = sample_logits(c->vocab, with_nan), *token = gpu_out(GPU_I32, 1);
  int64_t kept = c->history ? c->history : 1;
  gpu_tensor_t *history = gpu_ints(gpu_indices(kept, c->vocab, 42), kept);
  int draws = c->temperature > 0 ? select_draws(24) : 1;
  for (int i = 0; i < draws; i++) {
    op_sample_t op[GPU_SIDES];
    for (int s = 0; s < GPU_SIDES; s++)
      op[s] = (op_sample_t){.vocab = c->vocab,
                            .logits = gpu_at(logits, s, 0),
                            .history = c->history ? gpu_at(history, s, 0) : NULL,
                            .history_len = c->history,
                            .temperature = c->temperature,
                            .top_p = c->top_p,
                            .min_p = c->min_p,
                            .repetition_penalty = c->penalty,
                            .top_k = c->top_k,
                            .seed = 77,
                            .counter = (uint64_t)i,
                            .token = gpu_at(token, s, 0)};
    GPU_RUN(sample, op);
    gpu_check_equal(token, "token", 1);
    if (with_nan) assert_true(gpu_value(token, GPU_GPU, 0) == -1);
  }
  gpu_end();
}

static void test_sample(void **state) {
  (void)state;
  for (size_t i = 0; i < LENGTH(sample_cases); i++) check_sample(&sample_cases[i], 0);
  check_sample(&sample_cases[1], 1);
  check_sample(&sample_cases[8], 1);
}

/* ---- filling ---- */

static void check_fill(int64_t count, uint64_t seed, uint64_t stream, int32_t dtype) {
  int half = dtype != NN_F32;
  gpu_begin(dtype, (backend_limits_t){0}, "fill_normal of %lld, stream %llu", (long long)count,
            (unsigned long long)stream);
  gpu_tensor_t *out = gpu_out(half ? GPU_I16 : GPU_F32, count);
  op_fill_normal_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++)
    op[s] = (op_fill_normal_t){gpu_at(out, s, 0), dtype, count, 0.02f, seed, stream};
  GPU_RUN(fill_normal, op);
  if (!half) gpu_check(out, "out", count, gpu_bound_f32(1));
  /* as integers, neighbours of one sign differ by 1 */
  for (int64_t i = 0; half && i < count; i++) {
    double off = gpu_value(out, GPU_GPU, i) - gpu_value(out, GPU_CPU, i);
    if (!(fabs(off) <= 1)) fail_msg("fill_normal: element %lld is off by %g", (long long)i, off);
  }
  gpu_end();
}

static void test_fill(void **state) {
  (void)state;
  static const int64_t counts[] = {1, 7, 1000, 300001};
  for (size_t i = 0; i < 2 * LENGTH(counts); i++) {
    check_fill(counts[i / 2], 5, 0, gpu_dtypes[i % 2]);
    check_fill(counts[i / 2], UINT64_MAX - 3, UINT64_C(1) << 40, gpu_dtypes[i % 2]);
  }
}

int main(void) {
  int skipped = gpu_open();
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_head_loss), cmocka_unit_test(test_softmax),
      cmocka_unit_test(test_grad_norm), cmocka_unit_test(test_adamw),
      cmocka_unit_test(test_sample),    cmocka_unit_test(test_fill),
  };
  return cmocka_run_group_tests_name("loss, optimizer and sampling on a GPU", tests, NULL,
                                     gpu_close);
}
