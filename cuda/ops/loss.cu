/* The head's logits [rows, V] and their cross-entropy over chunks of rows; x [n, H], w [V, H].
 *
 * row_loss = logsumexp(l) - l[target] with l = alpha (w x + bias); with dl = alpha scale
 * (softmax(l) - onehot(target)), zero in rows without a target, dx = dl w is assigned and dw +=
 * dl^T x and dbias += dl accumulated, chunk after chunk; with `assign` the first chunk assigns dw.
 * Logits are fp32, dl has the dtype of activations. A row's sum is that of its threads' running
 * sums; loss_sum adds the rows in double. A loss that is not finite, times 0, makes its row's dl
 * NaN. */
#include "ops/columns.cuh"
#include "ops/matmul.h"

enum {
  LOSS_LEAST_ROWS = 128, /* of a chunk; larger chunks have a multiple of it */
  LOSS_THREADS = 512,
  LOSS_FEW_THREADS = 128,
  LOSS_BATCH = 4, /* loads in flight per thread */
  LOSS_SUM_THREADS = 1024
};

static const int64_t loss_chunk_logits = (256 << 20) / (int64_t)sizeof(float);

/* Rows whose logits exist at once. */
static int64_t loss_chunk_rows(int64_t n, int64_t vocab) {
  int64_t rows = loss_chunk_logits / vocab / LOSS_LEAST_ROWS * LOSS_LEAST_ROWS;
  if (rows < LOSS_LEAST_ROWS) rows = LOSS_LEAST_ROWS;
  return rows < n ? rows : n;
}

typedef struct loss_buffers {
  float *logits;
  void *dlogits; /* the logits' own place where dtypes are the same */
} loss_buffers_t;

/* Sizes bound those of every smaller n and vocab, whatever their chunks. */
static loss_buffers_t loss_layout(cuda_arena_t *arena, int64_t n, int64_t vocab, int32_t act_dtype,
                                  int gradients) {
  loss_buffers_t buffers = {};
  int64_t least = LOSS_LEAST_ROWS * vocab;
  int64_t count = least > loss_chunk_logits ? least : loss_chunk_logits;
  if (n * vocab < count) count = n * vocab;
  buffers.logits = (float *)cuda_take(arena, count, sizeof(float));
  buffers.dlogits = buffers.logits;
  if (gradients && cuda_is_half(act_dtype))
    buffers.dlogits = cuda_take(arena, count, cuda_dtype_bytes(act_dtype));
  return buffers;
}

