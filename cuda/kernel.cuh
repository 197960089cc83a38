/* What kernels share: numbers of any dtype as fp32, vector loads, sums in a fixed order. */
#ifndef NN_CUDA_KERNEL_CUH
#define NN_CUDA_KERNEL_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "device.h"

typedef __nv_bfloat16 bf16_t;
typedef __half f16_t;

/* f<bf16_t> or f<f16_t>(...) by a dtype of 16 bits, as an expression. */
#define CUDA_BY_HALF(dtype, f, ...) \
  ((dtype) == NN_F16 ? f<f16_t>(__VA_ARGS__) : f<bf16_t>(__VA_ARGS__))

/* Calls f<float>, f<bf16_t> or f<f16_t>(...) by the dtype of activations and parameters, which is
 * one. */
#define CUDA_BY_DTYPE(dtype, f, ...)         \
  do {                                       \
    if (cuda_is_half(dtype))                 \
      CUDA_BY_HALF(dtype, f, __VA_ARGS__);   \
    else                                     \
      f<float>(__VA_ARGS__);                 \
  } while (0)

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16_t x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(f16_t x) { return __half2float(x); }

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
template <>
__device__ __forceinline__ f16_t from_float<f16_t>(float x) {
  return __float2half_rn(x);
}

/* ---- what differs between the types of 16 bits, bf16_t and f16_t ----------------------------- */

template <typename T>
inline constexpr bool half_is_f16 = false;
template <>
inline constexpr bool half_is_f16<f16_t> = true;

/* Two neighbours in memory. */
template <typename T>
__device__ __forceinline__ uint32_t half_pair(float low, float high) {
  uint32_t pair;
  if constexpr (half_is_f16<T>)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
template <typename T>
__device__ __forceinline__ float2 half_unpack(uint32_t pair) {
  if constexpr (half_is_f16<T>)
    return __half22float2(*reinterpret_cast<const __half2 *>(&pair));
  else
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

/* c += a b by a warp (mma.m16n8k16): a 16 x 16, b 16 x 8, sums in fp32. */
#define HALF_MULTIPLY(type)                                                                  \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, "       \
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                        \
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)                                               \
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
template <typename T>
__device__ __forceinline__ void half_multiply(float &c0, float &c1, float &c2, float &c3,
                                              uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                              uint32_t b0, uint32_t b1) {
  if constexpr (half_is_f16<T>)
    HALF_MULTIPLY("f16");
  else
    HALF_MULTIPLY("bf16");
}
template <typename T>
__device__ __forceinline__ void half_multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                              uint32_t a3, uint32_t b0, uint32_t b1) {
  half_multiply<T>(c[0], c[1], c[2], c[3], a0, a1, a2, a3, b0, b1);
}

/* Four 8 x 8 matrices from shared memory, of whose 32 rows a lane gives the place of one: as
 * fragments of the matrices or of their transposes. */
template <bool TRANSPOSED = false>
__device__ __forceinline__ void half_matrices(uint32_t (&m)[4], uint32_t at) {
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(at)
                 : "memory");
}

/* ---- vectors --------------------------------------------------------------------------------- */

/* Sixteen bytes of T in registers: 4 floats or 8 numbers of 16 bits. */
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

/* ---- sums ------------------------------------------------------------------------------------ */

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

/* The same sum in each group of LANES lanes, in one order. */
template <int LANES, typename T>
__device__ __forceinline__ T lanes_sum(T x) {
#pragma unroll
  for (int step = LANES / 2; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
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
