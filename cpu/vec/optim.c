/* The optimizer: global gradient norm, summed in double over chunks that depend on the count
 * alone, and AdamW in one pass over memory (28 bytes a parameter, be it fp32 or bf16 with the rest
 * of its master). Neither stops half way when cancelled. */
#include <math.h>

#include "vec/ops.h"

enum {
  OPTIM_CHUNKS = 512,   /* at most: where a chunk begins, memory is read slowly at first */
  OPTIM_CHUNK = 1 << 15 /* elements, or a multiple of it */
};

/* How all elements are cut: chunks of so many each, but for the last one. */
typedef struct optim_cut {
  int64_t chunk, chunks;
} optim_cut_t;

static optim_cut_t optim_cut(int64_t count) {
  int64_t chunk = vec_round_up(vec_blocks(count, OPTIM_CHUNKS), OPTIM_CHUNK);
  return (optim_cut_t){chunk, count ? vec_blocks(count, chunk) : 0};
}

static void optim_run(backend_device_t *device, int64_t items, int64_t work, pool_fn fn,
                      void *context) {
  if (work >= VEC_SMALL) pool_run_all(device->pool, items, fn, context);
  else
    for (int64_t item = 0; item < items; item++) fn(context, item, 0);
}

/* ---- gradient norm --------------------------------------------------------------------------- */

typedef struct grad_norm {
  const op_grad_norm_t *op;
  optim_cut_t cut;
  double sums[OPTIM_CHUNKS];
} grad_norm_t;

/* Sum of the squares of VEC_WIDTH floats in half as many doubles. */
#if VEC_AVX512
typedef __m512d vd;
VEC_INLINE vd vd_zero(void) { return _mm512_setzero_pd(); }
VEC_INLINE vd vd_add(vd a, vd b) { return _mm512_add_pd(a, b); }
VEC_INLINE vd vd_add_squares(vd sum, const float *x) {
  __m512d low = _mm512_cvtps_pd(_mm256_loadu_ps(x)), high = _mm512_cvtps_pd(_mm256_loadu_ps(x + 8));
  return _mm512_fmadd_pd(high, high, _mm512_fmadd_pd(low, low, sum));
}
#else
typedef __m256d vd;
VEC_INLINE vd vd_zero(void) { return _mm256_setzero_pd(); }
VEC_INLINE vd vd_add(vd a, vd b) { return _mm256_add_pd(a, b); }
VEC_INLINE vd vd_add_squares(vd sum, const float *x) {
  __m256d low = _mm256_cvtps_pd(_mm_loadu_ps(x)), high = _mm256_cvtps_pd(_mm_loadu_ps(x + 4));
  return _mm256_fmadd_pd(high, high, _mm256_fmadd_pd(low, low, sum));
}
#endif

static double vd_sum(vd x) {
  double lane[VEC_WIDTH / 2], sum = 0;
  memcpy(lane, &x, sizeof lane);
  for (int i = 0; i < VEC_WIDTH / 2; i++) sum += lane[i];
  return sum;
}

static void grad_norm_chunk(void *context, int64_t item, int32_t thread) {
  (void)thread;
  grad_norm_t *job = context;
  const float *g = job->op->g;
  int64_t i = item * job->cut.chunk, end = vec_min(job->op->count, i + job->cut.chunk);
  vd sum[4] = {vd_zero(), vd_zero(), vd_zero(), vd_zero()};
  for (; i + 4 * VEC_WIDTH <= end; i += 4 * VEC_WIDTH)
    for (int u = 0; u < 4; u++) sum[u] = vd_add_squares(sum[u], g + i + u * VEC_WIDTH);
  for (; i + VEC_WIDTH <= end; i += VEC_WIDTH) sum[0] = vd_add_squares(sum[0], g + i);
  float rest[VEC_WIDTH];
  vf_store(rest, vf_load_part(g + i, end - i));
  sum[0] = vd_add_squares(sum[0], rest);
  job->sums[item] = vd_sum(vd_add(vd_add(sum[0], sum[1]), vd_add(sum[2], sum[3])));
}

