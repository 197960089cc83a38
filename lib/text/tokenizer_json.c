/* The whole of a tokenizer.json, its model, added tokens and post-processor; and
 * tokenizer_config.json. */
#include "text/tokenizer_json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_text.h"

#define MEMBERS(...) ((const char *const[]){__VA_ARGS__, NULL})

static text_t text_of(const json_t *string) {
  return (text_t){json_string_value(string), json_string_length(string)};
}

static bool is(const json_t *json, const char *type) { return strcmp(value_type(json), type) == 0; }

/* ---- model ----------------------------------------------------------------------------------- */

/* {token: id} */
static nn_status_t read_vocabulary(const json_t *model, pipeline_t *pipeline) {
  const char *key;
  json_t *id, *vocabulary = json_object_get(model, "vocab");
  if (!json_is_object(vocabulary))
    return status_fail(NN_ERR_FORMAT, "the model's \"vocab\" is not an object");
  json_object_foreach(vocabulary, key, id) {
    if (!json_is_integer(id) || json_integer_value(id) < 0 ||
        json_integer_value(id) > PIPELINE_MAX_ID)
      return status_fail(NN_ERR_FORMAT, "the token \"%.80s\" has no id from 0 to %d", key,
                         PIPELINE_MAX_ID);
    STATUS_TRY(pipeline_add_token(pipeline, (text_t){key, strlen(key)},
                                  (int32_t)json_integer_value(id), 0));
  }
  return NN_OK;
}

/* A score as the tokenizers package reads it: the digits as one integer, rounded, divided by a
 * power of ten, which may differ from the nearest double in the last bit. Sums that are equal
 * there, between which the way through a word is chosen, are so only with the same scores. */
static double package_score(double exact) {
  char text[40];
  int precision = 15;
  do snprintf(text, sizeof text, "%.*e", precision - 1, exact);
  while (strtod(text, NULL) != exact && ++precision <= 17);
  uint64_t digits = 0;
  int exponent = 0;
  const char *at = text;
  for (; *at && *at != 'e'; at++) {
    if (*at < '0' || *at > '9') continue;
    digits = 10 * digits + (uint64_t)(*at - '0');
  }
  for (exponent = (int)strtol(*at ? at + 1 : "0", NULL, 10) - (precision - 1);
       digits && digits % 10 == 0; exponent++)
    digits /= 10;
  if (exponent < -308 || exponent > 22) return exact;
  double power = 1;
  for (int i = 0; i < abs(exponent); i++) power *= 10;
  const double value = exponent < 0 ? (double)digits / power : (double)digits * power;
  return exact < 0 ? -value : value;
}

/* [[token, log probability], ...] */
static nn_status_t read_pieces(const json_t *model, pipeline_t *pipeline) {
  const json_t *list = json_object_get(model, "vocab");
  if (!json_is_array(list))
    return status_fail(NN_ERR_FORMAT, "the model's \"vocab\" is not an array");
  if (json_array_size(list) > PIPELINE_MAX_ID)
    return status_fail(NN_ERR_FORMAT, "more than %d tokens", PIPELINE_MAX_ID);
  for (size_t i = 0; i < json_array_size(list); i++) {
    const json_t *piece = json_array_get(list, i);
    const json_t *text = json_array_get(piece, 0), *score = json_array_get(piece, 1);
    if (!json_is_string(text) || !json_is_number(score))
      return status_fail(NN_ERR_FORMAT, "token %zu of the model's \"vocab\" is not [text, score]",
                         i);
    STATUS_TRY(pipeline_add_token(pipeline, text_of(text), (int32_t)i,
                                  package_score(json_number_value(score))));
  }
  return NN_OK;
}

static nn_status_t read_unk_token(const json_t *model, pipeline_t *pipeline) {
  text_t unk = TEXT("");
  STATUS_TRY(value_get_text(model, "unk_token", &unk));
  if (!unk.bytes) return NN_OK;
  pipeline->model.unk_id = pipeline_find(pipeline, unk);
  return NN_OK;
}

/* "left right", or [left, right] */
static nn_status_t read_merge(const json_t *merge, size_t at, pipeline_t *pipeline) {
  if (json_is_string(merge)) {
    const text_t both = text_of(merge);
    const char *space = memchr(both.data, ' ', both.bytes);
    const char *end = both.data + both.bytes;
    if (space && !memchr(space + 1, ' ', (size_t)(end - space) - 1))
      return pipeline_add_merge(pipeline, (text_t){both.data, (size_t)(space - both.data)},
                                (text_t){space + 1, (size_t)(end - space) - 1});
  } else if (json_array_size(merge) == 2 && json_is_string(json_array_get(merge, 0)) &&
             json_is_string(json_array_get(merge, 1))) {
    return pipeline_add_merge(pipeline, text_of(json_array_get(merge, 0)),
                              text_of(json_array_get(merge, 1)));
  }
  return status_fail(NN_ERR_FORMAT, "merge %zu is not two tokens", at);
}

