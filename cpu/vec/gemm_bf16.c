/* Products with bf16 inputs by the processor's own instruction, which adds two products of bf16
 * pairs to an fp32 sum: fp32 inputs are rounded to bf16, to nearest, as they are packed or read.
 * Pairs are adjacent along k; what is missing of the last one counts as 0. A sum runs over pairs in
 * order of k, the later product of a pair first; subnormal inputs and results count as 0.
 *
 * Packing, the register kernel and streaming are those of gemm_pack.c, gemm_kernel.c,
 * gemm_stream.c and gemm_lines.h with a pair where those have a number. */
#include "vec/gemm_lines.h"
#include "vec/gemm_tile.h"

/* A pair as the registers have it: 32 bits, the earlier number low. */
enum { PAIR = 2, PAIRS = VEC_WIDTH, PAIR_NUMBERS = PAIR * VEC_WIDTH };

/* Numbers i .. i + count - 1 of a row, count at most PAIR_NUMBERS and any number of them absent, as
 * pairs. */
VEC_INLINE __m512i pairs_load(const void *row, int64_t i, int64_t count, int32_t dtype) {
  int64_t there = vec_min(count, PAIR_NUMBERS);
  if (there < 0) there = 0;
  if (dtype == NN_BF16) {
    __mmask32 mask = (__mmask32)((UINT64_C(1) << there) - 1);
    return _mm512_maskz_loadu_epi16(mask, (const uint16_t *)row + i);
  }
  const float *from = (const float *)row + i;
  __m512 low = _mm512_maskz_loadu_ps(vf_mask(vec_min(there, VEC_WIDTH)), from);
  vmask mask = vf_mask(there > VEC_WIDTH ? there - VEC_WIDTH : 0);
  __m512 high = _mm512_maskz_loadu_ps(mask, from + VEC_WIDTH);
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* Numbers of a row as 16-bit values in the low halves of 32. */
VEC_INLINE __m512i halves_load(const void *row, int64_t i, vmask mask, int32_t dtype) {
  if (dtype == NN_BF16)
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)row + i));
  __m512 wide = _mm512_maskz_loadu_ps(mask, (const float *)row + i);
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(wide));
}

/* ---- packing: out[pairs, width] -------------------------------------------------------------- */

/* Requests a pair of vectors that lie `ahead` bytes behind element i of a row; they need not
 * exist. */
VEC_INLINE void pairs_request(const void *row, int64_t i, int64_t ahead, int32_t dtype) {
  int64_t size = dtype == NN_BF16 ? 2 : 4;
  const char *place = (const char *)((uintptr_t)row + (uintptr_t)(i * size + ahead));
  _mm_prefetch(place, _MM_HINT_T0);
  if (dtype == NN_F32) _mm_prefetch((const char *)((uintptr_t)place + 64), _MM_HINT_T0);
}

/* Rows along the product: transposed in registers, a pair as if it were a float. Stores are whole
 * vectors, as in gemm_pack.c. */
VEC_INLINE void pack_pair_rows(const void *const *row, int64_t rows, int64_t ahead, int64_t width,
                               int64_t k0, int64_t k, int32_t dtype, uint32_t *out) {
  for (int64_t p = 0; p < k; p += PAIR_NUMBERS) {
    vf r[VEC_WIDTH];
    VEC_UNROLL for (int i = 0; i < VEC_WIDTH; i++) {
      r[i] = vf_zero();
      if (i >= rows) continue;
      pairs_request(row[i], k0 + p, ahead, dtype);
      r[i] = _mm512_castsi512_ps(pairs_load(row[i], k0 + p, k - p, dtype));
    }
    vf_transpose(r);
    int64_t steps = vec_min(PAIRS, vec_blocks(k - p, PAIR));
    VEC_UNROLL for (int i = 0; i < VEC_WIDTH; i++)
      if (i < steps) vf_store((float *)out + (p / PAIR + i) * width, r[i]);
  }
}

