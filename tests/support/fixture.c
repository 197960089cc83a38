#define _XOPEN_SOURCE 700
#include "fixture.h"

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/random.h"
#include "gpu.h"
#include "processor.h"

enum { SKIPPED = 77 }; /* the exit code by which CTest knows */

void fixture_check(nn_status_t want, nn_status_t got, const char *call, const char *file,
                   int line) {
  if (got == want) return;
  print_error("%s\n  gives %s instead of %s: %s\n", call, nn_status_name(got), nn_status_name(want),
              nn_last_error());
  _fail(file, line);
}

void *fixture_memory(size_t bytes) {
  void *data = calloc(bytes ? bytes : 1, 1);
  assert_non_null(data);
  return data;
}

/* ---- devices ---- */

const int32_t fixture_path[FIXTURE_PATHS] = {NN_CPU_REFERENCE, NN_CPU_AVX2, NN_CPU_AVX512,
                                             NN_CPU_AVX512 | NN_CPU_AVX512_BF16};

const char *fixture_path_name(int32_t path) {
  if (path & NN_CPU_AVX512_BF16) return "avx512bf16";
  return path == NN_CPU_REFERENCE ? "reference" : path == NN_CPU_AVX2 ? "avx2" : "avx512";
}

nn_device_t *fixture_device_named(const char *name, int32_t threads, int32_t paths) {
  nn_device_options_t options = STRUCT(nn_device_options_t);
  options.threads = threads;
  options.cpu_paths = paths;
  nn_device_t *device;
  nn_status_t status = nn_device_create(name, &options, &device);
  if (gpu_absent(status)) {
    print_message("skipped: %s\n", nn_last_error());
    exit(SKIPPED);
  }
  CHECK(status);
  return device;
}

nn_device_t *fixture_device(int32_t threads, int32_t paths) {
  const char *name = getenv("MOENN_TEST_DEVICE");
  return fixture_device_named(name ? name : "cpu", threads, paths);
}

nn_device_t *fixture_device_of_path(int32_t threads, int32_t path) {
  nn_device_t *device = fixture_device(threads, path);
  nn_device_info_t info = STRUCT(nn_device_info_t);
  CHECK(nn_device_info(device, &info));
  if ((info.cpu_paths & path) == path) return device;
  int cpu = strcmp(info.name, "cpu") == 0;
  if (!cpu && path == NN_CPU_REFERENCE) return device; /* a GPU, once */
  if (cpu && processor_has(path)) fail_msg("the %s path is missing", fixture_path_name(path));
  print_message("no %s path here\n", fixture_path_name(path));
  nn_device_destroy(device);
  return NULL;
}

nn_memory_t fixture_device_memory(const nn_device_t *device) {
  nn_memory_t memory = STRUCT(nn_memory_t);
  CHECK(nn_device_memory(device, &memory));
  return memory;
}

/* ---- models ---- */

nn_model_config_t fixture_moe(void) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  config.vocab_size = 67;
  config.context = 24;
  config.layers = 2;
  config.hidden = 22;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 6;
  config.ffn = 19;
  config.experts = 5;
  config.top_k = 2;
  config.init_std = 0.2f;
  config.aux_loss_coef = 0.02f;
  config.z_loss_coef = 0.01f;
  return config;
}

nn_model_config_t fixture_gpt2(void) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  config.family = NN_FAMILY_GPT2;
  config.norm = NN_NORM_LAYER;
  config.position = NN_POSITION_LEARNED;
  config.ffn_kind = NN_FFN_GELU_TANH;
  config.vocab_size = 67;
  config.context = 24;
  config.layers = 2;
  config.hidden = 21;
  config.heads = 3;
  config.ffn = 35;
  config.biases = NN_BIAS_ALL;
  config.tied_head = 1;
  config.init_std = 0.2f;
  return config;
}

/* Members that the first mixture has and a dense model has not. */
static nn_model_config_t fixture_dense(int32_t family) {
  nn_model_config_t config = fixture_moe();
  config.family = family;
  config.experts = config.top_k = 0;
  config.aux_loss_coef = config.z_loss_coef = 0;
  return config;
}

static nn_model_config_t fixture_mixture(int32_t family) {
  nn_model_config_t config = fixture_moe();
  config.family = family;
  config.aux_loss = NN_AUX_JOINT;
  return config;
}

