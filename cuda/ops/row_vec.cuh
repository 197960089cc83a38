/* Rows in the registers of a warp or a block, sixteen bytes to a lane at a time: loads, sums of
 * products, RMS norm. */
#ifndef NN_CUDA_ROW_VEC_CUH
#define NN_CUDA_ROW_VEC_CUH

#include "kernel.cuh"

/* V elements of T in registers: sixteen bytes as they were loaded, so that they take no more room
 * before their use, or one element as fp32. */
template <typename T, int V>
struct raw_vec_t {
  static_assert(V == 1 || V * sizeof(T) == 16, "sixteen bytes or one element");
  uint32_t word[4];

  /* A weight passes through once: it leaves the first-level cache to x and act. */
  template <bool ONCE>
  __device__ __forceinline__ void load(const T *from) {
    if constexpr (V == 1)
      word[0] = __float_as_uint(to_float(*from));
    else if constexpr (ONCE)
      asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                   : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                   : "l"(__cvta_generic_to_global(from)));
    else
      asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                   : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
                   : "l"(__cvta_generic_to_global(from)));
  }
  __device__ __forceinline__ void store(T *to) const {
    *reinterpret_cast<uint4 *>(to) = make_uint4(word[0], word[1], word[2], word[3]);
  }
  /* Rounds. */
  __device__ __forceinline__ void set(const float (&x)[V]) {
#pragma unroll
    for (int i = 0; i < 4; i++)
      if constexpr (sizeof(T) == 4)
        word[i] = __float_as_uint(x[i]);
      else
        word[i] = half_pair<T>(x[2 * i], x[2 * i + 1]);
  }
  __device__ __forceinline__ float at(int v) const {
    if constexpr (V == 1 || sizeof(T) == 4)
      return __uint_as_float(word[v]);
    else
      return v & 1 ? half_unpack<T>(word[v / 2]).y : half_unpack<T>(word[v / 2]).x;
  }
};

template <typename T>
using row_vec_t = raw_vec_t<T, vec_t<T>::width>;

/* A lane's vectors of a row; zero behind its end. ONCE as in raw_vec_t. */
template <bool ONCE, typename T, int LOADS>
__device__ __forceinline__ void row_load(row_vec_t<T> (&to)[LOADS], const T *row, int32_t first,
                                         int32_t step, int32_t vectors) {
#pragma unroll
  for (int i = 0; i < LOADS; i++) {
    to[i] = {};
    if (first + i * step < vectors)
      to[i].template load<ONCE>(row + (int64_t)(first + i * step) * vec_t<T>::width);
  }
}

/* sum += <w, x> of what a lane has of both. */
template <typename T, int LOADS>
__device__ __forceinline__ float row_dot(const row_vec_t<T> (&w)[LOADS],
                                         const row_vec_t<T> (&x)[LOADS], float sum) {
#pragma unroll
  for (int i = 0; i < LOADS; i++)
#pragma unroll
    for (int v = 0; v < vec_t<T>::width; v++) sum = fmaf(w[i].at(v), x[i].at(v), sum);
  return sum;
}

/* x becomes its norm, rounded; returns 1 / its size. */
template <typename T, int LOADS>
__device__ __forceinline__ float row_norm(const op_norm_t &op, const row_vec_t<T> (&w)[LOADS],
                                          row_vec_t<T> (&x)[LOADS]) {
  constexpr int W = vec_t<T>::width;
  float square = 0;
#pragma unroll
  for (int i = 0; i < LOADS; i++)
#pragma unroll
    for (int v = 0; v < W; v++) square += x[i].at(v) * x[i].at(v);
  float rstd = __frsqrt_rn(warp_sum(square) / (float)op.hidden + op.eps);
#pragma unroll
  for (int i = 0; i < LOADS; i++) {
    float y[W];
#pragma unroll
    for (int v = 0; v < W; v++) y[v] = x[i].at(v) * rstd * w[i].at(v);
    x[i].set(y);
  }
  return rstd;
}

#endif
