/* The text of all words lies in one array of places, a byte each. A symbol is a run of places
 * inside a word, known by its first; each symbol but a word's last begins one pair. A pair's places
 * form a list through the arrays `before` and `after`, so that merging a pair touches its places
 * alone, and all merges together take time in proportion to the text. Counts are exact at any time;
 * the heap's may be outdated, always upwards, and are looked at again when they come up. */
#include "text/bpe_train.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/bytemap.h"
#include "text/list.h"

enum { NONE = -1 };

typedef struct pair {
  int32_t left, right; /* tokens */
  int32_t first;       /* place of its list, or NONE */
  int32_t touched;     /* the last merge that gave it places, counted from 1 */
  int64_t count;       /* sum of its places' words' counts */
  bool barred;         /* from becoming a token */
} pair_t;

typedef struct heap_entry {
  int64_t count;
  int32_t pair;
} heap_entry_t;

typedef struct trainer {
  const word_table_t *words, *barred;
  bpe_trained_t *trained;
  /* of each place */
  int32_t *symbol; /* the token that begins here; undefined inside a symbol */
  int32_t *begin;  /* where the symbol that ends here begins; undefined elsewhere */
  int32_t *word;   /* index */
  int32_t *before, *after; /* in its pair's list, or NONE; undefined where no pair begins */
  int64_t places;
  pair_t *pairs;
  int32_t *slots; /* [slot_count], a power of two: the index of a pair + 1, or 0 */
  size_t pair_count, pair_capacity, slot_count;
  heap_entry_t *heap;
  size_t heap_count, heap_capacity;
  int32_t *changed; /* pairs that the merge at work gave places */
  size_t changed_count, changed_capacity;
  int32_t *sorted; /* places of the pair at work */
  size_t sorted_capacity;
} trainer_t;

/* ---- pairs ----------------------------------------------------------------------------------- */

static size_t pair_hash(int32_t left, int32_t right) {
  uint64_t key = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
  return (size_t)(key ^ key >> 32);
}

static int32_t *pair_slot(const trainer_t *trainer, int32_t left, int32_t right) {
  for (size_t at = pair_hash(left, right);; at++) {
    int32_t *slot = &trainer->slots[at & (trainer->slot_count - 1)];
    if (!*slot) return slot;
    const pair_t *pair = &trainer->pairs[*slot - 1];
    if (pair->left == left && pair->right == right) return slot;
  }
}

static nn_status_t pair_slots_grow(trainer_t *trainer) {
  if (2 * (trainer->pair_count + 1) <= trainer->slot_count) return NN_OK;
  void *slots;
  trainer->slot_count = trainer->slot_count ? 2 * trainer->slot_count : 1024;
  STATUS_TRY(mem_alloc(trainer->slot_count, sizeof *trainer->slots, &slots));
  mem_free(trainer->slots);
  trainer->slots = slots;
  for (size_t i = 0; i < trainer->pair_count; i++)
    *pair_slot(trainer, trainer->pairs[i].left, trainer->pairs[i].right) = (int32_t)i + 1;
  return NN_OK;
}

/* The record of a pair, made where there is none. */
static nn_status_t pair_find(trainer_t *trainer, int32_t left, int32_t right, int32_t *index) {
  STATUS_TRY(pair_slots_grow(trainer));
  int32_t *slot = pair_slot(trainer, left, right);
  if (!*slot) {
    if (trainer->pair_count == INT32_MAX - 1)
      return status_fail(NN_ERR_CAPACITY, "more than %zu distinct pairs", trainer->pair_count);
    STATUS_TRY(LIST_GROW(trainer->pairs, trainer->pair_count, trainer->pair_capacity));
    trainer->pairs[trainer->pair_count] = (pair_t){.left = left, .right = right, .first = NONE};
    *slot = (int32_t)++trainer->pair_count;
  }
  *index = *slot - 1;
  return NN_OK;
}

/* ---- places ---------------------------------------------------------------------------------- */

