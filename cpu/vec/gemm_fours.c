/* The streaming path by fours of k: d[m, GEMM_NR] = x [m, k] . w^T for GEMM_NR rows of w, which
 * are read in place, from memory once: passes of other rows follow each other. A vector of x holds
 * four numbers of each of FOURS_ROWS rows, and four numbers of a row of w are repeated beside them:
 * that leaves fewer sums over lanes than a vector of one row, which where k is short take as long
 * as the products. Each element is the sum of four partial sums of every fourth product in order of
 * k, (0 + 2) + (1 + 3). */
#include "vec/gemm.h"

#if VEC_AVX512
enum {
  FOURS_ROWS = 4,                            /* of x in a vector */
  FOURS_MOST = GEMM_FOURS_ROWS / FOURS_ROWS, /* vectors of x in a pass */
  FOURS_W = GEMM_FOURS_WHOLE,                /* rows of w side by side, */
  FOURS_W_MOST = FOURS_W / 2,                /* beside FOURS_MOST of x: registers are as many */
  FOURS_BLOCKS = 3,                          /* blocks of these from one to what it requests, */
  FOURS_AHEAD = 24 << 10,                    /* or one where that is more than so many bytes */
  FOURS_SUMS = FOURS_MOST * VEC_WIDTH        /* floats from sums of four columns to the next */
};

_Static_assert(FOURS_MOST == 4 && (int)GEMM_FOURS_LEAST > (int)FOURS_ROWS,
               "there are two vectors to four");

