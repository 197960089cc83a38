/* One transformer block over n tokens, forward beside backward, for training and serving alike. */
#ifndef NN_MODEL_BLOCK_H
#define NN_MODEL_BLOCK_H

#include <stdbool.h>

#include "base/arena.h"
#include "base/device.h"
#include "model/weights.h"

/* What attention through latents computes beside. Of gradients, those of the same. */
typedef struct latent {
  void *q_a, *q_c;   /* [n, q_rank]: the queries' latent, and its norm; NULL without q_rank */
  void *kv_a;        /* [n, kv_rank + rope]: that of keys and values, and what all keys share */
  void *kv_c;        /* [n, kv_rank]: the norm of its first part */
  void *kv;          /* [n, A (nope + value)]: per head the key but what is shared, and the value */
  void *values;      /* [n, A value]: what attention gives, without padding */
  float *q_rstd, *kv_rstd; /* [n] */
} latent_t;

/* What a block computes on the way and its backward pass reads. `void`: of the pass's act_dtype. */
typedef struct block_acts {
  void *y1;                 /* [n, hidden]: norm before attention */
  float *mean1, *rstd1;     /* [n] */
  void *raw;                /* queries and keys before their norm, all of qkv before its clamp;
                               NULL where there is neither */
  float *qk_rstd[2];        /* of the norms of queries and keys: [n, heads] or [n] */
  void *qkv;                /* [n, (A + 2K) D], q and k rotated */
  void *att;                /* [n, A D] */
  float *lse;               /* [n, A] */
  latent_t latent;
  void *mid;                /* [n, hidden]: residual stream after attention */
  void *y2;                 /* norm before the FFN */
  float *mean2, *rstd2;
  routing_t routing;
  float *prob, *router_lse; /* [n, E], [n] */
  float *shared_gate;       /* [n]: the shared expert's weight */
  void *expert_pre;         /* [n * k, 2F] of the routed experts */
  void *pre;                /* dense layer or shared expert: [n, 2F] before its activation, of GELU
                               [n, F] */
  void *post;               /* [n, F] after it */
} block_acts_t;

/* What backward needs beside the activations. */
typedef struct block_grads {
  void *d;        /* [n, hidden]: gradient of the block's output, then of its input */
  void *dy;       /* [n, hidden]: of a norm's output */
  void *dqkv;     /* as qkv */
  void *datt;     /* as att */
  latent_t latent;
  float *dweight; /* [n, k] */
  float *dshared_gate; /* [n] */
  void *dpost;         /* as post */
} block_grads_t;

/* Router statistics of one layer in one pass. Layers follow one another, to be read at once. */
typedef struct router_stats {
  float *share, *mean_prob; /* [E] each */
  float *mean_lse2;         /* [1] */
} router_stats_t;

/* Key-value cache of the sequences that a pass serves. */
typedef struct block_cache {
  void *k, *v;             /* of layer 0; layer l is layer_stride * l further */
  int64_t layer_stride;    /* elements */
  int64_t sequence_stride; /* elements */
  const int32_t *sequence; /* [n] sequence of each row, where its key and value go */
  const int32_t *attend;   /* [batch] sequence of each group of q_len rows */
  const int32_t *kv_len;   /* [batch] keys, those of this pass included */
} block_cache_t;

/* One run over n = batch x q_len tokens. */
typedef struct pass {
  const nn_model_config_t *config;
  const backend_t *backend;
  backend_device_t *place;
  backend_scratch_t scratch;
  const weights_t *weights;
  int32_t weight_dtype, act_dtype;
  int64_t batch, q_len;
  const int32_t *ids, *position; /* [n] */
  const float *rope;             /* [positions, rotary_dim] */
  int64_t capacity;              /* rows of an expert at most; 0: no bound */
  router_stats_t *router;        /* [layers], those of dense layers unused; NULL: all are dense */
  int64_t *stat_count;           /* [layers, E + 1] accumulated */
  double *stat_prob;             /* [layers, E] accumulated */
  const block_cache_t *cache;    /* NULL: keys and values are the pass's own */
  bool assign; /* backward assigns those gradients that param_is_assigned() names */
} pass_t;

/* Loss terms that reach a router. */
typedef struct router_loss {
  const float *aux_share; /* [E] of the layer */
  float aux_scale, z_scale;
} router_loss_t;

/* The dtype of activations beside parameters of a dtype. */
int32_t block_act_dtype(const nn_device_t *device, int32_t weight_dtype);

/* Element i of activations of a dtype. */
static inline void *block_at(const void *acts, int32_t act_dtype, int64_t i) {
  return (char *)(uintptr_t)acts + i * (int64_t)(act_dtype == NN_F32 ? 4 : 2);
}

/* Bounds of the operations of passes over at most n tokens in `batch` sequences of kv_len keys. */
backend_limits_t block_limits(const nn_device_t *device, const nn_model_config_t *config, int64_t n,
                              int64_t batch, int64_t kv_len, int32_t weight_dtype, bool training);

/* A layer that may be any of the model's: room for the largest of each kind. */
enum { BLOCK_ANY_LAYER = -1 };

/* Takes room for n tokens of a layer: all but the inside of the FFN, its _pre and post; and that.
 * backward, and grads where they are taken already: with what only the backward pass reads. */
void block_acts_take(arena_t *arena, const nn_model_config_t *config, int64_t n, int32_t act_dtype,
                     int64_t layer, bool backward, block_acts_t *acts);
void block_acts_take_ffn(arena_t *arena, const nn_model_config_t *config, int64_t n,
                         int32_t act_dtype, int64_t layer, const block_grads_t *grads,
                         block_acts_t *acts);
void block_grads_take(arena_t *arena, const nn_model_config_t *config, int64_t n, int32_t act_dtype,
                      block_grads_t *grads);
/* Takes [rows, 2E + 1] floats; and the statistics that are row number `row` of them. */
float *router_stats_take(arena_t *arena, const nn_model_config_t *config, int64_t rows);
router_stats_t router_stats_row(const nn_model_config_t *config, float *stats, int64_t row);

/* Takes counts [layers, E + 1] and, behind them, probabilities [layers, E]; returns their bytes. */
size_t expert_counts_take(arena_t *arena, const nn_model_config_t *config, int64_t **count,
                          double **prob);

/* x[n, hidden] -> out[n, hidden]; out is not x. out NULL: the activations are made again for
 * backward, and nothing is added to the expert statistics. */
nn_status_t block_forward(const pass_t *pass, int64_t layer, const void *x, void *out,
                          block_acts_t *acts);

/* Makes the inside of the FFN again from the other activations. */
nn_status_t block_ffn_again(const pass_t *pass, int64_t layer, block_acts_t *acts);

/* Turns grads->d from the gradient of the output into that of x, and adds the parameters'
 * gradients. */
nn_status_t block_backward(const pass_t *pass, int64_t layer, const void *x,
                           const block_acts_t *acts, const block_grads_t *grads,
                           const block_weights_t *dweights, const router_loss_t *loss);

/* The norm at the end: y[n, hidden]. */
op_norm_t final_norm(const pass_t *pass, int64_t n, const void *x, void *y, float *mean,
                     float *rstd);

#endif