size_t cuda_head_loss_scratch(const backend_device_t *device, const backend_limits_t *limits) {
  cuda_arena_t arena = {};
  loss_layout(&arena, limits->rows, limits->vocab, limits->act_dtype, limits->training);
  return arena.used + cuda_matmul_scratch(device, limits);
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* As exact as what is made of it: dl is rounded to T. */
template <typename T>
__device__ __forceinline__ float loss_exp(float x) {
  return sizeof(T) == 2 ? __expf(x) : expf(x);
}

/* What is subtracted before exp: nothing where there is nothing but -infinity so far. */
__device__ __forceinline__ float loss_shift(float most) { return most == -INFINITY ? 0.0f : most; }

/* A thread's largest logit and the sum of exp(logit - shift) over those it reads. */
template <typename T, int W>
__device__ __forceinline__ void loss_read(const float *logit, int64_t vocab, float *most,
                                          float *sum) {
  int64_t step = (int64_t)blockDim.x * W;
  for (int64_t i = threadIdx.x * W; i < vocab; i += step * LOSS_BATCH) {
    float x[LOSS_BATCH][W], largest = *most;
#pragma unroll
    for (int b = 0; b < LOSS_BATCH; b++) {
#pragma unroll
      for (int j = 0; j < W; j++) x[b][j] = -INFINITY;
      if (i + b * step < vocab) wide_load<W>(logit + i + b * step, x[b]);
    }
#pragma unroll
    for (int b = 0; b < LOSS_BATCH * W; b++) largest = fmaxf(largest, x[b / W][b % W]);
    float shift = loss_shift(largest);
    *sum *= loss_exp<T>(*most - shift);
    *most = largest;
#pragma unroll
    for (int b = 0; b < LOSS_BATCH * W; b++) *sum += loss_exp<T>(x[b / W][b % W] - shift);
  }
}

/* Stores what the compiler would store in halves as one piece. */
template <int W, typename T>
__device__ __forceinline__ void loss_store(T *to, const float (&x)[W]) {
  if constexpr (W == 4 && sizeof(T) == 2)
    *(uint2 *)to = make_uint2(half_pair<T>(x[0], x[1]), half_pair<T>(x[2], x[3]));
  else if constexpr (W == 4)
    *(float4 *)to = make_float4(x[0], x[1], x[2], x[3]);
  else
    wide_store<W>(to, x);
}

/* dl of a row from its logits, which may lie in the same place; from the end, where the caches
 * still hold what was read last. */
template <typename T, int W>
__device__ __forceinline__ void loss_write(const float *logit, T *dlogit, int64_t vocab,
                                           int64_t target, float shift, float sum, float scale) {
  int64_t step = (int64_t)blockDim.x * W, first = threadIdx.x * W;
  float inverse = 1 / sum;
  for (int64_t i = first + (vocab - 1) / step * step; i >= first; i -= step * LOSS_BATCH) {
    float x[LOSS_BATCH][W];
#pragma unroll
    for (int b = 0; b < LOSS_BATCH; b++) {
      int64_t at = i - b * step;
      if (at >= first && at < vocab) wide_load<W>(logit + at, x[b]);
    }
#pragma unroll
    for (int b = 0; b < LOSS_BATCH; b++) {
      int64_t at = i - b * step;
      if (at < first || at >= vocab) continue;
#pragma unroll
      for (int j = 0; j < W; j++)
        x[b][j] = scale * (loss_exp<T>(x[b][j] - shift) * inverse - (float)(at + j == target));
      loss_store<W>(dlogit + at, x[b]);
    }
  }
}

/* A block per row of the chunk that begins at row `begin`; dlogits: NULL where not wanted. */
template <typename T, int W>
static __global__ void __launch_bounds__(LOSS_THREADS, 2)
    loss_rows(const op_head_loss_t op, int64_t begin, const float *logits, T *dlogits) {
  __shared__ float room[32];
  int64_t row = begin + blockIdx.x, target = op.target[row];
  const float *logit = logits + blockIdx.x * op.vocab;
  T *dlogit = dlogits ? dlogits + blockIdx.x * op.vocab : NULL;
  if (target < 0) {
    if (threadIdx.x == 0) op.row_loss[row] = 0;
    const float zero[W] = {};
    for (int64_t i = threadIdx.x * W; dlogit && i < op.vocab; i += (int64_t)blockDim.x * W)
      wide_store<W>(dlogit + i, zero);
    return;
  }
  float chosen = logit[target], own = -INFINITY, sum = 0; /* chosen: read before dl is written */
  loss_read<T, W>(logit, op.vocab, &own, &sum);
  float most = block_max(own, room), shift = loss_shift(most);
  sum = block_sum(sum * loss_exp<T>(own - shift), room);
  float loss = most - chosen + logf(sum);
  if (threadIdx.x == 0) op.row_loss[row] = loss;
  if (!dlogit) return;
  float scale = *op.scale * (op.alpha == 0 ? 1 : op.alpha) + 0 * loss;
  loss_write<T, W>(logit, dlogit, op.vocab, target, shift, sum, scale);
}

static __global__ void __launch_bounds__(LOSS_SUM_THREADS)
    loss_total(const float *row_loss, int64_t n, double *total) {
  __shared__ double room[32];
  double sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < n; i += LOSS_SUM_THREADS) sum += row_loss[i];
  sum = block_sum(sum, room);
  if (threadIdx.x == 0) *total = sum;
}

/* ---- the operation --------------------------------------------------------------------------- */

typedef struct loss_chunk {
  const op_head_loss_t *op;
  loss_buffers_t buffers;
  backend_scratch_t rest; /* for the products */
  int64_t begin, rows;
  const void *x; /* [rows, H] */
} loss_chunk_t;

static nn_status_t loss_logits(backend_device_t *device, const loss_chunk_t *chunk) {
  const op_head_loss_t *op = chunk->op;
  op_matmul_t product = {};
  product.m = chunk->rows, product.n = op->vocab, product.k = op->hidden, product.trans_b = 1;
  product.a = chunk->x, product.lda = op->hidden, product.a_dtype = op->act_dtype;
  product.b = op->w, product.ldb = op->hidden, product.b_dtype = op->weight_dtype;
  product.alpha = op->alpha;
  product.d = chunk->buffers.logits, product.ldd = op->vocab, product.d_dtype = NN_F32;
  CUDA_TRY(cuda_matmul(device, &product, chunk->rest));
  product.bias = op->bias; /* follows, for it may be of another type than the logits */
  if (op->bias) matmul_bias(device, &product, product.d);
  return NN_OK;
}

