/* Embedding, norms, matrix products, column sums, rotary positions and the cache's store on a GPU,
 * against the CPU: small odd shapes, and those of a model of 768. */
#include <math.h>

#include "gpu.h"
#include "select.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* ---- embedding ---- */

typedef struct embed_case {
  int64_t n, hidden, vocab, context;
  int32_t positions; /* 1: with wpe */
} embed_case_t;

static const embed_case_t embed_cases[] = {
    {1, 8, 3, 4, 1},      {33, 770, 50, 40, 1},    {300, 768, 1000, 64, 0},
    {1000, 5, 7, 16, 1},  {4096, 768, 5, 1024, 1}, /* every id hundreds of times */
    {2048, 64, 32000, 1, 0},
};

static void check_embed(const embed_case_t *c, float alpha, int32_t dtype) {
  int64_t h = c->hidden;
  if (gpu_leaves(dtype, (double)(c->n * h))) return;
  gpu_begin(dtype, (backend_limits_t){.rows = c->n, .hidden = h, .vocab = c->vocab, .training = 1},
            "embed n %lld hidden %lld vocab %lld alpha %g", (long long)c->n, (long long)h,
            (long long)c->vocab, (double)alpha);
  gpu_tensor_t *ids = gpu_ints(gpu_indices(c->n, c->vocab, 1), c->n);
  gpu_tensor_t *position = gpu_ints(gpu_indices(c->n, c->context, 2), c->n);
  gpu_tensor_t *wte = gpu_in(c->vocab * h, 1, 0, 3);
  gpu_tensor_t *wpe = c->positions ? gpu_in(c->context * h, 1, 0, 4) : NULL;
  gpu_tensor_t *dwpe = c->positions ? gpu_sum(GPU_F32, c->context * h, 5) : NULL;
  gpu_tensor_t *out = gpu_out(GPU_ACT, c->n * h), *dout = gpu_in(c->n * h, 1, 0, 6);
  gpu_tensor_t *dwte = gpu_sum(GPU_F32, c->vocab * h, 7);
  op_embed_t op[GPU_SIDES];
  op_embed_bwd_t bwd[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++) {
    op[s] = (op_embed_t){.n = c->n,
                         .hidden = h,
                         .ids = gpu_at(ids, s, 0),
                         .position = gpu_at(position, s, 0),
                         .wte = gpu_at(wte, s, 0),
                         .wpe = gpu_at(wpe, s, 0),
                         .weight_dtype = gpu_dtype(s),
                         .act_dtype = gpu_dtype(s),
                         .alpha = alpha,
                         .out = gpu_at(out, s, 0)};
    bwd[s] = (op_embed_bwd_t){.n = c->n,
                              .hidden = h,
                              .vocab = c->vocab,
                              .context = c->context,
                              .ids = gpu_at(ids, s, 0),
                              .position = gpu_at(position, s, 0),
                              .act_dtype = gpu_dtype(s),
                              .dout = gpu_at(dout, s, 0),
                              .alpha = alpha,
                              .dwte = gpu_at(dwte, s, 0),
                              .dwpe = gpu_at(dwpe, s, 0)};
  }
  GPU_RUN(embed, op);
  gpu_check(out, "out", h, gpu_bound(1, 1));
  GPU_RUN(embed_bwd, bwd);
  gpu_check(dwte, "dwte", h, gpu_bound_f32(c->n));
  if (dwpe) gpu_check(dwpe, "dwpe", h, gpu_bound_f32(c->n));
  gpu_end();
}

static void test_embed(void **state) {
  (void)state;
  for (size_t i = 0; i < 4 * LENGTH(embed_cases); i++)
    check_embed(&embed_cases[i / 4], i / 2 % 2 ? 12.5f : 0, gpu_dtypes[i % 2]);
}

/* ---- norm ---- */

typedef struct norm_tensors {
  gpu_tensor_t *x, *w, *b, *y, *mean, *rstd;
} norm_tensors_t;

