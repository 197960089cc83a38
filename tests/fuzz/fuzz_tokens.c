/* Reads any bytes as an llm.c token file, and every id of what is accepted. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "train/token_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  /* A mapped file is aligned and ends where its bytes do; so does this copy. */
  void *file = malloc(size ? size : 1);
  if (!file) return 0;
  memcpy(file, data, size);
  const uint16_t *ids;
  int64_t count;
  if (token_file_parse(file, size, &ids, &count) == NN_OK) {
    volatile uint32_t sum = 0;
    for (int64_t i = 0; i < count; i++) sum = sum + ids[i];
  }
  free(file);
  return 0;
}
