#include "infer/generate.h"

static nn_status_t generate_prefill(nn_session_t *session, int64_t sequence,
                                    const int32_t *tokens, int64_t count) {
  nn_device_t *device = session->model->device;
  STATUS_TRY(device_enter(device));
  nn_status_t status = session_prefill(session, sequence, tokens, count, NULL);
  device_leave(device);
  return status;
}

static nn_status_t generate_decode(nn_session_t *session, int64_t sequence, int32_t token) {
  nn_device_t *device = session->model->device;
  STATUS_TRY(device_enter(device));
  nn_status_t status = session_decode_one(session, sequence, token);
  device_leave(device);
  return status;
}

static nn_status_t generate_choose(nn_session_t *session, int64_t sequence,
                                   const nn_sample_options_t *sampling, int32_t *token) {
  nn_device_t *device = session->model->device;
  STATUS_TRY(device_enter(device));
  nn_status_t status = session_sample(session, sequence, sampling, token);
  device_leave(device);
  return status;
}

static bool generate_stops(const nn_generate_options_t *options, int32_t token) {
  for (int64_t i = 0; i < options->stop_count; i++)
    if (options->stop_ids[i] == token) return true;
  return false;
}

nn_status_t generate(nn_session_t *session, int64_t sequence, const int32_t *prompt,
                     int64_t prompt_count, const nn_generate_options_t *options,
                     const nn_sample_options_t *sampling, int32_t *tokens, int64_t capacity,
                     int64_t *count, int32_t *reason) {
  int64_t most = options->max_tokens ? options->max_tokens : INT64_MAX;
  if (tokens && most > capacity) most = capacity;
  if (prompt_count) STATUS_TRY(generate_prefill(session, sequence, prompt, prompt_count));
  int32_t why = 0;
  for (int64_t made = 0; !why;) {
    int32_t token;
    nn_status_t status = generate_choose(session, sequence, sampling, &token);
    if (status != NN_OK) return status;
    if (generate_stops(options, token)) {
      why = NN_STOP_ID;
      break;
    }
    if (tokens) tokens[made] = token;
    *count = ++made;
    bool stop = options->on_token && options->on_token(token, made - 1, options->on_token_user);
    if (stop)
      why = NN_STOP_CALLBACK;
    else if (made == most)
      why = NN_STOP_LENGTH;
    else if (session->length[sequence] == session->options.max_len)
      why = NN_STOP_CONTEXT;
    else
      STATUS_TRY(generate_decode(session, sequence, token));
  }
  if (reason) *reason = why;
  return NN_OK;
}
