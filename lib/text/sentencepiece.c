#include "text/sentencepiece.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "text/unicode.h"

/* Bytes: the time that a text takes grows with its length times the longest piece. */
enum { MOST_PIECE = 1024 };

/* ---- pieces ---------------------------------------------------------------------------------- */

/* What a text may be cut into; the others are ids that stand for something else. Pieces that a file
 * calls unused are among those, so BPE does not make larger pieces through them. */
static bool piece_in_text(const sp_piece_t *piece) {
  return piece->type == SP_NORMAL || piece->type == SP_USER_DEFINED;
}

/* A user-defined piece is worth more the longer it is; -INFINITY: no text is cut into it. */
static double piece_score(const sp_piece_t *piece) {
  if (!piece_in_text(piece)) return -INFINITY;
  if (piece->type != SP_USER_DEFINED) return piece->score;
  return (float)(0.1 * (double)(piece->text.bytes - 1));
}

static nn_status_t check_bytes(const sp_file_t *file, const pipeline_t *pipeline) {
  for (int byte = 0; byte < 256; byte++) {
    char name[8];
    snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
    const int32_t id = pipeline_find(pipeline, (text_t){name, 6});
    if (id < 0 || file->pieces[id].type != SP_BYTE)
      return status_fail(NN_ERR_FORMAT,
                         "no piece %s of type %d; with byte fallback every byte has one", name,
                         SP_BYTE);
  }
  return NN_OK;
}

static nn_status_t add_pieces(const sp_file_t *file, pipeline_t *pipeline) {
  const bool apart = pipeline->model.kind == MODEL_BPE; /* user-defined pieces come first */
  for (int64_t i = 0; i < file->count; i++) {
    const sp_piece_t *piece = &file->pieces[i];
    if (piece->text.bytes > MOST_PIECE)
      return status_fail(NN_ERR_UNSUPPORTED, "piece %lld has %zu bytes; at most %d are read",
                         (long long)i, piece->text.bytes, MOST_PIECE);
    if (utf8_valid(piece->text.data, piece->text.bytes) != piece->text.bytes)
      return status_fail(NN_ERR_FORMAT, "piece %lld is not UTF-8", (long long)i);
    if (pipeline_find(pipeline, piece->text) >= 0)
      return status_fail(NN_ERR_FORMAT, "piece %lld has the text of another", (long long)i);
    STATUS_TRY(pipeline_add_token(pipeline, piece->text, (int32_t)i,
                                  apart ? 0 : piece_score(piece)));
    if (piece->type == SP_UNKNOWN) {
      if (pipeline->model.unk_id >= 0)
        return status_fail(NN_ERR_FORMAT, "pieces %d and %lld both stand for what is unknown",
                           pipeline->model.unk_id, (long long)i);
      pipeline->model.unk_id = (int32_t)i;
    }
    const bool control = piece->type == SP_CONTROL;
    if (control || (piece->type == SP_USER_DEFINED && apart))
      STATUS_TRY(pipeline_add_added(pipeline, &(added_token_t){.content = piece->text,
                                                               .id = (int32_t)i,
                                                               .normalized = !control,
                                                               .verbatim = !control,
                                                               .special = control}));
  }
  if (pipeline->model.unk_id < 0)
    return status_fail(NN_ERR_FORMAT, "no piece stands for what is unknown");
  return file->byte_fallback ? check_bytes(file, pipeline) : NN_OK;
}

/* ---- BPE: the piece of the highest score is made first --------------------------------------- */

static int compare_scores(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x < y) - (x > y);
}

/* Equal scores have equal ranks. sorted: [count] scores, the highest first. */
static uint32_t rank_of(const float *sorted, int64_t count, float score) {
  int64_t low = 0, high = count;
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (sorted[middle] > score) low = middle + 1;
    else high = middle;
  }
  return (uint32_t)low;
}

static nn_status_t rank_with(const sp_file_t *file, pipeline_t *pipeline, float *sorted,
                             uint32_t *ranks) {
  for (int64_t i = 0; i < file->count; i++) sorted[i] = file->pieces[i].score;
  qsort(sorted, (size_t)file->count, sizeof *sorted, compare_scores);
  for (int64_t i = 0; i < file->count; i++)
    ranks[i] = file->pieces[i].type == SP_NORMAL
                   ? rank_of(sorted, file->count, file->pieces[i].score)
                   : UINT32_MAX;
  return pipeline_rank_merges(pipeline, ranks);
}

