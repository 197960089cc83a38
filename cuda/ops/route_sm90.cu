/* Routing's first kernel on sm_90a for many tokens of 16 bits and few experts, as route_plain says:
 * what route_rows does, and each slot's rank, for route_place_ranked. The bulk copy engine brings x
 * by stages of some columns of a tile, which is up to ROUTE90_TILE of a block's tokens, so that a
 * multiprocessor asks for all that it can hold at once. Two warpgroups, teams, take tiles by turns:
 * one multiplies while the other chooses. Of a tile, a warp takes 16 tokens from their products to
 * their choice, while another one writes down and adds their scores. Sums over tokens are in
 * double: every fourth token of a warp's 16 in order, then these four, then the warps of one place
 * in their teams, then these. */
#include "hopper.cuh"
#include "launch.cuh"
#include "ops/route_choose.cuh"

enum {
  ROUTE90_TEAM = HOPPER_GROUP / 32, /* warps of a team that compute, as many that write */
  ROUTE90_TEAMS = 2,
  ROUTE90_WARPS = ROUTE90_TEAM * ROUTE90_TEAMS,
  ROUTE90_ROWS = 16, /* tokens of a warp at once */
  ROUTE90_TILE = ROUTE90_TEAM * ROUTE90_ROWS,
  ROUTE90_EXPERTS = ROUTE_RANKED,
  ROUTE90_COLUMNS = HOPPER_ROW_BYTES / 2, /* of a panel */
  ROUTE90_PANELS = 2, /* of x in a stage; as many of w behind them */
  ROUTE90_X_BYTES = ROUTE90_TILE * HOPPER_ROW_BYTES, /* of a panel */
  ROUTE90_W_BYTES = ROUTE90_EXPERTS * HOPPER_ROW_BYTES,
  ROUTE90_W = ROUTE90_PANELS * ROUTE90_X_BYTES,
  ROUTE90_STAGE = ROUTE90_W + ROUTE90_PANELS * ROUTE90_W_BYTES,
  ROUTE90_STAGES = 8,
  ROUTE90_SHARED = HOPPER_ALIGN + ROUTE90_STAGES * ROUTE90_STAGE,
  ROUTE90_STRIDE = ROUTE90_EXPERTS + 1,
  ROUTE90_BEST = 4, /* so many are chosen at once */
  /* names of barriers: what a team chose is known, its tile's shared memory has been read, one for
   * each team; from the last on, a warp's rows are written */
  ROUTE90_CHOSEN = 1,
  ROUTE90_READ = ROUTE90_CHOSEN + ROUTE90_TEAMS,
  ROUTE90_ROW = ROUTE90_READ + ROUTE90_TEAMS
};

typedef struct route90_warp {
  float row[ROUTE90_ROWS * ROUTE90_STRIDE]; /* probabilities, then the largest logit */
  float sum[ROUTE90_ROWS];                  /* of powers, of which the largest is 1 */
  uint32_t tokens[ROUTE90_EXPERTS];         /* that chose e, a bit each */
  alignas(4) uint8_t chosen[ROUTE90_ROWS * ROUTE90_EXPERTS]; /* each token's, in falling order */
} route90_warp_t;

/* Barriers: a stage is here, has been read; a team's tile is multiplied, is counted. */
typedef struct route90_room {
  double total[ROUTE90_WARPS][ROUTE90_STRIDE];
  uint64_t full[ROUTE90_STAGES], empty[ROUTE90_STAGES];
  uint64_t multiplied[ROUTE90_TEAMS], counted[ROUTE90_TEAMS];
  route90_warp_t warp[ROUTE90_WARPS];
  int32_t count[2][ROUTE90_EXPERTS]; /* slots of the tiles before an even one, before an odd one */
} route90_room_t;

typedef struct route90_maps {
  CUtensorMap x, w;
  int rows, teams; /* rows: of a tile */
  int once;        /* x exceeds the second-level cache, which is left to what is written */
} route90_maps_t;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

static __device__ __forceinline__ uint32_t route90_at(const void *shared) {
  return (uint32_t)__cvta_generic_to_shared(shared);
}

/* Number j of the eight experts of a lane; all even lanes have the same ones. */
static __device__ __forceinline__ int route90_expert(int j) {
  return 2 * (threadIdx.x & 1) + j % 2 + j / 2 * 4;
}

/* Which of the warp's tokens is this lane's and its neighbour's. */
static __device__ __forceinline__ int route90_token() {
  return (threadIdx.x & 31) / 4 + (threadIdx.x & 2) * 4;
}

