/* Gradients of whole models against finite differences of nn_model_evaluate(): per parameter, along
 * the gradient itself and along random signs; and how backward scales and accumulates. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/random.h"
#include "fixture.h"

enum { BATCH = 2, SEQ = 9, TOKENS = BATCH * SEQ, EXPERTS_MOST = 8, LAYERS_MOST = 4 };

/* The derivative along a unit vector v by the five-point formula,
 * (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h, whose truncation error is h^4 / 30 times the fifth
 * derivative. Each f is a loss of about 5 from fp32 logits, wrong by some 5e-7 (the golden files
 * show up to 2e-7), so noise reaches the quotient as at most 18 x 5e-7 / 12h: 1.5e-4 at h = 0.005.
 * Truncation is largest for the embedding, whose rows the first norm divides by a length of about
 * 1: 0.044 at h = 0.04 and 3e-4 at 0.01, of a derivative of 3, so 2e-5 at 0.005. Derivatives are
 * 0.01 to 3. */
static const double first_step = 0.005;
static const double loss_noise = 5e-7;
static const double truncation = 5e-5;

typedef struct subject {
  nn_model_t *model;
  nn_model_config_t config;
  int32_t tokens[TOKENS], targets[TOKENS];
} subject_t;

static void subject_open(subject_t *s, nn_device_t *device, const nn_model_config_t *config) {
  s->model = fixture_model(device, config, 11);
  s->config = STRUCT(nn_model_config_t);
  CHECK(nn_model_config(s->model, &s->config));
  fixture_prepare(s->model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  fixture_tokens(s->tokens, TOKENS, config->vocab_size, 5);
  fixture_targets(s->targets, TOKENS, config->vocab_size, 6);
  /* Norm weights that are all 1 and biases that are all 0 would hide mistakes. */
  int64_t count;
  float *values = fixture_parameters(s->model, &count);
  for (int64_t i = 0; i < count; i++)
    values[i] += 0.2f * ((float)random_uniform(3, 0, (uint64_t)i) - 0.5f);
  fixture_set_parameters(s->model, values);
  free(values);
}

/* Sum of losses; counts [layers, experts] receives the routed slots, by which a changed choice
 * shows. */
static double subject_loss(const subject_t *s, int64_t counts[LAYERS_MOST][EXPERTS_MOST]) {
  nn_loss_t loss = STRUCT(nn_loss_t);
  if (s->config.experts) CHECK(nn_model_expert_stats_reset(s->model));
  CHECK(nn_model_evaluate(s->model, s->tokens, s->targets, BATCH, SEQ, &loss));
  for (int64_t layer = 0; s->config.experts && layer < s->config.layers; layer++) {
    nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
    CHECK(nn_model_expert_stats(s->model, layer, counts[layer], NULL, &stats));
  }
  return loss.loss + loss.aux_loss + loss.z_loss;
}

/* The loss with values + step v in the tensor. */
static double subject_loss_at(const subject_t *s, nn_tensor_t *tensor, const float *values,
                              const double *v, int64_t count, double step,
                              int64_t counts[LAYERS_MOST][EXPERTS_MOST]) {
  size_t bytes = (size_t)count * sizeof(float);
  float *moved = fixture_memory(bytes);
  for (int64_t i = 0; i < count; i++) moved[i] = (float)((double)values[i] + step * v[i]);
  CHECK(nn_tensor_copy_in(tensor, moved, bytes));
  double loss = subject_loss(s, counts);
  CHECK(nn_tensor_copy_in(tensor, values, bytes));
  free(moved);
  return loss;
}

/* Derivative along v, with the step halved until no token changes its experts, where the loss
 * jumps. Returns the step used. */
static double subject_derivative(const subject_t *s, nn_tensor_t *tensor, const float *values,
                                 const double *v, int64_t count, double *derivative) {
  static const double at[4] = {1, -1, 2, -2}, weight[4] = {8, -8, -1, 1};
  int64_t base[LAYERS_MOST][EXPERTS_MOST] = {{0}}, moved[LAYERS_MOST][EXPERTS_MOST] = {{0}};
  subject_loss(s, base);
  for (double h = first_step; h > first_step / 20; h /= 2) {
    double sum = 0;
    int same = 1;
    for (int i = 0; i < 4; i++) {
      sum += weight[i] * subject_loss_at(s, tensor, values, v, count, at[i] * h, moved);
      same &= memcmp(base, moved, sizeof base) == 0;
    }
    *derivative = sum / (12 * h);
    if (same) return h;
  }
  return 0;
}

/* Checks one parameter along the gradient (signs 0) or along random signs. 1: was compared. */
static int check_parameter(const subject_t *s, const char *name, uint64_t signs) {
  nn_tensor_t *tensor, *gradient;
  CHECK(nn_model_parameter(s->model, name, &tensor));
  CHECK(nn_model_gradient(s->model, name, &gradient));
  nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
  CHECK(nn_tensor_info(tensor, &info));
  size_t bytes = (size_t)info.elements * sizeof(float);
  float *values = fixture_memory(bytes), *g = fixture_memory(bytes);
  double *v = fixture_memory((size_t)info.elements * sizeof *v);
  CHECK(nn_tensor_copy_out(tensor, values, bytes));
  CHECK(nn_tensor_copy_out(gradient, g, bytes));

  double norm = 0, want = 0, got = 0;
  for (int64_t i = 0; i < info.elements; i++) {
    v[i] = signs ? (random_u64(signs, 0, (uint64_t)i) & 1 ? 1 : -1) : (double)g[i];
    norm += v[i] * v[i];
  }
  norm = norm > 0 ? sqrt(norm) : 1;
  for (int64_t i = 0; i < info.elements; i++) {
    v[i] /= norm;
    want += v[i] * (double)g[i];
  }
  double step = subject_derivative(s, tensor, values, v, info.elements, &got);
  double allowed = step > 0 ? 18 * loss_noise / (12 * step) + truncation : 0;
  if (step > 0 && !(fabs(got - want) <= allowed))
    fail_msg("%s %s: the loss changes by %.6g, the gradient says %.6g, at a step of %g", name,
             signs ? "along signs" : "along its gradient", got, want, step);
  free(values);
  free(g);
  free(v);
  nn_tensor_destroy(tensor);
  nn_tensor_destroy(gradient);
  return step > 0;
}

static void check_model(const nn_model_config_t *config) {
  nn_device_t *device = fixture_device(2, 0);
  subject_t s;
  subject_open(&s, device, config);
  nn_loss_t loss = STRUCT(nn_loss_t);
  CHECK(nn_model_backward(s.model, s.tokens, s.targets, BATCH, SEQ, 1, &loss));
  int64_t parameters = nn_model_parameter_count(s.model), compared = 0;
  for (int64_t i = 0; i < parameters; i++) {
    const char *name = nn_model_parameter_name(s.model, i);
    compared += check_parameter(&s, name, 0);
    compared += check_parameter(&s, name, 1 + (uint64_t)i);
  }
  /* A choice of experts that no step leaves alone excuses few. */
  assert_true(compared >= 2 * parameters * 9 / 10);
  nn_model_destroy(s.model);
  nn_device_destroy(device);
}

static void test_moe(void **state) {
  (void)state;
  nn_model_config_t config = fixture_moe();
  check_model(&config);
}

static void test_moe_joint_loss_tied_head(void **state) {
  (void)state;
  nn_model_config_t config = fixture_moe();
  config.aux_loss = NN_AUX_JOINT;
  config.aux_loss_coef = 0.2f;
  config.tied_head = 1;
  config.kv_heads = 1;
  check_model(&config);
}

static void test_moe_all_experts(void **state) {
  (void)state;
  nn_model_config_t config = fixture_moe();
  config.top_k = config.experts;
  check_model(&config);
}

static void test_moe_with_drops(void **state) {
  (void)state;
  nn_model_config_t config = fixture_moe();
  config.capacity_factor = 0.8f;
  check_model(&config);
}

static void test_gpt2(void **state) {
  (void)state;
  nn_model_config_t config = fixture_gpt2();
  check_model(&config);
}

static void test_families(void **state) {
  (void)state;
  for (int32_t i = 0; i < FIXTURE_FAMILIES; i++) {
    nn_model_config_t config = fixture_family(i);
    config.qkv_clip = 0; /* a clamp has kinks, at which a difference is no derivative */
    if (config.swiglu_limit > 0) config.swiglu_limit = 100;
    if (config.router_eps > 0) config.router_eps = 1; /* every logit counts: none comes or goes */
    check_model(&config);
  }
}

/* Backward adds, and scale multiplies what it adds. */
static void test_backward_accumulates_and_scales(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  subject_t s;
  subject_open(&s, device, &config);
  nn_loss_t loss = STRUCT(nn_loss_t);
  int64_t count;
  CHECK(nn_model_backward(s.model, s.tokens, s.targets, BATCH, SEQ, 1, &loss));
  float *once = fixture_gradients(s.model, &count);
  CHECK(nn_model_backward(s.model, s.tokens, s.targets, BATCH, SEQ, 0.5f, &loss));
  float *more = fixture_gradients(s.model, &count);
  /* A power of two scales exactly, but terms are added to what is there in another order: two dozen
   * roundings of the largest value. */
  float *want = fixture_memory((size_t)count * sizeof *want);
  for (int64_t i = 0; i < count; i++) want[i] = 1.5f * once[i];
  fixture_near("1.5 x gradient", more, want, count, 24 * 0x1p-24 * fixture_largest(want, count));
  CHECK(nn_model_zero_grad(s.model));
  float *zero = fixture_gradients(s.model, &count);
  assert_true(fixture_largest(zero, count) == 0);
  free(once);
  free(more);
  free(want);
  free(zero);
  nn_model_destroy(s.model);
  nn_device_destroy(device);
}

/* Without a target that counts, what remains are the routers' own losses. */
static void test_no_targets(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t configs[] = {fixture_moe(), fixture_gpt2()};
  for (int i = 0; i < 2; i++) {
    subject_t s;
    subject_open(&s, device, &configs[i]);
    for (int t = 0; t < TOKENS; t++) s.targets[t] = -1;
    nn_loss_t loss = STRUCT(nn_loss_t);
    CHECK(nn_model_backward(s.model, s.tokens, s.targets, BATCH, SEQ, 1, &loss));
    assert_int_equal(loss.targets, 0);
    assert_true(loss.loss == 0);
    int64_t count;
    float *g = fixture_gradients(s.model, &count);
    assert_true((fixture_largest(g, count) > 0) == (configs[i].experts > 0));
    free(g);
    nn_model_destroy(s.model);
  }
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_moe),
      cmocka_unit_test(test_moe_joint_loss_tied_head),
      cmocka_unit_test(test_moe_all_experts),
      cmocka_unit_test(test_moe_with_drops),
      cmocka_unit_test(test_gpt2),
      cmocka_unit_test(test_families),
      cmocka_unit_test(test_backward_accumulates_and_scales),
      cmocka_unit_test(test_no_targets),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
