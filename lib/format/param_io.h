/* Parameters between their place in a buffer and their published, row-major form in a file:
 * converted, turned where they are stored as transposes, a piece at a time. A buffer in device
 * memory, of transfer->device, is reached through copies. */
#ifndef NN_FORMAT_PARAM_IO_H
#define NN_FORMAT_PARAM_IO_H

#include "base/file.h"
#include "format/transfer.h"
#include "model/params.h"

/* Where a parameter is in a file: its elements as published, one after the other; or MXFP4 blocks
 * of them as stored, run by run. */
typedef struct param_source {
  const file_map_t *map; /* what data is in */
  int32_t dtype;         /* F32, BF16 or F16; of MXFP4 U8 */
  const unsigned char *data;
  const unsigned char *scales; /* of MXFP4 blocks, or NULL */
} param_source_t;

/* Bytes of a parameter in a file. */
int64_t param_io_bytes(const param_t *param, const param_source_t *source);

/* A parameter to be read into a buffer of dtype. */
typedef struct param_item {
  param_t param;
  int32_t dtype;
  void *buffer;
  param_source_t source;
} param_item_t;

/* Gives the next one; false where there is none. */
typedef bool (*param_next_fn)(void *user, param_item_t *item);

/* Writes the elements of every parameter that next() gives to its buffer; several threads do where
 * there is much to be read. next() and the callback are called by one thread at a time, the
 * callback by the calling one. Counts the files' bytes, and gives back the memory that they are
 * mapped to. */
nn_status_t param_io_read(param_next_fn next, void *user, transfer_t *transfer);

/* Writes the parameter to a file, as dtype as it is in the buffer. */
nn_status_t param_io_write(const param_t *param, int32_t dtype, const void *buffer,
                           file_writer_t *writer, transfer_t *transfer);

#endif
