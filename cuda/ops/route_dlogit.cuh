/* The gradients of routing's logits, and as operands of the tensor cores: what the ways of its
 * backward pass share. */
#ifndef NN_CUDA_ROUTE_DLOGIT_CUH
#define NN_CUDA_ROUTE_DLOGIT_CUH

#include "launch.cuh"
#include "ops/route_any.cuh"

enum {
  ROUTE_STEP = 16,            /* tokens at once; most experts */
  ROUTE_STRIP = 64,           /* columns of a warp */
  ROUTE_STRIPS = 12,          /* most warps of a block */
  ROUTE_CHUNK = 128,          /* tokens whose dlogits exist at once in a block */
  ROUTE_CHUNK_LANES = 2,      /* of a token, to compute them */
  ROUTE_CHUNK_STRIDE = ROUTE_STEP + 4
};

typedef struct route_bwd_plan {
  float *dlogit; /* [n, E] */
  float *part;   /* [splits, E, H] */
  float *bias_part; /* of dbias */
  int splits;
  int64_t tokens; /* of a split, at most */
} route_bwd_plan_t;

/* route_bwd_sm90.cu: whether it is for this device; x, dx and dw's parts, as route_bwd_mma. */
int route90_bwd_takes(const backend_device_t *device);
nn_status_t route90_bwd_launch(backend_device_t *device, const op_route_bwd_t *op,
                               const route_bwd_plan_t *plan, int64_t warps, int64_t across);

/* route_bwd_many.cu: the whole operation by dense products, where it is for this one. */
size_t route_bwd_many_scratch(const backend_device_t *device, const backend_limits_t *limits);
int route_bwd_many_takes(const op_route_bwd_t *op);
nn_status_t route_bwd_many(backend_device_t *device, const op_route_bwd_t *op,
                           backend_scratch_t scratch);

/* ---- dlogit ---------------------------------------------------------------------------------- */

/* What the sparse mixer adds to a token's dlogits. */
template <int LANES, int PER>
static __device__ __forceinline__ void route_dlogit_mixer(const op_route_bwd_t &op, int64_t token,
                                                          const float (&p)[PER], float lse, int q,
                                                          float *row) {
  const int32_t *expert = op.routing.expert + 2 * token;
  for (int turn = 0; turn < 2; turn++) {
    uint32_t near;
    float chosen = op.prob[token * op.experts + expert[turn]];
    float sum = route_any_near<LANES>(op.router, p, lse, q, turn, expert[0], chosen, &near);
    float d = op.router.scale * op.dweight[2 * token + turn] * (chosen / sum);
#pragma unroll
    for (int j = 0; j < PER; j++) {
      int e = q + LANES * j;
      if (e >= op.experts) continue;
      if (near >> j & 1) row[e] -= d * (p[j] / sum);
      if (e == expert[turn]) row[e] += d;
    }
  }
}

/* A token's choices, of which lane q of LANES has those that are q more than a multiple: f(expert,
 * weight, dweight). The first ones are read at once. */
template <int LANES>
struct route_choices_t {
  static constexpr int EARLY = LANES < 32 ? 2 : 1;
  int32_t expert[EARLY];
  float weight[EARLY], dweight[EARLY];

  __device__ __forceinline__ void load(const op_route_bwd_t &op, int64_t token, int q) {
#pragma unroll
    for (int i = 0; i < EARLY; i++) {
      if (q + LANES * i >= op.top_k) continue;
      int64_t at = token * op.top_k + q + LANES * i;
      expert[i] = op.routing.expert[at], weight[i] = op.routing.weight[at];
      dweight[i] = op.dweight[at];
    }
  }

  template <typename F>
  __device__ __forceinline__ void each(const op_route_bwd_t &op, int64_t token, int q, F f) const {
#pragma unroll
    for (int i = 0; i < EARLY; i++)
      if (q + LANES * i < op.top_k) f(expert[i], weight[i], dweight[i]);
    for (int64_t j = q + LANES * EARLY; j < op.top_k; j += LANES) {
      int64_t at = token * op.top_k + j;
      f(op.routing.expert[at], op.routing.weight[at], op.dweight[at]);
    }
  }
};

/* What a token's gradients are computed from, by a group of LANES lanes, of which this is lane q,
 * PER experts to a lane. */
