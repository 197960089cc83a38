/* Clamping and its backward pass: exact, between strides, in place. */
#include <math.h>

#include "ops.h"

static void check_clip(int64_t n, int64_t width, int64_t pad) {
  const float limit = 0.75f;
  op_clip_t op = {.n = n, .width = width, .limit = limit};
  op.ldx = width + pad, op.ldy = width + 2 * pad;
  op_clip_bwd_t bwd = {.n = n, .width = width, .limit = limit, .ldx = op.ldx, .lddx = op.ldy};
  float *x = ops_uniform(n * op.ldx, 1, 1), *before = ops_uniform(n * op.ldy, 1, 2);
  x[0] = limit; /* at the limit itself nothing is lost */
  double *want = ops_doubles(n * op.ldy), *dwant = ops_doubles(n * op.ldy);
  double *inside = ops_doubles(n * op.ldx), *exact = ops_doubles(n * op.ldy + n * op.ldx);
  for (int64_t i = 0; i < n * op.ldy; i++) want[i] = dwant[i] = before[i];
  for (int64_t i = 0; i < n * op.ldx; i++) inside[i] = x[i];
  for (int64_t row = 0; row < n; row++)
    for (int64_t j = 0; j < width; j++) {
      double value = x[row * op.ldx + j], clamped = fmax(-limit, fmin(limit, value));
      want[row * op.ldy + j] = inside[row * op.ldx + j] = clamped;
      if (clamped != value) dwant[row * op.ldy + j] = 0;
    }
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = n, .hidden = width, .training = 1});
  while (ops_next(&trial)) {
    op.x = x, op.y = ops_copy(before, n * op.ldy);
    OPS_RUN(&trial, clip, &op);
    ops_check(&trial, 0, "y", op.y, want, exact, n * op.ldy);
    bwd.x = x, bwd.dx = ops_copy(before, n * op.ldy);
    OPS_RUN(&trial, clip_bwd, &bwd);
    ops_check(&trial, 1, "dx", bwd.dx, dwant, exact, n * op.ldy);
    op_clip_t in_place = op;
    in_place.y = ops_copy(x, n * op.ldx), in_place.x = in_place.y, in_place.ldy = op.ldx;
    OPS_RUN(&trial, clip, &in_place);
    ops_check(&trial, 2, "x in place", in_place.y, inside, exact, n * op.ldx);
    if (n * width >= 1 << 16) {
      OPS_RUN_CANCELLED(&trial, clip, &op);
      OPS_RUN_CANCELLED(&trial, clip_bwd, &bwd);
    }
  }
  ops_free();
}

static void test_clip(void **state) {
  (void)state;
  const int64_t sizes[] = {1, 3, 17, 65, 130, 600};
  for (int i = 0; i < 6; i++)
    for (int j = 0; j < 6; j++) check_clip(sizes[i], sizes[j], (i + j) % 2 ? 7 : 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_clip)};
  return cmocka_run_group_tests_name("clip", tests, NULL, NULL);
}
