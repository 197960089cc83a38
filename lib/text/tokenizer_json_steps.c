/* The normalizer, pre-tokenizer and decoder of a tokenizer.json. A sequence becomes its members'
 * steps. */
#include <string.h>

#include "base/mem.h"
#include "text/base64.h"
#include "text/tokenizer_json.h"

#define MEMBERS(...) ((const char *const[]){__VA_ARGS__, NULL})

typedef struct name {
  const char *name;
  int32_t value;
} name_t;

static bool is(const json_t *json, const char *type) { return strcmp(value_type(json), type) == 0; }

/* The value of a name in a list that a NULL name ends; false: it is not there. */
static bool look_up(const name_t *names, const char *name, int32_t *value) {
  for (; names->name; names++)
    if (strcmp(names->name, name) == 0) {
      *value = names->value;
      return true;
    }
  return false;
}

static nn_status_t unknown(const char *what, const json_t *json) {
  if (!json_is_object(json)) return status_fail(NN_ERR_FORMAT, "the %s is not an object", what);
  return status_fail(NN_ERR_UNSUPPORTED, "the %s \"%.80s\" is not understood", what,
                     value_type(json));
}

/* ---- normalizer ------------------------------------------------------------------------------ */

static nn_status_t read_bert(const json_t *json, pipeline_t *pipeline) {
  normalizer_step_t step = {.kind = NORMALIZE_BERT, .clean_text = true, .chinese_chars = true,
                            .lowercase = true};
  STATUS_TRY(value_check_members(json, "BertNormalizer", MEMBERS(
      "clean_text", "strip_accents", "handle_chinese_chars", "lowercase")));
  STATUS_TRY(value_get_bool(json, "clean_text", &step.clean_text));
  STATUS_TRY(value_get_bool(json, "handle_chinese_chars", &step.chinese_chars));
  STATUS_TRY(value_get_bool(json, "lowercase", &step.lowercase));
  step.strip_accents = step.lowercase;
  STATUS_TRY(value_get_bool(json, "strip_accents", &step.strip_accents));
  return pipeline_add_normalizer(pipeline, &step);
}

static nn_status_t add_charsmap(pipeline_t *pipeline, text_t encoded, char *map) {
  normalizer_step_t step = {.kind = NORMALIZE_CHARSMAP, .graphemes = true, .content = {map, 0}};
  if (!base64_decode(encoded, map, &step.content.bytes))
    return status_fail(NN_ERR_FORMAT, "precompiled_charsmap is not base64");
  return step.content.bytes ? pipeline_add_normalizer(pipeline, &step) : NN_OK;
}

static nn_status_t read_charsmap(const json_t *json, pipeline_t *pipeline) {
  text_t encoded = TEXT("");
  void *map;
  STATUS_TRY(value_check_members(json, "Precompiled", MEMBERS("precompiled_charsmap")));
  STATUS_TRY(value_get_text(json, "precompiled_charsmap", &encoded));
  STATUS_TRY(mem_alloc(base64_room(encoded.bytes), 1, &map));
  nn_status_t status = add_charsmap(pipeline, encoded, map);
  mem_free(map);
  return status;
}

nn_status_t value_read_normalizer(const json_t *json, pipeline_t *pipeline) {
  static const name_t plain[] = {
      {"NFC", NORMALIZE_NFC}, {"NFD", NORMALIZE_NFD}, {"NFKC", NORMALIZE_NFKC},
      {"NFKD", NORMALIZE_NFKD}, {"Lowercase", NORMALIZE_LOWERCASE}, {"Nmt", NORMALIZE_NMT},
      {"StripAccents", NORMALIZE_STRIP_ACCENTS}, {"ByteLevel", NORMALIZE_BYTE_LEVEL}, {NULL, 0}};
  normalizer_step_t step = {0};
  if (!json || json_is_null(json)) return NN_OK;
  if (is(json, "Sequence"))
    return value_read_sequence(json, "normalizers", value_read_normalizer, pipeline);
  if (is(json, "BertNormalizer")) return read_bert(json, pipeline);
  if (is(json, "Precompiled")) return read_charsmap(json, pipeline);
  if (look_up(plain, value_type(json), &step.kind)) {
    STATUS_TRY(value_check_members(json, value_type(json), NULL));
  } else if (is(json, "Strip")) {
    step.kind = NORMALIZE_STRIP;
    step.left = step.right = true;
    STATUS_TRY(value_check_members(json, "Strip", MEMBERS("strip_left", "strip_right")));
    STATUS_TRY(value_get_bool(json, "strip_left", &step.left));
    STATUS_TRY(value_get_bool(json, "strip_right", &step.right));
  } else if (is(json, "Prepend")) {
    step.kind = NORMALIZE_PREPEND;
    STATUS_TRY(value_check_members(json, "Prepend", MEMBERS("prepend")));
    STATUS_TRY(value_get_text(json, "prepend", &step.content));
  } else if (is(json, "Replace")) {
    step.kind = NORMALIZE_REPLACE;
    STATUS_TRY(value_check_members(json, "Replace", MEMBERS("pattern", "content")));
    STATUS_TRY(value_get_pattern(json, "pattern", &step.pattern));
    STATUS_TRY(value_get_text(json, "content", &step.content));
  } else {
    return unknown("normalizer", json);
  }
  return pipeline_add_normalizer(pipeline, &step);
}