/* Fours of lanes change places: four i of x[j] becomes four j of x[i]. */
VEC_INLINE void fours_turn(vf x[FOURS_ROWS]) {
  vf a = _mm512_shuffle_f32x4(x[0], x[1], 0x44), b = _mm512_shuffle_f32x4(x[2], x[3], 0x44);
  vf c = _mm512_shuffle_f32x4(x[0], x[1], 0xee), d = _mm512_shuffle_f32x4(x[2], x[3], 0xee);
  x[0] = _mm512_shuffle_f32x4(a, b, 0x88), x[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
  x[2] = _mm512_shuffle_f32x4(c, d, 0x88), x[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
}

/* Vectors of x for four numbers of k; a panel has them for one four after the other. */
void VEC(gemm_fours_pack)(const gemm_group_t *group, int64_t first, int64_t m, float *panel) {
  int64_t vectors = vec_blocks(m, FOURS_ROWS), step = vectors * VEC_WIDTH;
  for (int64_t i = 0; i < vectors; i++) {
    const float *row[FOURS_ROWS];
    /* What lies beyond the last row is that again: its sums are not used. */
    for (int r = 0; r < FOURS_ROWS; r++)
      row[r] = gemm_row(&group->a, first + vec_min(i * FOURS_ROWS + r, m - 1));
    float *to = panel + i * VEC_WIDTH;
    for (int64_t p = 0; p < group->k; p += VEC_WIDTH) {
      vf x[FOURS_ROWS];
      VEC_UNROLL for (int r = 0; r < FOURS_ROWS; r++) x[r] = vf_load(row[r] + p);
      fours_turn(x);
      VEC_UNROLL for (int r = 0; r < FOURS_ROWS; r++, to += step) vf_store(to, x[r]);
    }
  }
}

/* sums[column / 4, vector of x, 4 rows of x, 4 columns] for so many vectors of x and rows of w, ld
 * apart (constants where this is called). */
VEC_INLINE void fours_dots(const int vectors, const int rows, const float *x, const float *w,
                           int64_t ld, int64_t k, float *sums) {
  const float *fourth[FOURS_W / 4];
  uintptr_t ahead = FOURS_W * (uintptr_t)ld * sizeof(float);
  if (FOURS_BLOCKS * ahead <= FOURS_AHEAD) ahead *= FOURS_BLOCKS;
  vf acc[FOURS_MOST][FOURS_W];
  VEC_UNROLL for (int j = 0; j < FOURS_W / 4; j++) fourth[j] = w + 4 * j * ld;
  VEC_UNROLL for (int j = 0; j < FOURS_W; j++)
    VEC_UNROLL for (int i = 0; i < FOURS_MOST; i++) acc[i][j] = vf_zero();
  for (; k > 0; k -= VEC_WIDTH) {
    VEC_UNROLL for (int j = 0; j < FOURS_W; j++) {
      if (j >= rows) continue;
      _mm_prefetch((const char *)((uintptr_t)(fourth[j / 4] + j % 4 * ld) + ahead), _MM_HINT_T1);
    }
    VEC_UNROLL for (int q = 0; q < VEC_WIDTH; q += 4, x += vectors * VEC_WIDTH) {
      vf u[FOURS_MOST];
      VEC_UNROLL for (int i = 0; i < FOURS_MOST; i++)
        u[i] = i < vectors ? vf_load(x + i * VEC_WIDTH) : vf_zero();
      VEC_UNROLL for (int j = 0; j < FOURS_W; j++) {
        if (j >= rows) continue;
        vf v = _mm512_broadcast_f32x4(_mm_loadu_ps(fourth[j / 4] + j % 4 * ld + q));
        VEC_UNROLL for (int i = 0; i < FOURS_MOST; i++)
          if (i < vectors) acc[i][j] = vf_fma(u[i], v, acc[i][j]);
      }
    }
    VEC_UNROLL for (int j = 0; j < FOURS_W / 4; j++) fourth[j] += VEC_WIDTH;
  }
  VEC_UNROLL for (int i = 0; i < FOURS_MOST; i++)
    VEC_UNROLL for (int j = 0; j < FOURS_W; j += 4)
      if (i < vectors && j < rows)
        vf_store(sums + j / 4 * FOURS_SUMS + i * VEC_WIDTH, vf_sum_fours(&acc[i][j]));
}

typedef void (*fours_fn)(const float *x, const float *w, int64_t ld, int64_t k, float *sums);

static void fours_two(const float *x, const float *w, int64_t ld, int64_t k, float *sums) {
  fours_dots(2, FOURS_W, x, w, ld, k, sums);
}
static void fours_three(const float *x, const float *w, int64_t ld, int64_t k, float *sums) {
  fours_dots(3, FOURS_W, x, w, ld, k, sums);
}
static void fours_most(const float *x, const float *w, int64_t ld, int64_t k, float *sums) {
  fours_dots(FOURS_MOST, FOURS_W_MOST, x, w, ld, k, sums);
}

/* What the next tile writes may have to come from far, too. */
VEC_INLINE void fours_store(float *to, vf x) {
  vf_store(to, x);
  _mm_prefetch((const char *)((uintptr_t)to + GEMM_NR * sizeof *to), _MM_HINT_T0);
}

void VEC(gemm_fours)(const gemm_group_t *group, int64_t m, const float *panel, int64_t j,
                     int64_t columns, float *d, int64_t ldd) {
  float sums[FOURS_ROWS * FOURS_SUMS];
  int64_t vectors = vec_blocks(m, FOURS_ROWS), ld = group->b.ld;
  int64_t rows = vectors == FOURS_MOST ? FOURS_W_MOST : FOURS_W;
  fours_fn dots = vectors == 2 ? fours_two : vectors == 3 ? fours_three : fours_most;
  for (int64_t q = 0; q < columns; q += VEC_WIDTH) {
    int64_t even;
    const float *w = gemm_even_rows(&group->b, j + q, &even);
    even = vec_min(vec_min(even, columns - q), VEC_WIDTH);
    for (int64_t i = 0; i < even; i += rows)
      dots(panel, w + i * ld, ld, group->k, sums + i / 4 * FOURS_SUMS);
    float *to = d + q;
    for (int64_t i = 0, left = m; even > 0 && i < vectors; i++, left -= FOURS_ROWS) {
      vf x[FOURS_ROWS];
      VEC_UNROLL for (int r = 0; r < FOURS_ROWS; r++)
        x[r] = vf_load(sums + r * FOURS_SUMS + i * VEC_WIDTH);
      fours_turn(x);
      VEC_UNROLL for (int r = 0; r < FOURS_ROWS; r++, to += ldd)
        if (r < left) fours_store(to, x[r]);
    }
  }
}
#endif
