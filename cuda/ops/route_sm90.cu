/* Routing's first kernel on sm_90a for many tokens of 16 bits and few experts, as route_plain says:
 * what route_rows does, and each slot's rank, for route_place_ranked. The bulk copy engine brings x
 * by stages of ROUTE90_COLUMNS columns of a block's tokens, so that a multiprocessor asks for all
 * that it can hold at once. A warp takes 16 tokens from their products to their choice, while a
 * second one writes down and adds their scores. Sums over tokens are in double: every fourth token
 * of a warp's 16 in order, then these four, then the warps. */
#include "hopper.cuh"
#include "launch.cuh"
#include "ops/route_choose.cuh"

enum {
  ROUTE90_WARPS = 8, /* most that compute, as many that write; one more copies */
  ROUTE90_ROWS = 16, /* tokens of such a warp at once */
  ROUTE90_EXPERTS = ROUTE_RANKED,
  ROUTE90_COLUMNS = HOPPER_ROW_BYTES / 2,
  ROUTE90_STAGES = 8,
  ROUTE90_W_BYTES = ROUTE90_EXPERTS * HOPPER_ROW_BYTES, /* of a stage, behind x */
  ROUTE90_STRIDE = ROUTE90_EXPERTS + 1,
  /* names of barriers: what all computing warps chose is known; a turn's shared memory has been
   * read; from the last on, a warp's rows are written */
  ROUTE90_CHOSEN = 1,
  ROUTE90_TURN = 2,
  ROUTE90_ROW = 3
};

typedef struct route90_warp {
  float row[ROUTE90_ROWS * ROUTE90_STRIDE]; /* probabilities, then log-sum-exp */
  uint32_t tokens[ROUTE90_EXPERTS];         /* that chose e, a bit each */
  uint8_t chosen[ROUTE90_ROWS * ROUTE90_EXPERTS]; /* each token's experts in falling order */
} route90_warp_t;

typedef struct route90_room {
  double total[ROUTE90_WARPS][ROUTE90_STRIDE];
  uint64_t full[ROUTE90_STAGES], empty[ROUTE90_STAGES];
  route90_warp_t warp[ROUTE90_WARPS];
  int32_t count[ROUTE90_EXPERTS];
} route90_room_t;

typedef struct route90_maps {
  CUtensorMap x, w;
} route90_maps_t;

static int route90_shared(int warps) {
  return HOPPER_ALIGN +
         ROUTE90_STAGES * (warps * ROUTE90_ROWS * HOPPER_ROW_BYTES + ROUTE90_W_BYTES);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* The expert whose row of w is column n of the product: column 8 j + 4 h + 2 q + i is expert
 * q + 2 (4 j + 2 h + i), so that two lanes can share a token's experts as route.cuh says. */
static __device__ __forceinline__ int route90_expert(int n) {
  return n / 2 % 2 + 2 * (n / 8 * 4 + n / 4 % 2 * 2 + n % 2);
}

/* Which of the warp's tokens is this lane's and its neighbour's. */
static __device__ __forceinline__ int route90_token() {
  return (threadIdx.x & 31) / 4 + (threadIdx.x & 2) * 4;
}

/* d += products of 16 tokens and ROUTE90_COLUMNS columns. x, w: this lane's rows of a stage, where
 * it gives lanes l and l + 8 of a matrix of rows and of columns further. */
template <typename T>
static __device__ __forceinline__ void route90_multiply(uint32_t x, uint32_t w, float (&d)[2][4]) {
  int lane = threadIdx.x & 31, turn = lane & 7, w_turn = route90_expert(turn);
#pragma unroll
  for (int s = 0; s < 4; s++) {
    uint32_t a[4], b[4];
    half_matrices(a, x + ((2 * s + lane / 16) ^ turn) * 16);
    half_matrices(b, w + ((2 * s + lane / 8 % 2) ^ w_turn) * 16);
    half_multiply<T>(d[0], a[0], a[1], a[2], a[3], b[0], b[1]);
    half_multiply<T>(d[1], a[0], a[1], a[2], a[3], b[2], b[3]);
  }
}

/* Lanes t and t + 2 of a group have four columns each of tokens g and g + 8. t < 2 takes all eight
 * of g, the others those of g + 8: experts q + 2 j, q = t % 2. */
static __device__ __forceinline__ void route90_share(const float (&d)[2][4], float (&p)[8]) {
  bool high = threadIdx.x & 2;
#pragma unroll
  for (int j = 0; j < 2; j++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float own = high ? d[j][2 + i] : d[j][i], other = high ? d[j][i] : d[j][2 + i];
      other = __shfl_xor_sync(0xffffffffu, other, 2);
      p[4 * j + i] = high ? other : own, p[4 * j + 2 + i] = high ? own : other;
    }
}

/* The k best experts of a lane's token into `chosen`, in falling order and, among equals, by index.
 * Returns the sum of their scores in that order. own: the scores, q + 2 j's in own[j]; -1 where
 * there is no expert. */
static __device__ __forceinline__ float route90_choose(float (&own)[8], int q, int k,
                                                       uint8_t *chosen) {
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < k; i++) {
    float best = route_largest<0, 8>(own);
    best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
    int e = ROUTE90_EXPERTS;
#pragma unroll
    for (int j = 7; j >= 0; j--) e = own[j] == best ? q + 2 * j : e;
    e = min(e, __shfl_xor_sync(0xffffffffu, e, 1));
#pragma unroll
    for (int j = 0; j < 8; j++) own[j] = q + 2 * j == e ? -1 : own[j];
    sum += best;
    if (q == 0) chosen[i] = (uint8_t)e;
  }
  return sum;
}

