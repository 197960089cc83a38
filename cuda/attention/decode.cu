/* Attention of few query rows against a cache (Flash-Decoding): T bf16 or fp16, head dim up to D;
 * EXACT: it is D, which saves 0.5 us, and up to an eighth of the time where there is much to read.
 * A block takes 16 packed rows and a part of the keys that the sequence has; its teams take turns
 * at steps of 16 or 32 keys and keep sums of their own. A team is one warp or, where rows are
 * longer than 128 numbers, two with a half of D each, which add their scores. Keys and values are
 * read once, 16 bytes a lane, zeros behind the head dim, and are fragments as they come:
 *
 * - lane 4g + t reads numbers 8t .. 8t + 7 of 32 of key g. A sum over the head dim may run in any
 *   order if both factors agree, so these are the four registers of two products' B, and queries
 *   are read the same way as A;
 * - lane 4g + t reads numbers 8g .. 8g + 7 of 64 of the values of keys 2t, 2t + 1, 2t + 8, 2t + 9,
 *   and pairs of keys are B's registers. Column g of product j is then number 8g + j of the output.
 *
 * Sums of teams, then of the cluster's blocks or of all parts, are put together in their order. */
#include "attention/tile.cuh"
#include "launch.cuh"

enum {
  DECODE_WARPS = 8,
  DECODE_THREADS = 32 * DECODE_WARPS,
  DECODE_ALONE = 2 /* steps of each team, up to which blocks do not share keys */
};

template <int D>
constexpr int decode_columns = D < 128 ? D : 128; /* of a warp */
template <int D>
constexpr int decode_team = D / decode_columns<D>; /* warps that share keys */
template <int D>
constexpr int decode_teams = DECODE_WARPS / decode_team<D>;
template <int C>
constexpr int decode_step = 2048 / C; /* keys, of a warp that has C columns */
template <int D>
constexpr int decode_pitch = D + 4; /* of a row of sums in shared memory */
/* Sums of all teams, then of the block; there, until then, the scores of two steps of each warp. */
template <int D>
constexpr int decode_bytes = (decode_teams<D> + 1) * DECODE_ROWS * decode_pitch<D> * 4;

struct decode_t {
  op_attention_t op;
  attention_rows_t rows;
  attention_parts_t parts;
  int tiles; /* of rows, of each sequence and key-value head */
  float scale; /* log2(e) * op.scale */
};

/* What a warp with C columns has of its rows g and g + 8. */
template <int C>
struct decode_state_t {
  float shift[2]; /* largest score so far, in base 2 */
  float sum[2]; /* of weights, this lane's keys */
  float acc[C / 8][4];
};

template <typename T>
__device__ __forceinline__ uint4 decode_load(const T *from, bool take) {
  return take ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
}

/* Queries first + g and first + g + 8 as A: `columns` numbers of them, zeros behind. */
template <int C, typename T>
__device__ __forceinline__ void decode_queries(uint32_t (&a)[C / 16][4], const T *q,
                                               int64_t stride, int dim, int columns,
                                               const attention_rows_t &rows, int first) {
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int r = first + half * 8 + g;
    bool take = r < rows.count;
    const T *from = q + (take ? rows_at(rows, r, stride, dim) : 0) + t * 8;
#pragma unroll
    for (int x = 0; x < C / 32; x++) {
      uint4 y = decode_load(from + x * 32, take && x * 32 + t * 8 < columns);
      a[2 * x][half] = y.x, a[2 * x][2 + half] = y.y;
      a[2 * x + 1][half] = y.z, a[2 * x + 1][2 + half] = y.w;
    }
  }
}

/* One step of keys and values, as they come. */
template <int C>
struct decode_step_t {
  static constexpr int STEP = decode_step<C>;
  uint4 key[STEP / 8][C / 32], value[STEP / 16][C / 64][4];

  /* The first `keys` of them and their first `columns` numbers; zeros behind. */
  template <typename T>
  __device__ __forceinline__ void load(const T *k, const T *v, int64_t ld, int keys, int columns) {
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int x = 0; x < C / 32; x++) {
      int take = x * 32 + t * 8 < columns ? keys : 0;
#pragma unroll
      for (int n = 0; n < STEP / 8; n++)
        key[n][x] = decode_load(k + (n * 8 + g) * ld + x * 32 + t * 8, n * 8 + g < take);
    }
#pragma unroll
    for (int h = 0; h < C / 64; h++) {
      int take = h * 64 + g * 8 < columns ? keys : 0;
#pragma unroll
      for (int n = 0; n < STEP / 16; n++)
#pragma unroll
        for (int x = 0; x < 4; x++) {
          int j = n * 16 + 2 * t + (x & 1) + (x >> 1) * 8;
          value[n][h][x] = decode_load(v + j * ld + h * 64 + g * 8, j < take);
        }
    }
  }
};

