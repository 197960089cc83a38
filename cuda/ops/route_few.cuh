/* Choosing experts for few tokens, by one block. */
#ifndef NN_CUDA_ROUTE_FEW_CUH
#define NN_CUDA_ROUTE_FEW_CUH

#include "ops/route_logits.cuh"

typedef struct route_few_room {
  float lse[ROUTE_TILE];
  unsigned long long tokens[ROUTE_FEW]; /* that chose e */
  uint8_t expert[ROUTE_TILE * ROUTE_FEW]; /* [n, k] */
} route_few_room_t;

/* One token by a group of ROUTE_FEW lanes, of which lane e has the logit; row: shared, [ROUTE_FEW],
 * gets its probabilities. An expert's place is how many are more probable; equals follow their
 * index, and NaN counts as 0. live: there is such a token; writes: what is found goes to op's
 * arrays, too. */
static __device__ __forceinline__ void route_few_choose(const op_route_t &op, float logit, int e,
                                                        int token, bool live, bool writes,
                                                        float *row, route_few_room_t &room) {
  int experts = (int)op.experts, k = (int)op.top_k;
  float p[1] = {logit}, lse = route_softmax<ROUTE_FEW>(p, e, experts);
  bool nan = __shfl_sync(0xffffffffu, isnan(p[0]), 0, ROUTE_FEW);
  row[e] = e < experts ? p[0] : 0;
  if (writes && e < experts) op.prob[(int64_t)token * experts + e] = p[0];
  if (live && e == 0) room.lse[token] = lse;
  if (writes && e == 0) op.lse[token] = lse;
  __syncwarp();
  int place = 0;
  float own = p[0] > 0 ? p[0] : 0;
#pragma unroll
  for (int other = 0; other < ROUTE_FEW; other += 4) {
    float4 four = *(const float4 *)(row + other);
    const float rivals[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float rival = rivals[i] > 0 ? rivals[i] : 0;
      place += rival > own || (rival == own && other + i < e);
    }
  }
  if (e >= experts) place = k;
  float sum = lanes_sum<ROUTE_FEW>(place < k ? own : 0);
  sum = route_divisor(op.router, sum, nan);
  if (!live || place >= k) return;
  int slot = token * k + place;
  room.expert[slot] = (uint8_t)e;
  atomicOr(&room.tokens[e], 1ull << token);
  if (!writes) return;
  op.out.expert[slot] = e;
  op.out.weight[slot] = route_weight(op.router, own, sum);
}

/* Lane e of each warp knows expert e's first row. */
static __device__ __forceinline__ void route_few_place(const op_route_t &op,
                                                       const route_few_room_t &room) {
  int experts = (int)op.experts, k = (int)op.top_k, slots = (int)op.n * k;
  int lane = threadIdx.x & 31, bound = op.capacity ? (int)min(op.capacity, op.n) : (int)op.n;
  int kept = lane < experts ? min(__popcll(room.tokens[lane]), bound) : 0, end = kept;
#pragma unroll
  for (int step = 1; step < ROUTE_FEW; step <<= 1) {
    int other = __shfl_up_sync(0xffffffffu, end, step);
    end += lane >= step ? other : 0;
  }
  for (int slot = threadIdx.x; slot - lane < slots; slot += ROUTE_THREADS) {
    int e = room.expert[min(slot, slots - 1)], token = slot / k;
    int first = __shfl_sync(0xffffffffu, end - kept, e);
    if (slot >= slots) continue;
    int before = __popcll(room.tokens[e] & ((1ull << token) - 1)), row = first + before;
    op.out.slot_row[slot] = before < bound ? row : -1;
    if (before < bound) op.out.row_slot[row] = slot;
  }
  if (threadIdx.x >= 32) return;
  if (lane < experts) op.out.offset[lane + 1] = end;
  if (lane == 0) op.out.offset[0] = 0;
  if (op.stat_count && lane == experts - 1 && end < slots) op.stat_count[experts] += slots - end;
}

/* By the block's last threads, which have the fewest slots: thread e from the end has expert e.
 * row: [n] of `stride`, the probabilities; count and prob: what the statistics were. */
static __device__ __forceinline__ void route_few_statistics(const op_route_t &op,
                                                            const route_few_room_t &room,
                                                            const float *row, int stride,
                                                            int64_t count, double prob) {
  int e = ROUTE_THREADS - 1 - threadIdx.x, experts = (int)op.experts, n = (int)op.n;
  double sum = 0;
  if (e < experts) {
    for (int t = 0; t < n; t++) sum += row[t * stride + e];
    int chosen = __popcll(room.tokens[e]);
    op.mean_prob[e] = (float)(n == 1 ? sum : sum / n);
    op.share[e] = (float)chosen / (float)(op.n * op.top_k); /* as the quotient of doubles rounds */
    if (op.stat_count) op.stat_count[e] = count + chosen, op.stat_prob[e] = prob + sum;
  } else if (e == experts) {
    for (int t = 0; t < n; t++) sum += (double)room.lse[t] * room.lse[t];
    *op.mean_lse2 = (float)(sum / n);
  }
}

#endif
