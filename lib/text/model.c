#include "text/model.h"

#include <math.h>
#include <stdio.h>

#include "base/mem.h"
#include "text/bytemap.h"
#include "text/list.h"
#include "text/unicode.h"

nn_status_t pieces_add(pieces_t *pieces, int32_t id, span_t span) {
  STATUS_TRY(LIST_GROW(pieces->ids, pieces->count, pieces->id_capacity));
  STATUS_TRY(LIST_GROW(pieces->spans, pieces->count, pieces->span_capacity));
  pieces->ids[pieces->count] = id;
  pieces->spans[pieces->count++] = span;
  return NN_OK;
}

void model_memory_free(model_memory_t *memory) {
  mem_free(memory->pieces.ids);
  mem_free(memory->pieces.spans);
  mem_free(memory->symbols);
  mem_free(memory->heap);
  mem_free(memory->arcs);
  buffer_free(&memory->decorated);
  *memory = (model_memory_t){0};
}

/* ---- making a vocabulary --------------------------------------------------------------------- */

static int32_t find(const model_t *model, text_t text) {
  const int32_t at = text_index_get(&model->index, text);
  return at < 0 ? -1 : model->tokens[at].id;
}

bool vocabulary_has_bytes(const model_t *model) {
  char text[2];
  for (int byte = 0; byte < 256; byte++)
    if (find(model, (text_t){text, bytemap_write((unsigned char)byte, text)}) < 0) return false;
  return true;
}

static nn_status_t index_raw(vocabulary_t *vocabulary) {
  const model_t *model = vocabulary->model;
  size_t total = 1, written = 0;
  void *raw;
  for (size_t i = 0; i < model->token_count; i++) total += model->tokens[i].text.bytes;
  STATUS_TRY(mem_alloc(total, 1, &raw));
  vocabulary->raw = raw;
  for (size_t i = 0; i < model->token_count; i++) {
    size_t bytes;
    char *to = vocabulary->raw + written;
    const text_t text = model->tokens[i].text;
    if (!bytemap_read(text.data, text.bytes, to, &bytes)) continue;
    STATUS_TRY(text_index_put(&vocabulary->index, (text_t){to, bytes}, model->tokens[i].id));
    if (bytes == 1) vocabulary->byte_ids[(unsigned char)*to] = model->tokens[i].id;
    written += bytes;
  }
  return NN_OK;
}

static void find_characters(vocabulary_t *vocabulary) {
  const model_t *model = vocabulary->model;
  for (int byte = 0; byte < 256; byte++) {
    char name[8];
    snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
    vocabulary->byte_ids[byte] = find(model, (text_t){name, 6});
  }
  for (int code = 0; code < 128; code++) {
    const char character = (char)code;
    vocabulary->ascii_ids[code] = find(model, (text_t){&character, 1});
  }
}

static nn_status_t make_trie(vocabulary_t *vocabulary) {
  const model_t *model = vocabulary->model;
  void *memory;
  size_t count = 0;
  STATUS_TRY(mem_alloc(model->token_count, sizeof(trie_entry_t), &memory));
  trie_entry_t *entries = memory;
  for (size_t i = 0; i < model->token_count; i++) {
    const text_t text = model->tokens[i].text;
    if (!text.bytes || model->tokens[i].score == -INFINITY) continue;
    entries[count++] = (trie_entry_t){text, (int32_t)i};
    if (text.bytes > vocabulary->longest) vocabulary->longest = (uint32_t)text.bytes;
  }
  nn_status_t status = trie_create(entries, count, &vocabulary->trie);
  mem_free(entries);
  if (status == NN_OK && model->prefix.bytes)
    vocabulary->continuing = trie_walk(&vocabulary->trie, 0, model->prefix);
  return status;
}

/* What an unknown character costs: 10 less than the worst token. */
static double worst_score(const model_t *model) {
  double worst = 0;
  for (size_t i = 0; i < model->token_count; i++)
    if (model->tokens[i].score > -INFINITY && model->tokens[i].score < worst)
      worst = model->tokens[i].score;
  return worst - 10;
}

