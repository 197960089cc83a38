/* What the files about a GPU's operations share: memory, random numbers, timing. */
#ifndef BENCH_GPU_H
#define BENCH_GPU_H

#include "bench.h"
#include "gpu_clock.h"

enum {
  GPU_BATCH = 4,
  GPU_SEQ = 4096,
  GPU_TOKENS = GPU_BATCH * GPU_SEQ,
  GPU_ROUTED = 4 * GPU_TOKENS,
  GPU_BUFFERS = 64
};

typedef struct gpu_buffer {
  void *data;
  size_t bytes;
} gpu_buffer_t;

typedef struct gpu {
  const backend_t *table;
  backend_device_t *place;
  backend_scratch_t scratch;
  bench_ceilings_t peak;
  nn_model_config_t config; /* moe-6.9b's */
  uint64_t filled;
  gpu_clock_t *clock;
  gpu_buffer_t buffer[GPU_BUFFERS];
  int buffers;
} gpu_t;

/* Memory until gpu_drop, which gives all of it back, or gpu_drop_to, all but the first `kept`. */
void *gpu_alloc(gpu_t *gpu, size_t bytes);
void gpu_drop(gpu_t *gpu);
void gpu_drop_to(gpu_t *gpu, int kept);
void *gpu_zeros(gpu_t *gpu, size_t bytes);
/* Random numbers. */
void *gpu_normal(gpu_t *gpu, int64_t count, int32_t dtype, float std);
void *gpu_bf16(gpu_t *gpu, int64_t count);
/* i -> (i * step + first) % bound. */
int32_t *gpu_ids(gpu_t *gpu, int64_t count, int64_t step, int64_t first, int64_t bound);
/* The same, but `first` for every i that is a multiple of `often`. */
int32_t *gpu_ids_often(gpu_t *gpu, int64_t count, int64_t step, int64_t first, int64_t bound,
                       int64_t often);

/* Times an operation, in a graph of many calls where it can be recorded. */
typedef nn_status_t (*gpu_fn)(backend_device_t *, const void *, backend_scratch_t);
typedef struct gpu_time {
  double median, fastest;
  int64_t runs;
  const char *note; /* says where it was called instead; else "" */
} gpu_time_t;
gpu_time_t gpu_time(const gpu_t *gpu, gpu_fn fn, const void *op);

/* And prints its line, where it is wanted; else no runs. */
gpu_time_t gpu_run(const gpu_t *gpu, const char *name, gpu_fn fn, const void *op,
                   bench_work_t work);
#define RUN(gpu, name, member, op, work) \
  gpu_run(gpu, name, (gpu_fn)(void (*)(void))(gpu)->table->member, &(op), work)

/* Work as a share of the rate of bf16 products, or of copies. */
bench_work_t gpu_flops(const gpu_t *gpu, double amount);
bench_work_t gpu_bytes(const gpu_t *gpu, double amount);

/* ---- gpu_ops.c, gpu_attention.c, gpu_experts.c ---- */
void gpu_ops(gpu_t *gpu);
void gpu_attentions(gpu_t *gpu);
void gpu_mixtures(gpu_t *gpu);

#endif
