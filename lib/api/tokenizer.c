/* Exported functions of nn_tokenizer_t. */
#include "text/bytes.h"

nn_status_t nn_tokenizer_create_bytes(nn_tokenizer_t **tokenizer) {
  STATUS_REQUIRE(tokenizer);
  return bytes_create(tokenizer);
}

void nn_tokenizer_destroy(nn_tokenizer_t *tokenizer) {
  if (tokenizer) tokenizer->destroy(tokenizer);
}

int64_t nn_tokenizer_vocab_size(const nn_tokenizer_t *tokenizer) {
  return tokenizer ? tokenizer->vocab_size : 0;
}

nn_status_t nn_tokenizer_encode(const nn_tokenizer_t *tokenizer, const char *text, size_t bytes,
                                int32_t *ids, int64_t capacity, int64_t *count) {
  STATUS_REQUIRE(tokenizer);
  if (bytes) STATUS_REQUIRE(text);
  if (capacity) STATUS_REQUIRE(ids);
  STATUS_REQUIRE(count);
  if (bytes > INT64_MAX || capacity < 0)
    return status_fail(NN_ERR_ARGUMENT, "%zu bytes of text and room for %lld ids", bytes,
                       (long long)capacity);
  return tokenizer->encode(tokenizer, text, bytes, ids, capacity, count);
}

nn_status_t nn_tokenizer_decode(const nn_tokenizer_t *tokenizer, const int32_t *ids, int64_t count,
                                char *text, size_t capacity, size_t *bytes) {
  STATUS_REQUIRE(tokenizer);
  if (count) STATUS_REQUIRE(ids);
  if (capacity) STATUS_REQUIRE(text);
  STATUS_REQUIRE(bytes);
  if (count < 0) return status_fail(NN_ERR_ARGUMENT, "%lld ids to decode", (long long)count);
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= tokenizer->vocab_size)
      return status_fail(NN_ERR_ARGUMENT,
                         "nn_tokenizer_decode: id %d at index %lld; the vocabulary ends at %lld",
                         ids[i], (long long)i, (long long)tokenizer->vocab_size - 1);
  return tokenizer->decode(tokenizer, ids, count, text, capacity, bytes);
}
