#include "run.h"

nn_optim_options_t run_options(void) {
  nn_optim_options_t options = STRUCT(nn_optim_options_t);
  options.weight_decay = 0.1f;
  options.grad_clip = 1;
  return options;
}

void run_batch(run_t *run, int64_t batch, int64_t seq) {
  run->batch = batch;
  run->seq = seq;
  run->tokens = fixture_memory((size_t)(batch * seq) * sizeof(int32_t));
  run->targets = fixture_memory((size_t)(batch * seq) * sizeof(int32_t));
  fixture_tokens(run->tokens, batch * seq, run->config.vocab_size, 1);
  fixture_targets(run->targets, batch * seq, run->config.vocab_size, 2);
}

void run_open(run_t *run, nn_device_t *device, const nn_model_config_t *config, int64_t batch,
              int64_t seq, int32_t recompute) {
  run->device = device;
  run->config = *config;
  run->model = fixture_model(device, config, 1);
  fixture_prepare(run->model, batch, seq, recompute);
  nn_optim_options_t options = run_options();
  CHECK(nn_optim_create(run->model, &options, &run->optim));
  run_batch(run, batch, seq);
}

void run_close(run_t *run) {
  nn_optim_destroy(run->optim);
  nn_model_destroy(run->model);
  free(run->tokens);
  free(run->targets);
}

nn_status_t run_backward(run_t *run, nn_loss_t *loss) {
  *loss = STRUCT(nn_loss_t);
  return nn_model_backward(run->model, run->tokens, run->targets, run->batch, run->seq, 1, loss);
}

void run_step(run_t *run, float lr, double *losses) {
  nn_loss_t loss;
  CHECK(nn_model_zero_grad(run->model));
  CHECK(run_backward(run, &loss));
  CHECK(nn_optim_step(run->optim, lr, &losses[3]));
  losses[0] = loss.loss, losses[1] = loss.aux_loss, losses[2] = loss.z_loss;
}
