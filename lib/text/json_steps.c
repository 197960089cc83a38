#include "base/mem.h"
#include "text/base64.h"
#include "text/json_put.h"
#include "text/json_save.h"

static void put_pattern(output_t *output, const pattern_t *pattern) {
  json_put_name(output, "pattern");
  output_text(output, pattern->regex ? "{\"Regex\": " : "{\"String\": ");
  json_put_string(output, pattern->text);
  output_text(output, "}");
}

/* `{"type": "name"`, a comma before all but the first of a list. */
static void put_type(output_t *output, bool first, const char *name) {
  output_text(output, first ? "\n      {\"type\": \"" : ",\n      {\"type\": \"");
  output_text(output, name);
  output_text(output, "\"");
}

/* The member that is a list of steps: a Sequence, or the step itself where it is the only one. */
static void put_open(output_t *output, bool alone, const char *member, const char *list) {
  output_text(output, ",\n  \"");
  output_text(output, member);
  output_text(output, "\": ");
  if (alone) return;
  output_text(output, "{\"type\": \"Sequence\", \"");
  output_text(output, list);
  output_text(output, "\": [");
}

static void put_end(output_t *output, bool alone) {
  if (!alone) output_text(output, "]}");
}

static void put_replace(output_t *output, bool first, bool regex, text_t pattern, text_t content) {
  put_type(output, first, "Replace");
  put_pattern(output, &(pattern_t){.text = pattern, .regex = regex});
  json_put_member(output, "content", content);
  json_put_close(output);
}

static const text_t blank = {"\xe2\x96\x81", 3}; /* U+2581 */

/* ---- normalizer ------------------------------------------------------------------------------ */

static nn_status_t put_charsmap(output_t *output, bool first, text_t map) {
  void *encoded;
  const size_t bytes = base64_length(map.bytes);
  STATUS_TRY(mem_alloc(bytes, 1, &encoded));
  base64_encode(map.data, map.bytes, encoded);
  put_type(output, first, "Precompiled");
  json_put_member(output, "precompiled_charsmap", (text_t){encoded, bytes});
  json_put_close(output);
  mem_free(encoded);
  return NN_OK;
}

static nn_status_t put_sentencepiece(output_t *output, bool first, const normalizer_step_t *step) {
  if (step->content.bytes) {
    STATUS_TRY(put_charsmap(output, first, step->content));
    first = false;
  }
  if (step->collapse) {
    put_type(output, first, "Strip");
    json_put_flag(output, "strip_left", true);
    json_put_flag(output, "strip_right", true);
    json_put_close(output);
    put_replace(output, false, true, TEXT(" {2,}"), TEXT(" "));
    first = false;
  }
  const text_t space = step->escape ? blank : TEXT(" ");
  if (step->left) {
    put_type(output, first, "Prepend");
    json_put_member(output, "prepend", space);
    json_put_close(output);
    first = false;
  }
  if (step->escape) put_replace(output, first, false, TEXT(" "), blank);
  if (step->right)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "tokenizer.json has no step that puts white space behind a text");
  return NN_OK;
}

