/* The 22 scenarios by which the project's ancestor measured itself: the tiny profile, one thread.
 * As there, steps of training are of 2 x 8 tokens, and a cold forward pass counts the making of its
 * model. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/device.h"
#include "base/mem.h"
#include "bench.h"

/* A model with everything a step needs. */
typedef struct seed_model {
  nn_device_t *device;
  nn_model_config_t config;
  nn_model_t *model;
  nn_optim_t *optim;
  int64_t batch, seq_len, vocab;
  double flops; /* of a forward pass, as step_flops() in training.c counts them */
  int32_t *tokens, *targets;
  float *logits;
} seed_model_t;

static seed_model_t seed_open(int64_t hidden, int64_t batch, int64_t seq_len) {
  seed_model_t made = {.batch = batch, .seq_len = seq_len};
  nn_device_options_t one = {.struct_size = sizeof one, .threads = 1};
  nn_model_config_t config = {.struct_size = sizeof config};
  TRY(nn_device_create("cpu", &one, &made.device));
  TRY(nn_config_preset("tiny", &config));
  config.ffn = config.ffn / config.hidden * hidden;
  config.head_dim = config.head_dim * hidden / config.hidden;
  config.hidden = hidden;
  made.vocab = config.vocab_size;
  made.config = config;
  TRY(nn_model_create(made.device, &config, NN_F32, 1, &made.model));
  nn_train_options_t shape = {.struct_size = sizeof shape, .batch = batch, .seq_len = seq_len};
  TRY(nn_model_prepare(made.model, &shape));
  nn_optim_options_t adam = {.struct_size = sizeof adam, .weight_decay = 0.1f, .grad_clip = 1};
  TRY(nn_optim_create(made.model, &adam, &made.optim));
  int64_t n = batch * seq_len;
  nn_plan_t plan = {.struct_size = sizeof plan};
  TRY(nn_plan_training(made.device, &config, NN_F32, &shape, &plan));
  double attention = 2.0 * (double)(config.layers * config.heads * config.head_dim * seq_len);
  made.flops = (double)n * (2.0 * (double)plan.active_parameters + attention);
  made.tokens = bench_alloc((size_t)n * sizeof(int32_t));
  made.targets = bench_alloc((size_t)n * sizeof(int32_t));
  made.logits = bench_alloc((size_t)(n * made.vocab) * sizeof(float));
  for (int64_t i = 0; i < n; i++) {
    made.tokens[i] = (int32_t)(i * 37 % made.vocab);
    made.targets[i] = (int32_t)(i * 91 % made.vocab);
  }
  return made;
}

static void seed_close(seed_model_t *made) {
  nn_optim_destroy(made->optim);
  nn_model_destroy(made->model);
  nn_device_destroy(made->device);
  mem_free(made->tokens), mem_free(made->targets), mem_free(made->logits);
}

static void seed_forward(void *context) {
  seed_model_t *made = context;
  TRY(nn_model_forward(made->model, made->tokens, made->batch, made->seq_len, made->logits));
}

static void seed_train(void *context) {
  seed_model_t *made = context;
  nn_loss_t loss = {.struct_size = sizeof loss};
  TRY(nn_model_zero_grad(made->model));
  TRY(nn_model_backward(made->model, made->tokens, made->targets, made->batch, made->seq_len, 1,
                        &loss));
  TRY(nn_optim_step(made->optim, 1e-4f, NULL));
}

/* A model is made, prepared, passes a batch forward once and is freed; the device is there
 * before. */
static void seed_cold(void *context) {
  const seed_model_t *made = context;
  nn_model_t *model;
  TRY(nn_model_create(made->device, &made->config, NN_F32, 1, &model));
  nn_train_options_t shape = {.struct_size = sizeof shape};
  shape.batch = made->batch, shape.seq_len = made->seq_len;
  TRY(nn_model_prepare(model, &shape));
  TRY(nn_model_forward(model, made->tokens, made->batch, made->seq_len, made->logits));
  nn_model_destroy(model);
}

static void seed_scenario(const char *name, int64_t hidden, int64_t batch, int64_t seq_len,
                          bench_fn fn, const bench_ceilings_t *single) {
  if (!report_wanted("seed", name)) return;
  seed_model_t made = seed_open(hidden, batch, seq_len);
  double flops = made.flops * (fn == seed_train ? 3 : 1);
  bench_work_t work = {UNIT_FLOP, flops, single->fp32_flops};
  report_run("seed", name, fn, &made, fn == seed_cold ? (bench_work_t){0} : work);
  seed_close(&made);
}

/* ---- several instances side by side, each with a device of its own ---- */

typedef struct seed_parallel {
  int count;
  seed_model_t *models;
  bench_fn fn;
} seed_parallel_t;

typedef struct seed_thread {
  seed_model_t *model;
  bench_fn fn;
} seed_thread_t;

enum { PARALLEL_STEPS = 50 };

static void *seed_work(void *context) {
  seed_thread_t *thread = context;
  for (int i = 0; i < PARALLEL_STEPS; i++) thread->fn(thread->model);
  return NULL;
}

