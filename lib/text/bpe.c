/* Byte-pair encoding: from the characters (or bytes) of a word, the pair of lowest rank is merged,
 * of equal ranks the leftmost, until none is left (Sennrich et al., 2016). A heap of the pairs
 * makes it O(n log n) in the length of the word. */
#include "base/mem.h"
#include "text/list.h"
#include "text/model.h"
#include "text/unicode.h"

#define NONE UINT32_MAX

/* A token of the word so far. Where its pair with the next one merges: rank and result; else rank
 * NONE. */
struct symbol {
  int32_t id, result;
  uint32_t length; /* in bytes; 0: it is part of one before */
  uint32_t previous, next; /* NONE at the ends */
  uint32_t rank;
};

/* ---- merges ---------------------------------------------------------------------------------- */

static inline size_t pair_hash(const vocabulary_t *vocabulary, int32_t left, int32_t right) {
  const uint64_t both = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
  const uint64_t mixed = (both ^ (uint64_t)(uintptr_t)vocabulary->pairs) * 0x9E3779B97F4A7C15u;
  return (size_t)(mixed ^ mixed >> 29) & vocabulary->pair_mask;
}

/* The slot of the pair, or the empty one where it belongs. */
static inline pair_slot_t *pair_find(const vocabulary_t *vocabulary, int32_t left, int32_t right) {
  size_t at = pair_hash(vocabulary, left, right);
  while (vocabulary->pairs[at].left >= 0 &&
         (vocabulary->pairs[at].left != left || vocabulary->pairs[at].right != right))
    at = (at + 1) & vocabulary->pair_mask;
  return &vocabulary->pairs[at];
}

static bool is_mark(const char *text) { return memcmp(text, "\xE2\x96\x81", 3) == 0; }

/* False when a merge joins U+2581 to another character before it; the text may then not be cut
 * there. */
static nn_status_t find_cut(vocabulary_t *vocabulary) {
  const model_t *model = vocabulary->model;
  int32_t most = -1;
  void *memory;
  for (size_t i = 0; i < model->token_count; i++)
    if (model->tokens[i].id > most) most = model->tokens[i].id;
  STATUS_TRY(mem_alloc((size_t)most + 1, sizeof(text_t), &memory));
  text_t *texts = memory;
  for (size_t i = 0; i < model->token_count; i++)
    texts[model->tokens[i].id] = model->tokens[i].text;
  bool cut = text_index_get(&model->index, TEXT("\xE2\x96\x81")) >= 0 && !model->ignore_merges &&
             !model->prefix.bytes && !model->suffix.bytes;
  for (size_t i = 0; cut && i < model->merge_count; i++) {
    const text_t left = texts[model->merges[i].left], right = texts[model->merges[i].right];
    cut = right.bytes < 3 || !is_mark(right.data) ||
          (left.bytes >= 3 && is_mark(left.data + left.bytes - 3));
  }
  vocabulary->cut_at_mark = cut;
  mem_free(memory);
  return NN_OK;
}

nn_status_t bpe_create(vocabulary_t *vocabulary) {
  const model_t *model = vocabulary->model;
  size_t size = 64;
  void *memory;
  while (size < 2 * model->merge_count) size *= 2;
  STATUS_TRY(mem_alloc(size, sizeof(pair_slot_t), &memory));
  vocabulary->pairs = memory;
  vocabulary->pair_mask = size - 1;
  for (size_t i = 0; i < size; i++) vocabulary->pairs[i].left = -1;
  for (size_t i = 0; i < model->merge_count; i++) {
    const merge_t *merge = &model->merges[i];
    *pair_find(vocabulary, merge->left, merge->right) =
        (pair_slot_t){merge->left, merge->right, merge->rank, merge->result};
  }
  return vocabulary->bytes ? NN_OK : find_cut(vocabulary);
}

/* ---- the heap: rank and position in one number, the smallest first --------------------------- */

static nn_status_t heap_push(model_memory_t *memory, uint32_t rank, uint32_t at) {
  STATUS_TRY(LIST_GROW(memory->heap, memory->heap_count, memory->heap_capacity));
  const uint64_t key = (uint64_t)rank << 32 | at;
  uint64_t *heap = memory->heap;
  size_t hole = memory->heap_count++;
  for (; hole > 0 && heap[(hole - 1) / 2] > key; hole = (hole - 1) / 2)
    heap[hole] = heap[(hole - 1) / 2];
  heap[hole] = key;
  return NN_OK;
}

