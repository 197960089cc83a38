/* The llm.c checkpoint reader: any bytes are refused, or make a file of exactly the size that the
 * format gives its header, whose tensors are read in both dtypes. An input that does not begin with
 * the magic number is the header's words from the version on: zeros are put behind it as tensors,
 * so that a mutation of the sizes alone gets past the check of the file's size. */
#include <stdlib.h>
#include <string.h>

#include "format/llmc.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAGIC = 20240326, WORDS = 256, HEADER_BYTES = 4 * WORDS, MOST_BYTES = 1 << 20 };
enum { VERSION = 1, CONTEXT, VOCAB, LAYERS, HEADS, CHANNELS, PADDED, USED };

/* Bytes of a file of these words, as the format has it; 0: none, or too many for a test. */
static size_t file_bytes(const int32_t *words) {
  for (int i = CONTEXT; i < USED; i++)
    if (words[i] < 1 || words[i] > MOST_BYTES) return 0; /* products stay below 2^64 */
  uint64_t channels = (uint64_t)words[CHANNELS];
  uint64_t layer = 12 * channels * channels + 13 * channels;
  if (layer > MOST_BYTES) return 0;
  uint64_t elements = ((uint64_t)words[PADDED] + (uint64_t)words[CONTEXT] + 2) * channels +
                      (uint64_t)words[LAYERS] * layer;
  uint64_t bytes = HEADER_BYTES + elements * (words[VERSION] == 3 ? 4 : 2);
  return bytes <= MOST_BYTES ? (size_t)bytes : 0;
}

static void read_as(const llmc_t *file, const param_table_t *table, int32_t dtype) {
  size_t bytes = (size_t)table->elements * nn_dtype_bytes(dtype);
  void *buffer = malloc(bytes); /* its own, so that the address sanitizer sees its end */
  if (!buffer) return;
  if (llmc_read(file, table, dtype, buffer, NULL, NULL, NULL, NULL) != NN_OK) abort();
  volatile unsigned char sum = 0; /* what is not written is seen by the memory sanitizer */
  for (size_t i = 0; i < bytes; i++) sum = (unsigned char)(sum + ((unsigned char *)buffer)[i]);
  free(buffer);
}

static void check_file(const uint8_t *data, size_t size) {
  llmc_t file;
  param_table_t table;
  int32_t words[USED];
  if (llmc_parse(data, size, &file) != NN_OK) return;
  memcpy(words, data, sizeof words);
  if (words[0] != MAGIC || (size <= MOST_BYTES && file_bytes(words) != size)) abort();
  if (file.config.vocab_size != words[VOCAB] || file.config.layers != words[LAYERS]) abort();
  if (param_table_build(&file.config, &table) != NN_OK) abort();
  read_as(&file, &table, NN_F32);
  read_as(&file, &table, NN_BF16);
  param_table_free(&table);
  llmc_close(&file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  int32_t words[WORDS] = {0}, first = 0;
  if (size >= sizeof first) memcpy(&first, data, sizeof first);
  if (first == MAGIC || size > sizeof words - sizeof first) {
    check_file(data, size);
    return 0;
  }
  words[0] = MAGIC;
  memcpy(words + VERSION, data, size);
  size_t bytes = file_bytes(words);
  if (bytes < sizeof words) bytes = sizeof words;
  uint8_t *file = calloc(bytes, 1);
  if (!file) return 0;
  memcpy(file, words, sizeof words);
  check_file(file, bytes);
  free(file);
  return 0;
}
