#include "llmc_files.h"

#include <stdio.h>
#include <string.h>

#include "base/dtype.h"

char *llmc_folder;
nn_device_t *llmc_device;

int llmc_setup(void **state) {
  (void)state;
  llmc_folder = fixture_folder();
  llmc_device = fixture_device_named("cpu", 1, 0);
  return 0;
}

int llmc_teardown(void **state) {
  (void)state;
  nn_device_destroy(llmc_device);
  fixture_folder_remove(llmc_folder);
  return 0;
}

const char *llmc_path(void) { return files_path(llmc_folder, "model.bin"); }

/* ---- models ---------------------------------------------------------------------------------- */

nn_model_config_t llmc_config(int64_t vocab, int64_t layers, int64_t hidden, int64_t heads) {
  nn_model_config_t config = files_gpt2();
  config.vocab_size = vocab, config.layers = layers, config.hidden = hidden, config.heads = heads;
  config.head_dim = 0, config.kv_heads = 0, config.ffn = 4 * hidden;
  CHECK(nn_config_validate(&config));
  return config;
}

nn_model_t *llmc_model(nn_model_config_t config, int32_t dtype, int tag) {
  nn_model_t *model;
  CHECK(nn_model_create(llmc_device, &config, dtype, 1, &model));
  int64_t count = 0;
  for (int64_t i = 0; i < nn_model_parameter_count(model); i++) {
    nn_tensor_t *tensor;
    nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
    CHECK(nn_model_parameter(model, nn_model_parameter_name(model, i), &tensor));
    CHECK(nn_tensor_info(tensor, &info));
    size_t bytes = (size_t)info.elements * nn_dtype_bytes(dtype);
    unsigned char *values = fixture_memory(bytes);
    for (int64_t j = 0; j < info.elements; j++, count++) {
      float value = (float)tag + (float)count / 65536;
      uint16_t bits = (uint16_t)(7 * count + tag);
      if (dtype == NN_F32) memcpy(values + 4 * j, &value, 4);
      if (dtype == NN_BF16) memcpy(values + 2 * j, &bits, 2);
    }
    CHECK(nn_tensor_copy_in(tensor, values, bytes));
    free(values);
    nn_tensor_destroy(tensor);
  }
  assert_true(count <= 65536);
  return model;
}

nn_model_t *llmc_small_model(int32_t dtype, int tag) {
  return llmc_model(llmc_config(131, 2, 12, 3), dtype, tag);
}

/* The parameter in its published shape; freed by the caller. */
static unsigned char *published(const nn_model_t *model, const char *name, nn_tensor_info_t *info,
                                int64_t shape[2]) {
  nn_tensor_t *tensor;
  CHECK(nn_model_parameter(model, name, &tensor));
  CHECK(nn_tensor_info(tensor, info));
  size_t bytes = (size_t)info->elements * nn_dtype_bytes(info->dtype);
  unsigned char *values = fixture_memory(bytes);
  CHECK(nn_tensor_copy_out(tensor, values, bytes));
  for (int i = 0; i < info->ndim; i++) shape[i] = info->shape[i];
  nn_tensor_destroy(tensor);
  return values;
}

void llmc_same_model(const nn_model_t *got, const nn_model_t *want, int32_t through) {
  assert_memory_equal(&got->config, &want->config, sizeof got->config);
  for (int64_t i = 0; i < nn_model_parameter_count(want); i++) {
    const char *name = nn_model_parameter_name(want, i);
    nn_tensor_info_t got_info = STRUCT(nn_tensor_info_t), want_info = got_info;
    int64_t shape[2];
    unsigned char *a = published(got, name, &got_info, shape);
    unsigned char *b = published(want, name, &want_info, shape);
    size_t bytes = (size_t)got_info.elements * nn_dtype_bytes(got_info.dtype);
    assert_int_equal(got_info.elements, want_info.elements);
    unsigned char *filed = fixture_memory((size_t)want_info.elements * 4);
    unsigned char *expected = fixture_memory((size_t)want_info.elements * 4);
    dtype_convert(filed, through, b, want_info.dtype, want_info.elements);
    dtype_convert(expected, got_info.dtype, filed, through, want_info.elements);
    if (memcmp(a, expected, bytes) != 0) fail_msg("%s differs", name);
    free(a), free(b), free(filed), free(expected);
  }
}

