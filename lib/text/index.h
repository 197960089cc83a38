/* Where a string stands in a list: a hash table over strings that somebody else keeps. */
#ifndef NN_TEXT_INDEX_H
#define NN_TEXT_INDEX_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/status.h"

/* Bytes that need not end in a NUL. */
typedef struct text {
  const char *data;
  size_t bytes;
} text_t;

/* A string constant as a text_t. */
#define TEXT(literal) ((text_t){literal, sizeof(literal) - 1})

static inline int text_equal(text_t a, text_t b) {
  return a.bytes == b.bytes && (a.bytes == 0 || memcmp(a.data, b.data, a.bytes) == 0);
}

typedef struct index_slot {
  const char *data;
  uint32_t bytes;
  int32_t value; /* -1: the slot is empty */
} index_slot_t;

typedef struct text_index {
  index_slot_t *slots; /* [mask + 1], a power of two, at most two thirds full; NULL: empty */
  size_t mask, count;
  uint64_t seed; /* an address: whoever writes a file cannot choose strings that collide */
} text_index_t;

/* 64 bits that depend on every byte and on the seed. */
uint64_t text_hash(uint64_t seed, const char *data, size_t bytes);

/* value >= 0 becomes what the string leads to, in place of an earlier one. The string itself stays
 * the caller's and must outlive the table. */
nn_status_t text_index_put(text_index_t *index, text_t text, int32_t value);
int32_t text_index_get(const text_index_t *index, text_t text); /* -1: not there */
void text_index_free(text_index_t *index);

#endif
