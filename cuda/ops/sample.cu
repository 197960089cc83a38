/* The choice of one token from logits [V]: repetition penalty, temperature, top-k, top-p, min-p,
 * and then a draw. "Larger" means a larger logit, or an equal one of a lower id, so every choice is
 * unique: a key of 64 bits says all of it.
 *
 * Ids fall into runs of SAMPLE_RUN. A block sorts its run and sums its weights from the largest
 * down; then the last token that top-k and top-p keep is a key, found by halving the range of keys:
 * how many are above one, and what they weigh, is a search in each run and a sum over runs. The
 * draw walks the runs, and then one run by id, until the weights pass u times their sum. Where
 * top-k keeps few, the first keys of all runs are merged into one list instead, which has all of
 * it.
 *
 * Weights are in double, as on the CPU, but added in another order, always the same one: the token
 * differs from the CPU's only where u times the sum, or top-p times it, lies within the rounding of
 * such sums and of exp, some 1e-15 of them, of a step. Weights of one are summed exactly. */
#include <float.h>

#include "base/random.h"
#include "launch.cuh"
#include "ops/wide.cuh"

enum {
  SAMPLE_RUN = 1024,
  SAMPLE_SORT_THREADS = SAMPLE_RUN / 2,
  SAMPLE_THREADS = SAMPLE_RUN,
  SAMPLE_FEW = 64,      /* keys of the shortest list that is merged: what a warp sorts alone */
  SAMPLE_FEW_MOST = 128,
  SAMPLE_MERGED = 4096 /* keys of all lists that are merged at once */
};

/* Draws have a stream of their own; the name in ASCII. */
static const uint64_t sample_stream = 0x73616d706c65;

static const uint64_t sample_nan = UINT64_MAX; /* above all keys: a NaN is among the logits */

typedef struct sample {
  op_sample_t op;
  int runs, sorted, penalised;
  int few; /* keys of a list that holds all which top-k keeps; 0: too many */
  double uniform;
  uint64_t *key;   /* [runs, SAMPLE_RUN], by falling key where sorted, else by id; 0 behind V */
  double *weight;  /* [runs, SAMPLE_RUN] of the run up to here; after min-p where not sorted */
  uint64_t *best;  /* [runs] largest key, or sample_nan */
  double *run_sum; /* [runs] weight of what is kept */
} sample_t;

static void sample_layout(cuda_arena_t *arena, int64_t vocab, sample_t *s) {
  int64_t runs = cuda_blocks(vocab, SAMPLE_RUN);
  s->runs = (int)runs;
  s->key = (uint64_t *)cuda_take(arena, runs * SAMPLE_RUN, sizeof(uint64_t));
  s->weight = (double *)cuda_take(arena, runs * SAMPLE_RUN, sizeof(double));
  s->best = (uint64_t *)cuda_take(arena, runs, sizeof(uint64_t));
  s->run_sum = (double *)cuda_take(arena, runs, sizeof(double));
}

size_t cuda_sample_scratch(const backend_device_t *device, const backend_limits_t *limits) {
  (void)device;
  cuda_arena_t arena = {};
  sample_t s;
  sample_layout(&arena, limits->vocab, &s);
  return arena.used;
}

/* ---- keys ------------------------------------------------------------------------------------ */

/* The nearest finite number. */
__device__ __forceinline__ float sample_finite(float x) {
  float bounded = x < FLT_MAX ? x : FLT_MAX;
  return x > -FLT_MAX ? bounded : -FLT_MAX;
}

/* Never 0 for a finite logit; both zeros are one. */
__device__ __forceinline__ uint64_t sample_key(float logit, uint32_t id) {
  uint32_t bits = logit == 0 ? 0 : __float_as_uint(logit);
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return (uint64_t)bits << 32 | ~id;
}

__device__ __forceinline__ uint32_t sample_id(uint64_t key) { return ~(uint32_t)key; }

