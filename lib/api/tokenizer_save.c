/* Exported functions that write tokenizers, and read those that need more than their file. */
#include "base/file.h"
#include "base/mem.h"
#include "text/json_put.h"
#include "text/json_save.h"
#include "text/llmc_tokenizer.h"
#include "text/tiktoken.h"
#include "text/tokenizer.h"

/* ---- tokenizer.json -------------------------------------------------------------------------- */

static nn_status_t save_json(const nn_tokenizer_t *tokenizer, const char *path) {
  output_t output = {0};
  nn_status_t status = json_save(&tokenizer->pipeline, &output);
  if (status == NN_OK) status = output_save(&output, path);
  output_free(&output);
  return status;
}

/* What transformers asks for beside tokenizer.json: the names of the special tokens. */
static nn_status_t save_config(const nn_tokenizer_t *tokenizer, const char *path) {
  static const char *const names[] = {[NN_TOKEN_BOS] = "bos_token",
                                      [NN_TOKEN_EOS] = "eos_token",
                                      [NN_TOKEN_PAD] = "pad_token",
                                      [NN_TOKEN_UNK] = "unk_token"};
  output_t output = {0};
  output_text(&output, "{\"tokenizer_class\": \"PreTrainedTokenizerFast\"");
  json_put_flag(&output, "clean_up_tokenization_spaces", false);
  for (int i = 0; i < 4; i++) {
    const int32_t id = tokenizer->pipeline.special[i];
    if (id >= 0) json_put_member(&output, names[i], tokenizer->ids[id].text);
  }
  output_text(&output, "}\n");
  nn_status_t status = output_save(&output, path);
  output_free(&output);
  return status;
}

typedef nn_status_t (*save_fn)(const nn_tokenizer_t *tokenizer, const char *path);

static nn_status_t save_in(const nn_tokenizer_t *tokenizer, const char *folder, const char *name,
                           save_fn save) {
  char *path;
  STATUS_TRY(file_join(folder, name, &path));
  nn_status_t status = save(tokenizer, path);
  mem_free(path);
  return status;
}

nn_status_t nn_tokenizer_save(const nn_tokenizer_t *tokenizer, const char *path) {
  STATUS_REQUIRE(tokenizer);
  STATUS_REQUIRE(path);
  if (!file_is_folder(path)) return save_json(tokenizer, path);
  STATUS_TRY(save_in(tokenizer, path, "tokenizer.json", save_json));
  return save_in(tokenizer, path, "tokenizer_config.json", save_config);
}

/* ---- llm.c and tiktoken ---------------------------------------------------------------------- */

nn_status_t nn_tokenizer_save_llmc(const nn_tokenizer_t *tokenizer, const char *path) {
  STATUS_REQUIRE(tokenizer);
  STATUS_REQUIRE(path);
  return llmc_tokenizer_save(path, &tokenizer->pipeline);
}

static nn_status_t load_tiktoken(const char *path, const char *pattern, pipeline_t *pipeline) {
  file_map_t map;
  STATUS_TRY(file_map(path, &map));
  nn_status_t status =
      tiktoken_read((text_t){map.data, map.bytes}, (text_t){pattern, strlen(pattern)}, pipeline);
  file_unmap(&map);
  return status;
}

nn_status_t nn_tokenizer_load_tiktoken(const char *path, const char *pattern,
                                       nn_tokenizer_t **tokenizer) {
  pipeline_t pipeline;
  STATUS_REQUIRE(path);
  STATUS_REQUIRE(pattern);
  STATUS_REQUIRE(tokenizer);
  pipeline_init(&pipeline);
  nn_status_t status = load_tiktoken(path, pattern, &pipeline);
  if (status == NN_OK) status = tokenizer_create(&pipeline, tokenizer);
  pipeline_free(&pipeline);
  return status == NN_OK ? NN_OK : status_prefix(status, "%s", file_show(path).text);
}
