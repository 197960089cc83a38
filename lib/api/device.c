/* Exported functions of nn_device_t. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/device.h"
#include "base/dlpack.h"
#include "base/mem.h"
#include "base/plugin.h"

enum { MAX_THREADS = 1024 };

/* Sizes of the structs in the release that brought them. */
enum {
  OPTIONS_FIRST_SIZE = offsetof(nn_device_options_t, tf32),
  INFO_FIRST_SIZE = offsetof(nn_device_info_t, model)
};

static const struct {
  const char *name;
  int32_t path;
} known[] = {{"reference", NN_CPU_REFERENCE},
             {"avx2", NN_CPU_AVX2},
             {"avx512", NN_CPU_AVX512},
             {"avx512bf16", NN_CPU_AVX512_BF16}};

enum { KNOWN = sizeof known / sizeof *known };
static const int32_t every_path =
    NN_CPU_REFERENCE | NN_CPU_AVX2 | NN_CPU_AVX512 | NN_CPU_AVX512_BF16;

/* Reads MOENN_CPU: path names joined by commas. Nothing set: 0. */
static nn_status_t device_paths_from_environment(int32_t *paths) {
  const char *text = getenv("MOENN_CPU");
  *paths = 0;
  if (!text || !*text) return NN_OK;
  *paths = NN_CPU_REFERENCE;
  for (const char *word = text; *word;) { /* a comma at the end is a word that no path has */
    size_t length = strcspn(word, ","), i = 0;
    while (i < KNOWN && (strlen(known[i].name) != length || strncmp(known[i].name, word, length)))
      i++;
    if (i == KNOWN)
      return status_fail(
          NN_ERR_ARGUMENT,
          "MOENN_CPU is \"%s\"; it takes reference, avx2, avx512, avx512bf16, joined by commas",
          text);
    *paths |= known[i].path;
    word += length;
    if (*word == ',' && word[1]) word++;
  }
  return NN_OK;
}

/* Cores that this process may use. */
static int32_t device_available_cores(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set)) return 1;
  int count = CPU_COUNT(&set);
  return count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
}

/* Says so where paths that the application or MOENN_CPU named are not there. */
static void device_warn_of_paths(nn_device_t *device, int32_t named) {
  backend_info_t info = {.struct_size = sizeof info};
  device->backend->describe(device->place, &info);
  char missing[64] = "", have[64] = "";
  for (size_t i = 0; i < KNOWN; i++) {
    if (!((named | info.cpu_paths) & known[i].path)) continue;
    char *text = info.cpu_paths & known[i].path ? have : missing;
    size_t used = strlen(text);
    snprintf(text + used, sizeof have - used, "%s%s", used ? ", " : "", known[i].name);
  }
  if (*missing)
    device_log(device, NN_LOG_WARNING,
               "cpu path %s was asked for; this processor and build have %s", missing, have);
}

/* ---- what the backend calls ------------------------------------------------------------------ */

static int32_t device_cancelled(const void *user) {
  const nn_device_t *device = user;
  return atomic_load_explicit(&device->cancel, memory_order_relaxed);
}

static nn_status_t device_backend_fail(nn_status_t status, const char *message) {
  return status_fail(status, "%s", message);
}

static void device_backend_log(void *user, int32_t level, const char *message) {
  device_log(user, level, "%s", message);
}

/* ---- opening --------------------------------------------------------------------------------- */

/* Checks options and turns them into what the backend takes; named: paths that were asked for. */
static nn_status_t device_backend_options(const nn_device_options_t *options,
                                          backend_options_t *backend, int32_t *named) {
  if (options->threads < 0 || options->threads > MAX_THREADS)
    return status_fail(NN_ERR_ARGUMENT, "nn_device_options_t: threads is %d; it goes from 0 to %d",
                       options->threads, MAX_THREADS);
  if (options->cpu_paths & ~every_path)
    return status_fail(NN_ERR_ARGUMENT, "nn_device_options_t: cpu_paths has unknown bits: 0x%x",
                       (unsigned)options->cpu_paths);
  if (options->log_level < NN_LOG_DEFAULT || options->log_level > NN_LOG_DEBUG)
    return status_fail(NN_ERR_ARGUMENT, "nn_device_options_t: log_level %d is not from 0 to %d",
                       options->log_level, NN_LOG_DEBUG);
  if (options->affinity && !options->threads)
    return status_fail(
        NN_ERR_ARGUMENT,
        "nn_device_options_t: affinity is given, so threads must be, for its length");
  backend->threads = options->threads ? options->threads : device_available_cores();
  backend->affinity = options->affinity;
  if (options->tf32 != 0 && options->tf32 != 1)
    return status_fail(NN_ERR_ARGUMENT, "nn_device_options_t: tf32 is %d; it is 0 or 1",
                       options->tf32);
  backend->fast_fp32 = options->tf32;
  *named = options->cpu_paths;
  if (!*named) STATUS_TRY(device_paths_from_environment(named));
  if (*named & NN_CPU_AVX512_BF16) *named |= NN_CPU_AVX512;
  backend->cpu_paths = NN_CPU_REFERENCE | (*named ? *named : every_path);
  return NN_OK;
}

