/* What a tokenizer is made of, in the words of tokenizer.json: normalizer, pre-tokenizer, model,
 * post-processor, decoder and added tokens. Every reader of a file fills this description; the
 * engine (tokenizer.h) is made from it and never looks at a file.
 *
 * How a text is encoded, in order:
 *   1. added tokens with normalized = false are cut out of the text;
 *   2. the normalizer's steps, one after the other, change each part that remains;
 *   3. added tokens with normalized = true are cut out of the normalized parts;
 *   4. the pre-tokenizer's steps cut each part into words, and may change it further;
 *   5. the model turns each word into ids;
 *   6. the post-processor puts prefix and suffix ids around them, when asked.
 * Decoding: id -> token text -> the decoder's steps, each over the tokens' texts.
 *
 * Spelling of tokens. All strings are UTF-8. A byte-level vocabulary spells bytes by the printable
 * characters of the byte map (space is U+0120), whatever its file does: a reader of raw byte
 * strings maps them by pipeline_byte_token(). It then adds PRE_BYTE_LEVEL as the last pre-tokenizer
 * step and DECODE_BYTE_LEVEL as decoder. With byte fallback a byte is spelt <0xNN>, upper-case
 * hex.
 *
 * Use: pipeline_init, any number of the pipeline_add_ functions and plain assignments, then
 * tokenizer_create, which takes everything over; or pipeline_free. The functions copy the strings
 * that they are given. Plain members that are strings need pipeline_copy. */
#ifndef NN_TEXT_PIPELINE_H
#define NN_TEXT_PIPELINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "text/index.h"

/* What a step looks for: a plain string, or a regular expression in the syntax of PCRE2. */
typedef struct pattern {
  text_t text; /* empty: none */
  bool regex;
} pattern_t;

/* ---- normalizer ------------------------------------------------------------------------------ */

enum {
  NORMALIZE_NFC,
  NORMALIZE_NFD,
  NORMALIZE_NFKC,
  NORMALIZE_NFKD,
  NORMALIZE_LOWERCASE,
  NORMALIZE_STRIP_ACCENTS, /* removes marks, after an NFD */
  NORMALIZE_STRIP,         /* white space at the ends: left, right */
  NORMALIZE_REPLACE,       /* every match of pattern becomes content */
  NORMALIZE_PREPEND,       /* content before a text that is not empty */
  NORMALIZE_APPEND,        /* content after a text that is not empty */
  NORMALIZE_NMT,           /* control characters removed, odd spaces made plain */
  NORMALIZE_BERT,          /* clean_text, chinese_chars, strip_accents, lowercase, in that order */
  NORMALIZE_CHARSMAP,      /* content: the bytes of a precompiled_charsmap of SentencePiece. The
                              longest string of the map at each place is replaced; with graphemes,
                              as the tokenizers package has it, each grapheme of up to 5 bytes by
                              what the shortest beginning in the map says, else each character
                              likewise */
  NORMALIZE_SENTENCEPIECE, /* all that SentencePiece does, on bytes that need not be UTF-8: the
                              charsmap content, but for the strings kept; collapse: spaces at the
                              ends go, of several in between all but one; left, right: a space
                              before, behind a text that is not empty; escape: spaces become
                              U+2581 */
  NORMALIZE_BYTE_LEVEL     /* each byte becomes its character of the byte map */
};

typedef struct normalizer_step {
  int32_t kind;
  pattern_t pattern;
  text_t content;
  bool left, right, collapse, escape;
  const text_t *kept; /* NORMALIZE_SENTENCEPIECE: [kept_count], sorted; of the pipeline */
  size_t kept_count;
  bool clean_text, chinese_chars, strip_accents, lowercase;
  bool graphemes;
} normalizer_step_t;

/* ---- pre-tokenizer --------------------------------------------------------------------------- */

enum {
  PRE_BYTE_LEVEL,       /* prefix_space: a space before a part that begins with none; split: cut by
                           GPT-2's pattern; then bytes become characters of the byte map */
  PRE_METASPACE,        /* spaces become content (U+2581); prepend; split: cut before each */
  PRE_SPLIT,            /* cut at the matches of pattern, or with invert at what lies between */
  PRE_WHITESPACE,       /* runs of word characters, and runs of what is neither word nor space */
  PRE_WHITESPACE_SPLIT, /* cut at white space, which is removed */
  PRE_PUNCTUATION,      /* cut at punctuation characters, by behavior */
  PRE_DIGITS,           /* cut at runs of numeric characters, or with `single` at each */
  PRE_BERT,             /* cut at white space, removed, and at each punctuation character */
  PRE_DELIMITER,        /* cut at the character `content`, which is removed */
  PRE_FIXED_LENGTH      /* cut every `length` characters */
};