/* ---- pre-tokenizer --------------------------------------------------------------------------- */

static nn_status_t read_behavior(const json_t *json, int32_t *behavior) {
  static const name_t behaviors[] = {{"Removed", SPLIT_REMOVED},
                                     {"Isolated", SPLIT_ISOLATED},
                                     {"MergedWithPrevious", SPLIT_MERGED_WITH_PREVIOUS},
                                     {"MergedWithNext", SPLIT_MERGED_WITH_NEXT},
                                     {"Contiguous", SPLIT_CONTIGUOUS},
                                     {NULL, 0}};
  text_t name = TEXT("Isolated");
  STATUS_TRY(value_get_text(json, "behavior", &name));
  if (look_up(behaviors, name.data, behavior)) return NN_OK;
  return status_fail(NN_ERR_UNSUPPORTED, "%s has the behavior \"%.40s\", which is not understood",
                     value_type(json), name.data);
}

/* Metaspace, of pre-tokenizers and decoders. */
static nn_status_t read_metaspace(const json_t *json, text_t *mark, int32_t *prepend, bool *split) {
  static const name_t schemes[] = {{"always", PREPEND_ALWAYS},
                                   {"first", PREPEND_FIRST},
                                   {"never", PREPEND_NEVER},
                                   {NULL, 0}};
  text_t scheme = TEXT("always");
  bool prefix_space = true;
  *mark = TEXT("\xE2\x96\x81");
  *split = true;
  STATUS_TRY(value_check_members(json, "Metaspace", MEMBERS(
      "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep")));
  STATUS_TRY(value_get_text(json, "replacement", mark));
  STATUS_TRY(value_get_text(json, "prepend_scheme", &scheme));
  STATUS_TRY(value_get_bool(json, "add_prefix_space", &prefix_space));
  STATUS_TRY(value_get_bool(json, "split", split));
  if (!look_up(schemes, scheme.data, prepend))
    return status_fail(NN_ERR_UNSUPPORTED,
                       "Metaspace has the prepend_scheme \"%.40s\", which is not understood",
                       scheme.data);
  if (!prefix_space) *prepend = PREPEND_NEVER;
  if (!mark->bytes) return status_fail(NN_ERR_FORMAT, "Metaspace has an empty replacement");
  return NN_OK;
}

static nn_status_t read_byte_level(const json_t *json, pre_step_t *step) {
  step->prefix_space = step->split = true;
  STATUS_TRY(value_check_members(json, "ByteLevel",
                                MEMBERS("add_prefix_space", "trim_offsets", "use_regex")));
  STATUS_TRY(value_get_bool(json, "add_prefix_space", &step->prefix_space));
  return value_get_bool(json, "use_regex", &step->split);
}

static nn_status_t read_pre_members(const json_t *json, pre_step_t *step) {
  switch (step->kind) {
    case PRE_BYTE_LEVEL: return read_byte_level(json, step);
    case PRE_METASPACE: return read_metaspace(json, &step->content, &step->prepend, &step->split);
    case PRE_SPLIT:
      STATUS_TRY(value_check_members(json, "Split", MEMBERS("pattern", "behavior", "invert")));
      STATUS_TRY(value_get_pattern(json, "pattern", &step->pattern));
      STATUS_TRY(value_get_bool(json, "invert", &step->invert));
      return read_behavior(json, &step->behavior);
    case PRE_PUNCTUATION:
      STATUS_TRY(value_check_members(json, "Punctuation", MEMBERS("behavior")));
      return read_behavior(json, &step->behavior);
    case PRE_DIGITS:
      STATUS_TRY(value_check_members(json, "Digits", MEMBERS("individual_digits")));
      return value_get_bool(json, "individual_digits", &step->single);
    case PRE_DELIMITER:
      STATUS_TRY(value_check_members(json, "CharDelimiterSplit", MEMBERS("delimiter")));
      return value_get_text(json, "delimiter", &step->content);
    case PRE_FIXED_LENGTH:
      step->length = 5;
      STATUS_TRY(value_check_members(json, "FixedLength", MEMBERS("length")));
      return value_get_size(json, "length", &step->length);
    default: return value_check_members(json, value_type(json), NULL);
  }
}

