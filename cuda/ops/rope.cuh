/* What kernels that turn pairs share. */
#ifndef NN_CUDA_ROPE_CUH
#define NN_CUDA_ROPE_CUH

#include "kernel.cuh"

/* Spelt out, so that every kernel that turns gives the same bits. */
static __device__ __forceinline__ void rope_pair(float &a, float &b, float cosine, float sine) {
  float x = fmaf(a, cosine, -__fmul_rn(b, sine)), y = fmaf(b, cosine, __fmul_rn(a, sine));
  a = x, b = y;
}

#endif
