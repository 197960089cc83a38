#include "text/bytes.h"

#include "base/mem.h"

static nn_status_t bytes_encode(const nn_tokenizer_t *tokenizer, const char *text, size_t bytes,
                                int32_t *ids, int64_t capacity, int64_t *count) {
  (void)tokenizer;
  *count = (int64_t)bytes;
  if (*count > capacity)
    return status_fail(NN_ERR_CAPACITY, "nn_tokenizer_encode: %zu ids do not fit into %lld", bytes,
                       (long long)capacity);
  for (size_t i = 0; i < bytes; i++) ids[i] = (unsigned char)text[i];
  return NN_OK;
}

static nn_status_t bytes_decode(const nn_tokenizer_t *tokenizer, const int32_t *ids, int64_t count,
                                char *text, size_t capacity, size_t *bytes) {
  (void)tokenizer;
  size_t needed = 0, written = 0;
  for (int64_t i = 0; i < count; i++) needed += ids[i] < NN_BYTE_BOS;
  *bytes = needed;
  if (needed > capacity)
    return status_fail(NN_ERR_CAPACITY, "nn_tokenizer_decode: %zu bytes do not fit into %zu",
                       needed, capacity);
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < NN_BYTE_BOS) text[written++] = (char)ids[i];
  return NN_OK;
}

static void bytes_destroy(nn_tokenizer_t *tokenizer) { mem_free(tokenizer); }

nn_status_t bytes_create(nn_tokenizer_t **tokenizer) {
  void *made;
  STATUS_TRY(mem_alloc(1, sizeof **tokenizer, &made));
  *tokenizer = made;
  **tokenizer = (nn_tokenizer_t){.vocab_size = NN_BYTE_VOCAB,
                                 .encode = bytes_encode,
                                 .decode = bytes_decode,
                                 .destroy = bytes_destroy};
  return NN_OK;
}