static void check_norm_forward(const norm_tensors_t *t, int64_t n, int64_t hidden, int32_t kind) {
  op_norm_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++)
    op[s] = (op_norm_t){.n = n,
                        .hidden = hidden,
                        .kind = kind,
                        .eps = 1e-5f,
                        .x = gpu_at(t->x, s, 0),
                        .w = gpu_at(t->w, s, 0),
                        .b = gpu_at(t->b, s, 0),
                        .weight_dtype = gpu_dtype(s),
                        .act_dtype = gpu_dtype(s),
                        .y = gpu_at(t->y, s, 0),
                        .mean = gpu_at(t->mean, s, 0),
                        .rstd = gpu_at(t->rstd, s, 0)};
  GPU_RUN(norm, op);
  gpu_check(t->y, "y", hidden, gpu_bound(1, hidden));
  gpu_check(t->rstd, "rstd", 1, gpu_bound_f32(hidden));
  if (t->mean) gpu_check(t->mean, "mean", 1, gpu_bound_f32(hidden));
  for (int s = 0; s < GPU_SIDES; s++) op[s].mean = op[s].rstd = NULL;
  GPU_RUN(norm, op);
  gpu_check(t->y, "y without statistics", hidden, gpu_bound(1, hidden));
}

/* A side's operation, but for its sizes and kind. */
static op_norm_bwd_t norm_backward(const norm_tensors_t *t, int side, const gpu_tensor_t *dy,
                                   const gpu_tensor_t *dx, const gpu_tensor_t *dw) {
  return (op_norm_bwd_t){.x = gpu_at(t->x, side, 0),
                         .dy = gpu_at(dy, side, 0),
                         .w = gpu_at(t->w, side, 0),
                         .weight_dtype = gpu_dtype(side),
                         .act_dtype = gpu_dtype(side),
                         .mean = gpu_at(t->mean, side, 0),
                         .rstd = gpu_at(t->rstd, side, 0),
                         .dx = gpu_at(dx, side, 0),
                         .dw = gpu_at(dw, side, 0)};
}

static void check_norm_backward(const norm_tensors_t *t, int64_t n, int64_t hidden, int32_t kind) {
  gpu_tensor_t *dy = gpu_in(n * hidden, 1, 0.1, 14), *dx = gpu_sum(GPU_ACT, n * hidden, 15);
  gpu_tensor_t *dw = gpu_sum(GPU_F32, hidden, 16);
  gpu_tensor_t *db = t->b ? gpu_sum(GPU_F32, hidden, 17) : NULL;
  op_norm_bwd_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++) {
    op[s] = norm_backward(t, s, dy, dx, dw);
    op[s].n = n, op[s].hidden = hidden, op[s].kind = kind;
    op[s].db = gpu_at(db, s, 0);
  }
  GPU_RUN(norm_bwd, op);
  gpu_check(dx, "dx", hidden, gpu_bound(1, hidden));
  gpu_check(dw, "dw", hidden, gpu_bound_f32(n));
  if (db) gpu_check(db, "db", hidden, gpu_bound_f32(n));
}

