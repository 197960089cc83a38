#include "text/tokenizer.h"

#include <math.h>

#include "base/mem.h"

/* ---- ids ------------------------------------------------------------------------------------- */

/* A special token that Unigram's vocabulary has too is no way to cut a text: it is cut out, or it
 * is text like any other. */
static void bar_specials(nn_tokenizer_t *tokenizer) {
  model_t *model = &tokenizer->pipeline.model;
  for (size_t i = 0; model->kind == MODEL_UNIGRAM && i < model->token_count; i++)
    if (tokenizer->ids[model->tokens[i].id].special) model->tokens[i].score = -INFINITY;
}

/* One past the largest id. Tables by id would be far larger than the file if ids had wide gaps. */
static nn_status_t count_ids(nn_tokenizer_t *tokenizer) {
  const pipeline_t *pipeline = &tokenizer->pipeline;
  const size_t tokens = pipeline->model.token_count + pipeline->added_count;
  int32_t last = -1;
  for (size_t i = 0; i < pipeline->model.token_count; i++)
    if (pipeline->model.tokens[i].id > last) last = pipeline->model.tokens[i].id;
  for (size_t i = 0; i < pipeline->added_count; i++)
    if (pipeline->added[i].id > last) last = pipeline->added[i].id;
  if (last < 0) return status_fail(NN_ERR_FORMAT, "the tokenizer has no tokens");
  if ((size_t)last > 16 * tokens + 4096)
    return status_fail(NN_ERR_FORMAT, "%zu tokens have ids up to %d: too many gaps", tokens, last);
  tokenizer->vocab_size = (int64_t)last + 1;
  return NN_OK;
}

static nn_status_t check_id(const nn_tokenizer_t *tokenizer, int32_t id, const char *what) {
  if (id >= tokenizer->vocab_size)
    return status_fail(NN_ERR_FORMAT, "the id %d (%s) is not in the vocabulary, which ends at %lld",
                       id, what, (long long)tokenizer->vocab_size - 1);
  return NN_OK;
}

static nn_status_t check_ids(const nn_tokenizer_t *tokenizer) {
  const pipeline_t *pipeline = &tokenizer->pipeline;
  STATUS_TRY(check_id(tokenizer, pipeline->model.unk_id, "unknown tokens"));
  for (int i = 0; i < 4; i++)
    STATUS_TRY(check_id(tokenizer, pipeline->special[i], "a special token"));
  for (size_t i = 0; i < pipeline->prefix_count; i++)
    STATUS_TRY(check_id(tokenizer, pipeline->prefix[i], "before a text"));
  for (size_t i = 0; i < pipeline->suffix_count; i++)
    STATUS_TRY(check_id(tokenizer, pipeline->suffix[i], "after a text"));
  for (size_t i = 0; i < pipeline->model.merge_count; i++) {
    const merge_t *merge = &pipeline->model.merges[i];
    STATUS_TRY(check_id(tokenizer, merge->left, "a merge"));
    STATUS_TRY(check_id(tokenizer, merge->right, "a merge"));
    STATUS_TRY(check_id(tokenizer, merge->result, "a merge"));
  }
  return NN_OK;
}

static nn_status_t list_ids(nn_tokenizer_t *tokenizer) {
  const pipeline_t *pipeline = &tokenizer->pipeline;
  void *memory;
  STATUS_TRY(count_ids(tokenizer));
  STATUS_TRY(check_ids(tokenizer));
  STATUS_TRY(mem_alloc((size_t)tokenizer->vocab_size, sizeof(id_entry_t), &memory));
  tokenizer->ids = memory;
  for (size_t i = 0; i < pipeline->model.token_count; i++) {
    const token_t *token = &pipeline->model.tokens[i];
    tokenizer->ids[token->id] = (id_entry_t){.text = token->text, .added = -1};
  }
  for (size_t i = 0; i < pipeline->added_count; i++) {
    const added_token_t *added = &pipeline->added[i];
    tokenizer->ids[added->id] =
        (id_entry_t){.text = added->content, .added = (int32_t)i, .special = added->special};
    STATUS_TRY(text_index_put(&tokenizer->added_index, added->content, (int32_t)i));
  }
  return NN_OK;
}

int32_t tokenizer_id(const nn_tokenizer_t *tokenizer, text_t text) {
  const int32_t added = text_index_get(&tokenizer->added_index, text);
  return added >= 0 ? tokenizer->pipeline.added[added].id
                    : pipeline_find(&tokenizer->pipeline, text);
}

/* ---- added tokens ---------------------------------------------------------------------------- */

/* What an added token looks like in the normalized text. */
static nn_status_t normalize_added(nn_tokenizer_t *tokenizer, size_t at) {
  pipeline_t *pipeline = &tokenizer->pipeline;
  scratch_t *scratch;
  const text_t content = pipeline->added[at].content;
  work_t work = {.data = content.data, .bytes = (uint32_t)content.bytes};
  STATUS_TRY(scratch_take(tokenizer, &scratch));
  nn_status_t status = NN_OK;
  for (size_t i = 0; status == NN_OK && i < pipeline->normalizer_count; i++)
    status = normalize_step(&pipeline->normalizer[i], &tokenizer->normalizer_matchers[i], false,
                            &scratch->steps, &work);
  if (status == NN_OK)
    status = pipeline_copy(pipeline, (text_t){work.data, work.bytes},
                           &tokenizer->added_normalized[at]);
  scratch_give(tokenizer, scratch);
  return status;
}

