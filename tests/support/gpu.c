#define _GNU_SOURCE /* sched_getaffinity */
#include "gpu.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/plugin.h"
#include "base/status.h"
#include "dispatch.h"
#include "processor.h"
#include "select.h"

enum { TENSORS = 128, BLOCKS = 256, GUARD = 256, GUARD_BYTE = 0xff };

struct gpu_tensor {
  gpu_kind_t kind;
  gpu_use_t use;
  int64_t count;
  size_t bytes[GPU_SIDES]; /* without the GPU's guard */
  char *at[GPU_SIDES];
  char *first[GPU_SIDES]; /* host: content before each run; the GPU's with its guard */
  char *got;              /* host: the GPU's content after the last run, with its guard */
  char *spare;            /* room for the next run's */
};

/* A device that is open. */
typedef struct gpu_place {
  const backend_t *table;
  backend_device_t *device;
} gpu_place_t;

static struct {
  gpu_place_t turn[2]; /* what even and odd runs of the GPU's side take place on */
  int is_cpu;          /* a CPU is in the GPU's place */
  int half_alone;      /* no cases of fp32 */
  const backend_t *table[GPU_SIDES];
  backend_device_t *device[GPU_SIDES];
  atomic_int cancel;
  int32_t dtype;
  char name[192]; /* of the case */
  void *scratch[GPU_SIDES];
  size_t scratch_bytes[GPU_SIDES];
  gpu_tensor_t *tensors[TENSORS];
  int tensor_count;
  void *blocks[BLOCKS];
  int block_count;
} gpu;

int32_t gpu_dtypes[2] = {NN_BF16, NN_F32};

/* ---- opening --------------------------------------------------------------------------------- */

static int32_t gpu_cancelled(const void *user) {
  (void)user;
  return atomic_load_explicit(&gpu.cancel, memory_order_relaxed);
}

static nn_status_t gpu_fail(nn_status_t status, const char *message) {
  return status_fail(status, "%s", message);
}

static void gpu_log(void *user, int32_t level, const char *message) {
  (void)user;
  print_message("log (%d): %s\n", level, message);
}

static nn_status_t gpu_open_place(backend_open_fn open, int32_t threads, int32_t cpu_paths,
                                  gpu_place_t *place) {
  backend_options_t options = {.struct_size = sizeof options,
                               .threads = threads,
                               .cpu_paths = NN_CPU_REFERENCE | cpu_paths,
                               .cancelled = gpu_cancelled,
                               .cancel_user = &gpu,
                               .fail = gpu_fail,
                               .log = gpu_log};
  return open(&options, &place->table, &place->device);
}

static void gpu_take(int side, gpu_place_t place) {
  gpu.table[side] = place.table;
  gpu.device[side] = place.device;
}

/* The plugin's device in the GPU's place. */
static nn_status_t gpu_open_plugin(void) {
  backend_open_fn open;
  STATUS_TRY(plugin_open(CUDA_BACKEND_LIBRARY, CUDA_BACKEND_OPEN, &open));
  STATUS_TRY(gpu_open_place(open, 1, 0, &gpu.turn[0]));
  gpu.turn[1] = gpu.turn[0];
  return NN_OK;
}

static const struct {
  const char *name;
  int32_t bits;
} gpu_paths[] = {{"reference", NN_CPU_REFERENCE},
                 {"avx2", NN_CPU_AVX2},
                 {"avx512", NN_CPU_AVX512},
                 {"avx512bf16", NN_CPU_AVX512 | NN_CPU_AVX512_BF16}};

/* The CPU by one of its paths in the GPU's place: three threads in even runs, one in odd ones. */
static nn_status_t gpu_open_path(const char *name) {
  int32_t bits = 0;
  for (size_t i = 0; i < sizeof gpu_paths / sizeof *gpu_paths; i++)
    if (!strcmp(gpu_paths[i].name, name)) bits = gpu_paths[i].bits;
  if (!bits) return status_fail(NN_ERR_ARGUMENT, "there is no path \"%s\"", name);
  gpu.is_cpu = 1;
  if ((dispatch_paths() & bits) == bits) {
    STATUS_TRY(gpu_open_place(cpu_backend_open, 3, bits, &gpu.turn[0]));
    return gpu_open_place(cpu_backend_open, 1, bits, &gpu.turn[1]);
  }
  if (processor_has(bits)) return status_fail(NN_ERR_DEVICE, "the %s path is missing", name);
  return status_fail(NN_ERR_UNSUPPORTED, "this processor has no %s", name);
}

