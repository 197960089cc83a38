#include "format/config_write.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_text.h"
#include "base/status.h"
#include "format/config_json.h"
#include "format/config_rope.h"
#include "model/family.h"

/* ---- values ---------------------------------------------------------------------------------- */

static float same(double decimal) { return (float)decimal; }
static float inverse(double decimal) { return (float)(1 / decimal); }

/* The double of the shortest decimal near `exact` that is read back as this float, by read(). */
static json_t *json_shortest(double exact, float value, float (*read)(double decimal)) {
  for (int digits = 1; digits < 9; digits++) {
    char text[32];
    snprintf(text, sizeof text, "%.*g", digits, exact);
    double shortest = strtod(text, NULL);
    if (read(shortest) == value) return json_real(shortest);
  }
  return json_real(exact);
}

/* 0.01f is written 0.01. */
static json_t *json_float(float value) { return json_shortest((double)value, value, same); }

/* A number whose inverse reads back as this float. */
static json_t *json_inverse(float value) {
  return json_shortest(1 / (double)value, value, inverse);
}

static json_t *json_size_or_null(int64_t size) { return size ? json_integer(size) : json_null(); }

static json_t *json_layer_types(const nn_model_config_t *config) {
  json_t *list = json_array();
  int failed = !list;
  for (int64_t layer = 0; !failed && layer < config->layers; layer++)
    failed = json_array_append_new(
        list, json_string(config_layer_window(config, layer) ? "sliding_attention"
                                                             : "full_attention"));
  if (!failed) return list;
  json_decref(list);
  return NULL;
}

static json_t *json_dense_list(const nn_model_config_t *config) {
  json_t *list = json_array();
  int failed = !list;
  for (int64_t layer = 0; !failed && layer < config->layers && layer < CONFIG_PATTERN_LAYERS;
       layer++)
    if (config_layer_is_dense(config, layer))
      failed = json_array_append_new(list, json_integer(layer));
  if (!failed) return list;
  json_decref(list);
  return NULL;
}

static json_t *json_factors(const float *factors) {
  json_t *list = json_array();
  int failed = !list;
  for (size_t i = 0; !failed && i < CONFIG_ROPE_FACTORS && factors[i] != 0; i++)
    failed = json_array_append_new(list, json_float(factors[i]));
  if (!failed) return list;
  json_decref(list);
  return NULL;
}

json_t *key_value(const key_line_t *key, const reading_t *written) {
  const nn_model_config_t *config = &written->config;
  const char *member = (const char *)written + key->offset;
  int64_t size;
  int32_t flag;
  float number;
  memcpy(&size, member, sizeof size);
  memcpy(&flag, member, sizeof flag);
  memcpy(&number, member, sizeof number);
  switch (key->rule) {
    case KEY_SIZE:
    case KEY_COUNT: return json_integer(size);
    case KEY_SIZE_OR_OFF:
    case KEY_SIZE_OR_NULL: return json_size_or_null(size);
    case KEY_POSITIVE:
    case KEY_NUMBER: return json_float(number);
    case KEY_NUMBER_OR_NULL: return number != 0 ? json_float(number) : json_null();
    case KEY_INVERSE: return json_inverse(number);
    case KEY_FLAG: return json_boolean(flag);
    case KEY_NOT: return json_boolean(!flag);
    case KEY_BIASES: return json_boolean((config->biases & key->bits) == key->bits);
    case KEY_AUX_NORM: return json_string("switch");
    case KEY_FACTORS: return json_factors((const void *)member);
    case KEY_ROPE: return rope_write(config);
    case KEY_LAYER_TYPES: return json_layer_types(config);
    case KEY_DENSE_LIST: return json_dense_list(config);
    case KEY_TOPK_METHOD: return json_string(written->greedy ? "greedy" : "group_limited_greedy");
    case KEY_ON: return json_true();
    case KEY_TEXT: return json_string(key->texts[0]);
    default: return json_real(0); /* of a dropout rate */
  }
}

bool key_value_is_zero(const key_line_t *key, const reading_t *written) {
  static const char zeros[sizeof(int64_t)];
  bool wide = key->rule == KEY_SIZE;
  return memcmp((const char *)written + key->offset, zeros,
                wide ? sizeof(int64_t) : sizeof(int32_t)) == 0;
}

/* ---- the whole text -------------------------------------------------------------------------- */

/* Whether which layers have the window is to be listed: where some have none, and where the rule
 * for files without a list would not give it to all. */
static bool window_is_listed(const nn_model_config_t *c) {
  const uint64_t *words = c->window_layers;
  return c->window && (families[c->family].window_needs_list || words[0] || words[1] || words[2] ||
                       words[3]);
}