template <int LANES, int PER>
struct route_token_t {
  float p[PER], share[PER], lse;
  route_choices_t<LANES> choices;

  __device__ __forceinline__ void load(const op_route_bwd_t &op, int64_t token, int q) {
    int experts = (int)op.experts;
#pragma unroll
    for (int j = 0; j < PER; j++) {
      int e = q + LANES * j;
      p[j] = e < experts ? op.prob[token * experts + e] : 0;
      share[j] = e < experts ? op.aux_share[e] : 0;
    }
    lse = op.lse[token];
    choices.load(op, token, q);
  }
};

/* row: shared, gets the token's dlogits. MIXER: it may be the sparse mixer's. */
template <int LANES, int PER, bool MIXER>
static __device__ __forceinline__ void route_dlogit_row(const op_route_bwd_t &op, int64_t token,
                                                        const route_token_t<LANES, PER> &from,
                                                        int q, float *row) {
  int experts = (int)op.experts;
  double share = 1.0 / (double)op.n, chosen = 0, mean = 0, dot = 0, scale = op.router.scale;
#pragma unroll
  for (int j = 0; j < PER; j++)
    if (q + LANES * j < experts) row[q + LANES * j] = from.p[j];
  __syncwarp();
  from.choices.each(op, token, q, [&](int32_t expert, float weight, float dweight) {
    chosen += row[expert];
    mean += (double)dweight * weight;
  });
  chosen = 1 / lanes_sum<LANES>(chosen), mean = lanes_sum<LANES>(mean);
  if (op.router.norm == NN_ROUTER_NORM_NONE) chosen = 1, mean = 0;
  bool mixer = MIXER && op.router.score == NN_SCORE_SPARSE_MIXER;
  if (mixer) scale = 0;
  __syncwarp();
#pragma unroll
  for (int j = 0; j < PER; j++) {
    int e = q + LANES * j;
    if (e < experts) row[e] = (float)((double)(op.aux_scale * from.share[j]) * share);
  }
  __syncwarp();
  from.choices.each(op, token, q, [&](int32_t expert, float, float dweight) {
    row[expert] = (float)(row[expert] + (scale * dweight - mean) * chosen);
  });
  __syncwarp();
#pragma unroll
  for (int j = 0; j < PER; j++)
    if (q + LANES * j < experts) dot += (double)from.p[j] * row[q + LANES * j];
  dot = lanes_sum<LANES>(dot);
  double z = 2.0 * op.z_scale * from.lse * share;
  bool sigmoid = op.router.score == NN_SCORE_SIGMOID;
#pragma unroll
  for (int j = 0; j < PER; j++) {
    int e = q + LANES * j;
    float p = from.p[j];
    if (e >= experts) continue;
    row[e] = (float)(sigmoid ? p * (1 - p) * row[e] : p * (row[e] - dot + z));
  }
  if (mixer) route_dlogit_mixer<LANES>(op, token, from.p, from.lse, q, row);
}

/* ---- through the tensor cores ---------------------------------------------------------------- */

/* Fragments of a step's dlogits, in the order in which lanes load them: as rows of tokens for dx,
 * which is rounded to 16 bits and needs two terms, and as rows of experts for dw. fp16's range is
 * small, so that rows are multiplied by powers of two before, and what comes of them by the
 * reciprocals token and expert. */
typedef struct route_fragments {
  uint4 by_token[2][32], by_expert[3][32];
  float token[ROUTE_STEP], expert[ROUTE_STEP];
} route_fragments_t;

/* Two fp32 numbers as three pairs of T whose sums they are. */
template <typename T>
static __device__ __forceinline__ void route_terms(float x, float y, uint32_t (&term)[3]) {
#pragma unroll
  for (int i = 0; i < 3; i++) {
    term[i] = half_pair<T>(x, y);
    float2 near = half_unpack<T>(term[i]);
    x -= near.x, y -= near.y;
  }
}

/* Four numbers of a row, of which neighbouring lanes have the others: brings the row's largest to
 * 2^14 and more, where three terms of fp16 leave out at most 2^-39 of it. Returns the
 * reciprocal. */