/* Sigmoid scores, groups, a bias for the choice, half of a head rotated, a dense layer first. */
static nn_model_config_t fixture_glm4_moe(void) {
  nn_model_config_t config = fixture_mixture(NN_FAMILY_GLM4_MOE);
  config.aux_loss_coef = config.z_loss_coef = 0;
  config.aux_loss = NN_AUX_SWITCH;
  config.head_dim = 8, config.rotary_dim = 4, config.qk_norm = NN_QK_NORM_HEAD;
  config.layers = 3, config.dense_ffn = 23, config.dense_layers[0] = 1, config.shared_ffn = 38;
  config.experts = 6, config.router_groups = 3, config.router_top_groups = 2;
  config.router_group_score = NN_GROUP_TOP2, config.router_score = NN_SCORE_SIGMOID;
  config.router_choice_bias = 1, config.router_scale = 1.5f;
  config.biases = NN_BIAS_QKV;
  return config;
}

/* Attention through latents, values narrower than keys; queries at once, or through a latent
 * too. */
static nn_model_config_t fixture_deepseek(int32_t family) {
  nn_model_config_t config = fixture_mixture(family);
  config.aux_loss_coef = config.z_loss_coef = 0;
  config.aux_loss = NN_AUX_SWITCH;
  config.kv_heads = config.heads, config.head_dim = 10, config.rope_head_dim = 4;
  config.value_head_dim = 7, config.kv_rank = 9, config.rope_interleaved = 1;
  config.layers = 3, config.dense_ffn = 23, config.dense_layers[0] = 1, config.shared_ffn = 19;
  config.router_norm = NN_ROUTER_NORM_NONE, config.router_scale = 1.5f;
  config.rope_scaling = NN_ROPE_YARN, config.rope_factor = 4, config.rope_original_context = 8;
  config.rope_mscale = config.rope_mscale_all_dim = 0.7f;
  if (family == NN_FAMILY_DEEPSEEK_V2) return config;
  config.q_rank = 11, config.router_norm = NN_ROUTER_NORM_SUM;
  config.router_score = NN_SCORE_SIGMOID, config.router_choice_bias = 1;
  config.router_group_score = NN_GROUP_TOP2;
  return config;
}

/* Sinks, a window in every second layer, biases everywhere, clamped activations. */
static nn_model_config_t fixture_gpt_oss(void) {
  nn_model_config_t config = fixture_mixture(NN_FAMILY_GPT_OSS);
  config.ffn_kind = NN_FFN_SWIGLU_CLAMPED, config.swiglu_limit = 0.8f;
  config.attention_sinks = 1, config.window = 4, config.window_layers[0] = 1;
  config.biases = NN_BIAS_ALL | NN_BIAS_ROUTER;
  config.rope_scaling = NN_ROPE_YARN, config.rope_factor = 4, config.rope_original_context = 8;
  config.rope_no_truncate = 1;
  return config;
}

void fixture_long_rope(nn_model_config_t *config) {
  memset(config->rope_short_factors, 0, sizeof config->rope_short_factors);
  memset(config->rope_long_factors, 0, sizeof config->rope_long_factors);
  config->rope_scaling = NN_ROPE_LONG;
  for (int64_t i = 0; i < config->head_dim / 2; i++) {
    config->rope_short_factors[i] = 1 + (float)i / 4;
    config->rope_long_factors[i] = 1.5f + (float)i;
  }
}

/* The sparse mixer, layer norms, biases of attention and of the head, LongRoPE. */
static nn_model_config_t fixture_phimoe(void) {
  nn_model_config_t config = fixture_mixture(NN_FAMILY_PHIMOE);
  config.norm = NN_NORM_LAYER, config.biases = NN_BIAS_QKV | NN_BIAS_O | NN_BIAS_HEAD;
  config.router_score = NN_SCORE_SPARSE_MIXER, config.router_norm = NN_ROUTER_NORM_NONE;
  config.router_eps = 0.1f, config.window = 9;
  config.rope_original_context = 16;
  config.rope_short_mscale = 1.2f, config.rope_long_mscale = 1.3f;
  fixture_long_rope(&config);
  return config;
}