/* Lanes t and t + 2 of a group have four columns each of tokens g and g + 8. t < 2 takes all eight
 * of g, the others those of g + 8. d: the panels' sums, as a product leaves them. */
static __device__ __forceinline__ void route90_share(const float (&d)[ROUTE90_PANELS][8],
                                                     float (&p)[8]) {
  bool high = threadIdx.x & 2;
#pragma unroll
  for (int j = 0; j < 2; j++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float low = d[0][4 * j + i] + d[1][4 * j + i];
      float up = d[0][4 * j + 2 + i] + d[1][4 * j + 2 + i];
      float own = high ? up : low, other = high ? low : up;
      other = __shfl_xor_sync(0xffffffffu, other, 2);
      p[4 * j + i] = high ? other : own, p[4 * j + 2 + i] = high ? own : other;
    }
}

/* ---- the choice ------------------------------------------------------------------------------ */

static __device__ __forceinline__ void route90_fall(int &x, int &y) {
  int least = min(x, y);
  x = max(x, y), y = least;
}

static __device__ __forceinline__ void route90_sort(int (&x)[ROUTE90_BEST]) {
  route90_fall(x[0], x[1]), route90_fall(x[2], x[3]);
  route90_fall(x[0], x[2]), route90_fall(x[1], x[3]);
  route90_fall(x[1], x[2]);
}

/* Of two lists in falling order, the larger half into x, in falling order, and the largest of the
 * others into rest where that is larger. */
static __device__ __forceinline__ void route90_merge(int (&x)[ROUTE90_BEST],
                                                     const int (&y)[ROUTE90_BEST], int *rest) {
#pragma unroll
  for (int i = 0; i < ROUTE90_BEST; i++) {
    int other = y[ROUTE90_BEST - 1 - i];
    *rest = max(*rest, min(x[i], other)), x[i] = max(x[i], other);
  }
  route90_fall(x[0], x[2]), route90_fall(x[1], x[3]);
  route90_fall(x[0], x[1]), route90_fall(x[2], x[3]);
}

/* The k <= ROUTE90_BEST best experts of a lane's token in falling order, known to both of its
 * lanes. They go by keys, which have an expert in place of a score's last bits; returns false where
 * these bits, or that scores are equal, may have decided. p: the lane's scores. */
static __device__ __forceinline__ bool route90_best(const float (&p)[8], int k, bool live,
                                                    int (&expert)[ROUTE90_BEST]) {
  constexpr int LAST = ROUTE90_EXPERTS - 1;
  int half[2][ROUTE90_BEST], other[ROUTE90_BEST], rest = 0;
#pragma unroll
  for (int j = 0; j < 8; j++)
    half[j / ROUTE90_BEST][j % ROUTE90_BEST] =
        (__float_as_int(p[j]) & ~LAST) | (LAST - (j % 2 + j / 2 * 4));
  route90_sort(half[0]), route90_sort(half[1]);
  int(&top)[ROUTE90_BEST] = half[0];
  route90_merge(top, half[1], &rest);
  int q = threadIdx.x & 1;
#pragma unroll
  for (int i = 0; i < ROUTE90_BEST; i++) {
    top[i] ^= 2 * q; /* from here on the lane's own experts: LAST - route90_expert(j) */
    other[i] = __shfl_xor_sync(0xffffffffu, top[i], 1);
  }
  rest = max(rest, __shfl_xor_sync(0xffffffffu, rest, 1));
  route90_merge(top, other, &rest);
  bool close = false;
#pragma unroll
  for (int i = 0; i < ROUTE90_BEST; i++) {
    int next = i + 1 < ROUTE90_BEST ? top[i + 1 < ROUTE90_BEST ? i + 1 : i] : rest;
    close |= i < k && ((top[i] ^ next) & ~LAST) == 0;
    expert[i] = ~top[i] & LAST;
  }
  return !__any_sync(0xffffffffu, live && close);
}

/* The k best experts of a lane's token into `chosen`, in falling order and, among equals, by index.
 * Returns the sum of their scores in that order. own: the lane's scores; -1 where there is no
 * expert. */
