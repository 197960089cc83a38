/* Whole models on a GPU against the same models on the CPU: logits, loss, gradients, training
 * runs. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/dtype.h"
#include "fixture.h"
#include "infer/session.h"
#include "model/training.h"

enum { BATCH = 3, SEQ = 40, TOKENS = BATCH * SEQ };

/* The same parameters on both devices; the CPU's are made, the GPU's copied. Where the GPU's model
 * is of bf16 the CPU's is an fp32 one of the same numbers, for a CPU's activations would be bf16
 * too. */
typedef struct pair {
  nn_device_t *cpu, *gpu;
  nn_model_t *on_cpu, *on_gpu;
  nn_model_config_t config;
  int32_t tokens[TOKENS], targets[TOKENS];
} pair_t;

static void pair_copy(const pair_t *pair) {
  for (int64_t i = 0; i < nn_model_parameter_count(pair->on_cpu); i++) {
    const char *name = nn_model_parameter_name(pair->on_cpu, i);
    nn_tensor_t *from, *to;
    CHECK(nn_model_parameter(pair->on_cpu, name, &from));
    CHECK(nn_model_parameter(pair->on_gpu, name, &to));
    nn_tensor_info_t cpu = STRUCT(nn_tensor_info_t), gpu = STRUCT(nn_tensor_info_t);
    CHECK(nn_tensor_info(from, &cpu));
    CHECK(nn_tensor_info(to, &gpu));
    size_t cpu_bytes = (size_t)cpu.elements * nn_dtype_bytes(cpu.dtype);
    size_t gpu_bytes = (size_t)cpu.elements * nn_dtype_bytes(gpu.dtype);
    void *values = fixture_memory(cpu_bytes), *rounded = fixture_memory(gpu_bytes);
    CHECK(nn_tensor_copy_out(from, values, cpu_bytes));
    dtype_convert(rounded, gpu.dtype, values, cpu.dtype, cpu.elements);
    dtype_convert(values, cpu.dtype, rounded, gpu.dtype, cpu.elements);
    CHECK(nn_tensor_copy_in(from, values, cpu_bytes));
    CHECK(nn_tensor_copy_in(to, rounded, gpu_bytes));
    free(values);
    free(rounded);
    nn_tensor_destroy(from);
    nn_tensor_destroy(to);
  }
}

static pair_t pair_open_on(nn_device_t *gpu, nn_model_config_t config, int32_t dtype) {
  pair_t pair = {.config = config, .gpu = gpu};
  pair.cpu = fixture_device_named("cpu", 0, 0);
  int32_t exact = dtype == NN_BF16 ? NN_F32 : dtype;
  CHECK(nn_model_create(pair.cpu, &config, exact, 5, &pair.on_cpu));
  CHECK(nn_model_create(pair.gpu, &config, dtype, 6, &pair.on_gpu));
  pair_copy(&pair);
  fixture_prepare(pair.on_cpu, BATCH, SEQ, NN_RECOMPUTE_NONE);
  fixture_prepare(pair.on_gpu, BATCH, SEQ, NN_RECOMPUTE_NONE);
  fixture_tokens(pair.tokens, TOKENS, config.vocab_size, 1);
  fixture_targets(pair.targets, TOKENS, config.vocab_size, 2);
  return pair;
}

static pair_t pair_open(nn_model_config_t config, int32_t dtype) {
  return pair_open_on(fixture_device_named("cuda:0", 0, 0), config, dtype);
}

static void pair_close(pair_t *pair) {
  nn_model_destroy(pair->on_cpu);
  nn_model_destroy(pair->on_gpu);
  nn_device_destroy(pair->cpu);
  nn_device_destroy(pair->gpu);
}

/* ||got - want|| / ||want||; NaN does not pass any bound. */
static double distance(const float *got, const float *want, int64_t count) {
  double off = 0, size = 0;
  for (int64_t i = 0; i < count; i++) {
    off += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
    size += (double)want[i] * want[i];
  }
  return size > 0 ? sqrt(off / size) : sqrt(off);
}

/* Returns how far it is off. */
static double check_distance(const char *what, const float *got, const float *want, int64_t count,
                             double bound) {
  double found = distance(got, want, count);
  if (!(found <= bound))
    fail_msg("%s: the GPU is off by %.3g of the norm; %.3g is allowed", what, found, bound);
  return found;
}