/* Rows along k: two at a time, number beside number; a vector of columns after the other. */
VEC_INLINE void pack_pair_columns(const gemm_operand_t *operand, int64_t first, int64_t count,
                                  int64_t width, int64_t k0, int64_t k, int32_t dtype,
                                  uint32_t *out) {
  int64_t ahead = GEMM_PACK_STEP * operand->ld * (dtype == NN_BF16 ? 2 : 4);
  for (int64_t q = 0; q < width; q += VEC_WIDTH) {
    vmask there = vf_mask(vec_min(count > q ? count - q : 0, VEC_WIDTH));
    vmask room = vf_mask(vec_min(width - q, VEC_WIDTH));
    uint32_t *to = out + q;
    for (int64_t p = 0; p < k; p += PAIR, to += width) {
      const void *low = gemm_row(operand, k0 + p);
      pairs_request(low, first + q, ahead, dtype);
      __m512i pair = halves_load(low, first + q, there, dtype);
      if (p + 1 < k) {
        const void *high = gemm_row(operand, k0 + p + 1);
        pairs_request(high, first + q, ahead, dtype);
        __m512i upper = _mm512_slli_epi32(halves_load(high, first + q, there, dtype), 16);
        pair = _mm512_or_si512(pair, upper);
      }
      _mm512_mask_storeu_epi32(to, room, pair);
    }
  }
}

/* The same of GEMM_NR columns of bf16 and an even k. */
VEC_INLINE void pack_pair_panel(const gemm_operand_t *operand, int64_t first, int64_t k0, int64_t k,
                                uint32_t *out) {
  int64_t ahead = GEMM_PACK_STEP * operand->ld * 2;
  /* 16-bit lanes i and 32 + i by turns, from i = 0 and from i = 16 on */
  __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i other = _mm512_add_epi32(lane, _mm512_set1_epi32(PAIR_NUMBERS));
  __m512i left = _mm512_or_si512(_mm512_slli_epi32(other, 16), lane);
  __m512i right = _mm512_add_epi32(left, _mm512_set1_epi32(PAIRS << 16 | PAIRS));
  for (int64_t p = 0; p < k; p += PAIR, out += GEMM_NR) {
    const uint16_t *low = gemm_row(operand, k0 + p), *high = gemm_row(operand, k0 + p + 1);
    pairs_request(low, first, ahead, NN_BF16);
    pairs_request(high, first, ahead, NN_BF16);
    __m512i a = _mm512_loadu_si512(low + first), b = _mm512_loadu_si512(high + first);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(a, left, b));
    _mm512_storeu_si512(out + PAIRS, _mm512_permutex2var_epi16(a, right, b));
  }
}

VEC_INLINE void pack_pairs(const gemm_operand_t *operand, int64_t first, int64_t count,
                           int64_t width, int64_t k0, int64_t k, int32_t dtype, uint32_t *out) {
  if (operand->along_k) {
    if (dtype == NN_BF16 && width == GEMM_NR && count == GEMM_NR && k % PAIR == 0)
      pack_pair_panel(operand, first, k0, k, out);
    else
      pack_pair_columns(operand, first, count, width, k0, k, dtype, out);
    return;
  }
  for (int64_t q = 0; q < width; q += VEC_WIDTH) {
    const void *row[VEC_WIDTH];
    int64_t rows = count > q ? gemm_rows(operand, first + q, count - q, row) : 0;
    int64_t ahead = VEC_WIDTH * operand->ld * (dtype == NN_BF16 ? 2 : 4);
    pack_pair_rows(row, rows, ahead, width, k0, k, dtype, out + q);
  }
}

void VEC(gemm_pack_bf16)(const gemm_operand_t *operand, int64_t first, int64_t count,
                         int64_t width, int64_t k0, int64_t k, float *out) {
  if (operand->dtype == NN_BF16)
    pack_pairs(operand, first, count, width, k0, k, NN_BF16, (uint32_t *)out);
  else
    pack_pairs(operand, first, count, width, k0, k, NN_F32, (uint32_t *)out);
}

/* ---- the register kernel --------------------------------------------------------------------- */

VEC_INLINE vf pairs_fma(vf sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

/* Both factors are pairs. */
VEC_INLINE vf kernel_fma(vf a, vf b, vf sum) {
  return pairs_fma(sum, _mm512_castps_si512(b), _mm512_castps_si512(a));
}

VEC_INLINE void kernel(const int rows, const gemm_panels_t *panels, gemm_run_t **runs) {
  gemm_tile(rows, panels, runs, kernel_fma);
}

#define KERNEL(rows) \
  static void kernel_##rows(const gemm_panels_t *panels, gemm_run_t **runs) { \
    kernel(rows, panels, runs); \
  }
