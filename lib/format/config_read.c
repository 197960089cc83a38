#include "format/config_read.h"

#include <float.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "format/config_rope.h"
#include "format/name_show.h"
#include "model/family.h"

/* A value as it may stand in a message. */
typedef struct shown {
  char text[80];
} shown_t;

static shown_t key_show(const json_t *value) {
  enum { ROOM = sizeof(shown_t) - sizeof "..." };
  shown_t shown = {{0}};
  size_t length =
      json_dumpb(value, shown.text, ROOM,
                 JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(9));
  /* what does not fit is left out, from somewhere before the end on */
  if (length > ROOM) strcat(shown.text, "...");
  return shown;
}

nn_status_t key_refuse(nn_status_t status, const char *name, const json_t *value,
                       const char *needed) {
  return status_fail(status, "config.json: %s is %s; it must be %s", name_show(name).text,
                     key_show(value).text, needed);
}

nn_status_t key_unknown(const char *name, const json_t *value, const char *model_type) {
  return status_fail(NN_ERR_UNSUPPORTED,
                     "config.json: the key \"%s\" (%s) is not known for model type %s, and could "
                     "change the numbers",
                     name_show(name).text, key_show(value).text, model_type);
}

/* ---- plain values ---------------------------------------------------------------------------- */

static nn_status_t read_size(const key_line_t *key, const json_t *value, int64_t least,
                             int64_t *member) {
  if (!json_is_integer(value) || json_integer_value(value) < least)
    return key_refuse(NN_ERR_FORMAT, key->name, value,
                      least ? "a whole number of at least 1" : "a whole number of at least 0");
  *member = json_integer_value(value);
  return NN_OK;
}

static nn_status_t read_number(const key_line_t *key, const json_t *value, bool positive,
                               float *member) {
  double number = json_number_value(value);
  if (!json_is_number(value) || number < 0 || (positive && (float)number == 0))
    return key_refuse(NN_ERR_FORMAT, key->name, value,
                      positive ? "a number above 0" : "a number of at least 0");
  if (number > (double)FLT_MAX)
    return key_refuse(NN_ERR_FORMAT, key->name, value, "a number within the range of fp32");
  *member = (float)number;
  return NN_OK;
}

static nn_status_t read_inverse(const key_line_t *key, const json_t *value, float *member) {
  STATUS_TRY(read_number(key, value, true, member));
  *member = (float)(1 / json_number_value(value));
  return NN_OK;
}

static nn_status_t read_flag(const key_line_t *key, const json_t *value, int32_t *flag) {
  if (!json_is_boolean(value))
    return key_refuse(NN_ERR_FORMAT, key->name, value, "true or false");
  *flag = json_is_true(value);
  return NN_OK;
}

/* ---- members --------------------------------------------------------------------------------- */

static bool is_size(key_rule_t rule) {
  return rule == KEY_SIZE || rule == KEY_SIZE_OR_NULL || rule == KEY_SIZE_OR_OFF ||
         rule == KEY_COUNT;
}

static bool is_number(key_rule_t rule) {
  return rule == KEY_POSITIVE || rule == KEY_NUMBER || rule == KEY_NUMBER_OR_NULL ||
         rule == KEY_INVERSE;
}

static nn_status_t read_member(const key_line_t *key, const json_t *value, void *member) {
  bool zero = json_is_integer(value) && json_integer_value(value) == 0;
  switch (key->rule) {
    case KEY_SIZE_OR_NULL:
    case KEY_SIZE_OR_OFF:
      if (!json_is_null(value) && !(zero && key->rule == KEY_SIZE_OR_OFF))
        return read_size(key, value, 1, member);
      *(int64_t *)member = 0;
      return NN_OK;
    case KEY_SIZE: return read_size(key, value, 1, member);
    case KEY_COUNT: return read_size(key, value, 0, member);
    case KEY_NUMBER_OR_NULL:
      if (!json_is_null(value)) return read_number(key, value, true, member);
      *(float *)member = 0;
      return NN_OK;
    case KEY_POSITIVE: return read_number(key, value, true, member);
    case KEY_NUMBER: return read_number(key, value, false, member);
    case KEY_INVERSE: return read_inverse(key, value, member);
    default: return read_flag(key, value, member);
  }
}