/* A barrier of the two warps of a team. */
__device__ __forceinline__ void decode_meet(int warp) {
  asm volatile("bar.sync %0, 64;" ::"r"(1 + warp / 2) : "memory");
}

/* Adds the scores of the two warps of a team: each writes its own to `room`, which has a place for
 * two steps of each warp in turn, so that one barrier a step is enough. */
template <int N>
__device__ __forceinline__ void decode_exchange(float (&s)[N][4], float4 *room, int turn) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float4 *own = room + ((turn & 1) * DECODE_WARPS + warp) * N * 32 + lane;
  const float4 *other = room + ((turn & 1) * DECODE_WARPS + (warp ^ 1)) * N * 32 + lane;
#pragma unroll
  for (int n = 0; n < N; n++) own[n * 32] = make_float4(s[n][0], s[n][1], s[n][2], s[n][3]);
  decode_meet(warp);
#pragma unroll
  for (int n = 0; n < N; n++) {
    float4 more = other[n * 32];
    s[n][0] += more.x, s[n][1] += more.y, s[n][2] += more.z, s[n][3] += more.w;
  }
}

/* One step of keys, of which each row sees those from `from` on and before `seen`; a team has TEAM
 * warps, which put their scores into `room`. */
template <typename T, int C, int TEAM>
__device__ __forceinline__ void decode_take(decode_state_t<C> &state,
                                            const uint32_t (&a)[C / 16][4],
                                            const decode_step_t<C> &step, const int (&from)[2],
                                            const int (&seen)[2], float scale, float4 *room,
                                            int turn) {
  constexpr int STEP = decode_step<C>;
  int t = threadIdx.x & 3;
  auto &key = step.key;
  auto &value = step.value;
  float s[STEP / 8][4] = {};
#pragma unroll
  for (int n = 0; n < STEP / 8; n++)
#pragma unroll
    for (int x = 0; x < C / 32; x++) {
      tile_mma<T>(s[n], a[2 * x], key[n][x].x, key[n][x].y);
      tile_mma<T>(s[n], a[2 * x + 1], key[n][x].z, key[n][x].w);
    }
  if constexpr (TEAM > 1) decode_exchange(s, room, turn);

#pragma unroll
  for (int half = 0; half < 2; half++) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
      for (int x = 0; x < 2; x++) {
        float &score = s[n][2 * half + x];
        int at = n * 8 + 2 * t + x;
        score = at >= from[half] && at < seen[half] ? score * scale : -INFINITY;
        top = fmaxf(top, score);
      }
    float shift = fmaxf(state.shift[half], tile_row_max(top));
    float base = shift == -INFINITY ? 0 : shift; /* without keys so far, weights are 0 */
    float shrink = tile_exp2(state.shift[half] - base);
    state.shift[half] = shift;
    state.sum[half] *= shrink;
#pragma unroll
    for (int n = 0; n < C / 8; n++) {
      state.acc[n][2 * half] *= shrink;
      state.acc[n][2 * half + 1] *= shrink;
    }
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
      for (int x = 2 * half; x < 2 * half + 2; x++) {
        s[n][x] = tile_exp2(s[n][x] - base);
        state.sum[half] += s[n][x];
      }
  }

#pragma unroll
  for (int n = 0; n < STEP / 16; n++) {
    uint32_t p[4] = {half_pair<T>(s[2 * n][0], s[2 * n][1]), half_pair<T>(s[2 * n][2], s[2 * n][3]),
                     half_pair<T>(s[2 * n + 1][0], s[2 * n + 1][1]),
                     half_pair<T>(s[2 * n + 1][2], s[2 * n + 1][3])};
#pragma unroll
    for (int h = 0; h < C / 64; h++) {
      const uint4(&y)[4] = value[n][h];
      const uint32_t word[4][4] = {{y[0].x, y[1].x, y[2].x, y[3].x},
                                   {y[0].y, y[1].y, y[2].y, y[3].y},
                                   {y[0].z, y[1].z, y[2].z, y[3].z},
                                   {y[0].w, y[1].w, y[2].w, y[3].w}};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        tile_mma<T>(state.acc[h * 8 + 2 * j], p, __byte_perm(word[j][0], word[j][1], 0x5410),
                 __byte_perm(word[j][2], word[j][3], 0x5410));
        tile_mma<T>(state.acc[h * 8 + 2 * j + 1], p, __byte_perm(word[j][0], word[j][1], 0x7632),
                 __byte_perm(word[j][2], word[j][3], 0x7632));
      }
    }
  }
}