static nn_status_t make_sets(nn_tokenizer_t *tokenizer, trie_entry_t *entries) {
  const pipeline_t *pipeline = &tokenizer->pipeline;
  for (int normalized = 0; normalized < 2; normalized++) {
    size_t count = 0;
    for (size_t i = 0; i < pipeline->added_count; i++) {
      const text_t text = tokenizer->added_normalized[i];
      if (pipeline->added[i].normalized == normalized && text.bytes)
        entries[count++] = (trie_entry_t){text, (int32_t)i};
    }
    STATUS_TRY(added_set_create(entries, count,
                                normalized ? &tokenizer->normalized : &tokenizer->raw));
  }
  return NN_OK;
}

static nn_status_t prepare_added(nn_tokenizer_t *tokenizer) {
  const pipeline_t *pipeline = &tokenizer->pipeline;
  void *memory;
  STATUS_TRY(mem_alloc(pipeline->added_count, sizeof(text_t), &memory));
  tokenizer->added_normalized = memory;
  for (size_t i = 0; i < pipeline->added_count; i++) {
    tokenizer->added_normalized[i] = pipeline->added[i].content;
    if (pipeline->added[i].normalized && !pipeline->added[i].verbatim && pipeline->normalizer_count)
      STATUS_TRY(normalize_added(tokenizer, i));
  }
  STATUS_TRY(mem_alloc(pipeline->added_count, sizeof(trie_entry_t), &memory));
  nn_status_t status = make_sets(tokenizer, memory);
  mem_free(memory);
  return status;
}

/* ---- steps ----------------------------------------------------------------------------------- */

static nn_status_t compile_normalizer(nn_tokenizer_t *tokenizer) {
  const pipeline_t *pipeline = &tokenizer->pipeline;
  void *memory;
  STATUS_TRY(mem_alloc(pipeline->normalizer_count, sizeof(matcher_t), &memory));
  tokenizer->normalizer_matchers = memory;
  for (size_t i = 0; i < pipeline->normalizer_count; i++) {
    const normalizer_step_t *step = &pipeline->normalizer[i];
    if (step->kind == NORMALIZE_CHARSMAP ||
        (step->kind == NORMALIZE_SENTENCEPIECE && step->content.bytes))
      STATUS_TRY(charsmap_check(step->content));
    STATUS_TRY(matcher_create(&step->pattern, &tokenizer->normalizer_matchers[i]));
  }
  return NN_OK;
}

static nn_status_t compile_pre(nn_tokenizer_t *tokenizer) {
  const pipeline_t *pipeline = &tokenizer->pipeline;
  const pattern_t gpt2 = {scan_gpt2, true};
  void *memory;
  STATUS_TRY(mem_alloc(pipeline->pre_count, sizeof(matcher_t), &memory));
  tokenizer->pre_matchers = memory;
  for (size_t i = 0; i < pipeline->pre_count; i++) {
    const pre_step_t *step = &pipeline->pre[i];
    if ((step->kind == PRE_METASPACE || step->kind == PRE_DELIMITER) && !step->content.bytes)
      return status_fail(NN_ERR_FORMAT, "pre-tokenizer step %zu has no character to look for", i);
    if (step->kind == PRE_FIXED_LENGTH && step->length < 1)
      return status_fail(NN_ERR_FORMAT, "pre-tokenizer step %zu cuts every %lld characters", i,
                         (long long)step->length);
    STATUS_TRY(matcher_create(step->kind == PRE_BYTE_LEVEL ? &gpt2 : &step->pattern,
                              &tokenizer->pre_matchers[i]));
  }
  return NN_OK;
}

static nn_status_t compile_decoder(nn_tokenizer_t *tokenizer) {
  const pipeline_t *pipeline = &tokenizer->pipeline;
  void *memory;
  STATUS_TRY(mem_alloc(pipeline->decoder_count, sizeof(matcher_t), &memory));
  tokenizer->decoder_matchers = memory;
  for (size_t i = 0; i < pipeline->decoder_count; i++)
    STATUS_TRY(matcher_create(&pipeline->decoder[i].pattern, &tokenizer->decoder_matchers[i]));
  return NN_OK;
}

