#include "train/run.h"

#include <math.h>

#include "model/config.h"
#include "model/linear.h"
#include "model/rope.h"
#include "model/training.h"

/* Positions 0, 1, ... of each sequence to the device, and the rotations of sequences of this
 * length, unless they lie there from the last call. */
static nn_status_t run_positions(nn_model_t *model, int64_t seq_len) {
  training_buffers_t *buffers = &model->training->buffers;
  if (buffers->position_len == seq_len) return NN_OK;
  if (!rope_same(&model->config, buffers->rope_len, seq_len))
    STATUS_TRY(training_fill_rope(model, model->training, seq_len));
  const nn_train_options_t *shape = &model->training->options;
  int64_t n = shape->batch * shape->seq_len;
  for (int64_t i = 0; i < n; i++) buffers->host_position[i] = (int32_t)(i % seq_len);
  STATUS_TRY(model->device->backend->copy_in(model->device->place, buffers->position,
                                             buffers->host_position, (size_t)n * sizeof(int32_t)));
  buffers->position_len = seq_len;
  return NN_OK;
}

/* Tokens and their positions to the device, and the pass over them. */
static nn_status_t run_begin(nn_model_t *model, const int32_t *tokens, int64_t batch,
                             int64_t seq_len, pass_t *pass) {
  training_buffers_t *buffers = &model->training->buffers;
  nn_device_t *device = model->device;
  const nn_model_config_t *config = &model->config;
  int64_t n = batch * seq_len;
  *pass = (pass_t){.config = config, .backend = device->backend, .place = device->place};
  pass->scratch = buffers->scratch;
  pass->weights = &model->weights, pass->weight_dtype = model->dtype;
  pass->act_dtype = block_act_dtype(device, model->dtype);
  pass->batch = batch, pass->q_len = seq_len;
  pass->ids = buffers->ids, pass->position = buffers->position, pass->rope = buffers->rope;
  pass->router = buffers->router;
  pass->stat_count = buffers->stat_count, pass->stat_prob = buffers->stat_prob;
  if (config->capacity_factor > 0) {
    double even = (double)n * (double)config->top_k / (double)config->experts;
    pass->capacity = (int64_t)ceil((double)config->capacity_factor * even);
  }
  STATUS_TRY(run_positions(model, seq_len));
  return device->backend->copy_in(device->place, buffers->ids, tokens, (size_t)n * sizeof(int32_t));
}

/* Input of a layer; layer `layers` is the output of the last. */
static void *run_x(const nn_model_t *model, const pass_t *pass, int64_t layer) {
  return block_at(model->training->buffers.x, pass->act_dtype,
                  layer * pass->batch * pass->q_len * model->config.hidden);
}

/* Activations of a layer: its own, or the one set that all layers share when they are
 * recomputed. */
static block_acts_t *run_acts(const nn_model_t *model, int64_t layer) {
  bool shared = model->training->options.recompute == NN_RECOMPUTE_BLOCK;
  return &model->training->buffers.acts[shared ? 0 : layer];
}

/* From tokens to the final norm's output. What only a backward pass that does not recompute it
 * reads is kept where `gradients` follow. */
static nn_status_t run_blocks(nn_model_t *model, const pass_t *pass, bool gradients) {
  training_buffers_t *buffers = &model->training->buffers;
  const nn_model_config_t *config = &model->config;
  int64_t n = pass->batch * pass->q_len;
  op_embed_t embed = {.n = n, .hidden = config->hidden, .weight_dtype = pass->weight_dtype};
  embed.ids = pass->ids, embed.position = pass->position;
  embed.wte = model->weights.wte, embed.wpe = model->weights.wpe;
  embed.alpha = config->embedding_scale;
  embed.act_dtype = pass->act_dtype, embed.out = run_x(model, pass, 0);
  STATUS_TRY(pass->backend->embed(pass->place, &embed, pass->scratch));
  bool keep = gradients && model->training->options.recompute == NN_RECOMPUTE_NONE;
  for (int64_t l = 0; l < config->layers; l++) {
    block_acts_t acts = *run_acts(model, l);
    if (!keep) acts.expert_pre = NULL;
    STATUS_TRY(block_forward(pass, l, run_x(model, pass, l), run_x(model, pass, l + 1), &acts));
  }
  op_norm_t norm = final_norm(pass, n, run_x(model, pass, config->layers), buffers->y,
                              buffers->mean, buffers->rstd);
  return PASS_RUN(pass, norm, norm);
}

