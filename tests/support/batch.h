/* One batch for tests of whole models: its tokens and targets, a pass back over it, and logits. */
#ifndef NN_TEST_BATCH_H
#define NN_TEST_BATCH_H

#include "fixture.h"

enum { BATCH = 3, SEQ = 7, TOKENS = BATCH * SEQ };

typedef struct batch {
  int32_t tokens[TOKENS], targets[TOKENS];
} batch_t;

batch_t batch_of(int64_t vocab);

/* Of a model that is prepared for BATCH and SEQ. */
nn_status_t batch_backward(nn_model_t *model, const batch_t *batch);

/* [batch, seq, vocab], freed by the caller. */
float *batch_logits(nn_model_t *model, const int32_t *tokens, int64_t batch, int64_t seq);

#endif
