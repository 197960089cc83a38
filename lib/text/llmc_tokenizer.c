#include "text/llmc_tokenizer.h"

#include "base/mem.h"
#include "text/bytemap.h"
#include "text/output.h"
#include "text/patterns.h"
#include "text/tiktoken.h"
#include "text/unicode.h"

enum { MAGIC = LLMC_TOKENIZER_MAGIC, MOST_TOKEN = 255, GPT2_END = 50256 };
enum { WORD_MAGIC, WORD_VERSION, WORD_TOKENS, WORD_END, WORDS_USED, WORDS = 256 };

typedef struct header {
  uint32_t words[WORDS];
} header_t;

/* ---- reading --------------------------------------------------------------------------------- */

static nn_status_t header_read(text_t file, uint32_t *tokens, uint32_t *end) {
  header_t header;
  if (file.bytes < sizeof header)
    return status_fail(NN_ERR_FORMAT, "%zu bytes are too few for a tokenizer file's header of %zu",
                       file.bytes, sizeof header);
  memcpy(&header, file.data, sizeof header);
  const uint32_t version = header.words[WORD_VERSION];
  if (header.words[WORD_MAGIC] != MAGIC)
    return status_fail(NN_ERR_FORMAT, "the magic number is %u; an llm.c tokenizer file's is %d",
                       header.words[WORD_MAGIC], MAGIC);
  if (version != 1 && version != 2)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "the tokenizer file has version %u; this library reads 1 and 2", version);
  *tokens = header.words[WORD_TOKENS];
  *end = version == 1 ? GPT2_END : header.words[WORD_END];
  if (*end >= *tokens)
    return status_fail(NN_ERR_FORMAT, "a text ends with the token %u; the file has %u", *end,
                       *tokens);
  return NN_OK;
}

static nn_status_t add_token(pipeline_t *pipeline, text_t raw, int32_t id, bool end) {
  text_t spelled;
  if (end && utf8_valid(raw.data, raw.bytes) != raw.bytes)
    return status_fail(NN_ERR_FORMAT, "token %d, which ends a text, is not UTF-8", id);
  if (end)
    return pipeline_add_added(
        pipeline,
        &(added_token_t){.content = raw, .id = id, .verbatim = true, .special = true});
  STATUS_TRY(pipeline_byte_token(pipeline, raw, &spelled));
  if (pipeline_find(pipeline, spelled) >= 0)
    return status_fail(NN_ERR_FORMAT, "token %d has the bytes of another", id);
  return pipeline_add_token(pipeline, spelled, id, 0);
}

nn_status_t llmc_tokenizer_read(text_t file, pipeline_t *pipeline) {
  uint32_t tokens, end;
  STATUS_TRY(header_read(file, &tokens, &end));
  size_t at = sizeof(header_t);
  for (uint32_t id = 0; id < tokens; id++) {
    const size_t bytes = at < file.bytes ? (unsigned char)file.data[at] : 0;
    if (at >= file.bytes || bytes > file.bytes - at - 1)
      return status_fail(NN_ERR_FORMAT,
                         "the header counts %u tokens; the file ends within token %u", tokens, id);
    if (!bytes) return status_fail(NN_ERR_FORMAT, "token %u has no bytes", id);
    STATUS_TRY(add_token(pipeline, (text_t){file.data + at + 1, bytes}, (int32_t)id, id == end));
    at += 1 + bytes;
  }
  if (at != file.bytes)
    return status_fail(NN_ERR_FORMAT, "%zu bytes follow the %u tokens that the header counts",
                       file.bytes - at, tokens);
  pipeline->special[NN_TOKEN_BOS] = pipeline->special[NN_TOKEN_EOS] = (int32_t)end;
  STATUS_TRY(tiktoken_rank(pipeline));
  return patterns_add(pipeline, CUT_GPT2);
}

/* ---- writing --------------------------------------------------------------------------------- */

