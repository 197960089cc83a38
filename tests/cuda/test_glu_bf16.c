/* Gated linear units, the gate of a shared expert and clamping on a GPU, against the CPU: small odd
 * shapes, and those of published models. */
#include "gpu.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* ---- gated linear units ---- */

static void check_glu(int64_t n, int64_t ffn, float limit, int32_t weighted, int32_t dtype) {
  if (gpu_leaves(dtype, 30.0 * (double)(n * ffn))) return; /* an exponential is about ten */
  gpu_begin(dtype, (backend_limits_t){.rows = n, .hidden = ffn, .ffn = ffn, .training = 1},
            "glu n %lld ffn %lld limit %g weighted %d", (long long)n, (long long)ffn, (double)limit,
            weighted);
  /* Around 0.25, so that dweight is not the small difference of large sums. */
  float *of_x = gpu_uniform(n * 2 * ffn, 1, 0.25, 1), *of_dy = gpu_uniform(n * ffn, 1, 0.25, 2);
  gpu_tensor_t *x = gpu_tensor(GPU_ACT, GPU_UPDATE, of_x, n * 2 * ffn);
  gpu_tensor_t *dy = gpu_tensor(GPU_ACT, GPU_UPDATE, of_dy, n * ffn);
  gpu_tensor_t *weight = NULL, *dweight = weighted ? gpu_out(GPU_F32, n) : NULL;
  if (weighted) weight = gpu_tensor(GPU_F32, GPU_READ, gpu_uniform(n, 0.5, 0.5, 3), n);
  gpu_tensor_t *y = gpu_out(GPU_ACT, n * ffn), *dx = gpu_out(GPU_ACT, n * 2 * ffn);
  op_glu_t op[GPU_SIDES];
  op_glu_bwd_t bwd[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++) {
    op[s] = (op_glu_t){.n = n,
                       .ffn = ffn,
                       .limit = limit,
                       .act_dtype = gpu_dtype(s),
                       .x = gpu_at(x, s, 0),
                       .weight = gpu_at(weight, s, 0),
                       .y = gpu_at(y, s, 0)};
    bwd[s] = (op_glu_bwd_t){.n = n,
                            .ffn = ffn,
                            .limit = limit,
                            .act_dtype = gpu_dtype(s),
                            .x = gpu_at(x, s, 0),
                            .weight = gpu_at(weight, s, 0),
                            .dy = gpu_at(dy, s, 0),
                            .dx = gpu_at(dx, s, 0),
                            .dweight = gpu_at(dweight, s, 0)};
  }
  GPU_RUN(glu, op);
  gpu_check(y, "y", ffn, gpu_bound(1, 1));
  GPU_RUN(glu_bwd, bwd);
  gpu_check(dx, "dx", 2 * ffn, gpu_bound(1, 1));
  if (dweight) gpu_check(dweight, "dweight", 1, gpu_bound_f32(ffn));
  /* results in the inputs' places */
  for (int s = 0; s < GPU_SIDES; s++) bwd[s].dx = gpu_at(x, s, 0), bwd[s].y = gpu_at(dy, s, 0);
  GPU_RUN(glu_bwd, bwd);
  gpu_check(x, "dx in place", 2 * ffn, gpu_bound(1, 1));
  gpu_check(dy, "y in place of dy", ffn, gpu_bound(1, 1));
  if (dweight) gpu_check(dweight, "dweight in place", 1, gpu_bound_f32(ffn));
  gpu_end();
}

static void test_glu(void **state) {
  (void)state;
  static const int64_t rows[] = {1, 33, 700}, widths[] = {1, 20, 333, 1408, 11008};
  static const float limits[] = {0, 0.6f}; /* inputs are in -0.75 .. 1.25 */
  for (size_t i = 0; i < LENGTH(rows); i++)
    for (size_t j = 0; j < LENGTH(widths); j++)
      for (int k = 0; k < 8 && rows[i] * widths[j] < 1000000; k++)
        check_glu(rows[i], widths[j], limits[k / 4], k / 2 % 2, gpu_dtypes[k % 2]);
}

/* ---- a gate per row ---- */

