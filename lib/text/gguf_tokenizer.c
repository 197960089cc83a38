#include "text/gguf_tokenizer.h"

#include <math.h>

#include "base/mem.h"
#include "format/gguf.h"
#include "text/patterns.h"
#include "text/sentencepiece.h"
#include "text/unicode.h"

/* Arrays that have an element for each token. */
typedef struct vocabulary {
  gguf_value_t tokens, types, scores;
  bool has_types, has_scores;
  int64_t count;
} vocabulary_t;

static nn_status_t find_string(const gguf_t *file, const char *key, text_t *text, bool *found) {
  gguf_value_t value;
  STATUS_TRY(gguf_find_as(file, key, false, GGUF_STRING, &value, found));
  *text = *found ? (text_t){(const char *)value.data, value.bytes} : (text_t){"", 0};
  return NN_OK;
}

static nn_status_t find_array(const gguf_t *file, const char *key, uint32_t type,
                              const vocabulary_t *vocabulary, gguf_value_t *value, bool *found) {
  STATUS_TRY(gguf_find_as(file, key, true, type, value, found));
  if (*found && value->count != (uint64_t)vocabulary->count)
    return status_fail(NN_ERR_FORMAT, "%s has %llu elements; tokenizer.ggml.tokens has %lld", key,
                       (unsigned long long)value->count, (long long)vocabulary->count);
  return NN_OK;
}

static nn_status_t vocabulary_find(const gguf_t *file, vocabulary_t *vocabulary) {
  bool found;
  STATUS_TRY(gguf_find_as(file, "tokenizer.ggml.tokens", true, GGUF_STRING, &vocabulary->tokens,
                          &found));
  if (!found || !vocabulary->tokens.count)
    return status_fail(NN_ERR_FORMAT, "the file has no tokenizer.ggml.tokens");
  if (vocabulary->tokens.count > PIPELINE_MAX_ID)
    return status_fail(NN_ERR_FORMAT,
                       "tokenizer.ggml.tokens has %llu elements; at most %d are read",
                       (unsigned long long)vocabulary->tokens.count, PIPELINE_MAX_ID);
  vocabulary->count = (int64_t)vocabulary->tokens.count;
  STATUS_TRY(find_array(file, "tokenizer.ggml.token_type", GGUF_I32, vocabulary,
                        &vocabulary->types, &vocabulary->has_types));
  return find_array(file, "tokenizer.ggml.scores", GGUF_F32, vocabulary, &vocabulary->scores,
                    &vocabulary->has_scores);
}

static int32_t token_type(const vocabulary_t *vocabulary, int64_t id) {
  int32_t type = SP_NORMAL;
  if (vocabulary->has_types) memcpy(&type, vocabulary->types.data + 4 * id, sizeof type);
  return type;
}

static float token_score(const vocabulary_t *vocabulary, int64_t id) {
  float score = 0;
  if (vocabulary->has_scores) memcpy(&score, vocabulary->scores.data + 4 * id, sizeof score);
  return score;
}

/* ---- ids with a meaning ---------------------------------------------------------------------- */

static nn_status_t find_id(const gguf_t *file, const char *key, int64_t count, int32_t *id) {
  int64_t number;
  STATUS_TRY(gguf_integer(file, key, -1, &number));
  if (number == UINT32_MAX) number = -1; /* as some writers say that there is none */
  if (number < -1 || number >= count)
    return status_fail(NN_ERR_FORMAT, "%s is %lld; there are %lld tokens", key, (long long)number,
                       (long long)count);
  if (number >= 0) *id = (int32_t)number;
  return NN_OK;
}

/* What stands before and after a text; add_bos: where the file does not say so. */
static nn_status_t add_ends(const gguf_t *file, const vocabulary_t *vocabulary, bool add_bos,
                            pipeline_t *pipeline) {
  int32_t *special = pipeline->special;
  int64_t bos, eos;
  STATUS_TRY(find_id(file, "tokenizer.ggml.bos_token_id", vocabulary->count,
                     &special[NN_TOKEN_BOS]));
  STATUS_TRY(find_id(file, "tokenizer.ggml.eos_token_id", vocabulary->count,
                     &special[NN_TOKEN_EOS]));
  STATUS_TRY(find_id(file, "tokenizer.ggml.padding_token_id", vocabulary->count,
                     &special[NN_TOKEN_PAD]));
  STATUS_TRY(find_id(file, "tokenizer.ggml.unknown_token_id", vocabulary->count,
                     &special[NN_TOKEN_UNK]));
  STATUS_TRY(gguf_integer(file, "tokenizer.ggml.add_bos_token", add_bos, &bos));
  STATUS_TRY(gguf_integer(file, "tokenizer.ggml.add_eos_token", 0, &eos));
  if (bos && special[NN_TOKEN_BOS] >= 0)
    STATUS_TRY(pipeline_add_prefix(pipeline, special[NN_TOKEN_BOS]));
  if (eos && special[NN_TOKEN_EOS] >= 0)
    STATUS_TRY(pipeline_add_suffix(pipeline, special[NN_TOKEN_EOS]));
  return NN_OK;
}

