/* The safetensors reader: any bytes are refused or give tensors that lie inside them, apart, and cover them. */
#include <stdlib.h>

#include "base/dtype.h"
#include "format/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  safetensors_t file = {0};
  if (safetensors_parse(data, size, &file) != NN_OK) return 0;
  const unsigned char *end = NULL;
  for (int64_t i = 0; i < file.count; i++) {
    const safetensors_tensor_t *tensor = &file.tensors[i];
    if (tensor->data < data || tensor->bytes > (size_t)(data + size - tensor->data)) abort();
    if (end && tensor->data != end) abort();
    end = tensor->data + tensor->bytes;
    int64_t elements = 1;
    for (int32_t d = 0; d < tensor->ndim; d++) elements *= tensor->shape[d];
    if (elements != tensor->elements) abort();
    if (!dtype_is_float(tensor->dtype)) continue;
    float *values = malloc((size_t)elements * sizeof *values + 1);
    if (values) dtype_convert(values, NN_F32, tensor->data, tensor->dtype, elements);
    free(values);
  }
  if (end && end != data + size) abort();
  safetensors_metadata(&file, "format");
  safetensors_close(&file);
  return 0;
}
