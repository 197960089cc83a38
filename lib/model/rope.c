#include "model/rope.h"

#include <math.h>

#include "base/mem.h"

double rope_base(const nn_model_config_t *config, int64_t max_len) {
  double theta = config->rope_theta, d = (double)config->head_dim;
  if (max_len <= config->context || d <= 2) return theta;
  return theta * pow(config->rope_ntk_alpha, d / (d - 2));
}

nn_status_t rope_fill(nn_device_t *device, const nn_model_config_t *config, int64_t positions,
                      float *table) {
  int64_t half = config->head_dim / 2;
  double base = rope_base(config, positions);
  void *got = NULL;
  STATUS_TRY(mem_alloc((size_t)(3 * half), sizeof(float), &got));
  float *frequency = got, *row = frequency + half;
  for (int64_t i = 0; i < half; i++)
    frequency[i] = (float)pow(base, -2.0 * (double)i / (double)config->head_dim);
  nn_status_t status = NN_OK;
  for (int64_t p = 0; p < positions && status == NN_OK; p++) {
    for (int64_t i = 0; i < half; i++) {
      float angle = (float)p * frequency[i];
      row[i] = (float)cos(angle);
      row[half + i] = (float)sin(angle);
    }
    status = device->backend->copy_in(device->place, table + p * config->head_dim, row,
                                      (size_t)config->head_dim * sizeof(float));
  }
  mem_free(frequency);
  return status;
}