static uint64_t heap_pop(model_memory_t *memory) {
  uint64_t *heap = memory->heap;
  const uint64_t top = heap[0], key = heap[--memory->heap_count];
  const size_t count = memory->heap_count;
  size_t hole = 0, child;
  while ((child = 2 * hole + 1) < count) {
    if (child + 1 < count && heap[child + 1] < heap[child]) child++;
    if (heap[child] >= key) break;
    heap[hole] = heap[child];
    hole = child;
  }
  heap[hole] = key;
  return top;
}

/* ---- merging --------------------------------------------------------------------------------- */

static nn_status_t add_symbol(model_memory_t *memory, size_t *count, int32_t id, uint32_t length) {
  STATUS_TRY(LIST_GROW(memory->symbols, *count, memory->symbol_capacity));
  memory->symbols[(*count)++] = (struct symbol){.id = id, .length = length};
  return NN_OK;
}

/* Looks up the pair that begins at a symbol, and puts it into the heap when it merges. */
static nn_status_t offer(const vocabulary_t *vocabulary, model_memory_t *memory, uint32_t at) {
  struct symbol *symbol = &memory->symbols[at];
  symbol->rank = NONE;
  if (symbol->next == NONE) return NN_OK;
  const pair_slot_t *pair = pair_find(vocabulary, symbol->id, memory->symbols[symbol->next].id);
  if (pair->left < 0) return NN_OK;
  symbol->rank = pair->rank;
  symbol->result = pair->result;
  return heap_push(memory, pair->rank, at);
}

static nn_status_t merge_symbols(const vocabulary_t *vocabulary, model_memory_t *memory,
                                 size_t count) {
  struct symbol *symbols = memory->symbols;
  memory->heap_count = 0;
  for (size_t i = 0; i < count; i++) {
    symbols[i].previous = i ? (uint32_t)i - 1 : NONE;
    symbols[i].next = i + 1 < count ? (uint32_t)i + 1 : NONE;
  }
  for (size_t i = 0; i < count; i++) STATUS_TRY(offer(vocabulary, memory, (uint32_t)i));
  while (memory->heap_count) {
    const uint64_t top = heap_pop(memory);
    const uint32_t at = (uint32_t)top;
    struct symbol *symbol = &symbols[at];
    if (!symbol->length || symbol->rank != (uint32_t)(top >> 32)) continue; /* merged meanwhile */
    struct symbol *right = &symbols[symbol->next];
    symbol->id = symbol->result;
    symbol->length += right->length;
    symbol->next = right->next;
    right->length = 0;
    if (symbol->next != NONE) symbols[symbol->next].previous = at;
    if (symbol->previous != NONE) STATUS_TRY(offer(vocabulary, memory, symbol->previous));
    STATUS_TRY(offer(vocabulary, memory, at));
  }
  uint32_t begin = 0;
  for (size_t i = 0; i < count; i++) {
    if (!symbols[i].length) continue;
    const uint32_t end = begin + symbols[i].length;
    STATUS_TRY(pieces_add(&memory->pieces, symbols[i].id, (span_t){begin, end}));
    begin = end;
  }
  return NN_OK;
}

/* ---- characters ------------------------------------------------------------------------------ */

/* Adds the unknown characters that waited for the end of their run, `unknown` bytes, if any. */
static nn_status_t flush_unknown(const vocabulary_t *vocabulary, model_memory_t *memory,
                                 size_t *count, uint32_t *unknown) {
  const uint32_t length = *unknown;
  *unknown = 0;
  return length ? add_symbol(memory, count, vocabulary->model->unk_id, length) : NN_OK;
}

/* The character with the prefix that all but the first have and the suffix that the last has. */
static nn_status_t decorate(const model_t *model, model_memory_t *memory, text_t character,
                            bool first, bool last, text_t *decorated) {
  buffer_t *buffer = &memory->decorated;
  buffer->bytes = 0;
  if (!first) STATUS_TRY(buffer_add(buffer, model->prefix.data, model->prefix.bytes));
  STATUS_TRY(buffer_add(buffer, character.data, character.bytes));
  if (last) STATUS_TRY(buffer_add(buffer, model->suffix.data, model->suffix.bytes));
  *decorated = (text_t){buffer->data, buffer->bytes};
  return NN_OK;
}

