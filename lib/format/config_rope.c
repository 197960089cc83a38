#include "format/config_rope.h"

#include <string.h>

#include "base/status.h"
#include "format/config_read.h"
#include "format/config_write.h"
#include "format/name_show.h"

static const char *const types[] = {
    [NN_ROPE_NONE] = "default", [NN_ROPE_LINEAR] = "linear", [NN_ROPE_DYNAMIC] = "dynamic",
    [NN_ROPE_YARN] = "yarn",    [NN_ROPE_LLAMA3] = "llama3", [NN_ROPE_LONG] = "longrope",
};

enum {
  TYPES = sizeof types / sizeof *types,
  LINEAR = 1 << NN_ROPE_LINEAR,
  DYNAMIC = 1 << NN_ROPE_DYNAMIC,
  YARN = 1 << NN_ROPE_YARN,
  LLAMA3 = 1 << NN_ROPE_LLAMA3,
  LONG = 1 << NN_ROPE_LONG
};

/* The keys of the object, and which types have and need them. */
typedef struct rope_key {
  key_line_t line;
  int32_t types, needed;
} rope_key_t;

#define KEY(name_, rule_, member_, types_, needed_)                                       \
  {                                                                                       \
    {.name = name_, .rule = rule_, .offset = offsetof(reading_t, config.member_)}, types_, \
        needed_                                                                           \
  }

static const rope_key_t keys[] = {
    KEY("factor", KEY_POSITIVE, rope_factor, LINEAR | DYNAMIC | YARN | LLAMA3 | LONG,
        LINEAR | DYNAMIC | LLAMA3),
    KEY("original_max_position_embeddings", KEY_SIZE, rope_original_context,
        YARN | LLAMA3 | LONG, 0),
    KEY("beta_fast", KEY_POSITIVE, rope_beta_fast, YARN, 0),
    KEY("beta_slow", KEY_POSITIVE, rope_beta_slow, YARN, 0),
    KEY("low_freq_factor", KEY_POSITIVE, rope_low_freq, LLAMA3, LLAMA3),
    KEY("high_freq_factor", KEY_POSITIVE, rope_high_freq, LLAMA3, LLAMA3),
    KEY("attention_factor", KEY_POSITIVE, rope_attention_factor, YARN | LONG, 0),
    KEY("mscale", KEY_NUMBER, rope_mscale, YARN, 0),
    KEY("mscale_all_dim", KEY_NUMBER, rope_mscale_all_dim, YARN, 0),
    KEY("truncate", KEY_NOT, rope_no_truncate, YARN, 0),
    KEY("short_factor", KEY_FACTORS, rope_short_factors, LONG, LONG),
    KEY("long_factor", KEY_FACTORS, rope_long_factors, LONG, LONG),
    KEY("short_mscale", KEY_POSITIVE, rope_short_mscale, LONG, 0),
    KEY("long_mscale", KEY_POSITIVE, rope_long_mscale, LONG, 0),
};

/* What a family has where nothing is given does not mix with what is. */
static void rope_forget_defaults(reading_t *reading) {
  nn_model_config_t *c = &reading->config;
  if (reading->seen[offsetof(reading_t, config.rope_scaling)]) return;
  c->rope_scaling = c->rope_no_truncate = 0;
  c->rope_factor = 0, c->rope_original_context = 0;
}

/* The type of an object: rope_type, or type in older files. */
static nn_status_t rope_read_type(const char *name, const json_t *object, reading_t *reading) {
  const char *key = json_object_get(object, "rope_type") ? "rope_type" : "type";
  const json_t *value = json_object_get(object, key);
  if (!value) return NN_OK;
  const char *text = json_string_value(value);
  int32_t type = 0;
  while (type < TYPES && (!text || strcmp(text, types[type]) != 0)) type++;
  if (text && strcmp(text, "su") == 0) type = NN_ROPE_LONG; /* its earlier name */
  char shown[64];
  snprintf(shown, sizeof shown, "%s.%s", name, key);
  if (type == TYPES)
    return key_refuse(NN_ERR_UNSUPPORTED, shown, value,
                      "\"default\", \"linear\", \"dynamic\", \"yarn\", \"llama3\" or "
                      "\"longrope\"");
  bool *seen = &reading->seen[offsetof(reading_t, config.rope_scaling)];
  if (*seen && reading->config.rope_scaling != type)
    return key_refuse(NN_ERR_FORMAT, shown, value, "what the other object of RoPE says");
  reading->config.rope_scaling = type;
  *seen = true;
  return NN_OK;
}

