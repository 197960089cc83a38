#include "text/tokenizer_json.h"

const char *value_type(const json_t *object) {
  const char *type = json_string_value(json_object_get(object, "type"));
  return type ? type : "";
}

static nn_status_t wrong(const json_t *object, const char *key, const char *wanted) {
  return status_fail(NN_ERR_FORMAT, "\"%s\" of %s is not %s", key,
                     *value_type(object) ? value_type(object) : "an object", wanted);
}

static const json_t *member(const json_t *object, const char *key) {
  const json_t *value = json_object_get(object, key);
  return value && !json_is_null(value) ? value : NULL;
}

nn_status_t value_get_bool(const json_t *object, const char *key, bool *value) {
  const json_t *json = member(object, key);
  if (!json) return NN_OK;
  if (!json_is_boolean(json)) return wrong(object, key, "true or false");
  *value = json_is_true(json);
  return NN_OK;
}

nn_status_t value_get_size(const json_t *object, const char *key, int64_t *value) {
  const json_t *json = member(object, key);
  if (!json) return NN_OK;
  if (!json_is_integer(json) || json_integer_value(json) < 0)
    return wrong(object, key, "an integer of at least 0");
  *value = json_integer_value(json);
  return NN_OK;
}

nn_status_t value_get_text(const json_t *object, const char *key, text_t *value) {
  const json_t *json = member(object, key);
  if (!json) return NN_OK;
  if (!json_is_string(json)) return wrong(object, key, "a string");
  *value = (text_t){json_string_value(json), json_string_length(json)};
  return NN_OK;
}

nn_status_t value_get_pattern(const json_t *object, const char *key, pattern_t *pattern) {
  const json_t *json = json_object_get(object, key);
  const json_t *plain = json_object_get(json, "String"), *regex = json_object_get(json, "Regex");
  const json_t *text = plain ? plain : regex;
  if (!json_is_string(text)) return wrong(object, key, "{\"String\": ...} or {\"Regex\": ...}");
  *pattern = (pattern_t){{json_string_value(text), json_string_length(text)}, !plain};
  return NN_OK;
}

nn_status_t value_check_members(const json_t *object, const char *what, const char *const *known) {
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)object, key, value) {
    bool found = strcmp(key, "type") == 0;
    for (size_t i = 0; known && known[i]; i++) found = found || strcmp(key, known[i]) == 0;
    if (!found)
      return status_fail(NN_ERR_UNSUPPORTED, "%s has a member \"%.80s\", which is not understood",
                         what, key);
  }
  return NN_OK;
}

nn_status_t value_read_sequence(const json_t *object, const char *key, value_read_fn read,
                               pipeline_t *pipeline) {
  const json_t *list = json_object_get(object, key);
  if (!json_is_array(list)) return wrong(object, key, "an array");
  for (size_t i = 0; i < json_array_size(list); i++)
    STATUS_TRY(read(json_array_get(list, i), pipeline));
  return NN_OK;
}
