/* Expectation and maximisation over the ways to cut each chunk into pieces, in turns with taking
 * out the pieces that are missed least, until few enough are left. Sums go through the chunks in
 * the order of the text, in double precision: the same text gives the same bits. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/unigram_text.h"

/* As SentencePiece has them: rounds of estimation between two prunings; what a pruning leaves; how
 * many more pieces than wanted are left for the last choice; the count below which a piece goes. */
enum { ROUNDS = 2 };
static const double shrink = 0.75, reserve = 1.1, least_count = 0.5;
static const double unknown_penalty = 10;

enum { POLL_CHUNKS = 4096 };

typedef struct unigram_trainer {
  unigram_text_t text;
  double unknown;         /* score of a character that is no piece */
  double *expected;       /* [pieces] */
  int64_t *used;          /* [pieces] in the best cuts */
  unsigned char *keep;    /* [pieces] */
  int32_t *places;        /* [pieces] */
  train_poll_fn poll;
  void *user;
  /* of the chunk at work, by character; [UNIGRAM_MOST_CHARS + 1] each */
  double best[UNIGRAM_MOST_CHARS + 1];   /* score of the best cut up to here */
  double ahead[UNIGRAM_MOST_CHARS + 1];  /* sum over cuts up to here, as a multiple of the best's */
  double behind[UNIGRAM_MOST_CHARS + 1]; /* sum over cuts from here on, in the same measure */
  int32_t from[UNIGRAM_MOST_CHARS + 1];  /* what the best cut up to here ends with; -1: no piece */
  double weights[UNIGRAM_MOST_CHARS * UNIGRAM_MOST_PIECE]; /* of the edges, in the text's order */
} unigram_trainer_t;

/* ---- the pieces that begin at a character: -1 stands for what is no piece -------------------- */

typedef struct edges {
  const int32_t *longer; /* [count] */
  int64_t count;
  int32_t single;
} edges_t;

static edges_t edges_at(const unigram_text_t *text, int64_t c) {
  int64_t begin = text->edges_begin[c];
  return (edges_t){text->edges + begin, text->edges_begin[c + 1] - begin, text->single[c]};
}

/* The single character is the edge behind the longer pieces. */
static int32_t edge_piece(const edges_t *edges, int64_t i) {
  return i < edges->count ? edges->longer[i] : edges->single;
}

static double piece_score(const unigram_trainer_t *trainer, int32_t piece) {
  return piece < 0 ? trainer->unknown : trainer->text.pieces[piece].score;
}

static int32_t piece_chars(const unigram_trainer_t *trainer, int32_t piece) {
  return piece < 0 ? 1 : trainer->text.pieces[piece].chars;
}

/* ---- cuts ------------------------------------------------------------------------------------ */

/* The best cut of chars characters from first on, without the piece `without` (-2: with all) and
 * without pieces that reach over the end. */
static void cut_best(unigram_trainer_t *trainer, int32_t first, int32_t chars, int32_t without) {
  for (int32_t i = 1; i <= chars; i++) trainer->best[i] = -INFINITY;
  trainer->best[0] = 0;
  for (int32_t i = 0; i < chars; i++) {
    edges_t edges = edges_at(&trainer->text, first + i);
    for (int64_t e = 0; e <= edges.count; e++) {
      int32_t piece = edge_piece(&edges, e), end = i + piece_chars(trainer, piece);
      if (piece == without || end > chars) continue;
      double score = trainer->best[i] + piece_score(trainer, piece);
      if (score <= trainer->best[end]) continue;
      trainer->best[end] = score;
      trainer->from[end] = piece;
    }
  }
}

/* Of every edge: its piece's probability, as a multiple of what the best cuts give that stretch; at
 * most 1, as they cannot be beaten. And the sums over cuts up to each character. */
static void chunk_ahead(unigram_trainer_t *trainer, const unigram_chunk_t *chunk) {
  double *weight = trainer->weights;
  for (int32_t i = 0; i <= chunk->chars; i++) trainer->ahead[i] = 0;
  trainer->ahead[0] = 1;
  for (int32_t i = 0; i < chunk->chars; i++) {
    edges_t edges = edges_at(&trainer->text, chunk->first + i);
    for (int64_t e = 0; e <= edges.count; e++, weight++) {
      int32_t piece = edge_piece(&edges, e), end = i + piece_chars(trainer, piece);
      *weight = exp(trainer->best[i] + piece_score(trainer, piece) - trainer->best[end]);
      trainer->ahead[end] += trainer->ahead[i] * *weight;
    }
  }
}

