/* The metadata of a GGUF file (version 2 or 3, little-endian): "GGUF", u32 version, i64 tensors,
 * i64 pairs, then each pair: key string, u32 type, value. A string is a u64 length and its bytes;
 * an array is a u32 element type, a u64 count and the elements. The tensors behind it are not
 * looked at. */
#ifndef NN_FORMAT_GGUF_H
#define NN_FORMAT_GGUF_H

#include <stdbool.h>

#include "base/status.h"

/* Types of values, as the file numbers them. */
enum {
  GGUF_U8 = 0,
  GGUF_I8 = 1,
  GGUF_U16 = 2,
  GGUF_I16 = 3,
  GGUF_U32 = 4,
  GGUF_I32 = 5,
  GGUF_F32 = 6,
  GGUF_BOOL = 7,
  GGUF_STRING = 8,
  GGUF_ARRAY = 9,
  GGUF_U64 = 10,
  GGUF_I64 = 11,
  GGUF_F64 = 12
};

typedef struct gguf {
  const unsigned char *pairs, *end; /* of the metadata */
  uint64_t count;                   /* of pairs */
} gguf_t;

/* A value, or an array's elements; points into the file. */
typedef struct gguf_value {
  uint32_t type;             /* GGUF_ARRAY: elements says of what */
  uint32_t elements;         /* of an array */
  uint64_t count;            /* of an array; else 1 */
  const unsigned char *data; /* of a string: behind its length */
  size_t bytes;
} gguf_value_t;

/* Walks over all metadata of a file in memory, which must outlive it; takes no memory. What is
 * accepted can be walked over again without a check. */
nn_status_t gguf_parse(const unsigned char *data, size_t bytes, gguf_t *file);

/* The value of a key, or false; of a key that comes twice the first. */
bool gguf_find(const gguf_t *file, const char *key, gguf_value_t *value);

/* The same for a value that must have a type; absent: false with NN_OK. An array must have elements
 * of `type`. */
nn_status_t gguf_find_as(const gguf_t *file, const char *key, bool array, uint32_t type,
                         gguf_value_t *value, bool *found);

/* A single number or boolean as an integer; absent: fallback. */
nn_status_t gguf_integer(const gguf_t *file, const char *key, int64_t fallback, int64_t *number);

/* Goes through an array of strings: *data and *bytes are those of the string at *place, which then
 * moves to the next one. Begin with the array's data. */
void gguf_next_string(const unsigned char **place, const char **data, size_t *bytes);

#endif
