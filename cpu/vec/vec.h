/* Vectors of floats, and what the files of this folder share. Every file here is compiled once
 * for AVX2 and once for AVX-512 (VEC_AVX2 or VEC_AVX512 is 1, VEC_ISA names it); external names
 * go through VEC(), so that both builds live in one library. Lane order and the order of every
 * horizontal sum are fixed, so results do not depend on the number of threads. */
#ifndef NN_CPU_VEC_H
#define NN_CPU_VEC_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "base/dtype.h"
#include "cpu.h"

#define VEC_JOIN_(name, isa) name##_##isa
#define VEC_JOIN(name, isa) VEC_JOIN_(name, isa)
#define VEC(name) VEC_JOIN(name, VEC_ISA)

#define VEC_INLINE static inline __attribute__((always_inline))
#define VEC_APART static __attribute__((noinline))
#define VEC_RARE static __attribute__((noinline, unused)) /* small, but asked for in many places */

/* Before a loop over an array of registers: unless it is unrolled whole, they live in memory. */
#if defined(__clang__)
#define VEC_UNROLL _Pragma("clang loop unroll(full)")
#else
#define VEC_UNROLL _Pragma("GCC unroll 16")
#endif

/* ---- the vector: vf holds VEC_WIDTH floats, vmask says which lanes count --------------------- */

#if VEC_AVX512

enum { VEC_WIDTH = 16 };
typedef __m512 vf;
typedef __mmask16 vmask;

VEC_INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
VEC_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
VEC_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
VEC_INLINE void vf_store(float *p, vf x) { _mm512_storeu_ps(p, x); }
/* Past the caches; p is aligned as a vector; a fence comes before other threads read it. */
VEC_INLINE void vf_store_bypass(float *p, vf x) { _mm512_stream_ps(p, x); }

/* The first count lanes, 0 <= count <= VEC_WIDTH. */
VEC_INLINE vmask vf_mask(int64_t count) { return (vmask)((1u << count) - 1u); }
/* Lanes outside the mask read as 0, and are neither read nor written in memory. */
VEC_INLINE vf vf_load_mask(const float *p, vmask mask) { return _mm512_maskz_loadu_ps(mask, p); }
VEC_INLINE void vf_store_mask(float *p, vmask mask, vf x) { _mm512_mask_storeu_ps(p, mask, x); }
/* mask ? a : b */
VEC_INLINE vf vf_select(vmask mask, vf a, vf b) { return _mm512_mask_blend_ps(mask, b, a); }

VEC_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
VEC_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
VEC_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
VEC_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
VEC_INLINE vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
/* The second argument where either is NaN. */
VEC_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
VEC_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
/* a * b + c, c - a * b, rounded once. */
VEC_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
VEC_INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }

/* VEC_WIDTH bf16 values, widened exactly. */
VEC_INLINE vf vf_load_bf16(const uint16_t *p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
VEC_INLINE vf vf_load_bf16_part(const uint16_t *p, int64_t count) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(vf_mask(count), p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* The same of fp16; and the way back, to the nearest, ties to even. */
VEC_INLINE vf vf_load_f16(const uint16_t *p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
VEC_INLINE vf vf_load_f16_part(const uint16_t *p, int64_t count) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vf_mask(count), p));
}
VEC_INLINE void vf_store_f16(uint16_t *p, vf x) {
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

/* To bf16, to the nearest, ties to even, as dtype_f32_to_bf16() does: infinite beyond the range,
 * NaN stays NaN, subnormals are kept. */
VEC_INLINE __m256i vf_to_bf16(vf x) {
  __m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
  __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  __m512i rounded = _mm512_mask_or_epi32(_mm512_srli_epi32(sum, 16), nan, high,
                                         _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(rounded);
}
VEC_INLINE void vf_store_bf16(uint16_t *p, vf x) {
  _mm256_storeu_si256((__m256i *)p, vf_to_bf16(x));
}
VEC_INLINE void vf_store_bf16_part(uint16_t *p, int64_t count, vf x) {
  _mm256_mask_storeu_epi16(p, vf_mask(count), vf_to_bf16(x));
}

/* Lanes where a >= b. */
VEC_INLINE vmask vf_at_least(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }

/* Turns VEC_WIDTH rows into VEC_WIDTH columns: pairs, fours, then quarters of the register. */
VEC_INLINE void vf_transpose(vf x[VEC_WIDTH]) {
  vf y[VEC_WIDTH];
  for (int i = 0; i < VEC_WIDTH; i += 4) {
    __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(x[i], x[i + 1]));
    __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(x[i], x[i + 1]));
    __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(x[i + 2], x[i + 3]));
    __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(x[i + 2], x[i + 3]));
    y[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    y[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    y[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    y[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  for (int i = 0; i < 4; i++) {
    vf a = _mm512_shuffle_f32x4(y[i], y[i + 4], 0x88);
    vf b = _mm512_shuffle_f32x4(y[i], y[i + 4], 0xdd);
    vf c = _mm512_shuffle_f32x4(y[i + 8], y[i + 12], 0x88);
    vf d = _mm512_shuffle_f32x4(y[i + 8], y[i + 12], 0xdd);
    x[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    x[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    x[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    x[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

/* x[c] = element c of each of VEC_WIDTH rows: as vf_transpose, but the loads do its last stage. */
VEC_INLINE void vf_load_columns(const float *const row[VEC_WIDTH], vf x[VEC_WIDTH]) {
  for (int h = 0; h < VEC_WIDTH; h += 8) { /* eight columns */
    vf y[8];
    for (int g = 0; g < 2; g++) { /* of eight rows, four beside four */
      vf r[4];
      for (int i = 0; i < 4; i++)
        r[i] = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(row[8 * g + i] + h)),
                                  _mm256_loadu_ps(row[8 * g + i + 4] + h), 1);
      __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1]));
      __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1]));
      __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3]));
      __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
      y[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
      y[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
      y[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
      y[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    for (int i = 0; i < 4; i++) {
      x[h + i] = _mm512_shuffle_f32x4(y[i], y[4 + i], 0x88);
      x[h + 4 + i] = _mm512_shuffle_f32x4(y[i], y[4 + i], 0xdd);
    }
  }
}

VEC_INLINE vf vf_swap(vf x) { return _mm512_shuffle_f32x4(x, x, 0x4e); } /* its halves */
VEC_INLINE vf vf_swap_pairs(vf x) { return _mm512_permute_ps(x, 0xb1); } /* lanes 2i and 2i + 1 */
VEC_INLINE vf vf_twice(vf x) { /* each lane of the first half */
  return _mm512_permutexvar_ps(
      _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), x);
}
VEC_INLINE __m256 vf_low(vf x) { return _mm512_castps512_ps256(x); }
VEC_INLINE __m256 vf_high(vf x) { return _mm512_extractf32x8_ps(x, 1); }

#else

enum { VEC_WIDTH = 8 };
typedef __m256 vf;
typedef __m256i vmask;

VEC_INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
VEC_INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
VEC_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
VEC_INLINE void vf_store(float *p, vf x) { _mm256_storeu_ps(p, x); }
VEC_INLINE void vf_store_bypass(float *p, vf x) { _mm256_stream_ps(p, x); }

/* The first count lanes, 0 <= count <= VEC_WIDTH. */
VEC_INLINE vmask vf_mask(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)count),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
/* Lanes outside the mask read as 0, and are neither read nor written in memory. */
VEC_INLINE vf vf_load_mask(const float *p, vmask mask) { return _mm256_maskload_ps(p, mask); }
VEC_INLINE void vf_store_mask(float *p, vmask mask, vf x) { _mm256_maskstore_ps(p, mask, x); }
/* mask ? a : b */
VEC_INLINE vf vf_select(vmask mask, vf a, vf b) {
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask));
}

VEC_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
VEC_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
VEC_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
VEC_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
VEC_INLINE vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
/* The second argument where either is NaN. */
VEC_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
VEC_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
/* a * b + c, c - a * b, rounded once. */
VEC_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
VEC_INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }

