#include "format/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/json_text.h"
#include "base/mem.h"
#include "base/status.h"
#include "format/name_show.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "safetensors data is read and written as is");

/* ---- reading: one tensor --------------------------------------------------------------------- */

enum { MOST_HEADER = 100 * 1000 * 1000 }; /* the format's own limit */

static const struct {
  const char *name;
  int32_t dtype;
  size_t bytes;
} dtypes[] = {
    {"F64", NN_F64, 8}, {"F32", NN_F32, 4},   {"F16", NN_F16, 2}, {"BF16", NN_BF16, 2},
    {"I64", NN_I64, 8}, {"I32", NN_I32, 4},   {"I16", NN_I16, 2}, {"I8", NN_I8, 1},
    {"U8", NN_U8, 1},   {"BOOL", NN_BOOL, 1}, {"U64", -1, 8},     {"U32", -1, 4},
    {"U16", -1, 2},     {"F8_E4M3", -1, 1},   {"F8_E5M2", -1, 1}, {"F8_E8M0", -1, 1},
};

static nn_status_t tensor_bad(const char *name, const char *what) {
  return status_fail(NN_ERR_FORMAT, "tensor \"%s\": %s", name_show(name).text, what);
}

static nn_status_t tensor_read_dtype(const json_t *value, safetensors_tensor_t *tensor,
                                     size_t *bytes) {
  const char *name = json_string_value(value);
  if (!name) return tensor_bad(tensor->name, "dtype is not a text");
  for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
    if (strcmp(name, dtypes[i].name) != 0) continue;
    tensor->dtype_name = dtypes[i].name;
    tensor->dtype = dtypes[i].dtype;
    *bytes = dtypes[i].bytes;
    return NN_OK;
  }
  return status_fail(NN_ERR_FORMAT, "tensor \"%s\": dtype \"%.32s\" is not known",
                     name_show(tensor->name).text, name);
}

static nn_status_t tensor_read_shape(const json_t *value, safetensors_tensor_t *tensor) {
  if (!json_is_array(value)) return tensor_bad(tensor->name, "shape is not a list");
  if (json_array_size(value) > NN_MAX_DIMS)
    return status_fail(NN_ERR_FORMAT, "tensor \"%s\": has %zu dimensions; at most %d are read",
                       name_show(tensor->name).text, json_array_size(value), NN_MAX_DIMS);
  tensor->ndim = (int32_t)json_array_size(value);
  tensor->elements = 1;
  for (int32_t i = 0; i < tensor->ndim; i++) {
    const json_t *size = json_array_get(value, (size_t)i);
    if (!json_is_integer(size) || json_integer_value(size) < 0)
      return tensor_bad(tensor->name, "a size in shape is not a whole number of at least 0");
    tensor->shape[i] = json_integer_value(size);
    if (!mem_mul(tensor->elements, tensor->shape[i], &tensor->elements))
      return tensor_bad(tensor->name, "the product of its shape overflows");
  }
  return NN_OK;
}

/* Sets data and bytes from data_offsets, which must agree with the shape and lie in the file. */
static nn_status_t tensor_read_offsets(const json_t *value, size_t element,
                                       const unsigned char *data, size_t data_bytes,
                                       safetensors_tensor_t *tensor) {
  const json_t *first = json_array_get(value, 0), *last = json_array_get(value, 1);
  if (json_array_size(value) != 2 || !json_is_integer(first) || !json_is_integer(last))
    return tensor_bad(tensor->name, "data_offsets is not a pair of whole numbers");
  int64_t begin = json_integer_value(first), end = json_integer_value(last), bytes;
  if (begin < 0 || end < begin || (uint64_t)end > data_bytes)
    return status_fail(
        NN_ERR_FORMAT,
        "tensor \"%s\": data_offsets are %lld and %lld, and the file has %zu bytes of data",
        name_show(tensor->name).text, (long long)begin, (long long)end, data_bytes);
  if (!mem_mul(tensor->elements, (int64_t)element, &bytes) || bytes != end - begin)
    return status_fail(
        NN_ERR_FORMAT,
        "tensor \"%s\": data_offsets hold %lld bytes, its shape of %lld elements of "
        "%s needs another number",
        name_show(tensor->name).text, (long long)(end - begin), (long long)tensor->elements,
        tensor->dtype_name);
  tensor->data = data + begin;
  tensor->bytes = (size_t)bytes;
  return NN_OK;
}