static nn_status_t put_normalizer_step(output_t *output, bool first,
                                       const normalizer_step_t *step) {
  static const char *const names[] = {
      [NORMALIZE_NFC] = "NFC",         [NORMALIZE_NFD] = "NFD",
      [NORMALIZE_NFKC] = "NFKC",       [NORMALIZE_NFKD] = "NFKD",
      [NORMALIZE_LOWERCASE] = "Lowercase", [NORMALIZE_STRIP_ACCENTS] = "StripAccents",
      [NORMALIZE_STRIP] = "Strip",     [NORMALIZE_REPLACE] = "Replace",
      [NORMALIZE_PREPEND] = "Prepend", [NORMALIZE_NMT] = "Nmt",
      [NORMALIZE_BERT] = "BertNormalizer", [NORMALIZE_BYTE_LEVEL] = "ByteLevel"};
  if (step->kind == NORMALIZE_CHARSMAP) return put_charsmap(output, first, step->content);
  if (step->kind == NORMALIZE_SENTENCEPIECE) return put_sentencepiece(output, first, step);
  if (step->kind == NORMALIZE_APPEND)
    return status_fail(NN_ERR_UNSUPPORTED, "tokenizer.json has no normalizer that appends");
  put_type(output, first, names[step->kind]);
  switch (step->kind) {
    case NORMALIZE_STRIP:
      json_put_flag(output, "strip_left", step->left);
      json_put_flag(output, "strip_right", step->right);
      break;
    case NORMALIZE_REPLACE:
      put_pattern(output, &step->pattern);
      json_put_member(output, "content", step->content);
      break;
    case NORMALIZE_PREPEND: json_put_member(output, "prepend", step->content); break;
    case NORMALIZE_BERT:
      json_put_flag(output, "clean_text", step->clean_text);
      json_put_flag(output, "handle_chinese_chars", step->chinese_chars);
      json_put_flag(output, "strip_accents", step->strip_accents);
      json_put_flag(output, "lowercase", step->lowercase);
      break;
    default: break;
  }
  json_put_close(output);
  return NN_OK;
}

nn_status_t json_put_normalizer(output_t *output, const pipeline_t *pipeline) {
  if (!pipeline->normalizer_count) {
    json_put_null(output, "normalizer");
    return NN_OK;
  }
  const bool alone = pipeline->normalizer_count == 1 &&
                     pipeline->normalizer[0].kind != NORMALIZE_SENTENCEPIECE;
  put_open(output, alone, "normalizer", "normalizers");
  for (size_t i = 0; i < pipeline->normalizer_count; i++)
    STATUS_TRY(put_normalizer_step(output, i == 0, &pipeline->normalizer[i]));
  put_end(output, alone);
  return NN_OK;
}

/* ---- pre-tokenizer --------------------------------------------------------------------------- */

