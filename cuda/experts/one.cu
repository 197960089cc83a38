/* Norm, routing and plain SwiGLU experts of one token (decode), in two kernels bound by reading
 * weights. In one_up every block norms the token and chooses its experts for itself, from router
 * weights that it asked for before the token was there, and then makes its share of act; the last
 * block writes what norm and route have to leave behind. one_down reads that as soon as it begins,
 * and asks for its first weights while one_up's last blocks still run.
 *
 * Order of sums: the norm as in norm.cu; a logit, and an element of act, is a lane's share in
 * order, then the warp's tree; an element of the result is a thread's share of the rows, in the
 * order of their experts and each times its weight, the warp's tree, the warps in order, and the
 * residual. */
#include "experts/one.h"
#include "launch.cuh"
#include "ops/glu.cuh"
#include "ops/route_few.cuh"
#include "ops/row_vec.cuh"

enum {
  ONE_THREADS = ROUTE_THREADS,
  ONE_WARPS = ONE_THREADS / 32,
  ONE_EXPERTS = 16, /* most that there may be */
  ONE_LOADS = 3,    /* of each row of down that a thread has in flight */
  ONE_COLUMNS = 2   /* of the result that a block of one_down makes */
};

/* Blocks at once on a multiprocessor, where a lane has LOADS vectors of each row. */
template <int LOADS>
constexpr int one_blocks = LOADS == 3 ? 3 : 2;

/* A chosen expert, in their order: what one_up tells one_down. */
typedef struct one_row {
  int32_t expert;
  float weight;
} one_row_t;

/* ---- up -------------------------------------------------------------------------------------- */

typedef struct one_room {
  route_few_room_t route;
  alignas(16) float prob[2][ONE_EXPERTS]; /* logits, then probabilities; the second row is no
                                             token's */
  one_row_t row[ONE_EXPERTS];
} one_room_t;

/* By the block's first warp, from logits in the room; rows: [top_k]. */
__device__ __forceinline__ void one_choose(const op_route_t &op, bool writes, one_row_t *rows,
                                           one_room_t &room) {
  int lane = threadIdx.x, q = lane % ONE_EXPERTS, token = lane / ONE_EXPERTS;
  float logit = token == 0 && q < op.experts ? room.prob[0][q] : 0;
  __syncwarp();
  route_few_choose(op, logit, q, token, token == 0, writes && token == 0, room.prob[token],
                   room.route);
  __syncwarp();
  bool chosen = lane < op.experts && room.route.tokens[lane];
  unsigned all = __ballot_sync(0xffffffffu, chosen);
  int at = __popc(all & ((1u << lane) - 1));
  if (chosen) room.row[at].expert = lane;
  if (!writes) return;
  __syncwarp();
  for (int slot = lane; slot < op.top_k; slot += 32) {
    int expert = room.route.expert[slot], row = __popc(all & ((1u << expert) - 1));
    rows[row] = {expert, op.out.weight[slot]};
  }
}

