#include "train/optim.h"

#include <math.h>

#include "base/mem.h"
#include "model/training.h"

/* Behind the moments: what op_grad_norm writes, and what differs from update to update. */
enum { NORM_BYTES = 2 * sizeof(double), UPDATE_BYTES = NORM_BYTES + sizeof(optim_now_t) };

nn_status_t optim_check(const nn_optim_options_t *options, nn_optim_options_t *checked) {
  *checked = *options;
  if (checked->beta1 == 0) checked->beta1 = 0.9f;
  if (checked->beta2 == 0) checked->beta2 = 0.95f;
  if (checked->eps == 0) checked->eps = 1e-8f;
  if (!(checked->beta1 >= 0 && checked->beta1 < 1 && checked->beta2 >= 0 && checked->beta2 < 1))
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_optim_options_t: beta1 %g and beta2 %g must be in [0, 1)",
                       (double)checked->beta1, (double)checked->beta2);
  if (!(checked->eps > 0 && isfinite(checked->eps)))
    return status_fail(NN_ERR_ARGUMENT, "nn_optim_options_t: eps is %g; it must be above 0",
                       (double)checked->eps);
  if (!(checked->weight_decay >= 0 && isfinite(checked->weight_decay)))
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_optim_options_t: weight_decay is %g; it must be at least 0",
                       (double)checked->weight_decay);
  if (!(checked->grad_clip >= 0 && isfinite(checked->grad_clip)))
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_optim_options_t: grad_clip is %g; it must be at least 0",
                       (double)checked->grad_clip);
  return NN_OK;
}

size_t optim_bytes(int64_t elements) { return (size_t)elements * 2 * sizeof(float) + UPDATE_BYTES; }

size_t optim_master_bytes(int64_t elements, int32_t dtype) {
  if (dtype == NN_F32) return 0;
  return (size_t)elements * (dtype == NN_F16 ? sizeof(float) : sizeof(int16_t));
}

nn_status_t optim_create(nn_model_t *model, const nn_optim_options_t *checked, nn_optim_t **optim) {
  void *got = NULL;
  STATUS_TRY(mem_alloc(1, sizeof(nn_optim_t), &got));
  nn_optim_t *made = got;
  made->options = *checked;
  made->model = model;
  model_retain(model);
  size_t bytes = optim_bytes(model->params.elements);
  nn_status_t status =
      storage_create(model->device, bytes, "optimizer moments", &made->moments);
  if (status == NN_OK) status = device_zero(model->device, made->moments->data, bytes);
  size_t masters = optim_master_bytes(model->params.elements, model->dtype);
  if (status == NN_OK && masters)
    status = storage_create(model->device, masters, "master weights", &made->masters);
  if (status == NN_OK && masters) status = device_zero(model->device, made->masters->data, masters);
  if (status != NN_OK) {
    optim_free(made);
    return status;
  }
  *optim = made;
  return NN_OK;
}

void optim_free(nn_optim_t *optim) {
  if (!optim) return;
  replay_forget(optim->model->device, &optim->replay);
  storage_release(optim->moments);
  storage_release(optim->masters);
  model_release(optim->model);
  mem_free(optim);
}

float *optim_moment(const nn_optim_t *optim, int32_t moment) {
  float *first = optim->moments->data;
  return moment == NN_MOMENT_FIRST ? first : first + optim->model->params.elements;
}

optim_state_t optim_state(const nn_optim_t *optim) {
  return (optim_state_t){.dtype = optim->model->dtype,
                         .m = optim_moment(optim, NN_MOMENT_FIRST),
                         .v = optim_moment(optim, NN_MOMENT_SECOND),
                         .masters = optim->masters ? optim->masters->data : NULL,
                         .steps = optim->steps,
                         .loss_scale = (int64_t)optim->model->loss_scale,
                         .loss_scale_steps = optim->loss_scale_steps};
}

void optim_restore(nn_optim_t *optim, const optim_state_t *state) {
  optim->steps = state->steps;
  optim->model->loss_scale = (float)state->loss_scale;
  optim->loss_scale_steps = state->loss_scale_steps;
}