/* Adds to each piece how often it stands in the chunk, over all cuts by their probability. A sum is
 * at most the number of cuts, 2^(UNIGRAM_MOST_CHARS - 1). */
static void chunk_expect(unigram_trainer_t *trainer, const unigram_chunk_t *chunk) {
  const int32_t chars = chunk->chars;
  cut_best(trainer, chunk->first, chars, -2);
  chunk_ahead(trainer, chunk);
  for (int32_t i = 0; i < chars; i++) trainer->behind[i] = 0;
  trainer->behind[chars] = 1;
  const double scale = (double)chunk->count / trainer->ahead[chars];
  const unigram_text_t *text = &trainer->text;
  const double *weight = trainer->weights + (text->edges_begin[chunk->first + chars] -
                                             text->edges_begin[chunk->first] + chars);
  for (int32_t i = chars - 1; i >= 0; i--) {
    edges_t edges = edges_at(text, chunk->first + i);
    for (int64_t e = edges.count; e >= 0; e--) {
      int32_t piece = edge_piece(&edges, e);
      double behind = *--weight * trainer->behind[i + piece_chars(trainer, piece)];
      trainer->behind[i] += behind;
      if (piece >= 0) trainer->expected[piece] += trainer->ahead[i] * behind * scale;
    }
  }
}

/* ---- estimation ------------------------------------------------------------------------------ */

/* The derivative of the logarithm of the gamma function, for x > 0: by recurrence up to 7, then by
 * its asymptotic series (Abramowitz and Stegun, 6.3.5 and 6.3.18). */
static double digamma(double x) {
  double sum = 0;
  for (; x < 7; x++) sum -= 1 / x;
  double inverse = 1 / (x * x);
  double series =
      inverse * (1.0 / 12 - inverse * (1.0 / 120 - inverse * (1.0 / 252 - inverse / 240)));
  return sum + log(x) - 0.5 / x - series;
}

static void pieces_remove(unigram_trainer_t *trainer) {
  unigram_text_remove(&trainer->text, trainer->keep, trainer->places);
}

/* One round: expected counts, then scores; pieces that hardly ever stand go. */
static nn_status_t estimate(unigram_trainer_t *trainer) {
  unigram_text_t *text = &trainer->text;
  double total = 0, least = 0;
  memset(trainer->expected, 0, (size_t)text->piece_count * sizeof *trainer->expected);
  for (int64_t i = 0; i < text->chunk_count; i++) {
    if (i % POLL_CHUNKS == 0) STATUS_TRY(trainer->poll(trainer->user));
    chunk_expect(trainer, &text->chunks[i]);
  }
  for (int64_t i = 0; i < text->piece_count; i++) {
    double *expected = &trainer->expected[i];
    trainer->keep[i] = i < text->single_count || *expected >= least_count;
    if (i < text->single_count && *expected < least_count) *expected = least_count;
    if (trainer->keep[i]) total += *expected;
  }
  const double base = digamma(total);
  for (int64_t i = 0; i < text->piece_count; i++) {
    if (!trainer->keep[i]) continue;
    text->pieces[i].score = digamma(trainer->expected[i]) - base;
    if (text->pieces[i].score < least) least = text->pieces[i].score;
  }
  trainer->unknown = least - unknown_penalty;
  pieces_remove(trainer);
  return NN_OK;
}

/* First scores: how often each stands, whatever it overlaps with. */
static void scores_begin(unigram_trainer_t *trainer) {
  unigram_text_t *text = &trainer->text;
  double total = 0, least = 0;
  for (int64_t i = 0; i < text->piece_count; i++) total += (double)text->counts[i];
  for (int64_t i = 0; i < text->piece_count; i++) {
    text->pieces[i].score = log((double)text->counts[i]) - log(total);
    if (text->pieces[i].score < least) least = text->pieces[i].score;
  }
  trainer->unknown = least - unknown_penalty;
}

/* ---- pruning --------------------------------------------------------------------------------- */

