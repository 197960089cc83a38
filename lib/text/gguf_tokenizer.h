/* The tokenizer inside a GGUF file: SentencePiece's kinds ("llama", "t5") and byte-level BPE
 * ("gpt2"). */
#ifndef NN_TEXT_GGUF_TOKENIZER_H
#define NN_TEXT_GGUF_TOKENIZER_H

#include "text/pipeline.h"

/* Describes the tokenizer of a file in memory, into an initialized pipeline. NN_ERR_UNSUPPORTED
 * names a kind, or a way to cut text into words, that is not known. */
nn_status_t gguf_tokenizer_read(text_t file, pipeline_t *pipeline);

#endif
