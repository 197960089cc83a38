/* MXFP4: numbers by hand, and whole models whose experts are blocks and scales. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/device.h"
#include "format/mxfp4.h"
#include "model_files.h"

static char *folder;

static int setup(void **state) {
  (void)state;
  folder = fixture_folder();
  return 0;
}

static int teardown(void **state) {
  (void)state;
  fixture_folder_remove(folder);
  return 0;
}

static void numbers_and_scales_are_decoded(void **state) {
  (void)state;
  static const float wanted[16] = {0,    .5f,  1,  1.5f,  2,  3,  4,  6,
                                   -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};
  unsigned char blocks[4 * MXFP4_BLOCK_BYTES] = {0}, scales[4] = {127, 128, 0, 254};
  float values[4 * MXFP4_BLOCK];
  for (int byte = 0; byte < 8; byte++)
    for (int block = 0; block < 4; block++)
      blocks[block * MXFP4_BLOCK_BYTES + byte] = (unsigned char)(2 * byte | (2 * byte + 1) << 4);
  mxfp4_decode(values, blocks, scales, 4);
  for (int i = 0; i < 16; i++) {
    assert_true(values[i] == wanted[i] && signbit(values[i]) == signbit(wanted[i]));
    assert_true(values[32 + i] == 2 * wanted[i]);
    assert_true(values[64 + i] == wanted[i] * 0x1p-127f);
    assert_true(values[96 + i] == (float)((double)wanted[i] * 0x1p127));
  }
  for (int i = 16; i < 32; i++) assert_true(values[i] == 0);
}

/* ---- models ---------------------------------------------------------------------------------- */

enum { BLOCKS, SCALES, PLAIN };

typedef struct packing {
  const stamped_t *model;
  safetensors_entry_t *entries;
  char (*names)[PARAM_NAME_BYTES + 8];
  int64_t (*shapes)[4];
  const param_t **params;
  int *kinds;
  int64_t count;
} packing_t;

static int packs(const param_t *param) {
  return param->role == PARAM_GATE_UP || param->role == PARAM_DOWN;
}

static void packing_add(packing_t *packing, const param_t *param, int kind) {
  static const char *const suffixes[] = {"_blocks", "_scales", ""};
  int64_t at = packing->count++, *shape = packing->shapes[at];
  packing->params[at] = param;
  packing->kinds[at] = kind;
  snprintf(packing->names[at], sizeof *packing->names, "%s%s", param->name, suffixes[kind]);
  memcpy(shape, param->shape, sizeof param->shape);
  if (kind != PLAIN) {
    shape[1] = param->shape[2], shape[2] = param->shape[1] / 32, shape[3] = 16;
  }
  packing->entries[at] = (safetensors_entry_t){.name = packing->names[at],
                                               .dtype = kind == PLAIN ? NN_F32 : NN_U8,
                                               .ndim = kind == BLOCKS   ? 4
                                                       : kind == SCALES ? 3
                                                                        : param->ndim,
                                               .shape = shape};
}

/* A byte that depends on everything. */
static unsigned char packed_byte(const param_t *param, int64_t index) {
  return (unsigned char)((param->offset * 31 + index * 7 + index / 16) % 251);
}

static unsigned char scale_byte(int64_t index) { return (unsigned char)(120 + index % 11); }

static nn_status_t packing_source(void *user, int64_t index, file_writer_t *writer) {
  const packing_t *packing = user;
  const param_t *param = packing->params[index];
  if (packing->kinds[index] == PLAIN) {
    for (int64_t i = 0; i < param->elements; i++) {
      int64_t at = param->offset, rest = i;
      for (int32_t d = param->ndim - 1; d >= 0; rest /= param->shape[d--])
        at += rest % param->shape[d] * param->stride[d];
      CHECK(file_writer_write(writer, &packing->model->values[at], sizeof(float)));
    }
    return NN_OK;
  }
  bool scales = packing->kinds[index] == SCALES;
  for (int64_t i = 0; i < param->elements / (scales ? 32 : 2); i++) {
    unsigned char byte = scales ? scale_byte(i) : packed_byte(param, i);
    CHECK(file_writer_write(writer, &byte, 1));
  }
  return NN_OK;
}

static stamped_t packed_model(int64_t hidden, int64_t ffn) {
  nn_model_config_t config = files_family(NN_FAMILY_GPT_OSS);
  config.hidden = hidden, config.ffn = ffn, config.layers = 2;
  stamped_t model = {.config = config, .table = files_table(&config)};
  model.values = fixture_memory((size_t)model.table.elements * sizeof(float));
  for (int64_t i = 0; i < model.table.elements; i++) model.values[i] = (float)(1 + i);
  return model;
}

