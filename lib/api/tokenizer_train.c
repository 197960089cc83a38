/* Exported functions that make tokenizers from text. */
#include "base/file.h"
#include "text/tokenizer.h"
#include "text/train.h"

static nn_status_t finish(nn_status_t status, learner_t *learner, nn_tokenizer_t **tokenizer) {
  pipeline_t pipeline;
  if (status == NN_OK) status = learner_finish(learner, &pipeline);
  learner_free(learner);
  return status == NN_OK ? tokenizer_create(&pipeline, tokenizer) : status;
}

/* The sum of sizes that are the caller's. */
static nn_status_t add_size(size_t bytes, int64_t *total) {
  if (bytes > INT64_MAX || __builtin_add_overflow(*total, (int64_t)bytes, total))
    return status_fail(NN_ERR_ARGUMENT, "the texts have more than 2^63 bytes");
  return NN_OK;
}

nn_status_t nn_tokenizer_train(const char *const *texts, const size_t *bytes, int64_t count,
                               const nn_tokenizer_train_options_t *options,
                               nn_tokenizer_t **tokenizer) {
  learner_t learner;
  int64_t total = 0;
  STATUS_REQUIRE(tokenizer);
  if (count < 0) return status_fail(NN_ERR_ARGUMENT, "%lld texts", (long long)count);
  if (count) STATUS_REQUIRE(texts);
  if (count) STATUS_REQUIRE(bytes);
  for (int64_t i = 0; i < count; i++) {
    if (bytes[i]) STATUS_REQUIRE(texts[i]);
    STATUS_TRY(add_size(bytes[i], &total));
  }
  nn_status_t status = learner_open(options, total, &learner);
  for (int64_t i = 0; i < count && status == NN_OK; i++)
    status = learner_add(&learner, (text_t){texts[i], bytes[i]});
  return finish(status, &learner, tokenizer);
}

/* Every line with its end is a text. */
static nn_status_t add_lines(learner_t *learner, const file_map_t *map) {
  const char *at = map->data, *end = at + map->bytes;
  while (at < end) {
    const char *newline = memchr(at, '\n', (size_t)(end - at));
    const char *next = newline ? newline + 1 : end;
    STATUS_TRY(learner_add(learner, (text_t){at, (size_t)(next - at)}));
    at = next;
  }
  return NN_OK;
}

static nn_status_t add_file(learner_t *learner, const char *path) {
  file_map_t map;
  STATUS_TRY(file_map(path, &map));
  nn_status_t status = add_lines(learner, &map);
  file_unmap(&map);
  return status == NN_OK ? NN_OK : status_prefix(status, "%s", file_show(path).text);
}

static nn_status_t file_bytes(const char *path, int64_t *total) {
  file_map_t map;
  STATUS_TRY(file_map(path, &map));
  nn_status_t status = add_size(map.bytes, total);
  file_unmap(&map);
  return status;
}

nn_status_t nn_tokenizer_train_files(const char *const *paths, int64_t count,
                                     const nn_tokenizer_train_options_t *options,
                                     nn_tokenizer_t **tokenizer) {
  learner_t learner;
  int64_t total = 0;
  STATUS_REQUIRE(tokenizer);
  if (count < 1) return status_fail(NN_ERR_ARGUMENT, "%lld files", (long long)count);
  STATUS_REQUIRE(paths);
  for (int64_t i = 0; i < count; i++) {
    STATUS_REQUIRE(paths[i]);
    STATUS_TRY(file_bytes(paths[i], &total));
  }
  nn_status_t status = learner_open(options, total, &learner);
  for (int64_t i = 0; i < count && status == NN_OK; i++) status = add_file(&learner, paths[i]);
  return finish(status, &learner, tokenizer);
}
