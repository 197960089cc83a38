/* Sequences being served: key-value cache, workspace, the logits after each sequence's last
 * token. */
#ifndef NN_INFER_SESSION_H
#define NN_INFER_SESSION_H

#include "model/block.h"
#include "model/model.h"
#include "model/replay.h"

/* Device buffers; R is the most rows of one pass: max(prefill_chunk, batch). */
typedef struct session_buffers {
  void *k, *v;               /* [layers, batch, max_len, K D] each */
  void *x[2];                /* [R, hidden] in turn */
  void *y;                   /* [R, hidden] */
  block_acts_t acts;
  int32_t *rows;             /* [5, R]: ids, position, sequence, attend, kv_len */
  float *rope;               /* [max_len, rotary_dim] */
  float *logits;             /* [batch, vocab] after the last token of each sequence */
  int32_t *history;          /* [max_len] for the sampler */
  int32_t *token;            /* [1] chosen by the sampler */
  float *router_stats;       /* [2E + 1], written by every layer in turn */
  int64_t *stat_count;       /* [layers, E + 1] */
  double *stat_prob;         /* [layers, E] */
  size_t stat_bytes;
  backend_scratch_t scratch;
} session_buffers_t;

struct nn_session {
  nn_model_t *model;            /* retained */
  nn_session_options_t options; /* defaults filled in */
  int64_t rows;                 /* R */
  int32_t act_dtype;
  storage_t *cache, *activations, *workspace;
  session_buffers_t buffers;
  router_stats_t *router; /* host [layers], all those of the buffers */
  int32_t *rows_host;     /* host [5, R]: what a pass's rows are, copied to the buffers' rows */
  int32_t *tokens;        /* host [batch, max_len]: what each sequence holds */
  int64_t *length;        /* host [batch] */
  bool *fresh;            /* host [batch]: logits belong to the sequence's last token */
  replay_t step;          /* decoding of one token for every sequence */
  replay_t part;          /* the same for some of them, */
  int32_t *part_of;       /* host [batch]: these, */
  int64_t part_rows;      /* so many */
};

typedef struct session_bytes {
  size_t cache, activations, workspace;
} session_bytes_t;

/* Checks options against the configuration and fills the defaults in. */
nn_status_t session_check(const nn_model_config_t *config, const nn_session_options_t *options,
                          nn_session_options_t *checked);

/* Counts, allocating nothing on the device. */
nn_status_t session_count(const nn_device_t *device, const nn_model_config_t *config, int32_t dtype,
                          const nn_session_options_t *checked, session_bytes_t *bytes);

nn_status_t session_create(nn_model_t *model, const nn_session_options_t *checked,
                           nn_session_t **session);
void session_free(nn_session_t *session);

/* The calling code has checked arguments and holds the device. logits: host, or NULL. */
nn_status_t session_prefill(nn_session_t *session, int64_t sequence, const int32_t *tokens,
                            int64_t count, float *logits);
nn_status_t session_decode(nn_session_t *session, const int32_t *tokens, float *logits);
nn_status_t session_decode_one(nn_session_t *session, int64_t sequence, int32_t token);
nn_status_t session_sample(nn_session_t *session, int64_t sequence,
                           const nn_sample_options_t *options, int32_t *token);

/* Checks and completes sampling options. */
nn_status_t sample_check(const nn_sample_options_t *options, nn_sample_options_t *checked);

#endif