nn_model_config_t fixture_family(int32_t index) {
  nn_model_config_t config;
  switch (index) {
    case 0: /* llama */
      config = fixture_dense(NN_FAMILY_LLAMA);
      config.biases = NN_BIAS_ALL, config.rope_scaling = NN_ROPE_LLAMA3, config.rope_factor = 4;
      config.rope_original_context = 8;
      return config;
    case 1:
      config = fixture_dense(NN_FAMILY_MISTRAL);
      config.window = 4, config.rope_scaling = NN_ROPE_LINEAR, config.rope_factor = 2;
      return config;
    case 2:
      config = fixture_dense(NN_FAMILY_QWEN2);
      config.biases = NN_BIAS_QKV, config.window = 3, config.window_layers[0] = 2;
      config.tied_head = 1;
      return config;
    case 3:
      config = fixture_dense(NN_FAMILY_QWEN3);
      config.qk_norm = NN_QK_NORM_HEAD, config.rope_scaling = NN_ROPE_YARN, config.rope_factor = 4;
      config.rope_original_context = 8;
      return config;
    case 4:
      config = fixture_mixture(NN_FAMILY_OLMOE);
      config.qk_norm = NN_QK_NORM_FULL, config.qkv_clip = 0.7f;
      config.router_norm = NN_ROUTER_NORM_NONE;
      return config;
    case 5:
      config = fixture_mixture(NN_FAMILY_QWEN2_MOE);
      config.biases = NN_BIAS_QKV, config.shared_ffn = 25, config.shared_gate = 1;
      config.router_norm = NN_ROUTER_NORM_NONE;
      config.layers = 3, config.dense_ffn = 30, config.dense_layers[0] = 2;
      return config;
    case 6:
      config = fixture_mixture(NN_FAMILY_QWEN3_MOE);
      config.qk_norm = NN_QK_NORM_HEAD, config.window = 5;
      return config;
    case 7:
      config = fixture_mixture(NN_FAMILY_GRANITEMOE);
      config.embedding_scale = 3, config.residual_scale = 0.4f, config.attention_scale = 0.3f;
      config.logit_scale = 0.5f, config.biases = NN_BIAS_QKV | NN_BIAS_O;
      return config;
    case 8: return fixture_glm4_moe();
    case 9: return fixture_deepseek(NN_FAMILY_DEEPSEEK_V2);
    case 10: return fixture_deepseek(NN_FAMILY_DEEPSEEK_V3);
    case 11: return fixture_gpt_oss();
    case 12: return fixture_phimoe();
    default:
      config = fixture_mixture(NN_FAMILY_MIXTRAL);
      config.window = 7, config.rope_scaling = NN_ROPE_DYNAMIC, config.rope_factor = 2;
      return config;
  }
}

nn_model_t *fixture_model(nn_device_t *device, const nn_model_config_t *config, uint64_t seed) {
  nn_model_t *model;
  CHECK(nn_model_create(device, config, NN_F32, seed, &model));
  return model;
}

void fixture_prepare(nn_model_t *model, int64_t batch, int64_t seq_len, int32_t recompute) {
  nn_train_options_t options = STRUCT(nn_train_options_t);
  options.batch = batch;
  options.seq_len = seq_len;
  options.recompute = recompute;
  CHECK(nn_model_prepare(model, &options));
}

void fixture_tokens(int32_t *ids, int64_t count, int64_t vocab, uint64_t seed) {
  for (int64_t i = 0; i < count; i++)
    ids[i] = (int32_t)(random_u64(seed, 1, (uint64_t)i) % (uint64_t)vocab);
}

void fixture_targets(int32_t *ids, int64_t count, int64_t vocab, uint64_t seed) {
  fixture_tokens(ids, count, vocab, seed);
  for (int64_t i = 0; i < count; i++)
    if (random_u64(seed, 2, (uint64_t)i) % 6 == 0) ids[i] = -1;
}

typedef nn_status_t (*fixture_lookup)(const void *owner, const char *name, nn_tensor_t **tensor);

static nn_status_t lookup_parameter(const void *owner, const char *name, nn_tensor_t **tensor) {
  return nn_model_parameter(owner, name, tensor);
}

static nn_status_t lookup_gradient(const void *owner, const char *name, nn_tensor_t **tensor) {
  return nn_model_gradient(owner, name, tensor);
}

static nn_status_t lookup_first(const void *owner, const char *name, nn_tensor_t **tensor) {
  return nn_optim_moment(owner, name, NN_MOMENT_FIRST, tensor);
}

static nn_status_t lookup_second(const void *owner, const char *name, nn_tensor_t **tensor) {
  return nn_optim_moment(owner, name, NN_MOMENT_SECOND, tensor);
}

