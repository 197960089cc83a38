/* Copies from host memory by way of page-locked pieces, which are read once the device comes to
 * them, large ones at the bus's rate while the calling threads, any number of them, fill the
 * next. */
#include <stdlib.h>
#include <string.h>

#include "device.h"

enum { PIECES = 16, PIECE_BYTES = 2 << 20 };

typedef struct copy_piece {
  void *data;
  cudaEvent_t read; /* behind the last copy from it */
} copy_piece_t;

struct copy_pieces {
  pthread_mutex_t lock; /* of all below */
  pthread_cond_t returned;
  copy_piece_t idle[PIECES]; /* the first was used longest ago */
  int idle_count, made;
};

nn_status_t cuda_copy_open(backend_device_t *device) {
  device->copies = (copy_pieces_t *)calloc(1, sizeof *device->copies);
  if (!device->copies)
    return cuda_fail(device, NN_ERR_MEMORY, "open", "host memory could not be had");
  pthread_mutex_init(&device->copies->lock, NULL);
  pthread_cond_init(&device->copies->returned, NULL);
  return NN_OK;
}

/* Nothing copies any more. */
void cuda_copy_close(backend_device_t *device) {
  copy_pieces_t *pieces = device->copies;
  if (!pieces) return;
  for (int i = 0; i < pieces->idle_count; i++) {
    cudaEventDestroy(pieces->idle[i].read);
    cudaFreeHost(pieces->idle[i].data);
  }
  pthread_cond_destroy(&pieces->returned);
  pthread_mutex_destroy(&pieces->lock);
  free(pieces);
}

static cudaError_t piece_make(copy_piece_t *piece) {
  cudaError_t error = cudaHostAlloc(&piece->data, PIECE_BYTES, cudaHostAllocDefault);
  if (error != cudaSuccess) return error;
  error = cudaEventCreateWithFlags(&piece->read, cudaEventDisableTiming);
  if (error != cudaSuccess) cudaFreeHost(piece->data);
  return error;
}

/* The piece that was used longest ago, or a new one where that is still being read; none where the
 * system has no page-locked memory. */
static int piece_take(copy_pieces_t *pieces, copy_piece_t *piece) {
  pthread_mutex_lock(&pieces->lock);
  int busy = !pieces->idle_count || cudaEventQuery(pieces->idle[0].read) != cudaSuccess;
  if (busy && pieces->made < PIECES && piece_make(piece) == cudaSuccess) {
    pieces->made++;
    pthread_mutex_unlock(&pieces->lock);
    return 1;
  }
  cudaGetLastError(); /* that none was had, or that one is being read, is no failure */
  int got = pieces->made > 0;
  while (got && !pieces->idle_count) pthread_cond_wait(&pieces->returned, &pieces->lock);
  if (got) {
    *piece = pieces->idle[0];
    pieces->idle_count--;
    memmove(&pieces->idle[0], &pieces->idle[1], (size_t)pieces->idle_count * sizeof *piece);
  }
  pthread_mutex_unlock(&pieces->lock);
  return got;
}

static void piece_return(copy_pieces_t *pieces, const copy_piece_t *piece) {
  pthread_mutex_lock(&pieces->lock);
  pieces->idle[pieces->idle_count++] = *piece;
  pthread_cond_signal(&pieces->returned);
  pthread_mutex_unlock(&pieces->lock);
}

/* Fills a piece and has it copied. */
static cudaError_t piece_send(backend_device_t *device, const copy_piece_t *piece, char *to,
                              const char *from, size_t bytes) {
  cudaError_t error = cudaEventSynchronize(piece->read);
  if (error != cudaSuccess) return error;
  memcpy(piece->data, from, bytes);
  pthread_mutex_lock(&device->recording);
  error = cudaMemcpyAsync(to, piece->data, bytes, cudaMemcpyHostToDevice, device->stream);
  if (error == cudaSuccess) error = cudaEventRecord(piece->read, device->stream);
  pthread_mutex_unlock(&device->recording);
  return error;
}

nn_status_t cuda_copy_in(backend_device_t *device, void *data, const void *host, size_t bytes,
                         size_t *done) {
  CUDA_TRY(cuda_select(device, "copy_in"));
  for (*done = 0; *done < bytes;) {
    size_t now = bytes - *done < (size_t)PIECE_BYTES ? bytes - *done : (size_t)PIECE_BYTES;
    copy_piece_t piece;
    if (!piece_take(device->copies, &piece)) return NN_OK;
    cudaError_t error =
        piece_send(device, &piece, (char *)data + *done, (const char *)host + *done, now);
    piece_return(device->copies, &piece);
    CUDA_TRY(cuda_check(device, "copy_in", error));
    *done += now;
  }
  return NN_OK;
}
