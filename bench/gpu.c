/* A GPU's operations by themselves. Many calls of one are recorded as a graph, as training and
 * decoding steps are, which runs between two events in the device's stream: launches by the host
 * take longer than short kernels, and would be what is measured. */
#include "gpu.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/device.h"
#include "base/mem.h"

enum { SAMPLES = 9, GRAPH_CALLS = 256 };

/* ---- memory ---- */

void *gpu_alloc(gpu_t *gpu, size_t bytes) {
  if (gpu->buffers == GPU_BUFFERS) bench_try(NN_ERR_CAPACITY, "more buffers than GPU_BUFFERS");
  gpu_buffer_t *buffer = &gpu->buffer[gpu->buffers++];
  buffer->bytes = bytes;
  TRY(gpu->table->alloc(gpu->place, bytes, &buffer->data));
  return buffer->data;
}

void gpu_drop_to(gpu_t *gpu, int kept) {
  while (gpu->buffers > kept) {
    gpu_buffer_t buffer = gpu->buffer[--gpu->buffers];
    gpu->table->free(gpu->place, buffer.data, buffer.bytes);
  }
}

void gpu_drop(gpu_t *gpu) { gpu_drop_to(gpu, 0); }

void *gpu_normal(gpu_t *gpu, int64_t count, int32_t dtype, float std) {
  void *data = gpu_alloc(gpu, (size_t)count * nn_dtype_bytes(dtype));
  op_fill_normal_t fill = {.out = data, .dtype = dtype, .count = count, .std = std, .seed = 7};
  fill.stream = gpu->filled++;
  TRY(gpu->table->fill_normal(gpu->place, &fill, gpu->scratch));
  return data;
}

void *gpu_bf16(gpu_t *gpu, int64_t count) { return gpu_normal(gpu, count, NN_BF16, 1); }

void *gpu_zeros(gpu_t *gpu, size_t bytes) {
  void *data = gpu_alloc(gpu, bytes);
  TRY(gpu->table->zero(gpu->place, data, bytes));
  return data;
}

int32_t *gpu_ids_often(gpu_t *gpu, int64_t count, int64_t step, int64_t first, int64_t bound,
                       int64_t often) {
  int32_t *ids = bench_alloc((size_t)count * sizeof *ids);
  for (int64_t i = 0; i < count; i++)
    ids[i] = (int32_t)(((i % often ? i * step : 0) + first) % bound);
  int32_t *data = gpu_alloc(gpu, (size_t)count * sizeof *ids);
  TRY(gpu->table->copy_in(gpu->place, data, ids, (size_t)count * sizeof *ids));
  mem_free(ids);
  return data;
}

int32_t *gpu_ids(gpu_t *gpu, int64_t count, int64_t step, int64_t first, int64_t bound) {
  return gpu_ids_often(gpu, count, step, first, bound, count + 1);
}

/* ---- timing ---- */

/* NULL where the operation cannot be recorded. */
static backend_graph_t *gpu_record(const gpu_t *gpu, gpu_fn fn, const void *op, int64_t calls) {
  backend_graph_t *graph;
  nn_status_t status = NN_OK;
  TRY(gpu->table->record_begin(gpu->place));
  for (int64_t i = 0; i < calls && status == NN_OK; i++)
    status = fn(gpu->place, op, gpu->scratch);
  TRY(gpu->table->record_end(gpu->place, &graph));
  if (status == NN_OK) return graph;
  gpu->table->graph_free(gpu->place, graph);
  return NULL;
}

/* Seconds of `turns` runs of the graph, or of calls without one. */
static double gpu_turns(const gpu_t *gpu, gpu_fn fn, const void *op, backend_graph_t *graph,
                        int64_t turns) {
  gpu_clock_begin(gpu->clock);
  for (int64_t i = 0; i < turns; i++)
    TRY(graph ? gpu->table->graph_run(gpu->place, graph) : fn(gpu->place, op, gpu->scratch));
  return gpu_clock_end(gpu->clock);
}

