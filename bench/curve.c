/* GPT-2 124M trained from one llm.c checkpoint by the CPU and by a GPU, over the same batches: how
 * far their losses are from each other, and the time of a step. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/random.h"
#include "bench.h"

enum { STEPS = 10, BATCH = 4, SEQ = 1024, TOKENS = BATCH * SEQ };

typedef struct curve {
  double loss[STEPS], seconds[STEPS];
} curve_t;

/* Token t about as often as 1 / (t + 1), as words are; each second one follows from the first. */
static void curve_tokens(int32_t *tokens, int64_t count, int64_t vocab) {
  for (int64_t i = 0; i < count; i++) {
    double u = random_uniform(1, 0, (uint64_t)i);
    tokens[i] = i % 2 ? (int32_t)((tokens[i - 1] * 7919LL + 104729) % vocab)
                      : (int32_t)pow((double)vocab, u) - 1;
  }
}

/* A model with random weights, as a checkpoint of llm.c's. */
static void curve_checkpoint(nn_device_t *device, const nn_model_config_t *config,
                             const char *path) {
  nn_model_t *model;
  TRY(nn_model_create(device, config, NN_F32, 1, &model));
  TRY(nn_model_save_llmc(model, path, NULL));
  nn_model_destroy(model);
}

/* A batch for each step: a row's targets are its tokens, one further on. */
static void curve_train(nn_device_t *device, const char *path, const int32_t *tokens,
                        curve_t *curve) {
  nn_model_t *model;
  nn_optim_t *optim;
  nn_train_options_t shape = {.struct_size = sizeof shape, .batch = BATCH, .seq_len = SEQ};
  nn_optim_options_t adam = {.struct_size = sizeof adam, .weight_decay = 0.1f, .grad_clip = 1};
  nn_loss_t loss = {.struct_size = sizeof loss};
  TRY(nn_model_load_llmc(device, path, NN_F32, NULL, &model));
  TRY(nn_model_prepare(model, &shape));
  TRY(nn_optim_create(model, &adam, &optim));
  for (int step = 0; step < STEPS; step++, tokens += TOKENS) {
    double begin = bench_now();
    TRY(nn_model_zero_grad(model));
    TRY(nn_model_backward(model, tokens, tokens + 1, BATCH, SEQ, 1, &loss));
    TRY(nn_optim_step(optim, 3e-4f, NULL));
    curve->seconds[step] = bench_now() - begin;
    curve->loss[step] = loss.loss;
  }
  nn_optim_destroy(optim);
  nn_model_destroy(model);
}

static void curve_line(const char *where, curve_t *curve, const char *losses) {
  char name[96], note[128];
  double fastest, median = bench_median(curve->seconds, STEPS, &fastest);
  snprintf(name, sizeof name, "train gpt2-124m, batch 4, seq 1024, %s", where);
  snprintf(note, sizeof note, "%.0f tokens/s; %s", TOKENS / median, losses);
  report_line("curve", name, median, fastest, STEPS, (bench_work_t){UNIT_NONE, 0, 0}, note);
}

/* The largest difference of a step's losses. */
static double curve_apart(const curve_t *a, const curve_t *b) {
  double most = 0;
  for (int step = 0; step < STEPS; step++) most = fmax(most, fabs(a->loss[step] - b->loss[step]));
  return most;
}

void bench_curve(const bench_options_t *options) {
  if (!report_asked("curve")) return;
  nn_model_config_t config = {.struct_size = sizeof config};
  TRY(nn_config_preset("gpt2-124m", &config));
  int32_t *tokens = bench_alloc((STEPS * TOKENS + 1) * sizeof *tokens);
  curve_tokens(tokens, STEPS * TOKENS + 1, config.vocab_size);
  char folder[TEMP_PATH], path[TEMP_PATH + 16], note[96];
  temp_make(folder);
  snprintf(path, sizeof path, "%s/gpt2_124M.bin", folder);

  curve_t cpu, gpu;
  nn_device_t *device = bench_open_cpu(options);
  curve_checkpoint(device, &config, path);
  curve_train(device, path, tokens, &cpu);
  nn_device_destroy(device);
  pin_self(false);
  snprintf(note, sizeof note, "%d losses from %.5f to %.5f", STEPS, cpu.loss[0],
           cpu.loss[STEPS - 1]);
  curve_line("CPU", &cpu, note);
  for (int tf32 = 0; tf32 < 2; tf32++) {
    device = bench_open_gpu(options, tf32);
    curve_train(device, path, tokens, &gpu);
    nn_device_destroy(device);
    snprintf(note, sizeof note, "losses at most %.1e from the CPU's", curve_apart(&gpu, &cpu));
    curve_line(tf32 ? "GPU, TF32" : "GPU, fp32", &gpu, note);
  }
  temp_remove(folder);
  mem_free(tokens);
}
