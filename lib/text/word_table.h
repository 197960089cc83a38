/* Distinct byte strings with how often each was added, in the order of their first coming. */
#ifndef NN_TEXT_WORD_TABLE_H
#define NN_TEXT_WORD_TABLE_H

#include "base/status.h"

typedef struct word {
  size_t begin, bytes; /* in the table's text */
  uint64_t hash;
  int64_t count;
} word_t;

/* A zeroed table is empty. */
typedef struct word_table {
  word_t *words;
  char *text; /* the words, one after the other, without separators */
  int32_t *slots; /* [slot_count], a power of two: the index of a word + 1, or 0 */
  size_t word_count, word_capacity, text_bytes, text_capacity, slot_count;
  uint64_t seed; /* of the hashes: an address, so that no text is made of words that collide */
} word_table_t;

/* Adds count to a word; index (or NULL) receives its place. */
nn_status_t word_table_add(word_table_t *table, const char *data, size_t bytes, int64_t count,
                           int32_t *index);

/* The index of a word, or -1. */
int32_t word_table_find(const word_table_t *table, const char *data, size_t bytes);

static inline const char *word_text(const word_table_t *table, int64_t index) {
  return table->text + table->words[index].begin;
}

void word_table_free(word_table_t *table);

#endif