/* A thread for each processor that this process may use. */
static nn_status_t gpu_open_cpu(void) {
  cpu_set_t mine;
  int32_t cores = sched_getaffinity(0, sizeof mine, &mine) == 0 ? CPU_COUNT(&mine) : 1;
  gpu_place_t place;
  STATUS_TRY(gpu_open_place(cpu_backend_open, cores, NN_CPU_AVX2 | NN_CPU_AVX512, &place));
  gpu_take(GPU_CPU, place);
  return NN_OK;
}

int gpu_absent(nn_status_t status) {
  backend_open_fn open;
  return status == NN_ERR_NOT_FOUND &&
         (!getenv("MOENN_PLUGIN_PATH") ||
          plugin_open(CUDA_BACKEND_LIBRARY, CUDA_BACKEND_OPEN, &open) == NN_OK);
}

/* The GPU, or a path of the CPU, alone may be absent; whatever else goes wrong is a failure. */
int gpu_open(void) {
#ifdef __GLIBC__ /* what a case gives back is the next one's: new pages are dear in large numbers */
  mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, INT32_MAX);
#endif
  select_tests();
  const char *half = getenv("MOENN_TEST_HALF");
  if (half && !strcmp(half, "f16")) gpu_dtypes[0] = NN_F16;
  gpu.half_alone = half != NULL;
  const char *name = getenv("MOENN_TEST_DEVICE");
  int cpu = name && !strncmp(name, "cpu:", 4);
  nn_status_t status = cpu ? gpu_open_path(name + 4) : gpu_open_plugin();
  if (cpu ? status == NN_ERR_UNSUPPORTED : gpu_absent(status)) {
    printf("skipped, for there is nothing to test: %s\n", nn_last_error());
    return GPU_SKIPPED;
  }
  gpu_take(GPU_GPU, gpu.turn[0]);
  if (status == NN_OK) status = gpu_open_cpu();
  if (status != NN_OK) {
    printf("a backend could not be opened: %s\n", nn_last_error());
    return 1;
  }
  const backend_t *table = gpu.table[GPU_GPU];
  if (table->abi_version == BACKEND_ABI_VERSION && table->struct_size >= sizeof *table) return 0;
  printf("the CUDA backend has ABI version %d, not %d\n", table->abi_version, BACKEND_ABI_VERSION);
  return 1;
}

int gpu_close(void **state) {
  (void)state;
  gpu_place_t places[] = {{gpu.table[GPU_CPU], gpu.device[GPU_CPU]}, gpu.turn[0], gpu.turn[1]};
  for (int i = 0; i < (gpu.turn[0].device == gpu.turn[1].device ? 2 : 3); i++) {
    void (*close)(backend_device_t *) = places[i].table->close; /* the table goes with the device */
    close(places[i].device);
  }
  return 0;
}

int32_t gpu_dtype(int side) { return side == GPU_CPU ? NN_F32 : gpu.dtype; }
const backend_t *gpu_table(int side) { return gpu.table[side]; }
backend_device_t *gpu_device(int side) { return gpu.device[side]; }
void gpu_cancel(int32_t raised) { atomic_store(&gpu.cancel, raised); }

int gpu_leaves(int32_t dtype, double work) {
  if (gpu.half_alone && dtype == NN_F32) return 1;
  return !select_case(work) || (gpu.is_cpu && (dtype != NN_BF16 || work > 0x1p26));
}