static double check_logits(const pair_t *pair, double bound) {
  int64_t count = TOKENS * pair->config.vocab_size;
  float *want = fixture_memory((size_t)count * sizeof *want);
  float *got = fixture_memory((size_t)count * sizeof *got);
  CHECK(nn_model_forward(pair->on_cpu, pair->tokens, BATCH, SEQ, want));
  CHECK(nn_model_forward(pair->on_gpu, pair->tokens, BATCH, SEQ, got));
  double found = check_distance("logits", got, want, count, bound);
  free(want);
  free(got);
  return found;
}

static double check_loss(const pair_t *pair, double bound) {
  nn_loss_t want = STRUCT(nn_loss_t), got = STRUCT(nn_loss_t);
  CHECK(nn_model_zero_grad(pair->on_cpu));
  CHECK(nn_model_zero_grad(pair->on_gpu));
  CHECK(nn_model_backward(pair->on_cpu, pair->tokens, pair->targets, BATCH, SEQ, 1, &want));
  CHECK(nn_model_backward(pair->on_gpu, pair->tokens, pair->targets, BATCH, SEQ, 1, &got));
  assert_int_equal(got.targets, want.targets);
  double off = fabs(got.loss - want.loss) + fabs(got.aux_loss - want.aux_loss) +
               fabs(got.z_loss - want.z_loss);
  if (!(off <= bound * want.loss))
    fail_msg("loss %.9g, auxiliary %.9g, z %.9g; on the CPU %.9g, %.9g, %.9g", got.loss,
             got.aux_loss, got.z_loss, want.loss, want.aux_loss, want.z_loss);
  return got.loss;
}

/* Every parameter's gradient by itself, so that none hides behind a larger one. A gradient far
 * below the others' size is held to the whole's: there both are rounding. */
static void check_gradients(const pair_t *pair, double bound) {
  int64_t all, unused, done = 0;
  float *want = fixture_gradients(pair->on_cpu, &all);
  float *got = fixture_gradients(pair->on_gpu, &unused);
  double whole = 0;
  for (int64_t i = 0; i < all; i++) whole += (double)want[i] * want[i];
  check_distance("all gradients", got, want, all, bound);
  for (int64_t i = 0; i < nn_model_parameter_count(pair->on_cpu); i++) {
    const char *name = nn_model_parameter_name(pair->on_cpu, i);
    nn_tensor_t *tensor;
    CHECK(nn_model_gradient(pair->on_cpu, name, &tensor));
    nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
    CHECK(nn_tensor_info(tensor, &info));
    double size = 0;
    for (int64_t j = 0; j < info.elements; j++) size += (double)want[done + j] * want[done + j];
    if (size > 1e-6 * whole)
      check_distance(name, got + done, want + done, info.elements, 4 * bound);
    done += info.elements;
    nn_tensor_destroy(tensor);
  }
  assert_int_equal(done, all);
  free(want);
  free(got);
}

static nn_model_config_t preset(const char *name) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_preset(name, &config));
  return config;
}

/* Two layers of moe-6.9b's block with fewer and narrower experts, which still take the kernels that
 * the whole model takes. */
static nn_model_config_t narrow_moe(void) {
  nn_model_config_t config = preset("moe-6.9b");
  config.layers = 2, config.ffn = 512, config.experts = 8, config.vocab_size = 512;
  config.context = 64, config.aux_loss_coef = 0.02f, config.z_loss_coef = 0.01f;
  return config;
}

/* A family's small model, with room for the sequences here. */
static nn_model_config_t family(int32_t index) {
  nn_model_config_t config = fixture_family(index);
  if (config.context < SEQ) config.context = SEQ;
  return config;
}

/* The same with widths that take the kernels of whole models, and with every expert chosen. */
static nn_model_config_t wide_family(int32_t index) {
  nn_model_config_t config = family(index);
  int latent = config.kv_rank != 0;
  config.hidden = 256, config.heads = 4, config.kv_heads = latent ? 4 : 2;
  config.head_dim = index % 2 ? 64 : 128;
  config.ffn = 192, config.init_std = 0.06f;
  if (config.rope_scaling == NN_ROPE_LONG) fixture_long_rope(&config);
  if (config.rotary_dim) config.rotary_dim = config.head_dim / 2;
  if (config.dense_ffn) config.dense_ffn = 320;
  if (config.shared_ffn) config.shared_ffn = 2 * config.ffn;
  if (latent) config.rope_head_dim = 32, config.value_head_dim = 48, config.kv_rank = 96;
  if (config.q_rank) config.q_rank = 64;
  config.top_k = config.experts, config.router_groups = config.router_top_groups = 0;
  return config;
}

