/* Attention on a GPU against the CPU: over its own rows, forward and backward, and over a cache
 * with keys before the query rows, in decode and in chunked prefill; with windows and sinks too. */
#include <math.h>
#include <stdlib.h>

#include "base/random.h"
#include "gpu.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

enum { BATCH = 5 };

static const struct {
  int64_t heads, kv_heads;
} groups[] = {{12, 1}, {4, 2}, {3, 3}};

/* Those that kernels are compiled for, and some between. */
static const int64_t dims[] = {64, 128, 32, 80, 96, 192, 256, 40, 112, 136};

/* A case takes a third of them; the others come with other groups, lengths and windows. */
static int dim_left(size_t d, int64_t turn) { return ((int64_t)d + turn) % 3 != 0; }

/* ---- over its own rows ---- */

/* Queries, keys and values are beside each other in a row, as one product makes them. */
typedef struct self_case {
  int64_t batch, q_len, heads, kv_heads, dim, pad;
  int64_t window; /* 0: none */
  int32_t sinks;
} self_case_t;

static int64_t self_stride(const self_case_t *c) {
  return (c->heads + 2 * c->kv_heads) * c->dim + c->pad;
}

static op_attention_t self_op(const self_case_t *c, int side, const gpu_tensor_t *qkv,
                              const gpu_tensor_t *sinks, const gpu_tensor_t *o,
                              const gpu_tensor_t *lse) {
  int64_t ld = self_stride(c), k = c->heads * c->dim;
  return (op_attention_t){.batch = c->batch,
                          .q_len = c->q_len,
                          .heads = c->heads,
                          .kv_heads = c->kv_heads,
                          .head_dim = c->dim,
                          .window = c->window,
                          .weight_dtype = gpu_dtype(side),
                          .act_dtype = gpu_dtype(side),
                          .sinks = gpu_at(sinks, side, 0),
                          .q = gpu_at(qkv, side, 0),
                          .ldq = ld,
                          .k = gpu_at(qkv, side, k),
                          .v = gpu_at(qkv, side, k + c->kv_heads * c->dim),
                          .ldkv = ld,
                          .kv_batch = c->q_len * ld,
                          .scale = 1 / sqrtf((float)c->dim),
                          .o = gpu_at(o, side, 0),
                          .lse = gpu_at(lse, side, 0)};
}

/* The first row of a sequence sees one key and, without sinks, nothing depends on its score: its dq
 * (and dk, where it is the only row) is the difference of two equal sums of dim products of order
 * 1, times a few units. */
static void check_nothing(const gpu_tensor_t *d, const char *name, int64_t from, int64_t count) {
  for (int64_t i = from; i < from + count; i++)
    if (!(fabs(gpu_value(d, GPU_GPU, i)) <= 0x1p-14))
      fail_msg("%s of a row that sees one key is %g", name, gpu_value(d, GPU_GPU, i));
}

static void check_self_gradients(const self_case_t *c, const gpu_tensor_t *d) {
  int64_t ld = self_stride(c), k = c->heads * c->dim, kv = c->kv_heads * c->dim;
  /* probabilities (for dv) or the scores' gradients (for dq and dk), then the results */
  double bound = gpu_bound(2, c->dim + c->q_len * c->heads / c->kv_heads);
  for (int64_t b = 0; b < c->batch; b++) {
    int64_t first = b * c->q_len * ld;
    gpu_check_rows(d, "dv", first + k + kv, c->q_len, kv, ld, bound);
    if (c->sinks) {
      gpu_check_rows(d, "dq", first, c->q_len, k, ld, bound);
      gpu_check_rows(d, "dk", first + k, c->q_len, kv, ld, bound);
      continue;
    }
    check_nothing(d, "dq", first, k);
    if (c->q_len == 1) {
      check_nothing(d, "dk", first + k, kv);
      continue;
    }
    gpu_check_rows(d, "dq", first + ld, c->q_len - 1, k, ld, bound);
    gpu_check_rows(d, "dk", first + k, c->q_len, kv, ld, bound);
  }
  gpu_check_gaps(d, "dqkv", k + 2 * kv, ld);
}

