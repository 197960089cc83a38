/* How far a long read or write has come, told to a progress callback, and whether it is to stop. */
#ifndef NN_FORMAT_TRANSFER_H
#define NN_FORMAT_TRANSFER_H

#include <stdatomic.h>
#include <stddef.h>

#include "base/status.h"

/* Bytes moved between two looks at the cancel flag: well below 50 ms even from a slow disk. */
enum { TRANSFER_PIECE = 1 << 20 };

typedef struct transfer {
  nn_progress_fn progress; /* NULL: nobody listens */
  void *user;
  const atomic_int *cancel; /* NULL: never */
  nn_device_t *device;      /* whose memory the buffer is; NULL: host memory */
  int64_t done, total;      /* bytes */
} transfer_t;

/* Counts bytes as moved; NN_ERR_CANCELLED when the flag is set or the callback says so. */
static inline nn_status_t transfer_advance(transfer_t *transfer, int64_t bytes) {
  transfer->done += bytes;
  if (transfer->cancel && atomic_load_explicit(transfer->cancel, memory_order_relaxed))
    return status_fail(NN_ERR_CANCELLED, "cancelled after %lld of %lld bytes",
                       (long long)transfer->done, (long long)transfer->total);
  if (transfer->progress && transfer->progress(transfer->done, transfer->total, transfer->user))
    return status_fail(NN_ERR_CANCELLED, "the progress callback cancelled after %lld of %lld bytes",
                       (long long)transfer->done, (long long)transfer->total);
  return NN_OK;
}

#endif