/* VEC_WIDTH bf16 values, widened exactly. */
VEC_INLINE vf vf_load_bf16(const uint16_t *p) {
  __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
VEC_RARE vf vf_load_bf16_part(const uint16_t *p, int64_t count) {
  uint16_t part[VEC_WIDTH] = {0};
  memcpy(part, p, (size_t)count * sizeof *p);
  return vf_load_bf16(part);
}

/* The same of fp16; and the way back, to the nearest, ties to even. */
VEC_INLINE vf vf_load_f16(const uint16_t *p) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
VEC_RARE vf vf_load_f16_part(const uint16_t *p, int64_t count) {
  uint16_t part[VEC_WIDTH] = {0};
  memcpy(part, p, (size_t)count * sizeof *p);
  return vf_load_f16(part);
}
VEC_INLINE void vf_store_f16(uint16_t *p, vf x) {
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

/* To bf16, to the nearest, ties to even, as dtype_f32_to_bf16() does: infinite beyond the range,
 * NaN stays NaN, subnormals are kept. */
VEC_INLINE __m128i vf_to_bf16(vf x) {
  __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
  __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  __m256i rounded = _mm256_blendv_epi8(_mm256_srli_epi32(sum, 16), quiet, nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
VEC_INLINE void vf_store_bf16(uint16_t *p, vf x) {
  _mm_storeu_si128((__m128i *)p, vf_to_bf16(x));
}
VEC_RARE void vf_store_bf16_part(uint16_t *p, int64_t count, vf x) {
  uint16_t part[VEC_WIDTH];
  vf_store_bf16(part, x);
  memcpy(p, part, (size_t)count * sizeof *p);
}

/* Lanes where a >= b. */
VEC_INLINE vmask vf_at_least(vf a, vf b) {
  return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
}

/* Turns VEC_WIDTH rows into VEC_WIDTH columns: pairs, fours, then halves of the register. */
VEC_INLINE void vf_transpose(vf x[VEC_WIDTH]) {
  vf y[VEC_WIDTH];
  for (int i = 0; i < VEC_WIDTH; i += 4) {
    __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(x[i], x[i + 1]));
    __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(x[i], x[i + 1]));
    __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(x[i + 2], x[i + 3]));
    __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(x[i + 2], x[i + 3]));
    y[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
    y[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    y[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
    y[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
  }
  for (int i = 0; i < 4; i++) {
    x[i] = _mm256_permute2f128_ps(y[i], y[i + 4], 0x20);
    x[i + 4] = _mm256_permute2f128_ps(y[i], y[i + 4], 0x31);
  }
}

/* x[c] = element c of each of VEC_WIDTH rows: as vf_transpose, but the loads do its last stage. */
VEC_INLINE void vf_load_columns(const float *const row[VEC_WIDTH], vf x[VEC_WIDTH]) {
  for (int h = 0; h < VEC_WIDTH; h += 4) { /* four columns of rows, four beside four */
    vf r[4];
    for (int i = 0; i < 4; i++)
      r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row[i] + h)),
                                  _mm_loadu_ps(row[i + 4] + h), 1);
    __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(r[0], r[1]));
    __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(r[0], r[1]));
    __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(r[2], r[3]));
    __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(r[2], r[3]));
    x[h] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
    x[h + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    x[h + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
    x[h + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
  }
}

VEC_INLINE vf vf_swap(vf x) { return _mm256_permute2f128_ps(x, x, 1); } /* its halves */
VEC_INLINE vf vf_swap_pairs(vf x) { return _mm256_permute_ps(x, 0xb1); } /* lanes 2i and 2i + 1 */
VEC_INLINE vf vf_twice(vf x) { /* each lane of the first half */
  return _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
}
VEC_INLINE __m128 vf_low(vf x) { return _mm256_castps256_ps128(x); }
VEC_INLINE __m128 vf_high(vf x) { return _mm256_extractf128_ps(x, 1); }

#endif

/* The first count lanes; the others read as 0. */
VEC_INLINE vf vf_load_part(const float *p, int64_t count) {
  return vf_load_mask(p, vf_mask(count));
}
VEC_INLINE void vf_store_part(float *p, int64_t count, vf x) {
  vf_store_mask(p, vf_mask(count), x);
}

/* The next lanes of a row that has `left` elements left: all of them, or the part that there is. */
VEC_INLINE vf vf_load_next(const float *p, int64_t left) {
  return left >= VEC_WIDTH ? vf_load(p) : vf_load_part(p, left);
}
VEC_INLINE void vf_store_next(float *p, int64_t left, vf x) {
  if (left >= VEC_WIDTH) vf_store(p, x);
  else vf_store_part(p, left, x);
}

/* Does what follows with VEC_DTYPE, a constant of dtype's value: loops are made for each. */
#define VEC_BY_DTYPE(dtype, ...)       \
  do {                                 \
    if ((dtype) == NN_BF16) {          \
      enum { VEC_DTYPE = NN_BF16 };    \
      __VA_ARGS__;                     \
    } else if ((dtype) == NN_F16) {    \
      enum { VEC_DTYPE = NN_F16 };     \
      __VA_ARGS__;                     \
    } else {                           \
      enum { VEC_DTYPE = NN_F32 };     \
      __VA_ARGS__;                     \
    }                                  \
  } while (0)

/* The same with VEC_ACT too, a constant of what activations are: NN_BF16, beside parameters of
 * NN_BF16 alone, or NN_F32. */
#define VEC_BY_ACT(act, ...)           \
  do {                                 \
    if ((act) == NN_BF16) {            \
      enum { VEC_ACT = NN_BF16 };      \
      __VA_ARGS__;                     \
    } else {                           \
      enum { VEC_ACT = NN_F32 };       \
      __VA_ARGS__;                     \
    }                                  \
  } while (0)
#define VEC_BY_DTYPES(weight, act, ...)                \
  do {                                                 \
    if ((act) == NN_BF16) {                            \
      enum { VEC_DTYPE = NN_BF16, VEC_ACT = NN_BF16 }; \
      __VA_ARGS__;                                     \
    } else {                                           \
      enum { VEC_ACT = NN_F32 };                       \
      VEC_BY_DTYPE(weight, __VA_ARGS__);               \
    }                                                  \
  } while (0)

VEC_INLINE int64_t vec_dtype_bytes(int32_t dtype) { return dtype == NN_F32 ? 4 : 2; }

/* Element i of an array of a dtype. */
VEC_INLINE const void *vec_at(const void *data, int64_t i, int32_t dtype) {
  return (const char *)data + i * vec_dtype_bytes(dtype);
}
VEC_INLINE void *vec_to(void *data, int64_t i, int32_t dtype) {
  return (char *)data + i * vec_dtype_bytes(dtype);
}

/* VEC_WIDTH (or count) elements from element i of an array of a dtype: widened as they are read,
 * rounded as they are written. With vec_row below
 * this is all that operations know of other dtypes than fp32. */
VEC_INLINE vf vf_load_as(const void *w, int64_t i, int32_t dtype) {
  if (dtype == NN_BF16) return vf_load_bf16((const uint16_t *)w + i);
  if (dtype == NN_F16) return vf_load_f16((const uint16_t *)w + i);
  return vf_load((const float *)w + i);
}
VEC_INLINE vf vf_load_as_part(const void *w, int64_t i, int64_t count, int32_t dtype) {
  if (dtype == NN_BF16) return vf_load_bf16_part((const uint16_t *)w + i, count);
  if (dtype == NN_F16) return vf_load_f16_part((const uint16_t *)w + i, count);
  return vf_load_part((const float *)w + i, count);
}
VEC_INLINE vf vf_load_as_next(const void *w, int64_t i, int64_t left, int32_t dtype) {
  return left >= VEC_WIDTH ? vf_load_as(w, i, dtype) : vf_load_as_part(w, i, left, dtype);
}

/* fp32 or bf16. */
VEC_INLINE void vf_store_as_next(void *p, int64_t i, int64_t left, int32_t dtype, vf x) {
  uint16_t *half = (uint16_t *)p + i;
  if (dtype == NN_F32) vf_store_next((float *)p + i, left, x);
  else if (left >= VEC_WIDTH) vf_store_bf16(half, x);
  else vf_store_bf16_part(half, left, x);
}

/* One element; written as fp32 or bf16. */
VEC_INLINE float vec_load_as(const void *w, int64_t i, int32_t dtype) {
  if (dtype == NN_F32) return ((const float *)w)[i];
  const uint16_t *bits = (const uint16_t *)w + i;
  return dtype == NN_BF16 ? dtype_bf16_to_f32(*bits) : dtype_f16_to_f32(*bits);
}
VEC_INLINE void vec_store_as(void *p, int64_t i, int32_t dtype, float x) {
  if (dtype == NN_F32) ((float *)p)[i] = x;
  else ((uint16_t *)p)[i] = dtype_f32_to_bf16(x);
}

/* n elements from element i on as floats: where they lie, or in room [n]. For what would otherwise
 * be made once for each dtype, and is large. */
static inline const float *vec_row(const void *x, int64_t i, int64_t n, int32_t dtype,
                                   float *room) {
  if (dtype == NN_F32) return (const float *)x + i;
  for (int64_t j = 0; j < n; j += VEC_WIDTH)
    vf_store_next(room + j, n - j, vf_load_as_next(x, i + j, n - j, dtype));
  return room;
}
/* The way back from room. */
static inline void vec_row_to_bf16(const float *room, int64_t n, uint16_t *y) {
  for (int64_t j = 0; j < n; j += VEC_WIDTH)
    vf_store_as_next(y, j, n - j, NN_BF16, vf_load_next(room + j, n - j));
}

/* ---- over the lanes: halves are folded onto each other until one lane is left ---------------- */

VEC_INLINE __m128 vec_fold_sum(vf x) {
#if VEC_AVX512
  __m256 half = _mm256_add_ps(vf_low(x), vf_high(x));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#else
  return _mm_add_ps(vf_low(x), vf_high(x));
#endif
}

VEC_INLINE float vf_sum(vf x) {
  __m128 four = vec_fold_sum(x);
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/* Lanes 4 q + i of the result: the sum of lanes 4 q .. 4 q + 3 of x[i]. */
VEC_INLINE vf vf_sum_fours(const vf x[4]) {
#if VEC_AVX512
  vf a = vf_add(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  vf b = vf_add(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
  return vf_add(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)),
                _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
#else
  vf a = vf_add(_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1]));
  vf b = vf_add(_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3]));
  __m256d c = _mm256_castps_pd(a), d = _mm256_castps_pd(b);
  return vf_add(_mm256_castpd_ps(_mm256_unpacklo_pd(c, d)),
                _mm256_castpd_ps(_mm256_unpackhi_pd(c, d)));