static void check_norm(int64_t n, int64_t hidden, int32_t kind, int32_t dtype) {
  if (gpu_leaves(dtype, (double)(n * hidden))) return;
  int layer = kind == NN_NORM_LAYER;
  gpu_begin(dtype, (backend_limits_t){.rows = n, .hidden = hidden, .training = 1},
            "%s norm n %lld hidden %lld", layer ? "layer" : "RMS", (long long)n, (long long)hidden);
  norm_tensors_t t = {.x = gpu_in(n * hidden, 2, 0.5, 11),
                      .w = gpu_in(hidden, 0.5, 1, 12),
                      .b = layer ? gpu_in(hidden, 1, 0, 13) : NULL,
                      .y = gpu_out(GPU_ACT, n * hidden),
                      .mean = layer ? gpu_out(GPU_F32, n) : NULL,
                      .rstd = gpu_out(GPU_F32, n)};
  check_norm_forward(&t, n, hidden, kind);
  gpu_tensor_t **statistic[] = {&t.mean, &t.rstd};
  for (int i = layer ? 0 : 1; i < 2; i++) {
    float *values = gpu_memory(n, sizeof *values);
    for (int64_t r = 0; r < n; r++) {
      double sum = 0, square = 0;
      for (int64_t c = 0; c < hidden; c++) sum += gpu_value(t.x, GPU_CPU, r * hidden + c);
      double mean = layer ? sum / (double)hidden : 0;
      for (int64_t c = 0; c < hidden; c++)
        square += pow(gpu_value(t.x, GPU_CPU, r * hidden + c) - mean, 2);
      values[r] = (float)(i ? 1 / sqrt(square / (double)hidden + 1e-5) : mean);
    }
    *statistic[i] = gpu_tensor(GPU_F32, GPU_READ, values, n);
  }
  check_norm_backward(&t, n, hidden, kind);
  gpu_end();
}

static void test_norm(void **state) {
  (void)state;
  static const int64_t rows[] = {1, 33, 2048}, widths[] = {8, 64, 768, 770};
  static const int32_t kinds[] = {NN_NORM_RMS, NN_NORM_LAYER};
  for (size_t i = 0; i < LENGTH(rows); i++)
    for (size_t j = 0; j < LENGTH(widths); j++)
      for (int k = 0; k < 4; k++) check_norm(rows[i], widths[j], kinds[k / 2], gpu_dtypes[k % 2]);
}

/* ---- norm of a row's groups ---- */

typedef struct groups_case {
  int64_t n, groups, hidden, pad; /* pad: elements between rows */
} groups_case_t;

static const groups_case_t groups_cases[] = {
    {1, 12, 128, 640},  {77, 16, 64, 0},     {33, 3, 64, 64}, {2000, 4, 128, 128},
    {19, 2, 256, 256},  {5, 1, 2048, 512},   {33, 3, 20, 5},  {7, 2, 770, 6},
    {1, 1, 128, 0},     {3, 5, 8, 8},        {40, 1, 768, 8}, {9, 1, 1024, 1024},
};

static void check_groups_forward(const norm_tensors_t *t, const groups_case_t *c, int32_t kind) {
  int64_t ld = c->groups * c->hidden + c->pad;
  op_norm_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++)
    op[s] = (op_norm_t){.n = c->n,
                        .hidden = c->hidden,
                        .groups = c->groups,
                        .ldx = ld,
                        .ldy = ld,
                        .kind = kind,
                        .eps = 1e-6f,
                        .x = gpu_at(t->x, s, 0),
                        .w = gpu_at(t->w, s, 0),
                        .weight_dtype = gpu_dtype(s),
                        .act_dtype = gpu_dtype(s),
                        .y = gpu_at(t->y, s, 0),
                        .mean = gpu_at(t->mean, s, 0),
                        .rstd = gpu_at(t->rstd, s, 0)};
  GPU_RUN(norm, op);
  gpu_check_rows(t->y, "y", 0, c->n, c->groups * c->hidden, ld, gpu_bound(1, c->hidden));
  gpu_check_gaps(t->y, "y", c->groups * c->hidden, ld);
  gpu_check(t->rstd, "rstd", 1, gpu_bound_f32(c->hidden));
}

/* What the reference has computed, for both sides to read; NULL of NULL. */
static gpu_tensor_t *reference_of(const gpu_tensor_t *tensor, int64_t count) {
  if (!tensor) return NULL;
  float *values = gpu_memory(count, sizeof *values);
  for (int64_t i = 0; i < count; i++) values[i] = (float)gpu_value(tensor, GPU_CPU, i);
  return gpu_tensor(GPU_F32, GPU_READ, values, count);
}

