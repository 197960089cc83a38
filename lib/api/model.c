/* Exported functions of nn_model_t that do not train, and the byte plans. */
#include "model/model.h"

#include "api/config.h"
#include "base/mem.h"
#include "format/folder.h"
#include "format/llmc.h"
#include "infer/session.h"
#include "model/plan.h"
#include "model/training.h"
#include "train/optim.h"

nn_status_t nn_plan_training(nn_device_t *device, const nn_model_config_t *config, int32_t dtype,
                             const nn_train_options_t *options, nn_plan_t *plan) {
  STATUS_REQUIRE(device);
  STATUS_TRY(status_check_result(plan, sizeof *plan, "nn_plan_t"));
  nn_model_config_t valid;
  STATUS_TRY(api_config_read(config, "nn_model_config_t", &valid));
  nn_train_options_t asked, checked;
  STATUS_TRY(
      status_read_options(&asked, sizeof asked, sizeof asked, options, "nn_train_options_t"));
  STATUS_TRY(training_check(&valid, dtype, &asked, &checked));
  nn_plan_t found = {0};
  STATUS_TRY(plan_model(&valid, dtype, &found));
  training_bytes_t bytes;
  STATUS_TRY(training_count(device, &valid, dtype, found.parameters, &checked, &bytes));
  found.gradient_bytes = (int64_t)bytes.gradients;
  found.optimizer_bytes = (int64_t)optim_bytes(found.parameters);
  found.master_bytes = (int64_t)optim_master_bytes(found.parameters, dtype);
  found.activation_bytes = (int64_t)bytes.activations;
  found.workspace_bytes = (int64_t)bytes.workspace;
  STATUS_TRY(plan_total(&found));
  status_write_result(plan, &found, sizeof found);
  return NN_OK;
}

nn_status_t nn_plan_inference(nn_device_t *device, const nn_model_config_t *config, int32_t dtype,
                              const nn_session_options_t *options, nn_plan_t *plan) {
  STATUS_REQUIRE(device);
  STATUS_TRY(status_check_result(plan, sizeof *plan, "nn_plan_t"));
  nn_model_config_t valid;
  STATUS_TRY(api_config_read(config, "nn_model_config_t", &valid));
  nn_session_options_t asked, checked;
  STATUS_TRY(
      status_read_options(&asked, sizeof asked, sizeof asked, options, "nn_session_options_t"));
  STATUS_TRY(session_check(&valid, &asked, &checked));
  nn_plan_t found = {0};
  STATUS_TRY(plan_model(&valid, dtype, &found));
  session_bytes_t bytes;
  STATUS_TRY(session_count(device, &valid, dtype, &checked, &bytes));
  found.cache_bytes = (int64_t)bytes.cache;
  found.activation_bytes = (int64_t)bytes.activations;
  found.workspace_bytes = (int64_t)bytes.workspace;
  STATUS_TRY(plan_total(&found));
  status_write_result(plan, &found, sizeof found);
  return NN_OK;
}

/* Gives the caller the model that was made, or releases it where that failed; made may be NULL
 * then. */
static nn_status_t model_hand_over(nn_model_t *made, nn_status_t status, nn_model_t **model) {
  if (status == NN_OK) *model = made;
  else if (made) model_release(made);
  return status;
}

nn_status_t nn_model_create(nn_device_t *device, const nn_model_config_t *config, int32_t dtype,
                            uint64_t seed, nn_model_t **model) {
  STATUS_REQUIRE(device);
  STATUS_REQUIRE(model);
  nn_model_config_t valid;
  STATUS_TRY(api_config_read(config, "nn_model_config_t", &valid));
  STATUS_TRY(model_check_dtype(dtype));
  nn_model_t *made;
  STATUS_TRY(model_allocate(device, &valid, dtype, NULL, &made));
  return model_hand_over(made, model_initialise(made, seed), model);
}

/* What a load of either layout checks before it opens a file. */
static nn_status_t model_begin_load(nn_device_t *device, int32_t dtype,
                                    const nn_file_options_t *options, nn_file_options_t *asked) {
  if (dtype != NN_DTYPE_FILE) STATUS_TRY(model_check_dtype(dtype));
  STATUS_TRY(
      status_read_options(asked, sizeof *asked, sizeof *asked, options, "nn_file_options_t"));
  return device_poll(device);
}