/* What comes first decides the weights of the sparse mixer: a choice that numbers of 16 bits may
 * make otherwise, even where every expert is chosen. */
static int chooses_alike(const nn_model_config_t *config) {
  return config->router_score != NN_SCORE_SPARSE_MIXER;
}

/* fp32: both sum products of up to 1000 terms in other orders, off by about sqrt(1000) 2^-24 = 2e-6
 * of the norm in each of some ten layers of operations. */
static void test_fp32(void **state) {
  (void)state;
  nn_model_config_t configs[] = {fixture_moe(), fixture_gpt2(), preset("tiny"), narrow_moe()};
  for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
    if (configs[i].context < SEQ) configs[i].context = SEQ;
    pair_t pair = pair_open(configs[i], NN_F32);
    check_logits(&pair, 2e-5);
    check_loss(&pair, 1e-5);
    check_gradients(&pair, 1e-4);
    pair_close(&pair);
  }
}

static const int32_t halves[] = {NN_BF16, NN_F16};

/* What bounds of bf16 are multiplied by: fp16 rounds to 11 bits, not to 8. */
static double rounding(int32_t dtype) { return dtype == NN_F16 ? 0.125 : 1; }

/* The bounds of test_fp32: there are more operations in a block, and none that makes more of an
 * error than it is. */
static void test_families_fp32(void **state) {
  (void)state;
  for (int32_t i = 0; i < FIXTURE_FAMILIES; i++) {
    print_message("family %d\n", (int)i);
    pair_t pair = pair_open(family(i), NN_F32);
    check_logits(&pair, 2e-5);
    check_loss(&pair, 1e-5);
    check_gradients(&pair, 1e-4);
    pair_close(&pair);
  }
}

/* bf16: the GPU rounds each activation to 8 bits, at most 2^-8 = 0.4 % of it, 0.2 % on average,
 * some ten times in a block, and the residual stream at every sum: random errors of
 * sqrt(20 x 2 layers) 0.2 % = 1.2 %, and as much again backward. With every expert chosen nothing
 * else can differ. */
static void check_half(int32_t dtype) {
  nn_model_config_t configs[] = {fixture_moe(), preset("tiny"), narrow_moe(), fixture_gpt2()};
  for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
    if (configs[i].context < SEQ) configs[i].context = SEQ;
    configs[i].top_k = configs[i].experts;
    pair_t pair = pair_open(configs[i], dtype);
    check_logits(&pair, 0.03 * rounding(dtype));
    check_loss(&pair, 0.005 * rounding(dtype));
    check_gradients(&pair, 0.03 * rounding(dtype));
    pair_close(&pair);
  }
}

static void test_half(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++) check_half(halves[i]);
}

/* As check_half, with the roundings of norms of q and k, of clamped rows and of shared experts to
 * it, up to half as many again. A clamped activation has a slope on one side of its limit alone:
 * one in 2^8 of them may be on the other side after rounding, sqrt(2^-8) = 6 % of the gradients'
 * norm, which with 4 % makes 7.5 %. */
static void test_families_bf16(void **state) {
  (void)state;
  for (int32_t i = 0; i < FIXTURE_FAMILIES; i++) {
    nn_model_config_t config = wide_family(i);
    if (!chooses_alike(&config)) continue;
    print_message("family %d\n", (int)i);
    pair_t pair = pair_open(config, NN_BF16);
    check_logits(&pair, 0.04);
    check_loss(&pair, 0.005);
    check_gradients(&pair, pair.config.swiglu_limit > 0 ? 0.075 : 0.04);
    pair_close(&pair);
  }
}

/* Where two experts are nearly tied, 16 bits may choose the other one, and a few tokens' output and
 * their experts' gradients differ: what is bounded is the whole, with room for one token in
 * twenty. */
