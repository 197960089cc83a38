/* Words that were encoded before, with their ids: texts repeat their words. A fixed table; two
 * places per word, the older one goes first. */
#ifndef NN_TEXT_WORDCACHE_H
#define NN_TEXT_WORDCACHE_H

#include <stdbool.h>

#include "text/index.h"

enum { WORDCACHE_BYTES = 32, WORDCACHE_IDS = 7, WORDCACHE_ENTRIES = 1 << 15 };

/* The bytes of a word of up to 32, in four overlapping parts that depend on its length. */
typedef struct word_key {
  uint64_t part[4];
} word_key_t;

typedef struct word_entry {
  word_key_t key;
  int32_t ids[WORDCACHE_IDS];
  uint8_t bytes; /* of the word; 0: the entry is empty */
  uint8_t count; /* of ids */
} word_entry_t;

static inline uint64_t word_load(const char *from, size_t bytes) {
  uint64_t value = 0;
  if (bytes == 8) memcpy(&value, from, 8);
  else memcpy(&value, from, 4);
  return value;
}

/* 0 < bytes <= WORDCACHE_BYTES. */
static inline word_key_t word_key(const char *word, size_t bytes) {
  word_key_t key = {{0, 0, 0, 0}};
  if (bytes >= 8) {
    key.part[0] = word_load(word, 8);
    key.part[1] = word_load(word + bytes - 8, 8);
    if (bytes > 16) {
      key.part[2] = word_load(word + 8, 8);
      key.part[3] = word_load(word + bytes - 16, 8);
    }
  } else if (bytes >= 4) {
    key.part[0] = word_load(word, 4) | word_load(word + bytes - 4, 4) << 32;
  } else {
    key.part[0] = (uint64_t)(unsigned char)word[0] | (uint64_t)(unsigned char)word[bytes / 2] << 8 |
                  (uint64_t)(unsigned char)word[bytes - 1] << 16;
  }
  return key;
}

static inline size_t word_slot(const word_key_t *key, size_t bytes) {
  uint64_t hash = (key->part[0] ^ bytes) * 0x9E3779B97F4A7C15u;
  hash = (hash ^ hash >> 32 ^ key->part[1]) * 0xD1B54A32D192ED03u;
  hash = (hash ^ hash >> 32 ^ key->part[2]) * 0x9E3779B97F4A7C15u;
  hash = (hash ^ hash >> 32 ^ key->part[3]) * 0xD1B54A32D192ED03u;
  return (size_t)(hash >> 40) & (WORDCACHE_ENTRIES - 1);
}

static inline bool word_equal(const word_entry_t *entry, const word_key_t *key, size_t bytes) {
  return entry->bytes == bytes && memcmp(&entry->key, key, sizeof *key) == 0;
}

/* The entry of a word in a table of WORDCACHE_ENTRIES, NULL: it is not there. */
static inline const word_entry_t *wordcache_get(const word_entry_t *table, const word_key_t *key,
                                                size_t bytes) {
  const size_t at = word_slot(key, bytes);
  if (word_equal(&table[at], key, bytes)) return &table[at];
  if (word_equal(&table[at ^ 1], key, bytes)) return &table[at ^ 1];
  return NULL;
}

/* Keeps a word of at most WORDCACHE_IDS ids. */
static inline void wordcache_put(word_entry_t *table, const word_key_t *key, size_t bytes,
                                 const int32_t *ids, size_t count) {
  const size_t at = word_slot(key, bytes);
  table[at ^ 1] = table[at];
  table[at].key = *key;
  table[at].bytes = (uint8_t)bytes;
  table[at].count = (uint8_t)count;
  if (count) memcpy(table[at].ids, ids, count * sizeof *ids);
}

#endif
