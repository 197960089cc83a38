#include "ops.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/plugin.h"
#include "base/random.h"
#include "base/status.h"
#include "gpu.h"
#include "processor.h"

enum { GUARD = 256, GUARD_BYTE = 0xc3, SCRATCHES = 8, MEMORY_BLOCKS = 4096 };

/* ---- trials ---- */

typedef struct ops_path {
  const char *name;
  int32_t bit;
} ops_path_t;

static const ops_path_t paths_of_cpu[] = {
    {"reference", NN_CPU_REFERENCE},
    {"avx2", NN_CPU_AVX2},
    {"avx512", NN_CPU_AVX512},
    {"avx512bf16", NN_CPU_AVX512 | NN_CPU_AVX512_BF16}};
static const ops_path_t paths_of_gpu[] = {{"cuda", 0}};
static const ops_path_t *paths = paths_of_cpu;

enum { CPU_PATHS = sizeof paths_of_cpu / sizeof *paths_of_cpu, CPU_THREADS = 3 };
static int32_t path_count = CPU_PATHS, most_threads = CPU_THREADS;

/* A sanitizer finds nothing more in the same run again, nor a race with one thread. */
#ifdef __SANITIZE_THREAD__
enum { REPEATS = 1, LEAST_THREADS = 2 };
#elif defined __SANITIZE_ADDRESS__
enum { REPEATS = 1, LEAST_THREADS = 1 };
#else
enum { REPEATS = 2, LEAST_THREADS = 1 };
#endif

static int32_t ops_cancelled(const void *user) {
  const atomic_int *cancel = user;
  return atomic_load_explicit(cancel, memory_order_relaxed);
}

static nn_status_t ops_fail(nn_status_t status, const char *message) {
  return status_fail(status, "%s", message);
}

static void ops_log(void *user, int32_t level, const char *message) {
  (void)user;
  print_message("log (%d): %s\n", level, message);
}

backend_options_t ops_options(int32_t threads, int32_t cpu_paths, const atomic_int *cancel) {
  return (backend_options_t){.struct_size = sizeof(backend_options_t),
                             .threads = threads,
                             .cpu_paths = cpu_paths,
                             .cancelled = ops_cancelled,
                             .cancel_user = cancel,
                             .fail = ops_fail,
                             .log = ops_log};
}

/* ---- the GPU, and memory that the host and it share ---- */

enum { SKIPPED = 77, SHARED_BYTES = 1 << 30 };

static backend_open_fn open_backend = cpu_backend_open;
static backend_device_t *gpu; /* kept open: its context is the shared memory's */
static struct {
  char *data;
  size_t used;
} shared;

static void gpu_skip(const char *why) {
  print_message("skipped: %s\n", why);
  exit(SKIPPED);
}

/* Managed memory, by the driver's own function, which any process with a context can find. */
static void gpu_share(void) {
  int (*alloc)(unsigned long long *data, size_t bytes, unsigned flags) = NULL;
  void *driver = dlopen("libcuda.so.1", RTLD_NOW);
  void *found = driver ? dlsym(driver, "cuMemAllocManaged") : NULL;
  if (!found) gpu_skip("libcuda.so.1 has no cuMemAllocManaged");
  memcpy(&alloc, &found, sizeof found);
  unsigned long long data = 0;
  if (alloc(&data, SHARED_BYTES, 1) != 0) fail_msg("%s", "managed memory could not be had");
  memcpy(&shared.data, &data, sizeof shared.data);
}

/* Once, before anything is asked for. */
static void ops_choose(void) {
  static atomic_int cancel;
  const char *name = getenv("MOENN_TEST_DEVICE");
  if (gpu || !name || strncmp(name, "cuda:", 5)) return;
  backend_options_t options = ops_options(1, NN_CPU_REFERENCE, &cancel);
  const backend_t *table;
  options.index = atoi(name + 5);
  nn_status_t status = plugin_open(CUDA_BACKEND_LIBRARY, CUDA_BACKEND_OPEN, &open_backend);
  if (status == NN_OK) status = open_backend(&options, &table, &gpu);
  if (gpu_absent(status)) gpu_skip(nn_last_error());
  if (status != NN_OK) fail_msg("%s", nn_last_error());
  gpu_share();
  paths = paths_of_gpu;
  path_count = 1;
  most_threads = 1;
}