/* Two keys may give one member, but not two values. */
static nn_status_t read_member_once(const key_line_t *key, const json_t *value,
                                    reading_t *reading) {
  char *member = (char *)reading + key->offset, before[sizeof(int64_t)];
  size_t bytes = is_size(key->rule) ? sizeof(int64_t) : sizeof(int32_t);
  bool *seen = &reading->seen[key->offset];
  memcpy(before, member, bytes);
  STATUS_TRY(read_member(key, value, member));
  if (key->rule == KEY_NOT) *(int32_t *)(void *)member ^= 1;
  if (*seen && memcmp(before, member, bytes) != 0) {
    char earlier[32];
    int64_t size;
    float number;
    memcpy(&size, before, bytes);
    memcpy(&number, before, sizeof number);
    if (is_number(key->rule))
      snprintf(earlier, sizeof earlier, "%g", (double)number);
    else
      snprintf(earlier, sizeof earlier, "%lld", (long long)size);
    return status_fail(NN_ERR_FORMAT,
                       "config.json: %s is %s, and the same stands there as %s; it can have one "
                       "value",
                       key->name, key_show(value).text, earlier);
  }
  *seen = true;
  return NN_OK;
}

/* ---- lists of layers ------------------------------------------------------------------------- */

static nn_status_t read_layer_types(const key_line_t *key, const json_t *value,
                                    reading_t *reading) {
  if (json_is_null(value)) return NN_OK;
  if (!json_is_array(value) || !json_array_size(value))
    return key_refuse(NN_ERR_FORMAT, key->name, value, "null or a list of texts");
  reading->layer_types = (int64_t)json_array_size(value);
  for (int64_t layer = 0; layer < reading->layer_types; layer++) {
    const json_t *entry = json_array_get(value, (size_t)layer);
    const char *type = json_string_value(entry);
    bool sliding = type && strcmp(type, "sliding_attention") == 0;
    if (!sliding && (!type || strcmp(type, "full_attention") != 0))
      return key_refuse(NN_ERR_UNSUPPORTED, "an entry of layer_types", entry,
                        "\"full_attention\" or \"sliding_attention\"");
    reading->sliding_types += sliding;
    if (sliding && layer < CONFIG_PATTERN_LAYERS)
      reading->sliding[layer / 64] |= (uint64_t)1 << layer % 64;
  }
  return NN_OK;
}

static nn_status_t read_dense_list(const key_line_t *key, const json_t *value,
                                   reading_t *reading) {
  if (json_is_null(value)) return NN_OK;
  if (!json_is_array(value))
    return key_refuse(NN_ERR_FORMAT, key->name, value, "null or a list of layers");
  size_t i;
  const json_t *entry;
  json_array_foreach((json_t *)value, i, entry) {
    json_int_t layer = json_integer_value(entry);
    if (!json_is_integer(entry) || layer < 0)
      return key_refuse(NN_ERR_FORMAT, "an entry of mlp_only_layers", entry,
                        "a whole number of at least 0");
    if (layer < CONFIG_PATTERN_LAYERS)
      reading->config.dense_layers[layer / 64] |= (uint64_t)1 << layer % 64;
    else
      reading->dense_far = true;
  }
  return NN_OK;
}

/* ---- lists of numbers ------------------------------------------------------------------------ */

/* Two keys may give one list, but not two. */
static nn_status_t read_factors(const key_line_t *key, const json_t *value, reading_t *reading) {
  float factors[CONFIG_ROPE_FACTORS] = {0}, *member = (void *)((char *)reading + key->offset);
  size_t count = json_array_size(value);
  if (!json_is_array(value) || !count || count > CONFIG_ROPE_FACTORS) {
    char needed[48];
    snprintf(needed, sizeof needed, "a list of 1 to %d numbers", CONFIG_ROPE_FACTORS);
    return key_refuse(NN_ERR_FORMAT, key->name, value, needed);
  }
  for (size_t i = 0; i < count; i++)
    STATUS_TRY(read_number(key, json_array_get(value, i), true, &factors[i]));
  if (reading->seen[key->offset] && memcmp(member, factors, sizeof factors) != 0)
    return status_fail(NN_ERR_FORMAT,
                       "config.json: %s stands there twice, as different lists; it can have one",
                       key->name);
  memcpy(member, factors, sizeof factors);
  reading->seen[key->offset] = true;
  return NN_OK;
}

/* ---- texts and switches ---------------------------------------------------------------------- */

