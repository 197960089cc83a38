/* llm.c checkpoints for tests: models whose every element has bits of its own, and a writer that
 * shares nothing with the library's. */
#ifndef NN_TEST_LLMC_FILES_H
#define NN_TEST_LLMC_FILES_H

#include "files.h"
#include "format/llmc.h"
#include "model/model.h"

enum { LLMC_WORDS = 256, LLMC_HEADER = 4 * LLMC_WORDS }; /* of the header; in bytes */

/* Between the setup and the teardown of a test: an empty folder, a file in it, and the CPU. */
extern char *llmc_folder;
extern nn_device_t *llmc_device;
int llmc_setup(void **state);
int llmc_teardown(void **state);
const char *llmc_path(void);

nn_model_config_t llmc_config(int64_t vocab, int64_t layers, int64_t hidden, int64_t heads);

/* Every element has bits of its own in F32, and in BF16 those of its neighbours differ. */
nn_model_t *llmc_model(nn_model_config_t config, int32_t dtype, int tag);
nn_model_t *llmc_small_model(int32_t dtype, int tag);

/* Every parameter of `got` is that of `want`, converted to got's dtype by way of `through`. */
void llmc_same_model(const nn_model_t *got, const nn_model_t *want, int32_t through);

typedef struct checkpoint {
  unsigned char *bytes;
  size_t count;
} checkpoint_t;

void checkpoint_append(checkpoint_t *file, const void *data, size_t bytes);

/* Freed by the caller. Rows that pad the vocabulary are full of the byte `pad`. */
checkpoint_t checkpoint_make(const nn_model_t *model, int32_t padded_vocab, int pad);

/* The file at llmc_path() has these bytes, and nothing lies beside it. */
void llmc_file_is(const checkpoint_t *want);

#endif
