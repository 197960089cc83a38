/* The candidates of a Unigram vocabulary. Suffixes of the text, cut at MOST_PIECE characters and at
 * the end of their chunk, are sorted; a substring's places are then neighbours. Those substrings
 * are taken that some two places follow by different characters, and whole chunks; any other comes
 * as often as a longer one. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/list.h"
#include "text/unigram_text.h"

enum { MOST_PIECE = UNIGRAM_MOST_PIECE, MOST_SEEDS = 1000000 };

typedef struct candidate {
  int64_t count; /* how often it comes */
  int32_t chars;
  int32_t begin, end; /* its places, as indices into the sorted suffixes */
} candidate_t;

typedef struct seeder {
  unigram_text_t *text;
  const word_table_t *barred;
  int32_t *order, *spare; /* [chars] characters, sorted by the suffixes that begin there */
  uint8_t *shared;        /* [chars] characters that a suffix has in common with the one before */
  int64_t *weight;        /* [chars + 1] sums of the counts of the suffixes before each */
  candidate_t *candidates;
  size_t candidate_count, candidate_capacity;
  int64_t min_frequency;
} seeder_t;

/* ---- suffixes -------------------------------------------------------------------------------- */

static int32_t suffix_chars(const unigram_text_t *text, int32_t c) {
  const unigram_chunk_t *chunk = &text->chunks[text->chunk[c]];
  int32_t left = chunk->first + chunk->chars - c;
  return left < MOST_PIECE ? left : MOST_PIECE;
}

/* The byte of a suffix at a depth plus 1, or 0 behind its end. */
static uint32_t suffix_byte(const unigram_text_t *text, int32_t c, int32_t depth) {
  int32_t place = text->place[c] + depth;
  if (place >= text->place[c + suffix_chars(text, c)]) return 0;
  return (unsigned char)text->words->text[place] + 1u;
}

static int suffix_compare(const unigram_text_t *text, int32_t a, int32_t b, int32_t depth) {
  for (;; depth++) {
    uint32_t x = suffix_byte(text, a, depth), y = suffix_byte(text, b, depth);
    if (x != y) return x < y ? -1 : 1;
    if (!x) return 0;
  }
}

/* Stable, so that equal suffixes stay in the text's order: by insertion where there are few, else
 * by counting the bytes at depth, then each group for itself. The depth is bounded by a piece's
 * bytes. */
static void suffixes_sort(seeder_t *seeder, int64_t begin, int64_t end, int32_t depth) {
  const unigram_text_t *text = seeder->text;
  int32_t *order = seeder->order;
  enum { FEW = 24, KEYS = 257 };
  if (end - begin <= FEW) {
    for (int64_t i = begin + 1; i < end; i++) {
      int32_t c = order[i];
      int64_t at = i;
      for (; at > begin && suffix_compare(text, c, order[at - 1], depth) < 0; at--)
        order[at] = order[at - 1];
      order[at] = c;
    }
    return;
  }
  int64_t starts[KEYS + 1] = {0}, ends[KEYS];
  for (int64_t i = begin; i < end; i++) starts[suffix_byte(text, order[i], depth) + 1]++;
  for (int k = 0; k < KEYS; k++) starts[k + 1] += starts[k];
  for (int k = 0; k < KEYS; k++) ends[k] = starts[k];
  for (int64_t i = begin; i < end; i++)
    seeder->spare[begin + ends[suffix_byte(text, order[i], depth)]++] = order[i];
  memcpy(order + begin, seeder->spare + begin, (size_t)(end - begin) * sizeof *order);
  for (int k = 1; k < KEYS; k++) /* those of key 0 have ended */
    if (starts[k + 1] - starts[k] > 1)
      suffixes_sort(seeder, begin + starts[k], begin + starts[k + 1], depth + 1);
}