__device__ __forceinline__ float sample_logit(uint64_t key) {
  uint32_t bits = (uint32_t)(key >> 32);
  return __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

/* room: shared, [32]. */
__device__ __forceinline__ uint64_t sample_block_max(uint64_t x, uint64_t *room) {
  int lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  for (int round = 0; round < 2; round++) {
#pragma unroll
    for (int step = 16; step; step >>= 1) {
      uint64_t other = __shfl_xor_sync(0xffffffffu, x, step);
      x = other > x ? other : x;
    }
    if (round) break;
    if (lane == 0) room[threadIdx.x >> 5] = x;
    __syncthreads();
    x = lane < warps ? room[lane] : 0;
  }
  return x;
}

/* The sum of a block's x up to and with this thread's, by warps. room: shared, [32]. */
__device__ __forceinline__ double sample_block_scan(double x, double *room) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    double other = __shfl_up_sync(0xffffffffu, x, step);
    if (lane >= step) x += other;
  }
  if (lane == 31) room[warp] = x;
  __syncthreads();
  double before = lane < warps ? room[lane] : 0;
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    double other = __shfl_up_sync(0xffffffffu, before, step);
    if (lane >= step) before += other;
  }
  before = __shfl_sync(0xffffffffu, before, warp ? warp - 1 : 0);
  return warp ? before + x : x;
}

/* ---- greedy ---------------------------------------------------------------------------------- */

__device__ __forceinline__ int32_t sample_token(uint64_t best) {
  return best == sample_nan ? -1 : (int32_t)sample_id(best);
}

/* Without a penalty: one block, from the logits. */
template <int W>
static __global__ void __launch_bounds__(SAMPLE_THREADS)
    sample_greedy(const float *logits, int64_t vocab, int32_t *token) {
  __shared__ uint64_t room[32];
  launch_next();
  launch_wait();
  float most = -INFINITY;
  uint32_t id = 0;
  bool nan = false, any = false;
#pragma unroll 4
  for (int64_t i = threadIdx.x * W; i < vocab; i += SAMPLE_THREADS * W) {
    float x[W];
    wide_load<W>(logits + i, x);
#pragma unroll
    for (int j = 0; j < W; j++) {
      float finite = sample_finite(x[j]);
      nan |= isnan(x[j]);
      if (finite > most) most = finite, id = (uint32_t)(i + j);
    }
    any = true;
  }
  uint64_t best = nan ? sample_nan : any ? sample_key(most, id) : 0;
  best = sample_block_max(best, room);
  if (threadIdx.x == 0) *token = sample_token(best);
}

/* The largest of the runs' best. */
__device__ __forceinline__ uint64_t sample_best(const sample_t &s, uint64_t *room) {
  uint64_t best = 0;
  for (int r = threadIdx.x; r < s.runs; r += blockDim.x) best = s.best[r] > best ? s.best[r] : best;
  return sample_block_max(best, room);
}

static __global__ void __launch_bounds__(SAMPLE_THREADS) sample_greedy_runs(const sample_t s) {
  __shared__ uint64_t room[32];
  launch_next();
  launch_wait();
  uint64_t best = sample_best(s, room);
  if (threadIdx.x == 0) *s.op.token = sample_token(best);
}

/* ---- runs ------------------------------------------------------------------------------------ */

/* Each `last` of SAMPLE_RUN keys fall afterwards: a bitonic network, a pair per thread. */
static __device__ void sample_sort(uint64_t *key, int last) {
  for (int size = 2; size <= last; size <<= 1) {
    for (int step = size / 2; step; step >>= 1) {
      int i = 2 * threadIdx.x - (threadIdx.x & (step - 1));
      uint64_t a = key[i], b = key[i + step];
      bool falls = size == last || (i & size) == 0;
      if (falls ? a < b : a > b) key[i] = b, key[i + step] = a;
      int next = step > 1 ? step / 2 : size; /* up to 32, a warp's pairs lie in its own 64 keys */
      if (step > 32 || next > 32)
        __syncthreads();
      else
        __syncwarp();
    }
  }
  __syncthreads();
}

