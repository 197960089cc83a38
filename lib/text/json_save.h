/* Writing tokenizer.json, version 1.0, as the tokenizers package reads it. */
#ifndef NN_TEXT_JSON_SAVE_H
#define NN_TEXT_JSON_SAVE_H

#include "text/output.h"
#include "text/pipeline.h"

/* Puts the file together. NN_ERR_UNSUPPORTED names what the format cannot say. What SentencePiece
 * does is written as the steps that published files have in its place; they differ from it where a
 * text has U+2581 itself, and where user-defined pieces touch what normalization changes. */
nn_status_t json_save(const pipeline_t *pipeline, output_t *output);

/* Its parts that are lists of steps (json_steps.c). */
nn_status_t json_put_normalizer(output_t *output, const pipeline_t *pipeline);
void json_put_pre(output_t *output, const pipeline_t *pipeline);
void json_put_decoder(output_t *output, const pipeline_t *pipeline);

#endif
