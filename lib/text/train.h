/* Learning a tokenizer: texts are cut into words as the tokenizer will cut them, the distinct words
 * are counted, and a vocabulary is learnt from the counts. */
#ifndef NN_TEXT_TRAIN_H
#define NN_TEXT_TRAIN_H

#include "format/transfer.h"
#include "text/pipeline.h"
#include "text/pretokenize.h"
#include "text/word_table.h"

/* A zeroed one can be freed. */
typedef struct learner {
  nn_tokenizer_train_options_t options; /* checked, with defaults; its pointers are the caller's */
  pipeline_t pipeline;                  /* all but the vocabulary */
  matcher_t *matchers; /* [pipeline.pre_count] */
  steps_memory_t memory;
  spans_t spans;
  word_table_t words, barred; /* barred: what would be spelled as a special is */
  transfer_t transfer;
  int64_t unreported; /* bytes of texts that transfer has not heard of */
} learner_t;

/* total: bytes that learner_add will be given, for the progress callback. */
nn_status_t learner_open(const nn_tokenizer_train_options_t *options, int64_t total,
                         learner_t *learner);
void learner_free(learner_t *learner);

/* Counts the words of one text. */
nn_status_t learner_add(learner_t *learner, text_t text);

/* Learns the vocabulary; the description of the tokenizer becomes the caller's. */
nn_status_t learner_finish(learner_t *learner, pipeline_t *pipeline);

#endif