static nn_status_t read_text(const key_line_t *key, const json_t *value) {
  const char *text = json_string_value(value);
  char needed[80] = "";
  for (size_t i = 0; key->texts[i]; i++) {
    if (text && strcmp(text, key->texts[i]) == 0) return NN_OK;
    size_t used = strlen(needed);
    snprintf(needed + used, sizeof needed - used, "%s\"%s\"", i ? " or " : "", key->texts[i]);
  }
  return key_refuse(NN_ERR_UNSUPPORTED, key->name, value, needed);
}

/* Which of two texts it is. */
static nn_status_t read_choice(const key_line_t *key, const json_t *value, const char *first,
                               const char *second, bool *is_second) {
  const char *text = json_string_value(value);
  *is_second = text && strcmp(text, second) == 0;
  if (*is_second || (text && strcmp(text, first) == 0)) return NN_OK;
  char needed[64];
  snprintf(needed, sizeof needed, "\"%s\" or \"%s\"", first, second);
  return key_refuse(NN_ERR_UNSUPPORTED, key->name, value, needed);
}

static nn_status_t read_classes(const key_line_t *key, const json_t *value,
                                const family_t *family) {
  bool good = json_is_array(value) || json_is_null(value);
  for (size_t i = 0; good && i < json_array_size(value); i++) {
    const char *name = json_string_value(json_array_get(value, i));
    good = name && (strcmp(name, family->architecture) == 0 ||
                    (family->alias && strcmp(name, family->alias) == 0));
  }
  if (good) return NN_OK;
  char needed[64];
  snprintf(needed, sizeof needed, "[\"%s\"]", family->architecture);
  return key_refuse(NN_ERR_UNSUPPORTED, key->name, value, needed);
}

static bool is_off(const json_t *value) {
  return json_is_null(value) || json_is_false(value) ||
         (json_is_number(value) && json_number_value(value) == 0) ||
         (json_is_object(value) && json_object_size(value) == 0) ||
         (json_is_array(value) && json_array_size(value) == 0);
}

static nn_status_t read_equal(const key_line_t *key, const json_t *value) {
  if (json_is_null(value) || (json_is_number(value) && json_number_value(value) == key->number))
    return NN_OK;
  char needed[32];
  snprintf(needed, sizeof needed, "%g", key->number);
  return key_refuse(NN_ERR_UNSUPPORTED, key->name, value, needed);
}

static nn_status_t read_mxfp4(const key_line_t *key, const json_t *value) {
  const char *method = json_string_value(json_object_get(value, "quant_method"));
  if (is_off(value) || (method && strcmp(method, "mxfp4") == 0)) return NN_OK;
  return key_refuse(NN_ERR_UNSUPPORTED, key->name, value, "off, or of the quant_method \"mxfp4\"");
}

nn_status_t key_read(const key_line_t *key, const json_t *value, reading_t *reading) {
  nn_model_config_t *config = &reading->config;
  bool second = false;
  int32_t flag = 0;
  switch (key->rule) {
    case KEY_FACTORS: return read_factors(key, value, reading);
    case KEY_ROPE: return rope_read(key->name, value, reading);
    case KEY_LAYER_TYPES: return read_layer_types(key, value, reading);
    case KEY_DENSE_LIST: return read_dense_list(key, value, reading);
    case KEY_BIASES:
      STATUS_TRY(read_flag(key, value, &flag));
      config->biases = flag ? config->biases | key->bits : config->biases & ~key->bits;
      return NN_OK;
    case KEY_AUX_NORM:
      STATUS_TRY(read_choice(key, value, "switch", "joint", &second));
      config->aux_loss = second ? NN_AUX_JOINT : NN_AUX_SWITCH;
      return NN_OK;
    case KEY_TOPK_METHOD:
      STATUS_TRY(read_choice(key, value, "greedy", "group_limited_greedy", &second));
      reading->greedy = !second;
      return NN_OK;
    case KEY_MXFP4: return read_mxfp4(key, value);
    case KEY_OFF:
      if (is_off(value)) return NN_OK;
      return key_refuse(NN_ERR_UNSUPPORTED, key->name, value, "off (null, false or 0)");
    case KEY_ON:
      if (json_is_true(value)) return NN_OK;
      return key_refuse(NN_ERR_UNSUPPORTED, key->name, value, "true");
    case KEY_EQUAL: return read_equal(key, value);
    case KEY_TEXT: return read_text(key, value);
    case KEY_TEXT_OR_NULL: return json_is_null(value) ? NN_OK : read_text(key, value);
    case KEY_CLASSES: return read_classes(key, value, &families[config->family]);
    case KEY_ANY: return NN_OK;
    default: return read_member_once(key, value, reading);
  }
}
