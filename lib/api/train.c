/* Exported functions that train a model: batches, gradients, expert statistics, the optimizer. */
#include <math.h>

#include "base/mem.h"
#include "format/optim_file.h"
#include "model/training.h"
#include "train/optim.h"
#include "train/run.h"

/* NN_ERR_STATE unless the model is prepared. */
static nn_status_t train_require(const nn_model_t *model) {
  if (model->training) return NN_OK;
  return status_fail(NN_ERR_STATE,
                     "the model is not prepared for training; call nn_model_prepare()");
}

nn_status_t nn_model_prepare(nn_model_t *model, const nn_train_options_t *options) {
  STATUS_REQUIRE(model);
  if (!options) {
    training_free(model->device, model->training);
    model->training = NULL;
    return NN_OK;
  }
  nn_train_options_t asked, checked;
  STATUS_TRY(
      status_read_options(&asked, sizeof asked, sizeof asked, options, "nn_train_options_t"));
  STATUS_TRY(training_check(&model->config, model->dtype, &asked, &checked));
  return training_prepare(model, &checked);
}

/* NN_ERR_STATE when a failed backward left gradients that mean nothing. */
static nn_status_t train_require_gradients(const nn_model_t *model) {
  STATUS_TRY(train_require(model));
  if (!model->training->stale) return NN_OK;
  return status_fail(NN_ERR_STATE,
                     "the gradients are undefined since nn_model_backward() failed; call "
                     "nn_model_zero_grad() first");
}

/* Checks a batch's shape and ids against the model. */
static nn_status_t train_check_batch(const nn_model_t *model, const int32_t *tokens, int64_t batch,
                                     int64_t seq_len) {
  STATUS_REQUIRE(tokens);
  STATUS_TRY(train_require(model));
  const nn_train_options_t *most = &model->training->options;
  if (batch < 1 || batch > most->batch || seq_len < 1 || seq_len > most->seq_len)
    return status_fail(
        NN_ERR_ARGUMENT,
        "a batch of %lld x %lld tokens; the model is prepared for 1 x 1 to %lld x %lld",
        (long long)batch, (long long)seq_len, (long long)most->batch, (long long)most->seq_len);
  return model_check_ids(&model->config, tokens, batch * seq_len);
}

static nn_status_t train_check_targets(const nn_model_t *model, const int32_t *targets,
                                       int64_t count) {
  STATUS_REQUIRE(targets);
  for (int64_t i = 0; i < count; i++)
    if (targets[i] >= model->config.vocab_size)
      return status_fail(NN_ERR_ARGUMENT, "target %lld is id %d; the vocabulary has %lld",
                         (long long)i, targets[i], (long long)model->config.vocab_size);
  return NN_OK;
}

nn_status_t nn_model_forward(nn_model_t *model, const int32_t *tokens, int64_t batch,
                             int64_t seq_len, float *logits) {
  STATUS_REQUIRE(model);
  STATUS_REQUIRE(logits);
  STATUS_TRY(train_check_batch(model, tokens, batch, seq_len));
  STATUS_TRY(device_enter(model->device));
  nn_status_t status = run_forward(model, tokens, batch, seq_len, logits);
  device_leave(model->device);
  return status;
}

static nn_status_t train_loss(nn_model_t *model, const int32_t *tokens, const int32_t *targets,
                              int64_t batch, int64_t seq_len, bool gradients, float scale,
                              nn_loss_t *loss) {
  STATUS_REQUIRE(model);
  if (loss || !gradients) STATUS_TRY(status_check_result(loss, sizeof *loss, "nn_loss_t"));
  STATUS_TRY(train_check_batch(model, tokens, batch, seq_len));
  STATUS_TRY(train_check_targets(model, targets, batch * seq_len));
  if (gradients) STATUS_TRY(train_require_gradients(model));
  STATUS_TRY(device_enter(model->device));
  nn_loss_t found = {0};
  nn_status_t status = run_loss(model, tokens, targets, batch, seq_len, gradients, scale,
                                loss ? &found : NULL);
  if (gradients && status != NN_OK) model->training->stale = true;
  device_leave(model->device);
  if (status == NN_OK && loss) status_write_result(loss, &found, sizeof found);
  return status;
}

nn_status_t nn_model_evaluate(nn_model_t *model, const int32_t *tokens, const int32_t *targets,
                              int64_t batch, int64_t seq_len, nn_loss_t *loss) {
  return train_loss(model, tokens, targets, batch, seq_len, false, 0, loss);
}

nn_status_t nn_model_backward(nn_model_t *model, const int32_t *tokens, const int32_t *targets,
                              int64_t batch, int64_t seq_len, float scale, nn_loss_t *loss) {
  if (!isfinite(scale))
    return status_fail(NN_ERR_ARGUMENT, "the gradients' scale is %g; it must be finite",
                       (double)scale);
  return train_loss(model, tokens, targets, batch, seq_len, true, scale, loss);
}

nn_status_t nn_model_zero_grad(nn_model_t *model) {
  STATUS_REQUIRE(model);
  STATUS_TRY(train_require(model));
  return training_zero(model, model->training);
}