static __device__ __forceinline__ float route_scale(float2 (&x)[2]) {
  float most = fmaxf(fmaxf(fabsf(x[0].x), fabsf(x[0].y)), fmaxf(fabsf(x[1].x), fabsf(x[1].y)));
  most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
  most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
  uint32_t power = min(14 + 2 * 127 - (__float_as_uint(most) >> 23), 253u);
  float scale = __uint_as_float(power << 23);
#pragma unroll
  for (int i = 0; i < 2; i++) x[i].x *= scale, x[i].y *= scale;
  return __uint_as_float((254 - power) << 23);
}

/* One lane's fragments of a step, whose dlogits begin at row. */
template <typename T>
static __device__ __forceinline__ void route_cut(const float *row, int lane,
                                                 route_fragments_t &out) {
  int g = lane >> 2, t = 2 * (lane & 3);
  uint32_t token[4][3], expert[4][3];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    int m = g + 8 * h;
    float2 x[2], y[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int k = t + 8 * i;
      x[i] = make_float2(row[m * ROUTE_CHUNK_STRIDE + k], row[m * ROUTE_CHUNK_STRIDE + k + 1]);
      y[i] = make_float2(row[k * ROUTE_CHUNK_STRIDE + m], row[(k + 1) * ROUTE_CHUNK_STRIDE + m]);
    }
    if constexpr (half_is_f16<T>) {
      float back = route_scale(x), expert_back = route_scale(y);
      if (t == 0) out.token[m] = back, out.expert[m] = expert_back;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      route_terms<T>(x[i].x, x[i].y, token[2 * i + h]);
      route_terms<T>(y[i].x, y[i].y, expert[2 * i + h]);
    }
  }
#pragma unroll
  for (int i = 0; i < 3; i++) {
    if (i < 2)
      out.by_token[i][lane] = make_uint4(token[0][i], token[1][i], token[2][i], token[3][i]);
    out.by_expert[i][lane] = make_uint4(expert[0][i], expert[1][i], expert[2][i], expert[3][i]);
  }
}

/* A block computes the dlogits of up to ROUTE_CHUNK tokens at a time, ROUTE_CHUNK_LANES lanes to
 * each. What a thread's first token of a chunk takes is read before, for it would come late behind
 * the rows of x and dx. */
typedef route_token_t<ROUTE_CHUNK_LANES, ROUTE_STEP / ROUTE_CHUNK_LANES> route_chunk_token_t;

/* Tokens in steps of ROUTE_STEP neighbours. */
typedef struct route_tokens {
  int64_t first, step; /* the first one; from a step to the next */
  int count;

  __device__ __forceinline__ int64_t at(int i) const {
    i = min(i, count - 1);
    return first + i / ROUTE_STEP * step + i % ROUTE_STEP;
  }
} route_tokens_t;

static __device__ __forceinline__ void route_chunk_read(const op_route_bwd_t &op,
                                                        const route_tokens_t &tokens,
                                                        route_chunk_token_t &token) {
  token.load(op, tokens.at(threadIdx.x / ROUTE_CHUNK_LANES), threadIdx.x % ROUTE_CHUNK_LANES);
}

/* The tokens' dlogits, and zeros up to ROUTE_CHUNK, as fragments; by the whole block. */
template <typename T>
static __device__ __forceinline__ void route_chunk(const op_route_bwd_t &op,
                                                   const route_tokens_t &tokens,
                                                   route_chunk_token_t &token, float *rows,
                                                   route_fragments_t *fragments) {
  int q = threadIdx.x % ROUTE_CHUNK_LANES, groups = blockDim.x / ROUTE_CHUNK_LANES;
  int begin = threadIdx.x / ROUTE_CHUNK_LANES;
  __syncthreads();
  for (int i = begin; i < ROUTE_CHUNK; i += groups) {
    float *row = rows + i * ROUTE_CHUNK_STRIDE;
    int64_t at = tokens.at(i);
    if (i != begin) token.load(op, at, q);
    route_dlogit_row<ROUTE_CHUNK_LANES, ROUTE_STEP / ROUTE_CHUNK_LANES, false>(op, at, token, q,
                                                                              row);
    for (int e = q; e < ROUTE_STEP; e += ROUTE_CHUNK_LANES)
      if (i >= tokens.count || e >= op.experts) row[e] = 0;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < ROUTE_CHUNK * 2; i += blockDim.x)
    route_cut<T>(rows + i / 32 * ROUTE_STEP * ROUTE_CHUNK_STRIDE, i % 32, fragments[i / 32]);
  __syncthreads();
}

