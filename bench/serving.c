/* moe-6.9b in bf16 with random weights: decode against bandwidth, prefill against the product rate,
 * and opening a saved model. */
#define _XOPEN_SOURCE 700
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"

enum { PROMPT = 256, MANY = 32 };

typedef struct serving {
  nn_device_t *device;
  nn_session_t *session;
  int32_t tokens[MANY], prompt[PROMPT];
  int64_t batch;
  int64_t length, vocab;
  const char *folder;
} serving_t;

/* One token more for each sequence, and the choice of the next for the first. */
static void serving_decode(void *context) {
  serving_t *job = context;
  int32_t chosen;
  for (int64_t s = 0; s < job->batch; s++) {
    job->tokens[s] = (int32_t)((job->tokens[s] * 1103515245LL + 12345) % job->vocab);
    TRY(nn_session_truncate(job->session, s, job->length));
  }
  TRY(nn_session_decode(job->session, job->tokens, NULL));
  TRY(nn_session_sample(job->session, 0, NULL, &chosen));
}

/* From the prompt to the choice of the token behind it, which waits for all before. */
static void serving_prefill(void *context) {
  serving_t *job = context;
  int32_t chosen;
  TRY(nn_session_truncate(job->session, 0, 0));
  TRY(nn_session_prefill(job->session, 0, job->prompt, PROMPT, NULL));
  TRY(nn_session_sample(job->session, 0, NULL, &chosen));
}

static void serving_load(void *context) {
  serving_t *job = context;
  nn_model_t *model;
  TRY(nn_model_load(job->device, job->folder, NN_BF16, NULL, &model));
  nn_model_destroy(model);
}

/* Scenario names of the groups decode, prefill and load. */
static void serving_names(int64_t layers, char names[4][96]) {
  const char *what[] = {"1 sequence", "256 tokens", "cached", "32 sequences"};
  for (int i = 0; i < 4; i++)
    snprintf(names[i], sizeof names[i], "moe-6.9b bf16, %lld layers, %s", (long long)layers, what[i]);
}

static void serving_tokens(serving_t *job, const bench_options_t *options,
                           const bench_ceilings_t *peak, const nn_plan_t *plan,
                           const nn_model_config_t *config) {
  char names[4][96], note[64];
  double fastest;
  int64_t runs;
  serving_names(config->layers, names);
  serving_prefill(job);
  job->length = PROMPT;
  if (report_wanted("decode", names[0])) {
    double cache = 8.0 * (double)(config->layers * config->kv_heads * config->head_dim) * PROMPT;
    double bytes = 2.0 * (double)plan->active_parameters + cache;
    double median = bench_time(serving_decode, job, options->seconds, &fastest, &runs);
    snprintf(note, sizeof note, "%.2f tokens/s", 1 / median);
    report_line("decode", names[0], median, fastest, runs,
                (bench_work_t){UNIT_BYTE, bytes, peak->read_bytes}, note);
  }
  if (report_wanted("prefill", names[1])) {
    /* The head multiplies the last token alone. */
    double head = (double)(config->vocab_size * config->hidden);
    double flops = 2.0 * PROMPT * ((double)plan->active_parameters - head) + 2.0 * head;
    flops += 2.0 * (double)(config->layers * config->heads * config->head_dim) * PROMPT * PROMPT;
    double median = bench_time(serving_prefill, job, options->seconds, &fastest, &runs);
    snprintf(note, sizeof note, "%.1f tokens/s", PROMPT / median);
    double ceiling = peak->bf16_flops > 0 ? peak->bf16_flops : peak->fp32_flops;
    report_line("prefill", names[1], median, fastest, runs, (bench_work_t){UNIT_FLOP, flops, ceiling},
                note);
  }
}

/* Decoding of many sequences together: every expert's weights are read for most tokens. */
static void serving_many(serving_t *job, nn_model_t *model, const bench_options_t *options,
                         const bench_ceilings_t *peak, const nn_plan_t *plan, int64_t layers) {
  char names[4][96], note[64];
  serving_names(layers, names);
  if (!report_wanted("decode", names[3])) return;
  nn_session_options_t shape = {.struct_size = sizeof shape, .max_len = 2 * PROMPT, .batch = MANY};
  TRY(nn_session_create(model, &shape, &job->session));
  for (int64_t s = 0; s < MANY; s++) {
    TRY(nn_session_prefill(job->session, s, job->prompt, PROMPT, NULL));
    job->tokens[s] = (int32_t)(1 + 97 * s);
  }
  job->batch = MANY;
  double fastest;
  int64_t runs;
  double median = bench_time(serving_decode, job, options->seconds, &fastest, &runs);
  snprintf(note, sizeof note, "%.1f tokens/s", MANY / median);
  report_line("decode", names[3], median, fastest, runs,
              (bench_work_t){UNIT_BYTE, (double)plan->parameter_bytes, peak->read_bytes}, note);
  nn_session_destroy(job->session);
}

static int serving_remove(const char *path, const struct stat *status, int type, struct FTW *place) {
  (void)status, (void)type, (void)place;
  return remove(path);
}

/* Saves the model into a folder below TMPDIR, lets go of it, for two would be too large together, and
 * times opening it, from the page cache as far as that holds it. */
static void serving_opening(serving_t *job, nn_model_t **model, const nn_plan_t *plan,
                            int64_t layers) {
  char names[4][96], folder[512];
  serving_names(layers, names);
  if (!report_wanted("load", names[2])) return;
  const char *parent = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/moenn-bench-XXXXXX", parent ? parent : "/tmp");
  if (!mkdtemp(folder)) {
    perror("moenn-bench: no temporary folder");
    return;
  }
  TRY(nn_model_save(*model, folder, NULL));
  nn_model_destroy(*model);
  *model = NULL;
  job->folder = folder;
  pin_self(false); /* files are read by threads that inherit this one's CPUs */
  report_run("load", names[2], serving_load, job,
             (bench_work_t){UNIT_BYTE, (double)plan->parameter_bytes, 0});
  if (nftw(folder, serving_remove, 16, FTW_DEPTH | FTW_PHYS))
    fprintf(stderr, "moenn-bench: %s was not removed\n", folder);
}

void bench_serving(nn_device_t *device, const bench_options_t *options,
                   const bench_ceilings_t *peak) {
  nn_model_config_t config = {.struct_size = sizeof config};
  TRY(nn_config_preset("moe-6.9b", &config));
  if (options->layers) config.layers = options->layers;
  char names[4][96];
  serving_names(config.layers, names);
  if (!report_wanted("decode", names[0]) && !report_wanted("prefill", names[1]) &&
      !report_wanted("load", names[2]) && !report_wanted("decode", names[3]))
    return;
  nn_session_options_t shape = {.struct_size = sizeof shape, .max_len = 2 * PROMPT};
  nn_plan_t plan = {.struct_size = sizeof plan};
  TRY(nn_plan_inference(device, &config, NN_BF16, &shape, &plan));
  serving_t job = {.device = device, .vocab = config.vocab_size, .tokens = {1}, .batch = 1};
  for (int i = 0; i < PROMPT; i++) job.prompt[i] = (int32_t)(i * 7919 % config.vocab_size);
  nn_model_t *model;
  TRY(nn_model_create(device, &config, NN_BF16, 1, &model));
  TRY(nn_session_create(model, &shape, &job.session));
  serving_tokens(&job, options, peak, &plan, &config);
  nn_session_destroy(job.session);
  serving_many(&job, model, options, peak, &plan, config.layers);
  serving_opening(&job, &model, &plan, config.layers);
  nn_model_destroy(model);
}