KERNEL(1) KERNEL(2) KERNEL(3) KERNEL(4) KERNEL(5) KERNEL(6) KERNEL(7)
KERNEL(8) KERNEL(9) KERNEL(10) KERNEL(11) KERNEL(12) KERNEL(13) KERNEL(14)

static const gemm_kernel_fn kernels[GEMM_MR] = {
    kernel_1, kernel_2, kernel_3,  kernel_4,  kernel_5,  kernel_6,  kernel_7,
    kernel_8, kernel_9, kernel_10, kernel_11, kernel_12, kernel_13, kernel_14,
};

void VEC(gemm_kernel_bf16)(int64_t rows, const gemm_panels_t *panels, gemm_run_t **runs) {
  kernels[rows - 1](panels, runs);
}

/* ---- streaming ------------------------------------------------------------------------------- */

enum {
  STREAM_W = 4,
  STREAM_X = 4,
  STREAM_AHEAD = 8 << 10 /* least bytes to what is requested, whole blocks of STREAM_W rows */
};

/* Adds PAIRS products of pairs of x_rows rows of x with STREAM_W rows of w, and requests as many
 * bytes from each of `asked` lines on. */
VEC_INLINE void stream_step(const int x_rows, const int asked, const int32_t *x, int64_t x_stride,
                            const void *const *w, int64_t p, int64_t left, const uintptr_t *line,
                            vf acc[STREAM_X][STREAM_W]) {
  __m512i v[STREAM_W];
  VEC_UNROLL for (int j = 0; j < STREAM_W; j++) {
    if (j < asked) _mm_prefetch((const char *)(line[j] + (uintptr_t)(p * 2)), _MM_HINT_T1);
    v[j] = pairs_load(w[j], p, left, NN_BF16);
  }
  VEC_UNROLL for (int i = 0; i < STREAM_X; i++) {
    if (i >= x_rows) continue;
    __m512i u = _mm512_loadu_si512((const uint16_t *)(x + i * x_stride) + p);
    VEC_UNROLL for (int j = 0; j < STREAM_W; j++) acc[i][j] = pairs_fma(acc[i][j], v[j], u);
  }
}

/* tile[i, j] for x_rows rows of x and STREAM_W rows of w, in one of `passes` over these: each
 * requests its share of the rows to come, so that memory is not idle while others multiply. */
VEC_INLINE void stream_dots(const int x_rows, const int32_t *x, int64_t x_stride,
                            const void *const *w, int64_t ahead, const int asked, int64_t pass,
                            int64_t passes, int64_t k, float *tile) {
  vf acc[STREAM_X][STREAM_W];
  uintptr_t line[STREAM_W];
  VEC_UNROLL for (int i = 0; i < STREAM_X; i++)
    VEC_UNROLL for (int j = 0; j < STREAM_W; j++) acc[i][j] = vf_zero();
  VEC_UNROLL for (int j = 0; j < STREAM_W; j++) {
    int64_t last = ((pass + 1) * STREAM_W - 1) / passes, row = pass * STREAM_W / passes + j;
    line[j] = (uintptr_t)w[vec_min(row, last)] + (uintptr_t)ahead;
  }
  int64_t p = 0;
  for (; p + PAIR_NUMBERS <= k; p += PAIR_NUMBERS)
    stream_step(x_rows, asked, x, x_stride, w, p, PAIR_NUMBERS, line, acc);
  if (p < k) stream_step(x_rows, asked, x, x_stride, w, p, k - p, line, acc);
  VEC_UNROLL for (int i = 0; i < STREAM_X; i++) {
    if (i >= x_rows) continue;
    _mm_storeu_ps(tile + i * GEMM_NR, vf_sum4(acc[i]));
  }
}