/* Adds the tokens <0xNN> of text; *done false: not all of them exist. */
static nn_status_t add_bytes(const vocabulary_t *vocabulary, model_memory_t *memory, size_t *count,
                             text_t text, bool *done) {
  *done = false;
  for (size_t i = 0; i < text.bytes; i++)
    if (vocabulary->byte_ids[(unsigned char)text.data[i]] < 0) return NN_OK;
  *done = true;
  for (size_t i = 0; i < text.bytes; i++)
    STATUS_TRY(add_symbol(memory, count, vocabulary->byte_ids[(unsigned char)text.data[i]], 1));
  return NN_OK;
}

static nn_status_t add_unknown(const vocabulary_t *vocabulary, model_memory_t *memory,
                               size_t *count, uint32_t *unknown, text_t spelled, uint32_t length) {
  const model_t *model = vocabulary->model;
  bool done = false;
  /* a run of unknown characters goes on over bytes, as in the tokenizers package */
  if (model->byte_fallback) STATUS_TRY(add_bytes(vocabulary, memory, count, spelled, &done));
  if (done || model->unk_id < 0) return NN_OK;
  if (!model->fuse_unk) STATUS_TRY(flush_unknown(vocabulary, memory, count, unknown));
  *unknown += length;
  return NN_OK;
}

static nn_status_t add_characters(const vocabulary_t *vocabulary, model_memory_t *memory,
                                  text_t word, size_t *count) {
  const model_t *model = vocabulary->model;
  const bool plain = !model->prefix.bytes && !model->suffix.bytes;
  const char *end = word.data + word.bytes;
  uint32_t unknown = 0;
  uint32_t taken;
  for (const char *at = word.data; at < end; at += taken) {
    utf8_decode(at, end, &taken);
    text_t spelled = {at, taken};
    int32_t id;
    if (plain && taken == 1 && (unsigned char)*at < 128) {
      id = vocabulary->ascii_ids[(unsigned char)*at];
    } else {
      if (!plain)
        STATUS_TRY(decorate(model, memory, spelled, at == word.data, at + taken == end, &spelled));
      const int32_t token = text_index_get(&model->index, spelled);
      id = token < 0 ? -1 : model->tokens[token].id;
    }
    if (id < 0) {
      STATUS_TRY(add_unknown(vocabulary, memory, count, &unknown, spelled, taken));
      continue;
    }
    STATUS_TRY(flush_unknown(vocabulary, memory, count, &unknown));
    STATUS_TRY(add_symbol(memory, count, id, taken));
  }
  return flush_unknown(vocabulary, memory, count, &unknown);
}

static nn_status_t add_raw(const vocabulary_t *vocabulary, model_memory_t *memory, text_t word,
                           size_t *count) {
  STATUS_TRY(LIST_ROOM(memory->symbols, 0, word.bytes, memory->symbol_capacity));
  for (size_t i = 0; i < word.bytes; i++)
    memory->symbols[i] =
        (struct symbol){.id = vocabulary->byte_ids[(unsigned char)word.data[i]], .length = 1};
  *count = word.bytes;
  return NN_OK;
}

nn_status_t bpe_encode(const vocabulary_t *vocabulary, model_memory_t *memory, text_t word) {
  size_t count = 0;
  if (vocabulary->model->ignore_merges) {
    const int32_t token = text_index_get(
        vocabulary->bytes ? &vocabulary->index : &vocabulary->model->index, word);
    if (token >= 0)
      return pieces_add(&memory->pieces,
                        vocabulary->bytes ? token : vocabulary->model->tokens[token].id,
                        (span_t){0, (uint32_t)word.bytes});
  }
  if (vocabulary->bytes) STATUS_TRY(add_raw(vocabulary, memory, word, &count));
  else STATUS_TRY(add_characters(vocabulary, memory, word, &count));
  return merge_symbols(vocabulary, memory, count);
}
