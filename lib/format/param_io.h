/* One parameter between its place in a buffer and its published, row-major form in a file:
 * converted, turned where it is stored as a transpose, a piece at a time. A buffer in device memory,
 * of transfer->device, is reached through a copy of the one parameter. */
#ifndef NN_FORMAT_PARAM_IO_H
#define NN_FORMAT_PARAM_IO_H

#include "base/file.h"
#include "format/transfer.h"
#include "model/params.h"

/* Writes the parameter's elements of a buffer of dtype, from published data of file_dtype, which is
 * F32, BF16 or F16. Counts the data's bytes, and gives back the memory that the file is mapped to. */
nn_status_t param_io_read(const param_t *param, int32_t dtype, void *buffer,
                          const file_map_t *map, const unsigned char *data, int32_t file_dtype,
                          transfer_t *transfer);

/* Writes the parameter to a file, as dtype as it is in the buffer. */
nn_status_t param_io_write(const param_t *param, int32_t dtype, const void *buffer,
                           file_writer_t *writer, transfer_t *transfer);

#endif