/* Fragments of w [E, H] for dx: product 4 h + j has columns 32 h + 8 t + 2 j, + 1 of the strip that
 * begins at `column`. Read first, in rows e and e + 1 of a pair, and packed later. */
typedef struct route_dx_rows {
  uint4 row[2][2][2]; /* [half of the strip, first or second eight experts, row of the pair] */
} route_dx_rows_t;

static __device__ __forceinline__ void route_dx_read(const op_route_bwd_t &op, int64_t column,
                                                     route_dx_rows_t &w) {
  int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    int64_t e = i / 2 % 2 * 8 + 2 * t + i % 2, c = column + i / 4 * 32 + g / 2 * 8;
    w.row[i / 4][i / 2 % 2][i % 2] =
        e < op.experts && c < op.hidden ? *(const uint4 *)((const bf16_t *)op.w + e * op.hidden + c)
                                        : make_uint4(0, 0, 0, 0);
  }
}

static __device__ __forceinline__ void route_dx_pack(const route_dx_rows_t &from,
                                                     uint32_t (&w)[8][2]) {
  uint32_t odd = threadIdx.x >> 2 & 1, half = odd ? 0x7632 : 0x5410;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const uint4 &low = from.row[i / 2][i % 2][0], &high = from.row[i / 2][i % 2][1];
    uint32_t(*to)[2] = w + i / 2 * 4;
    to[0][i % 2] = __byte_perm(low.x, high.x, half);
    to[1][i % 2] = __byte_perm(low.y, high.y, half);
    to[2][i % 2] = __byte_perm(low.z, high.z, half);
    to[3][i % 2] = __byte_perm(low.w, high.w, half);
  }
}

/* sum[j] += a b[j], a being a sum of terms; the smallest products first. */
template <typename T, int TERMS, int N>
static __device__ __forceinline__ void route_multiply(float (*sum)[4], const uint4 (&a)[TERMS],
                                                      const uint32_t (&b)[N][2]) {
#pragma unroll
  for (int i = TERMS - 1; i >= 0; i--)
#pragma unroll
    for (int j = 0; j < N; j++)
      half_multiply<T>(sum[j], a[i].x, a[i].y, a[i].z, a[i].w, b[j][0], b[j][1]);
}

/* sum[j] += dw of a step in N products; a: the three terms of the dlogits. */
template <typename T, int N>
static __device__ __forceinline__ void route_dw_product(const route_fragments_t &dlogit,
                                                        const uint4 (&a)[3],
                                                        const uint32_t (&b)[N][2],
                                                        float (*sum)[4]) {
  if constexpr (!half_is_f16<T>) {
    route_multiply<T>(sum, a, b);
    return;
  }
  int g = (threadIdx.x & 31) >> 2;
  float back[2] = {dlogit.expert[g], dlogit.expert[g + 8]}, part[N][4] = {};
  route_multiply<T>(part, a, b);
#pragma unroll
  for (int j = 0; j < N; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) sum[j][i] = fmaf(part[j][i], back[i / 2], sum[j][i]);
}

/* sum = what half h of a strip gets in a step; a: the two terms of the dlogits. */
template <typename T>
static __device__ __forceinline__ void route_dx_product(const uint4 (&a)[2],
                                                        const uint32_t (&w)[8][2], int h,
                                                        float (&sum)[4][4]) {
  uint32_t b[4][2];
#pragma unroll
  for (int i = 0; i < 8; i++) b[i / 2][i % 2] = w[4 * h + i / 2][i % 2];
  route_multiply<T>(sum, a, b);
}

/* Eight columns of token g (+ 8 where i is 1) with their sums. */
template <typename T>
static __device__ __forceinline__ uint4 route_dx_add(const route_fragments_t &dlogit,
                                                     const uint4 &old, const float (&sum)[4][4],
                                                     int i) {
  const uint32_t pair[4] = {old.x, old.y, old.z, old.w};
  float back = half_is_f16<T> ? dlogit.token[((threadIdx.x & 31) >> 2) + 8 * i] : 1;
  uint32_t to[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    float2 x = half_unpack<T>(pair[j]);
    to[j] = half_pair<T>(fmaf(sum[j][2 * i], back, x.x), fmaf(sum[j][2 * i + 1], back, x.y));
  }
  return make_uint4(to[0], to[1], to[2], to[3]);
}

#endif