/* What becomes of the matches that a part is cut at. */
enum {
  SPLIT_REMOVED,
  SPLIT_ISOLATED,             /* each a word of its own */
  SPLIT_MERGED_WITH_PREVIOUS, /* at the end of the word before */
  SPLIT_MERGED_WITH_NEXT,     /* at the beginning of the word after */
  SPLIT_CONTIGUOUS            /* as isolated, neighbouring matches together */
};

/* Where PRE_METASPACE puts `content` in front of a part that does not begin with it. */
enum { PREPEND_NEVER, PREPEND_FIRST /* the part at the text's beginning */, PREPEND_ALWAYS };

typedef struct pre_step {
  int32_t kind;
  pattern_t pattern;
  int32_t behavior; /* SPLIT_ */
  bool invert;
  text_t content;
  int32_t prepend; /* PREPEND_ */
  bool split, prefix_space, single;
  int64_t length;
} pre_step_t;

/* ---- decoder --------------------------------------------------------------------------------- */

enum {
  DECODE_BYTE_LEVEL,    /* characters of the byte map become bytes */
  DECODE_BYTE_FALLBACK, /* runs of <0xNN> become bytes; a run that is not UTF-8: U+FFFD for each */
  DECODE_SENTENCEPIECE, /* U+2581 becomes a space; with `start` 1 or collapse the first one goes,
                           with collapse every one before the first text; with bytes runs of <0xNN>
                           become bytes, U+FFFD for each that is not UTF-8; the token `pattern`
                           (unknown) becomes content */
  DECODE_FUSE,          /* the tokens' texts become one */
  DECODE_METASPACE,     /* content becomes a space, or nothing in the first token unless prepend is
                           PREPEND_NEVER */
  DECODE_STRIP,         /* up to `start` and `stop` copies of the character content at the ends */
  DECODE_REPLACE,       /* every match of pattern becomes content */
  DECODE_WORDPIECE,     /* content ("##") before a continuing piece is removed, others are joined by
                           a space; cleanup: " ." becomes "." and the like */
  DECODE_BPE,           /* content ("</w>") becomes a space, or nothing in the last token */
  DECODE_CTC            /* repeats and the token `pattern` (padding) removed; content (word
                           delimiter) becomes a space; cleanup as above */
};

typedef struct decoder_step {
  int32_t kind;
  pattern_t pattern;
  text_t content;
  int32_t prepend; /* PREPEND_ */
  int64_t start, stop;
  bool cleanup, collapse, bytes;
} decoder_step_t;

/* ---- model and vocabulary -------------------------------------------------------------------- */

enum { MODEL_BPE, MODEL_UNIGRAM, MODEL_WORDPIECE, MODEL_WORDLEVEL, MODEL_MARKED_WORDS };

/* A token of the model. Ids need not be in order nor without gaps, none above PIPELINE_MAX_ID. */
typedef struct token {
  text_t text;
  int32_t id;
  double score; /* MODEL_UNIGRAM: log probability; -INFINITY, so also MODEL_MARKED_WORDS: no text is
                   cut into it. Others: unused */
} token_t;

/* MODEL_BPE: the neighbours left and right (ids) may become the token `result`. Of all pairs in a
 * word the one of lowest rank is merged first; of equal ranks the leftmost. */
typedef struct merge {
  int32_t left, right, result;
  uint32_t rank;
} merge_t;

typedef struct model {
  int32_t kind;
  token_t *tokens; /* [token_count] */
  size_t token_count, token_capacity;
  text_index_t index; /* of tokens, by text */

  int32_t unk_id;      /* of what is not in the vocabulary; -1: BPE drops it, others refuse */
  bool fuse_unk;       /* BPE: neighbouring unknown characters become one (Unigram: always) */
  bool byte_fallback;  /* BPE, Unigram: what is unknown becomes its <0xNN>, if all of them exist */
  bool ignore_merges;  /* BPE: a word that is a token is that token, whatever the merges say */
  text_t prefix;       /* BPE, WordPiece: before each piece of a word but the first ("##") */
  text_t suffix;       /* BPE: after the last piece of a word ("</w>") */
  bool single;         /* Unigram: sums are of single precision, as SentencePiece has them */
  int64_t max_word;    /* WordPiece: characters; a longer word is unk */

  merge_t *merges;     /* [merge_count] */
  size_t merge_count, merge_capacity;
} model_t;

