/* The tensor maps by which attention on sm_90a copies its tiles. */
#include "attention/hopper.cuh"

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
  const cuuint64_t dim[4] = {HOPPER_DIM, (cuuint64_t)tensor->heads, (cuuint64_t)tensor->length,
                             (cuuint64_t)tensor->batch};
  const cuuint64_t stride[3] = {HOPPER_ROW_BYTES, (cuuint64_t)tensor->stride * sizeof(bf16_t),
                                (cuuint64_t)tensor->batch_stride * sizeof(bf16_t)};
  const cuuint32_t box[4] = {HOPPER_DIM, (cuuint32_t)tensor->box_heads,
                             (cuuint32_t)tensor->box_length, 1};
  const cuuint32_t step[4] = {1, 1, 1, 1};
  CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void *>(tensor->base), dim,
             stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return NN_OK;
  return cuda_check(device, operation, cudaErrorInvalidValue);
}
