#include "model/training.h"

#include "base/mem.h"
#include "model/config.h"
#include "model/rope.h"

/* Rows of logits that nn_model_forward() holds at a time on a device that cannot write the
 * caller's memory. */
enum { LOGITS_ROWS = 64 };

nn_status_t training_check(const nn_model_config_t *config, int32_t dtype,
                           const nn_train_options_t *options, nn_train_options_t *checked) {
  STATUS_TRY(model_check_dtype(dtype));
  *checked = *options;
  if (!checked->batch) checked->batch = 1;
  if (!checked->seq_len) checked->seq_len = config->context;
  if (checked->batch < 1)
    return status_fail(NN_ERR_ARGUMENT, "nn_train_options_t: batch is %lld; it is at least 1",
                       (long long)checked->batch);
  if (checked->seq_len < 1 || checked->seq_len > config->context)
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_train_options_t: seq_len is %lld; it goes from 1 to the context, %lld",
                       (long long)checked->seq_len, (long long)config->context);
  if (checked->recompute < NN_RECOMPUTE_NONE || checked->recompute > NN_RECOMPUTE_FFN)
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_train_options_t: recompute is %d, not an NN_RECOMPUTE_ value",
                       checked->recompute);
  int64_t tokens, slots;
  if (!mem_mul(checked->batch, checked->seq_len, &tokens) ||
      !mem_mul(tokens, config->top_k ? config->top_k : 1, &slots) || slots > INT32_MAX)
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_train_options_t: %lld x %lld tokens are more than one call can route",
                       (long long)checked->batch, (long long)checked->seq_len);
  return NN_OK;
}

static int64_t training_kept(const nn_model_config_t *config, const nn_train_options_t *options) {
  return options->recompute == NN_RECOMPUTE_BLOCK ? 1 : config->layers;
}

/* Lays out what backward reads and writes. acts: host [kept], or NULL to count. */
static void training_take_activations(arena_t *arena, const nn_model_config_t *config,
                                      const nn_train_options_t *options, int32_t act_dtype,
                                      training_buffers_t *buffers) {
  int64_t n = options->batch * options->seq_len;
  size_t element = nn_dtype_bytes(act_dtype);
  buffers->x = arena_take(arena, (config->layers + 1) * n, config->hidden, element);
  buffers->y = arena_take(arena, n, config->hidden, element);
  buffers->mean = arena_take(arena, 1, n, sizeof(float));
  buffers->rstd = arena_take(arena, 1, n, sizeof(float));
  block_grads_take(arena, config, n, act_dtype, &buffers->grads);
  block_acts_t acts = {0}, inside = {0};
  if (options->recompute == NN_RECOMPUTE_FFN)
    block_acts_take_ffn(arena, config, n, act_dtype, BLOCK_ANY_LAYER, &buffers->grads, &inside);
  for (int64_t i = 0; i < training_kept(config, options); i++) {
    int64_t layer = options->recompute == NN_RECOMPUTE_BLOCK ? BLOCK_ANY_LAYER : i;
    block_acts_take(arena, config, n, act_dtype, layer, true, &acts);
    if (options->recompute != NN_RECOMPUTE_FFN)
      block_acts_take_ffn(arena, config, n, act_dtype, layer, &buffers->grads, &inside);
    acts.expert_pre = inside.expert_pre, acts.pre = inside.pre, acts.post = inside.post;
    if (buffers->acts) buffers->acts[i] = acts;
  }
}

