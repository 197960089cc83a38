/* The activation of gated linear units, forward and backward, a vector at a time: silu(g) u, or
 * with a limit g' sigmoid(1.702 g') (u' + 1) of the clamped g' and u'; see op_glu_t. */
#ifndef NN_CPU_VEC_GLU_H
#define NN_CPU_VEC_GLU_H

#include "vec/vec.h"

#define GLU_SLOPE 1.702f

VEC_INLINE vf glu_clamp_g(vf g, float limit) { return vf_min(vf_set1(limit), g); }
VEC_INLINE vf glu_clamp_u(vf u, float limit) {
  return vf_max(vf_set1(-limit), vf_min(vf_set1(limit), u));
}

/* Replaces each g by the activation. */
VEC_INLINE void glu_acts(const int count, vf *g, vf *u, float limit) {
  vf rise[VEC_BESIDE];
  VEC_EACH(i, count) {
    if (limit != 0.0f) g[i] = glu_clamp_g(g[i], limit);
    if (limit != 0.0f) u[i] = vf_add(glu_clamp_u(u[i], limit), vf_set1(1.0f));
    rise[i] = limit != 0.0f ? vf_mul(vf_set1(GLU_SLOPE), g[i]) : g[i];
  }
  vf_rises(count, rise);
  VEC_EACH(i, count) g[i] = vf_mul(vf_div(g[i], rise[i]), u[i]);
}

VEC_INLINE vf glu_act(vf g, vf u, float limit) {
  glu_acts(1, &g, &u, limit);
  return g;
}

/* Turns g and u into da times the derivatives by them; returns the activation. */
VEC_INLINE vf glu_act_bwd(vf *g, vf *u, vf da, float limit) {
  vf one = vf_set1(1.0f);
  if (limit == 0.0f) {
    vf s = vf_sigmoid(*g), silu = vf_mul(*g, s), a = vf_mul(silu, *u);
    /* silu' = s (1 + g (1 - s)) = s + silu (1 - s) */
    vf slope = vf_fma(silu, vf_sub(one, s), s);
    *g = vf_mul(vf_mul(da, *u), slope);
    *u = vf_mul(da, silu);
    return a;
  }
  vf inner = glu_clamp_g(*g, limit), up = vf_add(glu_clamp_u(*u, limit), one);
  vf s = vf_sigmoid(vf_mul(vf_set1(GLU_SLOPE), inner)), gate = vf_mul(inner, s);
  vf slope = vf_fma(vf_mul(vf_set1(GLU_SLOPE), gate), vf_sub(one, s), s);
  vmask g_moves = vf_at_least(vf_set1(limit), *g);
  vf by_u = vf_select(vf_at_least(vf_set1(limit), *u), vf_mul(da, gate), vf_zero());
  *g = vf_select(g_moves, vf_mul(vf_mul(da, up), slope), vf_zero());
  *u = vf_select(vf_at_least(*u, vf_set1(-limit)), by_u, vf_zero());
  return vf_mul(gate, up);
}

#endif
