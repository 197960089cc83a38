#include "text/json_save.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "text/json_put.h"

/* ---- tokens ---------------------------------------------------------------------------------- */

/* A token of the model's vocabulary as it is written: those of the model, and added ones, which the
 * tokenizers package gives other ids unless the vocabulary has them. */
typedef struct entry {
  text_t text;
  int32_t id;
  double score;
  bool special;
} entry_t;

typedef struct entries {
  entry_t *items; /* [count], by id */
  size_t count;
} entries_t;

static int compare_entries(const void *a, const void *b) {
  const entry_t *x = a, *y = b;
  return (x->id > y->id) - (x->id < y->id);
}

/* The spelling of an id; empty where there is none. */
static text_t id_text(const pipeline_t *pipeline, const entries_t *entries, int32_t id) {
  for (size_t i = 0; i < pipeline->added_count; i++)
    if (pipeline->added[i].id == id) return pipeline->added[i].content;
  const entry_t key = {.id = id};
  const entry_t *entry =
      bsearch(&key, entries->items, entries->count, sizeof key, compare_entries);
  return entry ? entry->text : TEXT("");
}

static nn_status_t entries_fill(const pipeline_t *pipeline, entries_t *entries) {
  const model_t *model = &pipeline->model;
  void *items;
  STATUS_TRY(mem_alloc(model->token_count + pipeline->added_count, sizeof(entry_t), &items));
  entries->items = items;
  for (size_t i = 0; i < model->token_count; i++)
    entries->items[entries->count++] =
        (entry_t){model->tokens[i].text, model->tokens[i].id, model->tokens[i].score, false};
  qsort(items, entries->count, sizeof(entry_t), compare_entries);
  const size_t of_model = entries->count;
  for (size_t i = 0; i < pipeline->added_count; i++) {
    const added_token_t *added = &pipeline->added[i];
    const entry_t key = {.id = added->id};
    entry_t *entry = bsearch(&key, items, of_model, sizeof key, compare_entries);
    if (entry) entry->special = added->special;
    else if (pipeline_find(pipeline, added->content) < 0)
      entries->items[entries->count++] =
          (entry_t){added->content, added->id, 0, added->special};
  }
  qsort(items, entries->count, sizeof(entry_t), compare_entries);
  return NN_OK;
}

static int compare_added(const void *a, const void *b) {
  const added_token_t *x = *(const added_token_t *const *)a;
  const added_token_t *y = *(const added_token_t *const *)b;
  return (x->id > y->id) - (x->id < y->id);
}

static void put_added_token(output_t *output, bool first, const added_token_t *token) {
  output_text(output, first ? "\n    {\"id\": " : ",\n    {\"id\": ");
  json_put_integer(output, token->id);
  json_put_member(output, "content", token->content);
  json_put_flag(output, "single_word", token->single_word);
  json_put_flag(output, "lstrip", token->lstrip);
  json_put_flag(output, "rstrip", token->rstrip);
  json_put_flag(output, "normalized", token->normalized && !token->verbatim);
  json_put_flag(output, "special", token->special);
  json_put_close(output);
}

static nn_status_t put_added(output_t *output, const pipeline_t *pipeline) {
  void *order;
  STATUS_TRY(mem_alloc(pipeline->added_count, sizeof(const added_token_t *), &order));
  const added_token_t **sorted = order;
  for (size_t i = 0; i < pipeline->added_count; i++) sorted[i] = &pipeline->added[i];
  if (pipeline->added_count)
    qsort(sorted, pipeline->added_count, sizeof *sorted, compare_added);
  output_text(output, ",\n  \"added_tokens\": [");
  for (size_t i = 0; i < pipeline->added_count; i++) put_added_token(output, i == 0, sorted[i]);
  output_text(output, "]");
  mem_free(order);
  return NN_OK;
}

/* ---- post-processor -------------------------------------------------------------------------- */

static void put_template_special(output_t *output, text_t text, int type) {
  output_text(output, "{\"SpecialToken\": {\"id\": ");
  json_put_string(output, text);
  output_text(output, type ? ", \"type_id\": 1}}" : ", \"type_id\": 0}}");
}

/* What stands before a text, the text, and what stands behind. */
static void put_template_part(output_t *output, const pipeline_t *pipeline,
                              const entries_t *entries, int type) {
  for (size_t i = 0; i < pipeline->prefix_count; i++) {
    put_template_special(output, id_text(pipeline, entries, pipeline->prefix[i]), type);
    output_text(output, ", ");
  }
  output_text(output, type ? "{\"Sequence\": {\"id\": \"B\", \"type_id\": 1}}"
                           : "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}");
  for (size_t i = 0; i < pipeline->suffix_count; i++) {
    output_text(output, ", ");
    put_template_special(output, id_text(pipeline, entries, pipeline->suffix[i]), type);
  }
}