template <typename T, int LOADS>
__global__ void __launch_bounds__(ONE_THREADS, one_blocks<LOADS>)
    one_up_kernel(const op_moe_t op, T *act, one_row_t *rows) {
  __shared__ one_room_t room;
  constexpr int W = vec_t<T>::width;
  const op_route_t &route = op.route;
  int32_t hidden = (int32_t)op.norm.hidden, ffn = (int32_t)op.experts.ffn;
  int32_t experts = (int32_t)route.experts, vectors = hidden / W;
  int32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5, last = ONE_THREADS - 1 - threadIdx.x;
  bool writes = blockIdx.x == gridDim.x - 1;
  row_vec_t<T> x[LOADS];
  {
    row_vec_t<T> scale[LOADS], w[2][LOADS];
    row_load<false, T>(scale, (const T *)op.norm.w, lane, 32, vectors);
#pragma unroll
    for (int i = 0; i < 2; i++)
      row_load<false, T>(w[i], (const T *)route.w + min(2 * warp + i, experts - 1) * hidden, lane,
                         32, vectors);
    if (threadIdx.x < ONE_EXPERTS) room.route.tokens[threadIdx.x] = 0;
    launch_wait();
    row_load<false, T>(x, (const T *)op.norm.x, lane, 32, vectors);
    float rstd = row_norm<T>(op.norm, scale, x);
    if (writes && warp == 0 && lane == 0 && op.norm.rstd) *op.norm.rstd = rstd;
    float logit[2];
#pragma unroll
    for (int i = 0; i < 2; i++) logit[i] = row_dot<T>(w[i], x, 0);
#pragma unroll
    for (int i = 0; i < 2; i++) logit[i] = warp_sum(logit[i]);
    if (lane == 0) *(float2 *)&room.prob[0][2 * warp] = make_float2(logit[0], logit[1]);
  }
  __syncthreads();
  if (warp == 0) one_choose(route, writes, rows, room);
  __syncthreads();
  if (writes) {
    int64_t count = 0;
    double prob = 0;
    if (route.stat_count && last < experts)
      count = route.stat_count[last], prob = route.stat_prob[last];
    route_few_place(route, room.route);
    route_few_statistics(route, room.route, room.prob[0], ONE_EXPERTS, count, prob);
#pragma unroll
    for (int i = 0; i < LOADS; i++)
      if (warp == 0 && lane + i * 32 < vectors)
        x[i].store((T *)op.norm.y + (lane + i * 32) * W);
    __threadfence(); /* one_down reads before its wait */
    __syncthreads();
  }
  launch_next();
  int32_t all = (int32_t)route.top_k * ffn;
  for (int32_t at = blockIdx.x * ONE_WARPS + warp; at < all; at += gridDim.x * ONE_WARPS) {
    int32_t row = at / ffn, f = at - row * ffn;
    int64_t from = room.row[row].expert * op.experts.expert_stride + (int64_t)f * hidden;
    row_vec_t<T> w[2][LOADS];
    row_load<true, T>(w[0], (const T *)op.experts.gate + from, lane, 32, vectors);
    row_load<true, T>(w[1], (const T *)op.experts.up + from, lane, 32, vectors);
    float g = row_dot<T>(w[0], x, 0), u = row_dot<T>(w[1], x, 0);
    g = warp_sum(g), u = warp_sum(u);
    if (lane == 0) act[at] = from_float<T>(glu_act(g, u, 0));
  }
}

/* ---- down ------------------------------------------------------------------------------------ */

/* A block makes ONE_COLUMNS columns. Steps: `chunks` parts of a row of down, for each row. */
template <typename T>
__global__ void __launch_bounds__(ONE_THREADS, one_blocks<ONE_LOADS>)
    one_down_kernel(const op_moe_t op, const T *act, const one_row_t *rows, int32_t chunks) {
  __shared__ one_row_t row[ONE_EXPERTS];
  __shared__ float part[ONE_COLUMNS][ONE_WARPS];
  constexpr int W = vec_t<T>::width;
  const op_experts_t &experts = op.experts;
  int32_t hidden = (int32_t)experts.hidden, ffn = (int32_t)experts.ffn, vectors = ffn / W;
  int32_t first = blockIdx.x * ONE_COLUMNS, steps = (int32_t)experts.top_k * chunks;
  row_vec_t<T> w[2][ONE_COLUMNS][ONE_LOADS];
  float weight[2];
  auto load = [&](int into, int32_t step) {
    int32_t begin = step % chunks * ONE_THREADS * ONE_LOADS + threadIdx.x;
    one_row_t from = row[step / chunks];
    const T *down = (const T *)experts.down + from.expert * experts.expert_stride;
    weight[into] = from.weight;
#pragma unroll
    for (int c = 0; c < ONE_COLUMNS; c++)
      row_load<true, T>(w[into][c], down + (int64_t)min(first + c, hidden - 1) * ffn, begin,
                        ONE_THREADS, vectors);
  };
  if (threadIdx.x < experts.top_k) {
    row[threadIdx.x].expert = __ldcg(&rows[threadIdx.x].expert);
    row[threadIdx.x].weight = __ldcg(&rows[threadIdx.x].weight);
  }
  __syncthreads();
  load(0, 0);
  launch_wait();
  launch_next();
  float sum[ONE_COLUMNS] = {};
  for (int32_t from = 0; from < steps; from += 2) {
#pragma unroll
    for (int now = 0; now < 2; now++) {
      int32_t step = from + now;
      if (step >= steps) break;
      if (step + 1 < steps) load(1 - now, step + 1);
      row_vec_t<T> x[ONE_LOADS];
      row_load<false, T>(x, act + step / chunks * ffn,
                         step % chunks * ONE_THREADS * ONE_LOADS + threadIdx.x, ONE_THREADS,
                         vectors);
#pragma unroll
      for (int c = 0; c < ONE_COLUMNS; c++)
        sum[c] = fmaf(weight[now], row_dot<T>(w[now][c], x, 0), sum[c]);
    }
  }
#pragma unroll
  for (int c = 0; c < ONE_COLUMNS; c++) sum[c] = warp_sum(sum[c]);
#pragma unroll
  for (int c = 0; c < ONE_COLUMNS; c++)
    if ((threadIdx.x & 31) == 0) part[c][threadIdx.x >> 5] = sum[c];
  __syncthreads();
  int32_t column = first + threadIdx.x;
  if (threadIdx.x >= ONE_COLUMNS || column >= hidden) return;
  float y = 0;
#pragma unroll
  for (int i = 0; i < ONE_WARPS; i++) y += part[threadIdx.x][i];
  if (experts.residual) y += to_float(((const T *)experts.residual)[column]);
  ((T *)experts.out)[column] = from_float<T>(y);
}

