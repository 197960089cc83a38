/* Configurations as structs: any is refused, or is valid as it was completed, and its plans are the
 * sums of their parts. A small model takes exactly the bytes of its plan, is trained and serves,
 * whatever becomes of its numbers. The input is a job_t and what follows struct_size in
 * nn_model_config_t, as far as it goes. */
#include <stdlib.h>
#include <string.h>

#include "moenn.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct job {
  nn_train_options_t train;
  nn_session_options_t serve;
  int64_t dtype;
} job_t;

/* What is small: bytes of a plan, 3 MB of them scratch of products; tokens of a batch; layers. */
enum { BYTES = 1 << 22, TOKENS = 64, LAYERS = 4 };

static void demand(int holds) {
  if (!holds) abort();
}

static int64_t held(nn_device_t *device) {
  nn_memory_t memory = {.struct_size = sizeof memory};
  demand(nn_device_memory(device, &memory) == NN_OK);
  return memory.current_bytes;
}

/* False: there is no plan. */
static int planned(nn_status_t status, const nn_plan_t *plan) {
  if (status != NN_OK) {
    demand(nn_last_error()[0]);
    return 0;
  }
  int64_t sum = 0, parts[] = {plan->parameter_bytes, plan->master_bytes,     plan->gradient_bytes,
                              plan->optimizer_bytes, plan->activation_bytes, plan->workspace_bytes,
                              plan->cache_bytes};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    demand(parts[i] >= 0 && parts[i] <= INT64_MAX - sum);
    sum += parts[i];
  }
  demand(sum == plan->total_bytes);
  demand(plan->active_parameters > 0 && plan->active_parameters <= plan->parameters);
  return 1;
}

static void train(nn_device_t *device, const nn_model_config_t *config, const job_t *job) {
  nn_plan_t plan = {.struct_size = sizeof plan};
  nn_model_t *model;
  nn_optim_t *optim;
  if (!planned(nn_plan_training(device, config, (int32_t)job->dtype, &job->train, &plan), &plan) ||
      plan.total_bytes > BYTES || config->layers > LAYERS)
    return;
  demand(nn_model_create(device, config, (int32_t)job->dtype, 1, &model) == NN_OK);
  demand(nn_model_prepare(model, &job->train) == NN_OK);
  demand(nn_optim_create(model, NULL, &optim) == NN_OK);
  demand(held(device) == plan.total_bytes);
  int64_t batch = job->train.batch ? job->train.batch : 1;
  int64_t seq_len = job->train.seq_len ? job->train.seq_len : config->context;
  if (batch * seq_len <= TOKENS) {
    int32_t ids[TOKENS] = {0, (int32_t)config->vocab_size - 1};
    nn_loss_t loss = {.struct_size = sizeof loss};
    nn_model_backward(model, ids, ids, batch, seq_len, 1, &loss);
    nn_optim_step(optim, 1e-3f, NULL);
    nn_model_evaluate(model, ids, ids, batch, seq_len, &loss);
  }
  nn_optim_destroy(optim);
  nn_model_destroy(model);
}

static void serve(nn_device_t *device, const nn_model_config_t *config, const job_t *job) {
  nn_plan_t plan = {.struct_size = sizeof plan};
  nn_model_t *model;
  nn_session_t *session;
  if (!planned(nn_plan_inference(device, config, (int32_t)job->dtype, &job->serve, &plan), &plan) ||
      plan.total_bytes > BYTES || config->layers > LAYERS)
    return;
  demand(nn_model_create(device, config, (int32_t)job->dtype, 1, &model) == NN_OK);
  demand(nn_session_create(model, &job->serve, &session) == NN_OK);
  demand(held(device) == plan.total_bytes);
  int32_t prompt[] = {0, (int32_t)config->vocab_size - 1}, made[4] = {0};
  int64_t count;
  const nn_sample_options_t sampling = {.struct_size = sizeof sampling, .temperature = 1};
  nn_generate_options_t options = {.struct_size = sizeof options, .sampling = &sampling};
  if (nn_session_generate(session, 0, prompt, 2, &options, made, 4, &count, NULL) == NN_OK)
    for (int64_t i = 0; i < count; i++) demand(made[i] >= 0 && made[i] < config->vocab_size);
  nn_session_destroy(session);
  nn_model_destroy(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static nn_device_t *device;
  const nn_device_options_t alone = {.struct_size = sizeof alone, .threads = 1};
  if (!device) demand(nn_device_create("cpu", &alone, &device) == NN_OK);
  job_t job;
  nn_model_config_t config = {0}, again;
  if (size < sizeof job) return 0;
  memcpy(&job, data, sizeof job);
  job.train.struct_size = sizeof job.train;
  job.serve.struct_size = sizeof job.serve;
  size -= sizeof job;
  size_t room = sizeof config - sizeof config.struct_size;
  memcpy((char *)&config + sizeof config.struct_size, data + sizeof job, size < room ? size : room);
  config.struct_size = sizeof config;
  if (nn_config_validate(&config) != NN_OK) {
    demand(nn_last_error()[0]);
    return 0;
  }
  memcpy(&again, &config, sizeof again);
  demand(nn_config_validate(&again) == NN_OK && memcmp(&again, &config, sizeof config) == 0);
  train(device, &config, &job);
  serve(device, &config, &job);
  demand(held(device) == 0);
  return 0;
}
