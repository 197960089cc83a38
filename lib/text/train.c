#include "text/train.h"

#include "base/mem.h"
#include "text/bpe_train.h"
#include "text/bytemap.h"
#include "text/patterns.h"
#include "text/unicode.h"
#include "text/unigram_train.h"

/* ---- options --------------------------------------------------------------------------------- */

static const nn_tokenizer_train_options_t defaults = {.vocab_size = 32000,
                                                      .min_frequency = 2,
                                                      .coverage = 0.9995f,
                                                      .bos = "<s>",
                                                      .eos = "</s>",
                                                      .pad = "<pad>",
                                                      .unk = "<unk>"};

static void options_fill(nn_tokenizer_train_options_t *options) {
  if (!options->vocab_size) options->vocab_size = defaults.vocab_size;
  if (!options->min_frequency) options->min_frequency = defaults.min_frequency;
  if (options->coverage == 0) options->coverage = defaults.coverage;
  if (!options->bos) options->bos = defaults.bos;
  if (!options->eos) options->eos = defaults.eos;
  if (!options->pad) options->pad = defaults.pad;
  if (!options->unk) options->unk = defaults.unk;
}

static nn_status_t options_check(const nn_tokenizer_train_options_t *options) {
  if (options->kind != NN_TOKENIZER_BPE && options->kind != NN_TOKENIZER_UNIGRAM)
    return status_fail(NN_ERR_ARGUMENT,
                       "kind is %d; NN_TOKENIZER_BPE is %d, NN_TOKENIZER_UNIGRAM %d", options->kind,
                       NN_TOKENIZER_BPE, NN_TOKENIZER_UNIGRAM);
  if (options->special_count < 0 || (options->special_count && !options->specials))
    return status_fail(NN_ERR_ARGUMENT, "special_count is %lld, and specials is %s",
                       (long long)options->special_count, options->specials ? "given" : "NULL");
  const int64_t first = options->kind == NN_TOKENIZER_BPE ? 256 : 1;
  if (options->vocab_size > PIPELINE_MAX_ID || options->vocab_size < first ||
      options->vocab_size - first < options->special_count)
    return status_fail(NN_ERR_ARGUMENT,
                       "vocab_size is %lld with %lld specials; it must be at most %d and leave "
                       "room for %lld tokens",
                       (long long)options->vocab_size, (long long)options->special_count,
                       PIPELINE_MAX_ID, (long long)first);
  if (options->min_frequency < 1)
    return status_fail(NN_ERR_ARGUMENT, "min_frequency is %lld; it must be at least 1",
                       (long long)options->min_frequency);
  if (!(options->coverage > 0 && options->coverage <= 1))
    return status_fail(NN_ERR_ARGUMENT, "coverage is %g; it must be above 0 and at most 1",
                       (double)options->coverage);
  if (options->kind == NN_TOKENIZER_UNIGRAM && options->pattern)
    return status_fail(NN_ERR_ARGUMENT, "pattern is for NN_TOKENIZER_BPE; Unigram cuts at spaces");
  return NN_OK;
}

/* What is learnt must not be spelled as a special token. */
static nn_status_t bar_special(learner_t *learner, text_t special) {
  void *raw;
  size_t bytes;
  if (learner->options.kind == NN_TOKENIZER_UNIGRAM)
    return word_table_add(&learner->barred, special.data, special.bytes, 0, NULL);
  STATUS_TRY(mem_alloc(special.bytes, 1, &raw));
  nn_status_t status = NN_OK;
  if (bytemap_read(special.data, special.bytes, raw, &bytes))
    status = word_table_add(&learner->barred, raw, bytes, 0, NULL);
  mem_free(raw);
  return status;
}

static nn_status_t add_special(learner_t *learner, const char *special, int32_t id) {
  pipeline_t *pipeline = &learner->pipeline;
  STATUS_REQUIRE(special);
  const text_t text = {special, strlen(special)};
  if (!text.bytes || utf8_valid(text.data, text.bytes) != text.bytes)
    return status_fail(NN_ERR_ARGUMENT, "special %d is empty or not UTF-8", id);
  if (pipeline_find(pipeline, text) >= 0)
    return status_fail(NN_ERR_ARGUMENT, "special %d is \"%.80s\" once more", id, special);
  STATUS_TRY(bar_special(learner, text));
  STATUS_TRY(pipeline_add_token(pipeline, text, id, 0));
  return pipeline_add_added(
      pipeline,
      &(added_token_t){.content = text, .id = id, .verbatim = true, .special = true});
}

static int32_t special_id(const pipeline_t *pipeline, const char *special) {
  return pipeline_find(pipeline, (text_t){special, strlen(special)});
}