static int32_t symbol_bytes(const trainer_t *trainer, int32_t place) {
  return (int32_t)trainer->trained->tokens.words[trainer->symbol[place]].bytes;
}

/* The symbol behind that at place, or NONE at the word's end. */
static int32_t place_next(const trainer_t *trainer, int32_t place) {
  int32_t next = place + symbol_bytes(trainer, place);
  bool same = next < trainer->places && trainer->word[next] == trainer->word[place];
  return same ? next : NONE;
}

static int32_t place_previous(const trainer_t *trainer, int32_t place) {
  bool same = place > 0 && trainer->word[place - 1] == trainer->word[place];
  return same ? trainer->begin[place - 1] : NONE;
}

/* Puts the pair that begins at place into its list; `merge` is the number of the one at work. */
static nn_status_t place_link(trainer_t *trainer, int32_t place, int32_t merge) {
  int32_t next = place_next(trainer, place), index = 0;
  STATUS_TRY(pair_find(trainer, trainer->symbol[place], trainer->symbol[next], &index));
  pair_t *pair = &trainer->pairs[index];
  trainer->before[place] = NONE;
  trainer->after[place] = pair->first;
  if (pair->first != NONE) trainer->before[pair->first] = place;
  pair->first = place;
  pair->count += trainer->words->words[trainer->word[place]].count;
  if (pair->touched == merge) return NN_OK;
  pair->touched = merge;
  STATUS_TRY(LIST_GROW(trainer->changed, trainer->changed_count, trainer->changed_capacity));
  trainer->changed[trainer->changed_count++] = index;
  return NN_OK;
}

/* Takes the pair that begins at place, as the symbols stand, out of its list. */
static void place_unlink(trainer_t *trainer, int32_t place) {
  int32_t next = place_next(trainer, place);
  pair_t *pair =
      &trainer->pairs[*pair_slot(trainer, trainer->symbol[place], trainer->symbol[next]) - 1];
  int32_t before = trainer->before[place], after = trainer->after[place];
  if (before != NONE) trainer->after[before] = after;
  else pair->first = after;
  if (after != NONE) trainer->before[after] = before;
  pair->count -= trainer->words->words[trainer->word[place]].count;
}

/* ---- the heap: the most frequent pair on top, of equals that with the lower ids -------------- */

static bool heap_above(const trainer_t *trainer, heap_entry_t a, heap_entry_t b) {
  if (a.count != b.count) return a.count > b.count;
  const pair_t *one = &trainer->pairs[a.pair], *other = &trainer->pairs[b.pair];
  return one->left != other->left ? one->left < other->left : one->right < other->right;
}

static nn_status_t heap_push(trainer_t *trainer, int32_t pair) {
  STATUS_TRY(LIST_GROW(trainer->heap, trainer->heap_count, trainer->heap_capacity));
  heap_entry_t entry = {trainer->pairs[pair].count, pair};
  size_t at = trainer->heap_count++;
  for (; at && heap_above(trainer, entry, trainer->heap[(at - 1) / 2]); at = (at - 1) / 2)
    trainer->heap[at] = trainer->heap[(at - 1) / 2];
  trainer->heap[at] = entry;
  return NN_OK;
}

/* Moves the top, whose count has fallen, to its place. */
static void heap_sink(trainer_t *trainer, heap_entry_t entry) {
  size_t at = 0;
  for (size_t child; (child = 2 * at + 1) < trainer->heap_count; at = child) {
    if (child + 1 < trainer->heap_count &&
        heap_above(trainer, trainer->heap[child + 1], trainer->heap[child]))
      child++;
    if (!heap_above(trainer, trainer->heap[child], entry)) break;
    trainer->heap[at] = trainer->heap[child];
  }
  trainer->heap[at] = entry;
}