/* The largest of lists of `size` falling keys become the first list. Lists are a power of two, and
 * so is their size, from SAMPLE_FEW on. Of each two, the larger of a pair from either end rises and
 * falls, and the last steps of such a network sort it. */
static __device__ void sample_merge(uint64_t *key, int lists, int size) {
  for (int half = lists / 2; half; half /= 2) {
    for (int i = threadIdx.x; i < half * size; i += blockDim.x) {
      uint64_t other = key[half * size + (i ^ (size - 1))];
      if (other > key[i]) key[i] = other;
    }
    __syncthreads();
    for (int step = size / 2; step; step >>= 1) {
      for (int t = threadIdx.x; t < half * size / 2; t += blockDim.x) {
        int i = 2 * t - (t & (step - 1));
        uint64_t a = key[i], b = key[i + step];
        if (a < b) key[i] = b, key[i + step] = a;
      }
      if (step > 32)
        __syncthreads();
      else
        __syncwarp();
    }
    __syncthreads();
  }
}

/* A block per run: logits after the penalty, once per id however often it occurs, as keys. Threads
 * that meet the same id write the same number. */
static __global__ void __launch_bounds__(SAMPLE_SORT_THREADS) sample_runs(const sample_t s) {
  __shared__ uint64_t key[SAMPLE_RUN], room[32];
  __shared__ float logit[SAMPLE_RUN];
  int64_t first = (int64_t)blockIdx.x * SAMPLE_RUN;
  int length = (int)min(s.op.vocab - first, (int64_t)SAMPLE_RUN);
  bool nan = false;
  launch_next();
  launch_wait();
  for (int i = threadIdx.x; i < length; i += SAMPLE_SORT_THREADS) {
    float x = s.op.logits[first + i];
    nan |= isnan(x);
    logit[i] = sample_finite(x);
  }
  __syncthreads();
  for (int64_t h = threadIdx.x; s.penalised && h < s.op.history_len; h += SAMPLE_SORT_THREADS) {
    int64_t i = s.op.history[h] - first;
    if (i < 0 || i >= length) continue;
    float from = sample_finite(s.op.logits[first + i]), penalty = s.op.repetition_penalty;
    logit[i] = sample_finite(from > 0 ? from / penalty : from * penalty);
  }
  __syncthreads();
  uint64_t best = 0;
  for (int i = threadIdx.x; i < SAMPLE_RUN; i += SAMPLE_SORT_THREADS) {
    key[i] = i < length ? sample_key(logit[i], (uint32_t)(first + i)) : 0;
    best = key[i] > best ? key[i] : best;
  }
  best = sample_block_max(nan ? sample_nan : best, room);
  if (threadIdx.x == 0) s.best[blockIdx.x] = best;
  __syncthreads();
  if (s.sorted) sample_sort(key, s.few ? s.few : SAMPLE_RUN);
  if (s.few) sample_merge(key, SAMPLE_RUN / s.few, s.few);
  int kept = s.few ? s.few : SAMPLE_RUN;
  for (int i = threadIdx.x; i < kept; i += SAMPLE_SORT_THREADS) s.key[first + i] = key[i];
}

__device__ __forceinline__ double sample_weight(const sample_t &s, uint64_t key, double largest) {
  return exp(((double)sample_logit(key) - largest) / s.op.temperature);
}

/* A block per run: sums of weights up to each place. */
static __global__ void __launch_bounds__(SAMPLE_SORT_THREADS) sample_weights(const sample_t s) {
  __shared__ uint64_t room[32];
  __shared__ double sums[32];
  launch_next();
  launch_wait();
  uint64_t best = sample_best(s, room);
  if (best == sample_nan) return;
  double largest = sample_logit(best), weight[2];
  int64_t at = (int64_t)blockIdx.x * SAMPLE_RUN + 2 * threadIdx.x;
  for (int i = 0; i < 2; i++) {
    uint64_t key = s.key[at + i];
    weight[i] = key ? sample_weight(s, key, largest) : 0;
    if (!s.sorted && weight[i] < s.op.min_p) weight[i] = 0;
  }
  double sum = sample_block_scan(weight[0] + weight[1], sums);
  s.weight[at] = sum - weight[1];
  s.weight[at + 1] = sum;
}

