#include "golden.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fixture.h"

char *golden_text(const char *folder, const char *file, size_t *bytes) {
  char path[1024];
  snprintf(path, sizeof path, MOENN_TEST_DIR "/golden/%s/%s", folder, file);
  FILE *stream = fopen(path, "rb");
  if (!stream) fail_msg("%s cannot be opened", path);
  assert_int_equal(fseek(stream, 0, SEEK_END), 0);
  long size = ftell(stream);
  assert_true(size >= 0);
  rewind(stream);
  char *text = fixture_memory((size_t)size + 1);
  assert_int_equal(fread(text, 1, (size_t)size, stream), size);
  fclose(stream);
  *bytes = (size_t)size;
  return text;
}

static int32_t golden_dtype(const char *name) {
  static const struct {
    const char *name;
    int32_t dtype;
  } known[] = {{"F32", NN_F32}, {"F64", NN_F64}, {"I32", NN_I32}, {"I64", NN_I64}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (strcmp(name, known[i].name) == 0) return known[i].dtype;
  fail_msg("golden files have no dtype %s", name);
  return -1;
}

static void golden_read_entry(golden_tensor_t *tensor, const char *name, const json_t *entry,
                              const char *data) {
  const json_t *shape = json_object_get(entry, "shape");
  size_t length = strlen(name) + 1;
  tensor->name = fixture_memory(length);
  memcpy(tensor->name, name, length);
  tensor->dtype = golden_dtype(json_string_value(json_object_get(entry, "dtype")));
  tensor->ndim = (int32_t)json_array_size(shape);
  assert_true(tensor->ndim <= GOLDEN_DIMS);
  tensor->elements = 1;
  for (int32_t i = 0; i < tensor->ndim; i++) {
    tensor->shape[i] = json_integer_value(json_array_get(shape, (size_t)i));
    tensor->elements *= tensor->shape[i];
  }
  tensor->data =
      data + json_integer_value(json_array_get(json_object_get(entry, "data_offsets"), 0));
}

void golden_open(golden_t *golden, const char *folder, const char *file) {
  size_t bytes;
  golden->bytes = golden_text(folder, file, &bytes);
  uint64_t header;
  memcpy(&header, golden->bytes, sizeof header);
  json_t *root = json_loadb(golden->bytes + 8, header, 0, NULL);
  assert_non_null(root);
  golden->tensors = fixture_memory(json_object_size(root) * sizeof(golden_tensor_t));
  golden->count = 0;
  const char *name;
  json_t *entry;
  json_object_foreach(root, name, entry) {
    if (strcmp(name, "__metadata__") == 0) continue;
    golden_read_entry(&golden->tensors[golden->count++], name, entry, golden->bytes + 8 + header);
  }
  json_decref(root);
}

void golden_close(golden_t *golden) {
  for (int64_t i = 0; i < golden->count; i++) free(golden->tensors[i].name);
  free(golden->tensors);
  free(golden->bytes);
}

const golden_tensor_t *golden_get(const golden_t *golden, const char *prefix, const char *name) {
  size_t length = strlen(prefix);
  for (int64_t i = 0; i < golden->count; i++) {
    const golden_tensor_t *tensor = &golden->tensors[i];
    if (strncmp(tensor->name, prefix, length) == 0 && strcmp(tensor->name + length, name) == 0)
      return tensor;
  }
  fail_msg("the golden file has no tensor %s%s", prefix, name);
  return NULL;
}

static const void *golden_data(const golden_t *golden, const char *name, int32_t dtype) {
  const golden_tensor_t *tensor = golden_get(golden, "", name);
  assert_int_equal(tensor->dtype, dtype);
  return tensor->data;
}

const float *golden_f32(const golden_t *golden, const char *name) {
  return golden_data(golden, name, NN_F32);
}

const double *golden_f64(const golden_t *golden, const char *name) {
  return golden_data(golden, name, NN_F64);
}

const int32_t *golden_i32(const golden_t *golden, const char *name) {
  return golden_data(golden, name, NN_I32);
}
