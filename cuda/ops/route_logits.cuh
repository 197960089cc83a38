/* What routing's forward kernels share: logits of a tile of tokens, their softmax, and the weights
 * of what is chosen. */
#ifndef NN_CUDA_ROUTE_LOGITS_CUH
#define NN_CUDA_ROUTE_LOGITS_CUH

#include "ops/route.cuh"

enum { ROUTE_TILE = 64 /* tokens whose logits exist at once in a block */ };

/* ---- logits ---------------------------------------------------------------------------------- */

/* Logits of a tile and of up to NT * 8 experts in shared memory: those of token i are the sum, in
 * order, of rows i, i + span, ... of at most ROUTE_WARPS `slices`. Four columns of padding spread
 * rows over banks. */
template <int NT>
struct route_logits_t {
  static constexpr int width = NT * 8, stride = width + 4;
  float *part; /* [16 * ROUTE_WARPS, stride] */
  int span, slices;

  __device__ float at(int i, int e) const {
    float sum = part[i * stride + e];
#pragma unroll
    for (int s = 1; s < ROUTE_WARPS; s++)
      if (s < slices) sum += part[(s * span + i) * stride + e];
    return sum;
  }
};

/* Does not displace what the first-level cache holds: w. Not through the read-only path: see
 * launch.cuh. */
__device__ __forceinline__ uint4 route_load_once(const void *from) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

/* x: the tile's first row; w: the first expert's. Products may take columns in any order as long as
 * both sides agree: a lane's 16 bytes, columns 8 t .. 8 t + 7 of 32, serve as its fragments of two
 * products of 16 columns. Hidden is a multiple of 8. */
template <int NT, typename T>
static __device__ void route_logits_mma(route_logits_t<NT> &out, const T *x, const T *w,
                                        int64_t hidden, int rows, int experts) {
  constexpr int UNROLL = 4;
  static_assert(NT <= 2, "registers have room for w's fragments of all steps at once");
  int warp = threadIdx.x >> 5, g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
  int tiles = rows <= 16 ? 1 : rows <= 32 ? 2 : 4;
  out.span = 16 * tiles, out.slices = ROUTE_WARPS / tiles;
  int row = warp % tiles * 16 + g;
  const T *x0 = x + min(row, rows - 1) * hidden, *x1 = x + min(row + 8, rows - 1) * hidden;
  int64_t slice = (hidden + 32 * out.slices - 1) / (32 * out.slices) * 32;
  int64_t begin = warp / tiles * slice, end = min(begin + slice, hidden);
  float sum[NT][4] = {};
  for (int64_t c = begin + 8 * t; c - 8 * t < end; c += 32 * UNROLL) {
    uint4 a0[UNROLL] = {}, a1[UNROLL] = {}, b[UNROLL][NT] = {};
    auto load_w = [&](int j, int64_t at) {
      return __ldg((const uint4 *)(w + min(8 * j + g, experts - 1) * hidden + at));
    };
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      int64_t at = c + 32 * u;
      if (at >= end) continue;
      a0[u] = route_load_once(x0 + at), a1[u] = route_load_once(x1 + at);
#pragma unroll
      for (int j = 0; j < NT; j++) b[u][j] = load_w(j, at);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
#pragma unroll
      for (int j = 0; j < NT; j++) {
        half_multiply<T>(sum[j], a0[u].x, a1[u].x, a0[u].y, a1[u].y, b[u][j].x, b[u][j].y);
        half_multiply<T>(sum[j], a0[u].z, a1[u].z, a0[u].w, a1[u].w, b[u][j].z, b[u][j].w);
      }
    }
  }
  float *to = out.part + (warp * 16 + g) * out.stride + 2 * t;
#pragma unroll
  for (int j = 0; j < NT; j++) {
    *(float2 *)(to + 8 * j) = make_float2(sum[j][0], sum[j][1]);
    *(float2 *)(to + 8 * out.stride + 8 * j) = make_float2(sum[j][2], sum[j][3]);
  }
}

/* For any shape: a warp takes 4 tokens and 4 experts at a time, its lanes share the columns. */
template <int NT, typename T>
static __device__ void route_logits_plain(route_logits_t<NT> &out, const T *x, const T *w,
                                          int64_t hidden, int rows, int experts) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int across = (experts + 3) / 4, items = (rows + 3) / 4 * across;
  out.span = ROUTE_TILE, out.slices = 1;
  for (int item = warp; item < items; item += ROUTE_WARPS) {
    int row = item / across * 4, expert = item % across * 4;
    const T *x_at[4], *w_at[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      x_at[i] = x + min(row + i, rows - 1) * hidden;
      w_at[i] = w + min(expert + i, experts - 1) * hidden;
    }
    float sum[4][4] = {};
    for (int64_t c = lane; c < hidden; c += 32) {
      float a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = to_float(x_at[i][c]), b[i] = to_float(w_at[i][c]);
#pragma unroll
      for (int i = 0; i < 16; i++) sum[i / 4][i % 4] = fmaf(a[i / 4], b[i % 4], sum[i / 4][i % 4]);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
      float logit = warp_sum(sum[i / 4][i % 4]);
      if (lane == i) out.part[(row + i / 4) * out.stride + expert + i % 4] = logit;
    }
  }
}

template <int NT, typename T>
static __device__ void route_logits(route_logits_t<NT> &out, const T *x, const T *w,
                                    int64_t hidden, int rows, int experts, int vectors) {
  if constexpr (sizeof(T) == 2)
    if (vectors) return route_logits_mma(out, x, w, hidden, rows, experts);
  route_logits_plain(out, x, w, hidden, rows, experts);
}

/* Turns a group's logits into probabilities, which were powers of e of this sum, and the largest
 * logit's was 1. Others than numbers make all probabilities NaN. */
template <int LANES, int PER>
static __device__ __forceinline__ float route_powers(float (&p)[PER], int q, int experts,
                                                     float *largest) {
  float most = -INFINITY, sum = 0;
#pragma unroll
  for (int j = 0; j < PER; j++) {
    p[j] = q + LANES * j < experts ? p[j] : -INFINITY;
    most = fmaxf(most, p[j]);
  }
#pragma unroll
  for (int step = LANES / 2; step; step >>= 1)
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
#pragma unroll
  for (int j = 0; j < PER; j++) {
    p[j] = expf(p[j] - most); /* without a branch, so that they overlap */
    sum += p[j];
  }
  sum = lanes_sum<LANES>(sum);
  float share = 1 / sum; /* of at least 1 */
#pragma unroll
  for (int j = 0; j < PER; j++) p[j] *= share;
  *largest = most;
  return sum;
}

/* The same; returns the log-sum-exp. */
template <int LANES, int PER>
static __device__ float route_softmax(float (&p)[PER], int q, int experts) {
  float most, sum = route_powers<LANES>(p, q, experts, &most);
  return most + logf(sum);
}

/* The weight of a chosen score, sum being that of all the chosen. */
__device__ __forceinline__ float route_weight(const op_router_t &router, float score, float sum) {
  return router.scale * (score / sum);
}

/* What scores are divided by: the sum of the chosen ones or nothing; NaN where the scores are. */
__device__ __forceinline__ float route_divisor(const op_router_t &router, float sum, bool nan) {
  if (router.norm == NN_ROUTER_NORM_NONE) sum = 1;
  return nan ? NAN : sum;
}

#endif