static void check_half_with_choice(int32_t dtype) {
  nn_model_config_t configs[] = {fixture_moe(), preset("tiny"), narrow_moe()};
  for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
    if (configs[i].context < SEQ) configs[i].context = SEQ;
    pair_t pair = pair_open(configs[i], dtype);
    check_logits(&pair, 0.1);
    check_loss(&pair, 0.01);
    pair_close(&pair);
  }
}

static void test_half_with_choice(void **state) {
  (void)state;
  for (int i = 0; i < 2; i++) check_half_with_choice(halves[i]);
}

/* Fifty AdamW steps on one batch; the loss falls to less than half, and the curves stay
 * together. */
static void train(const pair_t *pair, double bound) {
  nn_optim_options_t options = STRUCT(nn_optim_options_t);
  options.weight_decay = 0.1f, options.grad_clip = 1;
  nn_optim_t *optim[2];
  CHECK(nn_optim_create(pair->on_cpu, &options, &optim[0]));
  CHECK(nn_optim_create(pair->on_gpu, &options, &optim[1]));
  double first = 0, last = 0;
  for (int step = 0; step < 50; step++) {
    last = check_loss(pair, bound);
    if (step == 0) first = last;
    CHECK(nn_optim_step(optim[0], 1e-3f, NULL));
    CHECK(nn_optim_step(optim[1], 1e-3f, NULL));
  }
  if (!(last < 0.5 * first)) fail_msg("the loss went from %g to %g in 50 steps", first, last);
  nn_optim_destroy(optim[0]);
  nn_optim_destroy(optim[1]);
}

/* fp32: the first step's difference of 1e-7 grows with every update, by chaos and by Adam's
 * division of small gradients by small moments; a thousandth of the loss is far below one step's
 * change. */
static void test_training(void **state) {
  (void)state;
  nn_model_config_t config = preset("tiny");
  pair_t pair = pair_open(config, NN_F32);
  train(&pair, 1e-3);
  pair_close(&pair);
  for (int i = 0; i < 2; i++) { /* 1 % a step of rounding, as in test_half, and its drift */
    pair = pair_open(config, halves[i]);
    train(&pair, 0.05 * rounding(halves[i]));
    pair_close(&pair);
  }
}

/* With tf32 set, dense products in fp32 round what they multiply to 11 significant bits, as many as
 * fp16 has; nothing else is rounded: fp16's bounds, and more than test_fp32 allows. */
static void test_tf32(void **state) {
  (void)state;
  nn_model_config_t configs[] = {preset("tiny"), narrow_moe()};
  nn_device_options_t options = STRUCT(nn_device_options_t);
  options.tf32 = 1;
  for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
    configs[i].top_k = configs[i].experts;
    nn_device_t *gpu;
    CHECK(nn_device_create("cuda:0", &options, &gpu));
    pair_t pair = pair_open_on(gpu, configs[i], NN_F32);
    double found = check_logits(&pair, 0.03 * rounding(NN_F16));
    if (!(found > 2e-5)) fail_msg("logits are off by %.3g alone: no product was rounded", found);
    check_loss(&pair, 0.005 * rounding(NN_F16));
    check_gradients(&pair, 0.03 * rounding(NN_F16));
    if (!i) train(&pair, 0.05 * rounding(NN_F16));
    pair_close(&pair);
  }
}

/* Gradients that are too large for fp16 by themselves: updates are left out until the loss scale is
 * small enough, which comes out the same every time, and then the model learns. */
static double overflow(int64_t *refused) {
  nn_model_config_t config = preset("tiny");
  pair_t pair = pair_open(config, NN_F16);
  nn_optim_options_t options = STRUCT(nn_optim_options_t);
  options.grad_clip = 1;
  nn_optim_t *optim;
  CHECK(nn_optim_create(pair.on_gpu, &options, &optim));
  double first = 0, last = 0;
  for (int step = 0; step < 60; step++) {
    nn_loss_t loss = STRUCT(nn_loss_t);
    CHECK(nn_model_zero_grad(pair.on_gpu));
    CHECK(nn_model_backward(pair.on_gpu, pair.tokens, pair.targets, BATCH, SEQ, 10000, &loss));
    CHECK(nn_optim_step(optim, 1e-3f, NULL));
    if (step == 0) first = loss.loss;
    last = loss.loss;
  }
  *refused = 60 - nn_optim_steps(optim);
  assert_true(nn_model_loss_scale(pair.on_gpu) * ldexp(1, (int)*refused) == 65536);
  if (!(last < 0.8 * first)) fail_msg("the loss went from %g to %g", first, last);
  nn_optim_destroy(optim);
  pair_close(&pair);
  return last;
}

