/* Exported functions of nn_session_t. */
#include "base/mem.h"
#include "infer/generate.h"
#include "infer/session.h"

nn_status_t nn_session_create(nn_model_t *model, const nn_session_options_t *options,
                              nn_session_t **session) {
  STATUS_REQUIRE(model);
  STATUS_REQUIRE(session);
  nn_session_options_t asked, checked;
  STATUS_TRY(
      status_read_options(&asked, sizeof asked, sizeof asked, options, "nn_session_options_t"));
  STATUS_TRY(session_check(&model->config, &asked, &checked));
  return session_create(model, &checked, session);
}

void nn_session_destroy(nn_session_t *session) { session_free(session); }

static nn_status_t session_check_sequence(const nn_session_t *session, int64_t sequence) {
  if (sequence >= 0 && sequence < session->options.batch) return NN_OK;
  return status_fail(NN_ERR_ARGUMENT, "sequence %lld; the session has %lld", (long long)sequence,
                     (long long)session->options.batch);
}

/* Room for count more tokens? */
static nn_status_t session_check_room(const nn_session_t *session, int64_t sequence,
                                      int64_t count) {
  int64_t length = session->length[sequence], max_len = session->options.max_len;
  if (count <= max_len - length) return NN_OK;
  return status_fail(
      NN_ERR_CAPACITY,
      "sequence %lld holds %lld tokens; %lld more are past the session's max_len, %lld",
      (long long)sequence, (long long)length, (long long)count, (long long)max_len);
}

nn_status_t nn_session_prefill(nn_session_t *session, int64_t sequence, const int32_t *tokens,
                               int64_t count, float *logits) {
  STATUS_REQUIRE(session);
  STATUS_REQUIRE(tokens);
  STATUS_TRY(session_check_sequence(session, sequence));
  if (count < 1)
    return status_fail(NN_ERR_ARGUMENT, "%lld tokens to prefill; at least 1", (long long)count);
  STATUS_TRY(session_check_room(session, sequence, count));
  STATUS_TRY(model_check_ids(&session->model->config, tokens, count));
  STATUS_TRY(device_enter(session->model->device));
  nn_status_t status = session_prefill(session, sequence, tokens, count, logits);
  device_leave(session->model->device);
  return status;
}

nn_status_t nn_session_decode(nn_session_t *session, const int32_t *tokens, float *logits) {
  STATUS_REQUIRE(session);
  STATUS_REQUIRE(tokens);
  for (int64_t s = 0; s < session->options.batch; s++) {
    if (tokens[s] < 0) continue;
    STATUS_TRY(session_check_room(session, s, 1));
    STATUS_TRY(model_check_ids(&session->model->config, tokens + s, 1));
  }
  STATUS_TRY(device_enter(session->model->device));
  nn_status_t status = session_decode(session, tokens, logits);
  device_leave(session->model->device);
  return status;
}

int64_t nn_session_length(const nn_session_t *session, int64_t sequence) {
  if (!session || sequence < 0 || sequence >= session->options.batch) return 0;
  return session->length[sequence];
}

nn_status_t nn_session_truncate(nn_session_t *session, int64_t sequence, int64_t length) {
  STATUS_REQUIRE(session);
  STATUS_TRY(session_check_sequence(session, sequence));
  if (length < 0 || length > session->length[sequence])
    return status_fail(NN_ERR_ARGUMENT, "sequence %lld holds %lld tokens; it cannot be cut to %lld",
                       (long long)sequence, (long long)session->length[sequence],
                       (long long)length);
  if (length < session->length[sequence]) session->fresh[sequence] = false;
  session->length[sequence] = length;
  return NN_OK;
}

static nn_status_t session_check_fresh(const nn_session_t *session, int64_t sequence) {
  if (session->fresh[sequence]) return NN_OK;
  return status_fail(
      NN_ERR_STATE,
      "sequence %lld has no logits: it is empty, was truncated, or its last call failed; "
      "prefill or decode first",
      (long long)sequence);
}