/* Appends every tensor to *values, which holds *count already. */
static void fixture_collect(const nn_model_t *model, const void *owner, fixture_lookup lookup,
                            float **values, int64_t *count) {
  for (int64_t i = 0; i < nn_model_parameter_count(model); i++) {
    nn_tensor_t *tensor;
    CHECK(lookup(owner, nn_model_parameter_name(model, i), &tensor));
    nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
    CHECK(nn_tensor_info(tensor, &info));
    assert_int_equal(info.dtype, NN_F32);
    *values = realloc(*values, (size_t)(*count + info.elements) * sizeof **values);
    assert_non_null(*values);
    CHECK(nn_tensor_copy_out(tensor, *values + *count, (size_t)info.elements * sizeof **values));
    *count += info.elements;
    nn_tensor_destroy(tensor);
  }
}

float *fixture_parameters(const nn_model_t *model, int64_t *count) {
  float *values = NULL;
  *count = 0;
  fixture_collect(model, model, lookup_parameter, &values, count);
  return values;
}

float *fixture_gradients(const nn_model_t *model, int64_t *count) {
  float *values = NULL;
  *count = 0;
  fixture_collect(model, model, lookup_gradient, &values, count);
  return values;
}

float *fixture_moments(const nn_model_t *model, const nn_optim_t *optim, int64_t *count) {
  float *values = NULL;
  *count = 0;
  fixture_collect(model, optim, lookup_first, &values, count);
  fixture_collect(model, optim, lookup_second, &values, count);
  return values;
}

void fixture_set_parameters(nn_model_t *model, const float *values) {
  for (int64_t i = 0; i < nn_model_parameter_count(model); i++) {
    nn_tensor_t *tensor;
    CHECK(nn_model_parameter(model, nn_model_parameter_name(model, i), &tensor));
    nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
    CHECK(nn_tensor_info(tensor, &info));
    CHECK(nn_tensor_copy_in(tensor, values, (size_t)info.elements * sizeof *values));
    values += info.elements;
    nn_tensor_destroy(tensor);
  }
}

void fixture_fill(nn_model_t *model, const char *name, float value) {
  nn_tensor_t *tensor;
  CHECK(nn_model_parameter(model, name, &tensor));
  nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
  CHECK(nn_tensor_info(tensor, &info));
  float *values = fixture_memory((size_t)info.elements * sizeof *values);
  for (int64_t i = 0; i < info.elements; i++) values[i] = value;
  CHECK(nn_tensor_copy_in(tensor, values, (size_t)info.elements * sizeof *values));
  free(values);
  nn_tensor_destroy(tensor);
}

/* ---- comparison ---- */

void fixture_same(const char *what, const float *a, const float *b, int64_t count) {
  if (memcmp(a, b, (size_t)count * sizeof *a) == 0) return;
  int64_t first = 0, differing = 0;
  for (int64_t i = count - 1; i >= 0; i--)
    if (memcmp(&a[i], &b[i], sizeof *a) != 0) {
      first = i;
      differing++;
    }
  fail_msg("%s: %lld of %lld differ, first [%lld]: %.9g and %.9g", what, (long long)differing,
           (long long)count, (long long)first, (double)a[first], (double)b[first]);
}

double fixture_largest(const float *values, int64_t count) {
  double largest = 0;
  for (int64_t i = 0; i < count; i++) largest = fmax(largest, fabs((double)values[i]));
  return largest;
}

void fixture_near(const char *what, const float *got, const float *want, int64_t count,
                  double tolerance) {
  int64_t worst = -1;
  double error = tolerance;
  for (int64_t i = 0; i < count; i++) {
    double difference = fabs((double)got[i] - (double)want[i]);
    /* written so that NaN is the worst of all */
    if (!(difference <= error)) {
      worst = i;
      error = difference;
      if (isnan(difference)) break;
    }
  }
  if (worst < 0) return;
  fail_msg("%s[%lld of %lld]: %.9g instead of %.9g, an error of %.3g where %.3g is allowed", what,
           (long long)worst, (long long)count, (double)got[worst], (double)want[worst], error,
           tolerance);
}

double fixture_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- files ---- */

char *fixture_folder(void) {
  const char *parent = getenv("TMPDIR");
  char *folder = fixture_memory(512);
  snprintf(folder, 512, "%s/moenn-test-XXXXXX", parent ? parent : "/tmp");
  assert_non_null(mkdtemp(folder));
  return folder;
}

static int fixture_remove_entry(const char *path, const struct stat *status, int type,
                                struct FTW *place) {
  (void)status, (void)type, (void)place;
  return remove(path);
}

void fixture_folder_remove(char *folder) {
  assert_int_equal(nftw(folder, fixture_remove_entry, 16, FTW_DEPTH | FTW_PHYS), 0);
  free(folder);
}