/* What op_grad_norm writes. */
static double *optim_scale(const nn_optim_t *optim) {
  return (double *)(void *)(optim_moment(optim, NN_MOMENT_FIRST) +
                            2 * optim->model->params.elements);
}

static optim_now_t *optim_now(const nn_optim_t *optim) {
  return (optim_now_t *)(void *)(optim_scale(optim) + NORM_BYTES / sizeof(double));
}

/* The norm, and the update of all parameters unless it is not finite. */
static nn_status_t optim_work(const void *context) {
  const nn_optim_t *optim = context;
  const nn_optim_options_t *options = &optim->options;
  const nn_model_t *model = optim->model;
  const training_t *training = model->training;
  const nn_device_t *device = model->device;
  op_grad_norm_t norm = {.count = model->params.elements, .g = training->gradients->data};
  norm.max_norm = options->grad_clip, norm.now = optim_now(optim), norm.out = optim_scale(optim);
  STATUS_TRY(device->backend->grad_norm(device->place, &norm, training->buffers.scratch));
  op_adamw_t op = {.count = norm.count, .decayed = model->params.decayed};
  op.weight_dtype = model->dtype, op.p = model->buffer->data;
  if (model->dtype == NN_BF16) op.p_low = optim->masters->data;
  if (model->dtype == NN_F16) op.master = optim->masters->data;
  op.g = norm.g, op.scale = norm.out, op.now = norm.now;
  op.m = optim_moment(optim, NN_MOMENT_FIRST), op.v = optim_moment(optim, NN_MOMENT_SECOND);
  op.beta1 = options->beta1, op.beta2 = options->beta2, op.eps = options->eps;
  op.weight_decay = options->weight_decay;
  return device->backend->adamw(device->place, &op, training->buffers.scratch);
}

/* Dynamic loss scaling (Micikevicius et al., 2018): gradients that overflowed are not used, and the
 * next ones are scaled by half; after so many updates without that they are scaled by twice. */
enum { LOSS_SCALE_STEPS = 2000 };

static nn_status_t optim_overflow(nn_optim_t *optim, double norm) {
  float scale = training_loss_scale(optim->model);
  if (scale <= 1)
    return status_fail(NN_ERR_NONFINITE,
                       "the gradient norm of update %lld is %g%s; the update was refused and "
                       "nothing changed",
                       (long long)optim->steps + 1, norm,
                       optim->model->dtype == NN_F16 ? " even at a loss scale of 1" : "");
  optim->model->loss_scale = scale / 2;
  optim->loss_scale_steps = 0;
  return NN_OK;
}

static void optim_advance(nn_optim_t *optim) {
  optim->steps++;
  if (optim->model->dtype != NN_F16 || ++optim->loss_scale_steps < LOSS_SCALE_STEPS) return;
  if (optim->model->loss_scale < (float)OPTIM_MOST_LOSS_SCALE) optim->model->loss_scale *= 2;
  optim->loss_scale_steps = 0;
}

nn_status_t optim_step(nn_optim_t *optim, float lr, double *grad_norm) {
  const training_t *training = optim->model->training;
  const nn_device_t *device = optim->model->device;
  double step = (double)(optim->steps + 1);
  optim_now_t now = {.lr = lr, .unscale = 1 / (double)training_loss_scale(optim->model)};
  now.m_left = 1 - pow(optim->options.beta1, step);
  now.v_left = 1 - pow(optim->options.beta2, step);
  STATUS_TRY(device->backend->copy_in(device->place, optim_now(optim), &now, sizeof now));
  /* The model may have been prepared again since, with other memory. */
  const void *gradients = training->gradients->data, *scratch = training->buffers.scratch.data;
  if (optim->gradients != gradients || optim->scratch != scratch) {
    replay_forget(device, &optim->replay);
    optim->gradients = gradients, optim->scratch = scratch;
  }
  STATUS_TRY(replay_run(device, &optim->replay, optim_work, optim));
  /* adamw does nothing when the norm is not finite, so it needs no look at it before. */
  double found;
  STATUS_TRY(device->backend->copy_out(device->place, &found, optim_scale(optim), sizeof found));
  if (isfinite(found))
    optim_advance(optim);
  else
    STATUS_TRY(optim_overflow(optim, found));
  if (grad_norm) *grad_norm = found;
  return NN_OK;
}
