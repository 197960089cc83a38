/* Reading config.json: from its keys to a validated configuration. */
#include "format/config_json.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json_text.h"
#include "base/status.h"
#include "format/config_read.h"
#include "format/config_rope.h"
#include "model/family.h"

enum { MOST_BYTES = 16 << 20 }; /* of a config.json: far above any real one */

/* ---- what keys say together ------------------------------------------------------------------ */

static bool layer_has_window(const reading_t *reading, int64_t layer) {
  switch (reading->window_rule) {
    case WINDOW_FROM: return layer >= reading->max_window_layers;
    case WINDOW_EVEN_BELOW: return layer % 2 == 0 && layer < reading->max_window_layers;
    case WINDOW_EVEN: return layer % 2 == 0;
    default: return true;
  }
}

/* Layers beyond the pattern's room; whether all of them have the window is not looked at one by
 * one: such a model is refused unless all of its layers are alike. */
static nn_status_t finish_windows(reading_t *reading) {
  nn_model_config_t *config = &reading->config;
  int64_t windows = 0, looked_at = config->layers;
  if (reading->layer_types && reading->layer_types != config->layers)
    return status_fail(NN_ERR_FORMAT,
                       "config.json: layer_types has %lld entries, and num_hidden_layers is %lld",
                       (long long)reading->layer_types, (long long)config->layers);
  if (!reading->use_window || !config->window) {
    config->window = 0;
    if (reading->sliding_types)
      return status_fail(NN_ERR_UNSUPPORTED,
                         "config.json: layer_types has \"sliding_attention\", and no window is "
                         "in use (use_sliding_window, sliding_window)");
    return NN_OK;
  }
  if (looked_at > CONFIG_PATTERN_LAYERS) looked_at = CONFIG_PATTERN_LAYERS;
  for (int64_t layer = 0; layer < looked_at; layer++) {
    bool has = reading->layer_types ? reading->sliding[layer / 64] >> layer % 64 & 1
                                    : layer_has_window(reading, layer);
    config->window_layers[layer / 64] |= (uint64_t)has << layer % 64;
    windows += has;
  }
  if (config->layers > looked_at) {
    bool ends = reading->layer_types ? reading->sliding_types == config->layers
                                     : layer_has_window(reading, config->layers - 1);
    bool none = reading->layer_types ? !reading->sliding_types : !ends && !windows;
    if (!none && (windows < looked_at || !ends))
      return status_fail(NN_ERR_UNSUPPORTED,
                         "config.json: some of %lld layers have a window; at most %d layers may "
                         "differ",
                         (long long)config->layers, CONFIG_PATTERN_LAYERS);
  }
  if (!windows) config->window = 0;
  if (windows == looked_at) memset(config->window_layers, 0, sizeof config->window_layers);
  return NN_OK;
}

static nn_status_t finish_dense_layers(reading_t *reading) {
  nn_model_config_t *config = &reading->config;
  int64_t looked_at = config->layers < CONFIG_PATTERN_LAYERS ? config->layers
                                                             : CONFIG_PATTERN_LAYERS;
  bool dense = reading->dense_far || reading->first_dense > 0 || reading->sparse_step > 1;
  for (int64_t layer = 0; layer < CONFIG_PATTERN_LAYERS; layer++) {
    uint64_t bit = (uint64_t)1 << layer % 64, *word = &config->dense_layers[layer / 64];
    if (layer < reading->first_dense ||
        (reading->sparse_step > 1 && (layer + 1) % reading->sparse_step))
      *word |= bit;
    if (layer >= looked_at) *word &= ~bit; /* a layer that is not there */
    dense |= (*word & bit) != 0;
  }
  if (dense && config->layers > CONFIG_PATTERN_LAYERS)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "config.json: some of %lld layers are dense; at most %d layers may differ",
                       (long long)config->layers, CONFIG_PATTERN_LAYERS);
  if (dense && !config_sparse_layers(config))
    return status_fail(NN_ERR_FORMAT,
                       "config.json: all of %lld layers are dense; some must have experts",
                       (long long)config->layers);
  return NN_OK;
}

