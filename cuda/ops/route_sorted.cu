/* Routing's choice of up to SORTED_MOST of up to 256 experts, from the logits that a product left
 * in prob: a warp takes 8 tokens at a time, 4 lanes each. Of each 32 experts lane q has 8, those
 * that sorted_expert says; it sorts them in falling order and merges the best of all, then lanes
 * merge theirs, so that the least of the chosen scores is known. What reaches it is chosen, equals
 * from the lowest expert on. Sums over experts are in route_many.cu's order, sums over tokens in
 * double: a warp's tokens in order, then the warps, then the blocks. */
#include "launch.cuh"
#include "ops/route_logits.cuh"
#include "ops/wide.cuh"

enum {
  SORTED_MOST = 8,   /* choices */
  SORTED_ROWS = 8,   /* of 32 experts */
  SORTED_TOKENS = 8, /* of a warp at once */
  SORTED_WARPS = 16
};

/* ---- sorting --------------------------------------------------------------------------------- */

static __device__ __forceinline__ void sorted_pair(float &a, float &b) {
  float most = fmaxf(a, b);
  b = fminf(a, b), a = most;
}

static __device__ __forceinline__ void sorted_eight(float (&x)[8]) {
  constexpr int pairs[19][2] = {{0, 2}, {1, 3}, {4, 6}, {5, 7}, {0, 4}, {1, 5}, {2, 6},
                                {3, 7}, {0, 1}, {2, 3}, {4, 5}, {6, 7}, {2, 4}, {3, 5},
                                {1, 4}, {3, 6}, {1, 2}, {3, 4}, {5, 6}};
#pragma unroll
  for (int i = 0; i < 19; i++) sorted_pair(x[pairs[i][0]], x[pairs[i][1]]);
}

/* The eight largest of both, which fall. */
static __device__ __forceinline__ void sorted_merge(float (&best)[8], const float (&other)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i++) best[i] = fmaxf(best[i], other[7 - i]);
#pragma unroll
  for (int half = 4; half; half >>= 1)
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (!(i & half)) sorted_pair(best[i], best[i + half]);
}

/* ---- a token's lanes ------------------------------------------------------------------------- */

/* The expert of lane q's number i in row j. */
static __device__ __forceinline__ int sorted_expert(int j, int i, int q) {
  return 32 * j + 16 * (i >> 2) + 4 * q + (i & 3);
}

