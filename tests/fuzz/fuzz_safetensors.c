/* The safetensors reader: any bytes are refused, or give tensors that lie inside them, follow each
 * other and cover them. An input that begins with { is a header up to its first newline, and data:
 * the length before the header is put there for it, so that a mutation of the header alone gets
 * past it. */
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "format/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void convert(const safetensors_tensor_t *tensor) {
  float *values = malloc((size_t)tensor->elements * sizeof *values + 1);
  if (values) dtype_convert(values, NN_F32, tensor->data, tensor->dtype, tensor->elements);
  free(values);
}

static void check_file(const uint8_t *data, size_t size) {
  safetensors_t file = {0};
  if (safetensors_parse(data, size, &file) != NN_OK) return;
  const unsigned char *end = NULL;
  for (int64_t i = 0; i < file.count; i++) {
    const safetensors_tensor_t *tensor = &file.tensors[i];
    if (tensor->data < data || tensor->bytes > (size_t)(data + size - tensor->data)) abort();
    if (end && tensor->data != end) abort();
    end = tensor->data + tensor->bytes;
    int64_t elements = 1;
    for (int32_t d = 0; d < tensor->ndim; d++) elements *= tensor->shape[d];
    if (elements != tensor->elements) abort();
    if (dtype_is_float(tensor->dtype)) convert(tensor);
  }
  if (end && end != data + size) abort();
  safetensors_metadata(&file, "format");
  safetensors_close(&file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const uint8_t *newline = size && data[0] == '{' ? memchr(data, '\n', size) : NULL;
  if (!newline) {
    check_file(data, size);
    return 0;
  }
  uint64_t header = (uint64_t)(newline - data), rest = size - header - 1;
  uint8_t *file = malloc(sizeof header + size);
  if (!file) return 0;
  memcpy(file, &header, sizeof header);
  memcpy(file + sizeof header, data, (size_t)header);
  memcpy(file + sizeof header + header, newline + 1, (size_t)rest);
  check_file(file, (size_t)(sizeof header + header + rest));
  free(file);
  return 0;
}
