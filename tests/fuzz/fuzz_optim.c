/* Files of optimizer state: any is refused with the state as it was, or every number read is one
 * that an optimizer can have. The input is a safetensors file without the length that it begins
 * with: a header up to its first newline, and data. It is read for a model of each dtype. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/mem.h"
#include "format/optim_file.h"
#include "model/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST = 4096 };

/* What a state points to. */
typedef struct numbers {
  float m[MOST], v[MOST], masters[MOST];
} numbers_t;

static void demand(int holds) {
  if (!holds) abort();
}

static param_table_t table_make(void) {
  nn_model_config_t config = {.struct_size = sizeof config, .family = NN_FAMILY_GPT2};
  config.norm = NN_NORM_LAYER, config.position = NN_POSITION_LEARNED;
  config.ffn_kind = NN_FFN_GELU_TANH, config.biases = NN_BIAS_ALL, config.tied_head = 1;
  config.vocab_size = 3, config.context = 2, config.layers = 1, config.hidden = 2;
  config.heads = 1, config.ffn = 3;
  param_table_t table;
  demand(config_validate(&config) == NN_OK && param_table_build(&config, &table) == NN_OK);
  demand(table.elements <= MOST);
  return table;
}

static void load(const char *path, const param_table_t *table, int32_t dtype) {
  static numbers_t numbers, before;
  memset(&numbers, 1, sizeof numbers);
  before = numbers;
  optim_state_t state = {.dtype = dtype, .m = numbers.m, .v = numbers.v, .steps = 5};
  state.masters = dtype == NN_F32 ? NULL : numbers.masters;
  state.loss_scale = 2;
  const optim_state_t old = state;
  if (optim_file_load(path, table, &state, NULL, NULL) != NN_OK) {
    demand(memcmp(&numbers, &before, sizeof numbers) == 0);
    demand(memcmp(&state, &old, sizeof state) == 0);
    return;
  }
  for (int64_t i = 0; i < table->elements; i++)
    demand(isfinite(numbers.m[i]) && isfinite(numbers.v[i]) && numbers.v[i] >= 0);
  demand(state.steps >= 0 && state.steps <= OPTIM_MOST_STEPS);
  demand(state.loss_scale >= 1 && state.loss_scale <= OPTIM_MOST_LOSS_SCALE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static param_table_t table;
  if (!table.items) table = table_make();
  const uint8_t *newline = size ? memchr(data, '\n', size) : NULL;
  if (!newline) return 0;
  const uint64_t header = (uint64_t)(newline - data);
  const size_t rest = size - (size_t)header - 1;
  const int file = memfd_create("optim", 0);
  if (file < 0) return 0;
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  if (write(file, &header, sizeof header) == sizeof header &&
      write(file, data, (size_t)header) == (ssize_t)header &&
      write(file, newline + 1, rest) == (ssize_t)rest)
    for (int32_t dtype = NN_F32; dtype <= NN_F16; dtype++) load(path, &table, dtype);
  close(file);
  return 0;
}
