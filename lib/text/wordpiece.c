/* WordPiece: from the left, the longest token that the rest of the word begins with; those after
 * the first are spelt with a prefix. A word that does not end so, or is too long, is one unknown
 * token. */
#include "text/model.h"
#include "text/unicode.h"

static bool too_long(const model_t *model, text_t word) {
  int64_t characters = 0;
  if (word.bytes <= (uint64_t)(model->max_word > 0 ? model->max_word : 0)) return false;
  uint32_t taken;
  for (const char *at = word.data, *end = at + word.bytes; at < end; at += taken) {
    utf8_decode(at, end, &taken);
    if (++characters > model->max_word) return true;
  }
  return false;
}

/* The place in model->tokens of the longest token at `at`, -1: none; *end: its end. */
static int32_t longest(const vocabulary_t *vocabulary, text_t word, uint32_t at, uint32_t *end) {
  const trie_t *trie = &vocabulary->trie;
  uint32_t node = at && vocabulary->model->prefix.bytes ? vocabulary->continuing : 0;
  int32_t found = -1;
  if (at && vocabulary->model->prefix.bytes && !node) return -1;
  while (at < word.bytes && (node = trie_step(trie, node, (unsigned char)word.data[at]))) {
    at++;
    if (trie->nodes[node].value < 0) continue;
    found = trie->nodes[node].value;
    *end = at;
  }
  return found;
}

static nn_status_t unknown_word(const model_t *model, pieces_t *pieces, text_t word) {
  if (model->unk_id < 0)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "the word \"%.*s\" is not in the vocabulary, which has no token for"
                       " unknown words", word.bytes < 40 ? (int)word.bytes : 40, word.data);
  pieces->count = 0;
  return pieces_add(pieces, model->unk_id, (span_t){0, (uint32_t)word.bytes});
}

nn_status_t wordpiece_encode(const vocabulary_t *vocabulary, model_memory_t *memory, text_t word) {
  const model_t *model = vocabulary->model;
  if (too_long(model, word)) return unknown_word(model, &memory->pieces, word);
  for (uint32_t at = 0, end = 0; at < word.bytes; at = end) {
    const int32_t token = longest(vocabulary, word, at, &end);
    if (token < 0) return unknown_word(model, &memory->pieces, word);
    STATUS_TRY(pieces_add(&memory->pieces, model->tokens[token].id, (span_t){at, end}));
  }
  return NN_OK;
}