static __device__ __forceinline__ int sorted_sum(int x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* Of sums over rows, what lanes_sum<32> is where a lane has one expert of a row. */
static __device__ __forceinline__ float sorted_sum(const float (&row)[8]) {
  float sum[4];
#pragma unroll
  for (int i = 0; i < 4; i++) sum[i] = row[i] + row[4 + i];
#pragma unroll
  for (int i = 0; i < 4; i++) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
#pragma unroll
  for (int i = 0; i < 4; i++) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* Of a number of at least 1. */
static __device__ __forceinline__ float sorted_inverse(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* Turns logits into scores; returns the log-sum-exp. share: what makes the scores sum to 1. */
template <int ROWS, bool ANY>
static __device__ __forceinline__ float sorted_scores(const op_router_t &router,
                                                      float (&p)[ROWS][8], float *share) {
  float most = -INFINITY, sum[8] = {}, scores[8] = {};
#pragma unroll
  for (int i = 0; i < 8 * ROWS; i++) most = fmaxf(most, p[i / 8][i % 8]);
#pragma unroll
  for (int step = 1; step < 4; step <<= 1)
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
  if (ANY && router.score == NN_SCORE_SIGMOID) {
#pragma unroll
    for (int i = 0; i < 8 * ROWS; i++) {
      float &x = p[i / 8][i % 8];
      sum[i % 8] += expf(x - most);
      x = sorted_inverse(1 + expf(-x));
      scores[i % 8] += x;
    }
    *share = 1 / sorted_sum(scores);
    return most + logf(sorted_sum(sum));
  }
#pragma unroll
  for (int i = 0; i < 8 * ROWS; i++) sum[i % 8] += p[i / 8][i % 8] = expf(p[i / 8][i % 8] - most);
  float all = sorted_sum(sum), part = 1 / all; /* of at least 1 */
#pragma unroll
  for (int i = 0; i < 8 * ROWS; i++) p[i / 8][i % 8] *= part;
  return most + logf(all);
}

/* Rows of groups that remain, a bit each, where groups are of whole rows; key: rows in falling
 * order. */
template <int ROWS>
static __device__ __forceinline__ uint32_t sorted_groups(const op_router_t &router, int experts,
                                                         const float (&key)[ROWS][8], int q) {
  int groups = (int)router.groups, across = experts / groups / 32;
  bool two = router.group_score == NN_GROUP_TOP2;
  float score[ROWS], first = -INFINITY, second = -INFINITY;
#pragma unroll
  for (int i = 0; i < ROWS; i++) score[i] = -INFINITY;
#pragma unroll
  for (int j = 0, group = 0, left = across; j < ROWS; j++) {
    second = fmaxf(fminf(first, key[j][0]), fmaxf(second, key[j][1]));
    first = fmaxf(first, key[j][0]);
    if (--left) continue;
#pragma unroll
    for (int step = 1; step < 4; step <<= 1) {
      float one = __shfl_xor_sync(0xffffffffu, first, step);
      float other = __shfl_xor_sync(0xffffffffu, second, step);
      second = fmaxf(fminf(first, one), fmaxf(second, other)), first = fmaxf(first, one);
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++)
      if (i == group) score[i] = first + (two ? second : 0);
    first = second = -INFINITY, left = across, group++;
  }
  uint32_t remain = 0; /* groups */
#pragma unroll
  for (int i = 0; i < (ROWS + 3) / 4; i++) { /* lane q ranks groups q and q + 4 */
    int group = q + 4 * i, better = 0;
    float own = score[4 * i];
#pragma unroll
    for (int l = 1; l < 4; l++)
      if (4 * i + l < ROWS && q == l) own = score[4 * i + l];
#pragma unroll
    for (int l = 0; l < ROWS; l++)
      better += l < groups && (score[l] > own || (score[l] == own && l < group));
    remain |= (uint32_t)(group < groups && better < router.top_groups) << group;
  }
  remain |= __shfl_xor_sync(0xffffffffu, remain, 1);
  remain |= __shfl_xor_sync(0xffffffffu, remain, 2);
  if (across == 1) return remain;
  uint32_t rows = 0;
#pragma unroll
  for (int j = 0, group = 0, left = across; j < ROWS; j++) {
    rows |= (remain >> group & 1) << j;
    if (--left == 0) left = across, group++;
  }
  return rows;
}

/* Four rows' bits, each for all of a lane's eight numbers. */
static __device__ __forceinline__ uint32_t sorted_spread(uint32_t rows) {
  return ((rows & 15) * 0x204081u & 0x1010101u) * 255u;
}

/* ---- the choice ------------------------------------------------------------------------------ */

/* A warp's shared memory beside its scores: what its tokens chose, once sorted_order is done in
 * falling order. */
typedef struct sorted_room {
  float key[SORTED_TOKENS][SORTED_MOST];
  float score[SORTED_TOKENS][SORTED_MOST];
  int32_t expert[SORTED_TOKENS][SORTED_MOST];
} sorted_room_t;

/* Lane q's numbers of 4 rows to a word, a bit each. */
template <int ROWS>
struct sorted_bits_t {
  static constexpr int words = (ROWS + 3) / 4;
  uint32_t word[words];

  __device__ __forceinline__ int count() const {
    int sum = 0;
#pragma unroll
    for (int w = 0; w < words; w++) sum += __popc(word[w]);
    return sum;
  }

  /* INT32_MAX: none */
  __device__ __forceinline__ int lowest_expert(int q) const {
    int e = INT32_MAX;
#pragma unroll
    for (int w = words - 1; w >= 0; w--) {
      int i = __ffs(word[w]) - 1;
      if (word[w]) e = sorted_expert(4 * w + (i >> 3), i & 7, q);
    }
    return e;
  }

  /* Returns it too. */
  __device__ __forceinline__ sorted_bits_t remove_lowest() {
    sorted_bits_t lowest = {};
    bool done = false;
#pragma unroll
    for (int w = 0; w < words; w++)
      if (!done && word[w])
        lowest.word[w] = word[w] & -word[w], word[w] &= word[w] - 1, done = true;
    return lowest;
  }
};

static __device__ __forceinline__ float4 sorted_four(const float *from, int j, int half, int q) {
  return *(const float4 *)(from + sorted_expert(j, 4 * half, q));
}

static __device__ __forceinline__ float sorted_part(float4 x, int i) {
  return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}

/* What the choice goes by. */
template <bool ANY>
static __device__ __forceinline__ float sorted_key(float score, float bias) {
  return ANY ? __fadd_rn(score, bias) : score;
}

/* Of row, a token's scores, which keys are more than least or, else, no less. bias: shared, for the
 * choice. */
template <int ROWS, bool ANY>
static __device__ __forceinline__ sorted_bits_t<ROWS> sorted_find(const float *row,
                                                                  const float *bias, int q,
                                                                  float least, bool more) {
  sorted_bits_t<ROWS> bits = {};
#pragma unroll
  for (int i = 0; i < 2 * ROWS; i++) {
    int j = i / 2, half = i % 2;
    float4 x = sorted_four(row, j, half, q), add = {};
    if (ANY) add = sorted_four(bias, j, half, q);
#pragma unroll
    for (int l = 0; l < 4; l++) {
      float key = sorted_key<ANY>(sorted_part(x, l), sorted_part(add, l));
      if (more ? key > least : key >= least)
        bits.word[j / 4] |= 1u << (j % 4 * 8 + 4 * half + l);
    }
  }
  return bits;
}

/* The lane's part of the k chosen, of the keys that are no less than least; valid: which there are.
 * Where least is -INFINITY, these are all. */
template <int ROWS, bool ANY>
static __device__ __forceinline__ sorted_bits_t<ROWS>
sorted_chosen(const float *row, const float *bias, const sorted_bits_t<ROWS> &valid, int q, int k,
              float least) {
  constexpr int WORDS = sorted_bits_t<ROWS>::words;
  sorted_bits_t<ROWS> hit = sorted_find<ROWS, ANY>(row, bias, q, least, false);
#pragma unroll
  for (int w = 0; w < WORDS; w++)
    hit.word[w] = least > -INFINITY ? hit.word[w] & valid.word[w] : valid.word[w];
  if (!__any_sync(0xffffffffu, sorted_sum(hit.count()) != k)) return hit;
  sorted_bits_t<ROWS> sure = sorted_find<ROWS, ANY>(row, bias, q, least, true);
#pragma unroll
  for (int w = 0; w < WORDS; w++) sure.word[w] &= valid.word[w], hit.word[w] &= ~sure.word[w];
  int left = k - sorted_sum(sure.count());
#pragma unroll 1
  while (__any_sync(0xffffffffu, left > 0)) { /* equals */
    int e = hit.lowest_expert(q);
    int lowest = min(e, __shfl_xor_sync(0xffffffffu, e, 1));
    lowest = min(lowest, __shfl_xor_sync(0xffffffffu, lowest, 2));
    if (left-- <= 0 || e != lowest) continue;
    sorted_bits_t<ROWS> one = hit.remove_lowest();
#pragma unroll
    for (int w = 0; w < WORDS; w++) sure.word[w] |= one.word[w];
  }
  return sure;
}

/* Puts what a token chose in order, among equals the lower expert first. */
template <bool ANY>
static __device__ __forceinline__ void sorted_order(sorted_room_t &room, const float *row,
                                                    const float *bias, int own, int q, int k) {
  int e[2], rank[2] = {};
  float score[2], key[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    bool chosen = q + 4 * i < k;
    e[i] = chosen ? room.expert[own][q + 4 * i] : 0, score[i] = row[e[i]];
    key[i] = fmaxf(sorted_key<ANY>(score[i], bias[e[i]]), -INFINITY);
    if (chosen) room.key[own][q + 4 * i] = key[i];
  }
  __syncwarp();
#pragma unroll 1
  for (int l = 0; l < k; l++) {
    float other = room.key[own][l];
    int which = room.expert[own][l];
#pragma unroll
    for (int i = 0; i < 2; i++) rank[i] += other > key[i] || (other == key[i] && which < e[i]);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; i++)
    if (q + 4 * i < k) room.expert[own][rank[i]] = e[i], room.score[own][rank[i]] = score[i];
}

/* From what the lane has of the chosen to room. best: the largest keys, falling; they say how many
 * are before a key unless some are equal. */
template <int ROWS, bool ANY>
static __device__ __forceinline__ void
sorted_list(sorted_room_t &room, const float *row, const float *bias, const float (&best)[8],
            sorted_bits_t<ROWS> hit, int own, int q, int k, float least) {
  bool equals = !(least > -INFINITY);
#pragma unroll
  for (int i = 1; i < 8; i++) equals |= i < k && !(best[i - 1] > best[i]);
  equals = __any_sync(0xffffffffu, equals);
  int mine = hit.count(), first = mine;
  if (equals) {
#pragma unroll
    for (int step = 1; step < 4; step <<= 1) {
      int before = __shfl_up_sync(0xffffffffu, first, step, 4);
      if (q >= step) first += before;
    }
    first -= mine;
  }
#pragma unroll 1
  for (int i = 0; i < mine; i++) {
    int e = hit.lowest_expert(q), place = 0;
    hit.remove_lowest();
    float score = row[e], key = sorted_key<ANY>(score, bias[e]);
#pragma unroll
    for (int l = 0; l < 7; l++) place += best[l] > key;
    if (equals) place = first + i;
    room.expert[own][place] = e, room.score[own][place] = score;
  }
  __syncwarp();
  if (!equals) return;
  sorted_order<ANY>(room, row, bias, own, q, k);
  __syncwarp();
}

/* ---- the kernel ------------------------------------------------------------------------------ */

static __device__ __forceinline__ float sorted_bias(const op_route_t &op, const void *bias, int e) {
  if (!bias || e >= op.experts) return 0;
  if (op.act_dtype == NN_BF16) return to_float(((const __nv_bfloat16 *)bias)[e]);
  if (op.act_dtype == NN_F16) return to_float(((const __half *)bias)[e]);
  return ((const float *)bias)[e];
}

/* A token's logits; -INFINITY behind the last expert. */
template <int ROWS, bool ANY>
static __device__ __forceinline__ void sorted_load(const op_route_t &op, const float *prob,
                                                   bool live, const float *bias, int q,
                                                   float (&p)[ROWS][8]) {
#pragma unroll
  for (int i = 0; i < 2 * ROWS; i++) {
    int j = i / 2, half = i % 2;
    float4 x = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    if (live && sorted_expert(j, 4 * half, q) < op.experts) x = sorted_four(prob, j, half, q);
#pragma unroll
    for (int l = 0; l < 4; l++) p[j][4 * half + l] = sorted_part(x, l);
  }
  if (ANY && op.router.bias)
#pragma unroll
    for (int i = 0; i < 2 * ROWS; i++) {
      float4 x = sorted_four(bias, i / 2, i % 2, q);
#pragma unroll
      for (int l = 0; l < 4; l++) p[i / 2][i % 2 * 4 + l] += sorted_part(x, l);
    }
}

/* Scores to row, shared, and to prob where the token is live; p becomes keys. */
template <int ROWS, bool ANY>
static __device__ __forceinline__ void sorted_store(float (&p)[ROWS][8], int experts, float *prob,
                                                    bool live, float *row, const float *bias,
                                                    int q) {
#pragma unroll
  for (int i = 0; i < 2 * ROWS; i++) {
    int j = i / 2, half = i % 2, e = sorted_expert(j, 4 * half, q);
    float *x = p[j] + 4 * half;
    float4 all = make_float4(x[0], x[1], x[2], x[3]);
    *(float4 *)(row + e) = all;
    if (live && e < experts) *(float4 *)(prob + e) = all;
    float4 add = {};
    if (ANY) add = sorted_four(bias, j, half, q);
#pragma unroll
    for (int l = 0; l < 4; l++) x[l] = sorted_key<ANY>(x[l], sorted_part(add, l));
  }
}

/* Makes keys of no candidate -INFINITY; returns what may be chosen. nan: some scores are none. */
template <int ROWS>
static __device__ __forceinline__ sorted_bits_t<ROWS> sorted_valid(float (&p)[ROWS][8], int experts,
                                                                   int q, bool nan) {
  sorted_bits_t<ROWS> valid;
#pragma unroll
  for (int w = 0; w < valid.words; w++)
    valid.word[w] = ROWS < 4 ? (1u << 8 * ROWS % 32) - 1 : 0xffffffffu;
  if (experts < 32 * ROWS)
#pragma unroll
    for (int i = 0; i < 2 * ROWS; i++) {
      if (sorted_expert(i / 2, i % 2 * 4, q) < experts) continue;
      valid.word[i / 8] &= ~(15u << i % 8 * 4);
#pragma unroll
      for (int l = 0; l < 4; l++) p[i / 2][i % 2 * 4 + l] = -INFINITY;
    }
  if (nan)
#pragma unroll
    for (int i = 0; i < 8 * ROWS; i++) p[i / 8][i % 8] = fmaxf(p[i / 8][i % 8], -INFINITY);
  return valid;
}

/* The eight largest of a token's keys, in all of its lanes; p: rows in falling order. */
template <int ROWS>
static __device__ __forceinline__ void sorted_best(const float (&p)[ROWS][8], float (&best)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i++) best[i] = p[0][i];
#pragma unroll
  for (int j = 1; j < ROWS; j++) sorted_merge(best, p[j]);
#pragma unroll
  for (int step = 1; step < 4; step <<= 1) {
    float other[8];
#pragma unroll
    for (int i = 0; i < 8; i++) other[i] = __shfl_xor_sync(0xffffffffu, best[i], step);
    sorted_merge(best, other);
  }
}

/* What the token in room chose: experts, weights, counts. */
static __device__ __forceinline__ void sorted_write(const op_route_t &op,
                                                    const sorted_room_t &room, int64_t token,
                                                    bool live, int own, int q, int32_t *chose) {
  int k = (int)op.top_k;
  float score[2];
#pragma unroll
  for (int i = 0; i < 2; i++) score[i] = q + 4 * i < k ? room.score[own][q + 4 * i] : 0;
  float sum = score[0] + score[1];
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  sum = route_divisor(op.router, sum, false);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (!live || q + 4 * i >= k) continue;
    int e = room.expert[own][q + 4 * i];
    op.out.expert[token * k + q + 4 * i] = e;
    op.out.weight[token * k + q + 4 * i] = route_weight(op.router, score[i], sum);
    atomicAdd(&chose[e], 1);
  }
}

/* Dynamic shared memory: sorted_bytes a warp. */
template <int ROWS, bool ANY>
static __global__ void __launch_bounds__(32 * SORTED_WARPS, 1)
    sorted_rows(const op_route_t op, const route_plan_t plan) {
  constexpr int MOST = 32 * ROWS, STRIDE = MOST + 16;
  extern __shared__ float4 shared[];
  __shared__ double squares[SORTED_WARPS];
  __shared__ alignas(16) float logit_bias[MOST], choice_bias[MOST];
  __shared__ alignas(16) sorted_room_t rooms[SORTED_WARPS];
  __shared__ int32_t chose[MOST];
  int experts = (int)op.experts, k = (int)op.top_k, lane = threadIdx.x & 31, q = lane & 3;
  int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), warps = blockDim.x / 32;
  int own = lane / 4;
  float *rows = (float *)shared + warp * SORTED_TOKENS * STRIDE, *row = rows + own * STRIDE;
  launch_next();
  for (int e = threadIdx.x; e < MOST; e += blockDim.x) {
    float bias = ANY ? sorted_bias(op, op.router.choice_bias, e) : 0;
    choice_bias[e] = isnan(bias) ? -INFINITY : bias; /* what it makes the least of all */
    logit_bias[e] = ANY ? sorted_bias(op, op.router.bias, e) : 0;
    chose[e] = 0;
  }
  launch_wait();
  __syncthreads();
  int64_t begin = blockIdx.x * plan.tokens, end = min(begin + plan.tokens, op.n);
  double prob_sum[ROWS] = {}, lse2_sum = 0;
  for (int64_t from = begin + warp * SORTED_TOKENS; from < end; from += warps * SORTED_TOKENS) {
    int64_t token = from + own;
    bool live = token < end;
    float *prob = op.prob + token * experts, p[ROWS][8], best[8], share = 1;
    sorted_load<ROWS, ANY>(op, prob, live, logit_bias, q, p);
    float lse = sorted_scores<ROWS, ANY>(op.router, p, &share);
    if (live && q == 0) op.lse[token] = lse, lse2_sum += (double)lse * lse;
    sorted_store<ROWS, ANY>(p, experts, prob, live, row, choice_bias, q);
    sorted_bits_t<ROWS> valid =
        sorted_valid(p, experts, q, __any_sync(0xffffffffu, isnan(lse)));
#pragma unroll
    for (int j = 0; j < ROWS; j++) sorted_eight(p[j]);
    if (ANY && op.router.groups && op.router.groups != op.router.top_groups) {
      uint32_t remain = sorted_groups(op.router, experts, p, q);
#pragma unroll
      for (int w = 0; w < valid.words; w++) valid.word[w] &= sorted_spread(remain >> 4 * w);
#pragma unroll
      for (int i = 0; i < 8 * ROWS; i++)
        if (!(remain >> i / 8 & 1)) p[i / 8][i % 8] = -INFINITY;
    }
    sorted_best(p, best);
    float least = best[7];
#pragma unroll
    for (int i = 0; i < 7; i++)
      if (i == k - 1) least = best[i];
    __syncwarp();
    sorted_bits_t<ROWS> hit = sorted_chosen<ROWS, ANY>(row, choice_bias, valid, q, k, least);
    sorted_list<ROWS, ANY>(rooms[warp], row, choice_bias, best, hit, own, q, k, least);
    sorted_write(op, rooms[warp], token, live, own, q, chose);
    int tokens = (int)min(end - from, (int64_t)SORTED_TOKENS);
#pragma unroll 4
    for (int i = 0; i < tokens; i++) {
      float times = ANY ? __shfl_sync(0xffffffffu, share, 4 * i) : 1;
#pragma unroll
      for (int j = 0; j < ROWS; j++) {
        float x = rows[i * STRIDE + 32 * j + lane];
        prob_sum[j] += ANY ? times * x : x;
      }
    }
    __syncwarp();
  }
  lse2_sum = lanes_sum<32>(lse2_sum);
  double *sums = (double *)shared; /* [warps, MOST] */
  __syncthreads();
#pragma unroll
  for (int j = 0; j < ROWS; j++) sums[warp * MOST + 32 * j + lane] = prob_sum[j];
  if (lane == 0) squares[warp] = lse2_sum;
  __syncthreads();
  for (int e = threadIdx.x; e <= experts; e += blockDim.x) {
    double sum = 0;
    for (int i = 0; i < warps; i++) sum += e < experts ? sums[i * MOST + e] : squares[i];
    plan.sums[blockIdx.x * (experts + 1) + e] = sum;
    if (e < experts) plan.count[blockIdx.x * experts + e] = chose[e];
  }
}