/* A warp takes its team's turns at the keys from `begin` on and before `end`, their numbers from
 * `column` on; its rows see those from `starts` on and before `sees`. */
template <int D, typename T, int C = decode_columns<D>>
__device__ __forceinline__ void decode_walk(decode_state_t<C> &state,
                                            const uint32_t (&q)[C / 16][4], const T *k, const T *v,
                                            int64_t ld, int column, int dim, int begin, int end,
                                            const int (&starts)[2], const int (&sees)[2],
                                            float scale, float4 *scores) {
  constexpr int STEP = decode_step<C>, TURN = decode_teams<D> * STEP, TEAM = decode_team<D>;
  constexpr bool AHEAD = C == 64; /* registers have room for the next step beside this one */
  int warp = threadIdx.x >> 5, turn = 0;
  decode_step_t<C> step, next;
  auto load = [&](decode_step_t<C> &to, int key) {
    int64_t at = key * ld + column;
    if (key < end) to.load(k + at, v + at, ld, end - key, dim - column);
  };
  int first = begin + warp / TEAM * STEP;
  load(step, first);
  for (int key = first; key < end; key += TURN, turn++) {
    if (AHEAD) load(next, key + TURN);
    int from[2] = {starts[0] - key, starts[1] - key}, seen[2] = {sees[0] - key, sees[1] - key};
    decode_take<T, C, TEAM>(state, q, step, from, seen, scale, scores, turn);
    if (AHEAD)
      step = next;
    else
      load(step, key + TURN);
  }
  /* All teams pass as many barriers: by their number racecheck tells which one a warp passed. */
  if (TEAM > 1 && turn < (end - begin + TURN - 1) / TURN) decode_meet(warp);
}

/* A warp's sums to its columns of shared memory, rows `pitch` apart, and its weights, [16]; NULL:
 * another warp of the team has written the same. */
template <int C>
__device__ __forceinline__ void decode_put(const decode_state_t<C> &state, float *sum, int pitch,
                                           float2 *weight) {
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = half * 8 + g;
    float total = tile_row_sum(state.sum[half]);
    if (t == 0 && weight) weight[row] = make_float2(state.shift[half], total);
#pragma unroll
    for (int h = 0; h < C / 64; h++)
#pragma unroll
      for (int x = 0; x < 2; x++) /* columns 2t and 2t + 1 of eight products: 8 numbers each */
#pragma unroll
        for (int j = 0; j < 8; j += 4) {
          const float (*from)[4] = state.acc + h * 8 + j;
          int y = 2 * half + x;
          *(float4 *)(sum + row * pitch + h * 64 + (2 * t + x) * 8 + j) =
              make_float4(from[0][y], from[1][y], from[2][y], from[3][y]);
        }
  }
}

/* ---- putting sums together ------------------------------------------------------------------- */

struct decode_sum_t {
  float2 weight; /* largest score in base 2, sum of weights */
  float value; /* sum of weighted values, of one number of the head dim */
};

/* Of `count` sums in order; weight(i) and value(i) read the i-th. */
template <typename Weight, typename Value>
__device__ __forceinline__ decode_sum_t decode_join(int count, Weight weight, Value value) {
  decode_sum_t sum = {{-INFINITY, 0}, 0};
  for (int i = 0; i < count; i++) sum.weight.x = fmaxf(sum.weight.x, weight(i).x);
  float base = sum.weight.x == -INFINITY ? 0 : sum.weight.x;
  for (int i = 0; i < count; i++) {
    float2 more = weight(i);
    float shrink = tile_exp2(more.x - base);
    sum.weight.y += shrink * more.y;
    sum.value += shrink * value(i);
  }
  return sum;
}

__device__ __forceinline__ void decode_cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive;\n\tbarrier.cluster.wait;" ::: "memory");
#endif
}

/* A float of another block of the cluster, which lies there where `own` does here. */
__device__ __forceinline__ float decode_remote(const float *own, int rank) {
  float x = 0;
#if __CUDA_ARCH__ >= 900
  uint32_t at;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(tile_address(own)), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
#else
  (void)own, (void)rank;
#endif
  return x;
}

