/* The learning-rate schedules: warm-up, then constant, linear or half a cosine. */
#include <math.h>

#include "base/status.h"

static nn_status_t schedule_check(const nn_schedule_t *schedule) {
  if (schedule->kind < NN_SCHEDULE_CONSTANT || schedule->kind > NN_SCHEDULE_COSINE)
    return status_fail(NN_ERR_ARGUMENT, "nn_schedule_t: kind is %d; see the NN_SCHEDULE_ values",
                       schedule->kind);
  if (!isfinite(schedule->lr) || schedule->lr <= 0)
    return status_fail(NN_ERR_ARGUMENT, "nn_schedule_t: lr is %g; it must be above 0 and finite",
                       (double)schedule->lr);
  if (schedule->warmup_steps < 0)
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_schedule_t: warmup_steps is %lld; it must be at least 0",
                       (long long)schedule->warmup_steps);
  if (schedule->kind == NN_SCHEDULE_CONSTANT) return NN_OK;
  if (!(schedule->min_lr >= 0 && schedule->min_lr <= schedule->lr))
    return status_fail(NN_ERR_ARGUMENT, "nn_schedule_t: min_lr is %g; it goes from 0 to lr (%g)",
                       (double)schedule->min_lr, (double)schedule->lr);
  if (schedule->total_steps <= schedule->warmup_steps)
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_schedule_t: total_steps is %lld; it must be above warmup_steps (%lld)",
                       (long long)schedule->total_steps, (long long)schedule->warmup_steps);
  return NN_OK;
}

/* What is left of lr - min_lr at a step that is past the warm-up: 1 falling to 0. */
static double schedule_share(const nn_schedule_t *schedule, int64_t step) {
  if (schedule->kind == NN_SCHEDULE_CONSTANT) return 1;
  if (step >= schedule->total_steps) return 0;
  double done = (double)(step - schedule->warmup_steps) /
                (double)(schedule->total_steps - schedule->warmup_steps);
  if (schedule->kind == NN_SCHEDULE_LINEAR) return 1 - done;
  return 0.5 * (1 + cos(3.14159265358979323846 * done));
}

nn_status_t nn_schedule_lr(const nn_schedule_t *schedule, int64_t step, float *lr) {
  nn_schedule_t known;
  STATUS_REQUIRE(schedule);
  STATUS_REQUIRE(lr);
  STATUS_TRY(status_read_options(&known, sizeof known, sizeof known, schedule, "nn_schedule_t"));
  STATUS_TRY(schedule_check(&known));
  if (step < 0)
    return status_fail(NN_ERR_ARGUMENT, "nn_schedule_lr: step is %lld; steps count from 0",
                       (long long)step);
  if (step < known.warmup_steps) {
    *lr = (float)(known.lr * ((double)step + 1) / (double)known.warmup_steps);
    return NN_OK;
  }
  double low = known.kind == NN_SCHEDULE_CONSTANT ? 0 : known.min_lr;
  *lr = (float)(low + (known.lr - low) * schedule_share(&known, step));
  return NN_OK;
}
