/* The tokenizer handle: what every kind of tokenizer gives to the exported functions. A kind with
 * tables of its own puts this struct first in a larger one. */
#ifndef NN_TEXT_TOKENIZER_H
#define NN_TEXT_TOKENIZER_H

#include "base/status.h"

struct nn_tokenizer {
  int64_t vocab_size;

  /* The contracts of nn_tokenizer_encode and nn_tokenizer_decode; pointers and, for decode, the
   * range of the ids have been checked. */
  nn_status_t (*encode)(const nn_tokenizer_t *tokenizer, const char *text, size_t bytes,
                        int32_t *ids, int64_t capacity, int64_t *count);
  nn_status_t (*decode)(const nn_tokenizer_t *tokenizer, const int32_t *ids, int64_t count,
                        char *text, size_t capacity, size_t *bytes);
  void (*destroy)(nn_tokenizer_t *tokenizer); /* frees the struct and what it holds */
};

#endif