/* Reads and checks a caller's sampling options. */
static nn_status_t session_read_sampling(const nn_sample_options_t *options,
                                         nn_sample_options_t *checked) {
  nn_sample_options_t asked;
  STATUS_TRY(
      status_read_options(&asked, sizeof asked, sizeof asked, options, "nn_sample_options_t"));
  return sample_check(&asked, checked);
}

nn_status_t nn_session_sample(nn_session_t *session, int64_t sequence,
                              const nn_sample_options_t *options, int32_t *token) {
  STATUS_REQUIRE(session);
  STATUS_REQUIRE(token);
  STATUS_TRY(session_check_sequence(session, sequence));
  nn_sample_options_t checked;
  STATUS_TRY(session_read_sampling(options, &checked));
  STATUS_TRY(session_check_fresh(session, sequence));
  STATUS_TRY(device_enter(session->model->device));
  nn_status_t status = session_sample(session, sequence, &checked, token);
  device_leave(session->model->device);
  return status;
}

nn_status_t nn_session_generate(nn_session_t *session, int64_t sequence, const int32_t *prompt,
                                int64_t prompt_count, const nn_generate_options_t *options,
                                int32_t *tokens, int64_t capacity, int64_t *count,
                                int32_t *reason) {
  STATUS_REQUIRE(count);
  *count = 0;
  STATUS_REQUIRE(session);
  STATUS_TRY(session_check_sequence(session, sequence));
  nn_generate_options_t asked;
  STATUS_TRY(
      status_read_options(&asked, sizeof asked, sizeof asked, options, "nn_generate_options_t"));
  nn_sample_options_t sampling;
  STATUS_TRY(session_read_sampling(asked.sampling, &sampling));
  if (asked.max_tokens < 0 || asked.stop_count < 0 || (asked.stop_count && !asked.stop_ids))
    return status_fail(
        NN_ERR_ARGUMENT,
        "nn_generate_options_t: max_tokens %lld and stop_count %lld are at least 0, and "
        "stop_ids is given with stop_count",
        (long long)asked.max_tokens, (long long)asked.stop_count);
  if (capacity < 0 || (!tokens && capacity))
    return status_fail(NN_ERR_ARGUMENT, "capacity is %lld and tokens is %s; give both or neither",
                       (long long)capacity, tokens ? "given" : "NULL");
  if (!capacity) tokens = NULL;
  if (prompt_count < 0 || (prompt_count && !prompt))
    return status_fail(NN_ERR_ARGUMENT, "prompt_count is %lld and prompt is %s",
                       (long long)prompt_count, prompt ? "given" : "NULL");
  if (!prompt_count) STATUS_TRY(session_check_fresh(session, sequence));
  STATUS_TRY(session_check_room(session, sequence, prompt_count));
  STATUS_TRY(model_check_ids(&session->model->config, prompt, prompt_count));
  for (int64_t i = 0; i < asked.stop_count; i++)
    if (asked.stop_ids[i] < 0 || asked.stop_ids[i] >= session->model->config.vocab_size)
      return status_fail(NN_ERR_ARGUMENT, "stop id %d; the vocabulary has %lld", asked.stop_ids[i],
                         (long long)session->model->config.vocab_size);
  return generate(session, sequence, prompt, prompt_count, &asked, &sampling, tokens, capacity,
                  count, reason);
}

nn_status_t nn_session_expert_stats(const nn_session_t *session, int64_t layer, int64_t *counts,
                                    double *mean_prob, nn_expert_stats_t *stats) {
  STATUS_REQUIRE(session);
  STATUS_TRY(status_check_result(stats, sizeof *stats, "nn_expert_stats_t"));
  return model_expert_stats(session->model, session->buffers.stat_count, session->buffers.stat_prob,
                            layer, counts, mean_prob, stats);
}