VEC_OP(grad_norm, op_grad_norm_t) {
  (void)scratch;
  grad_norm_t job;
  job.op = op;
  job.cut = optim_cut(op->count);
  optim_run(device, job.cut.chunks, op->count, grad_norm_chunk, &job);
  double sum = 0;
  for (int64_t i = 0; i < job.cut.chunks; i++) sum += job.sums[i];
  double norm = sqrt(sum) * op->now->unscale;
  op->out[0] = norm;
  op->out[1] = op->now->unscale;
  if (op->max_norm > 0 && norm > op->max_norm) op->out[1] *= op->max_norm / norm;
  return NN_OK;
}

/* ---- AdamW ----------------------------------------------------------------------------------- */

typedef struct adamw {
  op_adamw_t op;
  optim_cut_t cut;
  float scale;      /* of the gradient: the clip */
  float step_size;  /* lr / (1 - beta1^step) */
  float root_scale; /* 1 / sqrt(1 - beta2^step) */
  float decay;      /* lr * weight_decay, or 0 for elements that do not decay */
} adamw_t;

/* VEC_WIDTH masters from bf16 parameters and their rests, and the way back. */
#if VEC_AVX512
VEC_INLINE vf adamw_join(const uint16_t *p, const int16_t *low) {
  __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
  __m512i rest = _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)low));
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 16), rest));
}
VEC_INLINE void adamw_split(vf master, uint16_t *p, int16_t *low) {
  __m512i bits = _mm512_castps_si512(master);
  __m512i high = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)), 16);
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(high));
  _mm256_storeu_si256((__m256i *)low, _mm512_cvtepi32_epi16(bits));
}
#else
VEC_INLINE vf adamw_join(const uint16_t *p, const int16_t *low) {
  __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
  __m256i rest = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)low));
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_slli_epi32(high, 16), rest));
}
VEC_INLINE void adamw_split(vf master, uint16_t *p, int16_t *low) {
  __m256i bits = _mm256_castps_si256(master);
  __m256i high = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x8000)), 16);
  __m256i rest = _mm256_and_si256(bits, _mm256_set1_epi32(0xffff));
  /* packing interleaves fours of both: high, rest, high, rest */
  __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, rest), 0xd8);
  _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(both));
  _mm_storeu_si128((__m128i *)low, _mm256_extracti128_si256(both, 1));
}
#endif

/* VEC_WIDTH masters of fp16 parameters: p where that is not the nearest fp16 number. */
#if VEC_AVX512
VEC_INLINE vf adamw_master(vf master, const uint16_t *p) {
  __m256i now = _mm256_loadu_si256((const __m256i *)p);
  __m256i nearest = _mm512_cvtps_ph(master, _MM_FROUND_TO_NEAREST_INT);
  return vf_select(_mm256_cmpeq_epi16_mask(now, nearest), master, vf_load_f16(p));
}
#else
VEC_INLINE vf adamw_master(vf master, const uint16_t *p) {
  __m128i now = _mm_loadu_si128((const __m128i *)p);
  __m128i nearest = _mm256_cvtps_ph(master, _MM_FROUND_TO_NEAREST_INT);
  return vf_select(_mm256_cvtepi16_epi32(_mm_cmpeq_epi16(now, nearest)), master, vf_load_f16(p));
}
#endif

/* The same as vectors, which what is stored cannot change: they stay in registers. */
typedef struct adamw_by {
  const float *g;
  float *m, *v;
  vf scale, beta1, beta2, rest1, rest2, root_scale, eps, step_size, decay;
} adamw_by_t;

VEC_INLINE adamw_by_t adamw_by(const adamw_t *job) {
  const op_adamw_t *op = &job->op;
  adamw_by_t by = {.g = op->g, .m = op->m, .v = op->v};
  by.scale = vf_set1(job->scale), by.step_size = vf_set1(job->step_size);
  by.root_scale = vf_set1(job->root_scale), by.decay = vf_set1(job->decay);
  by.beta1 = vf_set1(op->beta1), by.rest1 = vf_set1(1.0f - op->beta1);
  by.beta2 = vf_set1(op->beta2), by.rest2 = vf_set1(1.0f - op->beta2);
  by.eps = vf_set1(op->eps);
  return by;
}