static nn_status_t rope_read_entry(const char *name, const char *inner, const json_t *value,
                                   reading_t *reading) {
  if (strcmp(inner, "rope_type") == 0 || strcmp(inner, "type") == 0) return NN_OK;
  if (strcmp(inner, "rope_theta") == 0 || strcmp(inner, "partial_rotary_factor") == 0)
    return key_read(key_find(reading->config.family, inner), value, reading);
  const int32_t type = reading->config.rope_scaling;
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
    if (strcmp(keys[i].line.name, inner) != 0 || !(keys[i].types >> type & 1)) continue;
    return json_is_null(value) ? NN_OK : key_read(&keys[i].line, value, reading);
  }
  if (json_is_null(value)) return NN_OK;
  return status_fail(NN_ERR_UNSUPPORTED,
                     "config.json: %s.%s is there; beside the type \"%s\" it is not understood",
                     name, name_show(inner).text, types[type]);
}

static bool is_absent(const json_t *value) { return !value || json_is_null(value); }

nn_status_t rope_read(const char *name, const json_t *value, reading_t *reading) {
  if (!json_is_null(value) && !json_is_object(value))
    return key_refuse(NN_ERR_FORMAT, name, value, "null or an object");
  rope_forget_defaults(reading);
  if (json_is_null(value)) return NN_OK;
  STATUS_TRY(rope_read_type(name, value, reading));
  const char *inner;
  json_t *entry;
  json_object_foreach((json_t *)value, inner, entry)
      STATUS_TRY(rope_read_entry(name, inner, entry, reading));
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
    if (keys[i].needed >> reading->config.rope_scaling & 1 &&
        is_absent(json_object_get(value, keys[i].line.name)))
      return status_fail(NN_ERR_FORMAT, "config.json: %s has no %s, which the type \"%s\" needs",
                         name, keys[i].line.name, types[reading->config.rope_scaling]);
  return NN_OK;
}

const char *rope_key(size_t offset) {
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
    if (keys[i].line.offset == offset && keys[i].line.rule != KEY_NOT) return keys[i].line.name;
  return NULL;
}

json_t *rope_write(const nn_model_config_t *config) {
  /* null is not the default of every family */
  if (!config->rope_scaling && !family_defaults(config->family).config.rope_scaling)
    return json_null();
  json_t *object = json_object();
  int failed =
      json_object_set_new(object, "rope_type", json_string(types[config->rope_scaling]));
  reading_t written = {.config = *config};
  nn_model_config_t *w = &written.config;
  /* other programs need these; a factor of null is worked out by them as here */
  if (config->rope_scaling == NN_ROPE_YARN)
    failed |= json_object_set_new(object, "factor", json_null());
  else if (w->rope_factor == 0 && config->rope_scaling != NN_ROPE_LONG)
    w->rope_factor = 1;
  if (!w->rope_original_context) w->rope_original_context = config->context;
  if (w->rope_low_freq == 0) w->rope_low_freq = 1;
  if (w->rope_high_freq == 0) w->rope_high_freq = 4;
  for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
    json_t *value = key_value(&keys[i].line, &written);
    bool has = keys[i].types >> config->rope_scaling & 1;
    bool needed = keys[i].needed >> config->rope_scaling & 1;
    if (has && (needed || !key_value_is_zero(&keys[i].line, &written)))
      failed |= json_object_set_new(object, keys[i].line.name, value);
    else
      json_decref(value);
  }
  if (!failed) return object;
  json_decref(object);
  return NULL;
}
