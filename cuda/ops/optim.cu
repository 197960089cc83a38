/* The global gradient norm and AdamW (Loshchilov and Hutter, 2019). The norm is summed in double:
 * each thread a fixed stride of the gradients in order, then a block's threads, then the blocks,
 * whose number depends on the device alone. AdamW is one pass over memory, in fp32. */
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

/* part[blockIdx.x] = the block's sum of squares. Blocks take tiles in turn, by vectors; then what
 * is left, element by element: all of it where g is not aligned and tiles is 0. */
static __global__ void __launch_bounds__(OPTIM_THREADS)
    grad_norm_kernel(const float *g, int64_t count, int64_t tiles, double *part) {
  __shared__ double room[32];
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
  for (; i < count; i += (int64_t)gridDim.x * OPTIM_THREADS) {
    double x = g[i];
    sum = fma(x, x, sum);
  }
  sum = block_sum(sum, room);
  if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

static __global__ void __launch_bounds__(OPTIM_THREADS)
    grad_norm_finish_kernel(const double *part, int parts, float max_norm, double *out) {
  __shared__ double room[32];
  double sum = 0;
  for (int i = threadIdx.x; i < parts; i += OPTIM_THREADS) sum += part[i];
  double norm = sqrt(block_sum(sum, room));
  if (threadIdx.x) return;
  out[0] = norm;
  out[1] = max_norm > 0 && norm > max_norm ? max_norm / norm : 1;
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
  grad_norm_kernel<<<parts, OPTIM_THREADS, 0, device->stream>>>(op->g, op->count, tiles, part);
  grad_norm_finish_kernel<<<1, OPTIM_THREADS, 0, device->stream>>>(part, (int)parts, op->max_norm,
                                                                   op->out);
  return cuda_launched(device, "grad_norm");
}

/* ---- AdamW ----------------------------------------------------------------------------------- */

typedef struct adamw {
  op_adamw_t op;
  float step_size;  /* lr / (1 - beta1^step) */
  float root_scale; /* 1 / sqrt(1 - beta2^step) */
  float decay;      /* lr * weight_decay */
} adamw_t;

/* W elements and what belongs to them; the upper half of a bf16 master is p. */
template <typename T, int W>
struct adamw_group {
  T p[W];
  int16_t low[W];
  float g[W], m[W], v[W];
};

template <typename T, int W>
static __device__ __forceinline__ void adamw_read(adamw_group<T, W> &x, const op_adamw_t &op,
                                                  int64_t i) {
  wide_read<W>((const T *)op.p + i, x.p);
  if constexpr (sizeof(T) == 2) wide_read<W>((const int16_t *)op.p_low + i, x.low);
  wide_read<W>(op.g + i, x.g);
  wide_read<W>((const float *)op.m + i, x.m);
  wide_read<W>((const float *)op.v + i, x.v);
}

template <typename T, int W>
static __device__ __forceinline__ void adamw_write(const adamw_group<T, W> &x,
                                                   const op_adamw_t &op, int64_t i) {
  wide_write<W>((T *)op.p + i, x.p);
  if constexpr (sizeof(T) == 2) wide_write<W>(op.p_low + i, x.low);
  wide_write<W>(op.m + i, x.m);
  wide_write<W>(op.v + i, x.v);
}

static __device__ __forceinline__ float adamw_master(float p, int16_t) { return p; }
static __device__ __forceinline__ float adamw_master(uint16_t p, int16_t low) {
  return __uint_as_float(((uint32_t)p << 16) + (uint32_t)(int32_t)low);
}

static __device__ __forceinline__ void adamw_split(float master, float &p, int16_t &) {
  p = master;
}
static __device__ __forceinline__ void adamw_split(float master, uint16_t &p, int16_t &low) {
  uint32_t bits = __float_as_uint(master);
  p = (uint16_t)((bits + 0x8000) >> 16);
  low = (int16_t)(uint16_t)bits; /* bits - p * 65536, which has sixteen bits */
}

template <typename T, int W>
static __device__ __forceinline__ void adamw_update(adamw_group<T, W> &x, const adamw_t &job,
                                                    float scale) {
#pragma unroll
  for (int j = 0; j < W; j++) {
    float g = x.g[j] * scale, master = adamw_master(x.p[j], x.low[j]);
    x.m[j] = fmaf(g, 1 - job.op.beta1, x.m[j] * job.op.beta1);
    x.v[j] = fmaf(g * g, 1 - job.op.beta2, x.v[j] * job.op.beta2);
    float root = fmaf(sqrtf(x.v[j]), job.root_scale, job.op.eps);
    float update = x.m[j] * job.step_size / root;
    /* Not p (1 - decay) - update: beside 1, a small decay loses its last digits. */
    adamw_split(master - fmaf(master, job.decay, update), x.p[j], x.low[j]);
  }
}

/* T: float, or uint16_t for the bits of bf16. Blocks take tiles in turn, as above. */
template <typename T>
static __global__ void __launch_bounds__(OPTIM_THREADS)
    adamw_kernel(const adamw_t job, int64_t tiles) {
  const op_adamw_t &op = job.op;
  if (!isfinite(op.scale[0])) return;
  float scale = (float)op.scale[1];
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    int64_t at = tile * ADAMW_TILE + threadIdx.x * OPTIM_WIDE;
    adamw_group<T, OPTIM_WIDE> x[ADAMW_AHEAD];
#pragma unroll
    for (int i = 0; i < ADAMW_AHEAD; i++)
      adamw_read(x[i], op, at + i * OPTIM_THREADS * OPTIM_WIDE);
#pragma unroll
    for (int i = 0; i < ADAMW_AHEAD; i++) {
      adamw_update(x[i], job, scale);
      adamw_write(x[i], op, at + i * OPTIM_THREADS * OPTIM_WIDE);
    }
  }
  int64_t i = tiles * ADAMW_TILE + (int64_t)blockIdx.x * OPTIM_THREADS + threadIdx.x;
  for (; i < op.count; i += (int64_t)gridDim.x * OPTIM_THREADS) {
    adamw_group<T, 1> x;
    adamw_read(x, op, i);
    adamw_update(x, job, scale);
    adamw_write(x, op, i);
  }
}

CUDA_OP(adamw, op_adamw_t) {
  (void)scratch;
  CUDA_TRY(cuda_select(device, "adamw"));
  if (op->count == 0) return NN_OK;
  double step = (double)op->step;
  adamw_t job = {*op, 0, 0, 0};
  job.step_size = (float)(op->lr / (1 - pow(op->beta1, step)));
  job.root_scale = (float)(1 / sqrt(1 - pow(op->beta2, step)));
  job.decay = op->lr * op->weight_decay;
  int64_t tiles = wide_aligned(op->p, op->p_low, op->g, op->m, op->v) ? op->count / ADAMW_TILE : 0;
  int64_t blocks = cuda_blocks(op->count, ADAMW_TILE);
  if (blocks > (int64_t)ADAMW_BLOCKS * device->multiprocessors)
    blocks = (int64_t)ADAMW_BLOCKS * device->multiprocessors;
  unsigned grid = (unsigned)blocks;
  if (op->weight_dtype == NN_BF16)
    adamw_kernel<uint16_t><<<grid, OPTIM_THREADS, 0, device->stream>>>(job, tiles);
  else
    adamw_kernel<float><<<grid, OPTIM_THREADS, 0, device->stream>>>(job, tiles);
  return cuda_launched(device, "adamw");
}
