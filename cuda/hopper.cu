/* Tensor maps, encoded by the driver. */
#include "hopper.h"

typedef CUresult (*hopper_encode_t)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                    const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                    const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                    CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's function, asked of the runtime so that nothing links with libcuda; NULL: none. Any
 * thread's answer is every thread's. */
static hopper_encode_t hopper_encoder(void) {
  static void *known;
  void *encode = __atomic_load_n(&known, __ATOMIC_RELAXED);
  if (encode) return (hopper_encode_t)encode;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000,
                                                       cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return NULL;
  __atomic_store_n(&known, encode, __ATOMIC_RELAXED);
  return (hopper_encode_t)encode;
}

nn_status_t hopper_map(backend_device_t *device, const char *operation,
                       const hopper_tensor_t *tensor, CUtensorMap *map) {
  hopper_encode_t encode = hopper_encoder();
  if (!encode) return cuda_check(device, operation, cudaErrorNotSupported);
  cuuint64_t dim[HOPPER_MOST_DIMS], stride[HOPPER_MOST_DIMS - 1];
  cuuint32_t box[HOPPER_MOST_DIMS], step[HOPPER_MOST_DIMS];
  for (int i = 0; i < tensor->dims; i++) {
    dim[i] = (cuuint64_t)tensor->dim[i];
    box[i] = (cuuint32_t)tensor->box[i];
    step[i] = 1;
  }
  size_t size = cuda_dtype_bytes(tensor->dtype);
  for (int i = 0; i + 1 < tensor->dims; i++) stride[i] = (cuuint64_t)tensor->stride[i] * size;
  CUtensorMapDataType type = tensor->dtype == NN_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                      : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  CUtensorMapL2promotion promotion = tensor->streamed ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B
                                                      : CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
  CUresult result = encode(map, type, (cuuint32_t)tensor->dims, const_cast<void *>(tensor->base),
                           dim, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                           CU_TENSOR_MAP_SWIZZLE_128B, promotion,
                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return NN_OK;
  return cuda_check(device, operation, cudaErrorInvalidValue);
}