/* dx is added to, then assigned in the place of its dy. */
static void check_groups_backward(const norm_tensors_t *t, const groups_case_t *c, int32_t kind) {
  int64_t ld = c->groups * c->hidden + c->pad;
  gpu_tensor_t *dx = gpu_sum(GPU_ACT, c->n * ld, 64), *dw = gpu_sum(GPU_F32, c->hidden, 65);
  for (int32_t assign = 0; assign < 2; assign++) {
    gpu_tensor_t *dy = assign ? dx : gpu_in(c->n * ld, 1, 0.1, 66);
    op_norm_bwd_t op[GPU_SIDES];
    for (int s = 0; s < GPU_SIDES; s++) {
      op[s] = norm_backward(t, s, dy, dx, dw);
      op[s].n = c->n, op[s].hidden = c->hidden, op[s].kind = kind;
      op[s].groups = c->groups, op[s].ldx = op[s].ldy = ld, op[s].assign = assign;
    }
    GPU_RUN(norm_bwd, op);
    gpu_check_rows(dx, assign ? "dx in place" : "dx", 0, c->n, c->groups * c->hidden, ld,
                   gpu_bound(1, c->hidden));
    gpu_check_gaps(dx, "dx", c->groups * c->hidden, ld);
    gpu_check(dw, "dw", c->hidden, gpu_bound_f32(c->n * c->groups));
  }
}

/* As on queries among keys and values. */
static void check_groups(const groups_case_t *c, int32_t kind, int32_t dtype) {
  int64_t ld = c->groups * c->hidden + c->pad, count = c->n * c->groups;
  if (gpu_leaves(dtype, (double)(c->n * ld))) return;
  gpu_begin(dtype, (backend_limits_t){.rows = c->n, .hidden = ld, .training = 1},
            "norm kind %d n %lld groups %lld hidden %lld pad %lld", kind, (long long)c->n,
            (long long)c->groups, (long long)c->hidden, (long long)c->pad);
  norm_tensors_t t = {.x = gpu_in(c->n * ld, 2, 0.5, 61),
                      .w = gpu_in(c->hidden, 0.5, 1, 62),
                      .y = gpu_sum(GPU_ACT, c->n * ld, 63),
                      .mean = kind == NN_NORM_LAYER ? gpu_out(GPU_F32, count) : NULL,
                      .rstd = gpu_out(GPU_F32, count)};
  check_groups_forward(&t, c, kind);
  t.mean = reference_of(t.mean, count), t.rstd = reference_of(t.rstd, count);
  check_groups_backward(&t, c, kind);
  gpu_end();
}

static void test_norm_groups(void **state) {
  (void)state;
  static const int32_t kinds[] = {NN_NORM_RMS, NN_NORM_LAYER};
  for (size_t i = 0; i < 4 * LENGTH(groups_cases); i++)
    check_groups(&groups_cases[i / 4], kinds[i / 2 % 2], gpu_dtypes[i % 2]);
}

/* ---- matrix product ---- */

enum { NT, NN, TN, TT };
enum { NO_C, RESIDUAL, IN_PLACE };

typedef struct matmul_case {
  int64_t m, n, k;
  int32_t layout, bias, c, wide; /* wide: d is fp32 */
  int32_t epilogue, aux;
  int64_t pad; /* elements between rows, beyond their length */
} matmul_case_t;