/* A warp's tokens from first on, `tokens` of them live: their scores into room, their choice into
 * op's arrays. p: their logits. */
static __device__ __forceinline__ void route90_finish(const op_route_t &op, float (&p)[8],
                                                      int64_t first, int tokens,
                                                      route90_warp_t &room) {
  int lane = threadIdx.x & 31, q = lane & 1, here = route90_token();
  int experts = (int)op.experts, k = (int)op.top_k;
  float *row = room.row + here * ROUTE90_STRIDE, own[8];
  uint8_t *chosen = room.chosen + here * ROUTE90_EXPERTS;
  bool live = here < tokens;
  if (lane < ROUTE90_EXPERTS) room.tokens[lane] = 0;
  float lse = route_softmax<2>(p, q, experts);
#pragma unroll
  for (int j = 0; j < 8; j++) {
    row[q + 2 * j] = live ? p[j] : 0;
    own[j] = q + 2 * j < experts ? fmaxf(p[j], 0) : -1; /* NaN counts as 0 */
  }
  if (q == 0) row[ROUTE90_EXPERTS] = live ? lse : 0;
  hopper_named_arrive(ROUTE90_ROW + threadIdx.x / 32, 64);
  float all = route90_choose(own, q, k, chosen);
  all = route_divisor(op.router, all, isnan(p[0]));
  __syncwarp();
#pragma unroll 1
  for (int j = q; live && j < k; j += 2) {
    int e = chosen[j];
    int64_t slot = (first + here) * k + j;
    op.out.expert[slot] = e;
    op.out.weight[slot] = route_weight(op.router, fmaxf(row[e], 0), all);
    atomicOr(&room.tokens[e], 1u << here);
  }
}

/* What a warp has in room.row into op's arrays. sum += lane l's, of expert l or, where l is
 * ROUTE90_EXPERTS, of squares of log-sum-exps. */
static __device__ __forceinline__ void route90_write(const op_route_t &op, int64_t first,
                                                     int tokens, const route90_warp_t &room,
                                                     double *sum) {
  int lane = threadIdx.x & 31, experts = (int)op.experts;
  if (lane < tokens) op.lse[first + lane] = room.row[lane * ROUTE90_STRIDE + ROUTE90_EXPERTS];
  int half = lane / ROUTE90_EXPERTS, e = lane % ROUTE90_EXPERTS;
  float *prob = op.prob + (first + half) * experts + e, x[ROUTE90_ROWS];
#pragma unroll
  for (int t = 0; t < ROUTE90_ROWS / 2; t++) x[t] = room.row[(2 * t + half) * ROUTE90_STRIDE + e];
#pragma unroll
  for (int t = 0; t < ROUTE90_ROWS / 2; t++)
    if (2 * t + half < tokens && e < experts) prob[2 * t * experts] = x[t];
  int column = min(lane, (int)ROUTE90_EXPERTS);
#pragma unroll
  for (int t = 0; t < ROUTE90_ROWS; t++) x[t] = room.row[t * ROUTE90_STRIDE + column];
  double part[4] = {};
#pragma unroll
  for (int t = 0; t < ROUTE90_ROWS; t++)
    part[t % 4] += lane < ROUTE90_EXPERTS ? (double)x[t] : (double)x[t] * x[t];
  *sum += (part[0] + part[1]) + (part[2] + part[3]);
}