/* Counts the pieces of every chunk's best cut; returns their number. */
static nn_status_t use_count(unigram_trainer_t *trainer, int64_t *total) {
  const unigram_text_t *text = &trainer->text;
  memset(trainer->used, 0, (size_t)text->piece_count * sizeof *trainer->used);
  *total = 0;
  for (int64_t i = 0; i < text->chunk_count; i++) {
    const unigram_chunk_t *chunk = &text->chunks[i];
    if (i % POLL_CHUNKS == 0) STATUS_TRY(trainer->poll(trainer->user));
    cut_best(trainer, chunk->first, chunk->chars, -2);
    for (int32_t at = chunk->chars; at > 0;) {
      int32_t piece = trainer->from[at];
      at -= piece_chars(trainer, piece);
      if (piece >= 0) trainer->used[piece] += chunk->count;
      *total += chunk->count;
    }
  }
  return NN_OK;
}

typedef struct loss {
  double loss; /* of the text's log likelihood, without the piece */
  int32_t piece;
} loss_t;

/* Where a piece of several characters first stands. */
static void first_characters(const unigram_text_t *text, int32_t *first) {
  for (int64_t c = text->chars - 1; c >= 0; c--)
    for (int64_t e = text->edges_begin[c]; e < text->edges_begin[c + 1]; e++)
      first[text->edges[e]] = (int32_t)c;
}

/* What the text loses when every place of the piece takes the next best cut instead. */
static double piece_loss(unigram_trainer_t *trainer, int32_t piece, int32_t first, int64_t total) {
  const double used = (double)trainer->used[piece];
  const int32_t chars = trainer->text.pieces[piece].chars;
  int32_t parts = 0;
  if (!trainer->used[piece]) return 0;
  cut_best(trainer, first, chars, piece);
  for (int32_t at = chars; at > 0; parts++) at -= piece_chars(trainer, trainer->from[at]);
  double others = 0, all = log((double)total + used * (parts - 1));
  for (int32_t at = chars; at > 0;) {
    int32_t part = trainer->from[at];
    at -= piece_chars(trainer, part);
    others += log((part < 0 ? 0 : (double)trainer->used[part]) + used) - all;
  }
  return used * (log(used / (double)total) - others);
}

static int compare_losses(const void *a, const void *b) {
  const loss_t *x = a, *y = b;
  if (x->loss != y->loss) return x->loss > y->loss ? -1 : 1;
  return (x->piece > y->piece) - (x->piece < y->piece);
}

/* Leaves `most` pieces at least, or `shrink` of them. */
static nn_status_t prune_with(unigram_trainer_t *trainer, int64_t most, loss_t *losses) {
  unigram_text_t *text = &trainer->text;
  const int64_t count = text->piece_count - text->single_count;
  int64_t total, left = (int64_t)(shrink * (double)text->piece_count);
  if (left < most) left = most;
  left = left > text->single_count ? left - text->single_count : 0;
  STATUS_TRY(use_count(trainer, &total));
  first_characters(text, trainer->places);
  for (int64_t i = 0; i < count; i++) {
    int32_t piece = (int32_t)(text->single_count + i);
    if (i % POLL_CHUNKS == 0) STATUS_TRY(trainer->poll(trainer->user));
    losses[i] = (loss_t){piece_loss(trainer, piece, trainer->places[piece], total), piece};
  }
  if (count) qsort(losses, (size_t)count, sizeof *losses, compare_losses);
  memset(trainer->keep, 0, (size_t)text->piece_count);
  for (int64_t i = 0; i < count && i < left; i++)
    trainer->keep[losses[i].piece] = trainer->used[losses[i].piece] > 0;
  pieces_remove(trainer);
  return NN_OK;
}

static nn_status_t prune(unigram_trainer_t *trainer, int64_t most) {
  void *losses;
  STATUS_TRY(mem_alloc((size_t)trainer->text.piece_count, sizeof(loss_t), &losses));
  nn_status_t status = prune_with(trainer, most, losses);
  mem_free(losses);
  return status;
}

/* ---- the result ------------------------------------------------------------------------------ */

