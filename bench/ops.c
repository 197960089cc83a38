/* Every operation of the backend at the shapes that matter: flops for products and attention, bytes
 * that must move for the rest. Here: buffers, running, and products. */
#define _GNU_SOURCE
#include "ops.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/device.h"
#include "base/dtype.h"
#include "base/mem.h"
#include "cpu.h"

enum { POOL_BYTES = 1 << 30, CACHED_BYTES = 1 << 26, OP_WORDS = 128, PERIOD = 1021 };

/* ---- buffers ---- */

static void *ops_reserve(ops_t *ops, int64_t count) {
  size_t rounded = ((size_t)count + 15) / 16 * 16;
  if (ops->used + rounded > ops->pool_floats) {
    fprintf(stderr, "moenn-bench: a scenario's buffers exceed the pool\n");
    exit(1);
  }
  void *place = ops->pool + ops->used;
  ops->used += rounded;
  return place;
}

/* Small numbers that repeat, neither zero nor growing: what an earlier scenario left could be
 * infinite by now. */
static float ops_number(int64_t i) { return (float)(i + 1) * 1e-3f; }

float *ops_take(ops_t *ops, int64_t count) {
  float *place = ops_reserve(ops, count);
  for (int64_t i = 0; i < count; i++)
    place[i] = i < PERIOD ? ops_number(i) : place[i - PERIOD];
  return place;
}

int32_t *ops_take_ints(ops_t *ops, int64_t count) {
  return (int32_t *)(void *)ops_take(ops, count);
}

void ops_drop(ops_t *ops) { ops->used = 0; }

const char *ops_dtype(int32_t dtype) {
  return dtype == NN_F32 ? "fp32" : dtype == NN_BF16 ? "bf16" : "fp16";
}

const char *ops_tail(int32_t dtype) {
  return dtype == NN_F32 ? "" : dtype == NN_BF16 ? ", bf16" : ", fp16";
}

int32_t ops_act(int32_t dtype) { return dtype == NN_BF16 ? NN_BF16 : NN_F32; }

void *ops_at(void *data, int64_t i, int32_t dtype) {
  return (char *)data + i * (int64_t)nn_dtype_bytes(dtype);
}

void *ops_take_as(ops_t *ops, int64_t count, int32_t dtype) {
  if (dtype == NN_F32) return ops_take(ops, count);
  uint16_t (*narrow)(float) = dtype == NN_BF16 ? dtype_f32_to_bf16 : dtype_f32_to_f16;
  uint16_t *place = ops_reserve(ops, count);
  for (int64_t i = 0; i < count; i++)
    place[i] = i < PERIOD ? narrow(ops_number(i)) : place[i - PERIOD];
  return place;
}

/* ---- running ---- */

/* An operation's arguments, as words, and which of them point into the pool. */
typedef struct ops_job {
  ops_t *ops;
  ops_fn fn;
  uintptr_t op[OP_WORDS];
  size_t pointer[OP_WORDS], pointers;
  size_t stride, copies, turn; /* of the scenario's buffers, in bytes */
} ops_job_t;

static void ops_run_job(void *context) {
  ops_job_t *job = context;
  TRY(job->fn(job->ops->place, job->op, job->ops->scratch));
  if (job->copies < 2) return;
  bool last = ++job->turn == job->copies;
  size_t back = last ? job->copies * job->stride : 0;
  if (last) job->turn = 0;
  for (size_t i = 0; i < job->pointers; i++) job->op[job->pointer[i]] += job->stride - back;
}

/* Copies of all buffers, one behind the other, until the pool is full. What exceeds half of it
 * exceeds the caches by itself. */
static void ops_make_cold(ops_job_t *job, size_t words) {
  ops_t *ops = job->ops;
  uintptr_t begin = (uintptr_t)ops->pool, end = (uintptr_t)(ops->pool + ops->used);
  for (size_t i = 0; i < words; i++)
    if (job->op[i] >= begin && job->op[i] < end) job->pointer[job->pointers++] = i;
  job->stride = ops->used * sizeof(float);
  job->copies = ops->used ? ops->pool_floats / ops->used : 1;
  for (size_t i = 1; i < job->copies; i++)
    memcpy(ops->pool + i * ops->used, ops->pool, job->stride);
}

void ops_run(ops_t *ops, const char *name, ops_fn fn, const void *op, size_t bytes,
             bench_work_t work) {
  if (!report_wanted("ops", name)) return;
  ops_job_t job = {.ops = ops, .fn = fn, .copies = 1};
  if (bytes > sizeof job.op) exit(1);
  memcpy(job.op, op, bytes);
  if (ops->cold) ops_make_cold(&job, bytes / sizeof *job.op);
  report_run("ops", name, ops_run_job, &job, work);
}

bench_work_t ops_flops(const ops_t *ops, double amount, int32_t dtype) {
  return (bench_work_t){UNIT_FLOP, amount, ceilings_products(ops->peak, dtype)};
}

