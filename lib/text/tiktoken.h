/* tiktoken rank files: on each line a token in base64, a space and its rank, which is its id. */
#ifndef NN_TEXT_TIKTOKEN_H
#define NN_TEXT_TIKTOKEN_H

#include "text/pipeline.h"

/* True when the first line is a token and its rank. */
bool tiktoken_is(text_t file);

/* Describes the tokenizer of a file in memory, into an initialized pipeline. regex: what cuts text
 * into words; empty: that of the published vocabulary of as many tokens, whose special tokens are
 * added too, or NN_ERR_UNSUPPORTED where there is none. */
nn_status_t tiktoken_read(text_t file, text_t regex, pipeline_t *pipeline);

/* Adds the merges of a vocabulary whose ids are ranks: two neighbours become the token of their
 * bytes, that of the lowest id first. Every byte must be a token. */
nn_status_t tiktoken_rank(pipeline_t *pipeline);

#endif
