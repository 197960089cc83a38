/* tiktoken rank files: any bytes are refused, or make a tokenizer that works. An input that does
 * not begin with an exclamation mark is put behind lines for all bytes, so that a mutation of the
 * others alone gets past the check for them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"
#include "text/base64.h"
#include "text/tiktoken.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static nn_status_t read_ranks(text_t file, pipeline_t *pipeline) {
  return tiktoken_read(file, TEXT("[a-z]+|\\s+(?!\\S)|[^a-z]"), pipeline);
}

static void add_bytes(text_bytes_t *file) {
  for (int byte = 0; byte < 256; byte++) {
    char raw = (char)byte, encoded[5] = "", line[32];
    base64_encode(&raw, 1, encoded);
    text_put(file, line, (size_t)snprintf(line, sizeof line, "%s %d\n", encoded, byte));
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  text_bytes_t file = {0};
  if (size && data[0] == '!') {
    text_try_reader(read_ranks, data + 1, size - 1);
    return 0;
  }
  add_bytes(&file);
  text_put(&file, data, size);
  text_try_reader(read_ranks, file.data, file.bytes);
  text_bytes_free(&file);
  return 0;
}
