#include "model/model.h"

#include <math.h>
#include <string.h>

#include "base/dtype.h"
#include "base/mem.h"
#include "model/config.h"
#include "model/training.h"

/* What Micikevicius et al. (2018) and others after them begin with. */
static const float MODEL_LOSS_SCALE = 65536;

nn_status_t model_check_dtype(int32_t dtype) {
  if (dtype == NN_F32 || dtype == NN_BF16 || dtype == NN_F16) return NN_OK;
  if (!nn_dtype_bytes(dtype))
    return status_fail(NN_ERR_ARGUMENT, "dtype %d is not an NN_ dtype", dtype);
  return status_fail(NN_ERR_UNSUPPORTED,
                     "parameters of dtype %d; they are NN_F32, NN_BF16 or NN_F16", dtype);
}

nn_status_t model_check_ids(const nn_model_config_t *config, const int32_t *ids, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= config->vocab_size)
      return status_fail(NN_ERR_ARGUMENT, "token %lld is id %d; the vocabulary has %lld",
                         (long long)i, ids[i], (long long)config->vocab_size);
  return NN_OK;
}

nn_status_t model_allocate(nn_device_t *device, const nn_model_config_t *config, int32_t dtype,
                           storage_t *buffer, nn_model_t **model) {
  STATUS_TRY(config_check_computed(config));
  void *got = NULL;
  STATUS_TRY(mem_alloc(1, sizeof(nn_model_t), &got));
  nn_model_t *made = got;
  atomic_init(&made->references, 1);
  made->device = device;
  device_retain(device);
  made->config = *config;
  made->dtype = dtype;
  made->loss_scale = dtype == NN_F16 ? MODEL_LOSS_SCALE : 1;
  nn_status_t status = param_table_build(config, &made->params);
  size_t element = nn_dtype_bytes(dtype);
  if (buffer) {
    storage_retain(buffer);
    made->buffer = buffer;
  } else if (status == NN_OK) {
    status = storage_create(device, (size_t)made->params.elements * element, "parameters",
                            &made->buffer);
  }
  if (status == NN_OK)
    status = weights_bind(config, &made->params, made->buffer->data, element, &made->weights);
  if (status != NN_OK) {
    model_release(made);
    return status;
  }
  *model = made;
  return NN_OK;
}

void model_retain(nn_model_t *model) {
  atomic_fetch_add_explicit(&model->references, 1, memory_order_relaxed);
}

void model_release(nn_model_t *model) {
  if (atomic_fetch_sub_explicit(&model->references, 1, memory_order_acq_rel) != 1) return;
  training_free(model->device, model->training);
  weights_free(&model->weights);
  storage_release(model->buffer);
  param_table_free(&model->params);
  mem_free(model->source);
  device_release(model->device);
  mem_free(model);
}

/* How a parameter begins: a constant, or normal with a standard deviation above 0. */
static float model_initial(const nn_model_config_t *config, const param_t *param, float *constant) {
  *constant = 0;
  switch (param->role) {
    case PARAM_NORM1:
    case PARAM_NORM2:
    case PARAM_Q_NORM:
    case PARAM_K_NORM:
    case PARAM_Q_A_NORM:
    case PARAM_KV_A_NORM:
    case PARAM_NORM_FINAL: *constant = 1; return 0;
    case PARAM_NORM1_BIAS:
    case PARAM_NORM2_BIAS:
    case PARAM_NORM_FINAL_BIAS:
    case PARAM_Q_BIAS:
    case PARAM_K_BIAS:
    case PARAM_V_BIAS:
    case PARAM_QKV_BIAS:
    case PARAM_O_BIAS:
    case PARAM_ROUTER_BIAS:
    case PARAM_GATE_UP_BIAS:
    case PARAM_DOWN_BIAS:
    case PARAM_ROUTER_CHOICE_BIAS:
    case PARAM_DENSE_GATE_BIAS:
    case PARAM_DENSE_UP_BIAS:
    case PARAM_DENSE_DOWN_BIAS:
    case PARAM_FC_BIAS:
    case PARAM_PROJ_BIAS:
    case PARAM_HEAD_BIAS: return 0;
    case PARAM_O:
    case PARAM_PROJ: /* GPT-2 scales what adds to the residual stream (Radford et al., 2019) */
      if (config->family == NN_FAMILY_GPT2)
        return config->init_std / sqrtf(2.0f * (float)config->layers);
      return config->init_std;
    case PARAM_WTE:
    case PARAM_WPE:
    case PARAM_Q:
    case PARAM_K:
    case PARAM_V:
    case PARAM_QKV:
    case PARAM_Q_A:
    case PARAM_Q_B:
    case PARAM_KV_A:
    case PARAM_KV_B:
    case PARAM_SINKS:
    case PARAM_ROUTER:
    case PARAM_DENSE_GATE:
    case PARAM_DENSE_UP:
    case PARAM_DENSE_DOWN:
    case PARAM_SHARED_GATE:
    case PARAM_SHARED_UP:
    case PARAM_SHARED_DOWN:
    case PARAM_SHARED_EXPERT_GATE:
    case PARAM_GATE:
    case PARAM_UP:
    case PARAM_GATE_UP:
    case PARAM_DOWN:
    case PARAM_FC:
    case PARAM_HEAD: return config->init_std;
  }
  return 0;
}