static nn_status_t add_merges(const sp_file_t *file, pipeline_t *pipeline) {
  void *sorted = NULL, *ranks = NULL;
  nn_status_t status = mem_alloc((size_t)file->count, sizeof(float), &sorted);
  if (status == NN_OK) status = mem_alloc((size_t)file->count, sizeof(uint32_t), &ranks);
  if (status == NN_OK) status = rank_with(file, pipeline, sorted, ranks);
  mem_free(sorted);
  mem_free(ranks);
  return status;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static int32_t control_id(const sp_file_t *file, const pipeline_t *pipeline, text_t text) {
  int32_t id = pipeline_find(pipeline, text);
  return id >= 0 && file->pieces[id].type == SP_CONTROL ? id : -1;
}

static int compare_texts(const void *a, const void *b) {
  const text_t *x = a, *y = b;
  const int order = memcmp(x->data, y->data, x->bytes < y->bytes ? x->bytes : y->bytes);
  return order ? order : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* User-defined pieces pass the normalizer unchanged. */
static nn_status_t keep_pieces(const sp_file_t *file, pipeline_t *pipeline) {
  for (int64_t i = 0; i < file->count; i++)
    if (file->pieces[i].type == SP_USER_DEFINED)
      STATUS_TRY(pipeline_add_kept(pipeline, file->pieces[i].text));
  if (pipeline->kept_count)
    qsort(pipeline->kept, pipeline->kept_count, sizeof *pipeline->kept, compare_texts);
  return NN_OK;
}

static nn_status_t add_steps(const sp_file_t *file, pipeline_t *pipeline) {
  STATUS_TRY(keep_pieces(file, pipeline));
  STATUS_TRY(pipeline_add_normalizer(
      pipeline, &(normalizer_step_t){.kind = NORMALIZE_SENTENCEPIECE,
                                     .content = file->charsmap,
                                     .left = file->add_dummy_prefix && !file->whitespace_as_suffix,
                                     .right = file->add_dummy_prefix && file->whitespace_as_suffix,
                                     .collapse = file->remove_extra_whitespaces,
                                     .escape = file->escape_whitespaces,
                                     .kept = pipeline->kept,
                                     .kept_count = pipeline->kept_count}));
  return pipeline_add_decoder(
      pipeline, &(decoder_step_t){.kind = DECODE_SENTENCEPIECE,
                                  .start = file->add_dummy_prefix,
                                  .collapse = file->remove_extra_whitespaces,
                                  .bytes = file->byte_fallback,
                                  .pattern = {.text = file->pieces[pipeline->model.unk_id].text},
                                  .content = file->unk_surface});
}

nn_status_t sentencepiece_describe(const sp_file_t *file, pipeline_t *pipeline) {
  model_t *model = &pipeline->model;
  switch (file->model_type) {
    case SP_MODEL_UNIGRAM: model->kind = MODEL_UNIGRAM; break;
    case SP_MODEL_WORD: model->kind = MODEL_MARKED_WORDS; break;
    case SP_MODEL_BPE:
    case SP_MODEL_CHAR: model->kind = MODEL_BPE; break; /* characters alone: none is merged */
    default:
      return status_fail(NN_ERR_UNSUPPORTED,
                         "a SentencePiece model of type %d; there are %d (Unigram) to %d (CHAR)",
                         file->model_type, SP_MODEL_UNIGRAM, SP_MODEL_CHAR);
  }
  model->fuse_unk = model->single = true;
  model->byte_fallback = file->byte_fallback;
  STATUS_TRY(add_pieces(file, pipeline));
  if (file->model_type == SP_MODEL_BPE) STATUS_TRY(add_merges(file, pipeline));
  pipeline->special[NN_TOKEN_BOS] = control_id(file, pipeline, file->bos_piece);
  pipeline->special[NN_TOKEN_EOS] = control_id(file, pipeline, file->eos_piece);
  pipeline->special[NN_TOKEN_PAD] = control_id(file, pipeline, file->pad_piece);
  pipeline->special[NN_TOKEN_UNK] = model->unk_id;
  return add_steps(file, pipeline);
}

nn_status_t sentencepiece_read(text_t file, pipeline_t *pipeline) {
  sp_file_t parsed;
  STATUS_TRY(sp_file_parse(file.data, file.bytes, &parsed));
  nn_status_t status = sentencepiece_describe(&parsed, pipeline);
  if (status == NN_OK && pipeline->special[NN_TOKEN_BOS] >= 0)
    status = pipeline_add_prefix(pipeline, pipeline->special[NN_TOKEN_BOS]);
  sp_file_free(&parsed);
  return status;
}