static void self_backward(const self_case_t *c, const gpu_tensor_t *qkv, const gpu_tensor_t *sinks,
                          const gpu_tensor_t *o, const gpu_tensor_t *lse) {
  int64_t rows = c->batch * c->q_len, width = c->heads * c->dim, ld = self_stride(c);
  int64_t k = width, v = k + c->kv_heads * c->dim;
  gpu_tensor_t *dout = gpu_in(rows * width, 1, 0, 2), *d = gpu_out(GPU_ACT, rows * ld);
  gpu_tensor_t *dsinks = sinks ? gpu_sum(GPU_F32, c->heads, 4) : NULL;
  op_attention_bwd_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++)
    op[s] = (op_attention_bwd_t){.batch = c->batch,
                                 .q_len = c->q_len,
                                 .heads = c->heads,
                                 .kv_heads = c->kv_heads,
                                 .head_dim = c->dim,
                                 .window = c->window,
                                 .weight_dtype = gpu_dtype(s),
                                 .act_dtype = gpu_dtype(s),
                                 .sinks = gpu_at(sinks, s, 0),
                                 .dsinks = gpu_at(dsinks, s, 0),
                                 .q = gpu_at(qkv, s, 0),
                                 .ldq = ld,
                                 .k = gpu_at(qkv, s, k),
                                 .v = gpu_at(qkv, s, v),
                                 .ldkv = ld,
                                 .kv_batch = c->q_len * ld,
                                 .scale = 1 / sqrtf((float)c->dim),
                                 .o = gpu_at(o, s, 0),
                                 .dout = gpu_at(dout, s, 0),
                                 .lse = gpu_at(lse, s, 0),
                                 .dq = gpu_at(d, s, 0),
                                 .dk = gpu_at(d, s, k),
                                 .dv = gpu_at(d, s, v)};
  GPU_RUN(attention_bwd, op);
  check_self_gradients(c, d);
  if (dsinks) gpu_check(dsinks, "dsinks", c->heads, gpu_bound_f32(rows + c->dim));
}

/* Queries, keys and values, scores of a few units; with `growth` keys are longer and longer, up to
 * so many times, along a sequence, so that the largest score of a row keeps coming later. */
static gpu_tensor_t *self_rows(const self_case_t *c, float growth) {
  int64_t ld = self_stride(c), count = c->batch * c->q_len * ld;
  float *values = malloc((size_t)count * sizeof *values);
  assert_non_null(values);
  for (int64_t i = 0; i < count; i++) {
    int64_t row = i / ld % c->q_len, at = i % ld - c->heads * c->dim;
    values[i] = 2 * (2 * (float)random_uniform(1, 3, (uint64_t)i) - 1);
    if (growth > 0 && at >= 0 && at < c->kv_heads * c->dim)
      values[i] *= 1 + growth * (float)row / (float)c->q_len;
  }
  gpu_tensor_t *made = gpu_tensor(GPU_ACT, GPU_READ, values, count);
  free(values);
  return made;
}

