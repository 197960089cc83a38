/* The activation of gated linear units and its derivatives, as op_glu_t defines them. */
#ifndef NN_CUDA_GLU_CUH
#define NN_CUDA_GLU_CUH

#include "kernel.cuh"

/* 1 / (1 + e^-x). FAST: by approximations within a few units in the last place of fp32. */
template <bool FAST>
__device__ __forceinline__ float glu_sigmoid(float x) {
  if constexpr (!FAST) return 1 / (1 + expf(-x));
  float s;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(x * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(1 + s));
  return s;
}

/* act = g s u with s = sigmoid(g), or with a limit g' sigmoid(1.702 g') (u' + 1). */
template <bool FAST = false>
__device__ __forceinline__ float glu_act(float g, float u, float limit) {
  float factor = 1;
  if (limit != 0) {
    g = fminf(g, limit), u = fmaxf(fminf(u, limit), -limit) + 1;
    factor = 1.702f;
  }
  return g * glu_sigmoid<FAST>(factor * g) * u;
}

/* act, and its derivatives by g and u. */
template <bool FAST = false>
__device__ __forceinline__ float glu_slopes(float g, float u, float limit, float *by_g,
                                            float *by_u) {
  float factor = 1;
  bool g_moves = true, u_moves = true;
  if (limit != 0) {
    g_moves = g <= limit, u_moves = fabsf(u) <= limit;
    g = fminf(g, limit), u = fmaxf(fminf(u, limit), -limit) + 1;
    factor = 1.702f;
  }
  float s = glu_sigmoid<FAST>(factor * g), a = g * s;
  *by_g = g_moves ? u * (s + factor * a * (1 - s)) : 0;
  *by_u = u_moves ? a : 0;
  return a * u;
}

#endif
