/* Routing other than by the softmax of the products alone: sigmoid scores, the sparse mixer, biases
 * of the logits and of the choice, and groups of neighbours of which only the best remain. A token
 * has LANES lanes, and a lane its experts, as route.cuh says; all lanes of a warp come here
 * together. */
#ifndef NN_CUDA_ROUTE_ANY_CUH
#define NN_CUDA_ROUTE_ANY_CUH

#include "ops/route_logits.cuh"

/* Turns a group's logits into scores; returns the log-sum-exp of the biased logits. share: what
 * makes a row of scores sum to 1. */
template <typename T, int LANES, int PER>
static __device__ float route_any_scores(const op_router_t &router, float (&p)[PER], int q,
                                         int experts, float *share) {
  float logit[PER];
#pragma unroll
  for (int j = 0; j < PER; j++) {
    int e = q + LANES * j;
    if (router.bias && e < experts) p[j] += to_float(((const T *)router.bias)[e]);
    logit[j] = p[j];
  }
  float lse = route_softmax<LANES>(p, q, experts), sum = 0;
  if (router.score != NN_SCORE_SIGMOID) return lse;
#pragma unroll
  for (int j = 0; j < PER; j++) {
    p[j] = q + LANES * j < experts ? 1 / (1 + expf(-logit[j])) : 0;
    sum += p[j];
  }
  *share = 1 / lanes_sum<LANES>(sum);
  return lse;
}

/* Which of the lane's experts are in groups that remain, a bit each. row: shared, of the token;
 * written only where it is live. */
template <int LANES, int PER>
static __device__ uint32_t route_any_groups(const op_router_t &router, const float (&c)[PER], int q,
                                            int experts, bool live, float *row) {
  int groups = (int)router.groups, size = experts / groups;
  __syncwarp(); /* the logits that may lie there have been read */
#pragma unroll
  for (int j = 0; j < PER; j++)
    if (live && q + LANES * j < experts) row[q + LANES * j] = c[j];
  __syncwarp();
  float score[PER];
#pragma unroll
  for (int j = 0; j < PER; j++) {
    int group = q + LANES * j;
    float first = -INFINITY, second = -INFINITY; /* NaN counts as these */
    for (int i = 0; group < groups && i < size; i++) {
      float x = row[group * size + i];
      if (x > first) second = first, first = x;
      else if (x > second) second = x;
    }
    score[j] = router.group_score == NN_GROUP_TOP2 && size > 1 ? first + second : first;
  }
  __syncwarp();
#pragma unroll
  for (int j = 0; j < PER; j++)
    if (live && q + LANES * j < groups) row[q + LANES * j] = score[j];
  __syncwarp();
  uint32_t remain = 0;
#pragma unroll
  for (int j = 0; j < PER; j++) {
    int group = q + LANES * j, better = 0;
    for (int i = 0; group < groups && i < groups; i++)
      better += row[i] > score[j] || (row[i] == score[j] && i < group);
    remain |= (uint32_t)(better < router.top_groups) << j;
  }
  __syncwarp();
#pragma unroll
  for (int j = 0; j < PER; j++)
    if (live && q + LANES * j < groups) row[q + LANES * j] = (float)(remain >> j & 1);
  __syncwarp();
  uint32_t mine = 0;
#pragma unroll
  for (int j = 0; j < PER; j++) {
    int e = q + LANES * j;
    if (e < experts && row[e / size] != 0) mine |= 1u << j;
  }
  return mine;
}

/* What the sparse mixer divides its choice number `turn` by: the sum of the probabilities, without
 * the first choice's where the second is made, whose logits are near the choice's; logits come back
 * from probabilities. near: which of the lane's experts these are, a bit each. */
template <int LANES, int PER>
static __device__ float route_any_near(const op_router_t &router, const float (&p)[PER], float lse,
                                       int q, int turn, int first, float chosen, uint32_t *near) {
  float most = logf(chosen) + lse, sum = 0;
  *near = 0;
#pragma unroll
  for (int j = 0; j < PER; j++) {
    float l = logf(p[j]) + lse;
    if ((turn && q + LANES * j == first) || (most - l) / fmaxf(fabsf(l), most) > 2 * router.eps)
      continue;
    *near |= 1u << j;
    sum += p[j];
  }
  return lanes_sum<LANES>(sum);
}

/* A key grows with the score that the choice goes by and, among equals, falls with the index; NaN
 * counts as the least, and 0 is no candidate. */
template <typename T, int LANES, int PER>
static __device__ void route_any_keys(const op_router_t &router, const float (&p)[PER], int q,
                                      int experts, bool live, float *row, uint64_t (&key)[PER]) {
  float c[PER];
#pragma unroll
  for (int j = 0; j < PER; j++) {
    int e = q + LANES * j;
    c[j] = p[j];
    if (router.choice_bias && e < experts) c[j] += to_float(((const T *)router.choice_bias)[e]);
  }
  uint32_t candidates = 0xffffffffu;
  if (router.groups) candidates = route_any_groups<LANES>(router, c, q, experts, live, row);
#pragma unroll
  for (int j = 0; j < PER; j++) {
    uint32_t e = q + LANES * j, bits = __float_as_uint(c[j]);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u; /* in the order of the numbers */
    if (isnan(c[j])) bits = 0;
    key[j] = e < experts && candidates >> j & 1 ? (uint64_t)bits << 32 | ~e : 0;
  }
}

#endif
