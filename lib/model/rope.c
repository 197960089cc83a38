#include "model/rope.h"

#include <math.h>

#include "base/mem.h"

double rope_base(const nn_model_config_t *config, int64_t max_len) {
  double theta = config->rope_theta, d = (double)config->head_dim;
  if (max_len <= config->context || d <= 2) return theta;
  return theta * pow(config->rope_ntk_alpha, d / (d - 2));
}

/* Positions [begin, end) of the table, to rows at `row`. */
static void rope_rows(float *row, const float *frequency, int64_t half, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; p++, row += 2 * half) {
    for (int64_t i = 0; i < half; i++) {
      float angle = (float)p * frequency[i];
      row[i] = (float)cos(angle);
      row[half + i] = (float)sin(angle);
    }
  }
}

nn_status_t rope_fill(nn_device_t *device, const nn_model_config_t *config, int64_t positions,
                      float *table) {
  enum { ROWS = 512 }; /* copied at once */
  int64_t width = config->head_dim, half = width / 2;
  double base = rope_base(config, positions);
  void *got = NULL;
  STATUS_TRY(mem_alloc((size_t)(half + ROWS * width), sizeof(float), &got));
  float *frequency = got, *rows = frequency + half;
  for (int64_t i = 0; i < half; i++)
    frequency[i] = (float)pow(base, -2.0 * (double)i / (double)width);
  nn_status_t status = NN_OK;
  for (int64_t p = 0; p < positions && status == NN_OK; p += ROWS) {
    int64_t end = positions - p < ROWS ? positions : p + ROWS;
    rope_rows(rows, frequency, half, p, end);
    status = device->backend->copy_in(device->place, table + p * width, rows,
                                      (size_t)((end - p) * width) * sizeof(float));
  }
  mem_free(frequency);
  return status;
}