nn_status_t nn_model_load(nn_device_t *device, const char *path, int32_t dtype,
                          const nn_file_options_t *options, nn_model_t **model) {
  STATUS_REQUIRE(device);
  STATUS_REQUIRE(path);
  STATUS_REQUIRE(model);
  nn_file_options_t asked;
  STATUS_TRY(model_begin_load(device, dtype, options, &asked));
  folder_t folder;
  STATUS_TRY(folder_open(path, &folder));
  if (dtype == NN_DTYPE_FILE) dtype = folder.dtype;
  nn_model_t *made = NULL;
  storage_t *mapped = NULL;
  nn_status_t status = folder_map(&folder, device, dtype, &mapped);
  if (status == NN_OK) status = model_allocate(device, &folder.config, dtype, mapped, &made);
  if (status == NN_OK)
    status = folder_read(&folder, dtype, mapped ? NULL : made->buffer->data, asked.progress,
                         asked.progress_user, &device->cancel, device);
  if (status == NN_OK) status = file_absolute(path, &made->source);
  storage_release(mapped);
  folder_close(&folder);
  return model_hand_over(made, status, model);
}

nn_status_t nn_model_save(const nn_model_t *model, const char *folder,
                          const nn_file_options_t *options) {
  STATUS_REQUIRE(model);
  STATUS_REQUIRE(folder);
  nn_file_options_t asked;
  STATUS_TRY(status_read_options(&asked, sizeof asked, sizeof asked, options, "nn_file_options_t"));
  if (asked.shard_bytes < 0)
    return status_fail(NN_ERR_ARGUMENT, "nn_file_options_t: shard_bytes is %lld; it is at least 0",
                       (long long)asked.shard_bytes);
  STATUS_TRY(device_poll(model->device));
  return folder_save(folder, &model->config, &model->params, model->dtype, model->buffer->data,
                     asked.shard_bytes, asked.progress, asked.progress_user,
                     &model->device->cancel, model->device, model->source);
}

nn_status_t nn_model_load_llmc(nn_device_t *device, const char *path, int32_t dtype,
                               const nn_file_options_t *options, nn_model_t **model) {
  STATUS_REQUIRE(device);
  STATUS_REQUIRE(path);
  STATUS_REQUIRE(model);
  nn_file_options_t asked;
  STATUS_TRY(model_begin_load(device, dtype, options, &asked));
  llmc_t file;
  STATUS_TRY(llmc_open(path, &file));
  if (dtype == NN_DTYPE_FILE) dtype = file.dtype;
  nn_model_t *made = NULL;
  nn_status_t status = model_allocate(device, &file.config, dtype, NULL, &made);
  if (status == NN_OK)
    status = llmc_read(&file, &made->params, dtype, made->buffer->data, asked.progress,
                       asked.progress_user, &device->cancel, device);
  llmc_close(&file);
  return model_hand_over(made, status, model);
}

nn_status_t nn_model_save_llmc(const nn_model_t *model, const char *path,
                               const nn_file_options_t *options) {
  STATUS_REQUIRE(model);
  STATUS_REQUIRE(path);
  nn_file_options_t asked;
  STATUS_TRY(status_read_options(&asked, sizeof asked, sizeof asked, options, "nn_file_options_t"));
  if (asked.shard_bytes)
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_file_options_t: shard_bytes is %lld; an llm.c checkpoint is one file, "
                       "so it must be 0",
                       (long long)asked.shard_bytes);
  STATUS_TRY(device_poll(model->device));
  return llmc_save(path, &model->config, &model->params, model->dtype, model->buffer->data,
                   asked.progress, asked.progress_user, &model->device->cancel, model->device);
}

void nn_model_destroy(nn_model_t *model) {
  if (model) model_release(model);
}

nn_status_t nn_model_config(const nn_model_t *model, nn_model_config_t *config) {
  STATUS_REQUIRE(model);
  STATUS_TRY(api_config_check(config, "nn_model_config_t"));
  return api_config_write(config, &model->config);
}

int64_t nn_model_parameter_count(const nn_model_t *model) {
  return model ? model->params.count : 0;
}

const char *nn_model_parameter_name(const nn_model_t *model, int64_t index) {
  if (!model || index < 0 || index >= model->params.count) return NULL;
  return model->params.items[index].name;
}

nn_status_t nn_model_parameter(const nn_model_t *model, const char *name, nn_tensor_t **tensor) {
  STATUS_REQUIRE(model);
  STATUS_REQUIRE(name);
  STATUS_REQUIRE(tensor);
  return model_tensor(model, model->buffer, model->dtype, name, tensor);
}