static nn_status_t loss_dx(backend_device_t *device, const loss_chunk_t *chunk) {
  const op_head_loss_t *op = chunk->op;
  size_t row_bytes = (size_t)op->hidden * cuda_dtype_bytes(op->act_dtype);
  op_matmul_t product = {};
  product.m = chunk->rows, product.n = op->hidden, product.k = op->vocab;
  product.a = chunk->buffers.dlogits, product.lda = op->vocab, product.a_dtype = op->act_dtype;
  product.b = op->w, product.ldb = op->hidden, product.b_dtype = op->weight_dtype;
  product.d = (char *)op->dx + (size_t)chunk->begin * row_bytes, product.ldd = op->hidden;
  product.d_dtype = op->act_dtype;
  return cuda_matmul(device, &product, chunk->rest);
}

static nn_status_t loss_dw(backend_device_t *device, const loss_chunk_t *chunk) {
  const op_head_loss_t *op = chunk->op;
  op_matmul_t product = {};
  product.m = op->vocab, product.n = op->hidden, product.k = chunk->rows, product.trans_a = 1;
  product.a = chunk->buffers.dlogits, product.lda = op->vocab, product.a_dtype = op->act_dtype;
  product.b = chunk->x, product.ldb = op->hidden, product.b_dtype = op->act_dtype;
  product.c = op->assign && !chunk->begin ? NULL : op->dw, product.d = op->dw;
  product.ldc = product.ldd = op->hidden;
  product.d_dtype = NN_F32;
  return cuda_matmul(device, &product, chunk->rest);
}

template <typename T>
static void loss_launch_rows(cudaStream_t stream, const loss_chunk_t *chunk) {
  const op_head_loss_t *op = chunk->op;
  T *dlogits = op->dx ? (T *)chunk->buffers.dlogits : NULL;
  int threads = op->vocab <= 4 * LOSS_FEW_THREADS ? (int)LOSS_FEW_THREADS : (int)LOSS_THREADS;
  unsigned rows = (unsigned)chunk->rows;
  const float *logits = chunk->buffers.logits;
  if (op->vocab % 4 == 0) /* then rows of scratch are aligned */
    loss_rows<T, 4><<<rows, threads, 0, stream>>>(*op, chunk->begin, logits, dlogits);
  else
    loss_rows<T, 1><<<rows, threads, 0, stream>>>(*op, chunk->begin, logits, dlogits);
}

static nn_status_t loss_run(backend_device_t *device, const loss_chunk_t *chunk) {
  CUDA_TRY(loss_logits(device, chunk));
  CUDA_BY_DTYPE(chunk->op->act_dtype, loss_launch_rows, device->stream, chunk);
  CUDA_TRY(cuda_launched(device, "head_loss"));
  if (!chunk->op->dx) return NN_OK;
  CUDA_TRY(loss_dx(device, chunk));
  CUDA_TRY(loss_dw(device, chunk));
  if (!chunk->op->dbias) return NN_OK;
  op_column_sum_t sum = {};
  sum.n = chunk->rows, sum.width = sum.ldx = chunk->op->vocab, sum.act_dtype = chunk->op->act_dtype;
  sum.x = chunk->buffers.dlogits, sum.out = chunk->op->dbias;
  return cuda_column_sum(device, &sum, chunk->rest);
}

CUDA_OP(head_loss, op_head_loss_t) {
  CUDA_TRY(cuda_enter(device, "head_loss"));
  cuda_arena_t arena = {(char *)scratch.data, 0};
  loss_chunk_t chunk = {};
  chunk.op = op;
  chunk.buffers = loss_layout(&arena, op->n, op->vocab, op->act_dtype, op->dx != NULL);
  chunk.rest.data = arena.base + arena.used, chunk.rest.bytes = scratch.bytes - arena.used;
  int64_t rows = loss_chunk_rows(op->n, op->vocab);
  for (; chunk.begin < op->n; chunk.begin += rows) {
    chunk.rows = op->n - chunk.begin < rows ? op->n - chunk.begin : rows;
    chunk.x = (const char *)op->x +
              (size_t)(chunk.begin * op->hidden) * cuda_dtype_bytes(op->act_dtype);
    CUDA_TRY(loss_run(device, &chunk));
  }
  loss_total<<<1, LOSS_SUM_THREADS, 0, device->stream>>>(op->row_loss, op->n, op->loss_sum);
  return cuda_launched(device, "head_loss");
}