static void test_overflow(void **state) {
  (void)state;
  int64_t refused[2];
  double loss[2];
  for (int i = 0; i < 2; i++) loss[i] = overflow(&refused[i]);
  assert_true(refused[0] >= 2 && refused[0] <= 15 && refused[0] == refused[1]);
  assert_true(loss[0] == loss[1]);
}

/* ---- decoding ---- */

enum { LENGTH = 32, SEQUENCES = 2, LAYERS = 4, EXPERTS = 16 };

/* What the forward pass chose, in each layer that is not dense, and what its scores were. */
typedef struct choices {
  int32_t expert[LAYERS][SEQUENCES * LENGTH * EXPERTS]; /* [n, k] */
  float score[LAYERS][SEQUENCES * LENGTH * EXPERTS];    /* [n, E] */
} choices_t;

static int sparse(const nn_model_config_t *config, int64_t layer) {
  return config->experts && !(config->dense_layers[0] >> layer & 1);
}

static void choices_of(const nn_model_t *model, int64_t n, choices_t *choices) {
  const nn_model_config_t *config = &model->config;
  const nn_device_t *device = model->device;
  assert_in_range(config->experts, 0, EXPERTS);
  assert_in_range(config->layers, 1, LAYERS);
  for (int64_t l = 0; l < config->layers; l++) {
    if (!sparse(config, l)) continue;
    const block_acts_t *acts = &model->training->buffers.acts[l];
    CHECK(device->backend->copy_out(device->place, choices->expert[l], acts->routing.expert,
                                    (size_t)(n * config->top_k) * sizeof(int32_t)));
    CHECK(device->backend->copy_out(device->place, choices->score[l], acts->prob,
                                    (size_t)(n * config->experts) * sizeof(float)));
  }
}

/* Counts a token's choices in a layer; returns by what part of itself the least of their scores is
 * above the largest that was left out. */
static double choices_count(const choices_t *choices, const nn_model_config_t *config, int64_t l,
                            int64_t token, int64_t counts[EXPERTS]) {
  const float *score = choices->score[l] + token * config->experts;
  int chosen[EXPERTS] = {0};
  double least = INFINITY, left = 0;
  for (int64_t j = 0; j < config->top_k; j++) {
    int32_t e = choices->expert[l][token * config->top_k + j];
    chosen[e] = 1, counts[e]++;
    least = fmin(least, score[e]);
  }
  for (int64_t e = 0; e < config->experts; e++)
    if (!chosen[e]) left = fmax(left, score[e]);
  return (least - left) / least;
}

/* Whether a step chose in every layer what forward chose for its tokens. Where it did not, two
 * scores were so near that their difference is rounding. before: counts up to the step, updated. */
static int chooses_the_same(const nn_session_t *session, const choices_t *choices, int64_t step,
                            double bound, int64_t before[LAYERS][EXPERTS]) {
  const nn_model_config_t *config = &session->model->config;
  int same = 1;
  for (int64_t l = 0; l < config->layers && same; l++) {
    if (!sparse(config, l)) continue;
    nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
    int64_t want[EXPERTS], got[EXPERTS] = {0};
    double nearest = INFINITY;
    memcpy(want, before[l], sizeof want);
    for (int64_t s = 0; s < session->options.batch; s++)
      nearest = fmin(nearest, choices_count(choices, config, l, s * LENGTH + step, want));
    CHECK(nn_session_expert_stats(session, l, got, NULL, &stats));
    same = !memcmp(want, got, sizeof want);
    if (!same && nearest > 4 * bound)
      fail_msg("step %d, layer %d: other experts than forward's, whose scores are %.2g apart",
               (int)step, (int)l, nearest);
    memcpy(before[l], got, sizeof got);
  }
  return same;
}

/* Tokens one by one, through the graph from the third on, against the forward pass over all of
 * them, up to the first for which a near tie was chosen otherwise; *steps: how many that were. */
