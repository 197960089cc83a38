#include "text/word_table.h"

#include <string.h>

#include "base/mem.h"
#include "text/index.h"
#include "text/list.h"

static int32_t *slot_of(const word_table_t *table, const char *data, size_t bytes, uint64_t hash) {
  for (size_t at = hash;; at++) {
    int32_t *slot = &table->slots[at & (table->slot_count - 1)];
    if (!*slot) return slot;
    const word_t *word = &table->words[*slot - 1];
    if (word->hash == hash && word->bytes == bytes &&
        memcmp(table->text + word->begin, data, bytes) == 0)
      return slot;
  }
}

int32_t word_table_find(const word_table_t *table, const char *data, size_t bytes) {
  if (!table->slot_count) return -1;
  return *slot_of(table, data, bytes, text_hash(table->seed, data, bytes)) - 1;
}

/* At most half of the slots are taken. */
static nn_status_t slots_grow(word_table_t *table) {
  if (2 * (table->word_count + 1) <= table->slot_count) return NN_OK;
  size_t count = table->slot_count ? 2 * table->slot_count : 64;
  void *slots;
  STATUS_TRY(mem_alloc(count, sizeof *table->slots, &slots));
  if (!table->slots) table->seed = (uint64_t)(uintptr_t)slots;
  mem_free(table->slots);
  table->slots = slots;
  table->slot_count = count;
  for (size_t i = 0; i < table->word_count; i++) {
    size_t at = table->words[i].hash;
    while (table->slots[at & (count - 1)]) at++;
    table->slots[at & (count - 1)] = (int32_t)i + 1;
  }
  return NN_OK;
}

nn_status_t word_table_add(word_table_t *table, const char *data, size_t bytes, int64_t count,
                           int32_t *index) {
  STATUS_TRY(slots_grow(table));
  uint64_t hash = text_hash(table->seed, data, bytes);
  int32_t *slot = slot_of(table, data, bytes, hash);
  if (!*slot) {
    if (table->word_count == INT32_MAX - 1)
      return status_fail(NN_ERR_CAPACITY, "more than %zu distinct words", table->word_count);
    STATUS_TRY(LIST_GROW(table->words, table->word_count, table->word_capacity));
    STATUS_TRY(LIST_ROOM(table->text, table->text_bytes, bytes, table->text_capacity));
    if (bytes) memcpy(table->text + table->text_bytes, data, bytes);
    table->words[table->word_count] =
        (word_t){.begin = table->text_bytes, .bytes = bytes, .hash = hash};
    table->text_bytes += bytes;
    *slot = (int32_t)++table->word_count;
  }
  table->words[*slot - 1].count += count;
  if (index) *index = *slot - 1;
  return NN_OK;
}

void word_table_free(word_table_t *table) {
  mem_free(table->words);
  mem_free(table->text);
  mem_free(table->slots);
  *table = (word_table_t){0};
}