static void check_self(const self_case_t *c, int32_t backward, int32_t dtype, float growth) {
  int64_t rows = c->batch * c->q_len, width = c->heads * c->dim;
  if (gpu_leaves(dtype, (backward ? 7.0 : 2.0) * (double)(rows * c->q_len * width))) return;
  backend_limits_t limits = {.rows = rows, .batch = c->batch, .hidden = width, .heads = c->heads,
                             .kv_heads = c->kv_heads, .head_dim = c->dim, .training = backward};
  gpu_begin(
      dtype, limits,
      "attention batch %lld, T %lld, heads %lld/%lld of %lld, pad %lld, window %lld, sinks %d",
      (long long)c->batch, (long long)c->q_len, (long long)c->heads, (long long)c->kv_heads,
      (long long)c->dim, (long long)c->pad, (long long)c->window, c->sinks);
  gpu_tensor_t *qkv = self_rows(c, growth), *sinks = c->sinks ? gpu_in(c->heads, 3, 1, 5) : NULL;
  gpu_tensor_t *o = gpu_out(GPU_ACT, rows * width), *lse = gpu_out(GPU_F32, rows * c->heads);
  op_attention_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++) op[s] = self_op(c, s, qkv, sinks, o, lse);
  GPU_RUN(attention, op);
  /* probabilities, then the result */
  gpu_check(o, "o", width, gpu_bound(2, c->dim + c->q_len));
  gpu_check(lse, "lse", c->heads, gpu_bound_f32(c->dim + c->q_len));
  if (backward) {
    gpu_tensor_t *made = gpu_tensor(GPU_ACT, GPU_READ, gpu_at(o, GPU_CPU, 0), rows * width);
    gpu_tensor_t *sums = gpu_tensor(GPU_F32, GPU_READ, gpu_at(lse, GPU_CPU, 0), rows * c->heads);
    self_backward(c, qkv, sinks, made, sums);
  }
  for (int s = 0; s < GPU_SIDES; s++) op[s].lse = NULL;
  GPU_RUN(attention, op);
  gpu_check(o, "o without lse", width, gpu_bound(2, c->dim + c->q_len));
  gpu_end();
}

/* Strides that no vector is aligned to come in turn with others. */
static void check_length(int64_t q_len, int64_t window, int32_t sinks, int32_t backward) {
  for (size_t g = 0; g < LENGTH(groups); g++)
    for (size_t d = 0; d < LENGTH(dims); d++)
      for (int t = 0; t < 2; t++) {
        if (dim_left(d, q_len + window + (int64_t)g)) continue;
        self_case_t c = {.batch = q_len < 500 ? 3 : 1,
                         .q_len = q_len,
                         .heads = groups[g].heads,
                         .kv_heads = groups[g].kv_heads,
                         .dim = dims[d],
                         .pad = (d / 3 + g) % 3 == 2 && q_len < 100 ? 1 : 0,
                         .window = window,
                         .sinks = sinks};
        check_self(&c, backward, gpu_dtypes[t], 0);
      }
}

static void test_forward(void **state) {
  (void)state;
  check_length(1, 0, 0, 0);
  check_length(1000, 0, 0, 0);
}

/* What a kernel took for a row's largest score is far from it a few hundred keys later. */
static void test_growing_scores(void **state) {
  (void)state;
  const self_case_t cases[] = {{2, 1000, 12, 1, 64, 0, 0, 0},
                               {1, 700, 3, 3, 128, 0, 0, 0},
                               {1, 300, 4, 2, 32, 0, 0, 0},
                               {2, 1000, 12, 1, 64, 0, 150, 0},
                               {1, 700, 3, 3, 128, 0, 300, 1},
                               {1, 700, 3, 3, 96, 0, 0, 0},
                               {1, 700, 3, 3, 192, 0, 0, 0},
                               {1, 700, 3, 3, 256, 0, 300, 1}};
  for (size_t i = 0; i < LENGTH(cases); i++)
    for (int t = 0; t < 2; t++) check_self(&cases[i], 0, gpu_dtypes[t], 25);
}

static void test_backward(void **state) {
  (void)state;
  static const int64_t lengths[] = {1, 17, 64, 129, 520};
  for (size_t i = 0; i < LENGTH(lengths); i++) check_length(lengths[i], 0, 0, 1);
}

/* More heads of one key-value head than the kernels of sm_90a pack. */
static void test_many_heads(void **state) {
  (void)state;
  static const int64_t each[] = {24, 32, 64, 80, 96, 128, 136, 192, 256};
  for (size_t d = 0; d < LENGTH(each); d++)
    for (int t = 0; t < 2; t++)
      for (int64_t window = 0; window <= 23; window += 23) {
        self_case_t c = {.batch = 2, .q_len = 140, .heads = 50, .kv_heads = 1, .dim = each[d],
                         .window = window};
        check_self(&c, 1, gpu_dtypes[t], 0);
      }
}

