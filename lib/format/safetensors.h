/* safetensors files: a mapped reader that trusts nothing, and a writer that streams.
 *
 * A file is a little-endian u64 n, n bytes of JSON that map names to dtype, shape and data_offsets,
 * and the tensors' row-major data, tightly packed. */
#ifndef NN_FORMAT_SAFETENSORS_H
#define NN_FORMAT_SAFETENSORS_H

#include <jansson.h>

#include "base/file.h"

typedef struct safetensors_tensor {
  const char *name;
  const char *dtype_name; /* as in the file */
  int32_t dtype; /* NN_ dtype, or -1: one that the library has no type for, such as F8_E4M3 */
  int32_t ndim;
  int64_t shape[NN_MAX_DIMS];
  int64_t elements;
  const unsigned char *data; /* not always aligned to its element */
  size_t bytes;
} safetensors_tensor_t;

typedef struct safetensors {
  file_map_t map; /* zero when parsed from memory */
  json_t *header;
  safetensors_tensor_t *tensors; /* in the order of their data */
  int64_t count;
} safetensors_t;

/* Maps a file and checks all of its header; no data is read. A failure names the path. */
nn_status_t safetensors_open(const char *path, safetensors_t *file);
/* The same for a file that is mapped; on success the map belongs to the result. path is for
 * messages. */
nn_status_t safetensors_take(const char *path, file_map_t *map, safetensors_t *file);
/* The same for a file in memory, which must outlive it; messages name no path. */
nn_status_t safetensors_parse(const unsigned char *data, size_t bytes, safetensors_t *file);
void safetensors_close(safetensors_t *file); /* a zeroed one is left alone */

/* A value of __metadata__, or NULL. */
const char *safetensors_metadata(const safetensors_t *file, const char *key);

/* ---- writing --------------------------------------------------------------------------------- */

/* A tensor to be written. */
typedef struct safetensors_entry {
  const char *name;
  int32_t dtype; /* NN_ dtype */
  int32_t ndim;
  const int64_t *shape;
} safetensors_entry_t;

typedef struct safetensors_pair {
  const char *key, *value;
} safetensors_pair_t;

/* Writes all bytes of tensor `index` with file_writer_write(). */
typedef nn_status_t (*safetensors_source_fn)(void *user, int64_t index, file_writer_t *writer);

/* Writes a file, whole or not at all: entries in the given order, __metadata__ of "format": "pt"
 * and the given pairs, data from byte 64 n on. Names must be distinct UTF-8. */
nn_status_t safetensors_write(const char *path, const safetensors_entry_t *entries, int64_t count,
                              const safetensors_pair_t *metadata, int64_t metadata_count,
                              safetensors_source_fn source, void *user);

#endif