/* ---- the choice ------------------------------------------------------------------------------ */

typedef struct sample_above {
  double count, weight;
} sample_above_t;

/* Whether a key, which may be 0, comes from `last` on and has a weight from min_p on. */
static __device__ bool sample_keeps(const sample_t &s, uint64_t key, uint64_t last, double min_p,
                                    double largest) {
  if (key < last || !key) return false;
  return !(min_p > 0) || sample_weight(s, key, largest) >= min_p;
}

/* How many of a sorted run are such keys, which come first; by a whole warp, which looks at the
 * last of each 32, and then at the 32 in which they end. */
static __device__ int sample_kept(const sample_t &s, int run, uint64_t last, double min_p,
                                  double largest) {
  static_assert(SAMPLE_RUN == 32 * 32, "two looks");
  const uint64_t *key = s.key + (int64_t)run * SAMPLE_RUN;
  int lane = threadIdx.x & 31;
  bool kept = sample_keeps(s, key[32 * lane + 31], last, min_p, largest);
  int whole = 32 * __popc(__ballot_sync(0xffffffffu, kept));
  if (whole == SAMPLE_RUN) return whole;
  kept = sample_keeps(s, key[whole + lane], last, min_p, largest);
  return whole + __popc(__ballot_sync(0xffffffffu, kept));
}

__device__ __forceinline__ double sample_run_weight(const sample_t &s, int run, int kept) {
  return kept ? s.weight[(int64_t)run * SAMPLE_RUN + kept - 1] : 0;
}

/* Number and weight of the keys from `last` on; all threads of the block. room: shared, [32]. */
static __device__ sample_above_t sample_from(const sample_t &s, uint64_t last,
                                             sample_above_t *room) {
  sample_above_t above = {0, 0};
  for (int r = threadIdx.x >> 5; r < s.runs; r += SAMPLE_THREADS / 32) {
    int kept = sample_kept(s, r, last, 0, 0);
    above.count += kept;
    above.weight += sample_run_weight(s, r, kept);
  }
  __syncthreads();
  if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = above;
  __syncthreads();
  above = room[threadIdx.x & 31];
  return {warp_sum(above.count), warp_sum(above.weight)};
}

/* A key from which on lie the fewest tokens that reach a goal: a number of tokens, or a weight.
 * Those from `low` on, of which there are `count`, reach it; none are from `high` on. */
static __device__ uint64_t sample_reach(const sample_t &s, uint64_t low, uint64_t high,
                                        double count, bool by_count, double goal,
                                        sample_above_t *room) {
  double above = 0;
  while (count - above > 1 && high - low > 1) {
    uint64_t middle = low + (high - low) / 2;
    sample_above_t from = sample_from(s, middle, room);
    if ((by_count ? from.count : from.weight) >= goal)
      low = middle, count = from.count;
    else
      high = middle, above = from.count;
  }
  return low;
}

/* A key from which on top-k and top-p keep tokens. */
static __device__ uint64_t sample_last(const sample_t &s, uint64_t best, sample_above_t *room) {
  double count = (double)s.op.vocab;
  uint64_t last = 0;
  if (s.op.top_k > 0 && s.op.top_k < s.op.vocab) {
    last = sample_reach(s, 0, best + 1, count, true, s.op.top_k, room);
    count = s.op.top_k;
  }
  if (s.op.top_p > 0 && s.op.top_p < 1) {
    double goal = s.op.top_p * sample_from(s, last, room).weight;
    last = sample_reach(s, last, best + 1, count, false, goal, room);
  }
  return last;
}

/* The first run with which the weights pass u times their sum; where rounding lets them fall short,
 * the last that has weight. By one warp; base: the weight before the run. */
