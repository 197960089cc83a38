/* moe-6.9b in bf16 with random weights: decode against bandwidth, prefill against the product rate,
 * both at the context that its RoPE is stretched to as well. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "bench.h"

enum { PROMPT = 256, MANY = 32, LEAST_PAIRS = 5, MOST_PAIRS = 200 };

typedef struct serving {
  nn_session_t *session;
  int32_t tokens[MANY], *prompt;
  int64_t batch;
  int64_t length, vocab; /* of the prompt; of the model */
  int32_t threads;       /* of a CPU; 0: a GPU */
} serving_t;

static int32_t serving_threads(nn_device_t *device, const bench_options_t *options) {
  nn_device_info_t info = {.struct_size = sizeof info};
  TRY(nn_device_info(device, &info));
  return strcmp(options->device, "cpu") == 0 ? info.threads : 0;
}

static int32_t *serving_prompt(int64_t count, int64_t vocab) {
  int32_t *prompt = bench_alloc((size_t)count * sizeof *prompt);
  for (int64_t i = 0; i < count; i++) prompt[i] = (int32_t)(i * 7919 % vocab);
  return prompt;
}

/* One token more for each sequence, and the choice of the next, one after the other. */
static void serving_decode(void *context) {
  serving_t *job = context;
  int32_t chosen;
  for (int64_t s = 0; s < job->batch; s++) {
    job->tokens[s] = (int32_t)((job->tokens[s] * 1103515245LL + 12345) % job->vocab);
    TRY(nn_session_truncate(job->session, s, job->length));
  }
  TRY(nn_session_decode(job->session, job->tokens, NULL));
  for (int64_t s = 0; s < job->batch; s++)
    TRY(nn_session_sample(job->session, s, NULL, &chosen));
}

/* From the prompt to the choice of the token behind it, which waits for all before. */
static void serving_prefill(void *context) {
  serving_t *job = context;
  int32_t chosen;
  TRY(nn_session_truncate(job->session, 0, 0));
  TRY(nn_session_prefill(job->session, 0, job->prompt, job->length, NULL));
  TRY(nn_session_sample(job->session, 0, NULL, &chosen));
}

/* Scenario names of the groups decode and prefill. */
static void serving_names(int64_t layers, char names[3][96]) {
  const char *what[] = {"1 sequence", "256 tokens", "32 sequences"};
  for (int i = 0; i < 3; i++)
    snprintf(names[i], sizeof names[i], "moe-6.9b bf16, %lld layers, %s", (long long)layers,
             what[i]);
}

/* A CPU's memory gives more or less from minute to minute: what it gives is measured before each
 * run, by a median as the time is. Returns the median time; the ceiling becomes the one that the
 * median share is of. */
static double serving_pairs(serving_t *job, double bytes, double seconds, double *ceiling,
                            double *fastest, int64_t *runs) {
  double times[MOST_PAIRS], shares[MOST_PAIRS], lowest;
  int64_t count = 0;
  serving_decode(job);
  for (double stop = bench_now() + seconds;
       count < MOST_PAIRS && (count < LEAST_PAIRS || bench_now() < stop); count++) {
    double rate = ceilings_read(job->threads), begin = bench_now();
    serving_decode(job);
    times[count] = bench_now() - begin;
    shares[count] = bytes / times[count] / rate;
  }
  *runs = count;
  double median = bench_median(times, count, fastest);
  *ceiling = bytes / median / bench_median(shares, count, &lowest);
  return median;
}

/* One more token of each sequence, for which so many bytes are read. */
static void serving_line_decode(serving_t *job, const bench_options_t *options,
                                const bench_ceilings_t *peak, double bytes, const char *group,
                                const char *name) {
  char note[64];
  double fastest, ceiling = peak->read_bytes;
  int64_t runs;
  double median =
      job->threads ? serving_pairs(job, bytes, options->seconds, &ceiling, &fastest, &runs)
                   : bench_time(serving_decode, job, options->seconds, &fastest, &runs);
  snprintf(note, sizeof note, "%.2f tokens/s", (double)job->batch / median);
  report_line(group, name, median, fastest, runs, (bench_work_t){UNIT_BYTE, bytes, ceiling}, note);
}

/* Of one sequence, `length` tokens in: the weights of a token and its keys and values. */
static double serving_token_bytes(const nn_plan_t *plan, const nn_model_config_t *config,
                                  int64_t length) {
  return 2.0 * (double)plan->active_parameters +
         4.0 * (double)(config->layers * config->kv_heads * config->head_dim * length);
}

/* Of a prompt of `length` tokens; the head multiplies the last token alone. */
static bench_work_t serving_prefill_work(const bench_ceilings_t *peak, const nn_plan_t *plan,
                                         const nn_model_config_t *config, int64_t length) {
  double head = (double)(config->vocab_size * config->hidden), n = (double)length;
  double flops = 2.0 * n * ((double)plan->active_parameters - head) + 2.0 * head;
  flops += 2.0 * (double)(config->layers * config->heads * config->head_dim) * n * n;
  return (bench_work_t){UNIT_FLOP, flops, ceilings_products(peak, NN_BF16)};
}

