/* Whole models against PyTorch in fp64 (tests/golden/make_golden.py): folders written by
 * transformers, logits, losses, every gradient, ten AdamW steps, on every path, with and without
 * recomputation. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"
#include "golden.h"

/* u = 2^-24 is the relative error of one fp32 rounding. A logit passes through tens of them (norms,
 * products, softmax, residuals; errors of a sum grow like the root of its length): plain fp32
 * PyTorch is 3 to 11 u of the largest logit away from fp64 on these cases, and 8 to 30 u of a
 * tensor's largest gradient. Four times that leaves room for other orders of summation; a wrong
 * formula is off by thousands. */
static const double unit = 0x1p-24;
#define LOGIT_TOLERANCE (44 * unit)
#define GRADIENT_TOLERANCE (120 * unit)
#define LOSS_TOLERANCE (44 * unit) /* a loss is a difference of logits */

/* After ten steps: where an element's exact gradient is zero (GPT-2's key biases), what is left is
 * the rounding error d of a gradient, and each step moves the element by up to lr * d / eps. eps is
 * 1e-5 in these files, lr at most 0.01, d a few 1e-8: 1e-5 or so in ten steps, as fp32 PyTorch
 * shows (up to 1.2e-5). Five times that; leaving out the decay alone would make a hundred times the
 * difference. */
static const double step_tolerance = 6e-5;
/* Losses and norms of later steps see those parameters through gradients of norm 1 to 10. */
static const double step_loss_tolerance = 6e-5;
static const double step_norm_tolerance = 6e-4;

static const char *const cases[] = {"moe-gqa-switch",  "moe-mqa-joint", "moe-mha-top1",
                                    "moe-all-experts", "moe-wide",      "gpt2",
                                    "gpt2-odd"};
enum { CASES = sizeof cases / sizeof *cases, STEPS = 10 };

typedef struct golden_case {
  const char *name;
  golden_t weights, expected;
  nn_model_config_t config;
  const int32_t *tokens, *targets; /* [batch, seq] */
  int64_t batch, seq;
} golden_case_t;

static void case_open(golden_case_t *c, const char *name) {
  c->name = name;
  golden_open(&c->weights, name, "model.safetensors");
  golden_open(&c->expected, name, "golden.safetensors");
  size_t bytes;
  char *text = golden_text(name, "config.json", &bytes);
  c->config = STRUCT(nn_model_config_t);
  CHECK(nn_config_from_json(text, bytes, &c->config));
  free(text);
  /* What transformers has no key for. */
  const double *coefficients = golden_f64(&c->expected, "coefficients");
  c->config.aux_loss = (int32_t)coefficients[0];
  c->config.aux_loss_coef = (float)coefficients[1];
  c->config.z_loss_coef = (float)coefficients[2];
  const golden_tensor_t *tokens = golden_get(&c->expected, "", "tokens");
  c->batch = tokens->shape[0];
  c->seq = tokens->shape[1];
  c->tokens = golden_i32(&c->expected, "tokens");
  c->targets = golden_i32(&c->expected, "targets");
}

static void case_close(golden_case_t *c) {
  golden_close(&c->weights);
  golden_close(&c->expected);
}

/* A model of the case's configuration with its weights, ready to train on its batch. */
static nn_model_t *case_model(const golden_case_t *c, nn_device_t *device, int32_t recompute) {
  nn_model_t *model = fixture_model(device, &c->config, 1);
  assert_int_equal(nn_model_parameter_count(model), c->weights.count);
  for (int64_t i = 0; i < c->weights.count; i++) {
    const golden_tensor_t *weight = &c->weights.tensors[i];
    nn_tensor_t *tensor;
    CHECK(nn_model_parameter(model, weight->name, &tensor));
    CHECK(nn_tensor_copy_in(tensor, weight->data, (size_t)weight->elements * sizeof(float)));
    nn_tensor_destroy(tensor);
  }
  fixture_prepare(model, c->batch, c->seq, recompute);
  return model;
}

/* Every parameter (or gradient) against the file's tensors prefix + name; the tolerance is relative
 * to each tensor's largest value, or absolute. */
static void case_compare(const golden_case_t *c, const nn_model_t *model, const char *prefix,
                         int gradients, double relative, double absolute) {
  for (int64_t i = 0; i < c->weights.count; i++) {
    const char *name = c->weights.tensors[i].name;
    const golden_tensor_t *want = golden_get(&c->expected, prefix, name);
    nn_tensor_t *tensor;
    if (gradients)
      CHECK(nn_model_gradient(model, name, &tensor));
    else
      CHECK(nn_model_parameter(model, name, &tensor));
    float *got = fixture_memory((size_t)want->elements * sizeof *got);
    CHECK(nn_tensor_copy_out(tensor, got, (size_t)want->elements * sizeof *got));
    char what[160];
    snprintf(what, sizeof what, "%s: %s%s", c->name, prefix, name);
    fixture_near(what, got, want->data, want->elements,
                 relative * fixture_largest(want->data, want->elements) + absolute);
    free(got);
    nn_tensor_destroy(tensor);
  }
}