/* Updates m and v of the elements from i on; returns what becomes of their p. */
VEC_INLINE vf adamw_update(const adamw_by_t *by, int64_t i, int64_t left, vf p) {
  vf g = vf_mul(vf_load_next(by->g + i, left), by->scale);
  vf m = vf_mul(vf_load_next(by->m + i, left), by->beta1);
  vf v = vf_mul(vf_load_next(by->v + i, left), by->beta2);
  m = vf_fma(g, by->rest1, m);
  v = vf_fma(vf_mul(g, g), by->rest2, v);
  vf root = vf_fma(vf_sqrt(v), by->root_scale, by->eps);
  vf update = vf_div(vf_mul(m, by->step_size), root);
  /* Not p (1 - decay) - update: beside 1, a small decay loses its last digits. */
  vf_store_next(by->m + i, left, m);
  vf_store_next(by->v + i, left, v);
  return vf_sub(p, vf_fma(p, by->decay, update));
}

VEC_INLINE void adamw_fp32(const adamw_by_t *by, float *p, int64_t i, int64_t left) {
  vf_store_next(p + i, left, adamw_update(by, i, left, vf_load_next(p + i, left)));
}

VEC_INLINE void adamw_bf16(const adamw_by_t *by, uint16_t *p, int16_t *low, int64_t i,
                           int64_t left) {
  uint16_t part[VEC_WIDTH] = {0};
  int16_t part_low[VEC_WIDTH] = {0};
  if (left >= VEC_WIDTH) {
    adamw_split(adamw_update(by, i, left, adamw_join(p + i, low + i)), p + i, low + i);
    return;
  }
  size_t bytes = (size_t)left * sizeof *p;
  memcpy(part, p + i, bytes), memcpy(part_low, low + i, bytes);
  adamw_split(adamw_update(by, i, left, adamw_join(part, part_low)), part, part_low);
  memcpy(p + i, part, bytes), memcpy(low + i, part_low, bytes);
}

VEC_INLINE void adamw_f16(const adamw_by_t *by, uint16_t *p, float *master, int64_t i,
                          int64_t left) {
  uint16_t part[VEC_WIDTH] = {0};
  size_t bytes = (size_t)vec_min(left, VEC_WIDTH) * sizeof *p;
  memcpy(part, p + i, bytes);
  vf from = adamw_master(vf_load_next(master + i, left), part);
  vf to = adamw_update(by, i, left, from);
  vf_store_next(master + i, left, to);
  vf_store_f16(part, to);
  memcpy(p + i, part, bytes);
}

static void adamw_range(const adamw_t *job, int64_t i, int64_t end) {
  const adamw_by_t by = adamw_by(job);
  void *p = job->op.p;
  int16_t *low = job->op.p_low;
  float *master = job->op.master;
  if (job->op.weight_dtype == NN_F16) {
    for (; i < end; i += VEC_WIDTH) adamw_f16(&by, p, master, i, end - i);
  } else if (job->op.weight_dtype == NN_BF16) {
    for (; i + VEC_WIDTH <= end; i += VEC_WIDTH) adamw_bf16(&by, p, low, i, VEC_WIDTH);
    if (i < end) adamw_bf16(&by, p, low, i, end - i);
  } else {
    for (; i + VEC_WIDTH <= end; i += VEC_WIDTH) adamw_fp32(&by, p, i, VEC_WIDTH);
    if (i < end) adamw_fp32(&by, p, i, end - i);
  }
}

static void adamw_chunk(void *context, int64_t item, int32_t thread) {
  (void)thread;
  adamw_t job = *(const adamw_t *)context;
  /* From the last chunk to the first: the norm read the last gradients last, and the next pass
   * reads the first parameters first. */
  int64_t begin = (job.cut.chunks - 1 - item) * job.cut.chunk;
  int64_t end = vec_min(job.op.count, begin + job.cut.chunk);
  int64_t split = vec_min(end, job.op.decayed > begin ? job.op.decayed : begin);
  adamw_range(&job, begin, split);
  job.decay = 0;
  adamw_range(&job, split, end);
}

VEC_OP(adamw, op_adamw_t) {
  (void)scratch;
  if (!isfinite(op->scale[0])) return NN_OK;
  adamw_t job = {
      .op = *op,
      .cut = optim_cut(op->count),
      .scale = (float)op->scale[1],
      .step_size = (float)(op->now->lr / op->now->m_left),
      .root_scale = (float)(1.0 / sqrt(op->now->v_left)),
      .decay = (float)op->now->lr * op->weight_decay,
  };
  optim_run(device, job.cut.chunks, op->count, adamw_chunk, &job);
  return NN_OK;
}
