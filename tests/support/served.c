#include "served.h"

nn_model_config_t served_config(int family) { return family ? fixture_gpt2() : fixture_moe(); }

float *served_logits(nn_model_t *model, const int32_t *tokens, int64_t count) {
  float *logits = fixture_memory((size_t)(count * VOCAB) * sizeof *logits);
  fixture_prepare(model, 1, count, NN_RECOMPUTE_NONE);
  CHECK(nn_model_forward(model, tokens, 1, count, logits));
  return logits;
}

void served_open(served_t *s, const nn_model_config_t *config, int32_t threads) {
  s->device = fixture_device(threads, 0);
  s->model = fixture_model(s->device, config, 1);
  fixture_tokens(s->tokens, CONTEXT, VOCAB, 3);
  s->logits = served_logits(s->model, s->tokens, CONTEXT);
  s->tolerance = SERVED_TOLERANCE * fixture_largest(s->logits, CONTEXT * VOCAB);
}

void served_close(served_t *s) {
  free(s->logits);
  nn_model_destroy(s->model);
  nn_device_destroy(s->device);
}

nn_session_t *served_session(nn_model_t *model, int64_t batch, int64_t max_len, int64_t chunk) {
  nn_session_options_t options = STRUCT(nn_session_options_t);
  options.batch = batch;
  options.max_len = max_len;
  options.prefill_chunk = chunk;
  nn_session_t *session;
  CHECK(nn_session_create(model, &options, &session));
  return session;
}

void served_near(const served_t *s, const char *what, const float *got, int64_t position) {
  fixture_near(what, got, s->logits + position * VOCAB, VOCAB, s->tolerance);
}
