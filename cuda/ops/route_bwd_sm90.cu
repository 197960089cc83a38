/* Routing's gradients on sm_90a, T bf16 or fp16: a warp has ROUTE_STRIP columns of the block's
 * steps of ROUTE_STEP tokens. Blocks take these by turns, so that all read and write in one place.
 * The bulk copy engine brings the next steps of x and dx, each warp its own, and stores dx, so that
 * memory is busy also while dlogits are computed. dw's parts do not displace dx from the
 * second-level cache, nor does x where that holds most of both. Products are as route_bwd.cu has
 * them. */
#include "hopper.cuh"
#include "ops/route_dlogit.cuh"

enum {
  ROUTE90_BWD_STAGES = 4,
  ROUTE90_BOX = ROUTE_STEP * HOPPER_ROW_BYTES,
  ROUTE90_BWD_STAGE = 2 * ROUTE90_BOX, /* of a warp: x, dx */
  ROUTE90_BWD_SHARED =
      HOPPER_ALIGN + ROUTE_STRIPS * ROUTE90_BWD_STAGES * ROUTE90_BWD_STAGE +
      ROUTE_CHUNK * ROUTE_CHUNK_STRIDE * 4 +
      ROUTE_CHUNK / ROUTE_STEP * (int)sizeof(route_fragments_t)
};
static_assert(ROUTE_STRIP * sizeof(bf16_t) == HOPPER_ROW_BYTES, "a box is of a strip's columns");

typedef struct route90_bwd_maps {
  CUtensorMap x, dx;
  int once; /* x leaves the second-level cache first */
} route90_bwd_maps_t;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* sum += dw of a step; product j has columns 8 j + n of the strip, n < 8. x: the step's box. */
template <typename T>
static __device__ __forceinline__ void route90_dw_step(const route_fragments_t &dlogit, uint32_t x,
                                                       float (&sum)[8][4]) {
  int lane = threadIdx.x & 31;
  uint4 a[3] = {dlogit.by_expert[0][lane], dlogit.by_expert[1][lane], dlogit.by_expert[2][lane]};
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    uint32_t b[2][2];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0][0]), "=r"(b[0][1]), "=r"(b[1][0]), "=r"(b[1][1])
                 : "r"(x + (lane & 15) * HOPPER_ROW_BYTES + ((j + (lane >> 4)) ^ (lane & 7)) * 16));
    route_dw_product<T>(dlogit, a, b, sum + j);
  }
}

/* dx of a step in its box; the copy engine knows of it behind a __syncwarp(). */
template <typename T>
static __device__ __forceinline__ void route90_dx_step(const route_fragments_t &dlogit, char *dx,
                                                       const uint32_t (&w)[8][2]) {
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  uint4 a[2] = {dlogit.by_token[0][lane], dlogit.by_token[1][lane]};
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum[4][4] = {};
    route_dx_product<T>(a, w, h, sum);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      uint4 *at = (uint4 *)(dx + (g + 8 * i) * HOPPER_ROW_BYTES + ((4 * h + t) ^ g) * 16);
      *at = route_dx_add<T>(dlogit, *at, sum, i);
    }
  }
  hopper_fence();
}

/* A block's share of the tokens. */
static __device__ __forceinline__ route_tokens_t route90_tokens(const op_route_bwd_t &op) {
  int64_t first = (int64_t)blockIdx.x * ROUTE_STEP, step = (int64_t)gridDim.x * ROUTE_STEP;
  int64_t more = (op.n - first - 1) / step; /* steps behind the first */
  return {first, step,
          (int)(more * ROUTE_STEP + min(op.n - first - more * step, (int64_t)ROUTE_STEP))};
}