static __device__ int sample_find_run(const sample_t &s, double *base, double *goal) {
  int lane = threadIdx.x & 31, last = 0;
  *goal = INFINITY;
  for (int round = 0; round < 2; round++) {
    double before = 0;
    for (int r = lane; r - lane < s.runs; r += 32) {
      double own = r < s.runs ? s.run_sum[r] : 0, sum = own;
#pragma unroll
      for (int step = 1; step < 32; step <<= 1) {
        double other = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane >= step) sum += other;
      }
      sum += before;
      uint32_t some = __ballot_sync(0xffffffffu, own > 0);
      uint32_t passed = __ballot_sync(0xffffffffu, own > 0 && sum > *goal);
      if (some) last = r - lane + 31 - __clz(some);
      if (passed) {
        int first = __ffs(passed) - 1;
        double lower = __shfl_sync(0xffffffffu, sum, first ? first - 1 : 0);
        *base = first ? lower : before;
        return r - lane + first;
      }
      before = __shfl_sync(0xffffffffu, sum, 31);
    }
    *goal = s.uniform * before;
  }
  *base = -INFINITY;
  return last;
}

/* One block. A thread has an id of the run that the draw falls into. */
static __global__ void __launch_bounds__(SAMPLE_THREADS, 1) sample_choose(const sample_t s) {
  __shared__ uint64_t keys[32];
  __shared__ sample_above_t above[32];
  __shared__ double sums[32], weight[SAMPLE_RUN], base, goal;
  __shared__ int run, first, final;
  launch_next();
  launch_wait();
  uint64_t best = sample_best(s, keys), last = 0;
  if (best == sample_nan) {
    if (threadIdx.x == 0) *s.op.token = -1;
    return;
  }
  double largest = sample_logit(best);
  if (s.sorted) last = sample_last(s, best, above);
  for (int r = threadIdx.x >> 5; r < s.runs; r += SAMPLE_THREADS / 32) {
    int kept = s.sorted ? sample_kept(s, r, last, s.op.min_p, largest) : SAMPLE_RUN;
    if ((threadIdx.x & 31) == 0) s.run_sum[r] = sample_run_weight(s, r, kept);
  }
  weight[threadIdx.x] = 0;
  if (threadIdx.x == 0) first = SAMPLE_RUN, final = 0;
  __syncthreads();
  if (threadIdx.x < 32) {
    double before, passing;
    int found = sample_find_run(s, &before, &passing);
    if (threadIdx.x == 0) run = found, base = before, goal = passing;
  }
  __syncthreads();
  int64_t begin = (int64_t)run * SAMPLE_RUN;
  uint64_t key = s.key[begin + threadIdx.x];
  if (key && key >= last) {
    double own = sample_weight(s, key, largest);
    if (own >= s.op.min_p) weight[sample_id(key) - begin] = own;
  }
  __syncthreads();
  double own = weight[threadIdx.x], sum = sample_block_scan(own, sums);
  if (own > 0) atomicMax(&final, (int)threadIdx.x);
  if (own > 0 && base + sum > goal) atomicMin(&first, (int)threadIdx.x);
  __syncthreads();
  /* a sum in another order may fall short of the run's by its rounding: then it is the last */
  if (threadIdx.x == 0) *s.op.token = (int32_t)(begin + (first < SAMPLE_RUN ? first : final));
}

/* The largest keys of all runs: key[0 .. s.few) of room for SAMPLE_MERGED. */
static __device__ void sample_first(const sample_t &s, uint64_t *key) {
  int lists = 2;
  while (lists <= s.runs && lists < SAMPLE_MERGED / s.few) lists *= 2;
  if ((int)threadIdx.x < s.few) key[threadIdx.x] = 0;
  for (int begin = 0; begin < s.runs; begin += lists - 1) {
    for (int i = s.few + threadIdx.x; i < lists * s.few; i += SAMPLE_THREADS) {
      int run = begin + i / s.few - 1;
      key[i] = run < s.runs ? s.key[(int64_t)run * SAMPLE_RUN + i % s.few] : 0;
    }
    __syncthreads();
    sample_merge(key, lists, s.few);
  }
}