void gpu_expect(nn_status_t want, nn_status_t got, const char *operation) {
  if (got != want)
    fail_msg("%s: %s gave %s instead of %s: %s", gpu.name, operation, nn_status_name(got),
             nn_status_name(want), nn_last_error());
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void gpu_copy_in(void *data, const void *host, size_t bytes) {
  gpu_expect(NN_OK, gpu.table[GPU_GPU]->copy_in(gpu.device[GPU_GPU], data, host, bytes), "copy_in");
}

static void gpu_copy_out(void *host, const void *data, size_t bytes) {
  gpu_expect(NN_OK, gpu.table[GPU_GPU]->copy_out(gpu.device[GPU_GPU], host, data, bytes),
             "copy_out");
}

static void *gpu_alloc(int side, size_t bytes) {
  void *data = NULL;
  gpu_expect(NN_OK, gpu.table[side]->alloc(gpu.device[side], bytes, &data), "alloc");
  assert_int_equal((uintptr_t)data % 64, 0);
  return data;
}

static void gpu_release(int side, void *data, size_t bytes) {
  gpu.table[side]->free(gpu.device[side], data, bytes);
}

static void *gpu_host(size_t bytes) {
  void *data = malloc(bytes ? bytes : 1);
  assert_non_null(data);
  return data;
}

void *gpu_memory(int64_t count, size_t size) {
  assert_true(gpu.block_count < BLOCKS);
  void *data = calloc(count ? (size_t)count : 1, size);
  assert_non_null(data);
  return gpu.blocks[gpu.block_count++] = data;
}

/* A mixer of 64 bits (Steele, Lea and Flood, 2014): tens of millions of numbers in no time. */
static uint64_t gpu_mix(uint64_t seed, int64_t i) {
  uint64_t x = (seed + 1) * 0xd1342543de82ef95u + (uint64_t)i * 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

float *gpu_uniform(int64_t count, double scale, double shift, uint64_t seed) {
  float *data = gpu_memory(count, sizeof *data);
  for (int64_t i = 0; i < count; i++)
    data[i] = (float)(shift + scale * ((double)(gpu_mix(seed, i) >> 11) * 0x1p-52 - 1));
  return data;
}

int32_t *gpu_indices(int64_t count, int64_t bound, uint64_t seed) {
  int32_t *data = gpu_memory(count, sizeof *data);
  for (int64_t i = 0; i < count; i++)
    data[i] = (int32_t)(gpu_mix(seed, i) % (uint64_t)bound);
  return data;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static size_t gpu_size(gpu_kind_t kind, int side) {
  static const size_t size[] = {[GPU_F32] = 4, [GPU_F64] = 8, [GPU_I16] = 2,
                                [GPU_I32] = 4, [GPU_I64] = 8};
  if (kind != GPU_ACT) return size[kind];
  return side == GPU_GPU && gpu.dtype != NN_F32 ? 2 : 4;
}

/* Content of both sides; activations in 16 bits are rounded, and widened again for the CPU. */
static void gpu_set_first(gpu_tensor_t *t, const void *values) {
  if (t->kind != GPU_ACT) {
    for (int s = 0; s < GPU_SIDES; s++) memcpy(t->first[s], values, t->bytes[s]);
    return;
  }
  dtype_convert(t->first[GPU_GPU], gpu.dtype, values, NN_F32, t->count);
  dtype_convert(t->first[GPU_CPU], NN_F32, t->first[GPU_GPU], gpu.dtype, t->count);
}

static void gpu_upload(const gpu_tensor_t *t, int side) {
  if (side == GPU_CPU)
    memcpy(t->at[GPU_CPU], t->first[GPU_CPU], t->bytes[GPU_CPU]);
  else
    gpu_copy_in(t->at[GPU_GPU], t->first[GPU_GPU], t->bytes[GPU_GPU] + GUARD);
}

gpu_tensor_t *gpu_tensor(gpu_kind_t kind, gpu_use_t use, const void *values, int64_t count) {
  assert_true(gpu.tensor_count < TENSORS && count > 0);
  gpu_tensor_t *t = gpu_memory(1, sizeof *t);
  gpu.tensors[gpu.tensor_count++] = t;
  t->kind = kind, t->use = use, t->count = count;
  for (int s = 0; s < GPU_SIDES; s++) {
    size_t guard = s == GPU_GPU ? GUARD : 0;
    t->bytes[s] = (size_t)count * gpu_size(kind, s);
    t->first[s] = gpu_host(t->bytes[s] + GUARD);
    memset(t->first[s], GUARD_BYTE, t->bytes[s] + GUARD); /* NaN */
    t->at[s] = gpu_alloc(s, t->bytes[s] + guard);
  }
  t->got = gpu_host(t->bytes[GPU_GPU] + GUARD), t->spare = gpu_host(t->bytes[GPU_GPU] + GUARD);
  if (use != GPU_WRITE) gpu_set_first(t, values);
  for (int s = 0; s < GPU_SIDES; s++) gpu_upload(t, s);
  return t;
}

gpu_tensor_t *gpu_in(int64_t count, double scale, double shift, uint64_t seed) {
  return gpu_tensor(GPU_ACT, GPU_READ, gpu_uniform(count, scale, shift, seed), count);
}

gpu_tensor_t *gpu_out(gpu_kind_t kind, int64_t count) {
  return gpu_tensor(kind, GPU_WRITE, NULL, count);
}

gpu_tensor_t *gpu_sum(gpu_kind_t kind, int64_t count, uint64_t seed) {
  return gpu_tensor(kind, GPU_UPDATE, gpu_uniform(count, 0.25, 0, seed), count);
}

gpu_tensor_t *gpu_ints(const int32_t *values, int64_t count) {
  return gpu_tensor(GPU_I32, GPU_READ, values, count);
}

void *gpu_at(const gpu_tensor_t *t, int side, int64_t offset) {
  return t ? t->at[side] + (size_t)offset * gpu_size(t->kind, side) : NULL;
}

static double gpu_element(const gpu_tensor_t *t, const char *data, int side, int64_t i) {
  const uint16_t *half = (const uint16_t *)data;
  switch (t->kind) {
    case GPU_ACT:
      if (side == GPU_CPU || gpu.dtype == NN_F32) return ((const float *)data)[i];
      return gpu.dtype == NN_F16 ? dtype_f16_to_f32(half[i]) : dtype_bf16_to_f32(half[i]);
    case GPU_F32: return ((const float *)data)[i];
    case GPU_F64: return ((const double *)data)[i];
    case GPU_I16: return ((const int16_t *)data)[i];
    case GPU_I32: return ((const int32_t *)data)[i];
    default: return (double)((const int64_t *)data)[i];
  }
}

double gpu_value(const gpu_tensor_t *t, int side, int64_t i) {
  return gpu_element(t, side == GPU_CPU ? t->at[GPU_CPU] : t->got, side, i);
}

void gpu_change(gpu_tensor_t *t, const void *values) {
  gpu_set_first(t, values);
  for (int s = 0; s < GPU_SIDES; s++) gpu_upload(t, s);
}

/* ---- cases ----------------------------------------------------------------------------------- */

static void gpu_lend(int side, backend_limits_t limits) {
  if (side == GPU_GPU) gpu_take(side, gpu.turn[0]); /* of all turns the one with most threads */
  limits.weight_dtype = limits.act_dtype = gpu_dtype(side);
  if (gpu.dtype == NN_F32) limits.rows += limits.rows / 2 + 3; /* limits are upper bounds */
  gpu.scratch_bytes[side] = gpu.table[side]->workspace_bytes(gpu.device[side], &limits);
  gpu.scratch[side] = gpu_alloc(side, gpu.scratch_bytes[side] + GUARD);
}

void gpu_begin(int32_t dtype, backend_limits_t limits, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int length = snprintf(gpu.name, sizeof gpu.name, "%s, ", dtype_name(dtype));
  vsnprintf(gpu.name + length, sizeof gpu.name - (size_t)length, format, arguments);
  va_end(arguments);
  gpu.dtype = dtype;
  for (int s = 0; s < GPU_SIDES; s++) gpu_lend(s, limits);
}

/* After a run, or at a case's end for what is only read: nothing behind the tensor was written, and
 * nothing in it that may not be. */
static void gpu_check_untouched(const gpu_tensor_t *t, const char *when) {
  size_t from = t->use == GPU_READ ? 0 : t->bytes[GPU_GPU];
  size_t bytes = t->bytes[GPU_GPU] + GUARD - from;
  if (memcmp(t->got + from, t->first[GPU_GPU] + from, bytes) != 0)
    fail_msg("%s: %s wrote %s a tensor of %lld elements", gpu.name, when,
             from ? "behind" : "to or behind", (long long)t->count);
}

void gpu_end(void) {
  for (int i = 0; i < gpu.tensor_count; i++) {
    gpu_tensor_t *t = gpu.tensors[i];
    if (t->use == GPU_READ) {
      gpu_copy_out(t->got, t->at[GPU_GPU], t->bytes[GPU_GPU] + GUARD);
      gpu_check_untouched(t, "an operation");
    }
    gpu_release(GPU_CPU, t->at[GPU_CPU], t->bytes[GPU_CPU]);
    gpu_release(GPU_GPU, t->at[GPU_GPU], t->bytes[GPU_GPU] + GUARD);
    for (int s = 0; s < GPU_SIDES; s++) free(t->first[s]);
    free(t->got), free(t->spare);
  }
  gpu.tensor_count = 0;
  while (gpu.block_count) free(gpu.blocks[--gpu.block_count]);
  for (int s = 0; s < GPU_SIDES; s++) {
    gpu_release(s, gpu.scratch[s], gpu.scratch_bytes[s] + GUARD);
    gpu.scratch[s] = NULL;
  }
}

/* ---- runs ------------------------------------------------------------------------------------ */

/* Scratch is full of NaN at first, later of numbers; the guard behind it is NaN. A GPU fills it:
 * copying its tens of megabytes would take longer than most cases; where a CPU is in its place,
 * bytes do. */
static void gpu_soil_scratch(int run) {
  char *data = gpu.scratch[GPU_GPU];
  size_t bytes = gpu.scratch_bytes[GPU_GPU];
  op_fill_normal_t fill = {.out = data, .dtype = NN_F32, .seed = 1, .std = run ? 0.2f : NAN};
  fill.count = (int64_t)(bytes / sizeof(float));
  if (gpu.is_cpu)
    memset(data, run ? 0x3d : 0xff, bytes);
  else
    gpu_expect(NN_OK, GPU_CALL(fill_normal, GPU_GPU, &fill), "fill_normal");
  unsigned char guard[GUARD];
  memset(guard, GUARD_BYTE, GUARD);
  gpu_copy_in(data + bytes, guard, GUARD);
}

void gpu_prepare(int side, int run) {
  if (side == GPU_GPU) gpu_take(side, gpu.turn[run % 2]);
  for (int i = 0; i < gpu.tensor_count; i++)
    if (gpu.tensors[i]->use != GPU_READ) gpu_upload(gpu.tensors[i], side);
  if (side == GPU_GPU) gpu_soil_scratch(run);
}

backend_scratch_t gpu_scratch(int side) {
  return (backend_scratch_t){gpu.scratch[side], gpu.scratch_bytes[side]};
}

static void gpu_check_scratch(const char *operation) {
  unsigned char guard[GUARD];
  gpu_copy_out(guard, (char *)gpu.scratch[GPU_GPU] + gpu.scratch_bytes[GPU_GPU], GUARD);
  for (int i = 0; i < GUARD; i++)
    if (guard[i] != GUARD_BYTE)
      fail_msg("%s: %s wrote byte %d behind %zu bytes of scratch", gpu.name, operation, i,
               gpu.scratch_bytes[GPU_GPU]);
}

void gpu_collect(const char *operation, int run) {
  for (int i = 0; i < gpu.tensor_count; i++) {
    gpu_tensor_t *t = gpu.tensors[i];
    if (t->use == GPU_READ) continue;
    size_t bytes = t->bytes[GPU_GPU];
    char *now = t->spare;
    gpu_copy_out(now, t->at[GPU_GPU], bytes + GUARD);
    if (run && t->use != GPU_SPENT && memcmp(now, t->got, bytes) != 0)
      fail_msg("%s: run %d of %s gave other bits in the tensor of %lld elements, number %d",
               gpu.name, run, operation, (long long)t->count, i);
    t->spare = t->got, t->got = now;
    gpu_check_untouched(t, operation);
  }
  gpu_check_scratch(operation);
}

/* ---- comparisons ----------------------------------------------------------------------------- */

double gpu_bound_f32(int64_t terms) { return (16 + 2 * sqrt((double)terms)) * 0x1p-24; }

double gpu_bound(int roundings, int64_t terms) {
  double half = gpu.dtype == NN_BF16 ? 0x1p-8 : gpu.dtype == NN_F16 ? 0x1p-11 : 0;
  return half * sqrt(roundings) + (1 + roundings) * gpu_bound_f32(terms);
}

/* One element on both sides: what was wanted, how far off it is, what the accumulation's own
 * roundings may be. */
typedef struct gpu_pair {
  double got, want, off, slack;
} gpu_pair_t;

static gpu_pair_t gpu_compare(const gpu_tensor_t *t, int64_t i) {
  gpu_pair_t p = {.got = gpu_value(t, GPU_GPU, i), .want = gpu_value(t, GPU_CPU, i)};
  p.off = isinf(p.want) && p.got == p.want ? 0 : fabs(p.got - p.want);
  if (isinf(p.want)) p.want = 0; /* off says whether it is the same one */
  if (t->use != GPU_UPDATE || t->kind == GPU_ACT) return p;
  double before = gpu_element(t, t->first[GPU_CPU], GPU_CPU, i);
  p.slack = 8 * 0x1p-24 * (fabs(before) + fabs(p.want));
  p.want -= before;
  return p;
}

void gpu_check_rows(const gpu_tensor_t *t, const char *name, int64_t offset, int64_t rows,
                    int64_t width, int64_t stride, double bound) {
  assert_true(rows > 0 && width > 0 && offset + (rows - 1) * stride + width <= t->count);
  double want2 = 0, off2 = 0, slack2 = 0, *row2 = gpu_host((size_t)rows * sizeof *row2);
  for (int64_t r = 0; r < rows; r++) {
    row2[r] = 0;
    for (int64_t c = 0; c < width; c++) {
      gpu_pair_t p = gpu_compare(t, offset + r * stride + c);
      row2[r] += p.want * p.want, off2 += p.off * p.off, slack2 += p.slack * p.slack;
    }
    want2 += row2[r];
  }
  double whole = sqrt(want2 / (double)(rows * width)) * (bound / 64 + 0x1p-18);
  for (int64_t r = 0; r < rows; r++) {
    double size = sqrt(row2[r] / (double)width);
    for (int64_t c = 0; c < width; c++) {
      gpu_pair_t p = gpu_compare(t, offset + r * stride + c);
      double allowed = 8 * bound * (size + fabs(p.want)) + whole + p.slack;
      if (!(p.off <= allowed))
        fail_msg("%s: %s[%lld, %lld] of [%lld, %lld] is %.9g, off by %.3g (allowed %.3g) from %.9g",
                 gpu.name, name, (long long)r, (long long)c, (long long)rows, (long long)width,
                 p.got, p.off, allowed, gpu_value(t, GPU_CPU, offset + r * stride + c));
    }
  }
  free(row2);
  double allowed = bound * sqrt(want2) + sqrt(slack2);
  if (!(sqrt(off2) <= allowed))
    fail_msg("%s: %s is off by %.3g in norm, %.3g of its own; allowed %.3g", gpu.name, name,
             sqrt(off2), sqrt(off2 / want2), allowed);
}

void gpu_check(const gpu_tensor_t *t, const char *name, int64_t width, double bound) {
  assert_int_equal(t->count % width, 0);
  gpu_check_rows(t, name, 0, t->count / width, width, width, bound);
}

void gpu_check_gaps(const gpu_tensor_t *t, const char *name, int64_t width, int64_t stride) {
  size_t size = gpu_size(t->kind, GPU_GPU);
  for (int64_t i = 0; i < t->count; i++)
    if (i % stride >= width &&
        memcmp(t->got + (size_t)i * size, t->first[GPU_GPU] + (size_t)i * size, size) != 0)
      fail_msg("%s: %s was written between its rows, at %lld", gpu.name, name, (long long)i);
}

void gpu_check_equal(const gpu_tensor_t *t, const char *name, int64_t count) {
  assert_true(count <= t->count);
  for (int64_t i = 0; i < count; i++) {
    double got = gpu_value(t, GPU_GPU, i), want = gpu_value(t, GPU_CPU, i);
    if (!(got == want))
      fail_msg("%s: %s[%lld] of %lld is %.9g, not %.9g", gpu.name, name, (long long)i,
               (long long)count, got, want);
  }
}