nn_status_t value_read_pre(const json_t *json, pipeline_t *pipeline) {
  static const name_t kinds[] = {
      {"ByteLevel", PRE_BYTE_LEVEL}, {"Metaspace", PRE_METASPACE}, {"Split", PRE_SPLIT},
      {"Whitespace", PRE_WHITESPACE}, {"WhitespaceSplit", PRE_WHITESPACE_SPLIT},
      {"Punctuation", PRE_PUNCTUATION}, {"Digits", PRE_DIGITS}, {"BertPreTokenizer", PRE_BERT},
      {"CharDelimiterSplit", PRE_DELIMITER}, {"FixedLength", PRE_FIXED_LENGTH}, {NULL, 0}};
  pre_step_t step = {0};
  if (!json || json_is_null(json)) return NN_OK;
  if (is(json, "Sequence"))
    return value_read_sequence(json, "pretokenizers", value_read_pre, pipeline);
  if (!look_up(kinds, value_type(json), &step.kind)) return unknown("pre-tokenizer", json);
  STATUS_TRY(read_pre_members(json, &step));
  return pipeline_add_pre(pipeline, &step);
}

/* ---- decoder --------------------------------------------------------------------------------- */

static nn_status_t read_decoder_members(const json_t *json, decoder_step_t *step) {
  bool ignored;
  switch (step->kind) {
    case DECODE_METASPACE: return read_metaspace(json, &step->content, &step->prepend, &ignored);
    case DECODE_STRIP:
      STATUS_TRY(value_check_members(json, "Strip", MEMBERS("content", "start", "stop")));
      STATUS_TRY(value_get_size(json, "start", &step->start));
      STATUS_TRY(value_get_size(json, "stop", &step->stop));
      return value_get_text(json, "content", &step->content);
    case DECODE_REPLACE:
      STATUS_TRY(value_check_members(json, "Replace", MEMBERS("pattern", "content")));
      STATUS_TRY(value_get_pattern(json, "pattern", &step->pattern));
      return value_get_text(json, "content", &step->content);
    case DECODE_WORDPIECE:
      step->content = TEXT("##");
      step->cleanup = true;
      STATUS_TRY(value_check_members(json, "WordPiece", MEMBERS("prefix", "cleanup")));
      STATUS_TRY(value_get_text(json, "prefix", &step->content));
      return value_get_bool(json, "cleanup", &step->cleanup);
    case DECODE_BPE:
      step->content = TEXT("</w>");
      STATUS_TRY(value_check_members(json, "BPEDecoder", MEMBERS("suffix")));
      return value_get_text(json, "suffix", &step->content);
    case DECODE_CTC:
      step->pattern.text = TEXT("<pad>");
      step->content = TEXT("|");
      step->cleanup = true;
      STATUS_TRY(value_check_members(json, "CTC", MEMBERS("pad_token", "word_delimiter_token",
                                                         "cleanup")));
      STATUS_TRY(value_get_text(json, "pad_token", &step->pattern.text));
      STATUS_TRY(value_get_text(json, "word_delimiter_token", &step->content));
      return value_get_bool(json, "cleanup", &step->cleanup);
    case DECODE_BYTE_LEVEL:
      return value_check_members(json, "ByteLevel",
                                MEMBERS("add_prefix_space", "trim_offsets", "use_regex"));
    default: return value_check_members(json, value_type(json), NULL);
  }
}

nn_status_t value_read_decoder(const json_t *json, pipeline_t *pipeline) {
  static const name_t kinds[] = {
      {"ByteLevel", DECODE_BYTE_LEVEL}, {"ByteFallback", DECODE_BYTE_FALLBACK},
      {"Fuse", DECODE_FUSE}, {"Metaspace", DECODE_METASPACE}, {"Strip", DECODE_STRIP},
      {"Replace", DECODE_REPLACE}, {"WordPiece", DECODE_WORDPIECE}, {"BPEDecoder", DECODE_BPE},
      {"CTC", DECODE_CTC}, {NULL, 0}};
  decoder_step_t step = {0};
  if (!json || json_is_null(json)) return NN_OK;
  if (is(json, "Sequence"))
    return value_read_sequence(json, "decoders", value_read_decoder, pipeline);
  if (!look_up(kinds, value_type(json), &step.kind)) return unknown("decoder", json);
  STATUS_TRY(read_decoder_members(json, &step));
  return pipeline_add_decoder(pipeline, &step);
}