static void check_sequences(nn_model_config_t config, int32_t dtype, double bound,
                            int64_t sequences, int64_t *steps) {
  nn_device_t *gpu = fixture_device_named("cuda:0", 0, 0);
  nn_model_t *model;
  CHECK(nn_model_create(gpu, &config, dtype, 3, &model));
  fixture_prepare(model, sequences, LENGTH, NN_RECOMPUTE_NONE);
  int32_t tokens[SEQUENCES * LENGTH];
  fixture_tokens(tokens, sequences * LENGTH, config.vocab_size, 4);
  int64_t vocab = config.vocab_size;
  float *want = fixture_memory((size_t)(sequences * LENGTH * vocab) * sizeof *want);
  float *got = fixture_memory((size_t)(sequences * vocab) * sizeof *got);
  choices_t *choices = fixture_memory(sizeof *choices);
  CHECK(nn_model_forward(model, tokens, sequences, LENGTH, want));
  choices_of(model, sequences * LENGTH, choices);
  nn_session_options_t options = STRUCT(nn_session_options_t);
  options.batch = sequences, options.max_len = LENGTH;
  nn_session_t *session;
  CHECK(nn_session_create(model, &options, &session));
  int64_t counts[LAYERS][EXPERTS] = {{0}};
  for (int i = 0; i < LENGTH; i++) {
    int32_t next[SEQUENCES];
    for (int s = 0; s < sequences; s++) next[s] = tokens[s * LENGTH + i];
    CHECK(nn_session_decode(session, next, got));
    if (!chooses_the_same(session, choices, i, bound, counts)) break;
    for (int s = 0; s < sequences; s++)
      check_distance("decode", got + s * vocab, want + (s * LENGTH + i) * vocab, vocab, bound);
    ++*steps;
  }
  nn_session_destroy(session);
  nn_model_destroy(model);
  nn_device_destroy(gpu);
  free(want);
  free(got);
  free(choices);
}

/* Steps that were compared, and that could be: a near tie ends few sequences early. */
static int64_t decoded, asked;

/* One sequence goes through kernels of its own. */
static void check_decode(nn_model_config_t config, int32_t dtype, double bound) {
  int64_t steps = 0;
  for (int64_t sequences = 1; sequences <= 2; sequences++)
    check_sequences(config, dtype, bound, sequences, &steps);
  if (dtype == NN_F32) assert_int_equal(steps, 2 * LENGTH);
  if (steps < 2 * LENGTH) print_message("%d of %d steps\n", (int)steps, 2 * LENGTH);
  decoded += steps, asked += 2 * LENGTH;
}

/* Two of several experts, which are not always the same. */
static nn_model_config_t choosing(nn_model_config_t config) {
  if (config.experts) config.top_k = 2;
  return config;
}

/* fp32: other kernels for one row than for many, other orders of sums. 16 bits: the same, and what
 * differs in the last bit is then rounded to 8 bits of mantissa (fp16: 11), about once in a few
 * hundred values. */
static void test_decode(void **state) {
  (void)state;
  const nn_model_config_t configs[] = {preset("tiny"), narrow_moe(), choosing(narrow_moe())};
  decoded = asked = 0;
  for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
    check_decode(configs[i], NN_F32, 1e-5);
    for (int h = 0; h < 2; h++) check_decode(configs[i], halves[h], 0.02 * rounding(halves[h]));
  }
  assert_true(decoded > asked / 2);
}

static void test_families_decode(void **state) {
  (void)state;
  decoded = asked = 0;
  for (int32_t i = 0; i < FIXTURE_FAMILIES; i++) {
    print_message("family %d\n", (int)i);
    check_decode(family(i), NN_F32, 1e-5);
    nn_model_config_t config = choosing(wide_family(i));
    for (int h = 0; h < 2 && chooses_alike(&config); h++)
      check_decode(config, halves[h], 0.02 * rounding(halves[h]));
  }
  assert_true(decoded > asked / 2);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_fp32),
      cmocka_unit_test(test_half),
      cmocka_unit_test(test_half_with_choice),
      cmocka_unit_test(test_decode),
      cmocka_unit_test(test_families_fp32),
      cmocka_unit_test(test_families_bf16),
      cmocka_unit_test(test_families_decode),
      cmocka_unit_test(test_training),
      cmocka_unit_test(test_tf32),
      cmocka_unit_test(test_overflow),
  };
  return cmocka_run_group_tests_name("cuda against cpu", tests, NULL, NULL);
}