static text_t behavior_name(int32_t behavior) {
  static const char *const names[] = {[SPLIT_REMOVED] = "Removed",
                                      [SPLIT_ISOLATED] = "Isolated",
                                      [SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
                                      [SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
                                      [SPLIT_CONTIGUOUS] = "Contiguous"};
  return (text_t){names[behavior], strlen(names[behavior])};
}

static text_t prepend_name(int32_t prepend) {
  if (prepend == PREPEND_NEVER) return TEXT("never");
  return prepend == PREPEND_FIRST ? TEXT("first") : TEXT("always");
}

static void put_pre_step(output_t *output, bool first, const pre_step_t *step) {
  static const char *const names[] = {[PRE_BYTE_LEVEL] = "ByteLevel",
                                      [PRE_METASPACE] = "Metaspace",
                                      [PRE_SPLIT] = "Split",
                                      [PRE_WHITESPACE] = "Whitespace",
                                      [PRE_WHITESPACE_SPLIT] = "WhitespaceSplit",
                                      [PRE_PUNCTUATION] = "Punctuation",
                                      [PRE_DIGITS] = "Digits",
                                      [PRE_BERT] = "BertPreTokenizer",
                                      [PRE_DELIMITER] = "CharDelimiterSplit",
                                      [PRE_FIXED_LENGTH] = "FixedLength"};
  put_type(output, first, names[step->kind]);
  switch (step->kind) {
    case PRE_BYTE_LEVEL:
      json_put_flag(output, "add_prefix_space", step->prefix_space);
      json_put_flag(output, "trim_offsets", true);
      json_put_flag(output, "use_regex", step->split);
      break;
    case PRE_METASPACE:
      json_put_member(output, "replacement", step->content);
      json_put_member(output, "prepend_scheme", prepend_name(step->prepend));
      json_put_flag(output, "split", step->split);
      break;
    case PRE_SPLIT:
      put_pattern(output, &step->pattern);
      json_put_member(output, "behavior", behavior_name(step->behavior));
      json_put_flag(output, "invert", step->invert);
      break;
    case PRE_PUNCTUATION: json_put_member(output, "behavior", behavior_name(step->behavior)); break;
    case PRE_DIGITS: json_put_flag(output, "individual_digits", step->single); break;
    case PRE_DELIMITER: json_put_member(output, "delimiter", step->content); break;
    case PRE_FIXED_LENGTH: json_put_number(output, "length", step->length); break;
    default: break;
  }
  json_put_close(output);
}

void json_put_pre(output_t *output, const pipeline_t *pipeline) {
  if (!pipeline->pre_count) {
    json_put_null(output, "pre_tokenizer");
    return;
  }
  const bool alone = pipeline->pre_count == 1;
  put_open(output, alone, "pre_tokenizer", "pretokenizers");
  for (size_t i = 0; i < pipeline->pre_count; i++)
    put_pre_step(output, i == 0, &pipeline->pre[i]);
  put_end(output, alone);
}

/* ---- decoder --------------------------------------------------------------------------------- */

static void put_strip(output_t *output, bool first, text_t content, int64_t start, int64_t stop) {
  put_type(output, first, "Strip");
  json_put_member(output, "content", content);
  json_put_number(output, "start", start);
  json_put_number(output, "stop", stop);
  json_put_close(output);
}

static void put_plain_decoder(output_t *output, bool first, const char *name) {
  put_type(output, first, name);
  json_put_close(output);
}

static void put_decoder_step(output_t *output, bool first, const decoder_step_t *step) {
  switch (step->kind) {
    case DECODE_BYTE_LEVEL: /* whose settings are those of the pre-tokenizer of that name */
      put_type(output, first, "ByteLevel");
      json_put_flag(output, "add_prefix_space", false);
      json_put_flag(output, "trim_offsets", true);
      json_put_flag(output, "use_regex", true);
      break;
    case DECODE_BYTE_FALLBACK: put_plain_decoder(output, first, "ByteFallback"); return;
    case DECODE_FUSE: put_plain_decoder(output, first, "Fuse"); return;
    case DECODE_STRIP:
      put_strip(output, first, step->content, step->start, step->stop);
      return;
    case DECODE_REPLACE:
      put_replace(output, first, step->pattern.regex, step->pattern.text, step->content);
      return;
    case DECODE_SENTENCEPIECE:
      put_replace(output, first, false, blank, TEXT(" "));
      put_plain_decoder(output, false, "ByteFallback");
      put_plain_decoder(output, false, "Fuse");
      put_strip(output, false, TEXT(" "), step->start, 0);
      return;
    case DECODE_METASPACE:
      put_type(output, first, "Metaspace");
      json_put_member(output, "replacement", step->content);
      json_put_member(output, "prepend_scheme", prepend_name(step->prepend));
      json_put_flag(output, "split", true);
      break;
    case DECODE_WORDPIECE:
      put_type(output, first, "WordPiece");
      json_put_member(output, "prefix", step->content);
      json_put_flag(output, "cleanup", step->cleanup);
      break;
    case DECODE_BPE:
      put_type(output, first, "BPEDecoder");
      json_put_member(output, "suffix", step->content);
      break;
    case DECODE_CTC:
      put_type(output, first, "CTC");
      json_put_member(output, "pad_token", step->pattern.text);
      json_put_member(output, "word_delimiter_token", step->content);
      json_put_flag(output, "cleanup", step->cleanup);
      break;
  }
  json_put_close(output);
}

void json_put_decoder(output_t *output, const pipeline_t *pipeline) {
  if (!pipeline->decoder_count) {
    json_put_null(output, "decoder");
    return;
  }
  const bool alone =
      pipeline->decoder_count == 1 && pipeline->decoder[0].kind != DECODE_SENTENCEPIECE;
  put_open(output, alone, "decoder", "decoders");
  for (size_t i = 0; i < pipeline->decoder_count; i++)
    put_decoder_step(output, i == 0, &pipeline->decoder[i]);
  put_end(output, alone);
}