static nn_status_t read_bpe(const json_t *json, pipeline_t *pipeline) {
  model_t *model = &pipeline->model;
  const json_t *merges = json_object_get(json, "merges");
  const json_t *dropout = json_object_get(json, "dropout");
  text_t prefix = TEXT(""), suffix = TEXT("");
  STATUS_TRY(value_check_members(json, "the model BPE", MEMBERS(
      "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
      "byte_fallback", "ignore_merges", "vocab", "merges")));
  if (json_is_number(dropout) && json_number_value(dropout) > 0)
    return status_fail(NN_ERR_UNSUPPORTED, "the model BPE has a dropout of %g, which would make ids"
                       " random; set it to null", json_number_value(dropout));
  STATUS_TRY(value_get_bool(json, "fuse_unk", &model->fuse_unk));
  STATUS_TRY(value_get_bool(json, "byte_fallback", &model->byte_fallback));
  STATUS_TRY(value_get_bool(json, "ignore_merges", &model->ignore_merges));
  STATUS_TRY(value_get_text(json, "continuing_subword_prefix", &prefix));
  STATUS_TRY(value_get_text(json, "end_of_word_suffix", &suffix));
  STATUS_TRY(pipeline_copy(pipeline, prefix, &model->prefix));
  STATUS_TRY(pipeline_copy(pipeline, suffix, &model->suffix));
  STATUS_TRY(read_vocabulary(json, pipeline));
  STATUS_TRY(read_unk_token(json, pipeline));
  if (!json_is_array(merges)) return status_fail(NN_ERR_FORMAT, "\"merges\" is not an array");
  for (size_t i = 0; i < json_array_size(merges); i++)
    STATUS_TRY(read_merge(json_array_get(merges, i), i, pipeline));
  return NN_OK;
}

static nn_status_t read_unigram(const json_t *json, pipeline_t *pipeline) {
  model_t *model = &pipeline->model;
  int64_t unk = -1;
  model->kind = MODEL_UNIGRAM;
  STATUS_TRY(value_check_members(json, "the model Unigram",
                                MEMBERS("unk_id", "vocab", "byte_fallback")));
  STATUS_TRY(value_get_bool(json, "byte_fallback", &model->byte_fallback));
  STATUS_TRY(value_get_size(json, "unk_id", &unk));
  STATUS_TRY(read_pieces(json, pipeline));
  if (unk >= (int64_t)model->token_count)
    return status_fail(NN_ERR_FORMAT, "unk_id is %lld; the model has %zu tokens", (long long)unk,
                       model->token_count);
  model->unk_id = (int32_t)unk;
  return NN_OK;
}

static nn_status_t read_wordpiece(const json_t *json, pipeline_t *pipeline) {
  model_t *model = &pipeline->model;
  text_t prefix = TEXT("##");
  model->kind = MODEL_WORDPIECE;
  STATUS_TRY(value_check_members(json, "the model WordPiece", MEMBERS(
      "unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab")));
  STATUS_TRY(value_get_text(json, "continuing_subword_prefix", &prefix));
  STATUS_TRY(pipeline_copy(pipeline, prefix, &model->prefix));
  STATUS_TRY(value_get_size(json, "max_input_chars_per_word", &model->max_word));
  STATUS_TRY(read_vocabulary(json, pipeline));
  return read_unk_token(json, pipeline);
}

static nn_status_t read_wordlevel(const json_t *json, pipeline_t *pipeline) {
  pipeline->model.kind = MODEL_WORDLEVEL;
  STATUS_TRY(value_check_members(json, "the model WordLevel", MEMBERS("unk_token", "vocab")));
  STATUS_TRY(read_vocabulary(json, pipeline));
  return read_unk_token(json, pipeline);
}