int ops_widens(void) {
  ops_choose();
  return !gpu;
}

void ops_begin(ops_trial_t *trial, backend_limits_t limits) {
  ops_choose();
  memset(trial, 0, sizeof *trial);
  trial->limits = limits;
  trial->repeat = -1;
}

static void ops_forget(ops_trial_t *trial) {
  for (int i = 0; i < OPS_SLOTS; i++) {
    free(trial->first[i].bits);
    trial->first[i].bits = NULL;
  }
}

/* Opens the device of trial->path and trial->threads; 0 where the path cannot be had. */
static int ops_open(ops_trial_t *trial) {
  backend_options_t options =
      ops_options(trial->threads, NN_CPU_REFERENCE | paths[trial->path].bit, &trial->cancel);
  if (open_backend(&options, &trial->table, &trial->device) != NN_OK)
    fail_msg("%s", nn_last_error());
  trial->path_name = paths[trial->path].name;
  if (gpu) return 1;
  backend_info_t info = {.struct_size = sizeof info};
  trial->table->describe(trial->device, &info);
  assert_int_equal(info.threads, trial->threads);
  if ((info.cpu_paths & paths[trial->path].bit) == paths[trial->path].bit) return 1;
  if (processor_has(paths[trial->path].bit)) fail_msg("the %s path is missing", trial->path_name);
  trial->table->close(trial->device);
  trial->device = NULL;
  return 0;
}

int ops_next(ops_trial_t *trial) {
  trial->scratch = NULL;
  if (trial->device && ++trial->repeat < REPEATS) return 1;
  if (trial->device) trial->table->close(trial->device);
  trial->device = NULL;
  trial->repeat = 0;
  for (;;) {
    if (++trial->threads > most_threads) {
      ops_forget(trial);
      trial->threads = gpu ? 1 : LEAST_THREADS;
      trial->path++;
    }
    if (trial->path == path_count) return 0;
    if (ops_open(trial)) return 1;
    trial->threads = most_threads; /* this path is absent: on to the next one */
  }
}

static size_t scratch_whole(size_t bytes) { return (bytes + GUARD + 63) / 64 * 64; }

/* Scratch of exactly so many bytes. The last few sizes are kept: mapping megabytes anew for each of
 * a thousand devices takes longer than the operations do. */
static void *scratch_of(size_t bytes) {
  static struct {
    void *data;
    size_t bytes;
  } kept[SCRATCHES];
  static int oldest;
  if (gpu) {
    char *data = ops_memory(1, scratch_whole(bytes) + 256);
    return data + (256 - (uintptr_t)data % 256) % 256;
  }
  for (int i = 0; i < SCRATCHES; i++)
    if (kept[i].data && kept[i].bytes == bytes) return kept[i].data;
  int i = oldest++ % SCRATCHES;
  free(kept[i].data);
  kept[i].data = aligned_alloc(64, scratch_whole(bytes));
  kept[i].bytes = bytes;
  if (!kept[i].data) fail_msg("no memory for %zu bytes of scratch", bytes);
  return kept[i].data;
}

backend_scratch_t ops_lend(ops_trial_t *trial) {
  if (!trial->scratch) {
    trial->scratch_bytes = trial->table->workspace_bytes(trial->device, &trial->limits);
    size_t whole = scratch_whole(trial->scratch_bytes);
    trial->scratch = scratch_of(trial->scratch_bytes);
    memset(trial->scratch, trial->repeat ? 0x3e : 0xff, trial->scratch_bytes); /* 0.18, NaN */
    memset((char *)trial->scratch + trial->scratch_bytes, GUARD_BYTE, whole - trial->scratch_bytes);
  }
  return (backend_scratch_t){trial->scratch, trial->scratch_bytes};
}