bench_work_t ops_moved(const ops_t *ops, double amount, bool writes) {
  double ceiling = writes ? ops->peak->copy_bytes : ops->peak->read_bytes;
  if (!ops->cold && amount < CACHED_BYTES) ceiling = 0;
  return (bench_work_t){UNIT_BYTE, amount, ceiling};
}

/* ---- threads ---- */

/* Waits until every thread has an item, and so is inside. */
static void ops_join(void *context, int64_t item, int32_t thread) {
  atomic_int *missing = context;
  (void)item, (void)thread;
  atomic_fetch_sub(missing, 1);
  for (int spins = 0; atomic_load_explicit(missing, memory_order_relaxed) > 0; spins++)
    if (spins > 100000) sched_yield(); /* threads that share a CPU */
}

static void ops_region(void *context) {
  backend_device_t *place = context;
  atomic_int missing = place->threads;
  TRY(pool_run(place->pool, place->threads, ops_join, &missing));
}

/* One region after another finds the workers awake; a millisecond without any, asleep. */
static void ops_regions(ops_t *ops) {
  enum { WAKES = 500, IDLE_US = 1000 };
  static const char name[] = "parallel region that wakes its workers";
  double times[WAKES], fastest;
  report_run("ops", "parallel region that all threads join", ops_region, ops->place,
             (bench_work_t){0});
  if (!report_wanted("ops", name) || ops->place->threads < 2) return;
  for (int i = 0; i < WAKES; i++) {
    usleep(IDLE_US);
    double begin = bench_now();
    ops_region(ops->place);
    times[i] = bench_now() - begin;
  }
  double median = bench_median(times, WAKES, &fastest);
  report_line("ops", name, median, fastest, WAKES, (bench_work_t){0}, "");
}

/* ---- a cache line ---- */

/* One thread makes the number odd, the other even again. */
typedef struct ops_line {
  _Alignas(128) atomic_int turns;
  _Alignas(128) atomic_bool stop;
} ops_line_t;

static void *ops_line_back(void *context) {
  ops_line_t *line = context;
  while (!atomic_load(&line->stop))
    if (atomic_load(&line->turns) % 2) atomic_fetch_add(&line->turns, 1);
  return NULL;
}

static void ops_line_there(void *context) {
  ops_line_t *line = context;
  atomic_fetch_add(&line->turns, 1);
  while (atomic_load(&line->turns) % 2) continue;
}

/* Tells whether the first two CPUs share a cache. */
static void ops_line(void) {
  static const char name[] = "cache line to a second core and back";
  if (!report_wanted("ops", name) || pin_cpus() < 2) return;
  ops_line_t line = {.turns = 0};
  pthread_t other;
  pin_start(&other, 1, ops_line_back, &line);
  report_run("ops", name, ops_line_there, &line, (bench_work_t){0});
  atomic_store(&line.stop, true);
  pthread_join(other, NULL);
}

/* ---- products ---- */

/* Forward, data-gradient and weight-gradient forms of one linear layer [out, in]; the last has no
 * weights in it, so that fp16 ones make no other. */
static void ops_linear(ops_t *ops, int64_t rows, int64_t out, int64_t in, int32_t dtype) {
  static const char *forms[] = {"NT forward", "NN data gradient", "TN weight gradient"};
  int32_t act = ops_act(dtype);
  bench_work_t work = ops_flops(ops, 2.0 * (double)(rows * out) * (double)in, dtype);
  for (int form = 0; form < (dtype == NN_F16 ? 2 : 3); form++) {
    char name[OPS_NAME];
    snprintf(name, sizeof name, "matmul %s %s %dx%dx%d", ops_dtype(dtype), forms[form], (int)rows,
             (int)out, (int)in);
    if (!report_wanted("ops", name)) continue;
    void *x = ops_take_as(ops, rows * in, act), *y = ops_take_as(ops, rows * out, act);
    void *w = ops_take_as(ops, out * in, dtype);
    float *dw = ops_take(ops, out * in);
    op_matmul_t op = {.m = rows, .n = out, .k = in, .trans_b = 1, .a = x, .lda = in, .b = w};
    op.ldb = in, op.d = y, op.ldd = out, op.d_dtype = act;
    if (form == 1) {
      op = (op_matmul_t){.m = rows, .n = in, .k = out, .a = y, .lda = out, .b = w, .ldb = in};
      op.d = x, op.ldd = in, op.d_dtype = act;
    }
    if (form == 2) {
      op = (op_matmul_t){.m = out, .n = in, .k = rows, .trans_a = 1, .a = y, .lda = out};
      op.b = x, op.ldb = in, op.c = dw, op.ldc = in, op.d = dw, op.ldd = in;
    }
    op.a_dtype = act, op.b_dtype = dtype;
    RUN(ops, name, matmul, op, work);
    ops_drop(ops);
  }
}