static void training_take_workspace(arena_t *arena, const nn_device_t *device,
                                    const nn_model_config_t *config, int32_t dtype,
                                    const nn_train_options_t *options,
                                    training_buffers_t *buffers) {
  int64_t n = options->batch * options->seq_len;
  buffers->ids = arena_take(arena, 1, n, sizeof(int32_t));
  buffers->position = arena_take(arena, 1, n, sizeof(int32_t));
  buffers->targets = arena_take(arena, 1, n, sizeof(int32_t));
  buffers->row_loss = arena_take(arena, 1, n, sizeof(float));
  buffers->grad_scale = arena_take(arena, 1, 1, sizeof(float));
  buffers->losses = arena_take(arena, 1, 3, sizeof(double));
  if (config->position == NN_POSITION_ROPE)
    buffers->rope = arena_take(arena, options->seq_len, rope_dim(config), sizeof(float));
  buffers->logits_rows = n;
  if (!device->host_memory) {
    if (n > LOGITS_ROWS) buffers->logits_rows = LOGITS_ROWS;
    buffers->logits = arena_take(arena, buffers->logits_rows, config->vocab_size, sizeof(float));
  }
  if (config->experts) {
    buffers->mean_share = arena_take(arena, 1, config->experts, sizeof(float));
    buffers->router_stats = router_stats_take(arena, config, config_sparse_layers(config));
    buffers->stat_bytes =
        expert_counts_take(arena, config, &buffers->stat_count, &buffers->stat_prob);
  }
  backend_limits_t limits =
      block_limits(device, config, n, options->batch, options->seq_len, dtype, true);
  buffers->scratch.bytes = device->backend->workspace_bytes(device->place, &limits);
  buffers->scratch.data = arena_take(arena, 1, (int64_t)buffers->scratch.bytes, 1);
}

nn_status_t training_count(const nn_device_t *device, const nn_model_config_t *config,
                           int32_t dtype, int64_t elements, const nn_train_options_t *checked,
                           training_bytes_t *bytes) {
  training_buffers_t buffers = {0};
  arena_t activations = {0}, workspace = {0};
  training_take_activations(&activations, config, checked, block_act_dtype(device, dtype),
                            &buffers);
  training_take_workspace(&workspace, device, config, dtype, checked, &buffers);
  if (activations.overflowed || workspace.overflowed)
    return status_fail(NN_ERR_ARGUMENT,
                       "a training batch of %lld x %lld tokens overflows memory sizes",
                       (long long)checked->batch, (long long)checked->seq_len);
  bytes->gradients = (size_t)elements * sizeof(float);
  bytes->activations = activations.used;
  bytes->workspace = workspace.used;
  return NN_OK;
}

nn_status_t training_fill_rope(nn_model_t *model, training_t *training, int64_t seq_len) {
  training_buffers_t *buffers = &training->buffers;
  STATUS_TRY(rope_fill(model->device, &model->config, seq_len, training->options.seq_len,
                       buffers->rope));
  buffers->rope_len = seq_len;
  return NN_OK;
}

/* Fills what stays the same over all batches, or nearly all: positions' rotations, counters of
 * zero. */
static nn_status_t training_fill(nn_model_t *model, training_t *training) {
  nn_device_t *device = model->device;
  training_buffers_t *buffers = &training->buffers;
  for (int64_t l = 0, row = 0; buffers->router && l < model->config.layers; l++)
    if (!config_layer_is_dense(&model->config, l))
      buffers->router[l] = router_stats_row(&model->config, buffers->router_stats, row++);
  if (model->config.position == NN_POSITION_ROPE)
    STATUS_TRY(training_fill_rope(model, training, training->options.seq_len));
  return device_zero(device, buffers->stat_count, buffers->stat_bytes);
}