/* The same where s.few. A thread has one of the top_k. */
static __global__ void __launch_bounds__(SAMPLE_THREADS, 1) sample_choose_few(const sample_t s) {
  __shared__ uint64_t key[SAMPLE_MERGED], room[32];
  __shared__ double sums[32], total, weight[SAMPLE_FEW_MOST]; /* weight: by id */
  __shared__ int32_t id[SAMPLE_FEW_MOST];
  __shared__ int kept, first, final;
  int at = threadIdx.x, k = s.op.top_k;
  launch_next();
  launch_wait();
  uint64_t best = sample_best(s, room);
  if (best == sample_nan) {
    if (at == 0) *s.op.token = -1;
    return;
  }
  if (at == 0) kept = k, first = k, final = 0;
  if (at < SAMPLE_FEW_MOST) weight[at] = 0;
  sample_first(s, key);
  double own = at < k ? sample_weight(s, key[at], sample_logit(best)) : 0;
  if (s.op.top_p > 0 && s.op.top_p < 1) {
    double sum = sample_block_scan(own, sums);
    if (at == k - 1) total = sum;
    __syncthreads();
    if (at < k && sum >= s.op.top_p * total) atomicMin(&kept, at + 1);
    __syncthreads();
  }
  if (at < kept) {
    int before = 0;
    for (int i = 0; i < kept; i++) before += sample_id(key[i]) < sample_id(key[at]);
    id[before] = (int32_t)sample_id(key[at]);
    weight[before] = own >= s.op.min_p ? own : 0;
  }
  __syncthreads();
  own = at < k ? weight[at] : 0;
  double sum = sample_block_scan(own, sums);
  if (at == k - 1) total = sum;
  __syncthreads();
  if (own > 0) atomicMax(&final, at);
  if (own > 0 && sum > s.uniform * total) atomicMin(&first, at);
  __syncthreads();
  /* rounding may let the sums fall short: then it is the last */
  if (at == 0) *s.op.token = id[first < k ? first : final];
}

/* ---- the operation --------------------------------------------------------------------------- */

static void sample_launch_greedy(backend_device_t *device, const op_sample_t *op) {
  bool wide = op->vocab % 4 == 0 && wide_aligned(op->logits);
  launch_chained(device, wide ? sample_greedy<4> : sample_greedy<1>, 1, SAMPLE_THREADS, 0, 0,
                 op->logits, op->vocab, op->token);
}

CUDA_OP(sample, op_sample_t) {
  CUDA_TRY(cuda_enter(device, "sample"));
  cuda_arena_t arena = {(char *)scratch.data, 0};
  sample_t s = {};
  s.op = *op;
  sample_layout(&arena, op->vocab, &s);
  bool greedy = op->temperature == 0;
  s.penalised = op->history_len > 0 && op->repetition_penalty != 0 && op->repetition_penalty != 1;
  bool by_k = op->top_k > 0 && op->top_k < op->vocab, by_p = op->top_p > 0 && op->top_p < 1;
  s.sorted = !greedy && (by_k || by_p);
  if (s.sorted && by_k && op->top_k <= SAMPLE_FEW_MOST)
    s.few = op->top_k <= SAMPLE_FEW ? SAMPLE_FEW : SAMPLE_FEW_MOST;
  s.uniform = random_uniform(op->seed, sample_stream, op->counter);
  if (greedy && !s.penalised) {
    sample_launch_greedy(device, op);
    return cuda_launched(device, "sample");
  }
  launch_chained(device, sample_runs, s.runs, SAMPLE_SORT_THREADS, 0, 0, s);
  if (greedy) {
    launch_chained(device, sample_greedy_runs, 1, SAMPLE_THREADS, 0, 0, s);
  } else if (s.few) {
    launch_chained(device, sample_choose_few, 1, SAMPLE_THREADS, 0, 0, s);
  } else {
    launch_chained(device, sample_weights, s.runs, SAMPLE_SORT_THREADS, 0, 0, s);
    launch_chained(device, sample_choose, 1, SAMPLE_THREADS, 0, 0, s);
  }
  return cuda_launched(device, "sample");
}
