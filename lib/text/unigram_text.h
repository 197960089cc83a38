/* The text that a Unigram vocabulary is learnt from, by characters, and which pieces begin at each:
 * what the steps of the training share. */
#ifndef NN_TEXT_UNIGRAM_TEXT_H
#define NN_TEXT_UNIGRAM_TEXT_H

#include "text/unigram_train.h"

/* Characters of the longest piece; at most so many pieces begin at one place. */
enum { UNIGRAM_MOST_PIECE = 16 };

/* A word, or a part of one that is too long. */
typedef struct unigram_chunk {
  int32_t first, chars; /* characters of the text */
  int64_t count;        /* how often it comes */
} unigram_chunk_t;

/* A zeroed one can be freed. */
typedef struct unigram_text {
  const word_table_t *words;
  unigram_chunk_t *chunks; /* [chunk_count] */
  int32_t *place;          /* [chars + 1] the byte where each character begins; then the end */
  int32_t *chunk;          /* [chars] which it belongs to */
  int32_t *single;         /* [chars] the piece of this one character, or -1: not covered */
  int64_t *edges_begin;    /* [chars + 1] where in `edges` its longer pieces are */
  int32_t *edges;          /* pieces of two characters and more that begin at each, ascending */
  unigram_piece_t *pieces; /* those of one character first */
  int64_t *counts;         /* [piece_count] how often each stands in the text */
  int64_t chunk_count, chars, piece_count, single_count;
} unigram_text_t;

/* Cuts the words into characters and gives the covered ones pieces. */
nn_status_t unigram_text_build(const word_table_t *words, double coverage, unigram_text_t *text);
void unigram_text_free(unigram_text_t *text);

/* Adds the most promising pieces of two characters and more: substrings that come often and are
 * long, found by sorting the text's suffixes. */
nn_status_t unigram_text_seed(unigram_text_t *text, const word_table_t *barred,
                              int64_t min_frequency, train_poll_fn poll, void *user);

/* Takes out the pieces whose place in keep [piece_count] is 0. Those of one character stay. */
void unigram_text_remove(unigram_text_t *text, const unsigned char *keep, int32_t *places);

#endif
