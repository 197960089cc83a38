/* Routing by softmax of few tokens to few experts (decode), by one block and two barriers. Logits
 * as in route.cu; an expert's place in a token's choice is how many are more probable; a slot's row
 * is the first of its expert and how many tokens before it chose the same, counted in a set of a
 * bit per token. Sums over tokens are in double, in order. */
#include "launch.cuh"
#include "ops/route_few.cuh"

template <typename T>
static __global__ void __launch_bounds__(ROUTE_THREADS, 1)
    route_few_kernel(const op_route_t op, int vectors) {
  constexpr int NT = ROUTE_FEW / 8, GROUPS = ROUTE_THREADS / ROUTE_FEW;
  __shared__ alignas(16) float part[16 * ROUTE_WARPS * route_logits_t<NT>::stride];
  __shared__ route_few_room_t room;
  int experts = (int)op.experts, n = (int)op.n, last = ROUTE_THREADS - 1 - threadIdx.x;
  launch_next();
  if (threadIdx.x < experts)
    launch_prefetch((const T *)op.w + threadIdx.x * op.hidden, op.hidden * (int64_t)sizeof(T));
  launch_wait();
  int64_t count = 0;
  double prob = 0;
  if (op.stat_count && last < experts) count = op.stat_count[last], prob = op.stat_prob[last];
  if (threadIdx.x < experts) room.tokens[threadIdx.x] = 0;
  route_logits_t<NT> logits = {part, ROUTE_TILE, 1};
  route_logits(logits, (const T *)op.x, (const T *)op.w, op.hidden, n, experts, vectors);
  __syncthreads();
  int e = threadIdx.x % ROUTE_FEW, group = threadIdx.x / ROUTE_FEW;
  for (int first = 0; first + (group & ~(32 / ROUTE_FEW - 1)) < n; first += GROUPS) {
    int token = first + group;
    float logit = token < n && e < experts ? logits.at(token, e) : 0;
    /* its probabilities take the place of what its logits were added from first */
    route_few_choose(op, logit, e, token, token < n, token < n, part + token * logits.stride, room);
  }
  __syncthreads();
  route_few_place(op, room);
  route_few_statistics(op, room, part, logits.stride, count, prob);
}

template <typename T>
static void route_few_launch(backend_device_t *device, const op_route_t *op, int vectors) {
  launch_chained(device, route_few_kernel<T>, 1, ROUTE_THREADS, 0, 0, *op, vectors);
}

void route_few(backend_device_t *device, const op_route_t *op, int vectors) {
  CUDA_BY_DTYPE(op->act_dtype, route_few_launch, device, op, vectors);
}