static nn_status_t fill(vocabulary_t *vocabulary) {
  const model_t *model = vocabulary->model;
  if (vocabulary->bytes) STATUS_TRY(index_raw(vocabulary));
  else find_characters(vocabulary);
  switch (model->kind) {
    case MODEL_BPE: return bpe_create(vocabulary);
    case MODEL_UNIGRAM:
      vocabulary->unk_score = worst_score(model);
      if (model->single) vocabulary->unk_score = (float)vocabulary->unk_score;
      return make_trie(vocabulary);
    case MODEL_WORDPIECE: return make_trie(vocabulary);
    default: return NN_OK;
  }
}

nn_status_t vocabulary_create(const model_t *model, bool bytes, vocabulary_t *vocabulary) {
  *vocabulary = (vocabulary_t){.model = model, .bytes = bytes};
  nn_status_t status = fill(vocabulary);
  if (status != NN_OK) vocabulary_free(vocabulary);
  return status;
}

void vocabulary_free(vocabulary_t *vocabulary) {
  text_index_free(&vocabulary->index);
  mem_free(vocabulary->raw);
  mem_free(vocabulary->pairs);
  trie_free(&vocabulary->trie);
  *vocabulary = (vocabulary_t){0};
}

/* ---- encoding -------------------------------------------------------------------------------- */

nn_status_t pieces_add_unknown(const vocabulary_t *vocabulary, pieces_t *pieces, text_t word,
                               span_t part) {
  const model_t *model = vocabulary->model;
  bool bytes = model->byte_fallback;
  for (uint32_t i = part.begin; bytes && i < part.end; i++)
    bytes = vocabulary->byte_ids[(unsigned char)word.data[i]] >= 0;
  if (!bytes) return pieces_add(pieces, model->unk_id, part);
  for (uint32_t i = part.begin; i < part.end; i++)
    STATUS_TRY(pieces_add(pieces, vocabulary->byte_ids[(unsigned char)word.data[i]], part));
  return NN_OK;
}

static nn_status_t wordlevel_encode(const vocabulary_t *vocabulary, model_memory_t *memory,
                                    text_t word) {
  const model_t *model = vocabulary->model;
  const int32_t id = find(model, word);
  if (id < 0 && model->unk_id < 0)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "the word \"%.*s\" is not in the vocabulary, which has no token for"
                       " unknown words", word.bytes < 40 ? (int)word.bytes : 40, word.data);
  return pieces_add(&memory->pieces, id < 0 ? model->unk_id : id,
                    (span_t){0, (uint32_t)word.bytes});
}

/* Words begin with U+2581, the first one with the text. Neighbours that are unknown are one. */
static nn_status_t marked_words_encode(const vocabulary_t *vocabulary, model_memory_t *memory,
                                       text_t text) {
  static const char mark[] = "\xe2\x96\x81";
  enum { MARK = sizeof mark - 1 };
  const model_t *model = vocabulary->model;
  span_t unknown = {0, 0};
  for (uint32_t at = 0, end; at < text.bytes; at = end) {
    for (end = at + 1; end < text.bytes; end++)
      if (text.bytes - end >= MARK && memcmp(text.data + end, mark, MARK) == 0) break;
    const int32_t token = text_index_get(&model->index, (text_t){text.data + at, end - at});
    if (token < 0 || model->tokens[token].score == -INFINITY) {
      if (unknown.begin == unknown.end) unknown.begin = at;
      unknown.end = end;
      continue;
    }
    if (unknown.begin < unknown.end)
      STATUS_TRY(pieces_add_unknown(vocabulary, &memory->pieces, text, unknown));
    unknown = (span_t){end, end};
    STATUS_TRY(pieces_add(&memory->pieces, model->tokens[token].id, (span_t){at, end}));
  }
  if (unknown.begin == unknown.end) return NN_OK;
  return pieces_add_unknown(vocabulary, &memory->pieces, text, unknown);
}

nn_status_t model_encode(const vocabulary_t *vocabulary, model_memory_t *memory, text_t word) {
  memory->pieces.count = 0;
  if (word.bytes == 0) return NN_OK;
  switch (vocabulary->model->kind) {
    case MODEL_BPE: return bpe_encode(vocabulary, memory, word);
    case MODEL_UNIGRAM: return unigram_encode(vocabulary, memory, word);
    case MODEL_WORDPIECE: return wordpiece_encode(vocabulary, memory, word);
    case MODEL_MARKED_WORDS: return marked_words_encode(vocabulary, memory, word);
    default: return wordlevel_encode(vocabulary, memory, word);
  }
}
