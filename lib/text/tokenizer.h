/* The tokenizer handle: a pipeline and what is compiled from it. Immutable but for a list of idle
 * memory, so that any number of threads may use it at once. */
#ifndef NN_TEXT_TOKENIZER_H
#define NN_TEXT_TOKENIZER_H

#include <pthread.h>

#include "text/added.h"
#include "text/model.h"
#include "text/pretokenize.h"
#include "text/wordcache.h"

/* What an id stands for. */
typedef struct id_entry {
  text_t text;    /* the token's spelling; data NULL: no token has the id */
  int32_t added;  /* its place in pipeline.added, -1: a token of the model */
  bool special;
} id_entry_t;

/* The texts of tokens, end to end. */
typedef struct token_texts {
  buffer_t text;
  size_t *ends; /* [count] */
  size_t count, capacity;
} token_texts_t;

/* Memory that one call at a time uses and later calls reuse. */
typedef struct scratch {
  struct scratch *next;
  steps_memory_t steps;
  buffer_t held; /* normalized text while its parts are cut into words */
  spans_t spans;
  model_memory_t model;
  word_entry_t *cache;
  token_texts_t texts[2]; /* of decoding; steps read one and write the other */
} scratch_t;

struct nn_tokenizer {
  pipeline_t pipeline;
  bool bytes;       /* words are raw bytes: the byte map is never applied */
  bool keeps_bytes; /* bytes that are not UTF-8 reach the model */
  bool needs_places; /* a step asks where in the caller's text a part was */

  int64_t vocab_size;
  id_entry_t *ids;          /* [vocab_size] */
  text_t *added_normalized; /* [added_count]: what is looked for in the normalized text */
  text_index_t added_index; /* of added tokens, by content; values are places in pipeline.added */
  added_set_t raw, normalized;
  matcher_t *normalizer_matchers, *pre_matchers, *decoder_matchers;
  vocabulary_t vocabulary;

  pthread_mutex_t lock; /* of idle */
  scratch_t *idle;
};

/* Makes a tokenizer of a description, which it takes over in any case: the caller's becomes empty.
 * NN_ERR_FORMAT: the description contradicts itself. NN_ERR_UNSUPPORTED: not a pattern of PCRE2. */
nn_status_t tokenizer_create(pipeline_t *pipeline, nn_tokenizer_t **tokenizer);
void tokenizer_destroy(nn_tokenizer_t *tokenizer);

/* Memory for one call, to be given back. */
nn_status_t scratch_take(const nn_tokenizer_t *tokenizer, scratch_t **scratch);
void scratch_give(const nn_tokenizer_t *tokenizer, scratch_t *scratch);

/* The contract of nn_tokenizer_encode_with; pointers and sizes have been checked. offsets may be
 * NULL. */
nn_status_t tokenizer_encode(const nn_tokenizer_t *tokenizer, text_t text, bool add_special,
                             bool parse_special, int32_t *ids, int64_t *offsets, int64_t capacity,
                             int64_t *count);

/* The text of ids, which are in range, behind what `out` holds. open: what a run of bytes yet
 * unfinished means is left open: it stays as bytes. */
nn_status_t tokenizer_decode(const nn_tokenizer_t *tokenizer, const int32_t *ids, int64_t count,
                             bool keep_special, bool open, buffer_t *out);

/* The id of a spelling, -1: none. */
int32_t tokenizer_id(const nn_tokenizer_t *tokenizer, text_t text);

#endif
