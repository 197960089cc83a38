#include "model/config.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "base/mem.h"
#include "base/status.h"
#include "model/family.h"
#include "model/params.h"
#include "model/rope.h"

/* ---- presets --------------------------------------------------------------------------------- */

static nn_model_config_t preset_gpt2(int64_t layers, int64_t hidden, int64_t heads) {
  return (nn_model_config_t){.family = NN_FAMILY_GPT2,
                             .norm = NN_NORM_LAYER,
                             .position = NN_POSITION_LEARNED,
                             .ffn_kind = NN_FFN_GELU_TANH,
                             .vocab_size = 50257,
                             .context = 1024,
                             .layers = layers,
                             .hidden = hidden,
                             .heads = heads,
                             .ffn = 4 * hidden,
                             .biases = NN_BIAS_ALL,
                             .tied_head = 1};
}

/* Without a vocabulary where there is no such preset. Members left out: config_validate() fills
 * them. */
static nn_model_config_t preset_of(const char *name) {
  if (!strcmp(name, "tiny"))
    return (nn_model_config_t){.vocab_size = 1000,
                               .context = 512,
                               .layers = 2,
                               .hidden = 64,
                               .heads = 4,
                               .kv_heads = 1,
                               .head_dim = 16,
                               .ffn = 256,
                               .experts = 4,
                               .top_k = 2,
                               .aux_loss_coef = 0.01f};
  if (!strcmp(name, "small"))
    return (nn_model_config_t){.vocab_size = NN_BYTE_VOCAB,
                               .context = 256,
                               .layers = 4,
                               .hidden = 192,
                               .heads = 6,
                               .kv_heads = 2,
                               .head_dim = 32,
                               .ffn = 384,
                               .experts = 8,
                               .top_k = 2,
                               .aux_loss_coef = 0.01f,
                               .z_loss_coef = 0.001f};
  if (!strcmp(name, "moe-6.9b"))
    return (nn_model_config_t){.vocab_size = 32000,
                               .context = 32768,
                               .layers = 30,
                               .hidden = 768,
                               .heads = 12,
                               .kv_heads = 1,
                               .head_dim = 64,
                               .ffn = 6144,
                               .experts = 16,
                               .top_k = 4,
                               .rope_ntk_alpha = 8,
                               .aux_loss_coef = 0.01f};
  if (!strcmp(name, "gpt2-124m")) return preset_gpt2(12, 768, 12);
  if (!strcmp(name, "gpt2-350m")) return preset_gpt2(24, 1024, 16);
  if (!strcmp(name, "gpt2-774m")) return preset_gpt2(36, 1280, 20);
  if (!strcmp(name, "gpt2-1558m")) return preset_gpt2(48, 1600, 25);
  return (nn_model_config_t){0};
}

nn_status_t config_preset(const char *name, nn_model_config_t *config) {
  nn_model_config_t preset = preset_of(name);
  if (!preset.vocab_size)
    return status_fail(NN_ERR_NOT_FOUND,
                       "no preset is called \"%.64s\"; there are tiny, small, moe-6.9b, gpt2-124m, "
                       "gpt2-350m, gpt2-774m, gpt2-1558m",
                       name);
  preset.struct_size = sizeof preset;
  STATUS_TRY(config_validate(&preset));
  *config = preset;
  return NN_OK;
}

/* ---- bounds of single members ---------------------------------------------------------------- */

typedef struct int_bound {
  const char *name;
  size_t offset;
  int64_t min, max;
} int_bound_t;

