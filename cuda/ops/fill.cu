/* Element i of out becomes std * normal(seed, stream, i), rounded to dtype: bit for bit what the
 * CPU's fill.c makes. So the arithmetic is its, in fp32, through intrinsics that are never fused.
 * Each thread makes the four numbers of one Philox block. */
#include "ops/wide.cuh"

enum { FILL_THREADS = 256, FILL_BLOCKS = 1 << 20 /* at most */ };

typedef struct fill_words {
  uint32_t word[4];
} fill_words_t;

/* random_block() of base/random.h: Philox 4x32-10. */
static __device__ __forceinline__ fill_words_t fill_random(uint64_t seed, uint64_t stream,
                                                           uint64_t counter) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32);
  uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return fill_words_t{{c0, c1, c2, c3}};
}

static __device__ __forceinline__ float fill_mul(float a, float b) { return __fmul_rn(a, b); }
static __device__ __forceinline__ float fill_add(float a, float b) { return __fadd_rn(a, b); }

/* 1 + sign t (a + sign t (b + sign t (c + sign t d))) */
static __device__ __forceinline__ float fill_series(float t, float sign, float a, float b, float c,
                                                    float d) {
  float sum = fill_add(c, sign * fill_mul(t, d));
  sum = fill_add(b, sign * fill_mul(t, sum));
  sum = fill_add(a, sign * fill_mul(t, sum));
  return fill_add(1, sign * fill_mul(t, sum));
}

/* -2 ln u for u = (word + 1) / 2^32, by the series of atanh. */
static __device__ __forceinline__ float fill_minus_2_ln(uint32_t word) {
  float high = (float)(int32_t)(word >> 16) * 0x1p-16f; /* both exact */
  float low = (float)(int32_t)((word & 0xffff) + 1) * 0x1p-32f;
  int32_t bits = __float_as_int(fill_add(high, low));
  const int32_t half_root = 0x3f3504f3; /* sqrt(1/2) */
  int32_t exponent = (bits - half_root) >> 23;
  float m = __int_as_float(bits - exponent * (1 << 23));
  float s = __fdiv_rn(fill_add(m, -1), fill_add(m, 1)), t = fill_mul(s, s);
  float series = fill_series(t, 1, 1 / 3.0f, 1 / 5.0f, 1 / 7.0f, 1 / 9.0f);
  float ln = fill_add(fill_mul((float)exponent, 0.693147181f), fill_mul(2 * s, series));
  return -2 * ln;
}

/* Cosine and sine of 2 pi word / 2^32, within an eighth of a turn of the nearest quarter. */
static __device__ __forceinline__ void fill_turn(uint32_t word, float *cosine, float *sine) {
  uint32_t quarter = (word + (1u << 29)) >> 30;
  float x = fill_mul((float)(int32_t)(word - (quarter << 30)), 6.28318531f * 0x1p-32f);
  float t = fill_mul(x, x);
  float s = fill_mul(x, fill_series(t, -1, 1 / 6.0f, 1 / 120.0f, 1 / 5040.0f, 1 / 362880.0f));
  float c = fill_series(t, -1, 1 / 2.0f, 1 / 24.0f, 1 / 720.0f, 1 / 40320.0f);
  float along = quarter & 1 ? s : c, across = quarter & 1 ? c : s;
  *cosine = (quarter + 1) & 2 ? -along : along;
  *sine = quarter & 2 ? -across : across;
}

/* wide: out allows accesses of four elements. */
template <typename T>
static __global__ void __launch_bounds__(FILL_THREADS)
    fill_kernel(const op_fill_normal_t op, bool wide) {
  T *out = (T *)op.out;
  int64_t step = (int64_t)gridDim.x * FILL_THREADS;
  int64_t at = (int64_t)blockIdx.x * FILL_THREADS + threadIdx.x;
  for (; 4 * at < op.count; at += step) {
    fill_words_t random = fill_random(op.seed, op.stream, (uint64_t)at);
    T x[4];
#pragma unroll
    for (int pair = 0; pair < 4; pair += 2) {
      float radius = __fsqrt_rn(fill_minus_2_ln(random.word[pair])), cosine, sine;
      fill_turn(random.word[pair + 1], &cosine, &sine);
      x[pair] = from_float<T>(fill_mul(op.std, fill_mul(radius, cosine)));
      x[pair + 1] = from_float<T>(fill_mul(op.std, fill_mul(radius, sine)));
    }
    if (wide && 4 * at + 4 <= op.count) {
      wide_write<4>(out + 4 * at, x);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (4 * at + j < op.count) out[4 * at + j] = x[j];
    }
  }
}

template <typename T>
static void fill_launch(backend_device_t *device, const op_fill_normal_t *op) {
  int64_t blocks = cuda_blocks(op->count, 4 * FILL_THREADS);
  if (blocks > FILL_BLOCKS) blocks = FILL_BLOCKS;
  unsigned grid = (unsigned)blocks;
  fill_kernel<T><<<grid, FILL_THREADS, 0, device->stream>>>(*op, wide_aligned(op->out));
}

CUDA_OP(fill_normal, op_fill_normal_t) {
  (void)scratch;
  CUDA_TRY(cuda_select(device, "fill_normal"));
  if (op->count == 0) return NN_OK;
  CUDA_BY_DTYPE(op->dtype, fill_launch, device, op);
  return cuda_launched(device, "fill_normal");
}
