/* The loop of choosing and appending tokens. */
#ifndef NN_INFER_GENERATE_H
#define NN_INFER_GENERATE_H

#include "infer/session.h"

/* See nn_session_generate(); options are complete, sampling checked. Takes the device for each
 * token, so that others have their turn and the callback runs without it. */
nn_status_t generate(nn_session_t *session, int64_t sequence, const int32_t *prompt,
                     int64_t prompt_count, const nn_generate_options_t *options,
                     const nn_sample_options_t *sampling, int32_t *tokens, int64_t capacity,
                     int64_t *count, int32_t *reason);

#endif
