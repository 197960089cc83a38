/* Exported functions of nn_tokenizer_t. */
#include "base/mem.h"
#include "text/bytes.h"
#include "text/load.h"
#include "text/stream.h"

nn_status_t nn_tokenizer_create_bytes(nn_tokenizer_t **tokenizer) {
  STATUS_REQUIRE(tokenizer);
  return bytes_create(tokenizer);
}

nn_status_t nn_tokenizer_load(const char *path, nn_tokenizer_t **tokenizer) {
  STATUS_REQUIRE(path);
  STATUS_REQUIRE(tokenizer);
  return tokenizer_load(path, tokenizer);
}

void nn_tokenizer_destroy(nn_tokenizer_t *tokenizer) {
  if (tokenizer) tokenizer_destroy(tokenizer);
}

int64_t nn_tokenizer_vocab_size(const nn_tokenizer_t *tokenizer) {
  return tokenizer ? tokenizer->vocab_size : 0;
}

int32_t nn_tokenizer_special(const nn_tokenizer_t *tokenizer, int32_t which) {
  if (!tokenizer || which < NN_TOKEN_BOS || which > NN_TOKEN_UNK) return -1;
  return tokenizer->pipeline.special[which];
}

int32_t nn_tokenizer_id(const nn_tokenizer_t *tokenizer, const char *text, size_t bytes) {
  if (!tokenizer || (bytes && !text)) return -1;
  return tokenizer_id(tokenizer, (text_t){bytes ? text : "", bytes});
}

nn_status_t nn_tokenizer_token(const nn_tokenizer_t *tokenizer, int32_t id, const char **text,
                               size_t *bytes) {
  STATUS_REQUIRE(tokenizer);
  STATUS_REQUIRE(text);
  if (id < 0 || id >= tokenizer->vocab_size || !tokenizer->ids[id].text.data)
    return status_fail(NN_ERR_NOT_FOUND, "nn_tokenizer_token: no token has the id %d", id);
  *text = tokenizer->ids[id].text.data;
  if (bytes) *bytes = tokenizer->ids[id].text.bytes;
  return NN_OK;
}

/* ---- encoding -------------------------------------------------------------------------------- */

nn_status_t nn_tokenizer_encode_with(const nn_tokenizer_t *tokenizer, const char *text,
                                     size_t bytes, const nn_encode_options_t *options, int32_t *ids,
                                     int64_t *offsets, int64_t capacity, int64_t *count) {
  nn_encode_options_t known;
  STATUS_REQUIRE(tokenizer);
  if (bytes) STATUS_REQUIRE(text);
  if (capacity) STATUS_REQUIRE(ids);
  STATUS_REQUIRE(count);
  STATUS_TRY(status_read_options(&known, sizeof known, sizeof known, options,
                                 "nn_encode_options_t"));
  if (capacity < 0)
    return status_fail(NN_ERR_ARGUMENT, "room for %lld ids", (long long)capacity);
  return tokenizer_encode(tokenizer, (text_t){bytes ? text : "", bytes}, known.add_special != 0,
                          known.parse_special != 0, ids, offsets, capacity, count);
}

nn_status_t nn_tokenizer_encode(const nn_tokenizer_t *tokenizer, const char *text, size_t bytes,
                                int32_t *ids, int64_t capacity, int64_t *count) {
  return nn_tokenizer_encode_with(tokenizer, text, bytes, NULL, ids, NULL, capacity, count);
}

/* ---- decoding -------------------------------------------------------------------------------- */

static nn_status_t check_ids(const nn_tokenizer_t *tokenizer, const int32_t *ids, int64_t count,
                             const char *text, size_t capacity, const size_t *bytes) {
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
  return NN_OK;
}

/* Hands a decoded text out and frees it. */
static nn_status_t give(buffer_t *decoded, char *text, size_t capacity, size_t *bytes) {
  nn_status_t status = NN_OK;
  *bytes = decoded->bytes;
  if (decoded->bytes > capacity)
    status = status_fail(NN_ERR_CAPACITY, "nn_tokenizer_decode: %zu bytes do not fit into %zu",
                         decoded->bytes, capacity);
  else if (decoded->bytes)
    memcpy(text, decoded->data, decoded->bytes);
  buffer_free(decoded);
  return status;
}

nn_status_t nn_tokenizer_decode_with(const nn_tokenizer_t *tokenizer, const int32_t *ids,
                                     int64_t count, const nn_decode_options_t *options, char *text,
                                     size_t capacity, size_t *bytes) {
  nn_decode_options_t known;
  buffer_t decoded = {0};
  STATUS_TRY(check_ids(tokenizer, ids, count, text, capacity, bytes));
  STATUS_TRY(status_read_options(&known, sizeof known, sizeof known, options,
                                 "nn_decode_options_t"));
  nn_status_t status =
      tokenizer_decode(tokenizer, ids, count, known.keep_special != 0, false, &decoded);
  if (status == NN_OK) return give(&decoded, text, capacity, bytes);
  buffer_free(&decoded);
  return status;
}

nn_status_t nn_tokenizer_decode(const nn_tokenizer_t *tokenizer, const int32_t *ids, int64_t count,
                                char *text, size_t capacity, size_t *bytes) {
  return nn_tokenizer_decode_with(tokenizer, ids, count, NULL, text, capacity, bytes);
}

nn_status_t nn_tokenizer_decode_next(const nn_tokenizer_t *tokenizer, nn_decode_stream_t *stream,
                                     const int32_t *ids, int64_t count, int32_t finish, char *text,
                                     size_t capacity, size_t *bytes) {
  nn_decode_stream_t known;
  buffer_t decoded = {0};
  STATUS_REQUIRE(stream);
  STATUS_TRY(status_read_options(&known, sizeof known, sizeof known, stream,
                                 "nn_decode_stream_t"));
  if (known.first < 0 || known.first > count || known.given < 0)
    return status_fail(NN_ERR_ARGUMENT, "a stream that stands at id %lld of %lld; begin a text with"
                       " a stream that is zero", (long long)known.first, (long long)count);
  STATUS_TRY(check_ids(tokenizer, ids ? ids + known.first : ids, count - known.first, text,
                       capacity, bytes));
  stream_t inner = {known.keep_special != 0, known.first, (size_t)known.given};
  nn_status_t status = stream_next(tokenizer, &inner, ids, count, finish != 0, &decoded);
  if (status != NN_OK) {
    buffer_free(&decoded);
    return status;
  }
  STATUS_TRY(give(&decoded, text, capacity, bytes));
  known.first = inner.begin;
  known.given = (int64_t)inner.given;
  status_write_result(stream, &known, sizeof known);
  return NN_OK;
}