static nn_status_t add_specials(learner_t *learner) {
  const nn_tokenizer_train_options_t *options = &learner->options;
  pipeline_t *pipeline = &learner->pipeline;
  for (int64_t i = 0; i < options->special_count; i++)
    STATUS_TRY(add_special(learner, options->specials[i], (int32_t)i));
  pipeline->special[NN_TOKEN_BOS] = special_id(pipeline, options->bos);
  pipeline->special[NN_TOKEN_EOS] = special_id(pipeline, options->eos);
  pipeline->special[NN_TOKEN_PAD] = special_id(pipeline, options->pad);
  pipeline->special[NN_TOKEN_UNK] = special_id(pipeline, options->unk);
  if (options->kind == NN_TOKENIZER_BPE) return NN_OK; /* which knows every byte */
  pipeline->model.unk_id = pipeline->special[NN_TOKEN_UNK];
  if (pipeline->model.unk_id < 0)
    return status_fail(NN_ERR_ARGUMENT,
                       "a Unigram tokenizer needs a special for unknown characters; \"%.80s\" is "
                       "none of the specials",
                       options->unk);
  return NN_OK;
}

/* ---- how text is cut ------------------------------------------------------------------------- */

static const text_t blank = {"\xe2\x96\x81", 3}; /* U+2581 */

/* Compatible forms become one; lines are kept, spaces stand at the beginning of words. */
static nn_status_t add_unigram_steps(pipeline_t *pipeline) {
  STATUS_TRY(pipeline_add_normalizer(pipeline, &(normalizer_step_t){.kind = NORMALIZE_NFKC}));
  STATUS_TRY(pipeline_add_pre(pipeline, &(pre_step_t){.kind = PRE_SPLIT,
                                                      .pattern = {.text = TEXT("\n")},
                                                      .behavior = SPLIT_ISOLATED}));
  STATUS_TRY(pipeline_add_pre(pipeline, &(pre_step_t){.kind = PRE_METASPACE,
                                                      .content = blank,
                                                      .prepend = PREPEND_FIRST,
                                                      .split = true}));
  return pipeline_add_decoder(pipeline, &(decoder_step_t){.kind = DECODE_METASPACE,
                                                          .content = blank,
                                                          .prepend = PREPEND_FIRST});
}

static nn_status_t add_steps(learner_t *learner) {
  const nn_tokenizer_train_options_t *options = &learner->options;
  if (options->kind == NN_TOKENIZER_UNIGRAM) {
    learner->pipeline.model.kind = MODEL_UNIGRAM;
    return add_unigram_steps(&learner->pipeline);
  }
  if (!options->pattern) return patterns_add(&learner->pipeline, CUT_GPT2);
  return patterns_add_regex(&learner->pipeline,
                            (text_t){options->pattern, strlen(options->pattern)});
}

/* ---- the learner ----------------------------------------------------------------------------- */

static nn_status_t compile(learner_t *learner) {
  const pipeline_t *pipeline = &learner->pipeline;
  const pattern_t gpt2 = {scan_gpt2, true};
  void *memory;
  STATUS_TRY(mem_alloc(pipeline->pre_count, sizeof(matcher_t), &memory));
  learner->matchers = memory;
  for (size_t i = 0; i < pipeline->pre_count; i++) {
    const pre_step_t *step = &pipeline->pre[i];
    STATUS_TRY(matcher_create(step->kind == PRE_BYTE_LEVEL ? &gpt2 : &step->pattern,
                              &learner->matchers[i]));
  }
  return NN_OK;
}

nn_status_t learner_open(const nn_tokenizer_train_options_t *options, int64_t total,
                         learner_t *learner) {
  *learner = (learner_t){0};
  STATUS_TRY(status_read_options(&learner->options, sizeof learner->options,
                                 sizeof learner->options, options,
                                 "nn_tokenizer_train_options_t"));
  options_fill(&learner->options);
  STATUS_TRY(options_check(&learner->options));
  learner->transfer = (transfer_t){.progress = learner->options.progress,
                                   .user = learner->options.progress_user,
                                   .total = total};
  pipeline_init(&learner->pipeline);
  STATUS_TRY(add_specials(learner));
  STATUS_TRY(add_steps(learner));
  return compile(learner);
}

void learner_free(learner_t *learner) {
  for (size_t i = 0; learner->matchers && i < learner->pipeline.pre_count; i++)
    matcher_free(&learner->matchers[i]);
  mem_free(learner->matchers);
  buffer_free(&learner->memory.buffer[0]);
  buffer_free(&learner->memory.buffer[1]);
  match_state_free(&learner->memory.match);
  spans_free(&learner->spans);
  word_table_free(&learner->words);
  word_table_free(&learner->barred);
  pipeline_free(&learner->pipeline);
  *learner = (learner_t){0};
}

