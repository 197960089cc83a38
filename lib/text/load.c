#include "text/load.h"

#include "base/file.h"
#include "base/mem.h"
#include "text/gguf_tokenizer.h"
#include "text/llmc_tokenizer.h"
#include "text/sentencepiece.h"
#include "text/tiktoken.h"
#include "text/tokenizer_json.h"

/* A kind of file: whether content is of that kind, and what fills an initialised description from
 * it. A failed reader may leave the description half filled. */
typedef struct reader {
  bool (*is)(const void *data, size_t bytes);
  nn_status_t (*read)(const void *data, size_t bytes, pipeline_t *pipeline);
} reader_t;

static bool starts_with(const void *data, size_t bytes, const void *start, size_t length) {
  return bytes >= length && memcmp(data, start, length) == 0;
}

static bool is_gguf(const void *data, size_t bytes) { return starts_with(data, bytes, "GGUF", 4); }

static bool is_llmc(const void *data, size_t bytes) {
  return starts_with(data, bytes, &(uint32_t){LLMC_TOKENIZER_MAGIC}, 4);
}

static bool is_tiktoken(const void *data, size_t bytes) {
  return tiktoken_is((text_t){data, bytes});
}

/* Its first field is a piece. */
static bool is_sentencepiece(const void *data, size_t bytes) {
  return starts_with(data, bytes, "\n", 1);
}

static nn_status_t read_gguf(const void *data, size_t bytes, pipeline_t *pipeline) {
  return gguf_tokenizer_read((text_t){data, bytes}, pipeline);
}

static nn_status_t read_llmc(const void *data, size_t bytes, pipeline_t *pipeline) {
  return llmc_tokenizer_read((text_t){data, bytes}, pipeline);
}

static nn_status_t read_tiktoken(const void *data, size_t bytes, pipeline_t *pipeline) {
  return tiktoken_read((text_t){data, bytes}, TEXT(""), pipeline);
}

static nn_status_t read_sentencepiece(const void *data, size_t bytes, pipeline_t *pipeline) {
  return sentencepiece_read((text_t){data, bytes}, pipeline);
}

static const reader_t readers[] = {
    {tokenizer_json_is, tokenizer_json_read}, {is_gguf, read_gguf},
    {is_llmc, read_llmc},                     {is_tiktoken, read_tiktoken},
    {is_sentencepiece, read_sentencepiece},
};

static nn_status_t read_any(const void *data, size_t bytes, pipeline_t *pipeline) {
  for (size_t i = 0; i < sizeof readers / sizeof *readers; i++)
    if (readers[i].is(data, bytes)) return readers[i].read(data, bytes, pipeline);
  return status_fail(NN_ERR_FORMAT,
                     "this is no tokenizer.json, SentencePiece model, tiktoken rank file, GGUF "
                     "file or llm.c tokenizer file");
}

static nn_status_t read_file(const char *path, pipeline_t *pipeline) {
  file_map_t map;
  STATUS_TRY(file_map(path, &map));
  nn_status_t status = read_any(map.data, map.bytes, pipeline);
  file_unmap(&map);
  return status == NN_OK ? NN_OK : status_prefix(status, "%s", file_show(path).text);
}

/* The special tokens that tokenizer_config.json names, where there is one. */
static nn_status_t read_config(const char *folder, pipeline_t *pipeline) {
  char *path;
  file_map_t map;
  STATUS_TRY(file_join(folder, "tokenizer_config.json", &path));
  nn_status_t status = NN_OK;
  if (file_exists(path)) {
    status = file_map(path, &map);
    if (status == NN_OK) {
      status = tokenizer_config_read(map.data, map.bytes, pipeline);
      file_unmap(&map);
      if (status != NN_OK) status = status_prefix(status, "%s", file_show(path).text);
    }
  }
  mem_free(path);
  return status;
}

static nn_status_t read_in(const char *folder, const char *name, bool *found,
                           pipeline_t *pipeline) {
  char *path;
  STATUS_TRY(file_join(folder, name, &path));
  *found = file_exists(path);
  nn_status_t status = *found ? read_file(path, pipeline) : NN_OK;
  mem_free(path);
  return status;
}

/* tokenizer.json goes before what it may have been made from. */
static nn_status_t read_folder(const char *folder, pipeline_t *pipeline) {
  bool found;
  STATUS_TRY(read_in(folder, "tokenizer.json", &found, pipeline));
  if (!found) STATUS_TRY(read_in(folder, "tokenizer.model", &found, pipeline));
  if (!found)
    return status_fail(NN_ERR_NOT_FOUND, "%s: holds no tokenizer.json and no tokenizer.model",
                       file_show(folder).text);
  return read_config(folder, pipeline);
}

/* Makes the tokenizer of what was read. */
static nn_status_t make(const char *name, pipeline_t *pipeline, nn_tokenizer_t **tokenizer) {
  nn_status_t status = tokenizer_create(pipeline, tokenizer);
  return status == NN_OK ? NN_OK : status_prefix(status, "%s", file_show(name).text);
}

nn_status_t tokenizer_load(const char *path, nn_tokenizer_t **tokenizer) {
  pipeline_t pipeline;
  pipeline_init(&pipeline);
  nn_status_t status =
      file_is_folder(path) ? read_folder(path, &pipeline) : read_file(path, &pipeline);
  if (status == NN_OK) status = make(path, &pipeline, tokenizer);
  pipeline_free(&pipeline);
  return status;
}

nn_status_t tokenizer_load_memory(const void *data, size_t bytes, const char *name,
                                  nn_tokenizer_t **tokenizer) {
  pipeline_t pipeline;
  pipeline_init(&pipeline);
  nn_status_t status = read_any(data, bytes, &pipeline);
  status = status == NN_OK ? make(name, &pipeline, tokenizer)
                           : status_prefix(status, "%s", file_show(name).text);
  pipeline_free(&pipeline);
  return status;
}