static nn_status_t device_open(nn_device_t *device, backend_open_fn open,
                               const backend_options_t *options) {
  STATUS_TRY(open(options, &device->backend, &device->place));
  const backend_t *table = device->backend;
  if (table->abi_version == BACKEND_ABI_VERSION && table->struct_size >= sizeof *table)
    return NN_OK;
  nn_status_t status = status_fail(
      NN_ERR_UNSUPPORTED,
      "device \"%s\": its backend has ABI version %d and a table of %zu bytes; this library needs "
      "version %d and %zu bytes",
      device->name, table->abi_version, table->struct_size, BACKEND_ABI_VERSION, sizeof *table);
  table->close(device->place);
  return status;
}

/* Opens the backend and asks it what it is. */
static nn_status_t device_begin(nn_device_t *device, backend_open_fn open,
                                backend_options_t *options) {
  options->cancelled = device_cancelled;
  options->cancel_user = device;
  options->fail = device_backend_fail;
  options->log = device_backend_log;
  options->log_user = device;
  STATUS_TRY(device_open(device, open, options));
  backend_info_t info = {.struct_size = sizeof info};
  device->backend->describe(device->place, &info);
  device->host_memory = info.dlpack_device == DLPACK_CPU;
  return NN_OK;
}

/* Which device a name means: "cpu" or "cuda:N", N below 100; "cuda" is "cuda:0". */
static nn_status_t device_parse(const char *name, bool *cuda, int32_t *index) {
  *cuda = false;
  *index = 0;
  if (!name || !strcmp(name, "cpu")) return NN_OK;
  *cuda = true;
  if (!strcmp(name, "cuda")) return NN_OK;
  const char *digits = name + 5;
  if (!strncmp(name, "cuda:", 5) && strspn(digits, "0123456789") == strlen(digits) && *digits &&
      strlen(digits) <= 2) {
    *index = (int32_t)strtol(digits, NULL, 10);
    return NN_OK;
  }
  return status_fail(NN_ERR_NOT_FOUND, "device \"%.64s\": there are \"cpu\" and \"cuda:N\"", name);
}

nn_status_t nn_device_create(const char *name, const nn_device_options_t *options,
                             nn_device_t **device) {
  STATUS_REQUIRE(device);
  bool cuda;
  nn_device_options_t asked;
  backend_options_t backend = {.struct_size = sizeof backend};
  int32_t named = 0;
  STATUS_TRY(device_parse(name, &cuda, &backend.index));
  STATUS_TRY(status_read_options(&asked, sizeof asked, OPTIONS_FIRST_SIZE, options,
                                 "nn_device_options_t"));
  STATUS_TRY(device_backend_options(&asked, &backend, &named));
  backend_open_fn open = cpu_backend_open;
  if (cuda) STATUS_TRY(plugin_open(CUDA_BACKEND_LIBRARY, CUDA_BACKEND_OPEN, &open));

  void *got = NULL;
  STATUS_TRY(mem_alloc(1, sizeof(nn_device_t), &got));
  nn_device_t *made = got;
  if (cuda)
    snprintf(made->name, sizeof made->name, "cuda:%d", backend.index);
  else
    snprintf(made->name, sizeof made->name, "cpu");
  made->threads = backend.threads;
  made->log = asked.log;
  made->log_user = asked.log_user;
  made->log_level = asked.log_level ? asked.log_level : NN_LOG_WARNING;
  atomic_init(&made->references, 1);
  nn_status_t status = device_begin(made, open, &backend);
  if (status != NN_OK) {
    mem_free(made);
    return status;
  }
  pthread_mutex_init(&made->lock, NULL); /* neither can fail with default attributes on Linux */
  pthread_cond_init(&made->turn, NULL);
  if (!cuda) device_warn_of_paths(made, named);
  *device = made;
  return NN_OK;
}

void nn_device_destroy(nn_device_t *device) {
  if (device) device_release(device);
}

nn_status_t nn_device_info(const nn_device_t *device, nn_device_info_t *info) {
  STATUS_REQUIRE(device);
  STATUS_TRY(status_check_result(info, INFO_FIRST_SIZE, "nn_device_info_t"));
  nn_device_info_t found = {.name = device->name};
  backend_info_t backend = {.struct_size = sizeof backend};
  device->backend->describe(device->place, &backend);
  found.threads = backend.threads;
  found.cpu_paths = backend.cpu_paths;
  found.model = backend.model;
  status_write_result(info, &found, sizeof found);
  return NN_OK;
}

nn_status_t nn_device_memory(const nn_device_t *device, nn_memory_t *memory) {
  STATUS_REQUIRE(device);
  STATUS_TRY(status_check_result(memory, sizeof *memory, "nn_memory_t"));
  nn_memory_t found = {.current_bytes = atomic_load(&device->current_bytes),
                       .peak_bytes = atomic_load(&device->peak_bytes),
                       .allocations = atomic_load(&device->allocations)};
  status_write_result(memory, &found, sizeof found);
  return NN_OK;
}

void nn_device_cancel(nn_device_t *device, int32_t on) {
  if (device) atomic_store_explicit(&device->cancel, on != 0, memory_order_relaxed);
}