/* Words of byte-level BPE are raw bytes, malformed ones too; those of Unigram are UTF-8. */
static nn_status_t text_cut(learner_t *learner, work_t *work) {
  const pipeline_t *pipeline = &learner->pipeline;
  const pretokenize_t pre = {
      .steps = pipeline->pre, .matchers = learner->matchers, .count = pipeline->pre_count};
  if (pipeline->model.kind == MODEL_UNIGRAM)
    STATUS_TRY(normalize_utf8(false, &learner->memory, work));
  for (size_t i = 0; i < pipeline->normalizer_count; i++)
    STATUS_TRY(normalize_step(&pipeline->normalizer[i], &(matcher_t){0}, false, &learner->memory,
                              work));
  return pretokenize(&pre, false, true, &learner->memory, work, &learner->spans);
}

static nn_status_t learner_poll(void *user) {
  learner_t *learner = user;
  const int64_t bytes = learner->unreported;
  learner->unreported = 0;
  return transfer_advance(&learner->transfer, bytes);
}

nn_status_t learner_add(learner_t *learner, text_t text) {
  if (text.bytes >= UINT32_MAX)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "a text of %zu bytes; at most 4 GiB are read at once: give it in parts",
                       text.bytes);
  work_t work = {.data = text.data, .bytes = (uint32_t)text.bytes};
  STATUS_TRY(text_cut(learner, &work));
  const span_t *spans = learner->spans.list[learner->spans.now];
  for (size_t i = 0; i < learner->spans.count; i++)
    STATUS_TRY(word_table_add(&learner->words, work.data + spans[i].begin,
                              spans[i].end - spans[i].begin, 1, NULL));
  learner->unreported += (int64_t)text.bytes;
  return learner->unreported < TRANSFER_PIECE ? NN_OK : learner_poll(learner);
}

/* ---- the vocabulary -------------------------------------------------------------------------- */

/* The next id for a token that was learnt. */
static nn_status_t add_learnt(pipeline_t *pipeline, text_t text, double score) {
  if (pipeline_find(pipeline, text) >= 0)
    return status_fail(NN_ERR_ARGUMENT,
                       "the text's \"%.*s\" is a token by itself, and cannot be a special too",
                       text.bytes < 80 ? (int)text.bytes : 80, text.data);
  return pipeline_add_token(pipeline, text, (int32_t)pipeline->model.token_count, score);
}

static nn_status_t add_bpe(pipeline_t *pipeline, const bpe_trained_t *trained) {
  const size_t specials = pipeline->model.token_count;
  for (size_t i = 0; i < trained->tokens.word_count; i++) {
    const text_t raw = {word_text(&trained->tokens, (int64_t)i), trained->tokens.words[i].bytes};
    text_t spelled;
    STATUS_TRY(pipeline_byte_token(pipeline, raw, &spelled));
    STATUS_TRY(add_learnt(pipeline, spelled, 0));
  }
  for (size_t i = 0; i < trained->merge_count; i++) {
    const token_t *tokens = pipeline->model.tokens + specials;
    STATUS_TRY(pipeline_add_merge(pipeline, tokens[trained->merges[i].left].text,
                                  tokens[trained->merges[i].right].text));
  }
  return NN_OK;
}

static nn_status_t learn_bpe(learner_t *learner) {
  const nn_tokenizer_train_options_t *options = &learner->options;
  bpe_trained_t trained = {0};
  nn_status_t status =
      bpe_train(&learner->words, &learner->barred, options->vocab_size - options->special_count,
                options->min_frequency, learner_poll, learner, &trained);
  if (status == NN_OK) status = add_bpe(&learner->pipeline, &trained);
  bpe_trained_free(&trained);
  return status;
}

static nn_status_t add_unigram(learner_t *learner, const unigram_trained_t *trained) {
  for (size_t i = 0; i < trained->count; i++)
    STATUS_TRY(add_learnt(&learner->pipeline,
                          (text_t){learner->words.text + trained->pieces[i].begin,
                                   (size_t)trained->pieces[i].bytes},
                          trained->pieces[i].score));
  return NN_OK;
}

static nn_status_t learn_unigram(learner_t *learner) {
  const nn_tokenizer_train_options_t *options = &learner->options;
  unigram_trained_t trained;
  STATUS_TRY(unigram_train(&learner->words, &learner->barred,
                           options->vocab_size - options->special_count,
                           (double)options->coverage, options->min_frequency, learner_poll,
                           learner, &trained));
  nn_status_t status = add_unigram(learner, &trained);
  unigram_trained_free(&trained);
  return status;
}

nn_status_t learner_finish(learner_t *learner, pipeline_t *pipeline) {
  STATUS_TRY(learner_poll(learner));
  STATUS_TRY(learner->options.kind == NN_TOKENIZER_UNIGRAM ? learn_unigram(learner)
                                                           : learn_bpe(learner));
  for (size_t i = 0; i < learner->pipeline.pre_count; i++) matcher_free(&learner->matchers[i]);
  *pipeline = learner->pipeline;
  pipeline_init(&learner->pipeline);
  return NN_OK;
}
