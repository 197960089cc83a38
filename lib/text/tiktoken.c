#include "text/tiktoken.h"

#include "base/mem.h"
#include "text/base64.h"
#include "text/patterns.h"

/* ---- published vocabularies ------------------------------------------------------------------ */

typedef struct special {
  const char *text;
  int32_t id;
} special_t;

enum { SPECIALS = 8 };

typedef struct published {
  size_t tokens; /* in the rank file */
  word_cut_t cut;
  bool composed;                /* its programs give it NFC */
  special_t specials[SPECIALS]; /* up to one without text */
} published_t;

static const published_t vocabularies[] = {
    {50256, CUT_GPT2, false, {{"<|endoftext|>", 50256}}}, /* r50k_base, which is GPT-2's */
    {50280, CUT_GPT2, false, {{"<|endoftext|>", 50256}}}, /* p50k_base */
    {100256, CUT_LLAMA3, false,                           /* cl100k_base */
     {{"<|endoftext|>", 100257},
      {"<|fim_prefix|>", 100258},
      {"<|fim_middle|>", 100259},
      {"<|fim_suffix|>", 100260},
      {"<|endofprompt|>", 100276}}},
    {128000, CUT_LLAMA3, false,                           /* Llama 3 */
     {{"<|begin_of_text|>", 128000},
      {"<|end_of_text|>", 128001},
      {"<|start_header_id|>", 128006},
      {"<|end_header_id|>", 128007},
      {"<|eot_id|>", 128009}}},
    {151643, CUT_QWEN2, true,                             /* Qwen */
     {{"<|endoftext|>", 151643}, {"<|im_start|>", 151644}, {"<|im_end|>", 151645}}},
    {199998, CUT_O200K, false,                            /* o200k_base */
     {{"<|endoftext|>", 199999}, {"<|endofprompt|>", 200018}}},
};
enum { VOCABULARIES = sizeof vocabularies / sizeof *vocabularies };

static nn_status_t add_published(pipeline_t *pipeline) {
  const published_t *known = NULL;
  for (size_t i = 0; i < VOCABULARIES; i++)
    if (vocabularies[i].tokens == pipeline->model.token_count) known = &vocabularies[i];
  if (!known)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "no published vocabulary has %zu tokens; give the pattern that cuts text "
                       "into words",
                       pipeline->model.token_count);
  for (const special_t *special = known->specials;
       special < known->specials + SPECIALS && special->text; special++)
    STATUS_TRY(pipeline_add_added(
        pipeline, &(added_token_t){.content = {special->text, strlen(special->text)},
                                   .id = special->id,
                                   .verbatim = true,
                                   .special = true}));
  if (known->composed)
    STATUS_TRY(pipeline_add_normalizer(pipeline, &(normalizer_step_t){.kind = NORMALIZE_NFC}));
  return patterns_add(pipeline, known->cut);
}

/* ---- the file -------------------------------------------------------------------------------- */

/* The next line without its end; false behind the last. */
static bool next_line(text_t *rest, text_t *line) {
  if (!rest->bytes) return false;
  const char *end = memchr(rest->data, '\n', rest->bytes);
  size_t bytes = end ? (size_t)(end - rest->data) : rest->bytes, taken = bytes + (end != NULL);
  *line = (text_t){rest->data, bytes};
  *rest = (text_t){rest->data + taken, rest->bytes - taken};
  if (line->bytes && line->data[line->bytes - 1] == '\r') line->bytes--;
  return true;
}

static bool parse_rank(text_t text, int32_t *rank) {
  int64_t value = 0;
  if (!text.bytes || text.bytes > 9) return false;
  for (size_t i = 0; i < text.bytes; i++) {
    if (text.data[i] < '0' || text.data[i] > '9') return false;
    value = 10 * value + (text.data[i] - '0');
  }
  *rank = (int32_t)value;
  return true;
}

/* raw: room for what the line's token decodes to. */
static nn_status_t add_line(pipeline_t *pipeline, text_t line, char *raw) {
  const char *space = memchr(line.data, ' ', line.bytes);
  text_t token = {raw, 0}, spelled;
  int32_t id;
  if (!space) return status_fail(NN_ERR_FORMAT, "no space between token and rank");
  size_t begin = (size_t)(space - line.data);
  if (!base64_decode((text_t){line.data, begin}, raw, &token.bytes) || !token.bytes)
    return status_fail(NN_ERR_FORMAT, "the token is not base64");
  if (!parse_rank((text_t){space + 1, line.bytes - begin - 1}, &id))
    return status_fail(NN_ERR_FORMAT, "the rank is no number");
  STATUS_TRY(pipeline_byte_token(pipeline, token, &spelled));
  if (pipeline_find(pipeline, spelled) >= 0)
    return status_fail(NN_ERR_FORMAT, "the token came before");
  return pipeline_add_token(pipeline, spelled, id, 0);
}

static nn_status_t add_lines(pipeline_t *pipeline, text_t file, char *raw) {
  text_t line;
  for (int64_t number = 1; next_line(&file, &line); number++) {
    if (!line.bytes) continue;
    nn_status_t status = add_line(pipeline, line, raw);
    if (status != NN_OK) return status_prefix(status, "line %lld", (long long)number);
  }
  return NN_OK;
}

bool tiktoken_is(text_t file) {
  enum { MOST = 4096 }; /* of a line that is looked at */
  char raw[MOST];
  text_t line;
  size_t bytes;
  int32_t rank;
  if (!next_line(&file, &line) || line.bytes > MOST) return false;
  const char *space = memchr(line.data, ' ', line.bytes);
  if (!space) return false;
  const size_t begin = (size_t)(space - line.data);
  return base64_decode((text_t){line.data, begin}, raw, &bytes) && bytes &&
         parse_rank((text_t){space + 1, line.bytes - begin - 1}, &rank);
}

nn_status_t tiktoken_rank(pipeline_t *pipeline) {
  const model_t *model = &pipeline->model;
  void *ranks;
  for (int byte = 0; byte < 256; byte++) {
    char raw = (char)byte;
    text_t spelled;
    STATUS_TRY(pipeline_byte_token(pipeline, (text_t){&raw, 1}, &spelled));
    if (pipeline_find(pipeline, spelled) < 0)
      return status_fail(NN_ERR_FORMAT, "no token for the byte %d; every byte must have one", byte);
  }
  STATUS_TRY(mem_alloc(model->token_count, sizeof(uint32_t), &ranks));
  for (size_t i = 0; i < model->token_count; i++)
    ((uint32_t *)ranks)[i] = (uint32_t)model->tokens[i].id;
  nn_status_t status = pipeline_rank_merges(pipeline, ranks);
  mem_free(ranks);
  return status;
}

nn_status_t tiktoken_read(text_t file, text_t regex, pipeline_t *pipeline) {
  void *raw;
  STATUS_TRY(mem_alloc(base64_room(file.bytes), 1, &raw));
  nn_status_t status = add_lines(pipeline, file, raw);
  mem_free(raw);
  STATUS_TRY(status);
  pipeline->model.ignore_merges = true;
  STATUS_TRY(tiktoken_rank(pipeline));
  return regex.bytes ? patterns_add_regex(pipeline, regex) : add_published(pipeline);
}
