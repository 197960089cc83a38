/* What a model needs to train on batches up to a shape: gradients, activations, workspace. */
#ifndef NN_MODEL_TRAINING_H
#define NN_MODEL_TRAINING_H

#include "model/block.h"
#include "model/model.h"
#include "model/replay.h"

/* Buffers for n = batch x seq_len tokens. */
typedef struct training_buffers {
  void *x;            /* [layers + 1, n, hidden]: the blocks' inputs and the last output */
  void *y;            /* [n, hidden] final norm */
  float *mean, *rstd; /* [n] */
  block_acts_t *acts; /* host [kept]: one a layer, or one in all when blocks are recomputed; with
                         NN_RECOMPUTE_FFN all have the same inside of the FFN */
  block_grads_t grads;
  int32_t *ids, *position, *targets; /* [n] */
  float *rope;        /* [seq_len, rotary_dim] */
  float *row_loss;    /* [n] */
  float *grad_scale;  /* [1]: of the cross-entropy's gradients */
  double *losses;     /* [3]: sum of row_loss; load-balancing loss; z-loss */
  float *mean_share;  /* [E]: shares over all layers, for NN_AUX_JOINT */
  float *logits;      /* [logits_rows, vocab]; NULL where the device's memory is the host's */
  int64_t logits_rows;
  float *router_stats;    /* [sparse layers, 2E + 1] */
  router_stats_t *router; /* host [layers]: the rows of router_stats */
  int64_t *stat_count; /* [layers, E + 1] */
  double *stat_prob;   /* [layers, E] */
  size_t stat_bytes;   /* of stat_count and, behind it, stat_prob */
  backend_scratch_t scratch;
  int32_t *host_position; /* host [n]: what position holds */
  int64_t position_len;   /* the sequence length that position was filled for; 0: none */
  int64_t rope_len;       /* that rope was filled for */
} training_buffers_t;

/* A pass that is replayed as long as batches have the same shape and the losses the same scale. */
enum { WORK_LOSS, WORK_ADD, WORK_ASSIGN, WORKS }; /* without gradients; with, added or assigned */
typedef struct training_work {
  replay_t replay;
  int64_t batch, seq_len; /* of the last pass */
  float scale;
} training_work_t;

struct training {
  nn_train_options_t options; /* defaults filled in */
  storage_t *gradients;       /* [params.elements] fp32 */
  bool stale;                 /* a backward failed midway: the gradients are to be zeroed first */
  bool fresh; /* those that param_is_assigned() names count as zeros, whatever lies there, and the
                 next backward assigns them */
  float loss_scale; /* that the gradients hold; 0: they are zeros, and the next backward takes the
                       model's */
  training_work_t work[WORKS];
  weights_t dweights;
  storage_t *activations, *workspace;
  training_buffers_t buffers;
};

/* Bytes of each allocation that training makes. */
typedef struct training_bytes {
  size_t gradients, activations, workspace;
} training_bytes_t;

/* Checks options against the configuration and fills the defaults in. */
nn_status_t training_check(const nn_model_config_t *config, int32_t dtype,
                           const nn_train_options_t *options, nn_train_options_t *checked);

/* Counts, allocating nothing on the device. */
nn_status_t training_count(const nn_device_t *device, const nn_model_config_t *config,
                           int32_t dtype, int64_t elements, const nn_train_options_t *checked,
                           training_bytes_t *bytes);

/* Prepares a model, or prepares it again for another shape, the gradients kept. */
nn_status_t training_prepare(nn_model_t *model, const nn_train_options_t *checked);

/* Makes all gradients zeros: those that the next backward assigns in name alone, unless somebody
 * views their memory. */
nn_status_t training_zero(const nn_model_t *model, training_t *training);

/* Makes gradients that are zeros in name alone zeros in memory, for who reads them. */
nn_status_t training_settle(const nn_model_t *model);

/* Fills the table of rotations for batches of a sequence length. */
nn_status_t training_fill_rope(nn_model_t *model, training_t *training, int64_t seq_len);

/* What the gradients are multiplied by, or will be by the next backward. */
float training_loss_scale(const nn_model_t *model);

void training_free(const nn_device_t *device, training_t *training);

#endif