/* ---- SentencePiece --------------------------------------------------------------------------- */

static nn_status_t pieces_fill(const vocabulary_t *vocabulary, sp_file_t *model) {
  const unsigned char *place = vocabulary->tokens.data;
  for (int64_t i = 0; i < vocabulary->count; i++) {
    sp_piece_t *piece = &model->pieces[i];
    gguf_next_string(&place, &piece->text.data, &piece->text.bytes);
    piece->score = token_score(vocabulary, i);
    piece->type = token_type(vocabulary, i);
    if (!piece->text.bytes || !isfinite(piece->score) || piece->type < SP_NORMAL ||
        piece->type > SP_BYTE)
      return status_fail(NN_ERR_FORMAT,
                         "token %lld has %zu bytes, the score %g and the type %d; it needs text, a "
                         "finite score and a type from %d to %d",
                         (long long)i, piece->text.bytes, (double)piece->score, piece->type,
                         SP_NORMAL, SP_BYTE);
    if (piece->type == SP_BYTE) model->byte_fallback = true;
  }
  return NN_OK;
}

/* The two kinds have different defaults. */
static nn_status_t pieces_settings(const gguf_t *file, bool unigram, sp_file_t *model) {
  int64_t prefix, collapse;
  gguf_value_t charsmap;
  bool found;
  STATUS_TRY(gguf_integer(file, "tokenizer.ggml.add_space_prefix", 1, &prefix));
  STATUS_TRY(gguf_integer(file, "tokenizer.ggml.remove_extra_whitespaces", unigram, &collapse));
  STATUS_TRY(gguf_find_as(file, "tokenizer.ggml.precompiled_charsmap", true, GGUF_U8, &charsmap,
                          &found));
  model->model_type = unigram ? SP_MODEL_UNIGRAM : SP_MODEL_BPE;
  model->add_dummy_prefix = prefix != 0;
  model->remove_extra_whitespaces = collapse != 0;
  model->escape_whitespaces = true;
  model->unk_surface = TEXT(" \xe2\x81\x87 ");
  if (found) model->charsmap = (text_t){(const char *)charsmap.data, charsmap.bytes};
  return NN_OK;
}

static nn_status_t read_pieces(const gguf_t *file, const vocabulary_t *vocabulary, bool unigram,
                               pipeline_t *pipeline) {
  sp_file_t model = {.count = vocabulary->count};
  void *pieces;
  STATUS_TRY(pieces_settings(file, unigram, &model));
  STATUS_TRY(mem_alloc((size_t)vocabulary->count, sizeof *model.pieces, &pieces));
  model.pieces = pieces;
  nn_status_t status = pieces_fill(vocabulary, &model);
  if (status == NN_OK) status = sentencepiece_describe(&model, pipeline);
  mem_free(pieces);
  STATUS_TRY(status);
  return add_ends(file, vocabulary, !unigram, pipeline);
}

/* ---- byte-level BPE -------------------------------------------------------------------------- */

typedef struct named_cut {
  const char *name;
  word_cut_t cut;
  bool whole_words; /* a word that is a token stays whole */
  bool add_bos;
} named_cut_t;

static const named_cut_t cuts[] = {
    {"default", CUT_DEFAULT, false, false},
    {"gpt-2", CUT_GPT2, false, false},
    {"olmo", CUT_GPT2, false, false},
    {"llama-bpe", CUT_LLAMA3, true, true},
    {"qwen2", CUT_QWEN2, false, false},
    {"deepseek-llm", CUT_DEEPSEEK_LLM, false, false},
    {"deepseek-v3", CUT_DEEPSEEK_V3, false, false},
    {"gpt-4o", CUT_O200K, false, false},
    {"glm4", CUT_LLAMA3, false, false},
    {"chatglm-bpe", CUT_LLAMA3, false, false},
    {"refact", CUT_DIGITS_GPT2, false, false},
    {"tekken", CUT_TEKKEN, true, true},
};