/* ---- launching ------------------------------------------------------------------------------- */

/* Of a warp. */
static constexpr size_t sorted_bytes(int rows) {
  return SORTED_TOKENS * (32 * rows + 16) * sizeof(float);
}

int route_sorts(const op_route_t *op) {
  const op_router_t *router = &op->router;
  bool groups = router->groups && router->groups != router->top_groups;
  return op->experts <= 32 * SORTED_ROWS && op->top_k <= SORTED_MOST && op->experts % 4 == 0 &&
         router->score != NN_SCORE_SPARSE_MIXER && wide_aligned(op->prob) &&
         !(groups && op->experts / router->groups % 32);
}

template <int ROWS>
static nn_status_t sorted_launch(backend_device_t *device, const op_route_t *op,
                                 const route_plan_t *plan) {
  auto kernel = route_plain(&op->router) ? sorted_rows<ROWS, false> : sorted_rows<ROWS, true>;
  int warps = SORTED_WARPS;
  while (warps * (int)sorted_bytes(ROWS) > device->shared_bytes / 4 * 3) warps /= 2;
  if (warps * SORTED_TOKENS > plan->tokens) warps = (int)plan->tokens / SORTED_TOKENS;
  size_t bytes = warps * sorted_bytes(ROWS);
  CUDA_TRY(cuda_check(device, "route",
                      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           (int)bytes)));
  launch_chained(device, kernel, (unsigned)plan->blocks, 32 * warps, bytes, 0, *op, *plan);
  return NN_OK;
}

nn_status_t route_sorted(backend_device_t *device, const op_route_t *op, const route_plan_t *plan) {
  return op->experts <= 32    ? sorted_launch<1>(device, op, plan)
         : op->experts <= 64  ? sorted_launch<2>(device, op, plan)
         : op->experts <= 128 ? sorted_launch<4>(device, op, plan)
                              : sorted_launch<8>(device, op, plan);
}