/* Windows within a tile of keys, of one, and over several. */
static void test_windows(void **state) {
  (void)state;
  static const int64_t lengths[] = {17, 129, 520}, windows[] = {2, 37, 128, 300};
  for (size_t i = 0; i < LENGTH(lengths); i++)
    for (size_t j = 0; j < LENGTH(windows); j++)
      check_length(lengths[i], windows[j], (int32_t)(i + j) % 2, 1);
  check_length(1100, 200, 0, 1);
}

static void test_sinks(void **state) {
  (void)state;
  static const int64_t lengths[] = {1, 64, 300};
  for (size_t i = 0; i < LENGTH(lengths); i++) check_length(lengths[i], 0, 1, 1);
}

/* ---- over a cache ---- */

typedef struct cache_case {
  int64_t batch, q_len;
  int32_t kv_len[BATCH]; /* 0: skipped */
  int32_t listed;        /* 1: by `sequence`, in falling order out of more of them */
} cache_case_t;

static const cache_case_t cache_cases[] = {
    {1, 1, {1}, 0},
    {1, 1, {63}, 0},
    {1, 1, {3000}, 0},
    {5, 1, {1, 64, 65, 777, 3000}, 0},
    {5, 1, {2500, 0, 129, 1, 1024}, 1}, /* one is skipped */
    {2, 1, {0, 0}, 0},
    {3, 1, {16, 17, 128}, 1},
    {1, 17, {17}, 0},
    {1, 17, {64}, 0},
    {3, 17, {17, 200, 0}, 1},
    {2, 64, {129, 64}, 1},
    {1, 129, {700}, 0},
    {2, 3, {5, 1000}, 1},
};

typedef struct cache_shape {
  int64_t heads, kv_heads, dim, sequences, room;
} cache_shape_t;

static cache_shape_t cache_shape(const cache_case_t *c, size_t group, int64_t dim) {
  cache_shape_t shape = {.heads = groups[group].heads, .kv_heads = groups[group].kv_heads,
                         .dim = dim, .sequences = c->batch + (c->listed ? 2 : 0), .room = 1};
  for (int64_t b = 0; b < c->batch; b++)
    if (c->kv_len[b] > shape.room) shape.room = c->kv_len[b];
  shape.room += 5;
  return shape;
}

static int64_t cache_sequence(const cache_case_t *c, int64_t b) {
  return c->listed ? c->batch + 1 - b : b;
}

/* A cache in which what no sequence has written yet is NaN. */
static gpu_tensor_t *cache_make(const cache_case_t *c, const cache_shape_t *shape, uint64_t seed) {
  int64_t width = shape->kv_heads * shape->dim, all = shape->sequences * shape->room * width;
  float *values = gpu_uniform(all, 2, 0, seed);
  int32_t *len = gpu_memory(shape->sequences, sizeof *len);
  for (int64_t b = 0; b < c->batch; b++) len[cache_sequence(c, b)] = c->kv_len[b];
  for (int64_t i = 0; i < all; i++)
    if (i / width % shape->room >= len[i / width / shape->room]) values[i] = NAN;
  return gpu_tensor(GPU_ACT, GPU_READ, values, all);
}

