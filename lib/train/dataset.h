/* A token stream cut into windows. Which windows a batch holds is a function of (seed, position)
 * alone, so any position is reached in constant time and nothing is kept per window. */
#ifndef NN_TRAIN_DATASET_H
#define NN_TRAIN_DATASET_H

#include "base/file.h"
#include "base/status.h"

/* Ids one after another, wherever they lie. */
typedef struct dataset_stream {
  const void *ids;
  int32_t id_bytes;   /* 1, 2: unsigned; 4: int32, none negative */
  int64_t count;
  file_map_t file;    /* what ids point into: a mapped file, */
  void *copy;         /* or memory of mem_alloc; the other one is empty */
} dataset_stream_t;

void dataset_stream_free(dataset_stream_t *stream);

/* Checks the options and makes the handle. It owns the stream from then on; on failure the caller
 * still does. */
nn_status_t dataset_create(const dataset_stream_t *stream, const nn_dataset_options_t *options,
                           nn_dataset_t **dataset);
void dataset_destroy(nn_dataset_t *dataset);

void dataset_describe(const nn_dataset_t *dataset, nn_dataset_info_t *info);

/* Fills tokens and targets, [batch, seq_len], and goes one position on. */
nn_status_t dataset_next(nn_dataset_t *dataset, int32_t *tokens, int32_t *targets);

int64_t dataset_position(const nn_dataset_t *dataset);
void dataset_seek(nn_dataset_t *dataset, int64_t position);

#endif
