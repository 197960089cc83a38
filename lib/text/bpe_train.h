/* Learning byte-pair merges from counted words (Sennrich, Haddow and Birch, 2016, on bytes): the
 * most frequent pair of neighbours becomes a token, again and again. */
#ifndef NN_TEXT_BPE_TRAIN_H
#define NN_TEXT_BPE_TRAIN_H

#include <stdbool.h>

#include "text/word_table.h"

typedef struct bpe_merge {
  int32_t left, right, made; /* tokens */
} bpe_merge_t;

/* Tokens are words of `tokens`, whose counts mean nothing; ids are their indices. */
typedef struct bpe_trained {
  word_table_t tokens;
  bpe_merge_t *merges; /* in the order of learning */
  size_t merge_count, merge_capacity;
} bpe_trained_t;

/* Called now and then while a vocabulary is learnt; a failure ends it. */
typedef nn_status_t (*train_poll_fn)(void *user);

/* Learns until there are `most` tokens or no pair comes min_frequency times. The first 256 tokens
 * are the bytes, in the order of their characters in the byte map. Of pairs that come equally often
 * that with the lower left token wins, then that with the lower right one. None becomes one of the
 * words of `barred`. `trained` is freed by the caller also after a failure. */
nn_status_t bpe_train(const word_table_t *words, const word_table_t *barred, int64_t most,
                      int64_t min_frequency, train_poll_fn poll, void *user,
                      bpe_trained_t *trained);
void bpe_trained_free(bpe_trained_t *trained);

#endif