/* One run of a parameter. */
static nn_status_t model_fill_run(nn_model_t *model, int64_t offset, int64_t elements,
                                  float value) {
  nn_device_t *device = model->device;
  size_t element = nn_dtype_bytes(model->dtype);
  char *at = (char *)model->buffer->data + (size_t)offset * element;
  if (value == 0) return device->backend->zero(device->place, at, (size_t)elements * element);
  float row[256];
  uint16_t converted[256];
  for (int i = 0; i < 256; i++) row[i] = value;
  const void *source = row;
  if (model->dtype != NN_F32) {
    dtype_convert(converted, model->dtype, row, NN_F32, 256);
    source = converted;
  }
  for (int64_t done = 0; done < elements; done += 256) {
    int64_t count = elements - done < 256 ? elements - done : 256;
    STATUS_TRY(device->backend->copy_in(device->place, at + (size_t)done * element, source,
                                        (size_t)count * element));
  }
  return NN_OK;
}

static nn_status_t model_fill_constant(nn_model_t *model, const param_t *param, float value) {
  for (int64_t run = 0; run < param->runs; run++)
    STATUS_TRY(model_fill_run(model, param->offset + run * param->run_stride,
                              param->elements / param->runs, value));
  return NN_OK;
}

/* Normal with a standard deviation above 0; stream: of the random numbers. */
static nn_status_t model_fill_normal(nn_model_t *model, const param_t *param, float std,
                                     uint64_t seed, uint64_t stream) {
  nn_device_t *device = model->device;
  size_t element = nn_dtype_bytes(model->dtype);
  op_fill_normal_t op = {.dtype = model->dtype, .count = param->elements / param->runs, .std = std};
  op.seed = seed;
  for (int64_t run = 0; run < param->runs; run++) {
    op.out = (char *)model->buffer->data +
             (size_t)(param->offset + run * param->run_stride) * element;
    op.stream = stream + (uint64_t)run;
    STATUS_TRY(device->backend->fill_normal(device->place, &op, (backend_scratch_t){0}));
  }
  return NN_OK;
}

nn_status_t model_initialise(nn_model_t *model, uint64_t seed) {
  nn_device_t *device = model->device;
  nn_status_t status = NN_OK;
  uint64_t stream = 0;
  device_lock(device);
  for (int64_t i = 0; status == NN_OK && i < model->params.count; i++) {
    const param_t *param = &model->params.items[i];
    float constant, std = model_initial(&model->config, param, &constant);
    if (std == 0)
      status = model_fill_constant(model, param, constant);
    else
      status = model_fill_normal(model, param, std, seed, stream);
    stream += (uint64_t)param->runs;
  }
  device_leave(device);
  return status;
}

nn_status_t model_tensor(const nn_model_t *model, storage_t *buffer, int32_t dtype,
                         const char *name, nn_tensor_t **tensor) {
  const param_t *param = param_find(&model->params, name);
  if (!param) return status_fail(NN_ERR_NOT_FOUND, "the model has no parameter \"%s\"", name);
  return tensor_view(buffer, (char *)buffer->data + (size_t)param->offset * nn_dtype_bytes(dtype),
                     dtype, param->ndim, param->shape, param->stride, tensor);
}

nn_status_t model_expert_stats(const nn_model_t *model, const int64_t *stat_count,
                               const double *stat_prob, int64_t layer, int64_t *counts,
                               double *mean_prob, nn_expert_stats_t *stats) {
  int64_t experts = model->config.experts;
  nn_device_t *device = model->device;
  if (!experts) return status_fail(NN_ERR_UNSUPPORTED, "a dense model has no experts");
  if (layer < 0 || layer >= model->config.layers)
    return status_fail(NN_ERR_ARGUMENT, "layer %lld; the model has %lld", (long long)layer,
                       (long long)model->config.layers);
  void *got = NULL;
  STATUS_TRY(mem_alloc((size_t)(2 * experts + 1), sizeof(int64_t), &got));
  int64_t *count = got;
  double *prob = (double *)(count + experts + 1);
  _Static_assert(sizeof(double) == sizeof(int64_t), "one array holds both");
  device_lock(device);
  nn_status_t status =
      device->backend->copy_out(device->place, count, stat_count + layer * (experts + 1),
                                (size_t)(experts + 1) * sizeof *count);
  if (status == NN_OK)
    status = device->backend->copy_out(device->place, prob, stat_prob + layer * experts,
                                       (size_t)experts * sizeof *prob);
  device_leave(device);
  if (status == NN_OK) {
    int64_t slots = 0, most = 0;
    for (int64_t e = 0; e < experts; e++) {
      slots += count[e];
      if (count[e] > most) most = count[e];
    }
    int64_t tokens = slots / model->config.top_k;
    nn_expert_stats_t found = {.tokens = tokens, .dropped = count[experts]};
    for (int64_t e = 0; e < experts; e++) {
      double share = slots ? (double)count[e] / (double)slots : 0;
      if (share > 0 && experts > 1) found.entropy -= share * log(share) / log((double)experts);
      if (counts) counts[e] = count[e];
      if (mean_prob) mean_prob[e] = tokens ? prob[e] / (double)tokens : 0;
    }
    if (experts == 1) found.entropy = slots > 0;
    if (slots) found.max_load = (double)most * (double)experts / (double)slots;
    status_write_result(stats, &found, sizeof found);
  }
  mem_free(count);
  return status;
}