void ops_return(const ops_trial_t *trial) {
  const unsigned char *end = (const unsigned char *)trial->scratch + trial->scratch_bytes;
  for (int i = 0; i < GUARD; i++)
    if (end[i] != GUARD_BYTE)
      fail_msg("%s: byte %d behind %zu bytes of scratch was written", trial->path_name, i,
               trial->scratch_bytes);
}

nn_status_t ops_finish(const ops_trial_t *trial, nn_status_t status) {
  char byte; /* a copy waits for what runs, and says what became of it */
  nn_status_t after = trial->table->copy_out(trial->device, &byte, trial->scratch, 1);
  if (status == NN_OK) status = after;
  ops_return(trial);
  return status;
}

void ops_expect(const ops_trial_t *trial, const char *name, nn_status_t want, nn_status_t got) {
  if (got != want)
    fail_msg("%s, %d threads: %s gave %s instead of %s: %s", trial->path_name, trial->threads, name,
             nn_status_name(got), nn_status_name(want), nn_last_error());
}

double ops_rounding(const ops_trial_t *trial, int32_t weight_dtype) {
  return weight_dtype == NN_BF16 && paths[trial->path].bit & NN_CPU_AVX512_BF16 ? 0x1p-8 : 0;
}

/* ---- comparisons ---- */

void ops_check_bits(ops_trial_t *trial, int slot, const char *name, const void *got, size_t bytes) {
  if (!trial->first[slot].bits) {
    trial->first[slot].bits = malloc(bytes ? bytes : 1);
    assert_non_null(trial->first[slot].bits);
    memcpy(trial->first[slot].bits, got, bytes);
    trial->first[slot].bytes = bytes;
  }
  assert_int_equal(trial->first[slot].bytes, bytes);
  if (memcmp(trial->first[slot].bits, got, bytes) != 0)
    fail_msg("%s, %d threads, run %d: %s differs in bits from the first run", trial->path_name,
             trial->threads, trial->repeat, name);
}

void ops_check(ops_trial_t *trial, int slot, const char *name, const float *got, const double *want,
               const double *slack, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (!(fabs(got[i] - want[i]) <= slack[i]) && !(got[i] == want[i]))
      fail_msg("%s, %d threads: %s[%lld] of %lld is %.9g, not %.9g: off by %.3g, allowed %.3g",
               trial->path_name, trial->threads, name, (long long)i, (long long)count, got[i],
               want[i], got[i] - want[i], slack[i]);
  ops_check_bits(trial, slot, name, got, (size_t)count * sizeof *got);
}

double ops_sum_error(int64_t n) {
  double certain = (double)n + 2;
  return OPS_U * fmin(certain, 8 * sqrt((double)n) + 2);
}

/* ---- data ---- */

static void *blocks[MEMORY_BLOCKS];
static int block_count;

/* A piece of the shared memory, which is handed out from its beginning again after ops_free(). */
static void *ops_shared(size_t bytes) {
  size_t whole = (bytes + 255) / 256 * 256;
  if (shared.used + whole > SHARED_BYTES) fail_msg("%zu bytes exceed the shared memory", bytes);
  void *data = shared.data + shared.used;
  shared.used += whole;
  return memset(data, 0, bytes);
}

void *ops_memory(int64_t count, size_t size) {
  ops_choose();
  if (gpu) return ops_shared((count ? (size_t)count : 1) * size);
  assert_true(block_count < MEMORY_BLOCKS);
  void *data = calloc(count ? (size_t)count : 1, size);
  assert_non_null(data);
  return blocks[block_count++] = data;
}