static nn_status_t find_cut(const gguf_t *file, const named_cut_t **cut) {
  text_t name;
  bool found;
  STATUS_TRY(find_string(file, "tokenizer.ggml.pre", &name, &found));
  if (!found) name = TEXT("default");
  for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++)
    if (text_equal(name, (text_t){cuts[i].name, strlen(cuts[i].name)})) {
      *cut = &cuts[i];
      return NN_OK;
    }
  return status_fail(NN_ERR_UNSUPPORTED, "tokenizer.ggml.pre is \"%.*s\", a way to cut text into "
                     "words that this library does not know",
                     name.bytes < 60 ? (int)name.bytes : 60, name.data);
}

/* Control and user-defined tokens are cut out of the text, spelled as they are. */
static nn_status_t add_tokens(const vocabulary_t *vocabulary, pipeline_t *pipeline) {
  const unsigned char *place = vocabulary->tokens.data;
  for (int64_t i = 0; i < vocabulary->count; i++) {
    const int32_t type = token_type(vocabulary, i);
    text_t text;
    gguf_next_string(&place, &text.data, &text.bytes);
    if (utf8_valid(text.data, text.bytes) != text.bytes)
      return status_fail(NN_ERR_FORMAT, "token %lld is not UTF-8", (long long)i);
    if (type == SP_CONTROL || type == SP_USER_DEFINED) {
      STATUS_TRY(pipeline_add_added(pipeline, &(added_token_t){.content = text,
                                                               .id = (int32_t)i,
                                                               .verbatim = true,
                                                               .special = type == SP_CONTROL}));
    } else {
      if (pipeline_find(pipeline, text) >= 0)
        return status_fail(NN_ERR_FORMAT, "token %lld has the text of another", (long long)i);
      STATUS_TRY(pipeline_add_token(pipeline, text, (int32_t)i, 0));
    }
  }
  return NN_OK;
}

/* "left right"; neither begins with a space, for byte-level vocabularies spell it otherwise. */
static nn_status_t add_merges(const gguf_t *file, pipeline_t *pipeline) {
  gguf_value_t merges;
  bool found;
  STATUS_TRY(gguf_find_as(file, "tokenizer.ggml.merges", true, GGUF_STRING, &merges, &found));
  if (!found) return status_fail(NN_ERR_FORMAT, "the file has no tokenizer.ggml.merges");
  const unsigned char *place = merges.data;
  for (uint64_t i = 0; i < merges.count; i++) {
    text_t pair;
    gguf_next_string(&place, &pair.data, &pair.bytes);
    const char *space = memchr(pair.data, ' ', pair.bytes);
    if (!space)
      return status_fail(NN_ERR_FORMAT, "merge %llu has no space", (unsigned long long)i);
    const size_t left = (size_t)(space - pair.data);
    STATUS_TRY(pipeline_add_merge(pipeline, (text_t){pair.data, left},
                                  (text_t){space + 1, pair.bytes - left - 1}));
  }
  return NN_OK;
}

static nn_status_t read_bytes(const gguf_t *file, const vocabulary_t *vocabulary,
                              pipeline_t *pipeline) {
  const named_cut_t *cut = NULL;
  STATUS_TRY(find_cut(file, &cut));
  STATUS_TRY(add_tokens(vocabulary, pipeline));
  STATUS_TRY(add_merges(file, pipeline));
  pipeline->model.ignore_merges = cut->whole_words;
  STATUS_TRY(patterns_add(pipeline, cut->cut));
  return add_ends(file, vocabulary, cut->add_bos, pipeline);
}

/* ---- the file -------------------------------------------------------------------------------- */

nn_status_t gguf_tokenizer_read(text_t file, pipeline_t *pipeline) {
  gguf_t parsed;
  vocabulary_t vocabulary = {0};
  text_t kind;
  bool found;
  STATUS_TRY(gguf_parse((const unsigned char *)file.data, file.bytes, &parsed));
  STATUS_TRY(find_string(&parsed, "tokenizer.ggml.model", &kind, &found));
  if (!found) return status_fail(NN_ERR_FORMAT, "the file has no tokenizer.ggml.model");
  STATUS_TRY(vocabulary_find(&parsed, &vocabulary));
  if (text_equal(kind, TEXT("llama"))) return read_pieces(&parsed, &vocabulary, false, pipeline);
  if (text_equal(kind, TEXT("t5"))) return read_pieces(&parsed, &vocabulary, true, pipeline);
  if (text_equal(kind, TEXT("gpt2"))) return read_bytes(&parsed, &vocabulary, pipeline);
  return status_fail(NN_ERR_UNSUPPORTED,
                     "tokenizer.ggml.model is \"%.*s\"; this library reads llama, t5 and gpt2",
                     kind.bytes < 60 ? (int)kind.bytes : 60, kind.data);
}