static uint8_t suffixes_share(const unigram_text_t *text, int32_t a, int32_t b) {
  int32_t most = suffix_chars(text, a), other = suffix_chars(text, b), chars = 0;
  if (other < most) most = other;
  for (; chars < most; chars++) {
    int32_t x = text->place[a + chars], y = text->place[b + chars];
    int32_t bytes = text->place[a + chars + 1] - x;
    if (bytes != text->place[b + chars + 1] - y ||
        memcmp(text->words->text + x, text->words->text + y, (size_t)bytes) != 0)
      break;
  }
  return (uint8_t)chars;
}

/* ---- candidates ------------------------------------------------------------------------------ */

static nn_status_t candidate_add(seeder_t *seeder, int32_t chars, int64_t begin, int64_t end) {
  int64_t count = seeder->weight[end] - seeder->weight[begin];
  if (chars < 2 || count < 2 || count < seeder->min_frequency) return NN_OK;
  const unigram_text_t *text = seeder->text;
  const int32_t first = seeder->order[begin], place = text->place[first];
  for (int32_t c = first; c < first + chars; c++) /* none has a character that is no piece */
    if (text->single[c] < 0) return NN_OK;
  if (word_table_find(seeder->barred, text->words->text + place,
                      (size_t)(text->place[first + chars] - place)) >= 0)
    return NN_OK;
  STATUS_TRY(
      LIST_GROW(seeder->candidates, seeder->candidate_count, seeder->candidate_capacity));
  seeder->candidates[seeder->candidate_count++] =
      (candidate_t){count, chars, (int32_t)begin, (int32_t)end};
  return NN_OK;
}

/* Every range of suffixes that share more characters than with their neighbours, found with a stack
 * of the open ones: as many characters as each shares, and where it begins. */
static nn_status_t candidates_find(seeder_t *seeder) {
  const int64_t chars = seeder->text->chars;
  int32_t depth[MOST_PIECE + 1];
  int64_t begin[MOST_PIECE + 1];
  int open = 0;
  depth[0] = 0, begin[0] = 0;
  for (int64_t i = 1; i <= chars; i++) {
    int32_t shared = i < chars ? seeder->shared[i] : 0;
    int64_t from = i - 1;
    while (depth[open] > shared) {
      STATUS_TRY(candidate_add(seeder, depth[open], begin[open], i));
      from = begin[open--];
    }
    if (depth[open] < shared) {
      open++;
      depth[open] = shared, begin[open] = from;
    }
  }
  return NN_OK;
}

/* Chunks that are no candidates yet, for no other has their text. */
static nn_status_t candidates_whole(seeder_t *seeder) {
  const unigram_text_t *text = seeder->text;
  for (int64_t i = 0; i < text->chars; i++) {
    int32_t c = seeder->order[i], chars = suffix_chars(text, c);
    const unigram_chunk_t *chunk = &text->chunks[text->chunk[c]];
    if (chunk->first != c || chunk->chars != chars) continue;
    if (seeder->shared[i] == chars || (i + 1 < text->chars && seeder->shared[i + 1] == chars))
      continue;
    STATUS_TRY(candidate_add(seeder, chars, i, i + 1));
  }
  return NN_OK;
}

static int compare_candidates(const void *a, const void *b) {
  const candidate_t *x = a, *y = b;
  int64_t left = x->count * x->chars, right = y->count * y->chars;
  if (left != right) return left > right ? -1 : 1;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  return (x->chars > y->chars) - (x->chars < y->chars);
}

/* ---- pieces ---------------------------------------------------------------------------------- */

