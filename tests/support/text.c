#include "text.h"

#include <stdlib.h>
#include <string.h>

#include "text/json_save.h"
#include "text/tokenizer.h"

void text_put(text_bytes_t *to, const void *data, size_t bytes) {
  if (to->capacity - to->bytes < bytes) {
    to->capacity = 2 * (to->capacity + bytes);
    to->data = realloc(to->data, to->capacity);
    if (!to->data) abort();
  }
  if (bytes) memcpy(to->data + to->bytes, data, bytes);
  to->bytes += bytes;
}

void text_put_u32(text_bytes_t *to, uint32_t value) { text_put(to, &value, sizeof value); }
void text_put_u64(text_bytes_t *to, uint64_t value) { text_put(to, &value, sizeof value); }

void text_bytes_free(text_bytes_t *bytes) {
  free(bytes->data);
  *bytes = (text_bytes_t){0};
}

/* Ids of a text are in range, or the model says that it cannot express it. */
static void try_encode(const nn_tokenizer_t *tokenizer, const char *text, size_t bytes) {
  enum { MOST = 4096 };
  static int32_t ids[MOST];
  int64_t count;
  buffer_t decoded = {0};
  const nn_status_t status =
      tokenizer_encode(tokenizer, (text_t){text, bytes}, true, true, ids, NULL, MOST, &count);
  if (status == NN_ERR_UNSUPPORTED) return;
  if (status != NN_OK) abort();
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= tokenizer->vocab_size) abort();
  if (tokenizer_decode(tokenizer, ids, count, true, false, &decoded) != NN_OK) abort();
  buffer_free(&decoded);
}

static void try_decode(const nn_tokenizer_t *tokenizer) {
  for (int32_t id = 0; id < tokenizer->vocab_size && id < 1000; id++) {
    buffer_t decoded = {0};
    if (tokenizer_decode(tokenizer, &id, 1, false, false, &decoded) != NN_OK) abort();
    buffer_free(&decoded);
  }
}

static void try_save(const nn_tokenizer_t *tokenizer) {
  output_t output = {0};
  const nn_status_t status = json_save(&tokenizer->pipeline, &output);
  if (status != NN_OK && status != NN_ERR_UNSUPPORTED) abort();
  output_free(&output);
}

void text_try_reader(text_read_fn read, const uint8_t *data, size_t size) {
  static const char *const texts[] = {"", " ", "a", "Hello  world, it's\n1234 \xe2\x96\x81 x ",
                                      "\xe4\xbd\xa0\xe5\xa5\xbd e\xcc\x81 \xf0\x9f\x98\x80<s>",
                                      "\xff\x80 \xe2\x96 <0x41>"};
  pipeline_t pipeline;
  nn_tokenizer_t *tokenizer = NULL;
  char *file = malloc(size ? size : 1); /* of its own size, for the address sanitizer */
  if (!file) return;
  memcpy(file, data, size);
  pipeline_init(&pipeline);
  nn_status_t status = read((text_t){file, size}, &pipeline);
  free(file);
  if (status == NN_OK) status = tokenizer_create(&pipeline, &tokenizer);
  pipeline_free(&pipeline);
  if (status != NN_OK) return;
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
    try_encode(tokenizer, texts[i], strlen(texts[i]));
  try_encode(tokenizer, (const char *)data, size < 512 ? size : 512);
  try_decode(tokenizer);
  try_save(tokenizer);
  tokenizer_destroy(tokenizer);
}