/* The most frequent pair, or NONE when all are gone. */
static int32_t heap_pop(trainer_t *trainer) {
  while (trainer->heap_count) {
    heap_entry_t top = trainer->heap[0];
    int64_t count = trainer->pairs[top.pair].barred ? 0 : trainer->pairs[top.pair].count;
    if (top.count == count && count > 0) return top.pair;
    if (count > 0) {
      heap_sink(trainer, (heap_entry_t){count, top.pair});
    } else {
      heap_entry_t last = trainer->heap[--trainer->heap_count];
      if (trainer->heap_count) heap_sink(trainer, last);
    }
  }
  return NONE;
}

/* ---- merging --------------------------------------------------------------------------------- */

/* The pair that begins at place becomes one symbol. */
static nn_status_t place_merge(trainer_t *trainer, int32_t place, int32_t made, int32_t merge) {
  int32_t right = place_next(trainer, place), previous = place_previous(trainer, place);
  int32_t next = place_next(trainer, right);
  place_unlink(trainer, place);
  if (previous != NONE) place_unlink(trainer, previous);
  if (next != NONE) place_unlink(trainer, right);
  int32_t end = right + symbol_bytes(trainer, right);
  trainer->symbol[place] = made;
  trainer->begin[end - 1] = place;
  if (previous != NONE) STATUS_TRY(place_link(trainer, previous, merge));
  return next != NONE ? place_link(trainer, place, merge) : NN_OK;
}

static int compare_places(const void *a, const void *b) {
  int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
  return (x > y) - (x < y);
}

/* A pair's places from left to right. */
static nn_status_t places_sort(trainer_t *trainer, const pair_t *pair, size_t *count) {
  *count = 0;
  for (int32_t place = pair->first; place != NONE; place = trainer->after[place]) {
    STATUS_TRY(LIST_GROW(trainer->sorted, *count, trainer->sorted_capacity));
    trainer->sorted[(*count)++] = place;
  }
  if (*count) qsort(trainer->sorted, *count, sizeof *trainer->sorted, compare_places);
  return NN_OK;
}

/* Everywhere: places that overlap go to the left one. */
static nn_status_t merge_all(trainer_t *trainer, bpe_merge_t merge, const pair_t *pair,
                             int32_t number) {
  size_t count;
  STATUS_TRY(places_sort(trainer, pair, &count));
  trainer->changed_count = 0;
  for (size_t i = 0; i < count; i++) {
    int32_t place = trainer->sorted[i];
    if (i && trainer->sorted[i - 1] == NONE) continue;
    STATUS_TRY(place_merge(trainer, place, merge.made, number));
    /* where both are the same, the next place may have been inside this one */
    int32_t inside = place + (int32_t)trainer->trained->tokens.words[merge.left].bytes;
    if (i + 1 < count && trainer->sorted[i + 1] == inside) trainer->sorted[i] = NONE;
  }
  for (size_t i = 0; i < trainer->changed_count; i++)
    STATUS_TRY(heap_push(trainer, trainer->changed[i]));
  return NN_OK;
}

/* The token that a pair makes, and the merge in the list; or the pair is barred. */
static nn_status_t merge_make(trainer_t *trainer, pair_t *pair, bpe_merge_t *merge) {
  bpe_trained_t *trained = trainer->trained;
  const word_t *left = &trained->tokens.words[pair->left];
  const word_t *right = &trained->tokens.words[pair->right];
  size_t bytes = left->bytes + right->bytes;
  void *text;
  *merge = (bpe_merge_t){.left = pair->left, .right = pair->right};
  STATUS_TRY(mem_alloc(bytes, 1, &text));
  memcpy(text, word_text(&trained->tokens, pair->left), left->bytes);
  memcpy((char *)text + left->bytes, word_text(&trained->tokens, pair->right), right->bytes);
  pair->barred = word_table_find(trainer->barred, text, bytes) >= 0;
  nn_status_t status =
      pair->barred ? NN_OK : word_table_add(&trained->tokens, text, bytes, 0, &merge->made);
  mem_free(text);
  if (pair->barred) return NN_OK;
  STATUS_TRY(status);
  STATUS_TRY(LIST_GROW(trained->merges, trained->merge_count, trained->merge_capacity));
  trained->merges[trained->merge_count++] = *merge;
  return NN_OK;
}