/* The last pass, of 1 to STREAM_X rows. asked: most rows that a pass requests. */
VEC_INLINE void stream_last(int64_t m, const int32_t *x, int64_t x_stride, const void *const *w,
                            int64_t ahead, const int asked, int64_t pass, int64_t k, float *tile) {
  switch (m) {
    case 1: stream_dots(1, x, x_stride, w, ahead, asked, pass, pass + 1, k, tile); break;
    case 2: stream_dots(2, x, x_stride, w, ahead, asked, pass, pass + 1, k, tile); break;
    case 3: stream_dots(3, x, x_stride, w, ahead, asked, pass, pass + 1, k, tile); break;
    default: stream_dots(4, x, x_stride, w, ahead, asked, pass, pass + 1, k, tile); break;
  }
}

static void stream_rows(const int32_t *x, int64_t x_stride, int64_t m, const void *const *w,
                        int64_t ld, int64_t k, float *tile) {
  int64_t block = STREAM_W * ld * 2, passes = vec_blocks(m, STREAM_X), pass = 0;
  int64_t ahead = block * vec_blocks(STREAM_AHEAD, block); /* as of gemm_far, whatever the size */
  if (passes == 1) {
    stream_last(m, x, x_stride, w, ahead, STREAM_W, 0, k, tile);
    return;
  }
  for (; pass < passes - 1; pass++, x += STREAM_X * x_stride, tile += STREAM_X * GEMM_NR)
    stream_dots(STREAM_X, x, x_stride, w, ahead, STREAM_W / 2, pass, passes, k, tile);
  stream_last(m - pass * STREAM_X, x, x_stride, w, ahead, STREAM_W / 2, pass, k, tile);
}

VEC_INLINE vf stream_line(vf acc, const void *x, const void *w, int64_t p, int64_t left,
                          int32_t dtype) {
  __m512i u = _mm512_loadu_si512((const uint16_t *)x + p);
  return pairs_fma(acc, pairs_load(w, p, left, dtype), u);
}

static void stream_lines(const int32_t *x, int64_t x_stride, int64_t m, const void *const *w,
                         int64_t apart, int64_t k, float *tile) {
  const void *row[] = {x, x + (m - 1) * x_stride};
  if (m == 1 && !apart) gemm_lines(1, PAIR_NUMBERS, row, w, 0, k, NN_BF16, stream_line, tile);
  else gemm_lines(2, PAIR_NUMBERS, row, w, apart, k, NN_BF16, stream_line, tile);
}

int64_t VEC(gemm_stream_pairs)(int64_t k) { return vec_round_up(vec_blocks(k, PAIR), PAIRS); }

void VEC(gemm_stream_round)(const gemm_group_t *group, float *x) {
  int64_t stride = VEC(gemm_stream_pairs)(group->k);
  for (int64_t i = 0; i < group->m; i++) {
    const void *row = gemm_row(&group->a, i);
    for (int64_t p = 0; p < group->k; p += PAIR_NUMBERS)
      _mm512_storeu_si512(x + i * stride + p / PAIR,
                          pairs_load(row, p, group->k - p, group->a.dtype));
  }
}

void VEC(gemm_stream_bf16)(const gemm_group_t *group, const float *x, int64_t j, int64_t columns,
                           float *tile) {
  int64_t m = group->m, k = group->k, stride = VEC(gemm_stream_pairs)(k);
  int lines = gemm_by_lines(group, k * 2);
  int64_t apart = lines ? gemm_lines_apart(group) : 0;
  for (int64_t q = 0; q < columns; q += VEC_WIDTH + apart) {
    const void *w[GEMM_NR];
    int64_t rows = gemm_lines_rows(&group->b, j + q, columns - q, w);
    if (apart) gemm_lines_rows(&group->b, j + q + apart, columns - q - apart, w + apart);
    for (int64_t i = 0; i < rows; i += STREAM_W) {
      float *to = tile + q + i;
      if (lines) stream_lines((const int32_t *)x, stride, m, w + i, apart, k, to);
      else stream_rows((const int32_t *)x, stride, m, w + i, group->b.ld, k, to);
    }
  }
}

/* ---- a few dozen rows ------------------------------------------------------------------------ */

/* With m rows a packed weight would be used m times only, which does not pay for packing it. Here
 * the weights stay where they are: the kernel broadcasts pairs of THIN_W of their rows, and the
 * rows of a, packed once for all columns, are the vectors' lanes. A sum is one chain over all of
 * k. */
enum { THIN_W = 8, THIN_ROWS = GEMM_NR };

/* sums[THIN_W][THIN_ROWS] of w_rows rows of w, ld numbers apart, with a packed panel; requests what
 * lies THIN_W rows further. */
