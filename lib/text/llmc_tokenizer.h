/* llm.c tokenizer files: 256 uint32 (magic 20240328, version 1 or 2, number of tokens, in version 2
 * the id that ends a text, zeros), then of each token one byte that says how many bytes follow, and
 * those; little-endian. Made for decoding, they know neither merges nor the way to cut text into
 * words; one whose ids are in the order of its merges, cut as GPT-2 does, can encode too. */
#ifndef NN_TEXT_LLMC_TOKENIZER_H
#define NN_TEXT_LLMC_TOKENIZER_H

#include "text/pipeline.h"

enum { LLMC_TOKENIZER_MAGIC = 20240328 };

/* Describes the tokenizer of a file in memory, into an initialized pipeline. */
nn_status_t llmc_tokenizer_read(text_t file, pipeline_t *pipeline);

/* Writes version 2 of a byte-level vocabulary without gaps. NN_ERR_UNSUPPORTED says what the format
 * has no place for. */
nn_status_t llmc_tokenizer_save(const char *path, const pipeline_t *pipeline);

#endif