float *ops_floats(int64_t count) { return ops_memory(count, sizeof(float)); }
double *ops_doubles(int64_t count) { return ops_memory(count, sizeof(double)); }
int32_t *ops_ints(int64_t count) { return ops_memory(count, sizeof(int32_t)); }

void ops_free(void) {
  shared.used = 0;
  while (block_count) free(blocks[--block_count]);
}

static float ops_uniform_at(float scale, uint64_t seed, int64_t i) {
  return (float)(scale * (2 * random_uniform(seed, 7, (uint64_t)i) - 1));
}

float *ops_uniform(int64_t count, float scale, uint64_t seed) {
  float *data = ops_floats(count);
  for (int64_t i = 0; i < count; i++) data[i] = ops_uniform_at(scale, seed, i);
  return data;
}

float *ops_inputs(int64_t count, int32_t weight_dtype, float scale, uint64_t seed) {
  float *data = ops_uniform(count, scale, seed);
  if (weight_dtype != NN_BF16) return data;
  void *narrow = ops_weights(count, NN_BF16, scale, 0, seed);
  for (int64_t i = 0; i < count; i++) data[i] = (float)ops_weight(narrow, NN_BF16, i);
  return data;
}

void *ops_weights(int64_t count, int32_t dtype, float scale, float shift, uint64_t seed) {
  float *wide = ops_uniform(count, scale, seed);
  for (int64_t i = 0; i < count; i++) wide[i] += shift;
  return ops_pack(wide, count, dtype);
}

void *ops_pack(float *data, int64_t count, int32_t dtype) {
  if (dtype == NN_F32) return data;
  uint16_t *packed = ops_memory(count, sizeof *packed);
  for (int64_t i = 0; i < count; i++) {
    uint32_t bits;
    memcpy(&bits, &data[i], sizeof bits);
    packed[i] = dtype == NN_F16 ? dtype_f32_to_f16(data[i]) : (uint16_t)(bits >> 16);
  }
  return packed;
}

double ops_weight(const void *data, int32_t dtype, int64_t i) {
  if (dtype == NN_F32) return ((const float *)data)[i];
  if (dtype == NN_F16) return dtype_f16_to_f32(((const uint16_t *)data)[i]);
  uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

double *ops_widen(const void *data, int32_t dtype, int64_t count) {
  double *wide = ops_doubles(count);
  for (int64_t i = 0; data && i < count; i++) wide[i] = ops_weight(data, dtype, i);
  return wide;
}

float *ops_narrow(const double *data, int64_t count) {
  float *copy = ops_floats(count);
  for (int64_t i = 0; i < count; i++) copy[i] = (float)data[i];
  return copy;
}

int64_t ops_random_index(int64_t bound, uint64_t seed, uint64_t index) {
  return (int64_t)(random_uniform(seed, 8, index) * (double)bound);
}

void ops_garbage(float *data, int64_t count) { memset(data, 0xff, (size_t)count * sizeof *data); }

void *ops_put(const void *values, size_t bytes) {
  return memcpy(ops_memory((int64_t)bytes, 1), values, bytes);
}

float *ops_copy(const float *data, int64_t count) {
  return ops_put(data, (size_t)count * sizeof *data);
}

/* ---- finite differences ---- */

void ops_check_gradient(const char *name, double (*f)(const void *context), const void *context,
                        double *x, const double *gradient, int64_t count) {
  const double step = 1e-5;
  double largest = 0;
  for (int64_t i = 0; i < count; i++) largest = fmax(largest, fabs(gradient[i]));
  assert_true(largest > 0);
  for (int64_t i = 0; i < count; i++) {
    double at = x[i];
    x[i] = at + step;
    double above = f(context);
    x[i] = at - step;
    double below = f(context);
    x[i] = at;
    double slope = (above - below) / (2 * step);
    if (!(fabs(slope - gradient[i]) <= 1e-7 * largest))
      fail_msg("%s[%lld]: gradient %.12g, finite difference %.12g", name, (long long)i, gradient[i],
               slope);
  }
}
