/* Unigram (Kudo, 2018): the way through a word whose tokens have the largest sum of log
 * probabilities, found by Viterbi's algorithm from left to right. Of equal sums the one with the
 * longer last token stays. */
#include "text/list.h"
#include "text/model.h"
#include "text/unicode.h"

/* The best way to a place in the word: its last token begins at `begin`. */
struct arc {
  double score;
  int32_t token; /* place in model->tokens; UNKNOWN: none */
  uint32_t begin;
};

#define UNREACHED UINT32_MAX
enum { UNKNOWN = -1 };

static void reach(const model_t *model, struct arc *arc, double score, uint32_t begin,
                  int32_t token) {
  if (model->single) score = (float)score;
  if (arc->begin == UNREACHED || score > arc->score)
    *arc = (struct arc){.score = score, .token = token, .begin = begin};
}

/* All tokens that begin at `begin`. */
static nn_status_t extend(const vocabulary_t *vocabulary, struct arc *arcs, text_t word,
                          uint32_t begin, uint32_t *taken) {
  const model_t *model = vocabulary->model;
  const double so_far = arcs[begin].score;
  bool single = false;
  uint32_t node = 0;
  utf8_decode(word.data + begin, word.data + word.bytes, taken);
  for (uint32_t end = begin; end < word.bytes;) {
    node = trie_step(&vocabulary->trie, node, (unsigned char)word.data[end++]);
    if (!node) break;
    const int32_t token = vocabulary->trie.nodes[node].value;
    if (token < 0) continue;
    reach(model, &arcs[end], so_far + model->tokens[token].score, begin, token);
    single |= end - begin == *taken;
  }
  if (single) return NN_OK;
  if (model->unk_id < 0)
    return status_fail(NN_ERR_UNSUPPORTED, "the character \"%.*s\" is not in the vocabulary, which"
                       " has no token for unknown ones", (int)*taken, word.data + begin);
  reach(model, &arcs[begin + *taken], so_far + vocabulary->unk_score, begin, UNKNOWN);
  return NN_OK;
}

/* Sums of single precision begin anew where they have become large, as SentencePiece has them. */
static void rebase(const vocabulary_t *vocabulary, struct arc *arcs, uint32_t at, uint32_t bytes) {
  static const double largest = 1e5;
  const double so_far = arcs[at].score;
  if (!vocabulary->model->single || so_far >= -largest) return;
  for (uint32_t end = at; end <= bytes && end - at <= vocabulary->longest; end++)
    if (arcs[end].begin != UNREACHED) arcs[end].score = (float)(arcs[end].score - so_far);
}

/* An unknown part: its own token after all, its bytes, or unk. */
static nn_status_t add_unknown(const vocabulary_t *vocabulary, pieces_t *pieces, text_t word,
                               span_t part) {
  const model_t *model = vocabulary->model;
  const text_t text = {word.data + part.begin, part.end - part.begin};
  const int32_t token = text_index_get(&model->index, text);
  if (token >= 0) return pieces_add(pieces, model->tokens[token].id, part);
  return pieces_add_unknown(vocabulary, pieces, word, part);
}

/* Turns the links of the best way, from each end to its token's beginning, into links from each
 * beginning to the end. */
static void turn(struct arc *arcs, uint32_t bytes) {
  uint32_t at = bytes, next = bytes;
  for (;;) {
    const uint32_t before = at ? arcs[at].begin : 0;
    arcs[at].begin = next;
    next = at;
    if (!at) return;
    at = before;
  }
}

static nn_status_t collect(const vocabulary_t *vocabulary, const struct arc *arcs, text_t word,
                           pieces_t *pieces) {
  const model_t *model = vocabulary->model;
  span_t unknown = {0, 0}; /* neighbouring unknown characters are one */
  for (uint32_t at = 0, end; at < word.bytes; at = end) {
    end = arcs[at].begin;
    const int32_t token = arcs[end].token;
    if (token == UNKNOWN || model->tokens[token].id == model->unk_id) {
      if (unknown.begin == unknown.end) unknown.begin = at;
      unknown.end = end;
      continue;
    }
    if (unknown.begin < unknown.end)
      STATUS_TRY(add_unknown(vocabulary, pieces, word, unknown));
    unknown = (span_t){end, end};
    STATUS_TRY(pieces_add(pieces, model->tokens[token].id, (span_t){at, end}));
  }
  return unknown.begin < unknown.end ? add_unknown(vocabulary, pieces, word, unknown) : NN_OK;
}

nn_status_t unigram_encode(const vocabulary_t *vocabulary, model_memory_t *memory, text_t word) {
  const uint32_t bytes = (uint32_t)word.bytes;
  STATUS_TRY(LIST_ROOM(memory->arcs, 0, word.bytes + 1, memory->arc_capacity));
  struct arc *arcs = memory->arcs;
  for (uint32_t i = 0; i <= bytes; i++) arcs[i].begin = UNREACHED;
  arcs[0] = (struct arc){.score = 0, .token = UNKNOWN};
  for (uint32_t at = 0, taken; at < bytes; at += taken) {
    rebase(vocabulary, arcs, at, bytes);
    STATUS_TRY(extend(vocabulary, arcs, word, at, &taken));
  }
  turn(arcs, bytes);
  return collect(vocabulary, arcs, word, &memory->pieces);
}