double nn_model_loss_scale(const nn_model_t *model) {
  return model ? (double)training_loss_scale(model) : 0;
}

nn_status_t nn_model_gradient(const nn_model_t *model, const char *name, nn_tensor_t **tensor) {
  STATUS_REQUIRE(model);
  STATUS_REQUIRE(name);
  STATUS_REQUIRE(tensor);
  STATUS_TRY(train_require(model));
  STATUS_TRY(training_settle(model));
  return model_tensor(model, model->training->gradients, NN_F32, name, tensor);
}

nn_status_t nn_model_expert_stats(const nn_model_t *model, int64_t layer, int64_t *counts,
                                  double *mean_prob, nn_expert_stats_t *stats) {
  STATUS_REQUIRE(model);
  STATUS_TRY(status_check_result(stats, sizeof *stats, "nn_expert_stats_t"));
  STATUS_TRY(train_require(model));
  const training_buffers_t *buffers = &model->training->buffers;
  return model_expert_stats(model, buffers->stat_count, buffers->stat_prob, layer, counts,
                            mean_prob, stats);
}

nn_status_t nn_model_expert_stats_reset(nn_model_t *model) {
  STATUS_REQUIRE(model);
  STATUS_TRY(train_require(model));
  training_buffers_t *buffers = &model->training->buffers;
  return device_zero(model->device, buffers->stat_count, buffers->stat_bytes);
}

/* ---- optimizer ------------------------------------------------------------------------------- */

nn_status_t nn_optim_create(nn_model_t *model, const nn_optim_options_t *options,
                            nn_optim_t **optim) {
  STATUS_REQUIRE(model);
  STATUS_REQUIRE(optim);
  nn_optim_options_t asked, checked;
  STATUS_TRY(
      status_read_options(&asked, sizeof asked, sizeof asked, options, "nn_optim_options_t"));
  STATUS_TRY(optim_check(&asked, &checked));
  STATUS_TRY(train_require(model));
  return optim_create(model, &checked, optim);
}

void nn_optim_destroy(nn_optim_t *optim) { optim_free(optim); }

nn_status_t nn_optim_step(nn_optim_t *optim, float lr, double *grad_norm) {
  STATUS_REQUIRE(optim);
  if (!(lr >= 0 && isfinite(lr)))
    return status_fail(NN_ERR_ARGUMENT, "the learning rate is %g; it must be at least 0",
                       (double)lr);
  STATUS_TRY(train_require_gradients(optim->model));
  if (optim->steps >= OPTIM_MOST_STEPS)
    return status_fail(NN_ERR_CAPACITY, "the optimizer has made %lld updates, which is the most",
                       (long long)optim->steps);
  STATUS_TRY(training_settle(optim->model));
  STATUS_TRY(device_enter(optim->model->device));
  nn_status_t status = optim_step(optim, lr, grad_norm);
  device_leave(optim->model->device);
  return status;
}

nn_status_t nn_optim_moment(const nn_optim_t *optim, const char *name, int32_t moment,
                            nn_tensor_t **tensor) {
  STATUS_REQUIRE(optim);
  STATUS_REQUIRE(name);
  STATUS_REQUIRE(tensor);
  if (moment != NN_MOMENT_FIRST && moment != NN_MOMENT_SECOND)
    return status_fail(NN_ERR_ARGUMENT, "moment is %d, not an NN_MOMENT_ value", moment);
  const nn_model_t *model = optim->model;
  const param_t *param = param_find(&model->params, name);
  if (!param) return status_fail(NN_ERR_NOT_FOUND, "the model has no parameter \"%s\"", name);
  return tensor_view(optim->moments, optim_moment(optim, moment) + param->offset, NN_F32,
                     param->ndim, param->shape, param->stride, tensor);
}

int64_t nn_optim_steps(const nn_optim_t *optim) { return optim ? optim->steps : 0; }

nn_status_t nn_optim_set_steps(nn_optim_t *optim, int64_t steps) {
  STATUS_REQUIRE(optim);
  if (steps < 0 || steps > OPTIM_MOST_STEPS)
    return status_fail(NN_ERR_ARGUMENT, "steps is %lld; it goes from 0 to %lld", (long long)steps,
                       (long long)OPTIM_MOST_STEPS);
  optim->steps = steps;
  return NN_OK;
}

nn_status_t nn_optim_save(const nn_optim_t *optim, const char *path) {
  STATUS_REQUIRE(optim);
  STATUS_REQUIRE(path);
  const nn_model_t *model = optim->model;
  STATUS_TRY(device_poll(model->device));
  optim_state_t state = optim_state(optim);
  return optim_file_save(path, &model->params, &state, &model->device->cancel, model->device);
}

nn_status_t nn_optim_load(nn_optim_t *optim, const char *path) {
  STATUS_REQUIRE(optim);
  STATUS_REQUIRE(path);
  const nn_model_t *model = optim->model;
  STATUS_TRY(device_poll(model->device));
  optim_state_t state = optim_state(optim);
  STATUS_TRY(optim_file_load(path, &model->params, &state, &model->device->cancel, model->device));
  optim_restore(optim, &state);
  return NN_OK;
}
