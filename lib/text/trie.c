#include "text/trie.h"

#include <stdlib.h>

#include "base/mem.h"
#include "text/list.h"

/* The entries [begin, end) share the `depth` bytes that lead to a node. */
typedef struct range {
  uint32_t begin, end, depth;
} range_t;

static int compare(const void *left, const void *right) {
  const trie_entry_t *a = left, *b = right;
  const size_t shorter = a->text.bytes < b->text.bytes ? a->text.bytes : b->text.bytes;
  const int order = memcmp(a->text.data, b->text.data, shorter);
  if (order) return order;
  if (a->text.bytes != b->text.bytes) return a->text.bytes < b->text.bytes ? -1 : 1;
  return (a->value > b->value) - (a->value < b->value);
}

typedef struct builder {
  trie_t *trie;
  range_t *ranges; /* [node_count] */
  size_t node_capacity, byte_capacity, range_capacity;
} builder_t;

static nn_status_t add_node(builder_t *builder, unsigned char byte, range_t range) {
  trie_t *trie = builder->trie;
  STATUS_TRY(LIST_GROW(trie->nodes, trie->node_count, builder->node_capacity));
  STATUS_TRY(LIST_GROW(trie->bytes, trie->node_count, builder->byte_capacity));
  STATUS_TRY(LIST_GROW(builder->ranges, trie->node_count, builder->range_capacity));
  if (trie->node_count >= UINT32_MAX)
    return status_fail(NN_ERR_UNSUPPORTED, "tokens of 4 GiB in all");
  trie->nodes[trie->node_count] = (trie_node_t){.value = -1};
  trie->bytes[trie->node_count] = byte;
  builder->ranges[trie->node_count++] = range;
  return NN_OK;
}

/* The children of a node, and its value. */
static nn_status_t expand(builder_t *builder, const trie_entry_t *entries, uint32_t node) {
  trie_t *trie = builder->trie;
  const range_t range = builder->ranges[node];
  uint32_t at = range.begin;
  while (at < range.end && entries[at].text.bytes == range.depth)
    trie->nodes[node].value = entries[at++].value;
  trie->nodes[node].first = (uint32_t)trie->node_count;
  while (at < range.end) {
    const unsigned char byte = (unsigned char)entries[at].text.data[range.depth];
    const uint32_t begin = at;
    while (at < range.end && (unsigned char)entries[at].text.data[range.depth] == byte) at++;
    STATUS_TRY(add_node(builder, byte, (range_t){begin, at, range.depth + 1}));
    trie->nodes[node].count++;
  }
  return NN_OK;
}

nn_status_t trie_create(trie_entry_t *entries, size_t count, trie_t *trie) {
  builder_t builder = {.trie = trie};
  *trie = (trie_t){0};
  if (count) qsort(entries, count, sizeof *entries, compare);
  nn_status_t status = add_node(&builder, 0, (range_t){0, (uint32_t)count, 0});
  for (uint32_t node = 0; status == NN_OK && node < trie->node_count; node++)
    status = expand(&builder, entries, node);
  mem_free(builder.ranges);
  if (status != NN_OK) trie_free(trie);
  return status;
}

void trie_free(trie_t *trie) {
  mem_free(trie->nodes);
  mem_free(trie->bytes);
  *trie = (trie_t){0};
}

uint32_t trie_walk(const trie_t *trie, uint32_t node, text_t text) {
  for (size_t i = 0; i < text.bytes; i++)
    if (!(node = trie_step(trie, node, (unsigned char)text.data[i]))) return 0;
  return node;
}