static void put_template_ids(output_t *output, const pipeline_t *pipeline,
                             const entries_t *entries, const int32_t *ids, size_t count,
                             size_t *written) {
  for (size_t i = 0; i < count; i++) {
    bool repeated = false;
    for (size_t j = 0; j < i; j++) repeated |= ids[j] == ids[i];
    for (size_t j = 0; ids != pipeline->prefix && j < pipeline->prefix_count; j++)
      repeated |= pipeline->prefix[j] == ids[i];
    if (repeated) continue;
    const text_t text = id_text(pipeline, entries, ids[i]);
    if ((*written)++) output_text(output, ", ");
    json_put_string(output, text);
    output_text(output, ": {\"id\": ");
    json_put_string(output, text);
    output_text(output, ", \"ids\": [");
    json_put_integer(output, ids[i]);
    output_text(output, "], \"tokens\": [");
    json_put_string(output, text);
    output_text(output, "]}");
  }
}

static void put_template(output_t *output, const pipeline_t *pipeline, const entries_t *entries) {
  size_t written = 0;
  output_text(output, "{\"type\": \"TemplateProcessing\", \"single\": [");
  put_template_part(output, pipeline, entries, 0);
  output_text(output, "], \"pair\": [");
  put_template_part(output, pipeline, entries, 0);
  output_text(output, ", ");
  put_template_part(output, pipeline, entries, 1);
  output_text(output, "], \"special_tokens\": {");
  put_template_ids(output, pipeline, entries, pipeline->prefix, pipeline->prefix_count, &written);
  put_template_ids(output, pipeline, entries, pipeline->suffix, pipeline->suffix_count, &written);
  output_text(output, "}}");
}

static void put_post(output_t *output, const pipeline_t *pipeline, const entries_t *entries) {
  const bool bytes = pipeline->pre_count &&
                     pipeline->pre[pipeline->pre_count - 1].kind == PRE_BYTE_LEVEL;
  const bool ends = pipeline->prefix_count || pipeline->suffix_count;
  if (!bytes && !ends) {
    json_put_null(output, "post_processor");
    return;
  }
  output_text(output, ",\n  \"post_processor\": ");
  if (bytes && ends) output_text(output, "{\"type\": \"Sequence\", \"processors\": [");
  if (bytes) {
    output_text(output, "{\"type\": \"ByteLevel\"");
    json_put_flag(output, "add_prefix_space", pipeline->trim_prefix_space);
    json_put_flag(output, "trim_offsets", pipeline->trim_offsets);
    json_put_flag(output, "use_regex", true);
    output_text(output, ends ? "}, " : "}");
  }
  if (ends) put_template(output, pipeline, entries);
  if (bytes && ends) output_text(output, "]}");
}

/* ---- model ----------------------------------------------------------------------------------- */

static void put_vocabulary(output_t *output, const entries_t *entries) {
  json_put_name(output, "vocab");
  output_text(output, "{");
  for (size_t i = 0; i < entries->count; i++) {
    output_text(output, i ? ",\n      " : "\n      ");
    json_put_string(output, entries->items[i].text);
    output_text(output, ": ");
    json_put_integer(output, entries->items[i].id);
  }
  output_text(output, "}");
}

static int compare_merges(const void *a, const void *b) {
  const merge_t *x = *(const merge_t *const *)a, *y = *(const merge_t *const *)b;
  if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
  return (x > y) - (x < y); /* of one array */
}

static nn_status_t put_merges(output_t *output, const pipeline_t *pipeline,
                              const entries_t *entries) {
  const model_t *model = &pipeline->model;
  void *order;
  STATUS_TRY(mem_alloc(model->merge_count, sizeof(const merge_t *), &order));
  const merge_t **sorted = order;
  for (size_t i = 0; i < model->merge_count; i++) sorted[i] = &model->merges[i];
  if (model->merge_count) qsort(sorted, model->merge_count, sizeof *sorted, compare_merges);
  json_put_name(output, "merges");
  output_text(output, "[");
  for (size_t i = 0; i < model->merge_count; i++) {
    const int32_t parts[2] = {sorted[i]->left, sorted[i]->right};
    for (int p = 0; p < 2; p++) {
      const entry_t key = {.id = parts[p]};
      const entry_t *entry =
          bsearch(&key, entries->items, entries->count, sizeof key, compare_entries);
      output_text(output, p ? ", " : i ? ",\n      [" : "\n      [");
      json_put_string(output, entry->text);
    }
    output_text(output, "]");
  }
  output_text(output, "]");
  mem_free(order);
  return NN_OK;
}

