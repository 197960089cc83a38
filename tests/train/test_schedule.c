/* Learning-rate schedules: exact values at the joints, the shapes between them, bad structs. */
#include "fixture.h"

#include <float.h>
#include <math.h>
#include <string.h>

static float rate(const nn_schedule_t *schedule, int64_t step) {
  float lr = -1;
  CHECK(nn_schedule_lr(schedule, step, &lr));
  return lr;
}

static nn_schedule_t schedule_of(int32_t kind) {
  nn_schedule_t schedule = STRUCT(nn_schedule_t);
  schedule.kind = kind;
  schedule.lr = 3e-3f;
  schedule.min_lr = 3e-4f;
  schedule.warmup_steps = 10;
  schedule.total_steps = 110;
  return schedule;
}

static void test_joints(void **state) {
  (void)state;
  for (int32_t kind = NN_SCHEDULE_CONSTANT; kind <= NN_SCHEDULE_COSINE; kind++) {
    nn_schedule_t schedule = schedule_of(kind);
    float last = kind == NN_SCHEDULE_CONSTANT ? schedule.lr : schedule.min_lr;
    assert_true(rate(&schedule, 0) == (float)((double)schedule.lr / 10));
    assert_true(rate(&schedule, 4) == (float)((double)schedule.lr * 5 / 10));
    assert_true(rate(&schedule, 9) == schedule.lr);
    assert_true(rate(&schedule, 10) == schedule.lr);
    assert_true(rate(&schedule, 110) == last);
    assert_true(rate(&schedule, 111) == last);
    assert_true(rate(&schedule, INT64_MAX) == last);
    schedule.warmup_steps = 0;
    assert_true(rate(&schedule, 0) == schedule.lr);
  }
}

static void test_between(void **state) {
  (void)state;
  nn_schedule_t linear = schedule_of(NN_SCHEDULE_LINEAR), cosine = schedule_of(NN_SCHEDULE_COSINE);
  for (int64_t step = 10; step < 110; step++) {
    double done = (double)(step - 10) / 100, span = (double)linear.lr - linear.min_lr;
    /* Both sides are rounded to float once: at most one unit in the last place apart. */
    assert_true(fabs(rate(&linear, step) - (linear.lr - span * done)) <= linear.lr * FLT_EPSILON);
    double half = cos(acos(-1) * done / 2); /* (1 + cos x) / 2 = cos^2(x / 2) */
    assert_true(fabs(rate(&cosine, step) - (cosine.min_lr + span * half * half)) <=
                cosine.lr * FLT_EPSILON);
    assert_true(rate(&linear, step + 1) < rate(&linear, step));
    assert_true(rate(&cosine, step + 1) < rate(&cosine, step));
  }
}

static void test_unused_members(void **state) {
  (void)state;
  nn_schedule_t schedule = schedule_of(NN_SCHEDULE_CONSTANT);
  schedule.min_lr = -1;
  schedule.total_steps = 0;
  assert_true(rate(&schedule, 1000) == schedule.lr);
}

static void refuse(nn_status_t status, nn_schedule_t schedule, int64_t step) {
  float lr = 7;
  CHECK_STATUS(status, nn_schedule_lr(&schedule, step, &lr));
  assert_true(lr == 7);
}

static void test_bad_values(void **state) {
  (void)state;
  const nn_schedule_t good = schedule_of(NN_SCHEDULE_COSINE);
  nn_schedule_t bad;
#define REFUSE(member, value) (bad = good, bad.member = (value), refuse(NN_ERR_ARGUMENT, bad, 0))
  REFUSE(kind, -1);
  REFUSE(kind, 3);
  REFUSE(lr, 0);
  REFUSE(lr, -1e-3f);
  REFUSE(lr, NAN);
  REFUSE(lr, INFINITY);
  REFUSE(min_lr, -1e-9f);
  REFUSE(min_lr, 4e-3f);
  REFUSE(min_lr, NAN);
  REFUSE(warmup_steps, -1);
  REFUSE(warmup_steps, 110);
  REFUSE(total_steps, 10);
  REFUSE(total_steps, 0);
  refuse(NN_ERR_ARGUMENT, good, -1);

  float lr;
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_schedule_lr(NULL, 0, &lr));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_schedule_lr(&good, 0, NULL));
}

static void test_struct_size(void **state) {
  (void)state;
  nn_schedule_t schedule = schedule_of(NN_SCHEDULE_COSINE);
  schedule.struct_size = 0;
  refuse(NN_ERR_STRUCT_SIZE, schedule, 0);

  schedule = schedule_of(NN_SCHEDULE_CONSTANT);
  schedule.struct_size = offsetof(nn_schedule_t, total_steps); /* no release had this size */
  refuse(NN_ERR_STRUCT_SIZE, schedule, 0);

  /* A newer header's: an unknown tail must be zero. */
  struct {
    nn_schedule_t known;
    unsigned char tail[8];
  } newer;
  memset(&newer, 0, sizeof newer);
  newer.known = schedule_of(NN_SCHEDULE_LINEAR);
  newer.known.struct_size = sizeof newer;
  assert_true(rate(&newer.known, 10) == newer.known.lr);
  newer.tail[7] = 1;
  float lr;
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, nn_schedule_lr(&newer.known, 0, &lr));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_joints),     cmocka_unit_test(test_between),
      cmocka_unit_test(test_unused_members), cmocka_unit_test(test_bad_values),
      cmocka_unit_test(test_struct_size),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
