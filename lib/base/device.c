#define _POSIX_C_SOURCE 200809L
#include "base/device.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "base/mem.h"

void device_retain(nn_device_t *device) {
  atomic_fetch_add_explicit(&device->references, 1, memory_order_relaxed);
}

void device_release(nn_device_t *device) {
  if (atomic_fetch_sub_explicit(&device->references, 1, memory_order_acq_rel) != 1) return;
  device->backend->close(device->place);
  pthread_cond_destroy(&device->turn);
  pthread_mutex_destroy(&device->lock);
  mem_free(device);
}

void device_count(nn_device_t *device, int64_t bytes) {
  long long now = atomic_fetch_add(&device->current_bytes, (long long)bytes) + (long long)bytes;
  long long peak = atomic_load(&device->peak_bytes);
  while (now > peak && !atomic_compare_exchange_weak(&device->peak_bytes, &peak, now)) {
  }
}

nn_status_t device_alloc(nn_device_t *device, size_t bytes, const char *what, void **data) {
  if (!bytes) {
    *data = NULL;
    return NN_OK;
  }
  nn_status_t status = device->backend->alloc(device->place, bytes, data);
  if (status == NN_ERR_MEMORY)
    return status_fail(NN_ERR_MEMORY,
                       "%s: %zu bytes for %s could not be had; the device holds %lld bytes already",
                       device->name, bytes, what, (long long)atomic_load(&device->current_bytes));
  if (status != NN_OK) return status;
  device_count(device, (int64_t)bytes);
  atomic_fetch_add(&device->allocations, 1);
  return NN_OK;
}

void device_free(nn_device_t *device, void *data, size_t bytes) {
  if (!data) return;
  device->backend->free(device->place, data, bytes);
  device_count(device, -(int64_t)bytes);
}

nn_status_t device_poll(nn_device_t *device) {
  if (!atomic_load_explicit(&device->cancel, memory_order_relaxed)) return NN_OK;
  return status_fail(NN_ERR_CANCELLED,
                     "the device's cancel flag is set; clear it with nn_device_cancel(device, 0)");
}

void device_lock(nn_device_t *device) {
  pthread_mutex_lock(&device->lock);
  uint64_t turn = device->next++;
  while (device->serving != turn) pthread_cond_wait(&device->turn, &device->lock);
  pthread_mutex_unlock(&device->lock);
}

nn_status_t device_enter(nn_device_t *device) {
  STATUS_TRY(device_poll(device));
  device_lock(device);
  nn_status_t status = device_poll(device);
  if (status != NN_OK) device_leave(device);
  return status;
}

void device_leave(nn_device_t *device) {
  pthread_mutex_lock(&device->lock);
  device->serving++;
  pthread_cond_broadcast(&device->turn);
  pthread_mutex_unlock(&device->lock);
}

nn_status_t device_zero(nn_device_t *device, void *data, size_t bytes) {
  if (!bytes) return NN_OK;
  device_lock(device);
  nn_status_t status = device->backend->zero(device->place, data, bytes);
  device_leave(device);
  return status;
}

void device_log(nn_device_t *device, int32_t level, const char *format, ...) {
  if (level > device->log_level) return;
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(text, sizeof text - 1, format, arguments);
  va_end(arguments);
  if (length < 0) return;
  if (device->log) {
    device->log(level, text, device->log_user);
    return;
  }
  size_t bytes = (size_t)length < sizeof text - 2 ? (size_t)length : sizeof text - 2;
  text[bytes++] = '\n';
  if (write(STDERR_FILENO, text, bytes) < 0) return; /* nobody is left to tell */
}
