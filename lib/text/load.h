/* Tokenizers from files. */
#ifndef NN_TEXT_LOAD_H
#define NN_TEXT_LOAD_H

#include "text/tokenizer.h"

/* The contract of nn_tokenizer_load. */
nn_status_t tokenizer_load(const char *path, nn_tokenizer_t **tokenizer);

/* The same of a file's content; name: for messages. */
nn_status_t tokenizer_load_memory(const void *data, size_t bytes, const char *name,
                                  nn_tokenizer_t **tokenizer);

#endif