static void near_loss(const char *what, double got, double want, double tolerance) {
  if (!(fabs(got - want) <= tolerance * fmax(1, fabs(want))))
    fail_msg("%s: %.12g instead of %.12g", what, got, want);
}

static void case_compare_losses(const nn_loss_t *got, const double *want, double tolerance) {
  near_loss("cross-entropy", got->loss, want[0], tolerance);
  near_loss("auxiliary loss", got->aux_loss, want[1], tolerance);
  near_loss("z-loss", got->z_loss, want[2], tolerance);
}

static void case_check_logits(const golden_case_t *c, nn_model_t *model) {
  int64_t count = c->batch * c->seq * c->config.vocab_size;
  float *logits = fixture_memory((size_t)count * sizeof *logits);
  CHECK(nn_model_forward(model, c->tokens, c->batch, c->seq, logits));
  const float *want = golden_f32(&c->expected, "logits");
  fixture_near(c->name, logits, want, count, LOGIT_TOLERANCE * fixture_largest(want, count));
  free(logits);
}

/* ---- tests ---- */

/* Runs a check for every case on every path, with and without recomputation. */
static void each_case(void (*check)(const golden_case_t *c, nn_device_t *device,
                                    int32_t recompute)) {
  for (int p = 0; p < FIXTURE_PATHS; p++) {
    nn_device_t *device = fixture_device_of_path(2, fixture_path[p]);
    for (int i = 0; device && i < CASES; i++) {
      golden_case_t c;
      case_open(&c, cases[i]);
      for (int32_t recompute = NN_RECOMPUTE_NONE; recompute <= NN_RECOMPUTE_BLOCK; recompute++)
        check(&c, device, recompute);
      case_close(&c);
    }
    nn_device_destroy(device);
  }
}

static void test_folder_of_transformers_loads(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  for (int i = 0; i < CASES; i++) {
    golden_case_t c;
    case_open(&c, cases[i]);
    char folder[1024];
    snprintf(folder, sizeof folder, MOENN_TEST_DIR "/golden/%s", cases[i]);
    nn_model_t *model;
    CHECK(nn_model_load(device, folder, -1, NULL, &model));
    assert_int_equal(nn_model_parameter_count(model), c.weights.count);
    for (int64_t j = 0; j < c.weights.count; j++) {
      const golden_tensor_t *want = &c.weights.tensors[j];
      nn_tensor_t *tensor;
      CHECK(nn_model_parameter(model, want->name, &tensor));
      nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
      CHECK(nn_tensor_info(tensor, &info));
      assert_int_equal(info.dtype, NN_F32);
      assert_int_equal(info.ndim, want->ndim);
      for (int32_t d = 0; d < info.ndim; d++) assert_int_equal(info.shape[d], want->shape[d]);
      float *got = fixture_memory((size_t)want->elements * sizeof *got);
      CHECK(nn_tensor_copy_out(tensor, got, (size_t)want->elements * sizeof *got));
      fixture_same(want->name, got, want->data, want->elements);
      free(got);
      nn_tensor_destroy(tensor);
    }
    fixture_prepare(model, c.batch, c.seq, NN_RECOMPUTE_NONE);
    case_check_logits(&c, model);
    nn_model_destroy(model);
    case_close(&c);
  }
  nn_device_destroy(device);
}

/* output_router_logits switches the loss on that transformers adds by itself. */
static void test_config_of_transformers_has_its_loss(void **state) {
  (void)state;
  size_t bytes;
  char *text = golden_text("moe-mqa-joint", "config.json", &bytes);
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_from_json(text, bytes, &config));
  free(text);
  assert_int_equal(config.aux_loss, NN_AUX_JOINT);
  assert_true(config.aux_loss_coef == 0.02f);
  assert_true(config.rope_theta == 1e6f);
  assert_int_equal(config.kv_heads, 1);
  assert_int_equal(config.head_dim, 4);
}

static void check_forward(const golden_case_t *c, nn_device_t *device, int32_t recompute) {
  nn_model_t *model = case_model(c, device, recompute);
  case_check_logits(c, model);
  nn_loss_t loss = STRUCT(nn_loss_t);
  CHECK(nn_model_evaluate(model, c->tokens, c->targets, c->batch, c->seq, &loss));
  case_compare_losses(&loss, golden_f64(&c->expected, "losses"), LOSS_TOLERANCE);
  int64_t counted = 0;
  for (int64_t i = 0; i < c->batch * c->seq; i++) counted += c->targets[i] >= 0;
  assert_int_equal(loss.targets, counted);
  nn_model_destroy(model);
}

static void test_logits_and_losses(void **state) {
  (void)state;
  each_case(check_forward);
}

static void check_gradients(const golden_case_t *c, nn_device_t *device, int32_t recompute) {
  nn_model_t *model = case_model(c, device, recompute);
  nn_loss_t loss = STRUCT(nn_loss_t);
  CHECK(nn_model_backward(model, c->tokens, c->targets, c->batch, c->seq, 1, &loss));
  case_compare_losses(&loss, golden_f64(&c->expected, "losses"), LOSS_TOLERANCE);
  case_compare(c, model, "grad.", 1, GRADIENT_TOLERANCE, 0);
  nn_model_destroy(model);
}

