/* Published pre-tokenizer patterns, matched by hand: many times faster than the regular expression
 * engine and, for any text, in linear time. */
#ifndef NN_TEXT_SCAN_H
#define NN_TEXT_SCAN_H

#include "text/index.h"

/* The end of the match that begins at text + at, at < end; `at` itself when none begins there.
 * Bytes that are not UTF-8 count as U+FFFD. */
typedef uint32_t (*scan_fn)(const char *text, uint32_t at, uint32_t end);

/* The function for a pattern that is spelt exactly so; NULL: it is none of the known ones. */
scan_fn scan_find(text_t pattern);

/* The pattern of PRE_BYTE_LEVEL. */
extern const text_t scan_gpt2;

/* The patterns known: of GPT-2, Llama 3, Qwen 2, o200k, Tekken, and DeepSeek-V3's three. */
enum {
  SCAN_GPT2,
  SCAN_LLAMA3,
  SCAN_QWEN2,
  SCAN_O200K,
  SCAN_TEKKEN,
  SCAN_DEEPSEEK_V3,
  SCAN_NUMBERS, /* up to three digits */
  SCAN_CJK
};

/* NULL past the last. */
const char *scan_pattern(int index);

#endif
