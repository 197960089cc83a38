#include "format/gguf.h"

#include <string.h>

enum { MOST_KEY_BYTES = 65535 };

/* ---- bytes ----------------------------------------------------------------------------------- */

typedef struct reader {
  const unsigned char *at, *end;
} reader_t;

static size_t reader_left(const reader_t *reader) { return (size_t)(reader->end - reader->at); }

static uint32_t load_u32(const unsigned char *data) {
  uint32_t value;
  memcpy(&value, data, sizeof value);
  return value;
}

static uint64_t load_u64(const unsigned char *data) {
  uint64_t value;
  memcpy(&value, data, sizeof value);
  return value;
}

static bool read_u32(reader_t *reader, uint32_t *value) {
  if (reader_left(reader) < sizeof *value) return false;
  *value = load_u32(reader->at);
  reader->at += sizeof *value;
  return true;
}

static bool read_u64(reader_t *reader, uint64_t *value) {
  if (reader_left(reader) < sizeof *value) return false;
  *value = load_u64(reader->at);
  reader->at += sizeof *value;
  return true;
}

static bool read_string(reader_t *reader, const unsigned char **data, size_t *bytes) {
  uint64_t length;
  if (!read_u64(reader, &length) || length > reader_left(reader)) return false;
  *data = reader->at;
  *bytes = (size_t)length;
  reader->at += length;
  return true;
}

/* ---- pairs ----------------------------------------------------------------------------------- */

/* Bytes of a value of fixed size; 0 for the others. */
static size_t type_bytes(uint32_t type) {
  switch (type) {
    case GGUF_U8: case GGUF_I8: case GGUF_BOOL: return 1;
    case GGUF_U16: case GGUF_I16: return 2;
    case GGUF_U32: case GGUF_I32: case GGUF_F32: return 4;
    case GGUF_U64: case GGUF_I64: case GGUF_F64: return 8;
    default: return 0;
  }
}

/* Elements of one type, one after the other. */
static bool read_elements(reader_t *reader, uint32_t type, uint64_t count, gguf_value_t *value) {
  size_t bytes = type_bytes(type);
  value->data = reader->at;
  if (bytes) {
    if (count > reader_left(reader) / bytes) return false;
    reader->at += count * bytes;
  } else {
    const unsigned char *data;
    for (uint64_t i = 0; i < count; i++)
      if (!read_string(reader, &data, &bytes)) return false;
  }
  value->bytes = (size_t)(reader->at - value->data);
  return true;
}

static bool type_is_single(uint32_t type) { return type_bytes(type) || type == GGUF_STRING; }

typedef struct pair {
  const unsigned char *key;
  size_t key_bytes;
  gguf_value_t value;
} pair_t;

static const char truncated[] = "the metadata ends within";

static nn_status_t pair_read(reader_t *reader, uint64_t index, pair_t *pair) {
  uint32_t type;
  pair->value = (gguf_value_t){.count = 1};
  if (!read_string(reader, &pair->key, &pair->key_bytes) || !read_u32(reader, &type))
    return status_fail(NN_ERR_FORMAT, "%s pair %llu", truncated, (unsigned long long)index);
  if (pair->key_bytes > MOST_KEY_BYTES)
    return status_fail(NN_ERR_FORMAT, "the key of pair %llu has %zu bytes; at most %d are allowed",
                       (unsigned long long)index, pair->key_bytes, (int)MOST_KEY_BYTES);
  pair->value.type = type;
  if (type == GGUF_ARRAY &&
      (!read_u32(reader, &pair->value.elements) || !read_u64(reader, &pair->value.count)))
    return status_fail(NN_ERR_FORMAT, "%s pair %llu", truncated, (unsigned long long)index);
  uint32_t single = type == GGUF_ARRAY ? pair->value.elements : type;
  if (!type_is_single(single))
    return status_fail(single == GGUF_ARRAY ? NN_ERR_UNSUPPORTED : NN_ERR_FORMAT,
                       "pair %llu has values of type %u; single values have 0 to 8 or 10 to 12",
                       (unsigned long long)index, single);
  bool whole = type == GGUF_STRING
                   ? read_string(reader, &pair->value.data, &pair->value.bytes)
                   : read_elements(reader, single, pair->value.count, &pair->value);
  if (!whole)
    return status_fail(NN_ERR_FORMAT, "%s the value of pair %llu", truncated,
                       (unsigned long long)index);
  return NN_OK;
}

