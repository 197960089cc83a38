#include "text/index.h"

#include "base/mem.h"

static inline uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
  return hash ^ hash >> 32;
}

uint64_t text_hash(uint64_t seed, const char *data, size_t bytes) {
  uint64_t hash = mix(seed, bytes), word;
  for (; bytes >= 8; data += 8, bytes -= 8) {
    memcpy(&word, data, 8);
    hash = mix(hash, word);
  }
  word = 0;
  if (bytes) memcpy(&word, data, bytes);
  return mix(mix(hash, word), 0);
}

/* The slot of the string, or the empty one where it belongs. */
static size_t find(const text_index_t *index, text_t text) {
  size_t at = (size_t)text_hash(index->seed, text.data, text.bytes) & index->mask;
  while (index->slots[at].value >= 0 &&
         !text_equal((text_t){index->slots[at].data, index->slots[at].bytes}, text))
    at = (at + 1) & index->mask;
  return at;
}

static nn_status_t grow(text_index_t *index) {
  const size_t size = index->slots ? 2 * (index->mask + 1) : 64;
  void *slots;
  STATUS_TRY(mem_alloc(size, sizeof *index->slots, &slots));
  text_index_t larger = {.slots = slots, .mask = size - 1, .count = index->count,
                         .seed = index->slots ? index->seed : (uint64_t)(uintptr_t)slots};
  for (size_t i = 0; i < size; i++) larger.slots[i].value = -1;
  for (size_t i = 0; index->slots && i <= index->mask; i++)
    if (index->slots[i].value >= 0)
      larger.slots[find(&larger, (text_t){index->slots[i].data, index->slots[i].bytes})] =
          index->slots[i];
  mem_free(index->slots);
  *index = larger;
  return NN_OK;
}

nn_status_t text_index_put(text_index_t *index, text_t text, int32_t value) {
  if (text.bytes > UINT32_MAX)
    return status_fail(NN_ERR_UNSUPPORTED, "a string of %zu bytes; at most 4 GiB are understood",
                       text.bytes);
  if (!index->slots || 3 * (index->count + 1) > 2 * (index->mask + 1)) STATUS_TRY(grow(index));
  index_slot_t *slot = &index->slots[find(index, text)];
  index->count += slot->value < 0;
  *slot = (index_slot_t){.data = text.data, .bytes = (uint32_t)text.bytes, .value = value};
  return NN_OK;
}

int32_t text_index_get(const text_index_t *index, text_t text) {
  return index->slots ? index->slots[find(index, text)].value : -1;
}

void text_index_free(text_index_t *index) {
  mem_free(index->slots);
  *index = (text_index_t){0};
}
