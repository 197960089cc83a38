#include "format/param_io.h"

#include "base/device.h"
#include "base/dtype.h"
#include "base/mem.h"
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

static nn_status_t read_plain(const param_t *param, int32_t dtype, unsigned char *to,
                              const param_source_t *source, int64_t run, transfer_t *transfer) {
  size_t element = nn_dtype_bytes(dtype), file_element = nn_dtype_bytes(source->dtype);
  plan_t plan = plan_make(param, file_element);
  const unsigned char *data =
      source->data + (size_t)(run * (param->elements / param->runs)) * file_element;
  for (int64_t row = 0; row < plan.rows; row += plan.block) {
    int64_t rows = plan.rows - row < plan.block ? plan.rows - row : plan.block;
    const unsigned char *from = data + (size_t)(row * plan.cols) * file_element;
    if (plan.transposed)
      dtype_transpose(to + (size_t)row * element, dtype, plan.rows, from, source->dtype, plan.cols,
                      rows, plan.cols);
    else
      dtype_convert(to + (size_t)row * element, dtype, from, source->dtype, rows);
    size_t bytes = (size_t)(rows * plan.cols) * file_element;
    file_map_forget(source->map, from, bytes);
    STATUS_TRY(transfer_advance(transfer, (int64_t)bytes));
  }
  return NN_OK;
}

static nn_status_t read_packed(const param_t *param, int32_t dtype, unsigned char *to,
                               const param_source_t *source, int64_t run, transfer_t *transfer) {
  enum { BLOCKS = 128 };
  float values[BLOCKS * MXFP4_BLOCK];
  const int64_t blocks = param->elements / param->runs / MXFP4_BLOCK;
  const unsigned char *from = source->data + (size_t)(run * blocks) * MXFP4_BLOCK_BYTES;
  const unsigned char *scales = source->scales + run * blocks;
  for (int64_t done = 0; done < blocks; done += BLOCKS) {
    int64_t count = blocks - done < BLOCKS ? blocks - done : BLOCKS;
    mxfp4_decode(values, from, scales + done, count);
    dtype_convert(to, dtype, values, NN_F32, count * MXFP4_BLOCK);
    to += (size_t)(count * MXFP4_BLOCK) * nn_dtype_bytes(dtype);
    from += count * MXFP4_BLOCK_BYTES;
    STATUS_TRY(transfer_advance(transfer, count * (MXFP4_BLOCK_BYTES + 1)));
  }
  file_map_forget(source->map, from - blocks * MXFP4_BLOCK_BYTES,
                  (size_t)blocks * MXFP4_BLOCK_BYTES);
  return NN_OK;
}

int64_t param_io_bytes(const param_t *param, const param_source_t *source) {
  if (source->scales) return param->elements / MXFP4_BLOCK * (MXFP4_BLOCK_BYTES + 1);
  return param->elements * (int64_t)nn_dtype_bytes(source->dtype);
}

nn_status_t param_io_read(const param_t *param, int32_t dtype, void *buffer,
                          const param_source_t *source, transfer_t *transfer) {
  nn_device_t *device = transfer->device;
  size_t element = nn_dtype_bytes(dtype);
  size_t bytes = (size_t)(param->elements / param->runs) * element;
  bool host = !device || device->host_memory;
  void *staged = NULL;
  if (!host) STATUS_TRY(mem_alloc(bytes, 1, &staged));
  nn_status_t status = NN_OK;
  for (int64_t run = 0; status == NN_OK && run < param->runs; run++) {
    unsigned char *at = (unsigned char *)buffer + run_begin(param, run, element);
    unsigned char *to = host ? at : staged;
    status = source->scales ? read_packed(param, dtype, to, source, run, transfer)
                            : read_plain(param, dtype, to, source, run, transfer);
    if (status == NN_OK && !host)
      status = device->backend->copy_in(device->place, at, staged, bytes);
  }
  mem_free(staged);
  return status;
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