nn_status_t run_forward(nn_model_t *model, const int32_t *tokens, int64_t batch, int64_t seq_len,
                        float *logits) {
  training_buffers_t *buffers = &model->training->buffers;
  const nn_model_config_t *config = &model->config;
  pass_t pass;
  STATUS_TRY(run_begin(model, tokens, batch, seq_len, &pass));
  STATUS_TRY(run_blocks(model, &pass, false));
  int64_t n = batch * seq_len, most = buffers->logits_rows;
  for (int64_t row = 0; row < n; row += most) {
    float *out = logits + row * config->vocab_size;
    op_matmul_t op = {.n = config->vocab_size, .k = config->hidden, .trans_b = 1};
    op.m = n - row < most ? n - row : most;
    op.a = block_at(buffers->y, pass.act_dtype, row * config->hidden), op.lda = config->hidden;
    op.a_dtype = pass.act_dtype;
    op.b = model->weights.head, op.ldb = config->hidden, op.b_dtype = model->dtype;
    op.alpha = config->logit_scale, op.bias = model->weights.head_bias;
    op.d = buffers->logits ? buffers->logits : out, op.ldd = config->vocab_size;
    op.d_dtype = NN_F32;
    STATUS_TRY(pass.backend->matmul(pass.place, &op, pass.scratch));
    if (!buffers->logits) continue;
    STATUS_TRY(pass.backend->copy_out(pass.place, out, buffers->logits,
                                      (size_t)(op.m * op.n) * sizeof(float)));
  }
  return NN_OK;
}

/* ---- auxiliary losses ------------------------------------------------------------------------ */

/* Auxiliary and z-loss of a pass from its router statistics, beside the cross-entropy. */
static nn_status_t run_router_losses(nn_model_t *model, const pass_t *pass) {
  const nn_model_config_t *config = &model->config;
  const training_buffers_t *buffers = &model->training->buffers;
  if (!config->experts) return NN_OK;
  op_router_loss_t op = {.layers = config_sparse_layers(config), .experts = config->experts};
  op.top_k = config->top_k, op.kind = config->aux_loss;
  op.stats = buffers->router_stats;
  op.loss = buffers->losses + 1, op.mean_share = buffers->mean_share;
  return pass->backend->router_loss(pass->place, &op, pass->scratch);
}

/* How the auxiliary losses reach one layer's router. */
static router_loss_t run_router_loss(const nn_model_t *model, int64_t layer, float scale) {
  const nn_model_config_t *config = &model->config;
  const training_buffers_t *buffers = &model->training->buffers;
  router_loss_t loss = {0};
  if (!config->experts) return loss;
  loss.z_scale = scale * config->z_loss_coef;
  loss.aux_scale = scale * config->aux_loss_coef * (float)config->experts;
  loss.aux_share = buffers->router[layer].share;
  if (config->aux_loss == NN_AUX_JOINT) {
    loss.aux_scale *= (float)config->top_k / (float)config_sparse_layers(config);
    loss.aux_share = buffers->mean_share;
  }
  return loss;
}

/* ---- loss and gradients ---------------------------------------------------------------------- */

/* Targets to the device, and how many count. */
static nn_status_t run_targets(const nn_model_t *model, const pass_t *pass, const int32_t *targets,
                               int64_t *count) {
  int64_t n = pass->batch * pass->q_len;
  *count = 0;
  for (int64_t i = 0; i < n; i++) *count += targets[i] >= 0;
  return pass->backend->copy_in(pass->place, model->training->buffers.targets, targets,
                                (size_t)n * sizeof(int32_t));
}

/* The cross-entropy is a mean over the targets that count, of which each batch has its own
 * number. */
static nn_status_t run_scale(const nn_model_t *model, const pass_t *pass, float scale,
                             int64_t targets) {
  float each = targets ? scale / (float)targets : 0;
  return pass->backend->copy_in(pass->place, model->training->buffers.grad_scale, &each,
                                sizeof each);
}

/* Head and cross-entropy; with gradients grads.dy receives that of the final norm's output. */
static nn_status_t run_head(nn_model_t *model, const pass_t *pass, bool gradients) {
  training_buffers_t *buffers = &model->training->buffers;
  int64_t n = pass->batch * pass->q_len;
  op_head_loss_t op = {.n = n, .hidden = model->config.hidden, .vocab = model->config.vocab_size};
  op.x = buffers->y, op.w = model->weights.head;
  op.weight_dtype = model->dtype, op.act_dtype = pass->act_dtype;
  op.alpha = model->config.logit_scale, op.bias = model->weights.head_bias;
  op.target = buffers->targets, op.row_loss = buffers->row_loss, op.loss_sum = buffers->losses;
  if (gradients) {
    op.scale = buffers->grad_scale, op.assign = pass->assign;
    op.dx = buffers->grads.dy, op.dw = model->training->dweights.head;
    op.dbias = model->training->dweights.head_bias;
  }
  return pass->backend->head_loss(pass->place, &op, pass->scratch);
}