/* Sizes and factors that keys give in another way than members do. */
static nn_status_t finish_sizes(reading_t *reading) {
  nn_model_config_t *config = &reading->config;
  bool scaled = config->rope_scaling == NN_ROPE_YARN || config->rope_scaling == NN_ROPE_LLAMA3 ||
                config->rope_scaling == NN_ROPE_LONG;
  if (reading->original_context && scaled)
    config->rope_original_context = reading->original_context;
  if (!config->ffn && config->hidden <= INT32_MAX) config->ffn = 4 * config->hidden;
  if (reading->shared_experts && reading->shared_experts <= INT32_MAX && config->ffn <= INT32_MAX)
    config->shared_ffn = reading->shared_experts * config->ffn;
  if (reading->nope_head_dim && reading->nope_head_dim <= INT32_MAX &&
      config->rope_head_dim <= INT32_MAX) {
    config->head_dim = reading->nope_head_dim + config->rope_head_dim;
    config->kv_heads = config->heads;
  }
  /* rounded down where heads does not divide hidden, as the model types' own programs do */
  if (!config->head_dim && config->position == NN_POSITION_ROPE)
    config->head_dim = config->hidden / config->heads;
  int64_t head_dim = config->head_dim;
  const float partial = reading->partial_rotary;
  if (partial > 0 && partial != 1 && head_dim <= INT32_MAX) {
    if (partial < 1) config->rotary_dim = (int64_t)((double)head_dim * (double)partial);
    if (!config->rotary_dim)
      return status_fail(NN_ERR_FORMAT,
                         "config.json: partial_rotary_factor is %g; of head_dim, which is %lld, it "
                         "must leave from 2 to all",
                         (double)partial, (long long)head_dim);
  }
  if (reading->greedy || config->router_groups == 1)
    config->router_groups = config->router_top_groups = 0;
  /* a value that stands for a default is one form with the 0 that does */
  if (config->dense_ffn == config->ffn) config->dense_ffn = 0;
  if (config->value_head_dim == config->head_dim) config->value_head_dim = 0;
  if (config->rope_original_context == config->context) config->rope_original_context = 0;
  float *const factors[] = {&config->router_scale, &config->embedding_scale,
                            &config->residual_scale, &config->logit_scale};
  for (size_t i = 0; i < sizeof factors / sizeof *factors; i++)
    if (*factors[i] == 1) *factors[i] = 0;
  if (config->attention_scale == 1 / sqrtf((float)head_dim)) config->attention_scale = 0;
  /* as the model type's own program: without router logits there is no auxiliary loss */
  if (!reading->router_logits) config->aux_loss_coef = 0;
  return NN_OK;
}

/* ---- messages -------------------------------------------------------------------------------- */

/* The key of a member: of several, one that the text has. NULL: none has its value as it stands. */
static const char *member_key(int32_t family, const json_t *root, size_t offset) {
  const char *found = NULL;
  const key_list_t *lists = family_keys(family);
  for (const key_list_t *list = lists; list < lists + KEY_LISTS; list++)
    for (size_t i = 0; i < list->count; i++) {
      const key_line_t *key = &list->keys[i];
      if (key->offset == offset && (key->rule <= KEY_NUMBER_OR_NULL || key->rule == KEY_FLAG) &&
          key_find(family, key->name) == key && (!found || json_object_get(root, key->name)))
        found = key->name;
    }
  return found;
}

/* Members that finish_sizes() makes of keys, in families that know the first of them. */
static const struct {
  const char *key, *shown;
  size_t member;
} made_of[] = {
    {"n_embd", "n_embd / n_head", offsetof(nn_model_config_t, head_dim)},
    {"qk_nope_head_dim", "qk_nope_head_dim + qk_rope_head_dim",
     offsetof(nn_model_config_t, head_dim)},
    {"partial_rotary_factor", "partial_rotary_factor x head_dim",
     offsetof(nn_model_config_t, rotary_dim)},
    {"n_shared_experts", "n_shared_experts x moe_intermediate_size",
     offsetof(nn_model_config_t, shared_ffn)},
};

/* Writes the key of the member that a word is the name of, as far as there is room; 0: there is no
 * such member or key. */