static void check_cache(const cache_case_t *c, const cache_shape_t *shape, int64_t window,
                        int32_t with_sinks, int32_t dtype) {
  int64_t rows = c->batch * c->q_len, width = shape->heads * shape->dim, kv = shape->kv_heads;
  if (gpu_leaves(dtype, 4.0 * (double)(rows * shape->room * width))) return;
  backend_limits_t limits = {.rows = rows, .batch = c->batch, .kv_len = shape->room,
                             .hidden = width, .heads = shape->heads, .kv_heads = kv,
                             .head_dim = shape->dim};
  gpu_begin(dtype, limits,
            "cached attention %d: batch %lld, q_len %lld, heads %lld/%lld of %lld, window %lld, "
            "sinks %d",
            (int)(c - cache_cases), (long long)c->batch, (long long)c->q_len,
            (long long)shape->heads, (long long)kv, (long long)shape->dim, (long long)window,
            with_sinks);
  gpu_tensor_t *sinks = with_sinks ? gpu_in(shape->heads, 3, 1, 14) : NULL;
  int64_t ldq = width + 2 * kv * shape->dim; /* the rows of one product, as above */
  gpu_tensor_t *q = gpu_in(rows * ldq, 2, 0, 11);
  gpu_tensor_t *k = cache_make(c, shape, 12), *v = cache_make(c, shape, 13);
  int32_t *order = gpu_memory(c->batch, sizeof *order);
  for (int64_t b = 0; b < c->batch; b++) order[b] = (int32_t)cache_sequence(c, b);
  gpu_tensor_t *sequence = c->listed ? gpu_ints(order, c->batch) : NULL;
  gpu_tensor_t *kv_len = gpu_ints(c->kv_len, c->batch);
  gpu_tensor_t *o = gpu_out(GPU_ACT, rows * width), *lse = gpu_out(GPU_F32, rows * shape->heads);
  op_attention_t op[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++)
    op[s] = (op_attention_t){.batch = c->batch,
                             .q_len = c->q_len,
                             .heads = shape->heads,
                             .kv_heads = kv,
                             .head_dim = shape->dim,
                             .window = window,
                             .weight_dtype = gpu_dtype(s),
                             .act_dtype = gpu_dtype(s),
                             .sinks = gpu_at(sinks, s, 0),
                             .q = gpu_at(q, s, 0),
                             .ldq = ldq,
                             .k = gpu_at(k, s, 0),
                             .v = gpu_at(v, s, 0),
                             .ldkv = kv * shape->dim,
                             .kv_batch = shape->room * kv * shape->dim,
                             .kv_len = gpu_at(kv_len, s, 0),
                             .sequence = gpu_at(sequence, s, 0),
                             .scale = 1 / sqrtf((float)shape->dim),
                             .o = gpu_at(o, s, 0),
                             .lse = gpu_at(lse, s, 0)};
  GPU_RUN(attention, op);
  /* probabilities, then the result; a skipped sequence's rows are 0, which is exact */
  gpu_check(o, "o", width, gpu_bound(2, shape->dim + shape->room));
  gpu_check(lse, "lse", shape->heads, gpu_bound_f32(shape->dim + shape->room));
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; !c->kv_len[r / c->q_len] && i < width; i++)
      assert_true(gpu_value(o, GPU_GPU, r * width + i) == 0);
  for (int s = 0; s < GPU_SIDES; s++) op[s].lse = NULL;
  GPU_RUN(attention, op);
  gpu_check(o, "o without lse", width, gpu_bound(2, shape->dim + shape->room));
  gpu_end();
}

static void check_caches(int64_t window, int32_t sinks) {
  for (size_t i = 0; i < LENGTH(cache_cases); i++)
    for (size_t g = 0; g < LENGTH(groups); g++)
      for (size_t d = 0; d < LENGTH(dims); d++)
        for (int t = 0; t < 2; t++) {
          if (dim_left(d, (int64_t)(i + g) + window)) continue;
          cache_shape_t shape = cache_shape(&cache_cases[i], g, dims[d]);
          check_cache(&cache_cases[i], &shape, window, sinks, gpu_dtypes[t]);
        }
}

static void test_cache(void **state) {
  (void)state;
  check_caches(0, 0);
}

static void test_cache_windows(void **state) {
  (void)state;
  check_caches(1, 0);
  check_caches(50, 1);
  check_caches(700, 0);
  check_caches(0, 1);
}

int main(void) {
  int skipped = gpu_open();
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_forward),
      cmocka_unit_test(test_growing_scores),
      cmocka_unit_test(test_backward),
      cmocka_unit_test(test_many_heads),
      cmocka_unit_test(test_windows),
      cmocka_unit_test(test_sinks),
      cmocka_unit_test(test_cache),
      cmocka_unit_test(test_cache_windows),
  };
  return cmocka_run_group_tests_name("attention on a GPU", tests, NULL, gpu_close);
}