static nn_status_t tensor_read(const char *name, const json_t *entry, const unsigned char *data,
                               size_t data_bytes, safetensors_tensor_t *tensor) {
  *tensor = (safetensors_tensor_t){.name = name};
  const json_t *dtype = json_object_get(entry, "dtype"), *shape = json_object_get(entry, "shape");
  const json_t *offsets = json_object_get(entry, "data_offsets");
  if (!dtype || !shape || !offsets || json_object_size(entry) != 3)
    return tensor_bad(name, "is not described by dtype, shape and data_offsets alone");
  size_t element = 0;
  STATUS_TRY(tensor_read_dtype(dtype, tensor, &element));
  STATUS_TRY(tensor_read_shape(shape, tensor));
  return tensor_read_offsets(offsets, element, data, data_bytes, tensor);
}

/* ---- reading: the file ----------------------------------------------------------------------- */

static int tensor_by_place(const void *a, const void *b) {
  const safetensors_tensor_t *left = a, *right = b;
  if (left->data != right->data) return left->data < right->data ? -1 : 1;
  if (left->bytes != right->bytes) return left->bytes < right->bytes ? -1 : 1;
  return strcmp(left->name, right->name);
}

/* Tensors follow each other without overlap or hole, from the first byte of data to the last. */
static nn_status_t safetensors_check_cover(const safetensors_t *file, const unsigned char *data,
                                           size_t data_bytes) {
  size_t end = 0;
  for (int64_t i = 0; i < file->count; i++) {
    const safetensors_tensor_t *tensor = &file->tensors[i];
    size_t begin = (size_t)(tensor->data - data);
    if (begin != end)
      return status_fail(
          NN_ERR_FORMAT, "tensor \"%s\": begins at byte %zu of the data, %s byte %zu",
          name_show(tensor->name).text, begin,
          begin < end ? "and overlaps the one that ends at" : "which leaves a hole from", end);
    end = begin + tensor->bytes;
  }
  if (end != data_bytes)
    return status_fail(NN_ERR_FORMAT, "%zu bytes of data follow the last tensor", data_bytes - end);
  return NN_OK;
}

static nn_status_t safetensors_check_metadata(const json_t *metadata) {
  const char *key;
  json_t *value;
  if (!json_is_object(metadata)) return status_fail(NN_ERR_FORMAT, "__metadata__ is not an object");
  json_object_foreach((json_t *)metadata, key, value) {
    if (!json_is_string(value))
      return status_fail(NN_ERR_FORMAT, "__metadata__: \"%s\" is not a text",
                         name_show(key).text);
  }
  return NN_OK;
}

static nn_status_t safetensors_read_header(safetensors_t *file, const unsigned char *data,
                                           size_t data_bytes) {
  if (!json_is_object(file->header))
    return status_fail(NN_ERR_FORMAT, "its header is not an object");
  void *tensors;
  STATUS_TRY(mem_alloc(json_object_size(file->header), sizeof *file->tensors, &tensors));
  file->tensors = tensors;
  const char *name;
  json_t *entry;
  json_object_foreach(file->header, name, entry) {
    if (strcmp(name, "__metadata__") == 0) {
      STATUS_TRY(safetensors_check_metadata(entry));
      continue;
    }
    STATUS_TRY(tensor_read(name, entry, data, data_bytes, &file->tensors[file->count]));
    file->count++;
  }
  qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, tensor_by_place);
  return safetensors_check_cover(file, data, data_bytes);
}

nn_status_t safetensors_parse(const unsigned char *data, size_t bytes, safetensors_t *file) {
  uint64_t header_bytes;
  if (bytes < sizeof header_bytes)
    return status_fail(NN_ERR_FORMAT, "has %zu bytes; not even the length of its header", bytes);
  memcpy(&header_bytes, data, sizeof header_bytes);
  size_t most = bytes - sizeof header_bytes;
  if (header_bytes > MOST_HEADER || header_bytes > most)
    return status_fail(
        NN_ERR_FORMAT,
        "its header claims %llu bytes; the file has %zu behind it, and %d are the limit",
        (unsigned long long)header_bytes, most, MOST_HEADER);
  if (!header_bytes || data[sizeof header_bytes] != '{')
    return status_fail(NN_ERR_FORMAT, "its header does not begin with {");

  safetensors_t parsed = {0};
  const unsigned char *text = data + sizeof header_bytes;
  nn_status_t status = json_text_read(text, (size_t)header_bytes, 0, &parsed.header);
  if (status != NN_OK) return status_prefix(status, "its header, which must be JSON");
  status = safetensors_read_header(&parsed, text + header_bytes, most - (size_t)header_bytes);
  if (status != NN_OK) {
    safetensors_close(&parsed);
    return status;
  }
  *file = parsed;
  return NN_OK;
}

nn_status_t safetensors_take(const char *path, file_map_t *map, safetensors_t *file) {
  nn_status_t status = safetensors_parse(map->data, map->bytes, file);
  if (status != NN_OK) return status_prefix(status, "%s", file_show(path).text);
  file->map = *map;
  *map = (file_map_t){0};
  return NN_OK;
}

