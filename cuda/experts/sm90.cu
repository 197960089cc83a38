/* Which devices and shapes the products of sm90.cuh take, and the tensor maps that they copy by. */
#include "sm90.cuh"

/* Rows of all matrices begin at multiples of 16 bytes; what a tile has beyond a matrix is copied as
 * zeroes. Fewer rows are few.cu's. */
int sm90_fits(const backend_device_t *device, const grouped_t *grouped) {
  return device->capability == 90 && device->shared_bytes >= SM90_SHARED &&
         device->multiprocessors >= SM90_PAIR && grouped->hidden >= 64 &&
         grouped->hidden % 8 == 0 && grouped->ffn >= 64 && grouped->ffn % 8 == 0 &&
         grouped->stride % 8 == 0 && grouped->rows > FEW_ROWS;
}

typedef CUresult (*sm90_encode_t)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                  const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                  const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                  CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's function, asked of the runtime so that nothing links with libcuda; NULL: none. Any
 * thread's answer is every thread's. */
static sm90_encode_t sm90_encoder(void) {
  static void *known;
  void *encode = __atomic_load_n(&known, __ATOMIC_RELAXED);
  if (encode) return (sm90_encode_t)encode;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000,
                                                       cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return NULL;
  __atomic_store_n(&known, encode, __ATOMIC_RELAXED);
  return (sm90_encode_t)encode;
}

nn_status_t sm90_map(backend_device_t *device, const char *operation, const sm90_tensor_t *tensor,
                     CUtensorMap *map) {
  sm90_encode_t encode = sm90_encoder();
  if (!encode) return cuda_check(device, operation, cudaErrorNotSupported);
  cuuint64_t dim[3], stride[2];
  cuuint32_t box[3], step[3] = {1, 1, 1};
  for (int i = 0; i < 3; i++) {
    dim[i] = (cuuint64_t)tensor->dim[i];
    box[i] = (cuuint32_t)tensor->box[i];
  }
  size_t size = tensor->fp32 ? sizeof(float) : sizeof(bf16_t);
  for (int i = 0; i < 2; i++) stride[i] = (cuuint64_t)tensor->stride[i] * size;
  CUtensorMapDataType type =
      tensor->fp32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  CUresult result = encode(map, type, 3, const_cast<void *>(tensor->base), dim, stride, box, step,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return NN_OK;
  return cuda_check(device, operation, cudaErrorInvalidValue);
}