/* ---- a training ------------------------------------------------------------------------------ */

/* The first tokens; byte_tokens [256] says which byte is which. */
static nn_status_t bytes_add(word_table_t *tokens, int32_t *byte_tokens) {
  for (uint32_t code = 0; code < BYTEMAP_END; code++) {
    int byte = bytemap_byte(code);
    char text = (char)byte;
    if (byte >= 0) STATUS_TRY(word_table_add(tokens, &text, 1, 0, &byte_tokens[byte]));
  }
  return NN_OK;
}

/* Every byte a symbol of its own. */
static nn_status_t places_fill(trainer_t *trainer) {
  int32_t byte_tokens[256];
  STATUS_TRY(bytes_add(&trainer->trained->tokens, byte_tokens));
  const word_table_t *words = trainer->words;
  for (size_t w = 0; w < words->word_count; w++)
    for (size_t i = 0; i < words->words[w].bytes; i++) {
      int32_t place = (int32_t)(words->words[w].begin + i);
      trainer->symbol[place] = byte_tokens[(unsigned char)words->text[place]];
      trainer->begin[place] = place;
      trainer->word[place] = (int32_t)w;
    }
  for (int32_t place = 0; place < trainer->places; place++)
    if (place_next(trainer, place) != NONE) STATUS_TRY(place_link(trainer, place, 1));
  for (size_t i = 0; i < trainer->pair_count; i++) STATUS_TRY(heap_push(trainer, (int32_t)i));
  return NN_OK;
}

static nn_status_t trainer_run(trainer_t *trainer, int64_t most, int64_t min_frequency,
                               train_poll_fn poll, void *user) {
  bpe_trained_t *trained = trainer->trained;
  STATUS_TRY(places_fill(trainer));
  for (int32_t number = 2; (int64_t)trained->tokens.word_count < most; number++) {
    int32_t index = heap_pop(trainer);
    if (index == NONE || trainer->pairs[index].count < min_frequency) break;
    bpe_merge_t merge;
    STATUS_TRY(merge_make(trainer, &trainer->pairs[index], &merge));
    if (trainer->pairs[index].barred) continue;
    pair_t pair = trainer->pairs[index]; /* a copy: the table may move */
    STATUS_TRY(merge_all(trainer, merge, &pair, number));
    STATUS_TRY(poll(user));
  }
  return NN_OK;
}

static void trainer_free(trainer_t *trainer) {
  void *const arrays[] = {trainer->symbol, trainer->begin, trainer->word,    trainer->before,
                          trainer->after,  trainer->pairs, trainer->slots,   trainer->heap,
                          trainer->changed, trainer->sorted};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) mem_free(arrays[i]);
}

nn_status_t bpe_train(const word_table_t *words, const word_table_t *barred, int64_t most,
                      int64_t min_frequency, train_poll_fn poll, void *user,
                      bpe_trained_t *trained) {
  trainer_t trainer = {.words = words,
                       .barred = barred,
                       .trained = trained,
                       .places = (int64_t)words->text_bytes};
  int32_t **const arrays[] = {&trainer.symbol, &trainer.begin, &trainer.word, &trainer.before,
                              &trainer.after};
  if (words->text_bytes > INT32_MAX)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "the distinct words have %zu bytes; at most %d can be learnt from",
                       words->text_bytes, INT32_MAX);
  nn_status_t status = NN_OK;
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays && status == NN_OK; i++) {
    void *array = NULL;
    status = mem_alloc(words->text_bytes, sizeof **arrays[i], &array);
    *arrays[i] = array;
  }
  if (status == NN_OK) status = trainer_run(&trainer, most, min_frequency, poll, user);
  trainer_free(&trainer);
  return status;
}

void bpe_trained_free(bpe_trained_t *trained) {
  word_table_free(&trained->tokens);
  mem_free(trained->merges);
  *trained = (bpe_trained_t){0};
}