/* Of each row, the weights of the teams become one, behind them, and x of each team's what it
 * shrinks by. By threads side by side, a team's weight each. */
template <int TEAMS>
__device__ __forceinline__ void decode_shrink(float2 (&weight)[TEAMS + 1][DECODE_ROWS]) {
  static_assert(TEAMS * DECODE_ROWS <= DECODE_THREADS, "a thread for each");
  int i = threadIdx.x % TEAMS, row = threadIdx.x / TEAMS;
  if (row >= DECODE_ROWS) return;
  float2 own = weight[i][row];
  float top = own.x;
#pragma unroll
  for (int step = 1; step < TEAMS; step *= 2)
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
  float shrink = tile_exp2(own.x - (top == -INFINITY ? 0 : top)), sum = shrink * own.y;
#pragma unroll
  for (int step = 1; step < TEAMS; step *= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, step);
  weight[i][row].x = shrink;
  if (i == 0) weight[TEAMS][row] = make_float2(top, sum);
}

/* One number of the output. */
template <typename T>
__device__ __forceinline__ void decode_write(const decode_t &a, int64_t out, int dim, int d,
                                             decode_sum_t sum) {
  rows_result_t result = rows_finish<T>(a.op.sinks, (int)(out % a.rows.heads),
                                        sum.weight.x * ATTENTION_LN_2, sum.weight.y);
  ((T *)a.op.o)[out * dim + d] = from_float<T>(sum.value * result.scale);
  if (a.op.lse && d == 0) a.op.lse[out] = result.lse;
}

/* Four numbers of the output, or of a part's sum: rows of both allow whole vectors. */
template <typename T>
__device__ __forceinline__ void decode_write_four(const decode_t &a, int64_t out, int dim, int d,
                                                  int part, bool whole, float2 weight,
                                                  float4 sum) {
  float largest = weight.x * ATTENTION_LN_2;
  if (!whole) {
    int64_t at = (int64_t)part * a.op.batch * a.rows.q_len * a.rows.heads + out;
    if (weight.y != 0) *(float4 *)(a.parts.sum + at * dim + d) = sum;
    if (d == 0) a.parts.weight[at] = make_float2(largest, weight.y);
    return;
  }
  rows_result_t result =
      rows_finish<T>(a.op.sinks, (int)(out % a.rows.heads), largest, weight.y);
  float scale = result.scale;
  *(uint2 *)((T *)a.op.o + out * dim + d) = make_uint2(
      half_pair<T>(sum.x * scale, sum.y * scale), half_pair<T>(sum.z * scale, sum.w * scale));
  if (a.op.lse && d == 0) a.op.lse[out] = result.lse;
}

/* Where a block's sums lie: those of its teams, [teams][rows][pitch], then of the block; and their
 * weights. */
template <int D>
struct decode_room_t {
  static constexpr int TEAMS = decode_teams<D>, SIZE = DECODE_ROWS * decode_pitch<D>;
  float *sum;
  float2 (&weight)[TEAMS + 1][DECODE_ROWS];
};

/* The teams' sums become the block's, which is its share of a cluster's or goes out. */
template <typename T, int D, bool CLUSTER>
__device__ __forceinline__ void decode_join_teams(const decode_t &a, const rows_place_t &place,
                                                  const decode_room_t<D> &room, int first, int dim,
                                                  int part, bool alone) {
  constexpr int TEAMS = decode_teams<D>, SIZE = decode_room_t<D>::SIZE;
  decode_shrink<TEAMS>(room.weight);
  __syncthreads();
  for (int at = threadIdx.x * 4; at < DECODE_ROWS * D; at += DECODE_THREADS * 4) {
    int row = at / D, d = at % D, place_in = row * decode_pitch<D> + d;
    if (d >= dim) continue;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < TEAMS; i++) {
      float4 more = *(const float4 *)(room.sum + i * SIZE + place_in);
      float shrink = room.weight[i][row].x;
      sum.x += shrink * more.x, sum.y += shrink * more.y;
      sum.z += shrink * more.z, sum.w += shrink * more.w;
    }
    if (CLUSTER && !alone)
      *(float4 *)(room.sum + TEAMS * SIZE + place_in) = sum;
    else if (first + row < a.rows.count)
      decode_write_four<T>(a, rows_out(a.rows, place.b, place.kv_head, first + row), dim, d, part,
                           alone, room.weight[TEAMS][row], sum);
  }
}