static nn_status_t take_best(unigram_trainer_t *trainer, int64_t most, unigram_trained_t *trained) {
  unigram_text_t *text = &trainer->text;
  int64_t singles = text->single_count < most ? text->single_count : most;
  int64_t longer = text->piece_count - text->single_count;
  void *pieces, *losses;
  /* losses serve as a list to sort the longer pieces by: those of the highest scores are taken */
  STATUS_TRY(mem_alloc((size_t)longer, sizeof(loss_t), &losses));
  loss_t *order = losses;
  for (int64_t i = 0; i < longer; i++) {
    int32_t piece = (int32_t)(text->single_count + i);
    order[i] = (loss_t){text->pieces[piece].score, piece};
  }
  if (longer) qsort(order, (size_t)longer, sizeof *order, compare_losses);
  if (longer > most - singles) longer = most - singles;
  nn_status_t status = mem_alloc((size_t)(singles + longer), sizeof(unigram_piece_t), &pieces);
  if (status == NN_OK) {
    trained->pieces = pieces;
    trained->count = (size_t)(singles + longer);
    for (int64_t i = 0; i < singles; i++) trained->pieces[i] = text->pieces[i];
    for (int64_t i = 0; i < longer; i++)
      trained->pieces[singles + i] = text->pieces[order[i].piece];
  }
  mem_free(losses);
  return status;
}

/* To ten decimals: so many digits make the same number in every program that reads them from a
 * file. */
static void round_scores(unigram_trained_t *trained) {
  static const double unit = 1e10;
  for (size_t i = 0; i < trained->count; i++)
    trained->pieces[i].score = nearbyint(trained->pieces[i].score * unit) / unit;
}

static int compare_pieces(const void *a, const void *b) {
  const unigram_piece_t *x = a, *y = b;
  if (x->score != y->score) return x->score > y->score ? -1 : 1;
  return (x->begin > y->begin) - (x->begin < y->begin);
}

static nn_status_t trainer_run(unigram_trainer_t *trainer, int64_t most,
                               unigram_trained_t *trained) {
  const int64_t wanted = (int64_t)(reserve * (double)most);
  const size_t pieces = (size_t)trainer->text.piece_count;
  void *expected, *used, *keep, *places;
  STATUS_TRY(mem_alloc(pieces, sizeof *trainer->expected, &expected));
  trainer->expected = expected;
  STATUS_TRY(mem_alloc(pieces, sizeof *trainer->used, &used));
  trainer->used = used;
  STATUS_TRY(mem_alloc(pieces, 1, &keep));
  trainer->keep = keep;
  STATUS_TRY(mem_alloc(pieces, sizeof *trainer->places, &places));
  trainer->places = places;
  scores_begin(trainer);
  for (;;) {
    for (int round = 0; round < ROUNDS; round++) STATUS_TRY(estimate(trainer));
    const int64_t before = trainer->text.piece_count;
    if (before <= wanted) break;
    STATUS_TRY(prune(trainer, wanted));
    if (trainer->text.piece_count == before) break; /* characters alone are more than wanted */
  }
  STATUS_TRY(take_best(trainer, most, trained));
  round_scores(trained);
  if (trained->count)
    qsort(trained->pieces, trained->count, sizeof *trained->pieces, compare_pieces);
  return NN_OK;
}

static void trainer_free(unigram_trainer_t *trainer) {
  unigram_text_free(&trainer->text);
  mem_free(trainer->expected);
  mem_free(trainer->used);
  mem_free(trainer->keep);
  mem_free(trainer->places);
  mem_free(trainer);
}

nn_status_t unigram_train(const word_table_t *words, const word_table_t *barred,
                          int64_t piece_count, double coverage, int64_t min_frequency,
                          train_poll_fn poll, void *user, unigram_trained_t *trained) {
  void *made;
  if (words->text_bytes > INT32_MAX)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "the distinct words have %zu bytes; at most %d can be learnt from",
                       words->text_bytes, INT32_MAX);
  STATUS_TRY(mem_alloc(1, sizeof(unigram_trainer_t), &made));
  unigram_trainer_t *trainer = made;
  trainer->poll = poll, trainer->user = user;
  *trained = (unigram_trained_t){0};
  nn_status_t status = unigram_text_build(words, coverage, &trainer->text);
  if (status == NN_OK)
    status = unigram_text_seed(&trainer->text, barred, min_frequency, poll, user);
  if (status == NN_OK) status = trainer_run(trainer, piece_count, trained);
  trainer_free(trainer);
  return status;
}

void unigram_trained_free(unigram_trained_t *trained) {
  mem_free(trained->pieces);
  *trained = (unigram_trained_t){0};
}