static void check_row_gate(int64_t n, int64_t width, int32_t dtype) {
  if (gpu_leaves(dtype, (double)(n * width))) return;
  gpu_begin(dtype, (backend_limits_t){.rows = n, .hidden = width, .training = 1},
            "row_gate n %lld width %lld", (long long)n, (long long)width);
  gpu_tensor_t *x = gpu_in(n * width, 1, 0, 11), *w = gpu_in(width, 0.1, 0.01, 12);
  gpu_tensor_t *gate = gpu_out(GPU_F32, n);
  gpu_tensor_t *kept = gpu_tensor(GPU_F32, GPU_READ, gpu_uniform(n, 0.5, 0.5, 13), n);
  gpu_tensor_t *dgate = gpu_tensor(GPU_F32, GPU_READ, gpu_uniform(n, 2, 0.1, 14), n);
  gpu_tensor_t *dx = gpu_sum(GPU_ACT, n * width, 15), *dw = gpu_sum(GPU_F32, width, 16);
  op_row_gate_t op[GPU_SIDES];
  op_row_gate_bwd_t bwd[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++) {
    op[s] = (op_row_gate_t){.n = n,
                            .width = width,
                            .x = gpu_at(x, s, 0),
                            .w = gpu_at(w, s, 0),
                            .weight_dtype = gpu_dtype(s),
                            .act_dtype = gpu_dtype(s),
                            .gate = gpu_at(gate, s, 0)};
    bwd[s] = (op_row_gate_bwd_t){.n = n,
                                 .width = width,
                                 .x = gpu_at(x, s, 0),
                                 .w = gpu_at(w, s, 0),
                                 .weight_dtype = gpu_dtype(s),
                                 .act_dtype = gpu_dtype(s),
                                 .gate = gpu_at(kept, s, 0),
                                 .dgate = gpu_at(dgate, s, 0),
                                 .dx = gpu_at(dx, s, 0),
                                 .dw = gpu_at(dw, s, 0)};
  }
  GPU_RUN(row_gate, op);
  gpu_check(gate, "gate", 1, gpu_bound_f32(width));
  GPU_RUN(row_gate_bwd, bwd);
  gpu_check(dx, "dx", width, gpu_bound(1, 1));
  gpu_check(dw, "dw", width, gpu_bound_f32(n));
  gpu_end();
}

static void test_row_gate(void **state) {
  (void)state;
  static const int64_t rows[] = {1, 35, 4000}, widths[] = {1, 64, 770, 2048};
  for (size_t i = 0; i < LENGTH(rows); i++)
    for (size_t j = 0; j < LENGTH(widths); j++)
      for (int k = 0; k < 2; k++) check_row_gate(rows[i], widths[j], gpu_dtypes[k]);
}

/* ---- clamping ---- */

static void check_clip(int64_t n, int64_t width, int64_t pad, int32_t dtype) {
  int64_t ld = width + pad;
  gpu_begin(dtype, (backend_limits_t){.rows = n, .hidden = ld, .training = 1},
            "clip n %lld width %lld pad %lld", (long long)n, (long long)width, (long long)pad);
  gpu_tensor_t *x = gpu_in(n * ld, 2, 0, 21), *y = gpu_sum(GPU_ACT, n * ld, 22);
  gpu_tensor_t *dx = gpu_sum(GPU_ACT, n * ld, 23);
  const float limit = 0.75f; /* a number of 16 bits, so that nothing is rounded */
  op_clip_t op[GPU_SIDES], same[GPU_SIDES];
  op_clip_bwd_t bwd[GPU_SIDES];
  for (int s = 0; s < GPU_SIDES; s++) {
    op[s] = (op_clip_t){.n = n,
                        .width = width,
                        .limit = limit,
                        .act_dtype = gpu_dtype(s),
                        .x = gpu_at(x, s, 0),
                        .ldx = ld,
                        .y = gpu_at(y, s, 0),
                        .ldy = ld};
    same[s] = op[s], same[s].x = gpu_at(y, s, 0);
    bwd[s] = (op_clip_bwd_t){.n = n,
                             .width = width,
                             .limit = limit,
                             .act_dtype = gpu_dtype(s),
                             .x = gpu_at(x, s, 0),
                             .ldx = ld,
                             .dx = gpu_at(dx, s, 0),
                             .lddx = ld};
  }
  GPU_RUN(clip, op);
  gpu_check_equal(y, "y", n * ld);
  gpu_check_gaps(y, "y", width, ld);
  GPU_RUN(clip, same);
  gpu_check_equal(y, "y in place", n * ld);
  GPU_RUN(clip_bwd, bwd);
  gpu_check_equal(dx, "dx", n * ld);
  gpu_check_gaps(dx, "dx", width, ld);
  gpu_end();
}

static void test_clip(void **state) {
  (void)state;
  static const int64_t rows[] = {1, 33, 600}, widths[] = {1, 64, 770, 3072};
  for (size_t i = 0; i < LENGTH(rows); i++)
    for (size_t j = 0; j < LENGTH(widths); j++)
      for (int k = 0; k < 4; k++)
        check_clip(rows[i], widths[j], k / 2 * 8, gpu_dtypes[k % 2]);
}

int main(void) {
  int skipped = gpu_open();
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_glu),
      cmocka_unit_test(test_row_gate),
      cmocka_unit_test(test_clip),
  };
  return cmocka_run_group_tests_name("gated units on a GPU", tests, NULL, gpu_close);
}