/* From grads.dy, the gradient of the final norm's output, back to the embedding. */
static nn_status_t run_backward(nn_model_t *model, const pass_t *pass, float scale) {
  training_buffers_t *buffers = &model->training->buffers;
  const nn_model_config_t *config = &model->config;
  weights_t *dweights = &model->training->dweights;
  int64_t n = pass->batch * pass->q_len;
  STATUS_TRY(pass->backend->zero(pass->place, buffers->grads.d,
                                 (size_t)(n * config->hidden) * nn_dtype_bytes(pass->act_dtype)));
  op_norm_bwd_t norm = {.n = n, .hidden = config->hidden, .kind = config->norm};
  norm.x = run_x(model, pass, config->layers), norm.dy = buffers->grads.dy;
  norm.w = model->weights.norm_final;
  norm.weight_dtype = pass->weight_dtype, norm.act_dtype = pass->act_dtype;
  norm.mean = buffers->mean, norm.rstd = buffers->rstd, norm.dx = buffers->grads.d;
  norm.dw = dweights->norm_final, norm.db = dweights->norm_final_bias;
  STATUS_TRY(pass->backend->norm_bwd(pass->place, &norm, pass->scratch));
  for (int64_t l = config->layers - 1; l >= 0; l--) {
    block_acts_t *acts = run_acts(model, l);
    if (model->training->options.recompute == NN_RECOMPUTE_BLOCK)
      STATUS_TRY(block_forward(pass, l, run_x(model, pass, l), NULL, acts));
    if (model->training->options.recompute == NN_RECOMPUTE_FFN)
      STATUS_TRY(block_ffn_again(pass, l, acts));
    router_loss_t loss = run_router_loss(model, l, scale);
    STATUS_TRY(block_backward(pass, l, run_x(model, pass, l), acts, &buffers->grads,
                              &dweights->blocks[l], &loss));
  }
  op_embed_bwd_t embed = {.n = n, .hidden = config->hidden, .vocab = config->vocab_size};
  embed.context = config->context;
  embed.ids = pass->ids, embed.position = pass->position;
  embed.alpha = config->embedding_scale;
  embed.act_dtype = pass->act_dtype, embed.dout = buffers->grads.d;
  embed.dwte = dweights->wte, embed.dwpe = dweights->wpe;
  return pass->backend->embed_bwd(pass->place, &embed, pass->scratch);
}

/* The one look at the device's results. */
static nn_status_t run_losses_out(const nn_model_t *model, const pass_t *pass, int64_t targets,
                                  nn_loss_t *loss) {
  const nn_model_config_t *config = &model->config;
  double found[3] = {0};
  size_t count = config->experts ? 3 : 1;
  STATUS_TRY(pass->backend->copy_out(pass->place, found, model->training->buffers.losses,
                                     count * sizeof *found));
  loss->targets = targets;
  loss->loss = targets ? found[0] / (double)targets : 0;
  loss->aux_loss = (double)config->aux_loss_coef * found[1];
  loss->z_loss = (double)config->z_loss_coef * found[2];
  if (isfinite(loss->loss) && isfinite(loss->aux_loss) && isfinite(loss->z_loss)) return NN_OK;
  return status_fail(
      NN_ERR_NONFINITE,
      "the loss is not finite: cross-entropy %g, auxiliary %g, router z %g; lower the "
      "learning rate or go back to an earlier checkpoint",
      loss->loss, loss->aux_loss, loss->z_loss);
}

/* A pass and what it needs beside itself. */
typedef struct run_work {
  nn_model_t *model;
  const pass_t *pass;
  bool gradients;
  float scale;
} run_work_t;

/* From tokens to the losses and, if asked for, gradients, without a look at any of them. */
static nn_status_t run_work(const void *context) {
  const run_work_t *work = context;
  STATUS_TRY(run_blocks(work->model, work->pass, work->gradients));
  STATUS_TRY(run_head(work->model, work->pass, work->gradients));
  STATUS_TRY(run_router_losses(work->model, work->pass));
  return work->gradients ? run_backward(work->model, work->pass, work->scale) : NN_OK;
}

nn_status_t run_loss(nn_model_t *model, const int32_t *tokens, const int32_t *targets,
                     int64_t batch, int64_t seq_len, bool gradients, float scale, nn_loss_t *loss) {
  training_t *training = model->training;
  pass_t pass;
  int64_t count;
  STATUS_TRY(run_begin(model, tokens, batch, seq_len, &pass));
  STATUS_TRY(run_targets(model, &pass, targets, &count));
  if (gradients) {
    training->loss_scale = training_loss_scale(model);
    scale *= training->loss_scale;
    STATUS_TRY(run_scale(model, &pass, scale, count));
    pass.assign = training->fresh;
    training->fresh = false;
  }
  run_work_t work = {model, &pass, gradients, scale};
  int which = !gradients ? WORK_LOSS : pass.assign ? WORK_ASSIGN : WORK_ADD;
  training_work_t *last = &training->work[which];
  if (last->batch != batch || last->seq_len != seq_len || last->scale != scale) {
    replay_forget(model->device, &last->replay);
    last->batch = batch, last->seq_len = seq_len, last->scale = scale;
  }
  STATUS_TRY(replay_run(model->device, &last->replay, run_work, &work));
  return loss ? run_losses_out(model, &pass, count, loss) : NN_OK;
}