/* ---- added tokens ---------------------------------------------------------------------------- */

/* A string that is cut out of the text wherever it stands, longest first, and becomes one id. An id
 * that the model's vocabulary has too takes this spelling. */
typedef struct added_token {
  text_t content;
  int32_t id;
  bool single_word; /* not where a word character touches it */
  bool lstrip, rstrip; /* white space on that side belongs to it */
  bool normalized;  /* looked for in the normalized text, itself normalized */
  bool verbatim;    /* it stands for its content as it is: looked for so in the normalized text too,
                       and decoded so by a lone DECODE_BYTE_LEVEL */
  bool special;     /* no text when specials are skipped; cut out only when they are parsed */
} added_token_t;

/* ---- the whole ------------------------------------------------------------------------------- */

enum { PIPELINE_MAX_ID = (1 << 24) - 1 };

typedef struct pipeline {
  normalizer_step_t *normalizer;
  size_t normalizer_count, normalizer_capacity;
  pre_step_t *pre;
  size_t pre_count, pre_capacity;
  model_t model;
  added_token_t *added;
  size_t added_count, added_capacity;

  /* Post-processor: ids before and after a text, when special tokens are asked for; and whether the
   * offsets of tokens leave out white space at their ends (but a space that prefix_space put
   * there). */
  int32_t *prefix, *suffix; /* [prefix_count], [suffix_count] */
  size_t prefix_count, prefix_capacity, suffix_count, suffix_capacity;
  bool trim_offsets, trim_prefix_space;

  decoder_step_t *decoder;
  size_t decoder_count, decoder_capacity;

  int32_t special[4]; /* by NN_TOKEN_ value; -1: none or not known */

  text_t *kept; /* [kept_count] strings for NORMALIZE_SENTENCEPIECE */
  size_t kept_count, kept_capacity;

  struct pool_block *pool; /* of the strings */
} pipeline_t;

/* Nothing in it; BPE; every id -1; max_word 100. */
void pipeline_init(pipeline_t *pipeline);
void pipeline_free(pipeline_t *pipeline); /* a zeroed or freed one is left alone */

/* A copy that lives as long as the pipeline, a NUL behind it. */
nn_status_t pipeline_copy(pipeline_t *pipeline, text_t text, text_t *copy);

/* The token of a string of raw bytes in the spelling of byte-level vocabularies. */
nn_status_t pipeline_byte_token(pipeline_t *pipeline, text_t raw, text_t *spelled);

/* Each appends one. Strings in steps are copied. */
nn_status_t pipeline_add_normalizer(pipeline_t *pipeline, const normalizer_step_t *step);
nn_status_t pipeline_add_pre(pipeline_t *pipeline, const pre_step_t *step);
nn_status_t pipeline_add_decoder(pipeline_t *pipeline, const decoder_step_t *step);
nn_status_t pipeline_add_token(pipeline_t *pipeline, text_t text, int32_t id, double score);
nn_status_t pipeline_add_added(pipeline_t *pipeline, const added_token_t *token);
nn_status_t pipeline_add_prefix(pipeline_t *pipeline, int32_t id);
nn_status_t pipeline_add_suffix(pipeline_t *pipeline, int32_t id);
nn_status_t pipeline_add_kept(pipeline_t *pipeline, text_t text);

/* Appends the merge of two tokens of the model, added before, whose rank is the number of merges so
 * far. NN_ERR_FORMAT when they or what they become are no tokens. */
nn_status_t pipeline_add_merge(pipeline_t *pipeline, text_t left, text_t right);

/* The id of a token of the model, -1: there is none. */
int32_t pipeline_find(const pipeline_t *pipeline, text_t text);

/* For vocabularies that rank tokens and not merges (tiktoken: by id; SentencePiece: by score): adds
 * every merge of two tokens into a third, of the third's rank.
 * rank: [token_count], in the order of model.tokens; UINT32_MAX: not made by merging. */
nn_status_t pipeline_rank_merges(pipeline_t *pipeline, const uint32_t *rank);

#endif