/* ---- the file -------------------------------------------------------------------------------- */

nn_status_t gguf_parse(const unsigned char *data, size_t bytes, gguf_t *file) {
  reader_t reader = {data, data + bytes};
  uint32_t version;
  uint64_t tensors, pairs;
  if (bytes < 4 || memcmp(data, "GGUF", 4) != 0)
    return status_fail(NN_ERR_FORMAT, "the file does not begin with the letters GGUF");
  reader.at += 4;
  if (!read_u32(&reader, &version))
    return status_fail(NN_ERR_FORMAT, "%s the header", truncated);
  if (version != 2 && version != 3)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "the GGUF file has version %u; this library reads 2 and 3, little-endian",
                       version);
  if (!read_u64(&reader, &tensors) || !read_u64(&reader, &pairs))
    return status_fail(NN_ERR_FORMAT, "%s the header", truncated);
  const unsigned char *begin = reader.at;
  for (uint64_t i = 0; i < pairs; i++) {
    pair_t pair = {0};
    STATUS_TRY(pair_read(&reader, i, &pair));
  }
  *file = (gguf_t){.pairs = begin, .end = reader.at, .count = pairs};
  return NN_OK;
}

bool gguf_find(const gguf_t *file, const char *key, gguf_value_t *value) {
  reader_t reader = {file->pairs, file->end};
  size_t length = strlen(key);
  for (uint64_t i = 0; i < file->count; i++) {
    pair_t pair = {0};
    if (pair_read(&reader, i, &pair) != NN_OK) return false; /* cannot be: it was parsed */
    if (pair.key_bytes != length || memcmp(pair.key, key, length) != 0) continue;
    *value = pair.value;
    return true;
  }
  return false;
}

nn_status_t gguf_find_as(const gguf_t *file, const char *key, bool array, uint32_t type,
                         gguf_value_t *value, bool *found) {
  gguf_value_t got;
  *found = gguf_find(file, key, &got);
  if (!*found) return NN_OK;
  if ((got.type == GGUF_ARRAY) != array || (array ? got.elements : got.type) != type)
    return status_fail(NN_ERR_FORMAT, "%s has type %u%s; it must be %s%u", key,
                       array && got.type == GGUF_ARRAY ? got.elements : got.type,
                       got.type == GGUF_ARRAY ? " in an array" : "", array ? "an array of " : "",
                       type);
  *value = got;
  return NN_OK;
}

nn_status_t gguf_integer(const gguf_t *file, const char *key, int64_t fallback, int64_t *number) {
  gguf_value_t value;
  if (!gguf_find(file, key, &value)) {
    *number = fallback;
    return NN_OK;
  }
  switch (value.type) {
    case GGUF_U8: case GGUF_BOOL: *number = value.data[0]; return NN_OK;
    case GGUF_I8: *number = (int8_t)value.data[0]; return NN_OK;
    case GGUF_U16: *number = value.data[0] | value.data[1] << 8; return NN_OK;
    case GGUF_I16: *number = (int16_t)(value.data[0] | value.data[1] << 8); return NN_OK;
    case GGUF_U32: *number = load_u32(value.data); return NN_OK;
    case GGUF_I32: *number = (int32_t)load_u32(value.data); return NN_OK;
    case GGUF_U64: case GGUF_I64: *number = (int64_t)load_u64(value.data); return NN_OK;
    default:
      return status_fail(NN_ERR_FORMAT, "%s has type %u; it must be an integer or a boolean", key,
                         value.type);
  }
}

void gguf_next_string(const unsigned char **place, const char **data, size_t *bytes) {
  *bytes = (size_t)load_u64(*place);
  *data = (const char *)(*place + 8);
  *place += 8 + *bytes;
}
