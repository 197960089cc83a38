/* The activation of gated linear units and its derivatives, as op_glu_t defines them. */
#ifndef NN_CUDA_GLU_CUH
#define NN_CUDA_GLU_CUH

#include "kernel.cuh"

/* act = g s u with s = sigmoid(g), or with a limit g' sigmoid(1.702 g') (u' + 1). */
__device__ __forceinline__ float glu_act(float g, float u, float limit) {
  if (limit == 0) return g / (1 + expf(-g)) * u;
  g = fminf(g, limit), u = fmaxf(fminf(u, limit), -limit);
  return g / (1 + expf(-1.702f * g)) * (u + 1);
}

/* act, and its derivatives by g and u. */
__device__ __forceinline__ float glu_slopes(float g, float u, float limit, float *by_g,
                                            float *by_u) {
  float factor = 1;
  bool g_moves = true, u_moves = true;
  if (limit != 0) {
    g_moves = g <= limit, u_moves = fabsf(u) <= limit;
    g = fminf(g, limit), u = fmaxf(fminf(u, limit), -limit) + 1;
    factor = 1.702f;
  }
  float s = 1 / (1 + expf(-factor * g)), a = g * s;
  *by_g = g_moves ? u * s * (1 + factor * g * (1 - s)) : 0;
  *by_u = u_moves ? a : 0;
  return a * u;
}

#endif
