/* Routing's choice of a token's experts, by a group of lanes as route.cuh says. */
#ifndef NN_CUDA_ROUTE_CHOOSE_CUH
#define NN_CUDA_ROUTE_CHOOSE_CUH

#include "ops/route_any.cuh"

/* A key grows with the probability and, among equals, falls with the index; NaN counts as 0. */
template <int LANES, int PER>
static __device__ __forceinline__ void route_keys(const float (&p)[PER], int q, int experts,
                                                  uint64_t (&key)[PER]) {
#pragma unroll
  for (int j = 0; j < PER; j++) {
    uint32_t e = q + LANES * j;
    uint64_t high = p[j] > 0 ? __float_as_uint(p[j]) : 0;
    key[j] = e < experts ? high << 32 | ~e : 0;
  }
}

/* The score of the expert with this key, in all lanes of the group. */
template <int LANES, int PER, bool ANY>
static __device__ __forceinline__ float route_score(const float (&p)[PER],
                                                    const uint64_t (&key)[PER], uint64_t best) {
  if (!ANY) return __uint_as_float((uint32_t)(best >> 32));
  float score = 0;
#pragma unroll
  for (int j = 0; j < PER; j++) score = key[j] == best ? p[j] : score;
  return lanes_sum<LANES>(score);
}

/* The largest of keys FROM .. FROM + COUNT - 1, by halves that do not wait for each other. */
template <int FROM, int COUNT, typename K, int PER>
static __device__ __forceinline__ K route_largest(const K (&key)[PER]) {
  if constexpr (COUNT == 1) return key[FROM];
  else {
    K low = route_largest<FROM, COUNT / 2>(key);
    K high = route_largest<FROM + COUNT / 2, COUNT - COUNT / 2>(key);
    return low > high ? low : high;
  }
}

/* The k largest keys in falling order. Once taken, a key is 0. row: shared, of the token, used with
 * lse where ANY. */
template <typename T, int LANES, int PER, bool ANY>
static __device__ void route_choose(const op_route_t &op, const float (&p)[PER], int q,
                                    int64_t token, bool live, float lse, float *row,
                                    int32_t *count) {
  uint64_t key[PER];
  if constexpr (ANY)
    route_any_keys<T, LANES>(op.router, p, q, (int)op.experts, live, row, key);
  else
    route_keys<LANES>(p, q, (int)op.experts, key);
  uint64_t mine[PER] = {};
  float score[PER] = {}, sum = 0, first = 0, second = 0;
  int first_expert = 0;
#pragma unroll
  for (int i = 0; i < PER; i++) {
    for (int l = 0; l < LANES && i * LANES + l < op.top_k; l++) {
      uint64_t best = route_largest<0, PER>(key);
#pragma unroll
      for (int step = LANES / 2; step; step >>= 1) {
        uint64_t other = __shfl_xor_sync(0xffffffffu, best, step);
        best = other > best ? other : best;
      }
      float taken = route_score<LANES, PER, ANY>(p, key, best);
#pragma unroll
      for (int j = 0; j < PER; j++) key[j] = key[j] == best ? 0 : key[j];
      sum += taken;
      if (q == l) mine[i] = best, score[i] = taken;
      if (ANY && i == 0 && l == 0) first = taken, first_expert = (int)~(uint32_t)best;
      if (ANY && i == 0 && l == 1) second = taken;
    }
  }
  sum = route_divisor(op.router, sum, isnan(p[0]));
  if (ANY && op.router.score == NN_SCORE_SPARSE_MIXER) {
    uint32_t near;
    float one = route_any_near<LANES>(op.router, p, lse, q, 0, first_expert, first, &near);
    float two = route_any_near<LANES>(op.router, p, lse, q, 1, first_expert, second, &near);
    sum = q ? two : one; /* lanes 0 and 1 have the two choices */
  }
#pragma unroll
  for (int i = 0; i < PER; i++) {
    int64_t j = i * LANES + q;
    if (!live || j >= op.top_k) continue;
    uint32_t e = ~(uint32_t)mine[i];
    op.out.expert[token * op.top_k + j] = (int32_t)e;
    op.out.weight[token * op.top_k + j] = route_weight(op.router, score[i], sum);
    atomicAdd(&count[e], 1);
  }
}

#endif