/* The ranks of a warp's slots into slot_row: how many of the block's earlier tokens chose the same.
 * before: [ROUTE90_EXPERTS] of earlier turns, brought up to this one. By all warps that
 * compute. */
static __device__ __forceinline__ void route90_rank(const op_route_t &op, int64_t first, int tokens,
                                                    route90_warp_t *rooms, int32_t *before) {
  int computing = ((int)blockDim.x - 32) / 2, warp = threadIdx.x / 32, q = threadIdx.x & 1;
  int here = route90_token(), k = (int)op.top_k, e = threadIdx.x;
  int column = e % ROUTE90_EXPERTS, added = 0;
  hopper_named_sync(ROUTE90_CHOSEN, computing);
  int earlier = before[column];
#pragma unroll
  for (int w = 0; w < ROUTE90_WARPS; w++) {
    int count = w < computing / 32 ? __popc(rooms[w].tokens[column]) : 0;
    added += count, earlier += w < warp ? count : 0;
  }
#pragma unroll 2
  for (int j = q; j - q < k; j += 2) {
    int own = j < k ? rooms[warp].chosen[here * ROUTE90_EXPERTS + j] : 0;
    int rank = __shfl_sync(0xffffffffu, earlier, own);
    rank += __popc(rooms[warp].tokens[own] & ((1u << here) - 1));
    if (here < tokens && j < k)
      op.out.slot_row[(first + here) * k + j] = rank * ROUTE_RANKED + own;
  }
  hopper_named_sync(ROUTE90_TURN, 2 * computing);
  if (e < ROUTE90_EXPERTS) before[e] += added;
}

template <typename T>
static __device__ __forceinline__ void route90_body(const route90_maps_t &maps,
                                                    const op_route_t &op,
                                                    const route_plan_t &plan) {
  extern __shared__ char dynamic[];
  __shared__ route90_room_t room;
  int warps = (int)blockDim.x / 64, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  int experts = (int)op.experts, rows = warps * ROUTE90_ROWS;
  int chunks = ((int)op.hidden + ROUTE90_COLUMNS - 1) / ROUTE90_COLUMNS;
  int x_bytes = rows * HOPPER_ROW_BYTES, stage = x_bytes + ROUTE90_W_BYTES;
  uint32_t start = (uint32_t)__cvta_generic_to_shared(dynamic);
  uint32_t stages = start + -start % HOPPER_ALIGN;
  uint32_t full = (uint32_t)__cvta_generic_to_shared(room.full);
  uint32_t empty = (uint32_t)__cvta_generic_to_shared(room.empty);
  if (threadIdx.x < ROUTE90_EXPERTS) room.count[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    hopper_prefetch(maps.x), hopper_prefetch(maps.w);
    for (int i = 0; i < ROUTE90_STAGES; i++)
      hopper_barrier_init(full + 8 * i, 1), hopper_barrier_init(empty + 8 * i, warps);
    hopper_barrier_ready();
  }
  __syncthreads();
  launch_next();
  launch_wait();
  int64_t begin = blockIdx.x * plan.tokens, end = min(begin + plan.tokens, op.n);
  uint32_t slot = 0, parity = 0;
  if (warp == 2 * warps) {
    for (int64_t first = begin; first < end && lane == 0; first += rows)
      for (int c = 0; c < chunks; c++) {
        uint32_t to = stages + slot * stage;
        hopper_wait(empty + 8 * slot, parity ^ 1);
        hopper_expect(full + 8 * slot, stage);
        hopper_copy(maps.x, to, full + 8 * slot, c * ROUTE90_COLUMNS, (int)first, 0);
        hopper_copy(maps.w, to + x_bytes, full + 8 * slot, c * ROUTE90_COLUMNS, 0, 0);
        if (++slot == ROUTE90_STAGES) slot = 0, parity ^= 1;
      }
  } else if (warp >= warps) {
    int of = warp - warps;
    double sum = 0;
    for (int64_t first = begin; first < end; first += rows) {
      int64_t own = first + of * ROUTE90_ROWS;
      int live = (int)max(min(end - own, (int64_t)ROUTE90_ROWS), (int64_t)0);
      hopper_named_sync(ROUTE90_ROW + of, 64);
      route90_write(op, own, live, room.warp[of], &sum);
      hopper_named_sync(ROUTE90_TURN, 64 * warps);
    }
    if (lane < ROUTE90_STRIDE) room.total[of][lane] = sum;
  } else {
    uint32_t x = stages + (warp * ROUTE90_ROWS + lane % ROUTE90_ROWS) * HOPPER_ROW_BYTES;
    uint32_t w = stages + x_bytes + route90_expert(lane % 8 + lane / 16 * 8) * HOPPER_ROW_BYTES;
    for (int64_t first = begin; first < end; first += rows) {
      float d[2][4] = {}, p[8];
      for (int c = 0; c < chunks; c++) {
        hopper_wait(full + 8 * slot, parity);
        route90_multiply<T>(x + slot * stage, w + slot * stage, d);
        __syncwarp();
        if (lane == 0) hopper_arrive(empty + 8 * slot);
        if (++slot == ROUTE90_STAGES) slot = 0, parity ^= 1;
      }
      route90_share(d, p);
      int64_t own = first + warp * ROUTE90_ROWS;
      int live = (int)max(min(end - own, (int64_t)ROUTE90_ROWS), (int64_t)0);
      route90_finish(op, p, own, live, room.warp[warp]);
      route90_rank(op, own, live, room.warp, room.count);
    }
  }
  __syncthreads();
  int e = threadIdx.x;
  if (e >= ROUTE90_STRIDE) return;
  double sum = 0;
#pragma unroll
  for (int i = 0; i < ROUTE90_WARPS; i++) sum += i < warps ? room.total[i][e] : 0;
  if (e < ROUTE90_EXPERTS) plan.count[blockIdx.x * ROUTE_RANKED + e] = room.count[e];
  if (e < experts || e == ROUTE90_EXPERTS)
    plan.sums[blockIdx.x * (experts + 1) + min(e, experts)] = sum;
}