/* The text of each id, as the vocabulary spells it; `raw`: as it is, not by the byte map. */
typedef struct spelling {
  text_t text;
  bool raw;
} spelling_t;

static nn_status_t spellings_fill(const pipeline_t *pipeline, spelling_t *spellings,
                                  size_t count) {
  for (size_t i = 0; i < pipeline->model.token_count; i++)
    spellings[pipeline->model.tokens[i].id].text = pipeline->model.tokens[i].text;
  for (size_t i = 0; i < pipeline->added_count; i++)
    spellings[pipeline->added[i].id] = (spelling_t){pipeline->added[i].content, true};
  for (size_t i = 0; i < count; i++)
    if (!spellings[i].text.bytes)
      return status_fail(NN_ERR_UNSUPPORTED,
                         "the vocabulary has no token %zu; an llm.c tokenizer file has no gaps", i);
  return NN_OK;
}

/* bytes: [MOST_TOKEN + 1], the length first. */
static nn_status_t token_bytes(const spelling_t *spelling, size_t id, unsigned char *bytes) {
  const char *at = spelling->text.data, *end = at + spelling->text.bytes;
  size_t count = 0;
  while (at < end && count <= MOST_TOKEN) {
    uint32_t taken = 1;
    int byte = spelling->raw ? (unsigned char)*at : bytemap_byte(utf8_decode(at, end, &taken));
    if (byte < 0)
      return status_fail(NN_ERR_UNSUPPORTED,
                         "token %zu is not spelled in bytes; an llm.c tokenizer file needs a "
                         "byte-level vocabulary",
                         id);
    if (count < MOST_TOKEN) bytes[1 + count] = (unsigned char)byte;
    count++;
    at += taken;
  }
  if (count > MOST_TOKEN)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "token %zu has more than %d bytes, the most of an llm.c tokenizer file", id,
                       MOST_TOKEN);
  bytes[0] = (unsigned char)count;
  return NN_OK;
}

static nn_status_t output_fill(const spelling_t *spellings, size_t count, uint32_t end,
                               output_t *output) {
  const header_t header = {{[WORD_MAGIC] = MAGIC,
                            [WORD_VERSION] = 2,
                            [WORD_TOKENS] = (uint32_t)count,
                            [WORD_END] = end}};
  output_add(output, &header, sizeof header);
  for (size_t i = 0; i < count; i++) {
    unsigned char token[1 + MOST_TOKEN];
    STATUS_TRY(token_bytes(&spellings[i], i, token));
    output_add(output, token, 1u + token[0]);
  }
  return NN_OK;
}

/* One past the largest id. */
static size_t vocab_size(const pipeline_t *pipeline) {
  int32_t most = -1;
  for (size_t i = 0; i < pipeline->model.token_count; i++)
    if (pipeline->model.tokens[i].id > most) most = pipeline->model.tokens[i].id;
  for (size_t i = 0; i < pipeline->added_count; i++)
    if (pipeline->added[i].id > most) most = pipeline->added[i].id;
  return (size_t)(most + 1);
}

static nn_status_t save_with(const char *path, const pipeline_t *pipeline, spelling_t *spellings,
                             size_t count) {
  output_t output = {0};
  STATUS_TRY(spellings_fill(pipeline, spellings, count));
  nn_status_t status =
      output_fill(spellings, count, (uint32_t)pipeline->special[NN_TOKEN_EOS], &output);
  if (status == NN_OK) status = output_save(&output, path);
  output_free(&output);
  return status;
}

nn_status_t llmc_tokenizer_save(const char *path, const pipeline_t *pipeline) {
  const size_t count = vocab_size(pipeline);
  void *spellings;
  if (pipeline->special[NN_TOKEN_EOS] < 0)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "the tokenizer knows no token that ends a text; an llm.c tokenizer file "
                       "needs its id");
  STATUS_TRY(mem_alloc(count, sizeof(spelling_t), &spellings));
  nn_status_t status = save_with(path, pipeline, spellings, count);
  mem_free(spellings);
  return status;
}