nn_status_t safetensors_open(const char *path, safetensors_t *file) {
  file_map_t map;
  STATUS_TRY(file_map(path, &map));
  nn_status_t status = safetensors_take(path, &map, file);
  file_unmap(&map);
  return status;
}

void safetensors_close(safetensors_t *file) {
  json_decref(file->header);
  mem_free(file->tensors);
  file_unmap(&file->map);
  *file = (safetensors_t){0};
}

const char *safetensors_metadata(const safetensors_t *file, const char *key) {
  return json_string_value(json_object_get(json_object_get(file->header, "__metadata__"), key));
}

/* ---- writing --------------------------------------------------------------------------------- */

static int64_t entry_bytes(const safetensors_entry_t *entry) {
  int64_t bytes = (int64_t)nn_dtype_bytes(entry->dtype);
  for (int32_t i = 0; i < entry->ndim; i++) bytes *= entry->shape[i];
  return bytes;
}

static json_t *entry_describe(const safetensors_entry_t *entry, int64_t begin) {
  json_t *shape = json_array();
  for (int32_t i = 0; shape && i < entry->ndim; i++)
    if (json_array_append_new(shape, json_integer(entry->shape[i]))) {
      json_decref(shape);
      shape = NULL;
    }
  /* a NULL in place of a value makes json_pack fail, and free the others */
  return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(entry->dtype), "shape", shape,
                   "data_offsets", (json_int_t)begin, (json_int_t)(begin + entry_bytes(entry)));
}

/* The header as JSON, or NULL when memory is short. */
static json_t *header_build(const safetensors_entry_t *entries, int64_t count,
                            const safetensors_pair_t *metadata, int64_t metadata_count) {
  json_t *header = json_object(), *pairs = json_pack("{s:s}", "format", "pt");
  int failed = !header || !pairs;
  for (int64_t i = 0; !failed && i < metadata_count; i++)
    failed = json_object_set_new(pairs, metadata[i].key, json_string(metadata[i].value));
  failed = failed || json_object_set(header, "__metadata__", pairs);
  json_decref(pairs);
  int64_t offset = 0;
  for (int64_t i = 0; !failed && i < count; i++) {
    failed = json_object_set_new(header, entries[i].name, entry_describe(&entries[i], offset));
    offset += entry_bytes(&entries[i]);
  }
  if (!failed) return header;
  json_decref(header);
  return NULL;
}

/* Length, JSON and spaces up to a multiple of 64 bytes. */
static nn_status_t header_write(const json_t *header, file_writer_t *writer) {
  enum { MULTIPLE = 64 };
  char *text;
  size_t length;
  STATUS_TRY(json_text_write(header, JSON_COMPACT, MULTIPLE, &text, &length));
  uint64_t padded = (sizeof padded + length + MULTIPLE - 1) / MULTIPLE * MULTIPLE - sizeof padded;
  memset(text + length, ' ', (size_t)padded - length);
  nn_status_t status = NN_OK;
  if (padded > MOST_HEADER)
    status = status_fail(NN_ERR_UNSUPPORTED, "its header would have %zu bytes; %d are the limit",
                         length, MOST_HEADER);
  if (status == NN_OK) status = file_writer_write(writer, &padded, sizeof padded);
  if (status == NN_OK) status = file_writer_write(writer, text, (size_t)padded);
  mem_free(text);
  return status;
}

static nn_status_t body_write(const safetensors_entry_t *entries, int64_t count,
                              safetensors_source_fn source, void *user, file_writer_t *writer) {
  for (int64_t i = 0; i < count; i++) {
    int64_t end = writer->bytes + entry_bytes(&entries[i]);
    STATUS_TRY(source(user, i, writer));
    if (writer->bytes != end)
      return status_fail(NN_ERR_ARGUMENT,
                         "tensor \"%s\": the source ended at byte %lld, not %lld",
                         name_show(entries[i].name).text, (long long)writer->bytes, (long long)end);
  }
  return NN_OK;
}

nn_status_t safetensors_write(const char *path, const safetensors_entry_t *entries, int64_t count,
                              const safetensors_pair_t *metadata, int64_t metadata_count,
                              safetensors_source_fn source, void *user) {
  json_t *header = header_build(entries, count, metadata, metadata_count);
  if (!header)
    return status_fail(NN_ERR_MEMORY, "%s: memory for its header could not be had",
                       file_show(path).text);
  file_writer_t writer = {0};
  nn_status_t status = file_writer_open(path, &writer);
  if (status == NN_OK) status = header_write(header, &writer);
  if (status == NN_OK) status = body_write(entries, count, source, user, &writer);
  json_decref(header);
  if (status == NN_OK) return file_writer_commit(&writer);
  file_writer_discard(&writer);
  return status;
}
