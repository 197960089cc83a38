/* Exported functions of nn_dataset_t. */
#include <string.h>

#include "base/mem.h"
#include "train/dataset.h"
#include "train/token_file.h"

/* Encodes a text whole and lets go of its file. */
static nn_status_t dataset_encode(const nn_tokenizer_t *tokenizer, dataset_stream_t *stream) {
  const char *text = (const char *)stream->file.data;
  size_t bytes = stream->file.bytes;
  int64_t count = 0, encoded;
  nn_status_t status = nn_tokenizer_encode(tokenizer, text, bytes, NULL, 0, &count);
  if (status != NN_OK && status != NN_ERR_CAPACITY) return status;
  STATUS_TRY(mem_alloc((size_t)count, sizeof(int32_t), &stream->copy));
  STATUS_TRY(nn_tokenizer_encode(tokenizer, text, bytes, stream->copy, count, &encoded));
  file_unmap(&stream->file);
  stream->ids = stream->copy;
  stream->id_bytes = sizeof(int32_t);
  stream->count = encoded;
  return NN_OK;
}

/* Makes the handle of an opened stream, which is freed on failure. */
static nn_status_t dataset_adopt(nn_status_t status, dataset_stream_t *stream,
                                 const nn_dataset_options_t *options, nn_dataset_t **dataset) {
  if (status == NN_OK) status = dataset_create(stream, options, dataset);
  if (status != NN_OK) dataset_stream_free(stream);
  return status;
}

nn_status_t nn_dataset_open_text(const char *path, const nn_tokenizer_t *tokenizer,
                                 const nn_dataset_options_t *options, nn_dataset_t **dataset) {
  STATUS_REQUIRE(path);
  STATUS_REQUIRE(options);
  STATUS_REQUIRE(dataset);
  dataset_stream_t stream = {.id_bytes = 1};
  STATUS_TRY(file_map(path, &stream.file));
  stream.ids = stream.file.data;
  stream.count = (int64_t)stream.file.bytes;
  nn_status_t status = tokenizer ? dataset_encode(tokenizer, &stream) : NN_OK;
  status = dataset_adopt(status, &stream, options, dataset);
  return status == NN_OK ? NN_OK : status_prefix(status, "%s", path);
}

nn_status_t nn_dataset_open_tokens(const char *path, const nn_dataset_options_t *options,
                                   nn_dataset_t **dataset) {
  STATUS_REQUIRE(path);
  STATUS_REQUIRE(options);
  STATUS_REQUIRE(dataset);
  dataset_stream_t stream = {.id_bytes = sizeof(uint16_t)};
  STATUS_TRY(file_map(path, &stream.file));
  const uint16_t *ids = NULL;
  nn_status_t status = token_file_parse(stream.file.data, stream.file.bytes, &ids, &stream.count);
  stream.ids = ids;
  status = dataset_adopt(status, &stream, options, dataset);
  return status == NN_OK ? NN_OK : status_prefix(status, "%s", path);
}

nn_status_t nn_dataset_save_tokens(const char *path, const int32_t *ids, int64_t count) {
  STATUS_REQUIRE(path);
  if (count < 0) return status_fail(NN_ERR_ARGUMENT, "%lld ids to save", (long long)count);
  if (count) STATUS_REQUIRE(ids);
  return token_file_save(path, ids, count);
}

nn_status_t nn_dataset_from_tokens(const int32_t *ids, int64_t count,
                                   const nn_dataset_options_t *options, nn_dataset_t **dataset) {
  STATUS_REQUIRE(ids);
  STATUS_REQUIRE(options);
  STATUS_REQUIRE(dataset);
  if (count < 0 || (uint64_t)count > SIZE_MAX / sizeof *ids)
    return status_fail(NN_ERR_ARGUMENT, "nn_dataset_from_tokens: count is %lld", (long long)count);
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < 0)
      return status_fail(NN_ERR_ARGUMENT, "nn_dataset_from_tokens: id %d at index %lld is negative",
                         ids[i], (long long)i);
  dataset_stream_t stream = {.id_bytes = sizeof *ids, .count = count};
  STATUS_TRY(mem_alloc((size_t)count, sizeof *ids, &stream.copy));
  memcpy(stream.copy, ids, (size_t)count * sizeof *ids);
  stream.ids = stream.copy;
  return dataset_adopt(NN_OK, &stream, options, dataset);
}

void nn_dataset_destroy(nn_dataset_t *dataset) { dataset_destroy(dataset); }

nn_status_t nn_dataset_info(const nn_dataset_t *dataset, nn_dataset_info_t *info) {
  STATUS_REQUIRE(dataset);
  STATUS_TRY(status_check_result(info, sizeof *info, "nn_dataset_info_t"));
  nn_dataset_info_t known;
  dataset_describe(dataset, &known);
  status_write_result(info, &known, sizeof known);
  return NN_OK;
}

nn_status_t nn_dataset_next(nn_dataset_t *dataset, int32_t *tokens, int32_t *targets) {
  STATUS_REQUIRE(dataset);
  STATUS_REQUIRE(tokens);
  STATUS_REQUIRE(targets);
  return dataset_next(dataset, tokens, targets);
}

int64_t nn_dataset_position(const nn_dataset_t *dataset) {
  return dataset ? dataset_position(dataset) : 0;
}

nn_status_t nn_dataset_seek(nn_dataset_t *dataset, int64_t position) {
  STATUS_REQUIRE(dataset);
  if (position < 0)
    return status_fail(NN_ERR_ARGUMENT, "nn_dataset_seek: position is %lld; it must be at least 0",
                       (long long)position);
  dataset_seek(dataset, position);
  return NN_OK;
}