static __device__ __forceinline__ float route90_choose(float (&own)[8], int k, uint8_t *chosen) {
  float sum = 0;
#pragma unroll 1
  for (int i = 0; i < k; i++) {
    float best = route_largest<0, 8>(own);
    best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
    int e = ROUTE90_EXPERTS;
#pragma unroll
    for (int j = 7; j >= 0; j--) e = own[j] == best ? route90_expert(j) : e;
    e = min(e, __shfl_xor_sync(0xffffffffu, e, 1));
#pragma unroll
    for (int j = 0; j < 8; j++) own[j] = route90_expert(j) == e ? -1 : own[j];
    sum += best;
    if (threadIdx.x % 2 == 0) chosen[i] = (uint8_t)e;
  }
  return sum;
}

/* ---- a tile ---------------------------------------------------------------------------------- */

/* A slot's expert, by its score; all: what scores are divided by. here: which of the warp's tokens
 * chose it. */
static __device__ __forceinline__ void route90_put(const op_route_t &op, int64_t slot, int expert,
                                                   float score, float all, int here,
                                                   route90_warp_t &room) {
  atomicOr(&room.tokens[expert], 1u << here);
  op.out.expert[slot] = expert;
  op.out.weight[slot] = route_weight(op.router, score, all);
}

/* A warp's tokens from first on, `tokens` of them live: their scores into room, their choice into
 * op's arrays. p: their logits. */
static __device__ __forceinline__ void route90_finish(const op_route_t &op, float (&p)[8],
                                                      int64_t first, int tokens,
                                                      route90_warp_t &room) {
  int lane = threadIdx.x & 31, q = lane & 1, here = route90_token();
  int experts = (int)op.experts, k = (int)op.top_k;
  float *row = room.row + here * ROUTE90_STRIDE;
  uint8_t *chosen = room.chosen + here * ROUTE90_EXPERTS;
  bool live = here < tokens;
  if (lane < ROUTE90_EXPERTS) room.tokens[lane] = 0;
#pragma unroll
  for (int j = 0; j < 8; j++) p[j] = route90_expert(j) < experts ? p[j] : -INFINITY;
  float most, sum = route_powers<2>(p, q, ROUTE90_EXPERTS, &most), all = 0;
#pragma unroll
  for (int j = 0; j < 8; j++) row[route90_expert(j)] = live ? p[j] : 0;
  if (q == 0) row[ROUTE90_EXPERTS] = live ? most : 0, room.sum[here] = live ? sum : 1;
  hopper_named_arrive(ROUTE90_ROW + threadIdx.x / 32, 64);
  int best[ROUTE90_BEST];
  int64_t slots = (first + here) * k;
  __syncwarp();
  if (k <= ROUTE90_BEST && route90_best(p, k, live, best)) {
    float score[ROUTE90_BEST];
#pragma unroll
    for (int i = 0; i < ROUTE90_BEST; i++) score[i] = i < k ? row[best[i]] : 0, all += score[i];
    all = route_divisor(op.router, all, false);
#pragma unroll
    for (int i = 0; i < ROUTE90_BEST; i += 2)
      if (live && i + q < k)
        route90_put(op, slots + i + q, q ? best[i + 1] : best[i], q ? score[i + 1] : score[i], all,
                    here, room);
    if (q == 0)
      *(uint32_t *)chosen = best[0] | best[1] << 8 | best[2] << 16 | (uint32_t)best[3] << 24;
    return;
  }
  float own[8];
#pragma unroll
  for (int j = 0; j < 8; j++)
    own[j] = route90_expert(j) < experts ? fmaxf(p[j], 0) : -1; /* NaN counts as 0 */
  all = route_divisor(op.router, route90_choose(own, k, chosen), isnan(p[0]));
  __syncwarp();
#pragma unroll 1
  for (int j = q; live && j < k; j += 2) {
    int e = chosen[j];
    route90_put(op, slots + j, e, fmaxf(row[e], 0), all, here, room);
  }
}

/* What a warp has in room.row into op's arrays. sum += lane l's, of expert l or, where l is
 * ROUTE90_EXPERTS, of squares of log-sum-exps. */