/* The sums of a cluster's blocks become the output, of which each block makes a part. */
template <typename T, int D>
__device__ __forceinline__ void decode_join_cluster(const decode_t &a, const rows_place_t &place,
                                                    const decode_room_t<D> &room, int first,
                                                    int dim, int part, int parts) {
  constexpr int TEAMS = decode_teams<D>;
  const float *block_sum = room.sum + TEAMS * decode_room_t<D>::SIZE;
  const float2 *block_weight = room.weight[TEAMS];
  decode_cluster_wait();
  for (int at = part * DECODE_THREADS + threadIdx.x; at < DECODE_ROWS * D;
       at += parts * DECODE_THREADS) {
    int row = at / D, d = at % D;
    if (first + row >= a.rows.count || d >= dim) continue;
    decode_sum_t sum = decode_join(
        parts,
        [&](int i) {
          return make_float2(decode_remote(&block_weight[row].x, i),
                             decode_remote(&block_weight[row].y, i));
        },
        [&](int i) { return decode_remote(block_sum + row * decode_pitch<D> + d, i); });
    decode_write<T>(a, rows_out(a.rows, place.b, place.kv_head, first + row), dim, d, sum);
  }
  decode_cluster_wait(); /* nobody leaves while others read its memory */
}

/* Blocks: sequences and key-value heads; in each, tiles of rows; in each, parts. */
template <typename T, int D, bool EXACT, bool CLUSTER>
__global__ void __launch_bounds__(DECODE_THREADS, 1) decode_forward(const decode_t a) {
  extern __shared__ __align__(16) float shared[];
  constexpr int C = decode_columns<D>, TEAM = decode_team<D>, TEAMS = decode_teams<D>;
  constexpr int STEP = decode_step<C>, SIZE = decode_room_t<D>::SIZE;
  __shared__ float2 weight[TEAMS + 1][DECODE_ROWS];
  const decode_room_t<D> room = {shared, weight};
  int parts = (int)a.parts.count, part = blockIdx.x % parts;
  int tile = blockIdx.x / parts % a.tiles, first = tile * DECODE_ROWS;
  launch_next();
  /* Which keys there are comes from the host; they can be asked for, but the last is not stored. */
  const rows_place_t place = rows_place(a.op, a.rows, blockIdx.x / parts / a.tiles);
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, dim = EXACT ? D : (int)a.op.head_dim;
  int team = warp / TEAM, column = warp % TEAM * C; /* the first of the warp */

  int begin, end, starts[2], sees[2];
  int start = rows_first(a.rows, place.kv_len, first);
  int keys = rows_visible(a.rows, place.kv_len, min(first + DECODE_ROWS, a.rows.count) - 1);
  /* Few keys are no work for a cluster: its first block takes them all. */
  bool alone = parts == 1 || (CLUSTER && keys - start <= DECODE_ALONE * STEP * TEAMS);
  rows_part(start, keys, alone ? 1 : parts, part, STEP, &begin, &end);
  const T *k = (const T *)a.op.k + place.kv, *v = (const T *)a.op.v + place.kv;
  for (int key = begin + (int)threadIdx.x; key < end; key += DECODE_THREADS) {
    launch_prefetch(k + key * a.op.ldkv, dim * sizeof(T));
    launch_prefetch(v + key * a.op.ldkv, dim * sizeof(T));
  }
  launch_wait();
  if (alone && part) return;

  uint32_t q[C / 16][4];
  decode_queries<C>(q,
                    (const T *)a.op.q + (int64_t)place.b * a.rows.q_len * a.op.ldq +
                        (int64_t)place.kv_head * a.rows.group * dim + column,
                    a.op.ldq, dim, dim - column, a.rows, first);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    int row = first + half * 8 + (lane >> 2);
    starts[half] = rows_first(a.rows, place.kv_len, row);
    sees[half] = min(end, rows_visible(a.rows, place.kv_len, row));
  }

  static_assert(TEAM == 1 || 2 * DECODE_WARPS * STEP * 16 <= SIZE, "there the scores lie first");
  decode_state_t<C> state = {{-INFINITY, -INFINITY}, {0, 0}, {}};
  decode_walk<D>(state, q, k, v, a.op.ldkv, column, dim, begin, end, starts, sees, a.scale,
                 (float4 *)(shared + TEAMS * SIZE));
  decode_put<C>(state, shared + team * SIZE + column, decode_pitch<D>,
                column ? NULL : weight[team]);
  __syncthreads();

  decode_join_teams<T, D, CLUSTER>(a, place, room, first, dim, part, alone);
  if (CLUSTER && !alone) decode_join_cluster<T, D>(a, place, room, first, dim, part, parts);
}

