/* Training steps of whole models against their floor: flops at the measured peak plus the
 * optimizer's bytes at the measured bandwidth. The largest runs on a GPU alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "bench.h"

typedef struct step {
  nn_model_t *model;
  nn_optim_t *optim;
  int64_t batch, seq_len;
  int32_t *tokens, *targets;
} step_t;

static void step_run(void *context) {
  step_t *step = context;
  nn_loss_t loss = {.struct_size = sizeof loss};
  TRY(nn_model_zero_grad(step->model));
  TRY(nn_model_backward(step->model, step->tokens, step->targets, step->batch, step->seq_len, 1,
                        &loss));
  TRY(nn_optim_step(step->optim, 1e-4f, NULL));
}

/* Multiply-adds of a step count 2 flops forward, 4 backward; attention is causal. */
static double step_flops(const nn_model_config_t *config, int64_t active, double batch,
                         double seq) {
  double attention = 6.0 * (double)(config->layers * config->heads * config->head_dim) * seq;
  return batch * seq * (6.0 * (double)active + attention);
}

static void step_scenario(nn_device_t *device, const bench_options_t *options,
                          const bench_ceilings_t *peak, const char *group, const char *name,
                          const nn_model_config_t *config, int64_t batch, int64_t seq_len,
                          int32_t dtype, int32_t recompute) {
  if (!report_wanted(group, name)) return;
  nn_train_options_t shape = {.struct_size = sizeof shape, .batch = batch, .seq_len = seq_len};
  shape.recompute = recompute;
  nn_plan_t plan = {.struct_size = sizeof plan};
  TRY(nn_plan_training(device, config, dtype, &shape, &plan));
  step_t step = {.batch = batch, .seq_len = seq_len};
  TRY(nn_model_create(device, config, dtype, 1, &step.model));
  TRY(nn_model_prepare(step.model, &shape));
  nn_optim_options_t adam = {.struct_size = sizeof adam, .weight_decay = 0.1f, .grad_clip = 1};
  TRY(nn_optim_create(step.model, &adam, &step.optim));
  int64_t n = batch * seq_len;
  step.tokens = bench_alloc((size_t)n * sizeof(int32_t));
  step.targets = bench_alloc((size_t)n * sizeof(int32_t));
  for (int64_t i = 0; i < n; i++) {
    step.tokens[i] = (int32_t)(i * 7919 % config->vocab_size);
    step.targets[i] = (int32_t)(i * 104729 % config->vocab_size);
  }
  double fastest;
  int64_t runs;
  double median = bench_time(step_run, &step, options->seconds, &fastest, &runs);
  double flops = step_flops(config, plan.active_parameters, (double)batch, (double)seq_len);
  double rate = ceilings_products(peak, dtype);
  double floor = flops / rate + 28.0 * (double)plan.parameters / peak->copy_bytes;
  nn_memory_t memory = {.struct_size = sizeof memory};
  TRY(nn_device_memory(device, &memory));
  char note[128];
  snprintf(note, sizeof note, "%.2f x floor, %.0f tokens/s; %.1f GB planned, %.1f held",
           median / floor, (double)n / median, 1e-9 * (double)plan.total_bytes,
           1e-9 * (double)memory.current_bytes);
  report_line(group, name, median, fastest, runs, (bench_work_t){UNIT_FLOP, flops, rate}, note);
  nn_optim_destroy(step.optim);
  nn_model_destroy(step.model);
  mem_free(step.tokens), mem_free(step.targets);
}

void bench_training(nn_device_t *device, const bench_options_t *options,
                    const bench_ceilings_t *peak) {
  nn_model_config_t config = {.struct_size = sizeof config};
  bool gpu = strcmp(options->device, "cpu") != 0;
  TRY(nn_config_preset("gpt2-124m", &config));
  step_scenario(device, options, peak, "gpt2", "train gpt2-124m, batch 4, seq 64", &config, 4, 64,
                NN_F32, NN_RECOMPUTE_NONE);
  step_scenario(device, options, peak, "gpt2", "train gpt2-124m, batch 1, seq 1024", &config, 1,
                1024, NN_F32, NN_RECOMPUTE_NONE);
  if (gpu)
    step_scenario(device, options, peak, "gpt2", "train gpt2-124m, batch 4, seq 1024", &config, 4,
                  1024, NN_F32, NN_RECOMPUTE_NONE);
  step_scenario(device, options, peak, "gpt2", "train gpt2-124m bf16, batch 4, seq 64", &config, 4,
                64, NN_BF16, NN_RECOMPUTE_NONE);
  TRY(nn_config_preset("small", &config));
  step_scenario(device, options, peak, "moe", "train small, batch 16, seq 256", &config, 16, 256,
                NN_F32, NN_RECOMPUTE_NONE);
  TRY(nn_config_preset("moe-6.9b", &config));
  if (gpu)
    step_scenario(device, options, peak, "moe", "train moe-6.9b bf16, batch 4, seq 4096", &config,
                  4, 4096, NN_BF16, NN_RECOMPUTE_FFN);
  config.layers = 4;
  if (gpu) {
    step_scenario(device, options, peak, "moe", "train 4 layers of moe-6.9b bf16, 16384 tokens",
                  &config, 4, 4096, NN_BF16, NN_RECOMPUTE_FFN);
    step_scenario(device, options, peak, "moe", "train 4 layers of moe-6.9b fp16, 16384 tokens",
                  &config, 4, 4096, NN_F16, NN_RECOMPUTE_FFN);
  }
  step_scenario(device, options, peak, "moe", "train 4 layers of moe-6.9b, 1024 tokens", &config, 1,
                1024, NN_F32, NN_RECOMPUTE_NONE);
}