static void serving_tokens(serving_t *job, const bench_options_t *options,
                           const bench_ceilings_t *peak, const nn_plan_t *plan,
                           const nn_model_config_t *config) {
  char names[3][96], note[64];
  serving_names(config->layers, names);
  serving_prefill(job);
  if (report_wanted("decode", names[0]))
    serving_line_decode(job, options, peak, serving_token_bytes(plan, config, job->length),
                        "decode", names[0]);
  if (report_wanted("prefill", names[1])) {
    double fastest;
    int64_t runs;
    double median = bench_time(serving_prefill, job, options->seconds, &fastest, &runs);
    snprintf(note, sizeof note, "%.1f tokens/s", PROMPT / median);
    report_line("prefill", names[1], median, fastest, runs,
                serving_prefill_work(peak, plan, config, PROMPT), note);
  }
}

/* Decoding of many sequences together: every expert's weights are read for most tokens. */
static void serving_many(serving_t *job, nn_model_t *model, const bench_options_t *options,
                         const bench_ceilings_t *peak, const nn_plan_t *plan, int64_t layers) {
  char names[3][96];
  serving_names(layers, names);
  if (!report_wanted("decode", names[2])) return;
  nn_session_options_t shape = {.struct_size = sizeof shape, .max_len = 2 * PROMPT, .batch = MANY};
  TRY(nn_session_create(model, &shape, &job->session));
  for (int64_t s = 0; s < MANY; s++) {
    TRY(nn_session_prefill(job->session, s, job->prompt, PROMPT, NULL));
    job->tokens[s] = (int32_t)(1 + 97 * s);
  }
  job->batch = MANY;
  serving_line_decode(job, options, peak, (double)plan->parameter_bytes, "decode", names[2]);
  nn_session_destroy(job->session);
}

void bench_serving(nn_device_t *device, const bench_options_t *options,
                   const bench_ceilings_t *peak) {
  nn_model_config_t config = {.struct_size = sizeof config};
  TRY(nn_config_preset("moe-6.9b", &config));
  if (options->layers) config.layers = options->layers;
  char names[3][96];
  serving_names(config.layers, names);
  if (!report_wanted("decode", names[0]) && !report_wanted("prefill", names[1]) &&
      !report_wanted("decode", names[2]))
    return;
  nn_session_options_t shape = {.struct_size = sizeof shape, .max_len = 2 * PROMPT};
  nn_plan_t plan = {.struct_size = sizeof plan};
  TRY(nn_plan_inference(device, &config, NN_BF16, &shape, &plan));
  serving_t job = {.vocab = config.vocab_size, .tokens = {1}, .batch = 1, .length = PROMPT};
  job.threads = serving_threads(device, options);
  job.prompt = serving_prompt(PROMPT, config.vocab_size);
  nn_model_t *model;
  TRY(nn_model_create(device, &config, NN_BF16, 1, &model));
  TRY(nn_session_create(model, &shape, &job.session));
  serving_tokens(&job, options, peak, &plan, &config);
  nn_session_destroy(job.session);
  serving_many(&job, model, options, peak, &plan, config.layers);
  nn_model_destroy(model);
  mem_free(job.prompt);
}

/* A prompt that all but fills the context that NTK RoPE stretches the model to, once, and decoding
 * behind it. */
void bench_context(nn_device_t *device, const bench_options_t *options,
                   const bench_ceilings_t *peak) {
  if (!report_asked("context")) return;
  nn_model_config_t config = {.struct_size = sizeof config};
  TRY(nn_config_preset("moe-6.9b", &config));
  if (options->layers) config.layers = options->layers;
  nn_session_options_t shape = {.struct_size = sizeof shape, .prefill_chunk = 4096};
  shape.max_len = (int64_t)((double)config.context * (double)config.rope_ntk_alpha);
  nn_plan_t plan = {.struct_size = sizeof plan};
  TRY(nn_plan_inference(device, &config, NN_BF16, &shape, &plan));
  serving_t job = {
      .vocab = config.vocab_size, .tokens = {1}, .batch = 1, .length = shape.max_len - 64};
  job.prompt = serving_prompt(job.length, job.vocab);
  job.threads = serving_threads(device, options);
  nn_model_t *model;
  TRY(nn_model_create(device, &config, NN_BF16, 1, &model));
  TRY(nn_session_create(model, &shape, &job.session));
  nn_memory_t memory = {.struct_size = sizeof memory};
  TRY(nn_device_memory(device, &memory));
  char name[96], note[96];
  double begin = bench_now();
  serving_prefill(&job);
  double seconds = bench_now() - begin;
  snprintf(name, sizeof name, "moe-6.9b bf16, %lld layers, prompt of %lld",
           (long long)config.layers, (long long)job.length);
  snprintf(note, sizeof note, "%.0f tokens/s; %lld bytes planned, %lld held",
           (double)job.length / seconds, (long long)plan.total_bytes,
           (long long)memory.current_bytes);
  report_line("context", name, seconds, seconds, 1,
              serving_prefill_work(peak, &plan, &config, job.length), note);
  snprintf(name, sizeof name, "moe-6.9b bf16, %lld layers, decode behind it",
           (long long)config.layers);
  serving_line_decode(&job, options, peak, serving_token_bytes(&plan, &config, job.length),
                      "context", name);
  nn_session_destroy(job.session);
  nn_model_destroy(model);
  mem_free(job.prompt);
}
