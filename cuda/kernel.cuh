/* What kernels share: numbers of either dtype as fp32, vector loads, sums in a fixed order. */
#ifndef NN_CUDA_KERNEL_CUH
#define NN_CUDA_KERNEL_CUH

#include <cuda_bf16.h>
#include <stdint.h>

#include "device.h"

typedef __nv_bfloat16 bf16_t;

/* Calls f<float> or f<bf16_t>(...) by the dtype of activations and parameters, which is one. */
#define CUDA_BY_DTYPE(dtype, f, ...)     \
  do {                                   \
    if ((dtype) == NN_BF16)              \
      f<bf16_t>(__VA_ARGS__);            \
    else                                 \
      f<float>(__VA_ARGS__);             \
  } while (0)

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16_t x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16_t from_float<bf16_t>(float x) {
  return __float2bfloat16_rn(x);
}

/* Two neighbours in memory. */
__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

/* Sixteen bytes of T in registers: 4 floats or 8 bf16. */
template <typename T>
struct alignas(16) vec_t {
  static constexpr int width = 16 / sizeof(T);
  T at[width];
};

template <typename T>
__device__ __forceinline__ vec_t<T> vec_load(const T *from) {
  return *reinterpret_cast<const vec_t<T> *>(from);
}
template <typename T>
__device__ __forceinline__ void vec_store(T *to, const vec_t<T> &v) {
  *reinterpret_cast<vec_t<T> *>(to) = v;
}

/* The same sum in all 32 threads, in one order. */
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

/* The same sum in all threads of a block of whole warps, at most 1024; room: shared, [32]. The room
 * may be used again at once. */
template <typename T>
__device__ __forceinline__ T block_sum(T x, T *room) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = warp_sum(x);
  __syncthreads();
  if (lane == 0) room[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? room[lane] : T(0));
}
__device__ __forceinline__ float block_max(float x, float *room) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  x = warp_max(x);
  __syncthreads();
  if (lane == 0) room[warp] = x;
  __syncthreads();
  return warp_max(lane < warps ? room[lane] : -INFINITY);
}

#endif