static __device__ __forceinline__ void route90_write(const op_route_t &op, int64_t first,
                                                     int tokens, route90_warp_t &room,
                                                     double *sum) {
  int lane = threadIdx.x & 31, experts = (int)op.experts;
  if (lane < ROUTE90_ROWS) {
    float *most = room.row + lane * ROUTE90_STRIDE + ROUTE90_EXPERTS;
    float lse = *most + logf(room.sum[lane]);
    if (lane < tokens) op.lse[first + lane] = lse;
    *most = lse;
  }
  __syncwarp();
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

/* What a block's warps know: its tokens, `rows` of them and `chunks` stages to a tile. */
typedef struct route90_work {
  int64_t begin, end;
  int rows, teams, chunks, tiles;
  uint32_t ring, full, empty;
} route90_work_t;

/* How many tokens a warp has of those from `own` on, in the tile from `first` on. */
static __device__ __forceinline__ int route90_live(const route90_work_t &work, int64_t first,
                                                   int64_t own) {
  int64_t end = min(work.end, first + work.rows);
  return (int)max(min(end - own, (int64_t)ROUTE90_ROWS), (int64_t)0);
}

/* Waits for the other team's part of the tile before. A team's barrier has a phase for each of its
 * tiles. */
static __device__ __forceinline__ void route90_before(const uint64_t *barriers, int tile) {
  if (tile) hopper_wait(route90_at(&barriers[(tile + 1) % 2]), (tile - 1) / 2 & 1);
}

/* By each warp of the tile's team. */
static __device__ __forceinline__ void route90_done(const uint64_t *barriers, int tile) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) hopper_arrive(route90_at(&barriers[tile % 2]));
}

/* The ranks of a warp's slots into slot_row: how many of the block's earlier tokens chose the same.
 * own: its first token, of which `tokens` are live; by all computing warps of the tile's team. */
static __device__ __forceinline__ void route90_rank(const op_route_t &op, int tile, int64_t own,
                                                    int tokens, route90_room_t &room) {
  int warp = threadIdx.x / 32, team = tile % ROUTE90_TEAMS, q = threadIdx.x & 1;
  int here = route90_token(), k = (int)op.top_k;
  int column = threadIdx.x % ROUTE90_EXPERTS, added = 0, earlier = 0;
  const route90_warp_t *rooms = room.warp + team * ROUTE90_TEAM, &mine = room.warp[warp];
  hopper_named_sync(ROUTE90_CHOSEN + team, HOPPER_GROUP);
#pragma unroll
  for (int w = 0; w < ROUTE90_TEAM; w++) {
    int count = __popc(rooms[w].tokens[column]);
    added += count, earlier += w < warp % ROUTE90_TEAM ? count : 0;
  }
  route90_before(room.counted, tile);
  int before = room.count[tile % 2][column];
  if (threadIdx.x % HOPPER_GROUP < ROUTE90_EXPERTS)
    room.count[(tile + 1) % 2][column] = before + added;
  route90_done(room.counted, tile);
  earlier += before;
#pragma unroll 2
  for (int j = q; j - q < k; j += 2) {
    int e = j < k ? mine.chosen[here * ROUTE90_EXPERTS + j] : 0;
    int rank = __shfl_sync(0xffffffffu, earlier, e);
    rank += __popc(mine.tokens[e] & ((1u << here) - 1));
    if (here < tokens && j < k) op.out.slot_row[(own + here) * k + j] = rank * ROUTE_RANKED + e;
  }
  hopper_named_sync(ROUTE90_READ + team, 2 * HOPPER_GROUP);
}

/* The warp that copies. */
static __device__ __forceinline__ void route90_copies(const route90_maps_t &maps,
                                                      const route90_work_t &work) {
  int bytes = ROUTE90_PANELS * (work.rows * HOPPER_ROW_BYTES + ROUTE90_W_BYTES);
  uint32_t step = 0;
  if (threadIdx.x % 32) return;
  for (int tile = 0; tile < work.tiles; tile++)
    for (int c = 0; c < work.chunks; c++, step++) {
      uint32_t slot = step % ROUTE90_STAGES, to = work.ring + slot * ROUTE90_STAGE;
      uint32_t full = work.full + 8 * slot;
      hopper_wait(work.empty + 8 * slot, (step / ROUTE90_STAGES & 1) ^ 1);
      hopper_expect(full, bytes);
#pragma unroll
      for (int i = 0; i < ROUTE90_PANELS; i++) {
        int column = (c * ROUTE90_PANELS + i) * ROUTE90_COLUMNS;
        int row = (int)work.begin + tile * work.rows;
        uint32_t x = to + i * ROUTE90_X_BYTES;
        if (maps.once) hopper_copy_once(maps.x, x, full, column, row, 0);
        else hopper_copy(maps.x, x, full, column, row, 0);
        hopper_copy(maps.w, to + ROUTE90_W + i * ROUTE90_W_BYTES, full, column, 0, 0);
      }
    }
}