static void test_gradients(void **state) {
  (void)state;
  each_case(check_gradients);
}

static void check_ten_steps(const golden_case_t *c, nn_device_t *device, int32_t recompute) {
  nn_model_t *model = case_model(c, device, recompute);
  const float *adam = golden_f32(&c->expected, "adam"), *lr = golden_f32(&c->expected, "lr");
  const double *losses = golden_f64(&c->expected, "step_losses");
  const double *norms = golden_f64(&c->expected, "step_norms");
  nn_optim_options_t options = STRUCT(nn_optim_options_t);
  options.beta1 = adam[0];
  options.beta2 = adam[1];
  options.eps = adam[2];
  options.weight_decay = adam[3];
  options.grad_clip = adam[4];
  nn_optim_t *optim;
  CHECK(nn_optim_create(model, &options, &optim));
  for (int step = 0; step < STEPS; step++) {
    nn_loss_t loss = STRUCT(nn_loss_t);
    double norm;
    CHECK(nn_model_zero_grad(model));
    CHECK(nn_model_backward(model, c->tokens, c->targets, c->batch, c->seq, 1, &loss));
    CHECK(nn_optim_step(optim, lr[step], &norm));
    case_compare_losses(&loss, losses + 3 * step, step_loss_tolerance);
    near_loss("gradient norm", norm, norms[step], step_norm_tolerance);
  }
  assert_int_equal(nn_optim_steps(optim), STEPS);
  case_compare(c, model, "step10.", 0, 0, step_tolerance);
  nn_optim_destroy(optim);
  nn_model_destroy(model);
}

static void test_ten_steps_of_adamw(void **state) {
  (void)state;
  each_case(check_ten_steps);
}

/* Sequence by sequence, each scaled by its share of the targets, the gradients add up to the
 * batch's. Only where cross-entropy is the whole loss: the auxiliary loss is a product of batch
 * means. */
static void check_micro_batches(const golden_case_t *c, nn_device_t *device, int32_t recompute) {
  if (c->config.aux_loss_coef != 0 || c->config.z_loss_coef != 0) return;
  nn_model_t *model = case_model(c, device, recompute);
  int64_t counted = 0;
  for (int64_t i = 0; i < c->batch * c->seq; i++) counted += c->targets[i] >= 0;
  double total = 0;
  for (int64_t b = 0; b < c->batch; b++) {
    const int32_t *targets = c->targets + b * c->seq;
    int64_t here = 0;
    for (int64_t i = 0; i < c->seq; i++) here += targets[i] >= 0;
    nn_loss_t loss = STRUCT(nn_loss_t);
    CHECK(nn_model_backward(model, c->tokens + b * c->seq, targets, 1, c->seq,
                            (float)here / (float)counted, &loss));
    assert_int_equal(loss.targets, here);
    total += loss.loss * (double)here / (double)counted;
  }
  near_loss("cross-entropy", total, golden_f64(&c->expected, "losses")[0], LOSS_TOLERANCE);
  case_compare(c, model, "grad.", 1, GRADIENT_TOLERANCE, 0);
  nn_model_destroy(model);
}

static void test_micro_batches_accumulate(void **state) {
  (void)state;
  each_case(check_micro_batches);
}

/* One pass counts once, also where recomputation routes twice. */
static void check_expert_stats(const golden_case_t *c, nn_device_t *device, int32_t recompute) {
  int64_t experts = c->config.experts;
  if (!experts) return;
  nn_model_t *model = case_model(c, device, recompute);
  nn_loss_t loss = STRUCT(nn_loss_t);
  CHECK(nn_model_backward(model, c->tokens, c->targets, c->batch, c->seq, 1, &loss));
  const int64_t *want_counts = golden_get(&c->expected, "", "expert_counts")->data;
  const double *want_prob = golden_f64(&c->expected, "expert_prob");
  int64_t *counts = fixture_memory((size_t)experts * sizeof *counts);
  double *prob = fixture_memory((size_t)experts * sizeof *prob);
  for (int64_t layer = 0; layer < c->config.layers; layer++) {
    nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
    CHECK(nn_model_expert_stats(model, layer, counts, prob, &stats));
    assert_int_equal(stats.tokens, c->batch * c->seq);
    assert_int_equal(stats.dropped, 0);
    for (int64_t e = 0; e < experts; e++) {
      assert_int_equal(counts[e], want_counts[layer * experts + e]);
      near_loss("mean probability", prob[e], want_prob[layer * experts + e], LOSS_TOLERANCE);
    }
  }
  free(counts);
  free(prob);
  nn_model_destroy(model);
}

static void test_expert_stats(void **state) {
  (void)state;
  each_case(check_expert_stats);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_folder_of_transformers_loads),
      cmocka_unit_test(test_config_of_transformers_has_its_loss),
      cmocka_unit_test(test_logits_and_losses),
      cmocka_unit_test(test_gradients),
      cmocka_unit_test(test_ten_steps_of_adamw),
      cmocka_unit_test(test_micro_batches_accumulate),
      cmocka_unit_test(test_expert_stats),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
