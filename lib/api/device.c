/* Exported functions of nn_device_t. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/device.h"
#include "base/mem.h"

enum { MAX_THREADS = 1024 };

/* Reads MOENN_CPU: path names joined by commas. */
static nn_status_t device_paths_from_environment(int32_t *paths) {
  static const struct {
    const char *name;
    int32_t path;
  } known[] = {{"reference", NN_CPU_REFERENCE}, {"avx2", NN_CPU_AVX2}, {"avx512", NN_CPU_AVX512}};
  const char *text = getenv("MOENN_CPU");
  *paths = NN_CPU_REFERENCE | NN_CPU_AVX2 | NN_CPU_AVX512;
  if (!text || !*text) return NN_OK;
  *paths = NN_CPU_REFERENCE;
  for (const char *word = text; *word;) {
    size_t length = strcspn(word, ","), i = 0;
    while (i < 3 && (strlen(known[i].name) != length || strncmp(known[i].name, word, length))) i++;
    if (i == 3)
      return status_fail(NN_ERR_ARGUMENT,
                         "MOENN_CPU is \"%s\"; it takes reference, avx2, avx512, joined by commas",
                         text);
    *paths |= known[i].path;
    word += length;
    if (*word == ',') word++;
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

/* Checks options and turns them into what the backend takes. */
static nn_status_t device_backend_options(const nn_device_options_t *options,
                                          backend_options_t *backend) {
  if (options->threads < 0 || options->threads > MAX_THREADS)
    return status_fail(NN_ERR_ARGUMENT, "nn_device_options_t: threads is %d; it goes from 0 to %d",
                       options->threads, MAX_THREADS);
  if (options->cpu_paths & ~(NN_CPU_REFERENCE | NN_CPU_AVX2 | NN_CPU_AVX512))
    return status_fail(NN_ERR_ARGUMENT, "nn_device_options_t: cpu_paths has unknown bits: 0x%x",
                       (unsigned)options->cpu_paths);
  if (options->log_level < NN_LOG_DEFAULT || options->log_level > NN_LOG_DEBUG)
    return status_fail(NN_ERR_ARGUMENT, "nn_device_options_t: log_level is %d; it goes from 0 to %d",
                       options->log_level, NN_LOG_DEBUG);
  backend->threads = options->threads ? options->threads : device_available_cores();
  backend->affinity = options->affinity;
  backend->cpu_paths = options->cpu_paths | NN_CPU_REFERENCE;
  if (!options->cpu_paths) STATUS_TRY(device_paths_from_environment(&backend->cpu_paths));
  return NN_OK;
}

nn_status_t nn_device_create(const char *name, const nn_device_options_t *options,
                             nn_device_t **device) {
  STATUS_REQUIRE(device);
  if (name && strcmp(name, "cpu"))
    return status_fail(NN_ERR_NOT_FOUND, "device \"%s\": this build has \"cpu\" alone", name);
  nn_device_options_t asked;
  STATUS_TRY(status_read_options(&asked, sizeof asked, options, "nn_device_options_t"));
  backend_options_t backend = {0};
  STATUS_TRY(device_backend_options(&asked, &backend));

  void *got = NULL;
  STATUS_TRY(mem_alloc(1, sizeof(nn_device_t), &got));
  nn_device_t *made = got;
  made->name = "cpu";
  made->log = asked.log;
  made->log_user = asked.log_user;
  made->log_level = asked.log_level ? asked.log_level : NN_LOG_WARNING;
  atomic_init(&made->references, 1);
  backend.cancel = &made->cancel;
  nn_status_t status = NN_OK;
  if (pthread_mutex_init(&made->lock, NULL))
    status = status_fail(NN_ERR_MEMORY, "the device's lock could not be made");
  if (status == NN_OK) {
    status = cpu_backend_open(&backend, &made->backend, &made->place);
    if (status != NN_OK) pthread_mutex_destroy(&made->lock);
  }
  if (status != NN_OK) {
    mem_free(made);
    return status;
  }
  *device = made;
  return NN_OK;
}

void nn_device_destroy(nn_device_t *device) {
  if (device) device_release(device);
}

nn_status_t nn_device_info(const nn_device_t *device, nn_device_info_t *info) {
  STATUS_REQUIRE(device);
  STATUS_TRY(status_check_result(info, sizeof *info, "nn_device_info_t"));
  nn_device_info_t found = {.name = device->name};
  device->backend->describe(device->place, &found.threads, &found.cpu_paths);
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