static const matmul_case_t matmul_cases[] = {
    /* a linear layer over few and many rows */
    {1, 768, 768, NT, 0, NO_C, 0, MATMUL_NONE, 0, 0},
    {3, 768, 768, NT, 1, RESIDUAL, 0, MATMUL_NONE, 0, 0},
    {8, 896, 768, NT, 0, NO_C, 0, MATMUL_NONE, 0, 0},
    {17, 768, 768, NT, 0, RESIDUAL, 0, MATMUL_NONE, 0, 0},
    {256, 896, 768, NT, 1, NO_C, 0, MATMUL_NONE, 0, 0},
    {256, 768, 768, NT, 0, IN_PLACE, 0, MATMUL_NONE, 0, 0},
    {8, 1000, 768, NT, 0, NO_C, 1, MATMUL_NONE, 0, 0}, /* logits */
    {1, 32000, 768, NT, 0, NO_C, 1, MATMUL_NONE, 0, 0},
    {9, 32000, 64, NT, 0, NO_C, 1, MATMUL_NONE, 0, 0},
    /* rows of few elements, and rows that no vector is aligned to */
    {1, 1, 1, NT, 0, NO_C, 0, MATMUL_NONE, 0, 0},
    {5, 7, 9, NT, 1, RESIDUAL, 0, MATMUL_NONE, 0, 0},
    {3, 33, 65, NT, 1, NO_C, 1, MATMUL_NONE, 0, 1},
    {17, 129, 770, NT, 1, RESIDUAL, 0, MATMUL_NONE, 0, 3},
    {8, 770, 770, NT, 0, NO_C, 0, MATMUL_NONE, 0, 0},
    {131, 257, 99, NT, 0, IN_PLACE, 0, MATMUL_NONE, 0, 5},
    {256, 768, 768, NT, 1, RESIDUAL, 0, MATMUL_NONE, 0, 128}, /* aligned, with room between */
    /* dx = dy w */
    {1, 768, 896, NN, 0, NO_C, 0, MATMUL_NONE, 0, 0},
    {3, 768, 768, NN, 0, RESIDUAL, 0, MATMUL_NONE, 0, 0},
    {256, 768, 896, NN, 0, IN_PLACE, 0, MATMUL_NONE, 0, 0},
    {17, 33, 21, NN, 0, NO_C, 0, MATMUL_NONE, 0, 2},
    /* dw += dy^T x */
    {768, 768, 1, TN, 0, IN_PLACE, 1, MATMUL_NONE, 0, 0},
    {896, 768, 256, TN, 0, IN_PLACE, 1, MATMUL_NONE, 0, 0},
    {768, 768, 2000, TN, 0, IN_PLACE, 1, MATMUL_NONE, 0, 0},
    {33, 21, 17, TN, 0, IN_PLACE, 1, MATMUL_NONE, 0, 1},
    {768, 896, 17, TN, 0, NO_C, 0, MATMUL_NONE, 0, 0},
    {20, 30, 40, TT, 0, NO_C, 0, MATMUL_NONE, 0, 0},
    /* the inner layer of a dense block and its way back */
    {1, 3072, 768, NT, 1, NO_C, 0, MATMUL_GELU, 0, 0},
    {8, 3072, 768, NT, 1, NO_C, 0, MATMUL_GELU, 1, 0},
    {256, 3072, 768, NT, 1, NO_C, 0, MATMUL_GELU, 1, 0},
    {17, 33, 65, NT, 1, NO_C, 0, MATMUL_GELU, 1, 3},
    {5, 770, 99, NT, 0, NO_C, 0, MATMUL_GELU, 0, 0},
    {256, 3072, 768, NN, 0, NO_C, 0, MATMUL_GELU_BWD, 1, 0},
    {3, 33, 65, NN, 0, NO_C, 0, MATMUL_GELU_BWD, 1, 3},
};

typedef struct matmul_tensors {
  gpu_tensor_t *a, *b, *bias, *c, *d, *aux;
  int64_t lda, ldb, ldd;
} matmul_tensors_t;

