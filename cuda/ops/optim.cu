/* The global gradient norm and AdamW (Loshchilov and Hutter, 2019), a launch each. The norm is
 * summed in double: each thread a fixed stride of the gradients in order, then a block's threads,
 * then, by whichever block is done last, the blocks in order; their number depends on the device
 * alone. AdamW is one pass over memory, in fp32. */
#include <math.h>

#include "ops/wide.cuh"

enum {
  OPTIM_THREADS = 256,
  OPTIM_WIDE = 4,  /* elements of an access */
  NORM_AHEAD = 4,  /* accesses of a thread before the first sum */
  NORM_TILE = OPTIM_THREADS * OPTIM_WIDE * NORM_AHEAD,
  NORM_BLOCKS = 8, /* of a multiprocessor */
  ADAMW_AHEAD = 2,
  ADAMW_TILE = OPTIM_THREADS * OPTIM_WIDE * ADAMW_AHEAD,
  ADAMW_BLOCKS = 16 /* of a multiprocessor, at most */
};

/* ---- gradient norm --------------------------------------------------------------------------- */

/* Norm and factor from the blocks' sums; by all threads of one block. */
static __device__ void grad_norm_finish(const op_grad_norm_t &op, const double *part,
                                        double *room) {
  double sum = 0;
  for (int i = threadIdx.x; i < (int)gridDim.x; i += OPTIM_THREADS) sum += __ldcg(part + i);
  sum = block_sum(sum, room);
  if (threadIdx.x) return;
  double unscale = op.now->unscale, norm = sqrt(sum) * unscale;
  op.out[0] = norm;
  op.out[1] = op.max_norm > 0 && norm > op.max_norm ? unscale * (op.max_norm / norm) : unscale;
}

/* part[blockIdx.x] = the block's sum of squares. Blocks take tiles in turn, by vectors; then what
 * is left, element by element: all of it where g is not aligned and tiles is 0. done: 0 before and
 * after. */
static __global__ void __launch_bounds__(OPTIM_THREADS)
    grad_norm_kernel(const op_grad_norm_t op, int64_t tiles, double *part, unsigned *done) {
  __shared__ double room[32];
  __shared__ int last;
  const float *g = op.g;
  double sum = 0;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const float *from = g + tile * NORM_TILE + threadIdx.x * OPTIM_WIDE;
    float x[NORM_AHEAD][OPTIM_WIDE];
#pragma unroll
    for (int i = 0; i < NORM_AHEAD; i++)
      wide_read<OPTIM_WIDE>(from + i * OPTIM_THREADS * OPTIM_WIDE, x[i]);
#pragma unroll
    for (int i = 0; i < NORM_AHEAD; i++)
#pragma unroll
      for (int j = 0; j < OPTIM_WIDE; j++) sum = fma((double)x[i][j], (double)x[i][j], sum);
  }
  int64_t i = tiles * NORM_TILE + (int64_t)blockIdx.x * OPTIM_THREADS + threadIdx.x;
#pragma unroll 4
  for (; i < op.count; i += (int64_t)gridDim.x * OPTIM_THREADS) {
    double x = g[i];
    sum = fma(x, x, sum);
  }
  sum = block_sum(sum, room);
  if (threadIdx.x == 0) {
    part[blockIdx.x] = sum;
    __threadfence(); /* the sum is seen before the count */
    last = atomicInc(done, gridDim.x - 1) == gridDim.x - 1;
    __threadfence(); /* and the others' sums after it */
  }
  __syncthreads();
  if (last) grad_norm_finish(op, part, room);
}

static int64_t grad_norm_parts(const backend_device_t *device) {
  return (int64_t)NORM_BLOCKS * device->multiprocessors;
}

static double *optim_layout(const backend_device_t *device, cuda_arena_t *arena) {
  return (double *)cuda_take(arena, grad_norm_parts(device), sizeof(double));
}

