/* Learning a Unigram vocabulary from counted words (Kudo, 2018): of many candidate pieces those are
 * left, step by step, without which the text would become least likely. */
#ifndef NN_TEXT_UNIGRAM_TRAIN_H
#define NN_TEXT_UNIGRAM_TRAIN_H

#include "text/bpe_train.h"

typedef struct unigram_piece {
  int32_t begin, bytes; /* in the words' text, where it first stands */
  int32_t chars;
  double score; /* natural logarithm of its probability */
} unigram_piece_t;

typedef struct unigram_trained {
  unigram_piece_t *pieces; /* by score, the highest first; of equals by text */
  size_t count;
} unigram_trained_t;

/* Learns at most piece_count pieces from words of UTF-8. Every character is a piece but the rarest,
 * which together are less than 1 - coverage of the text. Pieces of several characters come at least
 * min_frequency times and are no words of `barred`; words of more than UNIGRAM_MOST_CHARS are cut
 * before learning. Nothing is left in `trained` after a failure. */
enum { UNIGRAM_MOST_CHARS = 512 };
nn_status_t unigram_train(const word_table_t *words, const word_table_t *barred,
                          int64_t piece_count, double coverage, int64_t min_frequency,
                          train_poll_fn poll, void *user, unigram_trained_t *trained);
void unigram_trained_free(unigram_trained_t *trained);

#endif