static matmul_tensors_t matmul_make(const matmul_case_t *c) {
  int trans_a = c->layout == TN || c->layout == TT, trans_b = c->layout == NT || c->layout == TT;
  matmul_tensors_t t = {.lda = (trans_a ? c->m : c->k) + c->pad,
                        .ldb = (trans_b ? c->k : c->n) + c->pad,
                        .ldd = c->n + c->pad};
  gpu_kind_t kind = c->wide ? GPU_F32 : GPU_ACT;
  double of_sum = 3 / sqrt((double)c->k); /* elements of the product are of order 1 */
  t.a = gpu_in((trans_a ? c->k : c->m) * t.lda, 1, 0, 21);
  t.b = gpu_in((trans_b ? c->n : c->k) * t.ldb, of_sum, 0, 22);
  if (c->bias) t.bias = gpu_in(c->n, 1, 0, 23);
  t.d = c->c == IN_PLACE ? gpu_sum(kind, c->m * t.ldd, 24) : gpu_out(kind, c->m * t.ldd);
  if (c->c == RESIDUAL)
    t.c = gpu_tensor(kind, GPU_READ, gpu_uniform(c->m * t.ldd, 1, 0, 25), c->m * t.ldd);
  if (c->c == IN_PLACE) t.c = t.d;
  if (!c->aux) return t;
  if (c->epilogue == MATMUL_GELU_BWD) t.aux = gpu_in(c->m * t.ldd, 3, 0, 26);
  else t.aux = gpu_out(kind, c->m * t.ldd);
  return t;
}

static void check_matmul(const matmul_case_t *c, float alpha, int32_t dtype) {
  if (!select_case((double)(c->m * c->n * c->k))) return;
  int64_t most = c->m > c->n ? c->m : c->n;
  if (c->k > most) most = c->k;
  gpu_begin(dtype, (backend_limits_t){.rows = most, .hidden = most, .ffn = most, .training = 1},
            "matmul %lld x %lld x %lld, layout %d, bias %d, c %d, wide %d, epilogue %d, pad %lld, "
            "alpha %g",
            (long long)c->m, (long long)c->n, (long long)c->k, c->layout, c->bias, c->c, c->wide,
            c->epilogue, (long long)c->pad, (double)alpha);
  matmul_tensors_t t = matmul_make(c);
  op_matmul_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++)
    op[s] = (op_matmul_t){.m = c->m,
                          .n = c->n,
                          .k = c->k,
                          .trans_a = c->layout == TN || c->layout == TT,
                          .trans_b = c->layout == NT || c->layout == TT,
                          .a = gpu_at(t.a, s, 0),
                          .lda = t.lda,
                          .b = gpu_at(t.b, s, 0),
                          .ldb = t.ldb,
                          .a_dtype = gpu_dtype(s),
                          .b_dtype = gpu_dtype(s),
                          .alpha = alpha,
                          .bias = gpu_at(t.bias, s, 0),
                          .c = gpu_at(t.c, s, 0),
                          .ldc = t.ldd,
                          .d = gpu_at(t.d, s, 0),
                          .ldd = t.ldd,
                          .d_dtype = c->wide ? NN_F32 : gpu_dtype(s),
                          .epilogue = c->epilogue,
                          .aux = gpu_at(t.aux, s, 0)};
  GPU_RUN(matmul, op);
  /* d is rounded once; an epilogue, or a bias beside a factor, may work on a product that was
   * itself stored */
  int roundings = 1 + (c->epilogue != MATMUL_NONE) + (alpha != 0 && c->bias);
  double bound = c->wide ? gpu_bound_f32(c->k) : gpu_bound(roundings, c->k);
  gpu_check_rows(t.d, "d", 0, c->m, c->n, t.ldd, bound);
  gpu_check_gaps(t.d, "d", c->n, t.ldd);
  if (c->aux && c->epilogue == MATMUL_GELU) {
    gpu_check_rows(t.aux, "aux", 0, c->m, c->n, t.ldd,
                   gpu_bound(1 + (alpha != 0 && c->bias), c->k));
    gpu_check_gaps(t.aux, "aux", c->n, t.ldd);
  }
  gpu_end();
}

static void test_matmul(void **state) {
  (void)state;
  for (size_t i = 0; i < 4 * LENGTH(matmul_cases); i++)
    check_matmul(&matmul_cases[i / 4], i / 2 % 2 ? 0.22f : 0, gpu_dtypes[i % 2]);
}

