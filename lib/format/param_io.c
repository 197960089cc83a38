#include "format/param_io.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "base/device.h"
#include "base/dtype.h"
#include "base/mem.h"
#include "base/threads.h"
#include "format/mxfp4.h"

/* How a run of a parameter goes through a file: in blocks of published rows. A run stored as it is
 * published counts as rows of one element. */
typedef struct plan {
  bool transposed;
  int64_t rows, cols;
  int64_t block; /* rows at a time */
} plan_t;

static plan_t plan_make(const param_t *param, size_t file_element) {
  plan_t plan = {.rows = param->elements / param->runs, .cols = 1};
  /* one column alone lies the same way either way */
  const int32_t row = param->run_stride != 0; /* the dimension of a run's rows */
  plan.transposed =
      param->ndim == row + 2 && param->stride[row] == 1 && param->shape[row + 1] > 1;
  if (plan.transposed) {
    plan.rows = param->shape[row];
    plan.cols = param->shape[row + 1];
  }
  plan.block = TRANSFER_PIECE / (plan.cols * (int64_t)file_element);
  if (plan.block < 1) plan.block = 1;
  if (plan.block > plan.rows) plan.block = plan.rows;
  return plan;
}

/* Byte of the buffer at which a run begins. */
static size_t run_begin(const param_t *param, int64_t run, size_t element) {
  return (size_t)(param->offset + run * param->run_stride) * element;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* What is read at once: a part of one run that a file has in one piece, or, of a transpose that
 * goes to device memory, that the buffer has in one piece. */
typedef struct piece {
  unsigned char *to;
  const unsigned char *from, *scales; /* published elements, or MXFP4 blocks and their scales */
  const file_map_t *map;
  int32_t dtype, file_dtype;
  bool transposed;
  int64_t rows, cols;             /* of a transpose, as published */
  int64_t to_stride, from_stride; /* of a transpose */
  int64_t elements;
  int64_t bytes; /* of the file */
} piece_t;

/* A long read, shared by threads. */
typedef struct reader {
  param_next_fn next;
  void *user;
  transfer_t *transfer;
  bool host; /* the buffers are host memory */
  atomic_llong moved; /* bytes that the callback has not heard of */
  pthread_mutex_t lock; /* of all below */
  bool ended;           /* no more is to be read: all is, or something failed */
  nn_status_t status;   /* the first failure, of whichever thread, and its message */
  char message[512];
  param_item_t item; /* under way */
  plan_t plan;       /* of a run of it */
  int64_t run, done; /* the run, and how many of its blocks, rows or columns are given out */
  bool begun;
} reader_t;

/* What is given out of a run, one by one. */
static int64_t reader_units(const reader_t *reader) {
  const param_t *param = &reader->item.param;
  if (reader->item.source.scales) return param->elements / param->runs / MXFP4_BLOCK;
  return reader->plan.transposed && !reader->host ? reader->plan.cols : reader->plan.rows;
}

/* Gives back what a run that went column by column is mapped to. Columns that another thread still
 * reads are mapped anew. */
static void reader_leave_run(const reader_t *reader) {
  const plan_t *plan = &reader->plan;
  const param_source_t *source = &reader->item.source;
  if (reader->host || source->scales || !plan->transposed) return;
  const size_t bytes = (size_t)(plan->rows * plan->cols) * nn_dtype_bytes(source->dtype);
  file_map_forget(source->map, source->data + (size_t)reader->run * bytes, bytes);
}

/* The next run with something to give out; false behind the last. */
static bool reader_find(reader_t *reader) {
  while (!reader->begun || reader->done == reader_units(reader)) {
    if (reader->begun) reader_leave_run(reader);
    reader->done = 0;
    if (reader->begun && ++reader->run < reader->item.param.runs) continue;
    reader->run = 0;
    reader->begun = reader->next(reader->user, &reader->item);
    if (!reader->begun) return false;
    reader->plan = plan_make(&reader->item.param, nn_dtype_bytes(reader->item.source.dtype));
  }
  return true;
}

/* As many blocks as make a piece. */
static void piece_take_packed(reader_t *reader, piece_t *piece) {
  enum { BLOCKS = TRANSFER_PIECE / MXFP4_BLOCK / (int)sizeof(float) }; /* a piece of fp32 */
  const int64_t first = reader->run * reader_units(reader) + reader->done;
  const int64_t left = reader_units(reader) - reader->done, blocks = left < BLOCKS ? left : BLOCKS;
  piece->from = reader->item.source.data + first * MXFP4_BLOCK_BYTES;
  piece->scales = reader->item.source.scales + first;
  piece->to += (size_t)(reader->done * MXFP4_BLOCK) * nn_dtype_bytes(piece->dtype);
  piece->elements = blocks * MXFP4_BLOCK;
  piece->bytes = blocks * (MXFP4_BLOCK_BYTES + 1);
  reader->done += blocks;
}

static void piece_take_plain(reader_t *reader, piece_t *piece) {
  const plan_t *plan = &reader->plan;
  const size_t element = nn_dtype_bytes(piece->dtype);
  const size_t file_element = nn_dtype_bytes(piece->file_dtype);
  const bool by_columns = plan->transposed && !reader->host;
  const int64_t across = by_columns ? plan->rows : plan->cols;
  const int64_t left = reader_units(reader) - reader->done;
  int64_t units = TRANSFER_PIECE / (across * (int64_t)file_element);
  units = units < 1 ? 1 : units > left ? left : units;
  piece->transposed = plan->transposed;
  piece->rows = by_columns ? plan->rows : units;
  piece->cols = by_columns ? units : plan->cols;
  piece->to_stride = plan->rows, piece->from_stride = plan->cols;
  piece->from = reader->item.source.data +
                (size_t)(reader->run * plan->rows * plan->cols) * file_element +
                (size_t)(reader->done * (by_columns ? 1 : plan->cols)) * file_element;
  piece->to += (size_t)(reader->done * (by_columns ? plan->rows : 1)) * element;
  piece->elements = piece->rows * piece->cols;
  piece->bytes = piece->elements * (int64_t)file_element;
  reader->done += units;
}

/* Gives the next piece out. */
static bool reader_take(reader_t *reader, piece_t *piece) {
  pthread_mutex_lock(&reader->lock);
  bool taken = !reader->ended && reader_find(reader);
  if (!taken) reader->ended = true;
  if (taken) {
    const param_item_t *item = &reader->item;
    *piece = (piece_t){.map = item->source.map, .dtype = item->dtype};
    piece->file_dtype = item->source.dtype;
    piece->to = (unsigned char *)item->buffer +
                run_begin(&item->param, reader->run, nn_dtype_bytes(item->dtype));
    if (item->source.scales)
      piece_take_packed(reader, piece);
    else
      piece_take_plain(reader, piece);
  }
  pthread_mutex_unlock(&reader->lock);
  return taken;
}

static void piece_unpack(const piece_t *piece, unsigned char *to) {
  enum { BLOCKS = 128 };
  float values[BLOCKS * MXFP4_BLOCK];
  const int64_t blocks = piece->elements / MXFP4_BLOCK;
  for (int64_t done = 0; done < blocks; done += BLOCKS) {
    int64_t count = blocks - done < BLOCKS ? blocks - done : BLOCKS;
    mxfp4_decode(values, piece->from + done * MXFP4_BLOCK_BYTES, piece->scales + done, count);
    dtype_convert(to, piece->dtype, values, NN_F32, count * MXFP4_BLOCK);
    to += (size_t)(count * MXFP4_BLOCK) * nn_dtype_bytes(piece->dtype);
  }
}

/* Writes the piece's elements to `to`, which stands for piece->to. */
static void piece_convert(const piece_t *piece, unsigned char *to) {
  if (piece->scales)
    piece_unpack(piece, to);
  else if (piece->transposed)
    dtype_transpose(to, piece->dtype, piece->to_stride, piece->from, piece->file_dtype,
                    piece->from_stride, piece->rows, piece->cols);
  else
    dtype_convert(to, piece->dtype, piece->from, piece->file_dtype, piece->elements);
}

/* A thread's memory for what is on its way to device memory. */
typedef struct staged {
  void *data;
  size_t bytes;
} staged_t;

/* By way of host memory, unless the file has the bytes as they are. */
static nn_status_t piece_copy_in(const piece_t *piece, nn_device_t *device, staged_t *staged) {
  const size_t bytes = (size_t)piece->elements * nn_dtype_bytes(piece->dtype);
  const void *from = piece->from;
  if (piece->scales || piece->transposed || piece->dtype != piece->file_dtype) {
    if (staged->bytes < bytes) {
      mem_free(staged->data);
      *staged = (staged_t){0};
      STATUS_TRY(mem_alloc(bytes, 1, &staged->data));
      staged->bytes = bytes;
    }
    piece_convert(piece, staged->data);
    from = staged->data;
  }
  return device->backend->copy_in(device->place, piece->to, from, bytes);
}

static nn_status_t piece_read(const piece_t *piece, const reader_t *reader, staged_t *staged) {
  if (reader->host)
    piece_convert(piece, piece->to);
  else
    STATUS_TRY(piece_copy_in(piece, reader->transfer->device, staged));
  if (piece->scales)
    file_map_forget(piece->map, piece->from,
                    (size_t)(piece->elements / MXFP4_BLOCK * MXFP4_BLOCK_BYTES));
  else if (reader->host || !piece->transposed)
    file_map_forget(piece->map, piece->from, (size_t)piece->bytes);
  return NN_OK;
}

/* Tells the callback of what all threads have moved. */
static nn_status_t reader_advance(reader_t *reader) {
  int64_t moved = atomic_exchange(&reader->moved, 0);
  return moved ? transfer_advance(reader->transfer, moved) : NN_OK;
}

static void reader_fail(reader_t *reader, nn_status_t status) {
  pthread_mutex_lock(&reader->lock);
  reader->ended = true;
  if (reader->status == NN_OK) {
    reader->status = status;
    snprintf(reader->message, sizeof reader->message, "%s", nn_last_error());
  }
  pthread_mutex_unlock(&reader->lock);
}

static void reader_work(void *context, int32_t thread) {
  reader_t *reader = context;
  piece_t piece;
  staged_t staged = {0};
  while (reader_take(reader, &piece)) {
    nn_status_t status = piece_read(&piece, reader, &staged);
    if (status == NN_OK) atomic_fetch_add(&reader->moved, piece.bytes);
    if (status == NN_OK && !thread) status = reader_advance(reader);
    if (status != NN_OK) reader_fail(reader, status);
  }
  mem_free(staged.data);
}

nn_status_t param_io_read(param_next_fn next, void *user, transfer_t *transfer) {
  enum { SHARE = 8 * TRANSFER_PIECE }; /* bytes that are worth a thread */
  const nn_device_t *device = transfer->device;
  reader_t reader = {.next = next, .user = user, .transfer = transfer};
  reader.host = !device || device->host_memory;
  int64_t threads = (transfer->total - transfer->done) / SHARE;
  if (!device || threads < 1) threads = 1;
  if (device && threads > device->threads) threads = device->threads;
  pthread_mutex_init(&reader.lock, NULL);
  threads_run((int32_t)threads, reader_work, &reader);
  pthread_mutex_destroy(&reader.lock);
  if (reader.status != NN_OK) return status_fail(reader.status, "%s", reader.message);
  return reader_advance(&reader);
}

int64_t param_io_bytes(const param_t *param, const param_source_t *source) {
  if (source->scales) return param->elements / MXFP4_BLOCK * (MXFP4_BLOCK_BYTES + 1);
  return param->elements * (int64_t)nn_dtype_bytes(source->dtype);
}

/* ---- writing --------------------------------------------------------------------------------- */

static nn_status_t write_run(const param_t *param, int32_t dtype, const unsigned char *from,
                             file_writer_t *writer, transfer_t *transfer) {
  size_t element = nn_dtype_bytes(dtype);
  plan_t plan = plan_make(param, element);
  void *turned = NULL;
  if (plan.transposed) STATUS_TRY(mem_alloc((size_t)(plan.block * plan.cols), element, &turned));
  nn_status_t status = NN_OK;
  for (int64_t row = 0; status == NN_OK && row < plan.rows; row += plan.block) {
    int64_t rows = plan.rows - row < plan.block ? plan.rows - row : plan.block;
    size_t bytes = (size_t)(rows * plan.cols) * element;
    const void *piece = from + (size_t)row * element;
    if (plan.transposed) {
      dtype_transpose(turned, dtype, plan.cols, piece, dtype, plan.rows, plan.cols, rows);
      piece = turned;
    }
    status = file_writer_write(writer, piece, bytes);
    if (status == NN_OK) status = transfer_advance(transfer, (int64_t)bytes);
  }
  mem_free(turned);
  return status;
}

nn_status_t param_io_write(const param_t *param, int32_t dtype, const void *buffer,
                           file_writer_t *writer, transfer_t *transfer) {
  nn_device_t *device = transfer->device;
  size_t element = nn_dtype_bytes(dtype);
  size_t bytes = (size_t)(param->elements / param->runs) * element;
  bool host = !device || device->host_memory;
  void *staged = NULL;
  if (!host) STATUS_TRY(mem_alloc(bytes, 1, &staged));
  nn_status_t status = NN_OK;
  for (int64_t run = 0; status == NN_OK && run < param->runs; run++) {
    const unsigned char *at = (const unsigned char *)buffer + run_begin(param, run, element);
    if (!host) status = device->backend->copy_out(device->place, staged, at, bytes);
    if (status == NN_OK) status = write_run(param, dtype, host ? at : staged, writer, transfer);
  }
  mem_free(staged);
  return status;
}
