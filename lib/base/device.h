/* The device handle: a backend, its memory counters, its lock and its log. */
#ifndef NN_BASE_DEVICE_H
#define NN_BASE_DEVICE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdatomic.h>

#include "backend.h"
#include "base/status.h"

struct nn_device {
  atomic_int references;
  const backend_t *backend;
  backend_device_t *place; /* the backend's own handle */
  char name[16];
  bool host_memory; /* its memory is the host's */
  int32_t threads; /* of the host, that the caller lets it have */
  pthread_mutex_t lock;    /* of the two below */
  pthread_cond_t turn;
  uint64_t next, serving;  /* calls that compute take turns, first come, first served */
  atomic_int cancel;
  atomic_llong current_bytes, peak_bytes, allocations;
  nn_log_fn log;
  void *log_user;
  int32_t log_level;
};

void device_retain(nn_device_t *device);
void device_release(nn_device_t *device);

/* Counted device memory, 64-byte aligned, not initialised. bytes 0 gives NULL.
 * what: in the message where there is none: "gradients". */
nn_status_t device_alloc(nn_device_t *device, size_t bytes, const char *what, void **data);
/* Counts bytes as held, or no longer where negative, that device_alloc did not give. */
void device_count(nn_device_t *device, int64_t bytes);
void device_free(nn_device_t *device, void *data, size_t bytes);

/* Work on the device stands between device_lock, or device_enter, and device_leave. device_lock
 * waits for its turn. device_enter fails when the cancel flag is set, before or after the wait. */
void device_lock(nn_device_t *device);
nn_status_t device_enter(nn_device_t *device);
void device_leave(nn_device_t *device);

/* Fills device memory with zero bytes; takes the lock itself. */
nn_status_t device_zero(nn_device_t *device, void *data, size_t bytes);

/* NN_ERR_CANCELLED with a message when the flag is set. */
nn_status_t device_poll(nn_device_t *device);

void device_log(nn_device_t *device, int32_t level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
