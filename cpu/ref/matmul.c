/* Matrix product d = epilogue(alpha (op(a) op(b) + bias) + c); assigns. A product is cut into tiles
 * of d, each the work of one thread; k is walked in order, in chunks that are first widened to
 * double and packed. */
#include <math.h>

#include "ref.h"

enum {
  MATMUL_CHUNK = 64, /* of k */
  MATMUL_BLOCK = 4   /* rows and columns summed in registers */
};

double ref_dot(const float *a, const float *b, int64_t n) {
  double part[8] = {0};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int l = 0; l < 8; l++) part[l] += (double)a[i + l] * b[i + l];
  for (int l = 0; i < n; i++, l++) part[l] += (double)a[i] * b[i];
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

/* out[c][l] = element (first + l, k + c) of m for l < lanes, c < chunk; the rest of width lanes are
 * zero. first counts m's rows, or its columns where m is the right-hand factor (by_row = 0). */
static void matmul_pack(double *out, int64_t width, const ref_matrix_t *m, int by_row,
                        int64_t first, int64_t lanes, int64_t k, int64_t chunk) {
  for (int64_t l = 0; l < width; l++) {
    for (int64_t c = 0; c < chunk; c++) {
      if (l >= lanes) {
        out[c * width + l] = 0;
        continue;
      }
      int64_t i = by_row ? first + l : k + c, j = by_row ? k + c : first + l;
      if (m->index) i = m->index[i];
      out[c * width + l] = ref_load(m->data, m->dtype, m->at + i * m->row + j * m->col);
    }
  }
}

/* Adds the product of packed chunks to one block of the tile. */
static void matmul_block(ref_tile_t *tile, const double *a, const double *b, int64_t chunk,
                         int64_t i, int64_t j) {
  double sum[MATMUL_BLOCK][MATMUL_BLOCK];
  for (int r = 0; r < MATMUL_BLOCK; r++)
    for (int c = 0; c < MATMUL_BLOCK; c++) sum[r][c] = tile->sum[i + r][j + c];
  for (int64_t p = 0; p < chunk; p++) {
    const double *x = a + p * REF_TILE_ROWS + i, *y = b + p * REF_TILE_COLS + j;
    for (int r = 0; r < MATMUL_BLOCK; r++)
      for (int c = 0; c < MATMUL_BLOCK; c++) sum[r][c] += x[r] * y[c];
  }
  for (int r = 0; r < MATMUL_BLOCK; r++)
    for (int c = 0; c < MATMUL_BLOCK; c++) tile->sum[i + r][j + c] = sum[r][c];
}

void ref_tile_add(ref_tile_t *tile, const ref_matrix_t *a, const ref_matrix_t *b, int64_t m,
                  int64_t n, int64_t k, int64_t i, int64_t j) {
  double a_packed[MATMUL_CHUNK * REF_TILE_ROWS], b_packed[MATMUL_CHUNK * REF_TILE_COLS];
  int64_t rows = ref_min(m - i, REF_TILE_ROWS), cols = ref_min(n - j, REF_TILE_COLS);
  for (int64_t p = 0; p < k; p += MATMUL_CHUNK) {
    int64_t chunk = ref_min(k - p, MATMUL_CHUNK);
    matmul_pack(a_packed, REF_TILE_ROWS, a, 1, i, rows, p, chunk);
    matmul_pack(b_packed, REF_TILE_COLS, b, 0, j, cols, p, chunk);
    for (int64_t r = 0; r < rows; r += MATMUL_BLOCK)
      for (int64_t c = 0; c < cols; c += MATMUL_BLOCK)
        matmul_block(tile, a_packed, b_packed, chunk, r, c);
  }
}

void ref_tile_assign(const ref_tile_t *tile, const ref_place_t *out, int64_t m, int64_t n,
                     int64_t i, int64_t j) {
  int64_t rows = ref_min(m - i, REF_TILE_ROWS), cols = ref_min(n - j, REF_TILE_COLS);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c++)
      ref_store(out->data, out->dtype, out->at + (i + r) * out->row + (j + c) * out->col,
                (float)tile->sum[r][c]);
}

void ref_tile_accumulate(const ref_tile_t *tile, const ref_place_t *out, int64_t m, int64_t n,
                         int64_t i, int64_t j) {
  int64_t rows = ref_min(m - i, REF_TILE_ROWS), cols = ref_min(n - j, REF_TILE_COLS);
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < cols; c++) {
      int64_t at = out->at + (i + r) * out->row + (j + c) * out->col;
      double before = ref_load(out->data, out->dtype, at);
      ref_store(out->data, out->dtype, at, (float)(before + tile->sum[r][c]));
    }
  }
}

/* tanh's argument in the approximation of GELU, and its derivative. */
static double gelu_inner(double x) { return 0.7978845608028654 * (x + 0.044715 * x * x * x); }

static double gelu(double x) { return 0.5 * x * (1 + tanh(gelu_inner(x))); }

static double gelu_slope(double x) {
  double t = tanh(gelu_inner(x)), inner = 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner;
}

static void matmul_store(const op_matmul_t *op, double value, int64_t i, int64_t j) {
  if (op->bias) value += ref_load(op->bias, op->b_dtype, j);
  value *= backend_factor(op->alpha);
  if (op->c) value += ref_load(op->c, op->d_dtype, i * op->ldc + j);
  int64_t at = i * op->ldd + j;
  if (op->epilogue == MATMUL_GELU) {
    if (op->aux) ref_store(op->aux, op->d_dtype, at, (float)value);
    value = gelu(value);
  } else if (op->epilogue == MATMUL_GELU_BWD) {
    value *= gelu_slope(ref_load(op->aux, op->d_dtype, at));
  }
  ref_store(op->d, op->d_dtype, at, (float)value);
}

static void matmul_tile(void *context, int64_t item, int32_t thread) {
  const op_matmul_t *op = context;
  (void)thread;
  int64_t across = ref_blocks(op->n, REF_TILE_COLS);
  int64_t i = item / across * REF_TILE_ROWS, j = item % across * REF_TILE_COLS;
  ref_matrix_t a = {.data = op->a, .dtype = op->a_dtype, .row = op->lda, .col = 1};
  ref_matrix_t b = {.data = op->b, .dtype = op->b_dtype, .row = op->ldb, .col = 1};
  if (op->trans_a) a.row = 1, a.col = op->lda;
  if (op->trans_b) b.row = 1, b.col = op->ldb;
  ref_tile_t tile = {{{0}}};
  ref_tile_add(&tile, &a, &b, op->m, op->n, op->k, i, j);
  int64_t rows = ref_min(op->m - i, REF_TILE_ROWS), cols = ref_min(op->n - j, REF_TILE_COLS);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c++) matmul_store(op, tile.sum[r][c], i + r, j + c);
}

nn_status_t ref_matmul(backend_device_t *device, const op_matmul_t *op, backend_scratch_t scratch) {
  (void)scratch;
  int64_t items = ref_blocks(op->m, REF_TILE_ROWS) * ref_blocks(op->n, REF_TILE_COLS);
  return pool_run(device->pool, items, matmul_tile, (void *)op);
}
