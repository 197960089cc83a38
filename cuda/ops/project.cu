/* Norm, product, rotation and storing of a few rows (decode): d = alpha norm(a) b^T + bias, the
 * pairs of columns that rope turns turned, and keys and values in the cache, too. A warp has a pair
 * of columns; it asks for its weights before the rows are there, and norms them for itself.
 *
 * The bits are those of the four operations, which run one after the other where this does not fit:
 * sums as in norm.cu and rows.cu, and the product is rounded before it is turned. */
#include "launch.cuh"
#include "ops/matmul.h"
#include "ops/rope.cuh"
#include "ops/row_vec.cuh"

enum { PROJECT_WARPS = 4, PROJECT_ROWS = 4 };

typedef struct project_pair {
  int32_t first, second; /* columns */
  int32_t angle;         /* of the rotation; -1: none */
} project_pair_t;

/* The columns of pair p, two neighbours where nothing turns. In a head of D columns, of which d
 * turn, the first d / 2 pairs are rope's. */
static __device__ __forceinline__ project_pair_t project_columns(const op_rope_t &rope, int32_t p) {
  if (!rope.n) return {2 * p, 2 * p + 1, -1};
  int32_t dim = (int32_t)rope.head_dim, half = (int32_t)rope.rotary_dim / 2;
  int32_t head = p / (dim / 2), i = p - head * (dim / 2), begin = head * dim;
  if (head >= rope.heads || i >= half) return {begin + 2 * i, begin + 2 * i + 1, -1};
  if (rope.interleaved) return {begin + 2 * i, begin + 2 * i + 1, i};
  return {begin + i, begin + i + half, i};
}

/* Column c of a row that store knows goes to the cache, if it is a key's or a value's. */
template <typename T>
static __device__ __forceinline__ void project_store(const op_kv_store_t &op, const T *d,
                                                     int64_t at, int32_t c, T value) {
  int64_t key = c - ((const T *)op.k - d), other = c - ((const T *)op.v - d);
  if (key >= 0 && key < op.width) ((T *)op.k_cache)[at + key] = value;
  if (other >= 0 && other < op.width) ((T *)op.v_cache)[at + other] = value;
}

/* A row's two results, by one thread. */
template <typename T, typename D>
static __device__ __forceinline__ void project_finish(const op_project_t &op, int row,
                                                      const project_pair_t &pair, float2 turn,
                                                      int64_t cache, bool stored, float x,
                                                      float y) {
  const op_matmul_t &product = op.matmul;
  D *d = (D *)product.d + row * product.ldd;
  bool both = pair.second < product.n;
  if constexpr (sizeof(D) == sizeof(T)) {
    x = to_float(from_float<T>(x)), y = to_float(from_float<T>(y));
    if (pair.angle >= 0) rope_pair(x, y, turn.x, op.rope.inverse ? -turn.y : turn.y);
    if (stored) {
      project_store<T>(op.store, (const T *)product.d, cache, pair.first, from_float<T>(x));
      if (both)
        project_store<T>(op.store, (const T *)product.d, cache, pair.second, from_float<T>(y));
    }
  }
  d[pair.first] = from_float<D>(x);
  if (both) d[pair.second] = from_float<D>(y);
}