/* Few rows against a matrix that exceeds the caches: bandwidth. */
static void ops_skinny(ops_t *ops, int64_t rows, int64_t out, int64_t in, int32_t dtype) {
  char name[OPS_NAME];
  int32_t act = ops_act(dtype);
  snprintf(name, sizeof name, "matmul %s rows %d, %dx%d", ops_dtype(dtype), (int)rows, (int)out,
           (int)in);
  if (!report_wanted("ops", name)) return;
  void *x = ops_take_as(ops, rows * in, act), *y = ops_take_as(ops, rows * out, act);
  op_matmul_t op = {.m = rows, .n = out, .k = in, .trans_b = 1, .a = x, .lda = in, .ldb = in};
  op.b = ops_take_as(ops, out * in, dtype), op.d = y, op.ldd = out;
  op.a_dtype = op.d_dtype = act, op.b_dtype = dtype;
  double bytes = (double)(out * in) * (double)nn_dtype_bytes(dtype);
  RUN(ops, name, matmul, op, ops_moved(ops, bytes, false));
  ops_drop(ops);
}

/* What GPT-2's network has around its first product. */
static void ops_gelu(ops_t *ops, int64_t rows, int64_t out, int64_t in, int32_t dtype) {
  char name[OPS_NAME];
  void *x = ops_take_as(ops, rows * in, dtype), *y = ops_take_as(ops, rows * out, dtype);
  void *aux = ops_take_as(ops, rows * out, dtype), *w = ops_take_as(ops, out * in, dtype);
  op_matmul_t op = {.m = rows, .n = out, .k = in, .trans_b = 1, .a = x, .lda = in, .b = w};
  op.ldb = in, op.d = y, op.ldd = out, op.epilogue = MATMUL_GELU, op.aux = aux;
  op.a_dtype = op.b_dtype = op.d_dtype = dtype, op.bias = ops_take_as(ops, out, dtype);
  double flops = 2.0 * (double)(rows * out) * (double)in;
  snprintf(name, sizeof name, "matmul %s with bias and GELU %dx%dx%d", ops_dtype(dtype), (int)rows,
           (int)out, (int)in);
  RUN(ops, name, matmul, op, ops_flops(ops, flops, dtype));
  op_matmul_t back = {.m = rows, .n = out, .k = in, .a = x, .lda = in, .b = w, .ldb = out};
  back.d = y, back.ldd = out, back.epilogue = MATMUL_GELU_BWD, back.aux = aux;
  back.a_dtype = back.b_dtype = back.d_dtype = dtype;
  snprintf(name, sizeof name, "matmul %s with GELU's slope %dx%dx%d", ops_dtype(dtype), (int)rows,
           (int)out, (int)in);
  RUN(ops, name, matmul, back, ops_flops(ops, flops, dtype));
  ops_drop(ops);
}

static void ops_products(ops_t *ops) {
  static const struct {
    int64_t rows, out, in;
  } layers[] = {{256, 768, 768},   {OPS_TOKENS, 768, 768},   {256, 12288, 768},
                {256, 768, 6144},  {OPS_TOKENS, 12288, 768}, {OPS_TOKENS, 768, 6144},
                {256, 50257, 768}};
  for (int32_t dtype = NN_F32; dtype <= NN_BF16; dtype++) {
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++)
      ops_linear(ops, layers[i].rows, layers[i].out, layers[i].in, dtype);
    ops_gelu(ops, 256, 3072, 768, dtype);
  }
  ops_linear(ops, 256, 768, 768, NN_F16);
  /* eight experts' matrices, as decoding has them, one behind the other */
  for (int32_t dtype = NN_F32; dtype <= NN_BF16; dtype++)
    for (int64_t rows = 1; rows <= 32; rows *= 2) ops_skinny(ops, rows, 98304, 768, dtype);
  ops_skinny(ops, 1, 98304, 768, NN_F16);
  ops_skinny(ops, 1, 12288, 6144, NN_BF16);
}

/* ---- all ---- */

void bench_ops(nn_device_t *device, const bench_options_t *options, const bench_ceilings_t *peak) {
  ops_t ops = {.backend = device->backend, .place = device->place, .peak = peak};
  ops.cold = options->cold;
  static const char *others[] = {"seed", "gpt2", "moe/", "decode", "prefill", "load"};
  for (size_t g = 0; options->filter && g < sizeof others / sizeof others[0]; g++)
    if (!strncmp(options->filter, others[g], strlen(others[g]))) return; /* spare the gigabyte */
  ops.pool_floats = POOL_BYTES / sizeof(float);
  ops.pool = bench_alloc(POOL_BYTES);
  backend_limits_t limits = {.rows = 4096, .batch = 8, .kv_len = 4096, .hidden = 6144, .heads = 12,
                             .kv_heads = 12, .head_dim = 64, .ffn = 6144, .experts = 16, .top_k = 4,
                             .vocab = 50257, .weight_dtype = NN_BF16, .training = 1};
  ops.scratch.bytes = ops.backend->workspace_bytes(ops.place, &limits);
  ops.scratch.data = bench_alloc(ops.scratch.bytes);
  ops_regions(&ops);
  ops_line();
  ops_products(&ops);
  ops_attentions(&ops);
  ops_mixtures(&ops);
  ops_others(&ops);
  mem_free(ops.scratch.data);
  mem_free(ops.pool);
}