#endif
}

/* The sums of four vectors at once: lane i of the result is the sum over x[i]. */
VEC_INLINE __m128 vf_sum4(const vf x[4]) { return vec_fold_sum(vf_sum_fours(x)); }

VEC_INLINE __m128 vec_fold_max(vf x) {
#if VEC_AVX512
  __m256 half = _mm256_max_ps(vf_low(x), vf_high(x));
  return _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#else
  return _mm_max_ps(vf_low(x), vf_high(x));
#endif
}

VEC_INLINE float vf_max_lane(vf x) {
  __m128 four = vec_fold_max(x);
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

/* ---- functions ------------------------------------------------------------------------------- */

/* Vectors whose functions are computed side by side, step by step: one after the other, the many
 * steps that wait for the one before them would fill the processor's schedulers. */
enum { VEC_BESIDE = VEC_WIDTH / 4 };

/* Does what follows for each i of `count`, a constant of at most VEC_BESIDE. */
#define VEC_EACH(i, count) \
  VEC_UNROLL for (int i = 0; i < VEC_BESIDE; i++) if (i < (count))

/* Replaces each x by exp(x): x = n ln 2 + r with |r| <= ln 2 / 2, exp(r) by the degree 6 polynomial
 * of least relative error (3e-9), then times 2^n. At most 1 ulp off where the result is a normal
 * number; 0 from -104 down (and for -inf), infinity from 88.73 up; NaN stays NaN. */
VEC_INLINE void vf_exps(const int count, vf *x) {
  static const float coefficient[] = {0x1.123a20p-7f, 0x1.5558f2p-5f, 0x1.555492p-3f,
                                      0x1.fffffcp-2f, 1.0f, 1.0f};
  vf n[VEC_BESIDE], p[VEC_BESIDE];
  VEC_EACH(i, count) x[i] = vf_min(vf_set1(89.0f), vf_max(vf_set1(-110.0f), x[i]));
#if VEC_AVX512
  VEC_EACH(i, count) n[i] = _mm512_roundscale_ps(vf_mul(x[i], vf_set1(0x1.715476p+0f)), 0);
#else
  VEC_EACH(i, count) n[i] = _mm256_round_ps(vf_mul(x[i], vf_set1(0x1.715476p+0f)), 8);
#endif
  VEC_EACH(i, count) x[i] = vf_fnma(n[i], vf_set1(0x1.62e400p-1f), x[i]);
  VEC_EACH(i, count) x[i] = vf_fnma(n[i], vf_set1(0x1.7f7d1cp-20f), x[i]);
  VEC_EACH(i, count) p[i] = vf_set1(0x1.6a23d0p-10f);
  VEC_UNROLL for (int c = 0; c < 6; c++)
    VEC_EACH(i, count) p[i] = vf_fma(p[i], x[i], vf_set1(coefficient[c]));
#if VEC_AVX512
  VEC_EACH(i, count) x[i] = _mm512_scalef_ps(p[i], n[i]);
#else
  /* 2^n in two factors, since n reaches below the smallest exponent and above the largest. */
  VEC_EACH(i, count) {
    __m256i exponent = _mm256_cvtps_epi32(n[i]);
    __m256i half = _mm256_srai_epi32(exponent, 1), rest = _mm256_sub_epi32(exponent, half);
    __m256i bias = _mm256_set1_epi32(127);
    vf a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    vf b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    x[i] = vf_mul(vf_mul(p[i], a), b);
  }
#endif
}

VEC_INLINE vf vf_exp(vf x) {
  vf_exps(1, &x);
  return x;
}

/* Replaces each x by 1 + exp(-x). x / (1 + exp(-x)) is silu(x); v / (1 + exp(-2u)) is the tanh form
 * of GELU, since (1 + tanh(u)) / 2 = sigmoid(2u). */
VEC_INLINE void vf_rises(const int count, vf *x) {
  VEC_EACH(i, count) x[i] = vf_sub(vf_zero(), x[i]);
  vf_exps(count, x);
  VEC_EACH(i, count) x[i] = vf_add(vf_set1(1.0f), x[i]);
}

/* 1 / (1 + exp(-x)). */
VEC_INLINE vf vf_sigmoid(vf x) {
  vf_rises(1, &x);
  return vf_div(vf_set1(1.0f), x);
}

/* ---- running --------------------------------------------------------------------------------- */

VEC_INLINE int64_t vec_min(int64_t a, int64_t b) { return a < b ? a : b; }
VEC_INLINE int64_t vec_blocks(int64_t n, int64_t block) { return (n + block - 1) / block; }
VEC_INLINE int64_t vec_round_up(int64_t n, int64_t step) { return vec_blocks(n, step) * step; }

/* Work that takes a thread a few microseconds is done before others would wake: below this many
 * elements (read, written or multiplied) the caller does it alone. */
enum { VEC_SMALL = 1 << 16 };

/* pool_run, or a plain loop where the whole work (in elements, as above) is small. */
static inline nn_status_t vec_run(backend_device_t *device, int64_t items, int64_t work, pool_fn fn,
                                  void *context) {
  if (work >= VEC_SMALL) return pool_run(device->pool, items, fn, context);
  for (int64_t item = 0; item < items; item++) fn(context, item, 0);
  return NN_OK;
}

#endif
