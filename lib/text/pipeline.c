#include "text/pipeline.h"

#include "base/mem.h"
#include "text/bytemap.h"
#include "text/list.h"

enum { POOL_BLOCK = 1 << 16 };

struct pool_block {
  struct pool_block *next;
  size_t used, size; /* of data */
  char data[];
};

void pipeline_init(pipeline_t *pipeline) {
  *pipeline = (pipeline_t){.model = {.kind = MODEL_BPE, .unk_id = -1, .max_word = 100},
                           .special = {-1, -1, -1, -1}};
}

void pipeline_free(pipeline_t *pipeline) {
  mem_free(pipeline->normalizer);
  mem_free(pipeline->pre);
  mem_free(pipeline->model.tokens);
  mem_free(pipeline->model.merges);
  text_index_free(&pipeline->model.index);
  mem_free(pipeline->added);
  mem_free(pipeline->prefix);
  mem_free(pipeline->suffix);
  mem_free(pipeline->decoder);
  mem_free(pipeline->kept);
  for (struct pool_block *block = pipeline->pool, *next; block; block = next) {
    next = block->next;
    mem_free(block);
  }
  *pipeline = (pipeline_t){0};
}

/* ---- strings --------------------------------------------------------------------------------- */

/* Room for bytes that lives as long as the pipeline. */
static nn_status_t pool_take(pipeline_t *pipeline, size_t bytes, char **place) {
  struct pool_block *block = pipeline->pool;
  if (!block || block->size - block->used < bytes) {
    const size_t size = bytes > POOL_BLOCK / 4 ? bytes : POOL_BLOCK;
    void *made;
    STATUS_TRY(mem_alloc(1, sizeof *block + size, &made));
    block = made;
    block->size = size;
    if (pipeline->pool && size == bytes) { /* full at once: the block in use stays first */
      block->next = pipeline->pool->next;
      pipeline->pool->next = block;
    } else {
      block->next = pipeline->pool;
      pipeline->pool = block;
    }
  }
  *place = block->data + block->used;
  block->used += bytes;
  return NN_OK;
}

nn_status_t pipeline_copy(pipeline_t *pipeline, text_t text, text_t *copy) {
  char *place;
  if (text.bytes >= PTRDIFF_MAX)
    return status_fail(NN_ERR_ARGUMENT, "a string of %zu bytes", text.bytes);
  STATUS_TRY(pool_take(pipeline, text.bytes + 1, &place));
  if (text.bytes) memcpy(place, text.data, text.bytes);
  place[text.bytes] = 0;
  *copy = (text_t){place, text.bytes};
  return NN_OK;
}

nn_status_t pipeline_byte_token(pipeline_t *pipeline, text_t raw, text_t *spelled) {
  char *place;
  size_t written = 0;
  if (raw.bytes >= PTRDIFF_MAX / 2)
    return status_fail(NN_ERR_ARGUMENT, "a token of %zu bytes", raw.bytes);
  STATUS_TRY(pool_take(pipeline, 2 * raw.bytes + 1, &place));
  for (size_t i = 0; i < raw.bytes; i++)
    written += bytemap_write((unsigned char)raw.data[i], place + written);
  place[written] = 0;
  *spelled = (text_t){place, written};
  return NN_OK;
}

/* ---- lists ----------------------------------------------------------------------------------- */

nn_status_t pipeline_add_normalizer(pipeline_t *pipeline, const normalizer_step_t *step) {
  normalizer_step_t copy = *step;
  STATUS_TRY(pipeline_copy(pipeline, step->pattern.text, &copy.pattern.text));
  STATUS_TRY(pipeline_copy(pipeline, step->content, &copy.content));
  STATUS_TRY(LIST_GROW(pipeline->normalizer, pipeline->normalizer_count,
                       pipeline->normalizer_capacity));
  pipeline->normalizer[pipeline->normalizer_count++] = copy;
  return NN_OK;
}

nn_status_t pipeline_add_pre(pipeline_t *pipeline, const pre_step_t *step) {
  pre_step_t copy = *step;
  STATUS_TRY(pipeline_copy(pipeline, step->pattern.text, &copy.pattern.text));
  STATUS_TRY(pipeline_copy(pipeline, step->content, &copy.content));
  STATUS_TRY(LIST_GROW(pipeline->pre, pipeline->pre_count, pipeline->pre_capacity));
  pipeline->pre[pipeline->pre_count++] = copy;
  return NN_OK;
}

nn_status_t pipeline_add_decoder(pipeline_t *pipeline, const decoder_step_t *step) {
  decoder_step_t copy = *step;
  STATUS_TRY(pipeline_copy(pipeline, step->pattern.text, &copy.pattern.text));
  STATUS_TRY(pipeline_copy(pipeline, step->content, &copy.content));
  STATUS_TRY(LIST_GROW(pipeline->decoder, pipeline->decoder_count, pipeline->decoder_capacity));
  pipeline->decoder[pipeline->decoder_count++] = copy;
  return NN_OK;
}

static nn_status_t check_id(int64_t id, text_t text) {
  if (id < 0 || id > PIPELINE_MAX_ID)
    return status_fail(NN_ERR_FORMAT, "the token \"%.*s\" has the id %lld; ids are 0 to %d",
                       text.bytes < 40 ? (int)text.bytes : 40, text.data, (long long)id,
                       PIPELINE_MAX_ID);
  return NN_OK;
}