/* ROWS: 1, or PROJECT_ROWS for as many as there are. */
template <typename T, typename D, int LOADS, int ROWS>
static __global__ void __launch_bounds__(32 * PROJECT_WARPS, (ROWS > 1 ? 3 : LOADS == 3 ? 6 : 5))
    project_kernel(const op_project_t op, int32_t pairs) {
  constexpr int W = vec_t<T>::width;
  const op_matmul_t &product = op.matmul;
  int32_t p = blockIdx.x * PROJECT_WARPS + threadIdx.x / 32, lane = threadIdx.x & 31;
  int32_t rows = ROWS == 1 ? 1 : (int32_t)product.m, vectors = (int32_t)product.k / W;
  project_pair_t pair = project_columns(op.rope, min(p, pairs - 1));
  launch_next();
  row_vec_t<T> w[2][LOADS], scale[LOADS];
  row_load<true, T>(w[0], (const T *)product.b + pair.first * product.ldb, lane, 32, vectors);
  row_load<true, T>(w[1], (const T *)product.b + min(pair.second, (int)product.n - 1) * product.ldb,
                    lane, 32, vectors);
  row_load<false, T>(scale, (const T *)op.norm.w, lane, 32, vectors);
  /* Of row `lane`, which this lane writes. Positions and sequences come from the host. */
  float bias[2] = {0, 0};
  float2 turn = {0, 0};
  int64_t cache = 0;
  bool stored = false;
  if (lane < rows) {
    if (product.bias) {
      bias[0] = to_float(((const T *)product.bias)[pair.first]);
      if (pair.second < product.n) bias[1] = to_float(((const T *)product.bias)[pair.second]);
    }
    if (pair.angle >= 0) {
      const float *at = op.rope.table + op.rope.position[lane] * op.rope.rotary_dim + pair.angle;
      turn = make_float2(at[0], at[op.rope.rotary_dim / 2]);
    }
    if (op.store.n) {
      int64_t sequence = op.store.sequence[lane];
      stored = sequence >= 0;
      cache = sequence * op.store.cache_batch + op.store.position[lane] * op.store.width;
    }
  }
  launch_wait();
  if (p >= pairs) return;
  float own[2] = {0, 0};
  for (int row = 0; row < rows; row++) {
    row_vec_t<T> x[LOADS];
    row_load<false, T>(x, (const T *)op.norm.x + row * op.norm.hidden, lane, 32, vectors);
    float rstd = row_norm<T>(op.norm, scale, x);
    float a = row_dot<T>(w[0], x, 0), b = row_dot<T>(w[1], x, 0);
    a = warp_sum(a), b = warp_sum(b);
    if (lane == row) own[0] = a, own[1] = b;
    if (p) continue;
    if (op.norm.rstd && lane == 0) op.norm.rstd[row] = rstd;
#pragma unroll
    for (int i = 0; i < LOADS; i++)
      if (lane + i * 32 < vectors)
        x[i].store((T *)op.norm.y + row * op.norm.hidden + (lane + i * 32) * W);
  }
  if (lane >= rows) return;
  float alpha = product.alpha == 0 ? 1 : product.alpha;
  project_finish<T, D>(op, lane, pair, turn, cache, stored, fmaf(alpha, own[0], bias[0]),
                       fmaf(alpha, own[1], bias[1]));
}

template <typename T, typename D, int ROWS>
static void project_run(backend_device_t *device, const op_project_t *op) {
  int64_t pairs = cuda_blocks(op->matmul.n, 2);
  auto kernel = op->matmul.k <= 3 * 32 * vec_t<T>::width ? project_kernel<T, D, 3, ROWS>
                                                         : project_kernel<T, D, 4, ROWS>;
  launch_chained(device, kernel, (unsigned)cuda_blocks(pairs, PROJECT_WARPS), 32 * PROJECT_WARPS,
                 0, 0, *op, (int32_t)pairs);
}

template <typename T>
static void project_launch(backend_device_t *device, const op_project_t *op) {
  bool one = op->matmul.m == 1;
  if (op->matmul.d_dtype == NN_F32)
    (one ? project_run<T, float, 1> : project_run<T, float, PROJECT_ROWS>)(device, op);
  else
    (one ? project_run<T, T, 1> : project_run<T, T, PROJECT_ROWS>)(device, op);
}

/* Rows are whole, nothing comes between the norm and the product, and heads are whole pairs. */
static bool project_fits(const op_project_t *op) {
  const op_norm_t *norm = &op->norm;
  const op_matmul_t *product = &op->matmul;
  int64_t most = 4 * 32 * 16 / (int64_t)cuda_dtype_bytes(product->a_dtype);
  bool turns = op->rope.n || op->store.n;
  return matmul_rows_fit(product) && product->m <= PROJECT_ROWS && product->k <= most &&
         product->n < INT32_MAX / 2 && product->epilogue == MATMUL_NONE && !product->c &&
         !(product->bias && backend_factor(product->alpha) != 1.0f) &&
         norm->kind == NN_NORM_RMS && !norm->b && norm->groups <= 1 && !norm->ldx && !norm->ldy &&
         norm->n == product->m && norm->hidden == product->k && product->lda == product->k &&
         (((uintptr_t)norm->x | (uintptr_t)norm->w | (uintptr_t)norm->y) & 15) == 0 &&
         (!turns || product->d_dtype == product->a_dtype) &&
         (!op->rope.n || (op->rope.n == product->m && op->rope.head_dim % 2 == 0 &&
                          product->n % op->rope.head_dim == 0 && op->rope.x == product->d &&
                          op->rope.ldx == product->ldd)) &&
         (!op->store.n || (op->store.n == product->m && op->store.ld == product->ldd));
}

CUDA_OP(project, op_project_t) {
  if (project_fits(op)) {
    CUDA_TRY(cuda_enter(device, "project"));
    op_project_t whole = *op;
    if (!whole.rope.rotary_dim) whole.rope.rotary_dim = op->rope.head_dim;
    CUDA_BY_DTYPE(op->matmul.a_dtype, project_launch, device, &whole);
    return cuda_launched(device, "project");
  }
  CUDA_TRY(cuda_norm(device, &op->norm, scratch));
  CUDA_TRY(cuda_matmul(device, &op->matmul, scratch));
  CUDA_TRY(cuda_rope(device, &op->rope, scratch));
  return cuda_kv_store(device, &op->store, scratch);
}
