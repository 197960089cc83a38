/* A trie of strings, built once: which strings does a text begin with? */
#ifndef NN_TEXT_TRIE_H
#define NN_TEXT_TRIE_H

#include "text/index.h"

typedef struct trie_node {
  uint32_t first; /* of the children, which are neighbours, in the order of their bytes */
  int32_t value;  /* of the string that ends here, -1: none does */
  uint16_t count; /* of children */
} trie_node_t;

typedef struct trie {
  trie_node_t *nodes;    /* [node_count]; 0 is the root */
  unsigned char *bytes;  /* [node_count] that lead to each */
  size_t node_count;
} trie_t;

typedef struct trie_entry {
  text_t text;   /* not empty */
  int32_t value; /* >= 0 */
} trie_entry_t;

/* Sorts the entries. Of equal strings the last one counts. The strings are not kept. */
nn_status_t trie_create(trie_entry_t *entries, size_t count, trie_t *trie);
void trie_free(trie_t *trie);

/* The child of a node by a byte, 0: none. */
static inline uint32_t trie_step(const trie_t *trie, uint32_t node, unsigned char byte) {
  const trie_node_t *at = &trie->nodes[node];
  uint32_t low = at->first, count = at->count;
  if (count == 256) return low + byte;
  while (count > 8) {
    const uint32_t half = count / 2;
    if (trie->bytes[low + half] <= byte) {
      low += half;
      count -= half;
    } else {
      count = half;
    }
  }
  for (uint32_t i = 0; i < count; i++)
    if (trie->bytes[low + i] == byte) return low + i;
  return 0;
}

/* The node that a string leads to from a node, 0: none (or the root, for an empty string). */
uint32_t trie_walk(const trie_t *trie, uint32_t node, text_t text);

#endif