/* ---- launches -------------------------------------------------------------------------------- */

template <typename T, int LOADS>
static void one_up_run(backend_device_t *device, const op_moe_t *op, void *act, one_row_t *rows) {
  int64_t blocks = cuda_blocks(op->experts.top_k * op->experts.ffn, ONE_WARPS);
  int64_t wave = (int64_t)one_blocks<LOADS> * device->multiprocessors;
  if (blocks > wave) blocks = wave;
  launch_chained(device, one_up_kernel<T, LOADS>, (unsigned)blocks, ONE_THREADS, 0, 0, *op,
                 (T *)act, rows);
}

template <typename T>
static void one_launch(backend_device_t *device, const op_moe_t *op, void *act, one_row_t *rows) {
  constexpr int W = vec_t<T>::width;
  (op->experts.hidden <= 3 * 32 * W ? one_up_run<T, 3> : one_up_run<T, 4>)(device, op, act, rows);
  int32_t chunks = (int32_t)cuda_blocks(op->experts.ffn, ONE_THREADS * ONE_LOADS * W);
  unsigned blocks = (unsigned)cuda_blocks(op->experts.hidden, ONE_COLUMNS);
  launch_chained(device, one_down_kernel<T>, blocks, ONE_THREADS, 0, 0, *op, (const T *)act, rows,
                 chunks);
}

int one_fits(const op_moe_t *op) {
  const op_norm_t *norm = &op->norm;
  const op_experts_t *experts = &op->experts;
  int64_t width = 16 / (int64_t)cuda_dtype_bytes(experts->act_dtype);
  uintptr_t at = (uintptr_t)norm->x | (uintptr_t)norm->w | (uintptr_t)norm->y |
                 (uintptr_t)op->route.w | (uintptr_t)experts->gate | (uintptr_t)experts->up |
                 (uintptr_t)experts->down;
  return experts->n == 1 && experts->experts <= ONE_EXPERTS && norm->groups <= 1 &&
         norm->kind == NN_NORM_RMS && !norm->b && route_plain(&op->route.router) &&
         experts->limit == 0 && !experts->interleaved && !experts->gate_bias &&
         !experts->down_bias && !experts->pre && experts->out && at % 16 == 0 &&
         experts->hidden % width == 0 && experts->hidden <= 4 * 32 * width &&
         experts->ffn % width == 0 && experts->expert_stride % width == 0;
}

nn_status_t one_run(backend_device_t *device, const op_moe_t *op, void *act, void *rows) {
  op_moe_t whole = *op;
  whole.route.router.scale = backend_factor(op->route.router.scale);
  CUDA_BY_DTYPE(op->experts.act_dtype, one_launch, device, &whole, act, (one_row_t *)rows);
  return cuda_launched(device, "experts");
}