size_t cuda_optim_scratch(const backend_device_t *device) {
  cuda_arena_t arena = {NULL, 0};
  optim_layout(device, &arena);
  return arena.used;
}

CUDA_OP(grad_norm, op_grad_norm_t) {
  CUDA_TRY(cuda_select(device, "grad_norm"));
  cuda_arena_t arena = {(char *)scratch.data, 0};
  double *part = optim_layout(device, &arena);
  unsigned parts = (unsigned)grad_norm_parts(device);
  int64_t tiles = wide_aligned(op->g) ? op->count / NORM_TILE : 0;
  grad_norm_kernel<<<parts, OPTIM_THREADS, 0, device->stream>>>(*op, tiles, part, device->done);
  return cuda_launched(device, "grad_norm");
}

/* ---- AdamW ----------------------------------------------------------------------------------- */

/* The numbers of one update. */
typedef struct adamw {
  float beta1, beta2, eps;
  float scale;      /* of the gradient: unscaled and clipped */
  float step_size;  /* lr / (1 - beta1^step) */
  float root_scale; /* 1 / sqrt(1 - beta2^step) */
  float decay;      /* lr * weight_decay */
} adamw_t;

static __device__ __forceinline__ adamw_t adamw_begin(const op_adamw_t &op) {
  const optim_now_t now = *op.now;
  return {op.beta1,
          op.beta2,
          op.eps,
          (float)op.scale[1],
          (float)(now.lr / now.m_left),
          (float)(1 / sqrt(now.v_left)),
          (float)now.lr * op.weight_decay};
}

/* The types of p: float, uint16_t for the bits of bf16, which are the upper half of a master, and
 * f16_t, which has its master beside it. Masters and what is left of them, by the type: */
template <typename T>
struct adamw_rest {
  typedef int16_t type;
  static constexpr bool kept = sizeof(T) == 2;
  static __device__ __forceinline__ int16_t *of(const op_adamw_t &op) { return op.p_low; }
};
template <>
struct adamw_rest<f16_t> {
  typedef float type;
  static constexpr bool kept = true;
  static __device__ __forceinline__ float *of(const op_adamw_t &op) { return op.master; }
};

/* W elements and what belongs to them. */
template <typename T, int W>
struct adamw_group {
  T p[W];
  typename adamw_rest<T>::type rest[W];
  float g[W], m[W], v[W];
};

template <typename T, int W>
static __device__ __forceinline__ void adamw_read(adamw_group<T, W> &x, const op_adamw_t &op,
                                                  int64_t i) {
  wide_read<W>((const T *)op.p + i, x.p);
  if constexpr (adamw_rest<T>::kept) wide_read<W>(adamw_rest<T>::of(op) + i, x.rest);
  wide_read<W>(op.g + i, x.g);
  wide_read<W>((const float *)op.m + i, x.m);
  wide_read<W>((const float *)op.v + i, x.v);
}

template <typename T, int W>
static __device__ __forceinline__ void adamw_write(const adamw_group<T, W> &x,
                                                   const op_adamw_t &op, int64_t i) {
  wide_write<W>((T *)op.p + i, x.p);
  if constexpr (adamw_rest<T>::kept) wide_write<W>(adamw_rest<T>::of(op) + i, x.rest);
  wide_write<W>(op.m + i, x.m);
  wide_write<W>(op.v + i, x.v);
}

static __device__ __forceinline__ float adamw_master(float p, int16_t) { return p; }
static __device__ __forceinline__ float adamw_master(uint16_t p, int16_t low) {
  return __uint_as_float(((uint32_t)p << 16) + (uint32_t)(int32_t)low);
}
static __device__ __forceinline__ float adamw_master(f16_t p, float master) {
  f16_t nearest = __float2half_rn(master);
  return __half_as_ushort(nearest) == __half_as_ushort(p) ? master : __half2float(p);
}