/* The factor that gives rotary_dim back, rounded down. */
static float partial_rotary(const nn_model_config_t *c) {
  if (!c->rotary_dim) return 1;
  float factor = (float)((double)c->rotary_dim / (double)c->head_dim);
  bool less = (double)factor * (double)c->head_dim < (double)c->rotary_dim;
  return less ? nextafterf(factor, 1) : factor;
}

/* What keys say of a configuration that its members say otherwise, and factors that
 * 0 stands for. */
static reading_t written_of(const nn_model_config_t *c) {
  reading_t written = {.config = *c};
  nn_model_config_t *w = &written.config;
  written.router_logits = c->aux_loss_coef > 0;
  written.use_window = c->window > 0;
  written.max_window_layers = window_is_listed(c) ? c->layers : 0;
  written.sparse_step = 1;
  while (c->experts && written.first_dense < c->layers &&
         config_layer_is_dense(c, written.first_dense))
    written.first_dense++;
  written.shared_experts = c->shared_ffn / c->ffn;
  written.nope_head_dim = c->head_dim - c->rope_head_dim;
  written.partial_rotary = partial_rotary(c);
  written.greedy = !c->router_groups;
  if (!w->router_groups && c->router_score == NN_SCORE_SIGMOID)
    w->router_groups = w->router_top_groups = 1;
  if (!w->dense_ffn) w->dense_ffn = w->ffn;
  /* a class that always has windows: one as wide as the context hides nothing */
  if (!w->window && family_defaults(c->family).window_rule == WINDOW_EVEN)
    w->window = c->context;
  if (!w->value_head_dim) w->value_head_dim = w->head_dim;
  float *const factors[] = {&w->router_scale, &w->embedding_scale, &w->residual_scale,
                            &w->logit_scale};
  for (size_t i = 0; i < sizeof factors / sizeof *factors; i++)
    if (*factors[i] == 0) *factors[i] = 1;
  if (w->attention_scale == 0) w->attention_scale = 1 / sqrtf((float)c->head_dim);
  return written;
}

static bool key_is_written(const key_line_t *key, const reading_t *written) {
  if (key->written != WRITE_SET) return key->written == WRITE_ALWAYS;
  if (key->rule == KEY_LAYER_TYPES) return window_is_listed(&written->config);
  if (key->rule == KEY_AUX_NORM) return written->config.aux_loss != NN_AUX_JOINT;
  float number;
  memcpy(&number, (const char *)written + key->offset, sizeof number);
  return number != (float)key->number;
}

static int write_keys(json_t *root, const reading_t *written) {
  const int32_t family = written->config.family;
  const key_list_t *lists = family_keys(family);
  int failed = 0;
  for (const key_list_t *list = lists; list < lists + KEY_LISTS; list++)
    for (size_t i = 0; i < list->count; i++) {
      const key_line_t *key = &list->keys[i];
      if (key_is_written(key, written) && key_find(family, key->name) == key)
        failed |= json_object_set_new(root, key->name, key_value(key, written));
    }
  return failed;
}

/* The keys that tell other programs how to use the weights. */
static int write_uses(json_t *root, const nn_model_config_t *c, int32_t dtype) {
  const family_t *family = &families[c->family];
  int failed =
      json_object_set_new(root, "architectures", json_pack("[s]", family->architecture));
  failed |= json_object_set_new(root, "model_type", json_string(family->model_type));
  failed |= json_object_set_new(root, "use_cache", json_true());
  /* null, since the class defaults are ids of a tokenizer that this model need not have */
  failed |= json_object_set_new(root, "bos_token_id", json_null());
  failed |= json_object_set_new(root, "eos_token_id", json_null());
  static const char *const dtypes[] = {"float32", "bfloat16", "float16"}; /* NN_F32, BF16, F16 */
  if (dtype >= 0) failed |= json_object_set_new(root, "torch_dtype", json_string(dtypes[dtype]));
  return failed;
}

nn_status_t config_json_write(const nn_model_config_t *config, int32_t dtype, json_t *others,
                              char **text, size_t *bytes) {
  enum { FLAGS = JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(9) };
  json_t *root = json_object();
  const reading_t written = written_of(config);
  int failed = !root || write_uses(root, config, dtype) || write_keys(root, &written);
  if (!failed && others) failed = json_object_update(root, others);
  size_t length;
  nn_status_t status = json_text_write(failed ? NULL : root, FLAGS, 2, text, &length);
  json_decref(root);
  if (status != NN_OK) return status_prefix(status, "config.json");
  (*text)[length] = '\n'; /* and NUL behind it */
  if (bytes) *bytes = length + 1;
  return NN_OK;
}