/* Byte-level BPE needs no byte map where the map would be the last step before the model. */
static void choose_paths(nn_tokenizer_t *tokenizer) {
  const pipeline_t *pipeline = &tokenizer->pipeline;
  const model_t *model = &pipeline->model;
  const size_t steps = pipeline->pre_count;
  bool mapped = steps > 0 && pipeline->pre[steps - 1].kind == PRE_BYTE_LEVEL;
  for (size_t i = 0; i + 1 < steps; i++) mapped = mapped && pipeline->pre[i].kind != PRE_BYTE_LEVEL;
  tokenizer->bytes = mapped && model->kind == MODEL_BPE && !model->prefix.bytes &&
                     !model->suffix.bytes && vocabulary_has_bytes(model);
  tokenizer->keeps_bytes = tokenizer->bytes;
  for (size_t i = 0; i < pipeline->normalizer_count; i++)
    if (pipeline->normalizer[i].kind > NORMALIZE_NFKD) tokenizer->keeps_bytes = false;
  if (pipeline->normalizer_count && pipeline->normalizer[0].kind == NORMALIZE_SENTENCEPIECE)
    tokenizer->keeps_bytes = true;
  for (size_t i = 0; i < steps; i++)
    if (pipeline->pre[i].kind == PRE_METASPACE && pipeline->pre[i].prepend == PREPEND_FIRST)
      tokenizer->needs_places = pipeline->normalizer_count > 0 || i > 0;
}

static nn_status_t compile(nn_tokenizer_t *tokenizer) {
  STATUS_TRY(list_ids(tokenizer));
  bar_specials(tokenizer);
  STATUS_TRY(compile_normalizer(tokenizer));
  STATUS_TRY(compile_pre(tokenizer));
  STATUS_TRY(compile_decoder(tokenizer));
  STATUS_TRY(prepare_added(tokenizer));
  choose_paths(tokenizer);
  return vocabulary_create(&tokenizer->pipeline.model, tokenizer->bytes, &tokenizer->vocabulary);
}

/* ---- the handle ------------------------------------------------------------------------------ */

nn_status_t tokenizer_create(pipeline_t *pipeline, nn_tokenizer_t **tokenizer) {
  void *memory;
  nn_status_t status = mem_alloc(1, sizeof **tokenizer, &memory);
  if (status != NN_OK) {
    pipeline_free(pipeline);
    return status;
  }
  nn_tokenizer_t *made = memory;
  made->pipeline = *pipeline;
  *pipeline = (pipeline_t){0};
  pthread_mutex_init(&made->lock, NULL);
  status = compile(made);
  if (status == NN_OK) *tokenizer = made;
  else tokenizer_destroy(made);
  return status;
}

static void scratch_free(scratch_t *scratch) {
  buffer_free(&scratch->steps.buffer[0]);
  buffer_free(&scratch->steps.buffer[1]);
  buffer_free(&scratch->held);
  match_state_free(&scratch->steps.match);
  spans_free(&scratch->spans);
  model_memory_free(&scratch->model);
  mem_free(scratch->cache);
  for (int i = 0; i < 2; i++) {
    buffer_free(&scratch->texts[i].text);
    mem_free(scratch->texts[i].ends);
  }
  mem_free(scratch);
}

static void free_matchers(matcher_t *matchers, size_t count) {
  for (size_t i = 0; matchers && i < count; i++) matcher_free(&matchers[i]);
  mem_free(matchers);
}

void tokenizer_destroy(nn_tokenizer_t *tokenizer) {
  for (scratch_t *scratch = tokenizer->idle, *next; scratch; scratch = next) {
    next = scratch->next;
    scratch_free(scratch);
  }
  pthread_mutex_destroy(&tokenizer->lock);
  free_matchers(tokenizer->normalizer_matchers, tokenizer->pipeline.normalizer_count);
  free_matchers(tokenizer->pre_matchers, tokenizer->pipeline.pre_count);
  free_matchers(tokenizer->decoder_matchers, tokenizer->pipeline.decoder_count);
  added_set_free(&tokenizer->raw);
  added_set_free(&tokenizer->normalized);
  vocabulary_free(&tokenizer->vocabulary);
  text_index_free(&tokenizer->added_index);
  mem_free(tokenizer->ids);
  mem_free(tokenizer->added_normalized);
  pipeline_free(&tokenizer->pipeline);
  mem_free(tokenizer);
}

nn_status_t scratch_take(const nn_tokenizer_t *tokenizer, scratch_t **scratch) {
  nn_tokenizer_t *owner = (nn_tokenizer_t *)tokenizer; /* the list of idle memory alone changes */
  void *memory;
  pthread_mutex_lock(&owner->lock);
  *scratch = owner->idle;
  if (*scratch) owner->idle = (*scratch)->next;
  pthread_mutex_unlock(&owner->lock);
  if (*scratch) return NN_OK;
  STATUS_TRY(mem_alloc(1, sizeof **scratch, &memory));
  *scratch = memory;
  nn_status_t status = mem_alloc(WORDCACHE_ENTRIES, sizeof(word_entry_t), &memory);
  if (status != NN_OK) scratch_free(*scratch);
  else (*scratch)->cache = memory;
  return status;
}

void scratch_give(const nn_tokenizer_t *tokenizer, scratch_t *scratch) {
  nn_tokenizer_t *owner = (nn_tokenizer_t *)tokenizer;
  pthread_mutex_lock(&owner->lock);
  scratch->next = owner->idle;
  owner->idle = scratch;
  pthread_mutex_unlock(&owner->lock);
}