static void check_column_sum(int64_t n, int64_t width, int64_t pad, float alpha, int32_t dtype) {
  if (gpu_leaves(dtype, (double)(n * width))) return;
  gpu_begin(dtype, (backend_limits_t){.rows = n, .hidden = width, .training = 1},
            "column_sum n %lld width %lld pad %lld", (long long)n, (long long)width,
            (long long)pad);
  gpu_tensor_t *x = gpu_in(n * (width + pad), 1, 0.1, 31), *out = gpu_sum(GPU_F32, width, 32);
  op_column_sum_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++)
    op[s] = (op_column_sum_t){.n = n,
                              .width = width,
                              .act_dtype = gpu_dtype(s),
                              .alpha = alpha,
                              .x = gpu_at(x, s, 0),
                              .ldx = width + pad,
                              .out = gpu_at(out, s, 0)};
  GPU_RUN(column_sum, op);
  gpu_check(out, "out", width, gpu_bound_f32(n));
  gpu_end();
}

static void test_column_sum(void **state) {
  (void)state;
  static const int64_t rows[] = {1, 33, 4096}, widths[] = {5, 768, 770, 3072};
  for (size_t i = 0; i < LENGTH(rows); i++)
    for (size_t j = 0; j < LENGTH(widths); j++)
      for (int k = 0; k < 4; k++)
        check_column_sum(rows[i], widths[j], k / 2 * 3, k / 2 ? 0.22f : 0, gpu_dtypes[k % 2]);
}

/* ---- rotary positions and the cache ---- */

typedef struct rope_shape {
  int64_t heads, pad;
  int32_t interleaved, part; /* part: half of a head is turned, where that is a pair */
} rope_shape_t;

static void check_rope(int64_t n, const rope_shape_t *shape, int64_t head_dim, int32_t dtype) {
  enum { POSITIONS = 600 };
  int64_t heads = shape->heads, pad = shape->pad, dim = head_dim;
  if (shape->part && head_dim > 2) dim /= 2;
  if (gpu_leaves(dtype, (double)(n * heads * head_dim))) return;
  gpu_begin(dtype,
            (backend_limits_t){.rows = n, .heads = heads, .head_dim = head_dim, .training = 1},
            "rope n %lld heads %lld dim %lld pad %lld interleaved %d part %d", (long long)n,
            (long long)heads, (long long)head_dim, (long long)pad, shape->interleaved, shape->part);
  int64_t ld = heads * head_dim + pad;
  float *table = gpu_memory(POSITIONS * dim, sizeof *table);
  for (int64_t i = 0; i < POSITIONS * dim; i++) {
    double angle = (double)(i / dim) * pow(10000, -2.0 * (double)(i % (dim / 2)) / (double)dim);
    table[i] = (float)(i % dim < dim / 2 ? cos(angle) : sin(angle));
  }
  gpu_tensor_t *turns = gpu_tensor(GPU_F32, GPU_READ, table, POSITIONS * dim);
  gpu_tensor_t *position = gpu_ints(gpu_indices(n, POSITIONS, 41), n);
  gpu_tensor_t *x = gpu_sum(GPU_ACT, n * ld, 42);
  for (int32_t inverse = 0; inverse < 2; inverse++) {
    op_rope_t op[GPU_SIDES];
    for (int s = 0; s < GPU_SIDES; s++)
      op[s] = (op_rope_t){.n = n,
                          .heads = heads,
                          .head_dim = head_dim,
                          .rotary_dim = dim == head_dim ? 0 : dim,
                          .interleaved = shape->interleaved,
                          .act_dtype = gpu_dtype(s),
                          .x = gpu_at(x, s, 0),
                          .ldx = ld,
                          .position = gpu_at(position, s, 0),
                          .table = gpu_at(turns, s, 0),
                          .inverse = inverse};
    GPU_RUN(rope, op);
    gpu_check_rows(x, inverse ? "x turned back" : "x", 0, n, heads * head_dim, ld,
                   gpu_bound(1, 2));
    gpu_check_gaps(x, "x", heads * head_dim, ld);
  }
  gpu_end();
}

