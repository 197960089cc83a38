/* How published byte-level vocabularies cut text into words, for files that name the way or leave
 * it out. */
#ifndef NN_TEXT_PATTERNS_H
#define NN_TEXT_PATTERNS_H

#include <stdbool.h>

#include "text/pipeline.h"

/* Ways to cut. */
typedef enum word_cut {
  CUT_GPT2,
  CUT_LLAMA3,
  CUT_QWEN2,
  CUT_O200K,
  CUT_TEKKEN,
  CUT_DEEPSEEK_V3,
  CUT_DEEPSEEK_LLM,
  CUT_DIGITS_GPT2, /* each digit alone, the rest as GPT-2 */
  CUT_DEFAULT      /* of GGUF files that say "default" or nothing */
} word_cut_t;

/* Adds the pre-tokenizer of a byte-level vocabulary, with its byte map, and its decoder. */
nn_status_t patterns_add(pipeline_t *pipeline, word_cut_t cut);

/* The same with a regular expression of the caller's, whose matches are words, as is what lies
 * between them. */
nn_status_t patterns_add_regex(pipeline_t *pipeline, text_t regex);

#endif