#endif

template <typename T>
static __global__ void __launch_bounds__(32 * (2 * ROUTE90_WARPS + 1), 1)
    route90_rows(const __grid_constant__ route90_maps_t maps, const op_route_t op,
                 const route_plan_t plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  route90_body<T>(maps, op, plan);
#endif
}

int route90_takes(const backend_device_t *device, const op_route_t *op, const route_plan_t *plan) {
  return device->capability == 90 && cuda_is_half(op->act_dtype) && plan->vectors &&
         op->n > ROUTE_TILE && op->experts <= ROUTE90_EXPERTS &&
         route_plain(&op->router) &&
         device->shared_bytes >= route90_shared(ROUTE90_WARPS) + (int)sizeof(route90_room_t);
}

template <typename T>
static nn_status_t route90_launch(backend_device_t *device, const op_route_t *op, int warps,
                                  const route_plan_t *plan) {
  hopper_tensor_t x = {op->x,
                       NN_BF16,
                       3,
                       {op->hidden, op->n, 1},
                       {op->hidden, op->hidden * op->n},
                       {ROUTE90_COLUMNS, ROUTE90_ROWS * warps, 1}};
  hopper_tensor_t w = {op->w,
                       NN_BF16,
                       3,
                       {op->hidden, op->experts, 1},
                       {op->hidden, op->hidden * op->experts},
                       {ROUTE90_COLUMNS, ROUTE90_EXPERTS, 1}};
  route90_maps_t maps;
  int shared = route90_shared(warps);
  CUDA_TRY(hopper_map(device, "route", &x, &maps.x));
  CUDA_TRY(hopper_map(device, "route", &w, &maps.w));
  CUDA_TRY(cuda_check(device, "route",
                      cudaFuncSetAttribute(route90_rows<T>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize, shared)));
  launch_chained(device, route90_rows<T>, (unsigned)plan->blocks, 32 * (unsigned)(2 * warps + 1),
                 (size_t)shared, 0, maps, *op, *plan);
  return NN_OK;
}

static_assert((int)ROUTE90_ROWS >= (int)ROUTE_LEAST, "scratch has room for the blocks");

/* A block to a multiprocessor, and its tokens in as few turns as there can be. */
nn_status_t route90(backend_device_t *device, const op_route_t *op, route_plan_t *plan) {
  int64_t tiles = cuda_blocks(op->n, ROUTE90_ROWS);
  int64_t most = cuda_blocks(tiles, min(device->multiprocessors, (int)ROUTE_BLOCKS));
  int64_t turns = cuda_blocks(most, ROUTE90_WARPS), warps = cuda_blocks(most, turns);
  plan->tokens = ROUTE90_ROWS * warps * turns;
  plan->blocks = (int)cuda_blocks(op->n, plan->tokens);
  plan->ranked = 1;
  return CUDA_BY_HALF(op->act_dtype, route90_launch, device, op, (int)warps, plan);
}