template <typename T>
static __device__ __forceinline__ void route90_bwd_body(const route90_bwd_maps_t &maps,
                                                        const op_route_bwd_t &op,
                                                        const route_bwd_plan_t &plan) {
  extern __shared__ char dynamic[];
  __shared__ uint64_t barriers[ROUTE_STRIPS * ROUTE90_BWD_STAGES];
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, hidden = (int)op.hidden;
  uint32_t start = (uint32_t)__cvta_generic_to_shared(dynamic);
  char *stages = dynamic + (-start & (HOPPER_ALIGN - 1));
  float *rows = (float *)(stages + ROUTE_STRIPS * ROUTE90_BWD_STAGES * ROUTE90_BWD_STAGE);
  route_fragments_t *fragments = (route_fragments_t *)(rows + ROUTE_CHUNK * ROUTE_CHUNK_STRIDE);
  char *own = stages + warp * ROUTE90_BWD_STAGES * ROUTE90_BWD_STAGE;
  uint32_t boxes = (uint32_t)__cvta_generic_to_shared(own);
  uint32_t full = (uint32_t)__cvta_generic_to_shared(barriers + warp * ROUTE90_BWD_STAGES);
  route_tokens_t tokens = route90_tokens(op);
  int column = (int)(blockIdx.y * (blockDim.x / 32) + warp) * ROUTE_STRIP;
  auto fetch = [&](int first, int slot) {
    uint32_t to = boxes + slot * ROUTE90_BWD_STAGE;
    hopper_expect(full + 8 * slot, ROUTE90_BWD_STAGE);
    int row = (int)tokens.at(first);
    if (maps.once) hopper_copy_once(maps.x, to, full + 8 * slot, column, row, 0);
    else hopper_copy(maps.x, to, full + 8 * slot, column, row, 0);
    hopper_copy(maps.dx, to + ROUTE90_BOX, full + 8 * slot, column, row, 0);
  };
  if (threadIdx.x == 0) hopper_prefetch(maps.x), hopper_prefetch(maps.dx);
  if (lane == 0) {
    for (int i = 0; i < ROUTE90_BWD_STAGES; i++) hopper_barrier_init(full + 8 * i, 1);
    hopper_barrier_ready();
  }
  launch_next();
  launch_wait();
  route_chunk_token_t token;
  route_dx_rows_t w_rows;
  uint32_t w[8][2];
  auto chunk = [&](int first) -> route_tokens_t {
    return {tokens.at(first), tokens.step, min(tokens.count - first, (int)ROUTE_CHUNK)};
  };
  route_chunk_read(op, chunk(0), token);
  route_dx_read(op, column, w_rows);
  for (int i = 0; lane == 0 && i < ROUTE90_BWD_STAGES; i++)
    if (i * ROUTE_STEP < tokens.count) fetch(i * ROUTE_STEP, i);
  float sum[8][4] = {};
  uint32_t slot = 0, parity = 0;
  for (int first = 0; first < tokens.count; first += ROUTE_STEP) {
    int step = first % ROUTE_CHUNK / ROUTE_STEP;
    if (step == 0) {
      if (first) route_chunk_read(op, chunk(first), token);
      route_chunk<T>(op, chunk(first), token, rows, fragments);
    }
    if (first == 0) route_dx_pack(w_rows, w);
    hopper_wait(full + 8 * slot, parity);
    uint32_t box = boxes + slot * ROUTE90_BWD_STAGE;
    route90_dx_step<T>(fragments[step], own + slot * ROUTE90_BWD_STAGE + ROUTE90_BOX, w);
    __syncwarp();
    if (lane == 0) {
      hopper_store(maps.dx, box + ROUTE90_BOX, column, (int)tokens.at(first), 0);
      hopper_store_commit();
    }
    route90_dw_step<T>(fragments[step], box, sum);
    __syncwarp();
    int next = first + (ROUTE90_BWD_STAGES - 1) * ROUTE_STEP;
    if (lane == 0 && first && next < tokens.count) {
      hopper_store_wait<1>();
      fetch(next, slot ? slot - 1 : ROUTE90_BWD_STAGES - 1);
    }
    if (++slot == ROUTE90_BWD_STAGES) slot = 0, parity ^= 1;
  }
  if (lane == 0) hopper_store_wait<0>();
  int g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int e = g + 8 * i;
    float *to = plan.part + (blockIdx.x * op.experts + e) * op.hidden + column;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      int c = 8 * j + 2 * t;
      if (e < op.experts && column + c < hidden)
        __stcs((float2 *)(to + c), make_float2(sum[j][2 * i], sum[j][2 * i + 1]));
    }
  }
}

#endif

/* A block: a share of the tokens, ROUTE_STRIP columns for each of its warps. */
template <typename T>
static __global__ void __launch_bounds__(32 * ROUTE_STRIPS, 1)
    route90_bwd(const __grid_constant__ route90_bwd_maps_t maps, const op_route_bwd_t op,
                const route_bwd_plan_t plan) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  route90_bwd_body<T>(maps, op, plan);
#endif
}

int route90_bwd_takes(const backend_device_t *device) {
  return device->capability == 90 && device->shared_bytes >= ROUTE90_BWD_SHARED + 1024;
}

nn_status_t route90_bwd_launch(backend_device_t *device, const op_route_bwd_t *op,
                               const route_bwd_plan_t *plan, int64_t warps, int64_t across) {
  route90_bwd_maps_t maps;
  hopper_tensor_t tensor = {op->x,
                            NN_BF16,
                            3,
                            {op->hidden, op->n, 1},
                            {op->hidden, op->hidden * op->n},
                            {ROUTE_STRIP, ROUTE_STEP, 1}};
  tensor.streamed = 1;
  CUDA_TRY(hopper_map(device, "route_bwd", &tensor, &maps.x));
  tensor.base = op->dx;
  maps.once = 3 * op->n * op->hidden <= device->cache_bytes;
  CUDA_TRY(hopper_map(device, "route_bwd", &tensor, &maps.dx));
  auto kernel = op->act_dtype == NN_F16 ? route90_bwd<f16_t> : route90_bwd<bf16_t>;
  CUDA_TRY(cuda_check(device, "route_bwd",
                      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           ROUTE90_BWD_SHARED)));
  dim3 grid((unsigned)plan->splits, (unsigned)across);
  launch_chained(device, kernel, grid, 32 * (unsigned)warps, ROUTE90_BWD_SHARED, 0, maps, *op,
                 *plan);
  return NN_OK;
}
