/* llm.c token files: a header of 256 int32 (magic 20240520, version 1, count), then count uint16
 * ids, all little-endian. */
#ifndef NN_TRAIN_TOKEN_FILE_H
#define NN_TRAIN_TOKEN_FILE_H

#include "base/status.h"

/* Finds the ids in the bytes of a whole file, which are aligned to 4. The file is not trusted: its
 * size must be exactly what the header says. */
nn_status_t token_file_parse(const void *data, size_t bytes, const uint16_t **ids, int64_t *count);

/* Writes a file, whole or not at all. NN_ERR_UNSUPPORTED: an id or the count does not fit into
 * it. */
nn_status_t token_file_save(const char *path, const int32_t *ids, int64_t count);

#endif