/* The places of the chosen candidates, as lists of pieces by the character where they begin. */
static nn_status_t edges_build(seeder_t *seeder, size_t chosen) {
  unigram_text_t *text = seeder->text;
  int64_t *begin = text->edges_begin;
  void *edges;
  for (size_t i = 0; i < chosen; i++)
    for (int32_t s = seeder->candidates[i].begin; s < seeder->candidates[i].end; s++)
      begin[seeder->order[s] + 1]++;
  for (int64_t c = 0; c < text->chars; c++) begin[c + 1] += begin[c];
  STATUS_TRY(mem_alloc((size_t)begin[text->chars], sizeof *text->edges, &edges));
  text->edges = edges;
  for (size_t i = 0; i < chosen; i++) /* begin[c] runs ahead, to that of the next character */
    for (int32_t s = seeder->candidates[i].begin; s < seeder->candidates[i].end; s++)
      text->edges[begin[seeder->order[s]]++] = (int32_t)text->single_count + (int32_t)i;
  for (int64_t c = text->chars; c > 0; c--) begin[c] = begin[c - 1];
  begin[0] = 0;
  return NN_OK;
}

static nn_status_t pieces_build(seeder_t *seeder) {
  unigram_text_t *text = seeder->text;
  size_t chosen = seeder->candidate_count;
  if (chosen)
    qsort(seeder->candidates, chosen, sizeof *seeder->candidates, compare_candidates);
  if (chosen > MOST_SEEDS) chosen = MOST_SEEDS;
  size_t capacity = (size_t)text->single_count, counted = capacity;
  STATUS_TRY(LIST_ROOM(text->pieces, (size_t)text->single_count, chosen, capacity));
  STATUS_TRY(LIST_ROOM(text->counts, (size_t)text->single_count, chosen, counted));
  for (size_t i = 0; i < chosen; i++) {
    const candidate_t *candidate = &seeder->candidates[i];
    int32_t c = seeder->order[candidate->begin];
    text->pieces[text->piece_count] =
        (unigram_piece_t){.begin = text->place[c],
                          .bytes = text->place[c + candidate->chars] - text->place[c],
                          .chars = candidate->chars};
    text->counts[text->piece_count++] = candidate->count;
  }
  return edges_build(seeder, chosen);
}

static nn_status_t seeder_run(seeder_t *seeder, train_poll_fn poll, void *user) {
  const unigram_text_t *text = seeder->text;
  for (int64_t c = 0; c < text->chars; c++) seeder->order[c] = (int32_t)c;
  suffixes_sort(seeder, 0, text->chars, 0);
  STATUS_TRY(poll(user));
  for (int64_t i = 0; i < text->chars; i++) {
    const unigram_chunk_t *chunk = &text->chunks[text->chunk[seeder->order[i]]];
    seeder->weight[i + 1] = seeder->weight[i] + chunk->count;
    if (i) seeder->shared[i] = suffixes_share(text, seeder->order[i - 1], seeder->order[i]);
  }
  STATUS_TRY(candidates_find(seeder));
  STATUS_TRY(candidates_whole(seeder));
  STATUS_TRY(poll(user));
  return pieces_build(seeder);
}

nn_status_t unigram_text_seed(unigram_text_t *text, const word_table_t *barred,
                              int64_t min_frequency, train_poll_fn poll, void *user) {
  seeder_t seeder = {.text = text, .barred = barred, .min_frequency = min_frequency};
  const size_t chars = (size_t)text->chars;
  void *order = NULL, *spare = NULL, *shared = NULL, *weight = NULL, *begin = NULL;
  nn_status_t status = mem_alloc(chars, sizeof *seeder.order, &order);
  if (status == NN_OK) status = mem_alloc(chars, sizeof *seeder.spare, &spare);
  if (status == NN_OK) status = mem_alloc(chars, sizeof *seeder.shared, &shared);
  if (status == NN_OK) status = mem_alloc(chars + 1, sizeof *seeder.weight, &weight);
  if (status == NN_OK) status = mem_alloc(chars + 1, sizeof *text->edges_begin, &begin);
  seeder.order = order, seeder.spare = spare, seeder.shared = shared, seeder.weight = weight;
  text->edges_begin = begin;
  if (status == NN_OK) status = seeder_run(&seeder, poll, user);
  void *const arrays[] = {order, spare, shared, weight, seeder.candidates};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) mem_free(arrays[i]);
  return status;
}
