/* The pre-tokenizer's steps: from a normalized text to words. */
#ifndef NN_TEXT_PRETOKENIZE_H
#define NN_TEXT_PRETOKENIZE_H

#include "text/normalize.h"

/* Spans of a work, in order; two lists that steps write to in turn. */
typedef struct spans {
  span_t *list[2];
  size_t count, capacity[2];
  int now; /* which list holds them */
} spans_t;

void spans_free(spans_t *spans);

typedef struct pretokenize {
  const pre_step_t *steps;   /* [count] */
  const matcher_t *matchers; /* [count], of the patterns; GPT-2's for PRE_BYTE_LEVEL with split */
  size_t count;
  bool maps_bytes; /* PRE_BYTE_LEVEL writes characters of the byte map; false: it only cuts */
} pretokenize_t;

/* Cuts work, which may change, into spans. first: it is what the caller's text begins with. */
nn_status_t pretokenize(const pretokenize_t *pre, bool places, bool first, steps_memory_t *memory,
                        work_t *work, spans_t *spans);

#endif
