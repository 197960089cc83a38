/* Gradients of routing to many experts in bf16, by two dense products. dlogit [n, E] (route_bwd.cu
 * has the formula) becomes the sum of two bf16 numbers, upper and rest, which leaves out at most
 * 2^-17 of it, as rows of 2 E columns:
 *   dx [n, H] += (upper, rest) (w, w), with w twice in scratch so that sums stay in fp32,
 *   dw [E, H] += upper^T x + rest^T x, which are one product of 2 E rows,
 *   dbias += the columns' sums of dlogit itself. */
#include "ops/columns.cuh"
#include "ops/matmul.h"
#include "ops/route_dlogit.cuh"

enum { BWD_MANY_THREADS = 256, BWD_MANY_WARPS = BWD_MANY_THREADS / 32 };

typedef struct bwd_many_plan {
  bf16_t *terms;  /* [n, 2 E] */
  bf16_t *stack;  /* [2 E, H]: w twice */
  float *product; /* [2 E, H] */
  float *dlogit;  /* [n, E] for dbias; done with when the products take its place as workspace */
  float *columns; /* of dbias */
} bwd_many_plan_t;

static bwd_many_plan_t bwd_many_layout(const backend_device_t *device, cuda_arena_t *arena,
                                       int64_t n, int64_t experts, int64_t hidden) {
  bwd_many_plan_t plan = {};
  plan.terms = (bf16_t *)cuda_take(arena, 2 * n * experts, sizeof(bf16_t));
  plan.stack = (bf16_t *)cuda_take(arena, 2 * experts * hidden, sizeof(bf16_t));
  plan.product = (float *)cuda_take(arena, 2 * experts * hidden, sizeof(float));
  plan.columns = columns_take(device, arena);
  int64_t workspace = (int64_t)cuda_matmul_scratch(device, NULL);
  int64_t dlogit = n * experts * (int64_t)sizeof(float);
  plan.dlogit = (float *)cuda_take(arena, workspace > dlogit ? workspace : dlogit, 1);
  return plan;
}

size_t route_bwd_many_scratch(const backend_device_t *device, const backend_limits_t *limits) {
  cuda_arena_t arena = {};
  if (limits->act_dtype != NN_BF16 || limits->experts <= ROUTE_STEP) return 0;
  bwd_many_layout(device, &arena, limits->rows, limits->experts, limits->hidden);
  return arena.used;
}

int route_bwd_many_takes(const op_route_bwd_t *op) {
  return op->act_dtype == NN_BF16 && op->experts > ROUTE_STEP && op->experts % 8 == 0 &&
         op->hidden % 8 == 0 && wide_aligned(op->x, op->w, op->dx, op->dw);
}

/* Blocks before `copies` copy w twice; the others take a token a warp. */
template <int PER, bool MIXER>
static __global__ void __launch_bounds__(BWD_MANY_THREADS)
    bwd_many_terms(const op_route_bwd_t op, const bwd_many_plan_t plan, int copies) {
  __shared__ alignas(8) float rows[BWD_MANY_WARPS][32 * PER];
  int q = threadIdx.x & 31, experts = (int)op.experts;
  launch_next();
  launch_wait();
  if (blockIdx.x < copies) {
    int64_t all = op.experts * op.hidden / 8;
    for (int64_t i = (int64_t)blockIdx.x * BWD_MANY_THREADS + threadIdx.x; i < all;
         i += (int64_t)copies * BWD_MANY_THREADS) {
      uint4 v = ((const uint4 *)op.w)[i];
      ((uint4 *)plan.stack)[i] = v, ((uint4 *)plan.stack)[all + i] = v;
    }
    return;
  }
  int64_t token = (int64_t)(blockIdx.x - copies) * BWD_MANY_WARPS + threadIdx.x / 32;
  if (token >= op.n) return;
  float *row = rows[threadIdx.x / 32];
  route_token_t<32, PER> from;
  from.load(op, token, q);
  route_dlogit_row<32, PER, MIXER>(op, token, from, q, row);
  __syncwarp();
  bf16_t *to = plan.terms + token * 2 * experts;
#pragma unroll
  for (int j = 0; j < PER; j += 2) {
    int e = 2 * q + 32 * j;
    if (e >= experts) continue;
    float2 v = *(const float2 *)(row + e);
    if (op.dbias) *(float2 *)(plan.dlogit + token * experts + e) = v;
    uint32_t upper = half_pair<bf16_t>(v.x, v.y);
    float2 near = half_unpack<bf16_t>(upper);
    *(uint32_t *)(to + e) = upper;
    *(uint32_t *)(to + experts + e) = half_pair<bf16_t>(v.x - near.x, v.y - near.y);
  }
}

