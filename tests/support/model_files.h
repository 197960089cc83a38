/* Model folders for tests: models whose every element says which model it belongs to, saved, read
 * back, and written by hand with whatever is wrong about them. */
#ifndef NN_TEST_MODEL_FILES_H
#define NN_TEST_MODEL_FILES_H

#include "files.h"
#include "format/folder.h"

typedef struct stamped {
  nn_model_config_t config;
  param_table_t table;
  float *values; /* [table.elements] tag + i / 65536, exact below 8 tags of 65536 elements */
} stamped_t;

stamped_t stamped_make(nn_model_config_t config, int tag);
void stamped_free(stamped_t *model);

/* F32, without progress; shard_bytes 0: one file. */
nn_status_t stamped_save(const stamped_t *model, const char *folder, int64_t shard_bytes);

/* Opens a folder and reads it: true when configuration and every value are this model's. A folder
 * that cannot be read fails the test. */
int stamped_is(const stamped_t *model, const char *folder);

/* What is to be unlike the published form in a file written by hand. */
typedef struct oddity {
  int bare;                /* GPT-2 without its prefix */
  int32_t dtype;           /* of every tensor; 0: F32 */
  const char *skip;        /* tensor to leave out */
  const char *rename, *to; /* tensor to write under another name */
  const char *reshape;     /* tensor to write with its elements as one dimension */
  const char *retype;      /* tensor to write as `to_dtype`; 0: F64 */
  int32_t to_dtype;
  const char *extra[3];    /* more tensors, of two F32 zeros */
} oddity_t;

/* Writes the model to one file of a folder, zero initialised oddity for the published form. */
void stamped_write(const stamped_t *model, const char *folder, const char *name, oddity_t oddity);

/* Writes config.json. */
void stamped_write_config(const stamped_t *model, const char *folder);

#endif