VEC_INLINE void thin_dots(const int w_rows, const uint16_t *w, int64_t ld, const int32_t *panel,
                          int64_t k, float *sums) {
  vf acc[THIN_W][2];
  const uint16_t *row[THIN_W];
  VEC_UNROLL for (int i = 0; i < THIN_W; i++) {
    acc[i][0] = acc[i][1] = vf_zero();
    row[i] = w + (i < w_rows ? i : 0) * ld;
  }
  int64_t ahead = THIN_W * ld, p = 0;
  for (; p + PAIR_NUMBERS <= k; p += PAIR_NUMBERS) {
    VEC_UNROLL for (int i = 0; i < THIN_W; i++)
      _mm_prefetch((const char *)((uintptr_t)(row[i] + p) + 2 * (uintptr_t)ahead), _MM_HINT_T1);
    for (int64_t q = p; q < p + PAIR_NUMBERS; q += PAIR, panel += THIN_ROWS) {
      __m512i x0 = _mm512_loadu_si512(panel), x1 = _mm512_loadu_si512(panel + VEC_WIDTH);
      VEC_UNROLL for (int i = 0; i < THIN_W; i++) {
        int32_t pair;
        memcpy(&pair, row[i] + q, sizeof pair);
        __m512i v = _mm512_set1_epi32(pair);
        acc[i][0] = pairs_fma(acc[i][0], x0, v);
        acc[i][1] = pairs_fma(acc[i][1], x1, v);
      }
    }
  }
  for (; p < k; p += PAIR, panel += THIN_ROWS) {
    __m512i x0 = _mm512_loadu_si512(panel), x1 = _mm512_loadu_si512(panel + VEC_WIDTH);
    VEC_UNROLL for (int i = 0; i < THIN_W; i++) {
      int32_t pair = row[i][p];
      if (p + 1 < k) pair |= (int32_t)((uint32_t)row[i][p + 1] << 16);
      __m512i v = _mm512_set1_epi32(pair);
      acc[i][0] = pairs_fma(acc[i][0], x0, v);
      acc[i][1] = pairs_fma(acc[i][1], x1, v);
    }
  }
  VEC_UNROLL for (int i = 0; i < THIN_W; i++) {
    vf_store(sums + i * THIN_ROWS, acc[i][0]);
    vf_store(sums + i * THIN_ROWS + VEC_WIDTH, acc[i][1]);
  }
}

/* Turns sums[GEMM_NR][THIN_ROWS] into tile[THIN_ROWS][GEMM_NR]. */
static void thin_turn(const float *sums, float *tile) {
  for (int64_t c = 0; c < GEMM_NR; c += VEC_WIDTH)
    for (int64_t r = 0; r < THIN_ROWS; r += VEC_WIDTH) {
      vf x[VEC_WIDTH];
      for (int i = 0; i < VEC_WIDTH; i++) x[i] = vf_load(sums + (c + i) * THIN_ROWS + r);
      vf_transpose(x);
      for (int i = 0; i < VEC_WIDTH; i++) vf_store(tile + (r + i) * GEMM_NR + c, x[i]);
    }
}

int64_t VEC(gemm_thin_steps)(int64_t k) { return vec_blocks(k, PAIR) * THIN_ROWS; }

void VEC(gemm_thin_bf16)(const gemm_group_t *group, const float *panel, int64_t j, int64_t columns,
                         float *tile) {
  float sums[GEMM_NR * THIN_ROWS];
  for (int64_t q = 0; q < GEMM_NR; q += VEC_WIDTH) {
    const void *w[VEC_WIDTH];
    int64_t rows = columns > q ? gemm_rows(&group->b, j + q, columns - q, w) : 0;
    for (int64_t i = 0; i < rows; i += THIN_W)
      thin_dots((int)vec_min(rows - i, THIN_W), w[i], group->b.ld, (const int32_t *)panel, group->k,
                sums + (q + i) * THIN_ROWS);
    for (int64_t i = vec_round_up(rows, THIN_W); i < VEC_WIDTH; i++)
      memset(sums + (q + i) * THIN_ROWS, 0, THIN_ROWS * sizeof *sums);
  }
  thin_turn(sums, tile);
}