/* ---- an independent writer ------------------------------------------------------------------- */

void checkpoint_append(checkpoint_t *file, const void *data, size_t bytes) {
  file->bytes = realloc(file->bytes, file->count + bytes);
  assert_non_null(file->bytes);
  memcpy(file->bytes + file->count, data, bytes);
  file->count += bytes;
}

/* Linear layers of GPT-2 are published as [in, out]; llm.c has [out, in]. */
static void append_parameter(checkpoint_t *file, const nn_model_t *model, const char *name,
                             int linear) {
  nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
  int64_t shape[2] = {0};
  unsigned char *values = published(model, name, &info, shape);
  size_t element = nn_dtype_bytes(info.dtype);
  if (!linear) checkpoint_append(file, values, (size_t)info.elements * element);
  if (linear)
    for (int64_t out = 0; out < shape[1]; out++)
      for (int64_t in = 0; in < shape[0]; in++)
        checkpoint_append(file, values + (size_t)(in * shape[1] + out) * element, element);
  free(values);
}

checkpoint_t checkpoint_make(const nn_model_t *model, int32_t padded_vocab, int pad) {
  static const struct {
    const char *name;
    int linear;
  } parts[] = {{"ln_1.weight", 0},        {"ln_1.bias", 0},        {"attn.c_attn.weight", 1},
               {"attn.c_attn.bias", 0},   {"attn.c_proj.weight", 1}, {"attn.c_proj.bias", 0},
               {"ln_2.weight", 0},        {"ln_2.bias", 0},        {"mlp.c_fc.weight", 1},
               {"mlp.c_fc.bias", 0},      {"mlp.c_proj.weight", 1}, {"mlp.c_proj.bias", 0}};
  const nn_model_config_t *c = &model->config;
  int32_t header[LLMC_WORDS] = {20240326,
                           model->dtype == NN_F32 ? 3 : 5,
                           (int32_t)c->context,
                           (int32_t)c->vocab_size,
                           (int32_t)c->layers,
                           (int32_t)c->heads,
                           (int32_t)c->hidden,
                           padded_vocab};
  checkpoint_t file = {0};
  checkpoint_append(&file, header, sizeof header);
  append_parameter(&file, model, "transformer.wte.weight", 0);
  size_t padding =
      (size_t)((padded_vocab - c->vocab_size) * c->hidden) * nn_dtype_bytes(model->dtype);
  unsigned char *rows = fixture_memory(padding);
  memset(rows, pad, padding);
  checkpoint_append(&file, rows, padding);
  free(rows);
  append_parameter(&file, model, "transformer.wpe.weight", 0);
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
    for (int64_t layer = 0; layer < c->layers; layer++) {
      char name[PARAM_NAME_BYTES];
      snprintf(name, sizeof name, "transformer.h.%d.%s", (int)layer, parts[i].name);
      append_parameter(&file, model, name, parts[i].linear);
    }
  append_parameter(&file, model, "transformer.ln_f.weight", 0);
  append_parameter(&file, model, "transformer.ln_f.bias", 0);
  return file;
}

/* ---- the file -------------------------------------------------------------------------------- */

void llmc_file_is(const checkpoint_t *want) {
  size_t bytes;
  unsigned char *got = files_read(llmc_folder, "model.bin", &bytes);
  assert_non_null(got);
  assert_int_equal(bytes, want->count);
  assert_memory_equal(got, want->bytes, bytes);
  free(got);
  assert_int_equal(files_count(llmc_folder), 1); /* nothing is left beside it */
}