gpu_time_t gpu_time(const gpu_t *gpu, gpu_fn fn, const void *op) {
  double times[SAMPLES];
  gpu_turns(gpu, fn, op, NULL, 3); /* for warming up */
  int64_t runs = (int64_t)(0.02 / gpu_turns(gpu, fn, op, NULL, 1)) + 1;
  int64_t calls = runs < GRAPH_CALLS ? runs : GRAPH_CALLS, turns = (runs + calls - 1) / calls;
  backend_graph_t *graph = gpu_record(gpu, fn, op, calls);
  if (graph)
    gpu_turns(gpu, fn, op, graph, 1); /* the first run brings the graph to the device */
  else
    turns = runs, calls = 1;
  for (int i = 0; i < SAMPLES; i++)
    times[i] = gpu_turns(gpu, fn, op, graph, turns) / (double)(turns * calls);
  gpu->table->graph_free(gpu->place, graph);
  double fastest, median = bench_median(times, SAMPLES, &fastest);
  return (gpu_time_t){median, fastest, turns * calls * SAMPLES,
                      graph ? "" : "called, not recorded"};
}

gpu_time_t gpu_run(const gpu_t *gpu, const char *name, gpu_fn fn, const void *op,
                   bench_work_t work) {
  if (!report_wanted("gpu", name)) return (gpu_time_t){0};
  gpu_time_t time = gpu_time(gpu, fn, op);
  report_line("gpu", name, time.median, time.fastest, time.runs, work, time.note);
  return time;
}

bench_work_t gpu_flops(const gpu_t *gpu, double amount) {
  return (bench_work_t){UNIT_FLOP, amount, gpu->peak.bf16_flops};
}

bench_work_t gpu_bytes(const gpu_t *gpu, double amount) {
  return (bench_work_t){UNIT_BYTE, amount, gpu->peak.copy_bytes};
}

/* ---- ceilings ---- */

static double gpu_product_rate(gpu_t *gpu, int32_t dtype, int64_t size) {
  op_matmul_t op = {.m = size, .n = size, .k = size, .lda = size, .ldb = size, .ldd = size};
  op.a_dtype = op.b_dtype = op.d_dtype = dtype, op.trans_b = 1;
  op.a = gpu_normal(gpu, size * size, dtype, 1), op.b = gpu_normal(gpu, size * size, dtype, 1);
  op.d = gpu_alloc(gpu, (size_t)(size * size) * nn_dtype_bytes(dtype));
  double times[5], fastest;
  for (int i = -2; i < 5; i++) {
    gpu_clock_begin(gpu->clock);
    for (int t = 0; t < 10; t++) TRY(gpu->table->matmul(gpu->place, &op, gpu->scratch));
    double seconds = gpu_clock_end(gpu->clock);
    if (i >= 0) times[i] = seconds / 10;
  }
  gpu_drop(gpu);
  return 2.0 * (double)size * (double)size * (double)size / bench_median(times, 5, &fastest);
}

/* For every shape of the groups. */
static size_t gpu_scratch(const gpu_t *gpu) {
  const nn_model_config_t *c = &gpu->config;
  backend_limits_t limits = {.rows = GPU_ROUTED, .batch = 32, .kv_len = GPU_SEQ, .hidden = 8192,
                             .heads = 64, .kv_heads = 8, .head_dim = 256, .ffn = c->ffn,
                             .experts = 256, .top_k = 8, .vocab = c->vocab_size,
                             .weight_dtype = NN_BF16, .act_dtype = NN_BF16, .training = 1};
  return gpu->table->workspace_bytes(gpu->place, &limits);
}

bench_ceilings_t bench_gpu(nn_device_t *device, int32_t index) {
  gpu_t gpu = {.table = device->backend, .place = device->place};
  gpu.config.struct_size = sizeof gpu.config;
  TRY(nn_config_preset("moe-6.9b", &gpu.config));
  gpu.scratch.bytes = gpu_scratch(&gpu);
  TRY(gpu.table->alloc(gpu.place, gpu.scratch.bytes, &gpu.scratch.data));
  gpu_bandwidth(index, &gpu.peak.read_bytes, &gpu.peak.copy_bytes);
  backend_info_t info = {.struct_size = sizeof info};
  gpu.table->describe(gpu.place, &info);
  gpu.clock = gpu_clock_open(index, info.queue);
  gpu.peak.f16_flops = gpu.peak.bf16_flops = gpu_product_rate(&gpu, NN_BF16, 8192);
  gpu.peak.fp32_flops = gpu_product_rate(&gpu, NN_F32, 4096);
  report_ceilings("GPU", &gpu.peak);
  gpu_ops(&gpu);
  gpu_attentions(&gpu);
  gpu_mixtures(&gpu);
  gpu_clock_close(gpu.clock);
  gpu.table->free(gpu.place, gpu.scratch.data, gpu.scratch.bytes);
  return gpu.peak;
}