nn_status_t pipeline_add_token(pipeline_t *pipeline, text_t text, int32_t id, double score) {
  model_t *model = &pipeline->model;
  token_t token = {.id = id, .score = score};
  STATUS_TRY(check_id(id, text));
  STATUS_TRY(pipeline_copy(pipeline, text, &token.text));
  STATUS_TRY(LIST_GROW(model->tokens, model->token_count, model->token_capacity));
  if (model->token_count > PIPELINE_MAX_ID)
    return status_fail(NN_ERR_FORMAT, "more than %d tokens", PIPELINE_MAX_ID + 1);
  STATUS_TRY(text_index_put(&model->index, token.text, (int32_t)model->token_count));
  model->tokens[model->token_count++] = token;
  return NN_OK;
}

nn_status_t pipeline_add_added(pipeline_t *pipeline, const added_token_t *token) {
  added_token_t copy = *token;
  STATUS_TRY(check_id(token->id, token->content));
  STATUS_TRY(pipeline_copy(pipeline, token->content, &copy.content));
  STATUS_TRY(LIST_GROW(pipeline->added, pipeline->added_count, pipeline->added_capacity));
  pipeline->added[pipeline->added_count++] = copy;
  return NN_OK;
}

nn_status_t pipeline_add_prefix(pipeline_t *pipeline, int32_t id) {
  STATUS_TRY(LIST_GROW(pipeline->prefix, pipeline->prefix_count, pipeline->prefix_capacity));
  pipeline->prefix[pipeline->prefix_count++] = id;
  return NN_OK;
}

nn_status_t pipeline_add_suffix(pipeline_t *pipeline, int32_t id) {
  STATUS_TRY(LIST_GROW(pipeline->suffix, pipeline->suffix_count, pipeline->suffix_capacity));
  pipeline->suffix[pipeline->suffix_count++] = id;
  return NN_OK;
}

nn_status_t pipeline_add_kept(pipeline_t *pipeline, text_t text) {
  text_t copy;
  STATUS_TRY(pipeline_copy(pipeline, text, &copy));
  STATUS_TRY(LIST_GROW(pipeline->kept, pipeline->kept_count, pipeline->kept_capacity));
  pipeline->kept[pipeline->kept_count++] = copy;
  return NN_OK;
}

/* ---- merges ---------------------------------------------------------------------------------- */

int32_t pipeline_find(const pipeline_t *pipeline, text_t text) {
  const int32_t at = text_index_get(&pipeline->model.index, text);
  return at < 0 ? -1 : pipeline->model.tokens[at].id;
}

static nn_status_t append_merge(model_t *model, const merge_t *merge) {
  STATUS_TRY(LIST_GROW(model->merges, model->merge_count, model->merge_capacity));
  model->merges[model->merge_count++] = *merge;
  return NN_OK;
}

static nn_status_t find_part(const pipeline_t *pipeline, text_t text, int32_t *id) {
  *id = pipeline_find(pipeline, text);
  if (*id < 0)
    return status_fail(NN_ERR_FORMAT, "merge %zu needs the token \"%.*s\", which is not in the"
                       " vocabulary", pipeline->model.merge_count,
                       text.bytes < 80 ? (int)text.bytes : 80, text.data);
  return NN_OK;
}

nn_status_t pipeline_add_merge(pipeline_t *pipeline, text_t left, text_t right) {
  model_t *model = &pipeline->model;
  merge_t merge = {.rank = (uint32_t)model->merge_count};
  if (model->merge_count >= UINT32_MAX)
    return status_fail(NN_ERR_FORMAT, "more than 2^32 merges");
  STATUS_TRY(find_part(pipeline, left, &merge.left));
  STATUS_TRY(find_part(pipeline, right, &merge.right));
  const size_t skip = model->prefix.bytes < right.bytes ? model->prefix.bytes : right.bytes;
  const size_t bytes = left.bytes + right.bytes - skip;
  char short_text[256], *whole = short_text;
  void *made = NULL;
  if (bytes > sizeof short_text) {
    STATUS_TRY(mem_alloc(bytes, 1, &made));
    whole = made;
  }
  memcpy(whole, left.data, left.bytes);
  memcpy(whole + left.bytes, right.data + skip, right.bytes - skip);
  nn_status_t status = find_part(pipeline, (text_t){whole, bytes}, &merge.result);
  mem_free(made);
  STATUS_TRY(status);
  return append_merge(model, &merge);
}

/* Looking up all parts of a token takes the square of its length. */
enum { RANKED_MOST = 1024 };

nn_status_t pipeline_rank_merges(pipeline_t *pipeline, const uint32_t *rank) {
  model_t *model = &pipeline->model;
  for (size_t i = 0; i < model->token_count; i++) {
    const text_t whole = model->tokens[i].text;
    if (rank[i] == UINT32_MAX) continue;
    if (whole.bytes > RANKED_MOST)
      return status_fail(NN_ERR_UNSUPPORTED,
                         "token %d has %zu bytes; merges are found for tokens of at most %d",
                         model->tokens[i].id, whole.bytes, RANKED_MOST);
    for (size_t cut = 1; cut < whole.bytes; cut++) {
      const int32_t left = pipeline_find(pipeline, (text_t){whole.data, cut});
      if (left < 0) continue;
      const int32_t right =
          pipeline_find(pipeline, (text_t){whole.data + cut, whole.bytes - cut});
      if (right < 0) continue;
      STATUS_TRY(append_merge(model, &(merge_t){left, right, model->tokens[i].id, rank[i]}));
    }
  }
  return NN_OK;
}
