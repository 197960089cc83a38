#include "model/config.h"

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "base/mem.h"
#include "base/status.h"
#include "model/params.h"

/* ---- presets --------------------------------------------------------------------------------- */

typedef struct preset {
  const char *name;
  nn_model_config_t config; /* members left out: config_validate() fills them */
} preset_t;

#define GPT2(layers_, hidden_, heads_)                                                        \
  {                                                                                           \
    .family = NN_FAMILY_GPT2, .norm = NN_NORM_LAYER, .position = NN_POSITION_LEARNED,         \
    .ffn_kind = NN_FFN_GELU_TANH, .vocab_size = 50257, .context = 1024, .layers = (layers_),  \
    .hidden = (hidden_), .heads = (heads_), .ffn = 4 * (hidden_), .biases = NN_BIAS_ALL, .tied_head = 1 \
  }

static const preset_t presets[] = {
    {"tiny",
     {.vocab_size = 1000,
      .context = 512,
      .layers = 2,
      .hidden = 64,
      .heads = 4,
      .kv_heads = 1,
      .head_dim = 16,
      .ffn = 256,
      .experts = 4,
      .top_k = 2,
      .aux_loss_coef = 0.01f}},
    {"small",
     {.vocab_size = NN_BYTE_VOCAB,
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
      .z_loss_coef = 0.001f}},
    {"moe-6.9b",
     {.vocab_size = 32000,
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
      .aux_loss_coef = 0.01f}},
    {"gpt2-124m", GPT2(12, 768, 12)},
    {"gpt2-350m", GPT2(24, 1024, 16)},
    {"gpt2-774m", GPT2(36, 1280, 20)},
    {"gpt2-1558m", GPT2(48, 1600, 25)},
};

nn_status_t config_preset(const char *name, nn_model_config_t *config) {
  for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
    if (strcmp(presets[i].name, name) != 0) continue;
    nn_model_config_t preset = presets[i].config;
    preset.struct_size = sizeof preset;
    STATUS_TRY(config_validate(&preset));
    *config = preset;
    return NN_OK;
  }
  return status_fail(NN_ERR_NOT_FOUND,
                     "no preset is called \"%.64s\"; there are tiny, small, moe-6.9b, gpt2-124m, "
                     "gpt2-350m, gpt2-774m, gpt2-1558m",
                     name);
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
    BOUND(family, NN_FAMILY_MIXTRAL, NN_FAMILY_GPT2),
    BOUND(norm, NN_NORM_RMS, NN_NORM_LAYER),
    BOUND(position, NN_POSITION_ROPE, NN_POSITION_LEARNED),
    BOUND(ffn_kind, NN_FFN_SWIGLU, NN_FFN_GELU_TANH),
    BOUND(biases, 0, NN_BIAS_ALL),
    BOUND(tied_head, 0, 1),
    BOUND(aux_loss, NN_AUX_SWITCH, NN_AUX_JOINT),
};

static const int_bound_t size_bounds[] = {
    BOUND(vocab_size, 1, INT32_MAX), BOUND(context, 1, INT32_MAX),
    BOUND(layers, 1, INT32_MAX),     BOUND(hidden, 1, INT32_MAX),
    BOUND(heads, 1, INT32_MAX),      BOUND(kv_heads, 1, INT32_MAX),
    BOUND(head_dim, 1, 256),         BOUND(ffn, 1, INT32_MAX),
    BOUND(experts, 0, 1024),         BOUND(top_k, 0, 64),
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
};

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

/* ---- members that depend on each other ------------------------------------------------------- */

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
  return NN_OK;
}

static nn_status_t config_check_experts(const nn_model_config_t *config) {
  if (config->experts) {
    if (config->top_k < 1 || config->top_k > config->experts)
      return status_fail(NN_ERR_ARGUMENT,
                         "top_k is %lld; it must be from 1 to experts, which is %lld",
                         (long long)config->top_k, (long long)config->experts);
    return NN_OK;
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
                {"capacity_factor", config->capacity_factor}};
  for (size_t i = 0; i < sizeof routed / sizeof *routed; i++)
    if (routed[i].value != 0)
      return status_fail(NN_ERR_ARGUMENT, "%s is %g; without experts it must be 0", routed[i].name,
                         (double)routed[i].value);
  return NN_OK;
}

/* ---- what a family's files can hold ---------------------------------------------------------- */

static nn_status_t config_no_form(const char *family, const char *member, int64_t value,
                                  const char *needed) {
  return status_fail(
      NN_ERR_UNSUPPORTED,
      "%s is %lld; this combination has no published form in the %s family: it needs %s", member,
      (long long)value, family, needed);
}

/* The one place that says which combinations have names and shapes to be saved under. */
static nn_status_t config_check_family(const nn_model_config_t *config) {
  const nn_model_config_t *c = config;
  if (c->family == NN_FAMILY_MIXTRAL) {
    const char *family = "mixtral";
    if (c->norm != NN_NORM_RMS) return config_no_form(family, "norm", c->norm, "NN_NORM_RMS");
    if (c->position != NN_POSITION_ROPE)
      return config_no_form(family, "position", c->position, "NN_POSITION_ROPE");
    if (c->ffn_kind != NN_FFN_SWIGLU)
      return config_no_form(family, "ffn_kind", c->ffn_kind, "NN_FFN_SWIGLU");
    if (c->biases) return config_no_form(family, "biases", c->biases, "0");
    if (!c->experts) return config_no_form(family, "experts", c->experts, "at least 1");
    return NN_OK;
  }
  const char *family = "gpt2";
  if (c->norm != NN_NORM_LAYER) return config_no_form(family, "norm", c->norm, "NN_NORM_LAYER");
  if (c->position != NN_POSITION_LEARNED)
    return config_no_form(family, "position", c->position, "NN_POSITION_LEARNED");
  if (c->ffn_kind != NN_FFN_GELU_TANH)
    return config_no_form(family, "ffn_kind", c->ffn_kind, "NN_FFN_GELU_TANH");
  if (c->biases != NN_BIAS_ALL) return config_no_form(family, "biases", c->biases, "7");
  if (!c->tied_head) return config_no_form(family, "tied_head", c->tied_head, "1");
  if (c->experts) return config_no_form(family, "experts", c->experts, "0");
  if (c->kv_heads != c->heads)
    return config_no_form(family, "kv_heads", c->kv_heads, "as many as heads");
  if (c->heads * c->head_dim != c->hidden)
    return config_no_form(family, "head_dim", c->head_dim, "hidden / heads");
  return NN_OK;
}

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
  STATUS_TRY(config_check_family(&checked));
  param_table_t counts;
  STATUS_TRY(param_table_count(&checked, &counts));
  *config = checked;
  return NN_OK;
}