static int show_key(char *to, size_t room, const char *word, size_t length, int32_t family,
                    const json_t *root) {
  size_t member = config_member(word, length), offset = offsetof(reading_t, config) + member;
  if (!member) return 0;
  const char *key = member_key(family, root, offset);
  for (size_t i = 0; !key && i < sizeof made_of / sizeof *made_of; i++)
    if (made_of[i].member == member && key_find(family, made_of[i].key)) key = made_of[i].shown;
  if (key) return snprintf(to, room, "%s", key);
  key = rope_key(offset);
  bool newer = !json_is_object(json_object_get(root, "rope_scaling"));
  return key ? snprintf(to, room, "%s.%s", newer ? "rope_parameters" : "rope_scaling", key) : 0;
}

/* Fails with the calling thread's message, which is about members of a configuration, in the words
 * of the text. What stands behind a number is counted, no member. */
static nn_status_t fail_by_keys(nn_status_t status, int32_t family, const json_t *root) {
  char text[512];
  size_t used = 0, length;
  for (const char *m = nn_last_error(), *at = m; *at && used < sizeof text; at += length) {
    length = strspn(at, "abcdefghijklmnopqrstuvwxyz_");
    bool counted = at - m > 1 && at[-1] == ' ' && at[-2] >= '0' && at[-2] <= '9';
    int written = counted ? 0 : show_key(text + used, sizeof text - used, at, length, family, root);
    if (!length) length = 1;
    if (!written) written = snprintf(text + used, sizeof text - used, "%.*s", (int)length, at);
    used += (size_t)written;
  }
  return status_fail(status, "config.json: %s", text);
}

/* ---- the text -------------------------------------------------------------------------------- */

static nn_status_t config_json_keys(json_t *root, int32_t family, reading_t *reading) {
  const char *name;
  json_t *value;
  json_object_foreach(root, name, value) {
    const key_line_t *key = key_find(family, name);
    if (!key && name[0] == '_') continue; /* the writing program's own notes */
    if (!key) return key_unknown(name, value, families[family].model_type);
    STATUS_TRY(key_read(key, value, reading));
  }
  return NN_OK;
}

static nn_status_t config_json_family(const json_t *root, int32_t *family) {
  if (!json_is_object(root)) return status_fail(NN_ERR_FORMAT, "config.json: is not a JSON object");
  const json_t *type = json_object_get(root, "model_type");
  if (!json_is_string(type))
    return status_fail(NN_ERR_FORMAT, "config.json: model_type is missing or not a text");
  char known[256] = "one of";
  for (int32_t i = 0; i < FAMILIES; i++) {
    if (!families[i].model_type) continue;
    if (strcmp(json_string_value(type), families[i].model_type) == 0) {
      *family = i;
      return NN_OK;
    }
    size_t used = strlen(known);
    snprintf(known + used, sizeof known - used, " %s", families[i].model_type);
  }
  return key_refuse(NN_ERR_UNSUPPORTED, "model_type", type, known);
}

static nn_status_t config_json_object(json_t *root, nn_model_config_t *config) {
  int32_t family = 0;
  STATUS_TRY(config_json_family(root, &family));
  reading_t reading = family_defaults(family);
  reading.config.family = family;
  reading.config.norm = families[family].norm;
  reading.config.position = families[family].position;
  reading.config.ffn_kind = families[family].ffn_kind;
  reading.config.struct_size = sizeof reading.config;
  STATUS_TRY(config_json_keys(root, family, &reading));
  STATUS_TRY(finish_sizes(&reading));
  STATUS_TRY(finish_windows(&reading));
  STATUS_TRY(finish_dense_layers(&reading));
  nn_status_t status = config_validate(&reading.config);
  if (status != NN_OK)
    return fail_by_keys(status == NN_ERR_ARGUMENT ? NN_ERR_FORMAT : status, family, root);
  *config = reading.config;
  return NN_OK;
}

nn_status_t config_json_read(const char *text, size_t bytes, nn_model_config_t *config) {
  if (bytes && !text[bytes - 1]) bytes--;
  if (bytes > MOST_BYTES)
    return status_fail(NN_ERR_FORMAT, "config.json: has %zu bytes; at most %d are read", bytes,
                       MOST_BYTES);
  json_t *root;
  nn_status_t status = json_text_read(text, bytes, 0, &root);
  if (status != NN_OK) return status_prefix(status, "config.json");
  status = config_json_object(root, config);
  json_decref(root);
  return status;
}