/* Allocates everything but the gradients. */
static nn_status_t training_allocate(nn_model_t *model, training_t *training) {
  nn_device_t *device = model->device;
  const nn_model_config_t *config = &model->config;
  training_buffers_t *buffers = &training->buffers;
  training_bytes_t bytes = {0};
  STATUS_TRY(training_count(device, config, model->dtype, model->params.elements,
                            &training->options, &bytes));
  void *got = NULL;
  STATUS_TRY(
      mem_alloc((size_t)training_kept(config, &training->options), sizeof(block_acts_t), &got));
  buffers->acts = got;
  int64_t n = training->options.batch * training->options.seq_len;
  STATUS_TRY(mem_alloc((size_t)n, sizeof(int32_t), &got));
  buffers->host_position = got;
  if (config->experts) {
    STATUS_TRY(mem_alloc((size_t)config->layers, sizeof(router_stats_t), &got));
    buffers->router = got;
  }
  STATUS_TRY(storage_create(device, bytes.activations, "training activations",
                            &training->activations));
  STATUS_TRY(storage_create(device, bytes.workspace, "training workspace",
                            &training->workspace));
  arena_t activations = {.base = training->activations->data};
  arena_t workspace = {.base = training->workspace->data};
  training_take_activations(&activations, config, &training->options,
                            block_act_dtype(device, model->dtype), buffers);
  training_take_workspace(&workspace, device, config, model->dtype, &training->options, buffers);
  return training_fill(model, training);
}

nn_status_t training_prepare(nn_model_t *model, const nn_train_options_t *checked) {
  void *got = NULL;
  STATUS_TRY(mem_alloc(1, sizeof(training_t), &got));
  training_t *made = got;
  made->options = *checked;
  nn_status_t status = training_allocate(model, made);
  if (status == NN_OK && !model->training) {
    size_t bytes = (size_t)model->params.elements * sizeof(float);
    status = storage_create(model->device, bytes, "gradients", &made->gradients);
    if (status == NN_OK) status = training_zero(model, made);
  } else if (status == NN_OK) {
    made->gradients = model->training->gradients;
    made->stale = model->training->stale, made->fresh = model->training->fresh;
    made->loss_scale = model->training->loss_scale;
    storage_retain(made->gradients);
  }
  if (status == NN_OK)
    status = weights_bind(&model->config, &model->params, made->gradients->data, sizeof(float),
                          &made->dweights);
  if (status != NN_OK) {
    training_free(model->device, made);
    return status;
  }
  training_free(model->device, model->training);
  model->training = made;
  return NN_OK;
}

/* ---- zeros ----------------------------------------------------------------------------------- */

static nn_status_t training_zero_elements(const nn_model_t *model, const training_t *training,
                                          int64_t offset, int64_t elements) {
  float *gradients = training->gradients->data;
  return device_zero(model->device, gradients + offset, (size_t)elements * sizeof *gradients);
}

nn_status_t training_zero(const nn_model_t *model, training_t *training) {
  const param_table_t *params = &model->params;
  bool viewed = atomic_load(&training->gradients->references) > 1;
  int64_t matrices = viewed ? 0 : params->decayed;
  STATUS_TRY(training_zero_elements(model, training, matrices, params->elements - matrices));
  for (int64_t i = 0; i < params->count && !viewed; i++) {
    const param_t *param = &params->items[i];
    if (param->offset < params->decayed &&
        !param_is_assigned(params, param, model->config.tied_head))
      STATUS_TRY(training_zero_elements(model, training, param->offset, param->elements));
  }
  training->fresh = !viewed;
  training->stale = false;
  training->loss_scale = 0;
  return NN_OK;
}

nn_status_t training_settle(const nn_model_t *model) {
  training_t *training = model->training;
  if (!training->fresh) return NN_OK;
  STATUS_TRY(training_zero_elements(model, training, 0, model->params.decayed));
  training->fresh = false;
  return NN_OK;
}

float training_loss_scale(const nn_model_t *model) {
  const training_t *training = model->training;
  return training && training->loss_scale != 0 ? training->loss_scale : model->loss_scale;
}

void training_free(const nn_device_t *device, training_t *training) {
  if (!training) return;
  for (int i = 0; i < WORKS; i++) replay_forget(device, &training->work[i].replay);
  mem_free(training->buffers.acts);
  mem_free(training->buffers.router);
  mem_free(training->buffers.host_position);
  weights_free(&training->dweights);
  storage_release(training->gradients);
  storage_release(training->activations);
  storage_release(training->workspace);
  mem_free(training);
}
