/* W neighbours of an array in a thread's registers, as they are or as fp32. Accesses have up to
 * sixteen bytes and want that alignment; W = 1 wants none, and is the path of odd shapes. */
#ifndef NN_CUDA_WIDE_CUH
#define NN_CUDA_WIDE_CUH

#include "kernel.cuh"

/* Host: whether all of them allow sixteen-byte accesses; NULL does. */
static inline bool wide_aligned(const void *a, const void *b = NULL, const void *c = NULL,
                                const void *d = NULL, const void *e = NULL) {
  return (((uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)d | (uintptr_t)e) & 15) == 0;
}

enum { ROW_THREADS = 256 };

/* Host: a block whose x runs over the items of a row and whose y over rows. */
static inline dim3 row_block(int64_t items) {
  int64_t x = cuda_blocks(items, 32) * 32;
  if (x > ROW_THREADS) x = ROW_THREADS;
  return dim3((unsigned)x, (unsigned)(ROW_THREADS / x));
}

template <typename T, int W>
struct wide_piece {
  static constexpr int width = W * sizeof(T) <= 16 ? W : 16 / sizeof(T);
  static_assert(W % width == 0, "whole pieces");
  struct alignas(width * sizeof(T)) type {
    T at[width];
  };
};

template <int W, typename T>
__device__ __forceinline__ void wide_read(const T *from, T (&x)[W]) {
  typedef wide_piece<T, W> piece;
#pragma unroll
  for (int i = 0; i < W; i += piece::width) {
    typename piece::type part = *reinterpret_cast<const typename piece::type *>(from + i);
#pragma unroll
    for (int j = 0; j < piece::width; j++) x[i + j] = part.at[j];
  }
}

template <int W, typename T>
__device__ __forceinline__ void wide_write(T *to, const T (&x)[W]) {
  typedef wide_piece<T, W> piece;
#pragma unroll
  for (int i = 0; i < W; i += piece::width) {
    typename piece::type part;
#pragma unroll
    for (int j = 0; j < piece::width; j++) part.at[j] = x[i + j];
    *reinterpret_cast<typename piece::type *>(to + i) = part;
  }
}

template <int W, typename T>
__device__ __forceinline__ void wide_load(const T *from, float (&x)[W]) {
  T raw[W];
  wide_read<W>(from, raw);
#pragma unroll
  for (int j = 0; j < W; j++) x[j] = to_float(raw[j]);
}

template <int W, typename T>
__device__ __forceinline__ void wide_store(T *to, const float (&x)[W]) {
  T raw[W];
#pragma unroll
  for (int j = 0; j < W; j++) raw[j] = from_float<T>(x[j]);
  wide_write<W>(to, raw);
}

#endif