/* Old files do not say what the model is; what it has tells. */
static nn_status_t read_model(const json_t *json, pipeline_t *pipeline) {
  const bool untyped = !*value_type(json);
  if (!json_is_object(json)) return status_fail(NN_ERR_FORMAT, "\"model\" is not an object");
  if (is(json, "BPE") || (untyped && json_object_get(json, "merges")))
    return read_bpe(json, pipeline);
  if (is(json, "Unigram") || (untyped && json_is_array(json_object_get(json, "vocab"))))
    return read_unigram(json, pipeline);
  if (is(json, "WordPiece") || (untyped && json_object_get(json, "continuing_subword_prefix")))
    return read_wordpiece(json, pipeline);
  if (is(json, "WordLevel") || untyped) return read_wordlevel(json, pipeline);
  return status_fail(
      NN_ERR_UNSUPPORTED,
      "the model \"%.80s\" is not understood; BPE, Unigram, WordPiece and WordLevel are",
      value_type(json));
}

/* ---- added tokens ---------------------------------------------------------------------------- */

static nn_status_t read_added(const json_t *json, pipeline_t *pipeline) {
  added_token_t token = {.content = TEXT(""), .normalized = true};
  int64_t id = -1;
  STATUS_TRY(value_check_members(json, "an added token", MEMBERS(
      "id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")));
  STATUS_TRY(value_get_text(json, "content", &token.content));
  if (!token.content.bytes) return NN_OK;
  STATUS_TRY(value_get_size(json, "id", &id));
  STATUS_TRY(value_get_bool(json, "single_word", &token.single_word));
  STATUS_TRY(value_get_bool(json, "lstrip", &token.lstrip));
  STATUS_TRY(value_get_bool(json, "rstrip", &token.rstrip));
  STATUS_TRY(value_get_bool(json, "normalized", &token.normalized));
  STATUS_TRY(value_get_bool(json, "special", &token.special));
  const int32_t of_model = pipeline_find(pipeline, token.content);
  if (of_model >= 0) id = of_model; /* as the tokenizers package has it */
  if (id < 0 || id > PIPELINE_MAX_ID)
    return status_fail(NN_ERR_FORMAT, "the added token \"%.80s\" has no id from 0 to %d",
                       token.content.data, PIPELINE_MAX_ID);
  token.id = (int32_t)id;
  return pipeline_add_added(pipeline, &token);
}

/* ---- post-processor -------------------------------------------------------------------------- */

typedef nn_status_t (*add_id_fn)(pipeline_t *pipeline, int32_t id);

static nn_status_t add_id(const json_t *id, add_id_fn add, pipeline_t *pipeline) {
  if (!json_is_integer(id) || json_integer_value(id) < 0 ||
      json_integer_value(id) > PIPELINE_MAX_ID)
    return status_fail(NN_ERR_FORMAT, "a special token of the post-processor has no id");
  return add(pipeline, (int32_t)json_integer_value(id));
}

/* The ids of a special token that a template names. */
static nn_status_t add_special(const json_t *template, const json_t *piece, add_id_fn add,
                               pipeline_t *pipeline) {
  const char *name = json_string_value(json_object_get(piece, "id"));
  const json_t *token =
      json_object_get(json_object_get(template, "special_tokens"), name ? name : "");
  const json_t *ids = json_object_get(token, "ids");
  if (!json_is_array(ids))
    return status_fail(NN_ERR_FORMAT, "the template does not say what \"%.80s\" is",
                       name ? name : "");
  for (size_t i = 0; i < json_array_size(ids); i++)
    STATUS_TRY(add_id(json_array_get(ids, i), add, pipeline));
  return NN_OK;
}

static nn_status_t read_template(const json_t *json, pipeline_t *pipeline) {
  const json_t *single = json_object_get(json, "single");
  int texts = 0;
  STATUS_TRY(value_check_members(json, "TemplateProcessing",
                                MEMBERS("single", "pair", "special_tokens")));
  if (!json_is_array(single))
    return status_fail(NN_ERR_FORMAT, "\"single\" of TemplateProcessing is not an array");
  for (size_t i = 0; i < json_array_size(single); i++) {
    const json_t *piece = json_array_get(single, i);
    const json_t *special = json_object_get(piece, "SpecialToken");
    if (!special) texts++;
    else STATUS_TRY(add_special(json, special, texts ? pipeline_add_suffix : pipeline_add_prefix,
                                pipeline));
  }
  if (texts != 1)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "the template of the post-processor has the text %d times", texts);
  return NN_OK;
}

/* BertProcessing and RobertaProcessing: cls text sep */
static nn_status_t read_cls_sep(const json_t *json, pipeline_t *pipeline) {
  STATUS_TRY(value_check_members(json, value_type(json),
                                MEMBERS("sep", "cls", "trim_offsets", "add_prefix_space")));
  const json_t *cls = json_array_get(json_object_get(json, "cls"), 1);
  const json_t *sep = json_array_get(json_object_get(json, "sep"), 1);
  STATUS_TRY(add_id(cls, pipeline_add_prefix, pipeline));
  return add_id(sep, pipeline_add_suffix, pipeline);
}

