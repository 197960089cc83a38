#include "batch.h"

batch_t batch_of(int64_t vocab) {
  batch_t batch;
  fixture_tokens(batch.tokens, TOKENS, vocab, 1);
  fixture_targets(batch.targets, TOKENS, vocab, 2);
  return batch;
}

nn_status_t batch_backward(nn_model_t *model, const batch_t *batch) {
  nn_loss_t loss = STRUCT(nn_loss_t);
  return nn_model_backward(model, batch->tokens, batch->targets, BATCH, SEQ, 1, &loss);
}

float *batch_logits(nn_model_t *model, const int32_t *tokens, int64_t batch, int64_t seq) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_model_config(model, &config));
  float *logits = fixture_memory((size_t)(batch * seq * config.vocab_size) * sizeof *logits);
  CHECK(nn_model_forward(model, tokens, batch, seq, logits));
  return logits;
}
