/* Models to be served, and the logits of a forward pass that serving them has to give. */
#ifndef NN_TEST_SERVED_H
#define NN_TEST_SERVED_H

#include "fixture.h"

enum { VOCAB = 67, CONTEXT = 24 };

/* The same sums in other groupings: 44 u of the largest logit, as in test_golden.c. */
#define SERVED_TOLERANCE (44 * 0x1p-24)

typedef struct served {
  nn_device_t *device;
  nn_model_t *model;
  int32_t tokens[CONTEXT];
  float *logits; /* [CONTEXT, VOCAB] of a forward pass over the tokens */
  double tolerance;
} served_t;

/* GPT-2, or the mixture of experts for 0. */
nn_model_config_t served_config(int family);

/* Logits of a forward pass over one sequence of any model; freed by the caller. */
float *served_logits(nn_model_t *model, const int32_t *tokens, int64_t count);

void served_open(served_t *s, const nn_model_config_t *config, int32_t threads);
void served_close(served_t *s);

nn_session_t *served_session(nn_model_t *model, int64_t batch, int64_t max_len, int64_t chunk);

/* Logits of a position are those of the forward pass. */
void served_near(const served_t *s, const char *what, const float *got, int64_t position);

#endif