static __device__ __forceinline__ void adamw_split(float master, float &p, int16_t &) {
  p = master;
}
static __device__ __forceinline__ void adamw_split(float master, uint16_t &p, int16_t &low) {
  uint32_t bits = __float_as_uint(master);
  p = (uint16_t)((bits + 0x8000) >> 16);
  low = (int16_t)(uint16_t)bits; /* bits - p * 65536, which has sixteen bits */
}

static __device__ __forceinline__ void adamw_split(float master, f16_t &p, float &rest) {
  p = __float2half_rn(master);
  rest = master;
}

/* decayed: how many of the elements decay, if not all or none. */
template <typename T, int W>
static __device__ __forceinline__ void adamw_update(adamw_group<T, W> &x, const adamw_t &job,
                                                    int64_t decayed) {
#pragma unroll
  for (int j = 0; j < W; j++) {
    float g = x.g[j] * job.scale, master = adamw_master(x.p[j], x.rest[j]);
    x.m[j] = fmaf(g, 1 - job.beta1, x.m[j] * job.beta1);
    x.v[j] = fmaf(g * g, 1 - job.beta2, x.v[j] * job.beta2);
    float root = fmaf(sqrtf(x.v[j]), job.root_scale, job.eps);
    float update = x.m[j] * job.step_size / root;
    /* Not p (1 - decay) - update: beside 1, a small decay loses its last digits. */
    float lost = fmaf(master, j < decayed ? job.decay : 0.0f, update);
    adamw_split(master - lost, x.p[j], x.rest[j]);
  }
}

/* T: as above. Blocks take tiles in turn, as above. */
template <typename T>
static __global__ void __launch_bounds__(OPTIM_THREADS)
    adamw_kernel(const op_adamw_t op, int64_t tiles) {
  if (!isfinite(op.scale[0])) return;
  const adamw_t job = adamw_begin(op);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    int64_t at = tile * ADAMW_TILE + threadIdx.x * OPTIM_WIDE;
    adamw_group<T, OPTIM_WIDE> x[ADAMW_AHEAD];
#pragma unroll
    for (int i = 0; i < ADAMW_AHEAD; i++)
      adamw_read(x[i], op, at + i * OPTIM_THREADS * OPTIM_WIDE);
#pragma unroll
    for (int i = 0; i < ADAMW_AHEAD; i++) {
      int64_t first = at + i * OPTIM_THREADS * OPTIM_WIDE;
      adamw_update(x[i], job, op.decayed - first);
      adamw_write(x[i], op, first);
    }
  }
  int64_t i = tiles * ADAMW_TILE + (int64_t)blockIdx.x * OPTIM_THREADS + threadIdx.x;
  for (; i < op.count; i += (int64_t)gridDim.x * OPTIM_THREADS) {
    adamw_group<T, 1> x;
    adamw_read(x, op, i);
    adamw_update(x, job, op.decayed - i);
    adamw_write(x, op, i);
  }
}

CUDA_OP(adamw, op_adamw_t) {
  (void)scratch;
  CUDA_TRY(cuda_select(device, "adamw"));
  if (op->count == 0) return NN_OK;
  bool wide = wide_aligned(op->p, op->p_low, op->g, op->m, op->v) && wide_aligned(op->master);
  int64_t tiles = wide ? op->count / ADAMW_TILE : 0;
  int64_t blocks = cuda_blocks(op->count, ADAMW_TILE);
  if (blocks > (int64_t)ADAMW_BLOCKS * device->multiprocessors)
    blocks = (int64_t)ADAMW_BLOCKS * device->multiprocessors;
  unsigned grid = (unsigned)blocks;
  auto kernel = op->weight_dtype == NN_F32    ? adamw_kernel<float>
                : op->weight_dtype == NN_BF16 ? adamw_kernel<uint16_t>
                                              : adamw_kernel<f16_t>;
  kernel<<<grid, OPTIM_THREADS, 0, device->stream>>>(*op, tiles);
  return cuda_launched(device, "adamw");
}