static nn_status_t put_bpe(output_t *output, const pipeline_t *pipeline,
                           const entries_t *entries) {
  const model_t *model = &pipeline->model;
  output_text(output, "{\"type\": \"BPE\", \"dropout\": null");
  json_put_text_or_null(output, "unk_token",
                   model->unk_id < 0 ? TEXT("") : id_text(pipeline, entries, model->unk_id));
  json_put_text_or_null(output, "continuing_subword_prefix", model->prefix);
  json_put_text_or_null(output, "end_of_word_suffix", model->suffix);
  json_put_flag(output, "fuse_unk", model->fuse_unk);
  json_put_flag(output, "byte_fallback", model->byte_fallback);
  json_put_flag(output, "ignore_merges", model->ignore_merges);
  put_vocabulary(output, entries);
  return put_merges(output, pipeline, entries);
}

/* Ids are places in the list. What no text is cut into gets a score that makes it the last choice;
 * special tokens, which are cut out before, get 0, as in published files. */
static nn_status_t put_unigram(output_t *output, const pipeline_t *pipeline,
                               const entries_t *entries) {
  static const double last_choice = -1e4;
  output_text(output, "{\"type\": \"Unigram\"");
  json_put_name(output, "unk_id");
  if (pipeline->model.unk_id < 0) output_text(output, "null");
  else json_put_integer(output, pipeline->model.unk_id);
  json_put_flag(output, "byte_fallback", pipeline->model.byte_fallback);
  json_put_name(output, "vocab");
  output_text(output, "[");
  for (size_t i = 0; i < entries->count; i++) {
    const entry_t *entry = &entries->items[i];
    if (entry->id != (int32_t)i)
      return status_fail(NN_ERR_UNSUPPORTED,
                         "the vocabulary has no token %zu; a Unigram vocabulary in tokenizer.json "
                         "has no gaps",
                         i);
    output_text(output, i ? ",\n      [" : "\n      [");
    json_put_string(output, entry->text);
    output_text(output, ", ");
    json_put_double(output, entry->special            ? 0
                            : isfinite(entry->score) ? entry->score
                                                     : last_choice);
    output_text(output, "]");
  }
  output_text(output, "]");
  return NN_OK;
}

static void put_words(output_t *output, const pipeline_t *pipeline, const entries_t *entries) {
  const model_t *model = &pipeline->model;
  const bool pieces = model->kind == MODEL_WORDPIECE;
  output_text(output, pieces ? "{\"type\": \"WordPiece\"" : "{\"type\": \"WordLevel\"");
  json_put_member(output, "unk_token",
             model->unk_id < 0 ? TEXT("") : id_text(pipeline, entries, model->unk_id));
  if (pieces) {
    json_put_member(output, "continuing_subword_prefix", model->prefix);
    json_put_number(output, "max_input_chars_per_word", model->max_word);
  }
  put_vocabulary(output, entries);
}

static nn_status_t put_model(output_t *output, const pipeline_t *pipeline,
                             const entries_t *entries) {
  if (pipeline->model.kind == MODEL_MARKED_WORDS)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "a SentencePiece model of words has no form in tokenizer.json: there, "
                       "unknown words that follow one another do not become one");
  output_text(output, ",\n  \"model\": ");
  switch (pipeline->model.kind) {
    case MODEL_BPE: STATUS_TRY(put_bpe(output, pipeline, entries)); break;
    case MODEL_UNIGRAM: STATUS_TRY(put_unigram(output, pipeline, entries)); break;
    default: put_words(output, pipeline, entries);
  }
  json_put_close(output);
  return NN_OK;
}

static nn_status_t put_all(output_t *output, const pipeline_t *pipeline,
                           const entries_t *entries) {
  output_text(output, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null");
  STATUS_TRY(put_added(output, pipeline));
  STATUS_TRY(json_put_normalizer(output, pipeline));
  json_put_pre(output, pipeline);
  put_post(output, pipeline, entries);
  json_put_decoder(output, pipeline);
  STATUS_TRY(put_model(output, pipeline, entries));
  output_text(output, "\n}\n");
  return output->status;
}

nn_status_t json_save(const pipeline_t *pipeline, output_t *output) {
  entries_t entries = {0};
  nn_status_t status = entries_fill(pipeline, &entries);
  if (status == NN_OK) status = put_all(output, pipeline, &entries);
  mem_free(entries.items);
  return status;
}
