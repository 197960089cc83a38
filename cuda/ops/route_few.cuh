/* Choosing experts for few tokens, by one block. */
#ifndef NN_CUDA_ROUTE_FEW_CUH
#define NN_CUDA_ROUTE_FEW_CUH

#include "ops/route_logits.cuh"

typedef struct route_few_room {
  float lse[ROUTE_TILE];
  unsigned long long tokens[ROUTE_FEW]; /* that chose e */
  uint8_t expert[ROUTE_TILE * ROUTE_FEW]; /* [n, k] */
} route_few_room_t;

/* One token by a group of LANES lanes; row: shared, [LANES * PER], gets its probabilities. An
 * expert's place is how many are more probable; equals follow their index, and NaN counts as 0.
 * live: there is such a token; writes: what is found goes to op's arrays, too. */
template <int LANES, int PER>
static __device__ __forceinline__ void route_few_choose(const op_route_t &op, float (&p)[PER],
                                                        int q, int token, bool live, bool writes,
                                                        float *row, route_few_room_t &room) {
  int experts = (int)op.experts, k = (int)op.top_k;
  float lse = route_softmax<LANES>(p, q, experts);
  bool nan = __shfl_sync(0xffffffffu, isnan(p[0]), 0, LANES);
#pragma unroll
  for (int j = 0; j < PER; j++) {
    int e = q + LANES * j;
    row[e] = e < experts ? p[j] : 0;
    if (writes && e < experts) op.prob[(int64_t)token * experts + e] = p[j];
  }
  if (live && q == 0) room.lse[token] = lse;
  if (writes && q == 0) op.lse[token] = lse;
  __syncwarp();
  int place[PER] = {};
#pragma unroll
  for (int other = 0; other < LANES * PER; other += 4) {
    float4 four = *(const float4 *)(row + other);
    const float rivals[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < PER; j++) {
        float rival = rivals[i] > 0 ? rivals[i] : 0, own = p[j] > 0 ? p[j] : 0;
        place[j] += rival > own || (rival == own && other + i < q + LANES * j);
      }
  }
  float sum = 0;
#pragma unroll
  for (int j = 0; j < PER; j++) {
    if (q + LANES * j >= experts) place[j] = k;
    if (place[j] < k && p[j] > 0) sum += p[j];
  }
  sum = route_divisor(op.router, lanes_sum<LANES>(sum), nan);
#pragma unroll
  for (int j = 0; j < PER; j++) {
    int e = q + LANES * j, slot = token * k + place[j];
    if (!live || place[j] >= k) continue;
    room.expert[slot] = (uint8_t)e;
    atomicOr(&room.tokens[e], 1ull << token);
    if (!writes) continue;
    op.out.expert[slot] = e;
    op.out.weight[slot] = route_weight(op.router, p[j] > 0 ? p[j] : 0, sum);
  }
}

/* Each warp knows the first row of every expert: lane l those of l and l + 32. */
static __device__ __forceinline__ void route_few_place(const op_route_t &op,
                                                       const route_few_room_t &room) {
  int experts = (int)op.experts, k = (int)op.top_k, slots = (int)op.n * k;
  int lane = threadIdx.x & 31;
  int kept[2], end[2], bound = op.capacity ? (int)min(op.capacity, op.n) : (int)op.n;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int e = lane + 32 * i;
    kept[i] = end[i] = e < experts ? min(__popcll(room.tokens[e]), bound) : 0;
  }
#pragma unroll
  for (int step = 1; step < 32; step <<= 1)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int other = __shfl_up_sync(0xffffffffu, end[i], step);
      end[i] += lane >= step ? other : 0;
    }
  end[1] += __shfl_sync(0xffffffffu, end[0], 31);
  for (int slot = threadIdx.x; slot - lane < slots; slot += ROUTE_THREADS) {
    int e = room.expert[min(slot, slots - 1)], token = slot / k;
    int low = __shfl_sync(0xffffffffu, end[0] - kept[0], e & 31);
    int high = __shfl_sync(0xffffffffu, end[1] - kept[1], e & 31);
    if (slot >= slots) continue;
    int before = __popcll(room.tokens[e] & ((1ull << token) - 1));
    int row = (e < 32 ? low : high) + before;
    op.out.slot_row[slot] = before < bound ? row : -1;
    if (before < bound) op.out.row_slot[row] = slot;
  }
  if (threadIdx.x >= 32) return;
#pragma unroll
  for (int i = 0; i < 2; i++)
    if (lane + 32 * i < experts) op.out.offset[lane + 32 * i + 1] = end[i];
  if (lane == 0) op.out.offset[0] = 0;
  if (op.stat_count && lane == 31 && end[1] < slots) op.stat_count[experts] += slots - end[1];
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