static void test_rope(void **state) {
  (void)state;
  static const int64_t rows[] = {1, 37, 1000}, dims[] = {2, 32, 64, 80, 128};
  static const rope_shape_t shapes[] = {{13, 64, 0, 0}, {3, 1, 0, 0},  {1, 0, 0, 0},
                                        {13, 64, 1, 0}, {13, 64, 0, 1}, {3, 1, 1, 1}};
  for (size_t i = 0; i < LENGTH(rows); i++)
    for (size_t j = 0; j < LENGTH(dims); j++)
      for (size_t k = 0; k < 2 * LENGTH(shapes); k++)
        check_rope(rows[i], &shapes[k / 2], dims[j], gpu_dtypes[k % 2]);
}

static void check_kv_store(int64_t n, int64_t width, int64_t ld, int32_t dtype) {
  enum { SEQUENCES = 5, ROOM = 40 };
  if (gpu_leaves(dtype, (double)(n * width))) return;
  gpu_begin(dtype, (backend_limits_t){.rows = n, .kv_heads = 1, .head_dim = width},
            "kv_store n %lld width %lld ld %lld", (long long)n, (long long)width, (long long)ld);
  int64_t cache = SEQUENCES * ROOM * width;
  int32_t *to = gpu_memory(n, sizeof *to), *at = gpu_memory(n, sizeof *at);
  for (int64_t i = 0; i < n; i++) { /* no two rows to one place */
    to[i] = i % 7 == 3 ? -1 : (int32_t)(i % SEQUENCES);
    at[i] = (int32_t)((i / SEQUENCES * 3 + 1) % ROOM);
  }
  gpu_tensor_t *sequence = gpu_ints(to, n), *position = gpu_ints(at, n);
  gpu_tensor_t *k = gpu_in(n * ld, 1, 0, 51), *v = gpu_in(n * ld, 1, 0, 52);
  gpu_tensor_t *k_cache = gpu_sum(GPU_ACT, cache, 53), *v_cache = gpu_sum(GPU_ACT, cache, 54);
  op_kv_store_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++)
    op[s] = (op_kv_store_t){.n = n,
                            .width = width,
                            .act_dtype = gpu_dtype(s),
                            .k = gpu_at(k, s, 0),
                            .v = gpu_at(v, s, 0),
                            .ld = ld,
                            .sequence = gpu_at(sequence, s, 0),
                            .position = gpu_at(position, s, 0),
                            .k_cache = gpu_at(k_cache, s, 0),
                            .v_cache = gpu_at(v_cache, s, 0),
                            .cache_batch = ROOM * width};
  GPU_RUN(kv_store, op);
  gpu_check_equal(k_cache, "k_cache", cache);
  gpu_check_equal(v_cache, "v_cache", cache);
  gpu_end();
}

static void test_kv_store(void **state) {
  (void)state;
  static const int64_t rows[] = {1, 17, 150}, widths[] = {64, 128, 80, 3};
  for (size_t i = 0; i < LENGTH(rows); i++)
    for (size_t j = 0; j < LENGTH(widths); j++)
      for (int k = 0; k < 4; k++)
        check_kv_store(rows[i], widths[j], k / 2 ? 768 + 2 * widths[j] : widths[j] + 1,
                       gpu_dtypes[k % 2]);
}

int main(void) {
  int skipped = gpu_open();
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_embed),  cmocka_unit_test(test_norm),
      cmocka_unit_test(test_norm_groups),
      cmocka_unit_test(test_matmul), cmocka_unit_test(test_column_sum),
      cmocka_unit_test(test_rope),   cmocka_unit_test(test_kv_store),
  };
  return cmocka_run_group_tests_name("operations on a GPU", tests, NULL, gpu_close);
}