template <typename T, int D, bool EXACT>
static void decode_launch(backend_device_t *device, const decode_t *a, unsigned blocks,
                          int cluster) {
  constexpr int bytes = decode_bytes<D>;
  auto kernel =
      cluster ? decode_forward<T, D, EXACT, true> : decode_forward<T, D, EXACT, false>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  launch_chained(device, kernel, blocks, DECODE_THREADS, bytes,
                 cluster ? (unsigned)a->parts.count : 0, *a);
}

template <typename T>
static void decode_choose(backend_device_t *device, const decode_t *a, unsigned blocks,
                          int cluster) {
  if (a->op.head_dim == 64)
    decode_launch<T, 64, true>(device, a, blocks, cluster);
  else if (a->op.head_dim == 128)
    decode_launch<T, 128, true>(device, a, blocks, cluster);
  else if (a->op.head_dim < 64)
    decode_launch<T, 64, false>(device, a, blocks, cluster);
  else if (a->op.head_dim < 128)
    decode_launch<T, 128, false>(device, a, blocks, cluster);
  else
    decode_launch<T, 256, false>(device, a, blocks, cluster);
}

void attention_decode(backend_device_t *device, const op_attention_t *op,
                      const attention_parts_t *parts, int cluster) {
  attention_rows_t rows = attention_rows(op->q_len, op->heads, op->kv_heads, op->window,
                                         op->kv_batch / op->ldkv);
  int tiles = (int)cuda_blocks(rows.count, DECODE_ROWS);
  decode_t a = {*op, rows, *parts, tiles, op->scale * ATTENTION_LOG2_E};
  unsigned blocks = (unsigned)(op->batch * op->kv_heads * tiles * parts->count);
  CUDA_BY_HALF(op->act_dtype, decode_choose, device, &a, blocks, cluster);
}

/* ---- parts in device memory ------------------------------------------------------------------ */

enum { DECODE_MERGE_THREADS = 256 };

/* One row of o. The numbers of the head dim lie across `width` threads, a power of two; each group
 * of so many threads takes every so many-th part, and the groups are added in order. */
template <typename T>
__global__ void __launch_bounds__(DECODE_MERGE_THREADS)
    decode_merge_rows(const op_attention_t op, const attention_parts_t parts, int width) {
  __shared__ float room[32], shrink[ATTENTION_PARTS], sums[DECODE_MERGE_THREADS];
  int count = (int)parts.count, dim = (int)op.head_dim;
  int64_t step = (int64_t)gridDim.x, row = blockIdx.x; /* rows of a part */

  launch_next();
  launch_wait();
  float2 own = make_float2(-INFINITY, 0);
  if (threadIdx.x < count) own = parts.weight[threadIdx.x * step + row];
  float largest = block_max(own.x, room), base = largest == -INFINITY ? 0 : largest;
  float factor = expf(own.x - base);
  if (threadIdx.x < count) shrink[threadIdx.x] = factor;
  float weight = block_sum(factor * own.y, room); /* shrink is whole behind its barriers */

  int d = threadIdx.x % width, group = threadIdx.x / width, groups = DECODE_MERGE_THREADS / width;
  float sum = 0;
  if (d < dim)
    for (int i = group; i < count; i += groups)
      if (shrink[i] != 0) sum += shrink[i] * parts.sum[(i * step + row) * dim + d];
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= dim) return;
  for (int i = 1; i < groups; i++) sum += sums[i * width + threadIdx.x];
  rows_result_t result = rows_finish<T>(op.sinks, (int)(row % op.heads), largest, weight);
  ((T *)op.o)[row * dim + threadIdx.x] = from_float<T>(sum * result.scale);
  if (op.lse && threadIdx.x == 0) op.lse[row] = result.lse;
}

template <typename T>
static void decode_merge_launch(backend_device_t *device, const op_attention_t *op,
                                const attention_parts_t *parts) {
  unsigned rows = (unsigned)(op->batch * op->q_len * op->heads);
  int width = 32;
  while (width < op->head_dim) width *= 2;
  launch_chained(device, decode_merge_rows<T>, rows, DECODE_MERGE_THREADS, 0, 0, *op, *parts,
                 width);
}

void attention_merge(backend_device_t *device, const op_attention_t *op,
                     const attention_parts_t *parts) {
  CUDA_BY_DTYPE(op->act_dtype, decode_merge_launch, device, op, parts);
}