static void seed_side_by_side(void *context) {
  seed_parallel_t *job = context;
  pthread_t ids[8];
  seed_thread_t threads[8];
  for (int i = 0; i < job->count; i++) {
    threads[i] = (seed_thread_t){&job->models[i], job->fn};
    pin_start(&ids[i], i, seed_work, &threads[i]);
  }
  for (int i = 0; i < job->count; i++) pthread_join(ids[i], NULL);
}

static void seed_instances(int count, int64_t seq_len, bench_fn fn, const char *what) {
  char name[64];
  snprintf(name, sizeof name, "%d instances, 50 x %s each, batch 2, seq %d", count, what,
           (int)seq_len);
  if (!report_wanted("seed", name)) return;
  seed_model_t models[8];
  for (int i = 0; i < count; i++) models[i] = seed_open(64, 2, seq_len);
  seed_parallel_t job = {count, models, fn};
  report_run("seed", name, seed_side_by_side, &job, (bench_work_t){0});
  for (int i = 0; i < count; i++) seed_close(&models[i]);
}

/* ---- single operations ---- */

typedef struct seed_ops {
  const backend_t *backend;
  backend_device_t *place;
  backend_scratch_t scratch;
  float *a, *b, *c, *w;
} seed_ops_t;

static void seed_matmul(void *context) {
  seed_ops_t *ops = context;
  op_matmul_t op = {.m = 64, .n = 64, .k = 64, .a = ops->a, .lda = 64, .b = ops->b, .ldb = 64};
  op.d = ops->c, op.ldd = 64;
  TRY(ops->backend->matmul(ops->place, &op, ops->scratch));
}

static void seed_softmax(void *context) {
  seed_ops_t *ops = context;
  op_softmax_t op = {.n = 1, .width = 1000, .x = ops->a, .y = ops->c};
  TRY(ops->backend->softmax(ops->place, &op, ops->scratch));
}

static void seed_rmsnorm(void *context) {
  seed_ops_t *ops = context;
  op_norm_t op = {.n = 64, .hidden = 64, .eps = 1e-5f, .x = ops->a, .w = ops->w, .y = ops->c};
  TRY(ops->backend->norm(ops->place, &op, ops->scratch));
}

static void seed_operations(const bench_ceilings_t *peak) {
  nn_device_t *device;
  nn_device_options_t one = {.struct_size = sizeof one, .threads = 1};
  TRY(nn_device_create("cpu", &one, &device));
  seed_ops_t ops = {.backend = device->backend, .place = device->place};
  backend_limits_t limits = {.rows = 64, .hidden = 64, .ffn = 64, .vocab = 1000};
  ops.scratch.bytes = ops.backend->workspace_bytes(ops.place, &limits);
  ops.scratch.data = bench_alloc(ops.scratch.bytes);
  float **buffers[] = {&ops.a, &ops.b, &ops.c, &ops.w};
  for (int b = 0; b < 4; b++) {
    *buffers[b] = bench_alloc(4096 * sizeof(float));
    for (int i = 0; i < 4096; i++) (*buffers[b])[i] = (float)(i % 17) * 0.1f - 0.8f;
  }
  report_run("seed", "matmul 64x64x64", seed_matmul, &ops,
             (bench_work_t){UNIT_FLOP, 2.0 * 64 * 64 * 64, peak->fp32_flops});
  report_run("seed", "softmax of 1000", seed_softmax, &ops, (bench_work_t){0});
  report_run("seed", "rmsnorm (2, 32, 64)", seed_rmsnorm, &ops, (bench_work_t){0});
  for (int b = 0; b < 4; b++) mem_free(*buffers[b]);
  mem_free(ops.scratch.data);
  nn_device_destroy(device);
}

void bench_seed(const bench_options_t *options, const bench_ceilings_t *single) {
  (void)options;
  const int64_t batches[] = {1, 2, 4, 8}, lengths[] = {8, 16, 32, 64};
  char name[64];
  seed_scenario("train step, batch 2, seq 8", 64, 2, 8, seed_train, single);
  for (int i = 0; i < 4; i++) {
    snprintf(name, sizeof name, "forward, batch %d, seq 32", (int)batches[i]);
    seed_scenario(name, 64, batches[i], 32, seed_forward, single);
  }
  for (int i = 0; i < 4; i++) {
    snprintf(name, sizeof name, "forward, seq %d, batch 2", (int)lengths[i]);
    seed_scenario(name, 64, 2, lengths[i], seed_forward, single);
  }
  seed_operations(single);
  seed_scenario("forward, warm", 64, 2, 32, seed_forward, single);
  seed_scenario("model made and forward, batch 1, seq 8", 64, 1, 8, seed_cold, single);
  for (int i = 1; i <= 4; i *= 2) seed_instances(i, 32, seed_forward, "forward");
  for (int i = 1; i <= 4; i *= 2) seed_instances(i, 8, seed_train, "train");
  seed_scenario("forward, hidden 256, batch 2, seq 32", 256, 2, 32, seed_forward, single);
  seed_scenario("train step, hidden 256, batch 2, seq 8", 256, 2, 8, seed_train, single);
}
