#include "model/block.h"

#include "model/attention.h"
#include "model/config.h"
#include "model/ffn.h"
#include "model/linear.h"

int32_t block_act_dtype(const nn_device_t *device, int32_t weight_dtype) {
  if (weight_dtype == NN_F32) return NN_F32;
  backend_info_t info = {.struct_size = sizeof info};
  device->backend->describe(device->place, &info);
  return weight_dtype == NN_F16 ? info.act_dtype_f16 : info.act_dtype;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

backend_limits_t block_limits(const nn_device_t *device, const nn_model_config_t *config, int64_t n,
                              int64_t batch, int64_t kv_len, int32_t weight_dtype, bool training) {
  backend_limits_t limits = {.rows = n,
                             .batch = batch,
                             .kv_len = kv_len,
                             .hidden = config->hidden,
                             .heads = config->heads,
                             .kv_heads = config->kv_heads,
                             .head_dim = config->head_dim,
                             .ffn = config->ffn,
                             .experts = config->experts,
                             .top_k = config->top_k,
                             .vocab = config->vocab_size,
                             .weight_dtype = weight_dtype,
                             .act_dtype = block_act_dtype(device, weight_dtype),
                             .training = training};
  /* a norm may be as wide as all queries, or as a latent */
  if (config->qk_norm == NN_QK_NORM_FULL)
    limits.hidden = larger(limits.hidden, attention_q_width(config));
  limits.hidden = larger(limits.hidden, larger(config->q_rank, config->kv_rank));
  limits.ffn = larger(limits.ffn, larger(config->dense_ffn, config->shared_ffn));
  return limits;
}

void block_acts_take(arena_t *arena, const nn_model_config_t *config, int64_t n, int32_t act_dtype,
                     int64_t layer, bool backward, block_acts_t *acts) {
  const size_t f = sizeof(float), a = nn_dtype_bytes(act_dtype);
  *acts = (block_acts_t){0};
  acts->y1 = arena_take(arena, n, config->hidden, a);
  attention_acts_take(arena, config, n, act_dtype, backward, acts);
  acts->mid = arena_take(arena, n, config->hidden, a);
  acts->y2 = arena_take(arena, n, config->hidden, a);
  if (backward) {
    acts->rstd1 = arena_take(arena, 1, n, f);
    acts->rstd2 = arena_take(arena, 1, n, f);
    if (config->norm == NN_NORM_LAYER) {
      acts->mean1 = arena_take(arena, 1, n, f);
      acts->mean2 = arena_take(arena, 1, n, f);
    }
  }
  ffn_acts_take(arena, config, n, layer, acts);
}

void block_acts_take_ffn(arena_t *arena, const nn_model_config_t *config, int64_t n,
                         int32_t act_dtype, int64_t layer, const block_grads_t *grads,
                         block_acts_t *acts) {
  ffn_acts_take_inside(arena, config, n, act_dtype, layer, grads, acts);
}

void block_grads_take(arena_t *arena, const nn_model_config_t *config, int64_t n, int32_t act_dtype,
                      block_grads_t *grads) {
  const size_t a = nn_dtype_bytes(act_dtype);
  *grads = (block_grads_t){0};
  grads->d = arena_take(arena, n, config->hidden, a);
  grads->dy = arena_take(arena, n, config->hidden, a);
  attention_grads_take(arena, config, n, act_dtype, grads);
  ffn_grads_take(arena, config, n, act_dtype, grads);
}

float *router_stats_take(arena_t *arena, const nn_model_config_t *config, int64_t rows) {
  return arena_take(arena, rows, 2 * config->experts + 1, sizeof(float));
}

router_stats_t router_stats_row(const nn_model_config_t *config, float *stats, int64_t row) {
  int64_t experts = config->experts;
  if (!experts) return (router_stats_t){0};
  float *share = stats + row * (2 * experts + 1);
  return (router_stats_t){share, share + experts, share + 2 * experts};
}

size_t expert_counts_take(arena_t *arena, const nn_model_config_t *config, int64_t **count,
                          double **prob) {
  size_t before = arena->used;
  *count = arena_take(arena, config->layers, config->experts + 1, sizeof(int64_t));
  *prob = arena_take(arena, config->layers, config->experts, sizeof(double));
  return arena->used - before;
}

nn_status_t block_forward(const pass_t *pass, int64_t layer, const void *x, void *out,
                          block_acts_t *acts) {
  STATUS_TRY(attention_forward(pass, layer, x, acts));
  return ffn_forward(pass, layer, out, acts);
}

nn_status_t block_ffn_again(const pass_t *pass, int64_t layer, block_acts_t *acts) {
  return ffn_again(pass, layer, acts);
}

nn_status_t block_backward(const pass_t *pass, int64_t layer, const void *x,
                           const block_acts_t *acts, const block_grads_t *grads,
                           const block_weights_t *dw, const router_loss_t *loss) {
  const block_weights_t *w = &pass->weights->blocks[layer];
  STATUS_TRY(ffn_backward(pass, layer, acts, grads, dw, loss));
  STATUS_TRY(norm_backward(pass, acts->mid, grads->dy, w->norm2, acts->mean2, acts->rstd2, grads->d,
                           dw->norm2, dw->norm2_bias));
  STATUS_TRY(attention_backward(pass, layer, acts, grads, dw));
  return norm_backward(pass, x, grads->dy, w->norm1, acts->mean1, acts->rstd1, grads->d, dw->norm1,
                       dw->norm1_bias);
}