/* without: a name to leave out, or NULL; u8: the dtype of blocks. */
static void write_packed(const stamped_t *model, const char *without, int32_t u8) {
  size_t most = 2 * (size_t)model->table.count;
  packing_t packing = {.model = model,
                       .entries = fixture_memory(most * sizeof *packing.entries),
                       .names = fixture_memory(most * sizeof *packing.names),
                       .shapes = fixture_memory(most * sizeof *packing.shapes),
                       .params = fixture_memory(most * sizeof *packing.params),
                       .kinds = fixture_memory(most * sizeof *packing.kinds)};
  for (int64_t i = 0; i < model->table.count; i++) {
    const param_t *param = &model->table.items[i];
    for (int kind = 0; kind < 3; kind++) {
      if ((kind == PLAIN) == packs(param)) continue;
      packing_add(&packing, param, kind);
      if (kind == BLOCKS) packing.entries[packing.count - 1].dtype = u8;
      if (without && strcmp(packing.names[packing.count - 1], without) == 0) packing.count--;
    }
  }
  stamped_write_config(model, folder);
  CHECK(safetensors_write(files_path(folder, "model.safetensors"), packing.entries, packing.count,
                          NULL, 0, packing_source, &packing));
  free(packing.entries), free(packing.names), free(packing.shapes), free(packing.params);
  free(packing.kinds);
}

/* The number at a row and column of an expert's stored matrix. */
static float packed_value(const param_t *param, int64_t expert, int64_t row, int64_t col) {
  static const float numbers[16] = {0,  .5f, 1,  1.5f,  2,  3,  4,  6,
                                    -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};
  int64_t rows = param->shape[2], cols = param->shape[1];
  int64_t index = (expert * rows + row) * cols + col;
  unsigned char byte = packed_byte(param, index / 2);
  return ldexpf(numbers[index % 2 ? byte >> 4 : byte & 15], scale_byte(index / 32) - 127);
}

static void check_reading(int64_t hidden, int64_t ffn) {
  stamped_t model = packed_model(hidden, ffn);
  write_packed(&model, NULL, NN_U8);
  folder_t opened = {0};
  CHECK(folder_open(folder, &opened));
  float *values = fixture_memory((size_t)opened.table.elements * sizeof *values);
  files_watch_t watch = {0};
  CHECK(folder_read(&opened, NN_F32, values, files_watch_progress, &watch, NULL, NULL));
  assert_int_equal(watch.done, watch.total);
  int packed = 0;
  for (int64_t i = 0; i < opened.table.count; i++) {
    const param_t *param = &opened.table.items[i];
    if (!packs(param)) {
      assert_memory_equal(values + param->offset, model.values + param->offset, sizeof *values);
      continue;
    }
    packed++;
    for (int64_t e = 0; e < param->shape[0]; e++)
      for (int64_t row = 0; row < param->shape[2]; row++)
        for (int64_t col = 0; col < param->shape[1]; col++) {
          int64_t at = param->offset + e * param->stride[0] + col * param->stride[1] +
                       row * param->stride[2];
          assert_true(values[at] == packed_value(param, e, row, col));
        }
  }
  assert_int_equal(packed, 4);
  float *again = fixture_memory((size_t)opened.table.elements * sizeof *values);
  nn_device_t *far = fixture_device_named("cpu", 2, 0);
  far->host_memory = false; /* as if only copies reached its memory */
  CHECK(folder_read(&opened, NN_F32, again, NULL, NULL, NULL, far));
  assert_memory_equal(again, values, (size_t)opened.table.elements * sizeof *values);
  nn_device_destroy(far);
  free(again);
  free(values);
  folder_close(&opened);
  stamped_free(&model);
}

static void experts_of_blocks_are_read(void **state) {
  (void)state;
  check_reading(32, 64);
  check_reading(512, 288); /* an expert's numbers are read in two pieces */
}

static void refuse(nn_status_t status, const char *parts) {
  folder_t opened = {0};
  CHECK_FAILS(status, parts, folder_open(folder, &opened));
}

static void blocks_must_fit(void **state) {
  (void)state;
  stamped_t model = packed_model(32, 64);
  write_packed(&model, "model.layers.1.mlp.experts.down_proj_scales", NN_U8);
  refuse(NN_ERR_FORMAT, "\"model.layers.1.mlp.experts.down_proj\"|missing");
  write_packed(&model, NULL, NN_I8);
  refuse(NN_ERR_UNSUPPORTED, "gate_up_proj_blocks|I8|U8");
  stamped_t other = packed_model(32, 64);
  other.config.ffn = 32;
  write_packed(&model, NULL, NN_U8);
  stamped_write_config(&other, folder);
  refuse(NN_ERR_FORMAT, "gate_up_proj_blocks|[3, 64, 1, 16]");
  stamped_free(&other);
  stamped_free(&model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(numbers_and_scales_are_decoded),
      cmocka_unit_test_setup_teardown(experts_of_blocks_are_read, setup, teardown),
      cmocka_unit_test_setup_teardown(blocks_must_fit, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