#define BOUND(member, min, max) \
  { #member, offsetof(nn_model_config_t, member), min, max }

/* Ids and positions are int32_t, which bounds what they index; the widths are bounded alike, so
 * that a product of two sizes always fits 64 bits. */
static const int_bound_t flag_bounds[] = {
    BOUND(family, NN_FAMILY_MIXTRAL, NN_FAMILY_PHIMOE),
    BOUND(norm, NN_NORM_RMS, NN_NORM_LAYER),
    BOUND(position, NN_POSITION_ROPE, NN_POSITION_LEARNED),
    BOUND(ffn_kind, NN_FFN_SWIGLU, NN_FFN_SWIGLU_CLAMPED),
    BOUND(biases, 0, NN_BIAS_ALL | NN_BIAS_ROUTER | NN_BIAS_HEAD),
    BOUND(tied_head, 0, 1),
    BOUND(aux_loss, NN_AUX_SWITCH, NN_AUX_JOINT),
    BOUND(qk_norm, NN_QK_NORM_NONE, NN_QK_NORM_FULL),
    BOUND(shared_gate, 0, 1),
    BOUND(router_score, NN_SCORE_SOFTMAX, NN_SCORE_SPARSE_MIXER),
    BOUND(router_norm, NN_ROUTER_NORM_SUM, NN_ROUTER_NORM_NONE),
    BOUND(router_choice_bias, 0, 1),
    BOUND(router_group_score, NN_GROUP_MAX, NN_GROUP_TOP2),
    BOUND(attention_sinks, 0, 1),
    BOUND(rope_interleaved, 0, 1),
    BOUND(rope_scaling, NN_ROPE_NONE, NN_ROPE_LONG),
    BOUND(rope_no_truncate, 0, 1),
};

static const int_bound_t size_bounds[] = {
    BOUND(vocab_size, 1, INT32_MAX), BOUND(context, 1, INT32_MAX),
    BOUND(layers, 1, 1 << 16),       BOUND(hidden, 1, INT32_MAX),
    BOUND(heads, 1, INT32_MAX),      BOUND(kv_heads, 1, INT32_MAX),
    BOUND(head_dim, 1, 256),         BOUND(ffn, 1, INT32_MAX),
    BOUND(experts, 0, 1024),         BOUND(top_k, 0, 64),
    BOUND(dense_ffn, 0, INT32_MAX),  BOUND(window, 0, INT32_MAX),
    BOUND(shared_ffn, 0, INT32_MAX), BOUND(router_groups, 0, 1024),
    BOUND(router_top_groups, 0, 1024), BOUND(rotary_dim, 0, 256),
    BOUND(rope_original_context, 0, INT32_MAX),
    BOUND(q_rank, 0, INT32_MAX),     BOUND(kv_rank, 0, INT32_MAX),
    BOUND(rope_head_dim, 0, 256),    BOUND(value_head_dim, 0, 256),
};

/* A capacity factor above the number of experts drops nothing. */
static const struct {
  const char *name;
  size_t offset;
  double min, max;
} float_bounds[] = {
    BOUND(norm_eps, FLT_MIN, 1),     BOUND(rope_theta, 0, 1e12),   BOUND(rope_ntk_alpha, 1, 65536),
    BOUND(init_std, FLT_MIN, 1e3),   BOUND(aux_loss_coef, 0, 1e6), BOUND(z_loss_coef, 0, 1e6),
    BOUND(capacity_factor, 0, 1024),
    BOUND(qkv_clip, 0, FLT_MAX),     BOUND(router_scale, 0, 1e6),
    BOUND(router_eps, 0, 1),
    BOUND(embedding_scale, 0, 1e6),  BOUND(residual_scale, 0, 1e6),
    BOUND(attention_scale, 0, 1e6),  BOUND(logit_scale, 0, 1e6),
    BOUND(rope_factor, 0, 65536),    BOUND(rope_beta_fast, 0, 1e6), BOUND(rope_beta_slow, 0, 1e6),
    BOUND(rope_low_freq, 0, 1e6),    BOUND(rope_high_freq, 0, 1e6),
    BOUND(rope_attention_factor, 0, 1e6), BOUND(rope_mscale, 0, 1e6),
    BOUND(rope_mscale_all_dim, 0, 1e6), BOUND(swiglu_limit, 0, 1e6),
    BOUND(rope_short_mscale, 0, 1e6), BOUND(rope_long_mscale, 0, 1e6),
};

/* The members that are lists; config_check_rope_factors() bounds them. */
static const struct {
  const char *name;
  size_t offset;
} list_members[] = {
    {"rope_short_factors", offsetof(nn_model_config_t, rope_short_factors)},
    {"rope_long_factors", offsetof(nn_model_config_t, rope_long_factors)},
};

size_t config_member(const char *name, size_t length) {
#define FIND(table)                                                                              \
  for (size_t i = 0; i < sizeof table / sizeof *table; i++)                                      \
    if (!strncmp(table[i].name, name, length) && !table[i].name[length]) return table[i].offset
  FIND(flag_bounds);
  FIND(size_bounds);
  FIND(float_bounds);
  FIND(list_members);
  return 0;
}

static nn_status_t config_check_int(const int_bound_t *bound, int64_t value) {
  if (value >= bound->min && value <= bound->max) return NN_OK;
  return status_fail(NN_ERR_ARGUMENT, "%s is %lld; it must be from %lld to %lld", bound->name,
                     (long long)value, (long long)bound->min, (long long)bound->max);
}

static nn_status_t config_check_bounds(const nn_model_config_t *config) {
  const char *base = (const char *)config;
  for (size_t i = 0; i < sizeof flag_bounds / sizeof *flag_bounds; i++) {
    int32_t value;
    memcpy(&value, base + flag_bounds[i].offset, sizeof value);
    STATUS_TRY(config_check_int(&flag_bounds[i], value));
  }
  for (size_t i = 0; i < sizeof size_bounds / sizeof *size_bounds; i++) {
    int64_t value;
    memcpy(&value, base + size_bounds[i].offset, sizeof value);
    STATUS_TRY(config_check_int(&size_bounds[i], value));
  }
  for (size_t i = 0; i < sizeof float_bounds / sizeof *float_bounds; i++) {
    float value;
    memcpy(&value, base + float_bounds[i].offset, sizeof value);
    /* written so that NaN fails */
    if (!(value >= float_bounds[i].min && value <= float_bounds[i].max))
      return status_fail(NN_ERR_ARGUMENT, "%s is %g; it must be from %g to %g",
                         float_bounds[i].name, (double)value, float_bounds[i].min,
                         float_bounds[i].max);
  }
  return NN_OK;
}

static void config_fill_defaults(nn_model_config_t *config) {
  if (!config->kv_heads) config->kv_heads = config->heads;
  if (!config->head_dim && config->heads > 0 && config->hidden % config->heads == 0)
    config->head_dim = config->hidden / config->heads;
  if (config->norm_eps == 0) config->norm_eps = 1e-5f;
  if (config->rope_theta == 0 && config->position == NN_POSITION_ROPE) config->rope_theta = 10000;
  if (config->rope_ntk_alpha == 0) config->rope_ntk_alpha = 1;
  if (config->init_std == 0) config->init_std = 0.02f;
}

/* ---- layers ---------------------------------------------------------------------------------- */

static bool layers_have(const uint64_t words[4], int64_t layer) {
  return layer < CONFIG_PATTERN_LAYERS && (words[layer / 64] >> (layer % 64) & 1);
}

static bool layers_any(const uint64_t words[4]) {
  return words[0] || words[1] || words[2] || words[3];
}

bool config_layer_is_dense(const nn_model_config_t *config, int64_t layer) {
  return !config->experts || layers_have(config->dense_layers, layer);
}

int64_t config_dense_ffn(const nn_model_config_t *config) {
  return config->experts && config->dense_ffn ? config->dense_ffn : config->ffn;
}

int64_t config_value_dim(const nn_model_config_t *config) {
  return config->value_head_dim ? config->value_head_dim : config->head_dim;
}

int64_t config_original_context(const nn_model_config_t *config) {
  return config->rope_original_context ? config->rope_original_context : config->context;
}

int64_t config_layer_window(const nn_model_config_t *config, int64_t layer) {
  bool all = !layers_any(config->window_layers);
  return all || layers_have(config->window_layers, layer) ? config->window : 0;
}

int64_t config_sparse_layers(const nn_model_config_t *config) {
  int64_t sparse = config->experts ? config->layers : 0;
  for (int64_t layer = 0; sparse && layer < CONFIG_PATTERN_LAYERS; layer++)
    sparse -= layers_have(config->dense_layers, layer);
  return sparse;
}

/* ---- members that depend on each other ------------------------------------------------------- */

/* A pattern names layers that are there, and a model that has one has few enough. */
static nn_status_t config_check_pattern(const nn_model_config_t *config, const char *name,
                                        const uint64_t words[4]) {
  if (!layers_any(words)) return NN_OK;
  if (config->layers > CONFIG_PATTERN_LAYERS)
    return status_fail(NN_ERR_ARGUMENT, "layers is %lld; with %s it must be at most %d",
                       (long long)config->layers, name, CONFIG_PATTERN_LAYERS);
  for (int64_t layer = config->layers; layer < CONFIG_PATTERN_LAYERS; layer++)
    if (layers_have(words, layer))
      return status_fail(NN_ERR_ARGUMENT, "%s has layer %lld; there are %lld layers", name,
                         (long long)layer, (long long)config->layers);
  return NN_OK;
}

static nn_status_t config_check_layers(const nn_model_config_t *config) {
  STATUS_TRY(config_check_pattern(config, "dense_layers", config->dense_layers));
  STATUS_TRY(config_check_pattern(config, "window_layers", config->window_layers));
  if (layers_any(config->dense_layers) && !config_sparse_layers(config))
    return status_fail(NN_ERR_ARGUMENT,
                       "dense_layers has every layer; a model without experts has experts 0");
  if (!config->window && layers_any(config->window_layers))
    return status_fail(NN_ERR_ARGUMENT, "window_layers is set; without a window it must be 0");
  return NN_OK;
}

/* LongRoPE has one factor for each frequency; behind them, and with every other scaling, is 0. */
static nn_status_t config_check_rope_factors(const nn_model_config_t *config, const char *name,
                                             const float *factors) {
  const int64_t needed = config->rope_scaling == NN_ROPE_LONG ? rope_dim(config) / 2 : 0;
  for (int64_t i = 0; i < CONFIG_ROPE_FACTORS; i++) {
    if (i >= needed && factors[i] != 0)
      return status_fail(NN_ERR_ARGUMENT,
                         "%s[%lld] is %g; with rope_scaling %d and %lld rotated elements there are "
                         "%lld factors",
                         name, (long long)i, (double)factors[i], config->rope_scaling,
                         (long long)rope_dim(config), (long long)needed);
    /* written so that NaN fails */
    if (i < needed && !(factors[i] >= 1e-6f && factors[i] <= 1e6f))
      return status_fail(NN_ERR_ARGUMENT,
                         "%s[%lld] is %g; each of %lld factors must be from 1e-6 to 1e6", name,
                         (long long)i, (double)factors[i], (long long)needed);
  }
  return NN_OK;
}

/* What belongs to a scaling of RoPE is 0 with every other. */
static nn_status_t config_check_rope_scaling(const nn_model_config_t *config) {
  const int32_t scaling = config->rope_scaling;
  const struct {
    const char *name;
    double value;
    int32_t scalings; /* bit of each that has it */
  } members[] = {
      {"rope_factor", (double)config->rope_factor, ~(1 << NN_ROPE_NONE)},
      {"rope_original_context", (double)config->rope_original_context,
       1 << NN_ROPE_YARN | 1 << NN_ROPE_LLAMA3 | 1 << NN_ROPE_LONG},
      {"rope_beta_fast", (double)config->rope_beta_fast, 1 << NN_ROPE_YARN},
      {"rope_beta_slow", (double)config->rope_beta_slow, 1 << NN_ROPE_YARN},
      {"rope_low_freq", (double)config->rope_low_freq, 1 << NN_ROPE_LLAMA3},
      {"rope_high_freq", (double)config->rope_high_freq, 1 << NN_ROPE_LLAMA3},
      {"rope_attention_factor", (double)config->rope_attention_factor,
       1 << NN_ROPE_YARN | 1 << NN_ROPE_LONG},
      {"rope_mscale", (double)config->rope_mscale, 1 << NN_ROPE_YARN},
      {"rope_mscale_all_dim", (double)config->rope_mscale_all_dim, 1 << NN_ROPE_YARN},
      {"rope_no_truncate", config->rope_no_truncate, 1 << NN_ROPE_YARN},
      {"rope_short_mscale", (double)config->rope_short_mscale, 1 << NN_ROPE_LONG},
      {"rope_long_mscale", (double)config->rope_long_mscale, 1 << NN_ROPE_LONG},
  };
  for (size_t i = 0; i < sizeof members / sizeof *members; i++)
    if (members[i].value != 0 && !(members[i].scalings >> scaling & 1))
      return status_fail(NN_ERR_ARGUMENT, "%s is %g; with rope_scaling %d it must be 0",
                         members[i].name, members[i].value, scaling);
  if (config->rope_factor != 0 && config->rope_factor < 1)
    return status_fail(NN_ERR_ARGUMENT, "rope_factor is %g; it must be at least 1",
                       (double)config->rope_factor);
  if (scaling && config->rope_ntk_alpha != 1)
    return status_fail(NN_ERR_ARGUMENT, "rope_ntk_alpha is %g; with rope_scaling it must be 1",
                       (double)config->rope_ntk_alpha);
  float low = config->rope_low_freq != 0 ? config->rope_low_freq : 1;
  float high = config->rope_high_freq != 0 ? config->rope_high_freq : 4;
  if (scaling == NN_ROPE_LLAMA3 && !(low < high))
    return status_fail(NN_ERR_ARGUMENT,
                       "rope_low_freq is %g; it must be below rope_high_freq, which is %g",
                       (double)low, (double)high);
  STATUS_TRY(config_check_rope_factors(config, "rope_short_factors", config->rope_short_factors));
  STATUS_TRY(config_check_rope_factors(config, "rope_long_factors", config->rope_long_factors));
  int64_t original = config_original_context(config);
  if (scaling == NN_ROPE_LONG && original < 2) /* the attention factor divides by its logarithm */
    return status_fail(NN_ERR_ARGUMENT,
                       "rope_original_context (0: context) is %lld; with rope_scaling %d it must "
                       "be at least 2",
                       (long long)original, scaling);
  return NN_OK;
}

/* Latent attention: which sizes it needs, and that they fit each other. */
static nn_status_t config_check_latent(const nn_model_config_t *config) {
  if (!config->kv_rank) {
    if (config->q_rank || config->rope_head_dim || config->value_head_dim)
      return status_fail(NN_ERR_ARGUMENT, "q_rank is %lld, rope_head_dim %lld and value_head_dim "
                         "%lld; without kv_rank they must be 0", (long long)config->q_rank,
                         (long long)config->rope_head_dim, (long long)config->value_head_dim);
    return NN_OK;
  }
  if (config->rope_head_dim < 2 || config->rope_head_dim % 2 ||
      config->rope_head_dim > config->head_dim)
    return status_fail(NN_ERR_ARGUMENT,
                       "rope_head_dim is %lld; with kv_rank it must be even, at least 2 and at "
                       "most head_dim, which is %lld",
                       (long long)config->rope_head_dim, (long long)config->head_dim);
  if (config->value_head_dim > config->head_dim)
    return status_fail(NN_ERR_ARGUMENT,
                       "value_head_dim is %lld; it must be at most head_dim, which is %lld",
                       (long long)config->value_head_dim, (long long)config->head_dim);
  if (config->kv_heads != config->heads)
    return status_fail(NN_ERR_ARGUMENT, "kv_heads is %lld; with kv_rank it must be heads, %lld",
                       (long long)config->kv_heads, (long long)config->heads);
  return NN_OK;
}

static nn_status_t config_check_attention(const nn_model_config_t *config) {
  if (config->heads % config->kv_heads)
    return status_fail(NN_ERR_ARGUMENT, "kv_heads is %lld; it must divide heads, which is %lld",
                       (long long)config->kv_heads, (long long)config->heads);
  if (config->position == NN_POSITION_LEARNED) {
    if (config->rope_theta != 0 || config->rope_ntk_alpha != 1)
      return status_fail(
          NN_ERR_ARGUMENT,
          "rope_theta is %g and rope_ntk_alpha %g; with learned positions both must be 0",
          (double)config->rope_theta, (double)config->rope_ntk_alpha);
    if (config->rotary_dim || config->rope_scaling || config->rope_interleaved || config->kv_rank)
      return status_fail(NN_ERR_ARGUMENT,
                         "rotary_dim is %lld, rope_scaling %d, rope_interleaved %d and kv_rank "
                         "%lld; with learned positions they must be 0",
                         (long long)config->rotary_dim, config->rope_scaling,
                         config->rope_interleaved, (long long)config->kv_rank);
    return NN_OK;
  }
  if (config->rope_theta < 1)
    return status_fail(NN_ERR_ARGUMENT, "rope_theta is %g; it must be at least 1",
                       (double)config->rope_theta);
  if (config->head_dim % 2)
    return status_fail(NN_ERR_ARGUMENT, "head_dim is %lld; RoPE needs an even one",
                       (long long)config->head_dim);
  /* the exponent of alpha, d / (d - 2), has no value at 2 */
  if (config->rope_ntk_alpha > 1 && config->head_dim == 2)
    return status_fail(NN_ERR_ARGUMENT, "rope_ntk_alpha is %g; with head_dim 2 it must be 1",
                       (double)config->rope_ntk_alpha);
  if ((double)config->context * (double)config->rope_ntk_alpha > INT32_MAX)
    return status_fail(NN_ERR_ARGUMENT,
                       "rope_ntk_alpha is %g; times context, which is %lld, it must not exceed %d",
                       (double)config->rope_ntk_alpha, (long long)config->context, INT32_MAX);
  if (config->rotary_dim % 2 || config->rotary_dim > config->head_dim)
    return status_fail(NN_ERR_ARGUMENT,
                       "rotary_dim is %lld; it must be even and at most head_dim, which is %lld",
                       (long long)config->rotary_dim, (long long)config->head_dim);
  STATUS_TRY(config_check_latent(config));
  return config_check_rope_scaling(config);
}

/* The choice among experts: members of the router that depend on each other. */
static nn_status_t config_check_router(const nn_model_config_t *config) {
  int64_t groups = config->router_groups;
  if (!groups && config->router_top_groups)
    return status_fail(NN_ERR_ARGUMENT,
                       "router_top_groups is %lld; without router_groups it must be 0",
                       (long long)config->router_top_groups);
  if (groups && config->experts % groups)
    return status_fail(NN_ERR_ARGUMENT,
                       "router_groups is %lld; it must divide experts, which is %lld",
                       (long long)groups, (long long)config->experts);
  if (groups && (config->router_top_groups < 1 || config->router_top_groups > groups))
    return status_fail(NN_ERR_ARGUMENT,
                       "router_top_groups is %lld; it must be from 1 to router_groups, %lld",
                       (long long)config->router_top_groups, (long long)groups);
  if (groups && config->router_top_groups * (config->experts / groups) < config->top_k)
    return status_fail(NN_ERR_ARGUMENT,
                       "top_k is %lld; router_top_groups leaves %lld experts to choose from",
                       (long long)config->top_k,
                       (long long)(config->router_top_groups * (config->experts / groups)));
  if (config->router_score == NN_SCORE_SPARSE_MIXER && config->top_k != 2)
    return status_fail(NN_ERR_ARGUMENT, "top_k is %lld; the sparse mixer chooses 2",
                       (long long)config->top_k);
  if (config->shared_gate && !config->shared_ffn)
    return status_fail(NN_ERR_ARGUMENT, "shared_gate is 1; without shared_ffn it must be 0");
  return NN_OK;
}

static nn_status_t config_check_experts(const nn_model_config_t *config) {
  if (config->experts) {
    if (config->top_k < 1 || config->top_k > config->experts)
      return status_fail(NN_ERR_ARGUMENT,
                         "top_k is %lld; it must be from 1 to experts, which is %lld",
                         (long long)config->top_k, (long long)config->experts);
    return config_check_router(config);
  }
  if (config->top_k)
    return status_fail(NN_ERR_ARGUMENT, "top_k is %lld; without experts it must be 0",
                       (long long)config->top_k);
  if (config->aux_loss)
    return status_fail(NN_ERR_ARGUMENT, "aux_loss is %d; without experts it must be 0",
                       config->aux_loss);
  const struct {
    const char *name;
    float value;
  } routed[] = {{"aux_loss_coef", config->aux_loss_coef},
                {"z_loss_coef", config->z_loss_coef},
                {"capacity_factor", config->capacity_factor},
                {"dense_ffn", (float)config->dense_ffn},
                {"dense_layers", layers_any(config->dense_layers)},
                {"shared_ffn", (float)config->shared_ffn},
                {"shared_gate", (float)config->shared_gate},
                {"router_score", (float)config->router_score},
                {"router_norm", (float)config->router_norm},
                {"router_scale", config->router_scale},
                {"router_choice_bias", (float)config->router_choice_bias},
                {"router_group_score", (float)config->router_group_score},
                {"router_groups", (float)config->router_groups},
                {"router_top_groups", (float)config->router_top_groups},
                {"router_eps", config->router_eps}};
  for (size_t i = 0; i < sizeof routed / sizeof *routed; i++)
    if (routed[i].value != 0)
      return status_fail(NN_ERR_ARGUMENT, "%s is %g; without experts it must be 0", routed[i].name,
                         (double)routed[i].value);
  return NN_OK;
}

/* ---- what is computed ------------------------------------------------------------------------ */

/* The one place that refuses what no block code computes. */
nn_status_t config_check_computed(const nn_model_config_t *config) {
  if (config->router_score == NN_SCORE_SIGMOID &&
      (config->aux_loss_coef != 0 || config->z_loss_coef != 0))
    return status_fail(NN_ERR_UNSUPPORTED,
                       "aux_loss_coef is %g and z_loss_coef %g; this release computes them for "
                       "softmax scores alone",
                       (double)config->aux_loss_coef, (double)config->z_loss_coef);
  return NN_OK;
}

/* ---- all of it ------------------------------------------------------------------------------- */

nn_status_t config_validate(nn_model_config_t *config) {
  nn_model_config_t checked = *config;
  config_fill_defaults(&checked);
  if (!checked.head_dim && checked.heads > 0 && checked.hidden > 0)
    return status_fail(
        NN_ERR_ARGUMENT,
        "hidden is %lld; without head_dim it must be a multiple of heads, which is %lld",
        (long long)checked.hidden, (long long)checked.heads);
  STATUS_TRY(config_check_bounds(&checked));
  STATUS_TRY(config_check_attention(&checked));
  STATUS_TRY(config_check_experts(&checked));
  STATUS_TRY(config_check_layers(&checked));
  STATUS_TRY(family_check(&checked));
  param_table_t counts;
  STATUS_TRY(param_table_count(&checked, &counts));
  *config = checked;
  return NN_OK;
}
