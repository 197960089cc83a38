/* SentencePiece tokenizers: BPE by scores, and Unigram, with the normalization and decoding of
 * SentencePiece itself. */
#ifndef NN_TEXT_SENTENCEPIECE_H
#define NN_TEXT_SENTENCEPIECE_H

#include "text/pipeline.h"
#include "text/sentencepiece_file.h"

/* Describes the tokenizer of a .model file in memory, into an initialized pipeline. With special
 * tokens asked for, a text begins with <s> where the model has it; the file does not say. */
nn_status_t sentencepiece_read(text_t file, pipeline_t *pipeline);

/* The same for what another file says of such a model; ids of what stands before and after a text
 * are left to the caller. */
nn_status_t sentencepiece_describe(const sp_file_t *file, pipeline_t *pipeline);

#endif