/* The warp that writes what warp `of` computes. */
static __device__ __forceinline__ void route90_writes(const op_route_t &op,
                                                      const route90_work_t &work, int of,
                                                      route90_room_t &room) {
  int lane = threadIdx.x & 31, team = of / ROUTE90_TEAM;
  double sum = 0;
  for (int tile = team; tile < work.tiles; tile += ROUTE90_TEAMS) {
    int64_t first = work.begin + (int64_t)tile * work.rows;
    int64_t own = first + of % ROUTE90_TEAM * ROUTE90_ROWS;
    hopper_named_sync(ROUTE90_ROW + of, 64);
    route90_write(op, own, route90_live(work, first, own), room.warp[of], &sum);
    hopper_named_sync(ROUTE90_READ + team, 2 * HOPPER_GROUP);
  }
  if (lane < ROUTE90_STRIDE) room.total[of][lane] = sum;
}

/* d: a tile's products, each panel's sums for themselves; by its team. The tile before has been
 * multiplied, so that no stage's barrier is more than a phase behind. */
template <typename T>
static __device__ __forceinline__ void route90_multiply(const route90_work_t &work, int tile,
                                                        float (&d)[ROUTE90_PANELS][8]) {
  uint32_t step = tile * work.chunks, last = 0;
  bool tells = threadIdx.x % 32 == 0;
  for (int c = 0; c < work.chunks; c++, step++) {
    uint32_t slot = step % ROUTE90_STAGES, at = work.ring + slot * ROUTE90_STAGE;
    hopper_wait(work.full + 8 * slot, step / ROUTE90_STAGES & 1);
    hopper_begin();
#pragma unroll
    for (int i = 0; i < ROUTE90_PANELS; i++) {
      uint64_t x = hopper_operand(at + i * ROUTE90_X_BYTES, 16);
      uint64_t w = hopper_operand(at + ROUTE90_W + i * ROUTE90_W_BYTES, 16);
#pragma unroll
      for (int s = 0; s < ROUTE90_COLUMNS / 16; s++)
        hopper_multiply_16<T, false, false>(d[i], x + s * HOPPER_NEXT_K, w + s * HOPPER_NEXT_K,
                                            c || s);
    }
    hopper_commit();
    hopper_done<1>();
    if (c && tells) hopper_arrive(last);
    last = work.empty + 8 * slot;
  }
  hopper_done<0>();
  hopper_hold(d[0]), hopper_hold(d[1]);
  if (tells) hopper_arrive(last);
}

/* A warp that computes. */
template <typename T>
static __device__ __forceinline__ void route90_choices(const op_route_t &op,
                                                       const route90_work_t &work,
                                                       route90_room_t &room) {
  int warp = threadIdx.x / 32;
  for (int tile = warp / ROUTE90_TEAM; tile < work.tiles; tile += ROUTE90_TEAMS) {
    int64_t first = work.begin + (int64_t)tile * work.rows;
    int64_t own = first + warp % ROUTE90_TEAM * ROUTE90_ROWS;
    int live = route90_live(work, first, own);
    float d[ROUTE90_PANELS][8], p[8];
    route90_before(room.multiplied, tile);
    route90_multiply<T>(work, tile, d);
    route90_done(room.multiplied, tile);
    route90_share(d, p);
    route90_finish(op, p, own, live, room.warp[warp]);
    route90_rank(op, tile, own, live, room);
  }
}

