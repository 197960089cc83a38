/* The work of BenchmarkStep without Go: prints nanoseconds per step. */
#include <moenn.h>
#include <stdio.h>
#include <time.h>

#define TRY(call) if (call) return fprintf(stderr, "%s\n", nn_last_error()), 1
enum { STEPS = 20, IDS = 4 * 256 };

int main(void) {
  static int32_t ids[IDS];
  nn_device_options_t one = {.struct_size = sizeof one, .threads = 1};
  nn_model_config_t config = {.struct_size = sizeof config};
  nn_train_options_t shape = {.struct_size = sizeof shape, .batch = 4, .seq_len = 256};
  nn_loss_t loss = {.struct_size = sizeof loss};
  nn_device_t *device; nn_model_t *model; nn_optim_t *optim;
  struct timespec a, b;
  for (int i = 0; i < IDS; i++) ids[i] = i % 251;
  TRY(nn_device_create("cpu", &one, &device));
  TRY(nn_config_preset("small", &config));
  TRY(nn_model_create(device, &config, NN_F32, 1, &model));
  TRY(nn_model_prepare(model, &shape));
  TRY(nn_optim_create(model, NULL, &optim));
  for (int step = -1; step < STEPS; step++) {
    if (step == 0) clock_gettime(CLOCK_MONOTONIC, &a);
    TRY(nn_model_zero_grad(model));
    TRY(nn_model_backward(model, ids, ids, 4, 256, 1, &loss));
    TRY(nn_optim_step(optim, 1e-4f, NULL));
  }
  clock_gettime(CLOCK_MONOTONIC, &b);
  printf("the same step in C: %.0f ns\n",
         ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / STEPS);
  nn_optim_destroy(optim), nn_model_destroy(model), nn_device_destroy(device);
}