static nn_status_t read_trim(const json_t *json, pipeline_t *pipeline) {
  pipeline->trim_offsets = pipeline->trim_prefix_space = true;
  STATUS_TRY(value_get_bool(json, "trim_offsets", &pipeline->trim_offsets));
  return value_get_bool(json, "add_prefix_space", &pipeline->trim_prefix_space);
}

static nn_status_t read_post(const json_t *json, pipeline_t *pipeline) {
  if (!json || json_is_null(json)) return NN_OK;
  if (is(json, "Sequence")) return value_read_sequence(json, "processors", read_post, pipeline);
  if (is(json, "ByteLevel")) {
    STATUS_TRY(value_check_members(json, "ByteLevel",
                                  MEMBERS("add_prefix_space", "trim_offsets", "use_regex")));
    return read_trim(json, pipeline);
  }
  if (pipeline->prefix_count || pipeline->suffix_count)
    return status_fail(NN_ERR_UNSUPPORTED, "two post-processors that add tokens");
  if (is(json, "TemplateProcessing")) return read_template(json, pipeline);
  if (is(json, "BertProcessing")) return read_cls_sep(json, pipeline);
  if (is(json, "RobertaProcessing")) {
    STATUS_TRY(read_cls_sep(json, pipeline));
    return read_trim(json, pipeline);
  }
  return status_fail(NN_ERR_UNSUPPORTED, "the post-processor \"%.80s\" is not understood",
                     value_type(json));
}

/* ---- files ----------------------------------------------------------------------------------- */

bool tokenizer_json_is(const void *data, size_t bytes) {
  const char *text = data;
  size_t at = 0;
  while (at < bytes && memchr(" \n\r\t", text[at], 4)) at++;
  return at < bytes && text[at] == '{';
}

static nn_status_t read_root(const json_t *root, pipeline_t *pipeline) {
  STATUS_TRY(value_check_members(root, "the file", MEMBERS(
      "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
      "post_processor", "decoder", "model")));
  STATUS_TRY(read_model(json_object_get(root, "model"), pipeline));
  if (json_object_get(root, "added_tokens"))
    STATUS_TRY(value_read_sequence(root, "added_tokens", read_added, pipeline));
  STATUS_TRY(value_read_normalizer(json_object_get(root, "normalizer"), pipeline));
  STATUS_TRY(value_read_pre(json_object_get(root, "pre_tokenizer"), pipeline));
  STATUS_TRY(read_post(json_object_get(root, "post_processor"), pipeline));
  STATUS_TRY(value_read_decoder(json_object_get(root, "decoder"), pipeline));
  pipeline->special[NN_TOKEN_UNK] = pipeline->model.unk_id;
  return NN_OK;
}

nn_status_t tokenizer_json_read(const void *data, size_t bytes, pipeline_t *pipeline) {
  json_t *root;
  STATUS_TRY(json_text_read(data, bytes, JSON_ALLOW_NUL, &root));
  nn_status_t status = read_root(root, pipeline);
  json_decref(root);
  return status;
}

/* The id of a token that a configuration gives as a string or as {"content": ...}; -1: none. */
static int32_t named_id(const pipeline_t *pipeline, const json_t *named) {
  const json_t *string = json_is_object(named) ? json_object_get(named, "content") : named;
  if (!json_is_string(string)) return -1;
  for (size_t i = 0; i < pipeline->added_count; i++)
    if (text_equal(pipeline->added[i].content, text_of(string))) return pipeline->added[i].id;
  return pipeline_find(pipeline, text_of(string));
}

nn_status_t tokenizer_config_read(const void *data, size_t bytes, pipeline_t *pipeline) {
  static const char *const keys[] = {[NN_TOKEN_BOS] = "bos_token",
                                     [NN_TOKEN_EOS] = "eos_token",
                                     [NN_TOKEN_PAD] = "pad_token",
                                     [NN_TOKEN_UNK] = "unk_token"};
  json_t *root;
  STATUS_TRY(json_text_read(data, bytes, JSON_ALLOW_NUL, &root));
  for (int i = NN_TOKEN_BOS; i <= NN_TOKEN_UNK; i++) {
    const int32_t id = named_id(pipeline, json_object_get(root, keys[i]));
    if (id >= 0) pipeline->special[i] = id;
  }
  json_decref(root);
  return NN_OK;
}