/* The block's counts and sums. */
static __device__ __forceinline__ void route90_add(const op_route_t &op, const route_plan_t &plan,
                                                   const route90_work_t &work,
                                                   const route90_room_t &room) {
  int e = threadIdx.x, experts = (int)op.experts;
  if (e >= ROUTE90_STRIDE) return;
  double sum[ROUTE90_TEAM] = {};
#pragma unroll
  for (int i = 0; i < ROUTE90_WARPS; i++)
    sum[i % ROUTE90_TEAM] += i < work.teams * ROUTE90_TEAM ? room.total[i][e] : 0;
  if (e < ROUTE90_EXPERTS)
    plan.count[blockIdx.x * ROUTE_RANKED + e] = room.count[work.tiles % 2][e];
  if (e < experts || e == ROUTE90_EXPERTS)
    plan.sums[blockIdx.x * (experts + 1) + min(e, experts)] =
        (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static __device__ __forceinline__ void route90_open(const route90_maps_t &maps,
                                                    route90_room_t &room) {
  if (threadIdx.x < ROUTE90_EXPERTS) room.count[0][threadIdx.x] = 0;
  if (threadIdx.x) return;
  hopper_prefetch(maps.x), hopper_prefetch(maps.w);
  for (int i = 0; i < ROUTE90_STAGES; i++) {
    hopper_barrier_init(route90_at(&room.full[i]), 1);
    hopper_barrier_init(route90_at(&room.empty[i]), ROUTE90_TEAM);
  }
  for (int i = 0; i < ROUTE90_TEAMS; i++) {
    hopper_barrier_init(route90_at(&room.multiplied[i]), ROUTE90_TEAM);
    hopper_barrier_init(route90_at(&room.counted[i]), ROUTE90_TEAM);
  }
  hopper_barrier_ready();
}

template <typename T>
static __device__ __forceinline__ void route90_body(const route90_maps_t &maps,
                                                    const op_route_t &op,
                                                    const route_plan_t &plan) {
  extern __shared__ char dynamic[];
  __shared__ route90_room_t room;
  enum { COLUMNS = ROUTE90_PANELS * ROUTE90_COLUMNS };
  int warp = threadIdx.x / 32, warps = maps.teams * ROUTE90_TEAM;
  uint32_t start = route90_at(dynamic);
  route90_work_t work;
  work.begin = blockIdx.x * plan.tokens, work.end = min(work.begin + plan.tokens, op.n);
  work.rows = maps.rows, work.teams = maps.teams;
  work.chunks = ((int)op.hidden + COLUMNS - 1) / COLUMNS;
  work.tiles = ((int)(work.end - work.begin) + maps.rows - 1) / maps.rows;
  work.ring = start + -start % HOPPER_ALIGN;
  work.full = route90_at(room.full), work.empty = route90_at(room.empty);
  route90_open(maps, room);
  __syncthreads();
  launch_next();
  launch_wait();
  if (warp == 2 * warps) route90_copies(maps, work);
  else if (warp >= warps) route90_writes(op, work, warp - warps, room);
  else route90_choices<T>(op, work, room);
  __syncthreads();
  route90_add(op, plan, work, room);
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
         device->shared_bytes >= (int)ROUTE90_SHARED + (int)sizeof(route90_room_t);
}

template <typename T>
static nn_status_t route90_launch(backend_device_t *device, const op_route_t *op, int rows,
                                  int teams, const route_plan_t *plan) {
  hopper_tensor_t x = {op->x,
                       NN_BF16,
                       3,
                       {op->hidden, op->n, 1},
                       {op->hidden, op->hidden * op->n},
                       {ROUTE90_COLUMNS, rows, 1}};
  x.streamed = 1;
  hopper_tensor_t w = {op->w,
                       NN_BF16,
                       3,
                       {op->hidden, op->experts, 1},
                       {op->hidden, op->hidden * op->experts},
                       {ROUTE90_COLUMNS, ROUTE90_EXPERTS, 1}};
  route90_maps_t maps;
  maps.rows = rows, maps.teams = teams;
  maps.once = 2 * op->n * op->hidden > device->cache_bytes;
  CUDA_TRY(hopper_map(device, "route", &x, &maps.x));
  CUDA_TRY(hopper_map(device, "route", &w, &maps.w));
  CUDA_TRY(cuda_check(device, "route",
                      cudaFuncSetAttribute(route90_rows<T>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           ROUTE90_SHARED)));
  unsigned threads = 32 * (unsigned)(2 * ROUTE90_TEAM * teams + 1); /* the last warp copies */
  launch_chained(device, route90_rows<T>, (unsigned)plan->blocks, threads, ROUTE90_SHARED, 0, maps,
                 *op, *plan);
  return NN_OK;
}

static_assert((int)ROUTE90_ROWS >= (int)ROUTE_LEAST, "scratch has room for the blocks");

/* A block to a multiprocessor, and its tokens in as few tiles as there can be. */
nn_status_t route90(backend_device_t *device, const op_route_t *op, route_plan_t *plan) {
  int64_t groups = cuda_blocks(op->n, ROUTE90_ROWS);
  int64_t most = cuda_blocks(groups, min(device->multiprocessors, (int)ROUTE_BLOCKS));
  int64_t tiles = cuda_blocks(most, ROUTE90_TEAM);
  int rows = ROUTE90_ROWS * (int)cuda_blocks(most, tiles);
  plan->tokens = rows * tiles;
  plan->blocks = (int)cuda_blocks(op->n, plan->tokens);
  plan->ranked = 1;
  int teams = tiles > 1 ? ROUTE90_TEAMS : 1;
  return CUDA_BY_HALF(op->act_dtype, route90_launch, device, op, rows, teams, plan);
}