/* dw += both parts of the product. */
static __global__ void __launch_bounds__(BWD_MANY_THREADS)
    bwd_many_finish(const op_route_bwd_t op, const float *product) {
  int64_t all = op.experts * op.hidden / 4;
  int64_t i = (int64_t)blockIdx.x * BWD_MANY_THREADS + threadIdx.x;
  launch_next();
  launch_wait();
  if (i >= all) return;
  float4 old = ((const float4 *)op.dw)[i], a = ((const float4 *)product)[i];
  float4 b = ((const float4 *)product)[all + i];
  old.x += a.x + b.x, old.y += a.y + b.y, old.z += a.z + b.z, old.w += a.w + b.w;
  ((float4 *)op.dw)[i] = old;
}

template <int PER>
static void bwd_many_launch_terms(backend_device_t *device, const op_route_bwd_t *op,
                                  const bwd_many_plan_t *plan) {
  int copies = device->multiprocessors;
  auto kernel = op->router.score == NN_SCORE_SPARSE_MIXER ? bwd_many_terms<PER, true>
                                                          : bwd_many_terms<PER, false>;
  unsigned blocks = (unsigned)(copies + cuda_blocks(op->n, BWD_MANY_WARPS));
  launch_chained(device, kernel, blocks, BWD_MANY_THREADS, 0, 0, *op, *plan, copies);
}

static nn_status_t bwd_many_products(backend_device_t *device, const op_route_bwd_t *op,
                                     const bwd_many_plan_t *plan) {
  backend_scratch_t workspace = {plan->dlogit, cuda_matmul_scratch(device, NULL)};
  op_matmul_t product = {};
  product.a = plan->terms, product.lda = 2 * op->experts;
  product.ldb = product.ldc = product.ldd = product.n = op->hidden;
  product.a_dtype = product.b_dtype = product.d_dtype = NN_BF16;
  op_matmul_t dw = product;
  product.m = op->n, product.k = 2 * op->experts;
  product.b = plan->stack, product.c = product.d = op->dx;
  CUDA_TRY(cuda_matmul(device, &product, workspace));
  dw.m = 2 * op->experts, dw.k = op->n, dw.trans_a = 1;
  dw.b = op->x, dw.d = plan->product, dw.d_dtype = NN_F32;
  CUDA_TRY(cuda_matmul(device, &dw, workspace));
  unsigned blocks = (unsigned)cuda_blocks(op->experts * op->hidden, 4 * BWD_MANY_THREADS);
  launch_chained(device, bwd_many_finish, blocks, BWD_MANY_THREADS, 0, 0, *op,
                 (const float *)plan->product);
  return NN_OK;
}

nn_status_t route_bwd_many(backend_device_t *device, const op_route_bwd_t *op,
                           backend_scratch_t scratch) {
  cuda_arena_t arena = {(char *)scratch.data, 0};
  bwd_many_plan_t plan = bwd_many_layout(device, &arena, op->n, op->experts, op->hidden);
  auto terms = op->experts <= 64    ? bwd_many_launch_terms<2>
               : op->experts <= 128 ? bwd_many_launch_terms<4>
               : op->experts <= 256 ? bwd_many_launch_terms<8>
               : op->experts <= 512 ? bwd_many_launch_terms<16>
                                    : bwd_many_launch_terms<32>;
  terms(device, op, &plan);
  CUDA_TRY(cuda_launched(device, "route_bwd"));
  if (op->dbias) {
    op_column_sum_t sum = {};
    sum.n = op->n, sum.width = sum.ldx = op->experts, sum.act_dtype = NN_F32;
    sum.x = plan.dlogit, sum.out = op->dbias;
    CUDA_TRY(cuda_column_sum(device, &sum, {plan.columns, scratch.bytes}));
  }
  CUDA_TRY(bwd_many_products(device, op, &plan));
  return cuda_launched(device, "route_bwd");
}
