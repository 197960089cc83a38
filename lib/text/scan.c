#include "text/scan.h"

#include "text/unicode.h"

#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
#define SPACES "\\s+(?!\\S)|\\s+"
#define GPT2 CONTRACTIONS "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|" SPACES
#define LLAMA3_NUMBERS(numbers) \
  "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" numbers \
  "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|" SPACES
#define CAPITAL_CLASS "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define SMALL_CLASS "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED_WORDS(suffix) \
  "[^\\r\\n\\p{L}\\p{N}]?" CAPITAL_CLASS "*" SMALL_CLASS "+" suffix \
  "|[^\\r\\n\\p{L}\\p{N}]?" CAPITAL_CLASS "+" SMALL_CLASS "*" suffix
#define CASED(suffix, numbers) \
  CASED_WORDS(suffix) "|" numbers "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|" SPACES
#define DEEPSEEK_V3 \
  "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+" \
  "|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|" SPACES
#define CJK "[\xE4\xB8\x80-\xE9\xBE\xA5\xE3\x81\x80-\xE3\x82\x9F\xE3\x82\xA0-\xE3\x83\xBF]+"

/* ---- pieces of patterns ---------------------------------------------------------------------- */

typedef struct character {
  uint32_t code, bytes, class;
} character_t;

static inline character_t read(const char *text, uint32_t at, uint32_t end) {
  character_t c;
  c.code = utf8_decode(text + at, text + end, &c.bytes);
  c.class = unicode_class(c.code);
  return c;
}

/* The end of the characters of any of the classes from `at` on. */
static inline uint32_t run(const char *text, uint32_t at, uint32_t end, uint32_t classes) {
  while (at < end) {
    const character_t c = read(text, at, end);
    if (!(c.class & classes)) break;
    at += c.bytes;
  }
  return at;
}

/* The end of the characters of none of the classes. */
static inline uint32_t run_not(const char *text, uint32_t at, uint32_t end, uint32_t classes) {
  while (at < end) {
    const character_t c = read(text, at, end);
    if (c.class & classes) break;
    at += c.bytes;
  }
  return at;
}

/* 's|'t|'re|'ve|'m|'ll|'d at `at`, which is an apostrophe; `at` when it is none of these. With
 * fold, capitals and the long s, which folds to s, too. */
static inline uint32_t contraction(const char *text, uint32_t at, uint32_t end, bool fold) {
  if (at + 1 >= end) return at;
  const unsigned char lower = fold ? 0x20 : 0;
  const unsigned char first = (unsigned char)text[at + 1] | lower;
  const unsigned char second = at + 2 < end ? (unsigned char)text[at + 2] | lower : 0;
  if (fold && at + 2 < end && (unsigned char)text[at + 1] == 0xC5 &&
      (unsigned char)text[at + 2] == 0xBF)
    return at + 3;
  switch (first) {
    case 's': case 't': case 'm': case 'd': return at + 2;
    case 'r': case 'v': return second == 'e' ? at + 3 : at;
    case 'l': return second == 'l' ? at + 3 : at;
    default: return at;
  }
}

/* \s+(?!\S)|\s+ and, with newlines, \s*[\r\n]+ before them; `at` when there is no white space. */
static inline uint32_t spaces(const char *text, uint32_t at, uint32_t end, bool newlines) {
  uint32_t to = at, last = at, after_newline = at;
  while (to < end) {
    const character_t c = read(text, to, end);
    if (!(c.class & CLASS_SPACE)) break;
    last = to;
    to += c.bytes;
    if (c.class & CLASS_NEWLINE) after_newline = to;
  }
  if (newlines && after_newline > at) return after_newline;
  return to < end && last > at ? last : to;
}

/* At most `most` numeric characters. */
static inline uint32_t numbers(const char *text, uint32_t at, uint32_t end, int most) {
  while (at < end && most-- > 0) {
    const character_t c = read(text, at, end);
    if (!(c.class & CLASS_NUMBER)) break;
    at += c.bytes;
  }
  return at;
}

static inline bool is_newline(char byte) { return byte == '\n' || byte == '\r'; }

/* ` ?[^\s\p{L}\p{N}]+` and what may follow; `at` when there is no such match. */
static inline uint32_t signs(const char *text, uint32_t at, uint32_t end, bool newlines,
                             bool slashes) {
  const uint32_t from = at + (text[at] == ' ');
  uint32_t to = run_not(text, from, end, CLASS_SPACE | CLASS_LETTER | CLASS_NUMBER);
  if (to == from) return at;
  while (newlines && to < end && (is_newline(text[to]) || (slashes && text[to] == '/'))) to++;
  return to;
}

/* ---- patterns -------------------------------------------------------------------------------- */

static uint32_t scan_gpt2_pattern(const char *text, uint32_t at, uint32_t end) {
  uint32_t to;
  if (text[at] == '\'' && (to = contraction(text, at, end, false)) > at) return to;
  const uint32_t from = at + (text[at] == ' ' && at + 1 < end);
  const character_t c = read(text, from, end);
  if (c.class & CLASS_LETTER) return run(text, from + c.bytes, end, CLASS_LETTER);
  if (c.class & CLASS_NUMBER) return run(text, from + c.bytes, end, CLASS_NUMBER);
  if (!(c.class & CLASS_SPACE))
    return run_not(text, from + c.bytes, end, CLASS_SPACE | CLASS_LETTER | CLASS_NUMBER);
  return spaces(text, at, end, false);
}

static inline uint32_t scan_llama3_like(const char *text, uint32_t at, uint32_t end, int digits) {
  uint32_t to;
  if (text[at] == '\'' && (to = contraction(text, at, end, true)) > at) return to;
  const character_t c = read(text, at, end);
  if (c.class & CLASS_LETTER) return run(text, at + c.bytes, end, CLASS_LETTER);
  if (c.class & CLASS_NUMBER) return numbers(text, at, end, digits);
  if (!(c.class & CLASS_NEWLINE)) {
    to = run(text, at + c.bytes, end, CLASS_LETTER);
    if (to > at + c.bytes) return to;
  }
  to = signs(text, at, end, true, false);
  return to > at ? to : spaces(text, at, end, true);
}

static uint32_t scan_llama3(const char *text, uint32_t at, uint32_t end) {
  return scan_llama3_like(text, at, end, 3);
}

static uint32_t scan_qwen2(const char *text, uint32_t at, uint32_t end) {
  return scan_llama3_like(text, at, end, 1);
}

enum {
  CAPITALS = CLASS_UPPER | CLASS_OTHER_LETTER | CLASS_MARK,
  SMALLS = CLASS_LOWER | CLASS_OTHER_LETTER | CLASS_MARK
};

/* [capitals]*[smalls]+ from `from` on, `from` when there is none; *capitals: the end of the
 * capitals. Where no small follows them, the last capital that is a small too ends the match. */
static inline uint32_t cased_word(const char *text, uint32_t from, uint32_t end,
                                  uint32_t *capitals) {
  uint32_t at = from, after_both = from;
  while (at < end) {
    const character_t c = read(text, at, end);
    if (!(c.class & CAPITALS)) break;
    at += c.bytes;
    if (c.class & SMALLS) after_both = at;
  }
  *capitals = at;
  const uint32_t to = run(text, at, end, SMALLS);
  return to > at ? to : after_both;
}

/* Both alternatives for words, with and without a character before them. */
static inline uint32_t cased_match(const char *text, uint32_t at, uint32_t end) {
  const character_t c = read(text, at, end);
  const bool before = !(c.class & (CLASS_NEWLINE | CLASS_LETTER | CLASS_NUMBER));
  uint32_t capitals = at, capitals_after = at, to;
  if (before) {
    to = cased_word(text, at + c.bytes, end, &capitals_after);
    if (to > at + c.bytes) return to;
  }
  to = cased_word(text, at, end, &capitals);
  if (to > at) return to;
  if (before && capitals_after > at + c.bytes) return capitals_after;
  return capitals;
}

static inline uint32_t scan_cased(const char *text, uint32_t at, uint32_t end, int digits,
                                  bool contractions) {
  uint32_t to = cased_match(text, at, end);
  if (to > at) {
    if (contractions && to < end && text[to] == '\'') to = contraction(text, to, end, true);
    return to;
  }
  if ((to = numbers(text, at, end, digits)) > at) return to;
  to = signs(text, at, end, true, true);
  return to > at ? to : spaces(text, at, end, true);
}

static uint32_t scan_o200k(const char *text, uint32_t at, uint32_t end) {
  return scan_cased(text, at, end, 3, true);
}

static uint32_t scan_tekken(const char *text, uint32_t at, uint32_t end) {
  return scan_cased(text, at, end, 1, false);
}

static inline bool is_ascii_letter(char byte) {
  return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
}

static uint32_t scan_deepseek_v3(const char *text, uint32_t at, uint32_t end) {
  const uint32_t words = CLASS_LETTER | CLASS_MARK, marks = CLASS_PUNCTUATION | CLASS_SYMBOL;
  const character_t c = read(text, at, end);
  uint32_t to = at + c.bytes;
  if (c.code < 128 && (c.class & marks) && to < end && is_ascii_letter(text[to])) {
    while (to < end && is_ascii_letter(text[to])) to++;
    return to;
  }
  if (!(c.class & (CLASS_NEWLINE | CLASS_LETTER | marks))) {
    to = run(text, to, end, words);
    if (to > at + c.bytes) return to;
  }
  if (c.class & words) return run(text, at, end, words);
  const uint32_t from = at + (text[at] == ' ');
  to = run(text, from, end, marks);
  if (to > from) {
    while (to < end && is_newline(text[to])) to++;
    return to;
  }
  return spaces(text, at, end, true);
}

static uint32_t scan_numbers(const char *text, uint32_t at, uint32_t end) {
  return numbers(text, at, end, 3);
}

static uint32_t scan_cjk(const char *text, uint32_t at, uint32_t end) {
  while (at < end) {
    const character_t c = read(text, at, end);
    if (!((c.code >= 0x4E00 && c.code <= 0x9FA5) || (c.code >= 0x3040 && c.code <= 0x30FF))) break;
    at += c.bytes;
  }
  return at;
}

/* ---- which there are ------------------------------------------------------------------------- */

const text_t scan_gpt2 = {GPT2, sizeof GPT2 - 1};

static const struct {
  const char *pattern;
  scan_fn scan;
} known[] = {
    [SCAN_GPT2] = {GPT2, scan_gpt2_pattern},
    [SCAN_LLAMA3] = {LLAMA3_NUMBERS("\\p{N}{1,3}"), scan_llama3},
    [SCAN_QWEN2] = {LLAMA3_NUMBERS("\\p{N}"), scan_qwen2},
    [SCAN_O200K] = {CASED("(?i:" CONTRACTIONS ")?", "\\p{N}{1,3}"), scan_o200k},
    [SCAN_TEKKEN] = {CASED("", "\\p{N}"), scan_tekken},
    [SCAN_DEEPSEEK_V3] = {DEEPSEEK_V3, scan_deepseek_v3},
    [SCAN_NUMBERS] = {"\\p{N}{1,3}", scan_numbers},
    [SCAN_CJK] = {CJK, scan_cjk},
};

scan_fn scan_find(text_t pattern) {
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (text_equal(pattern, (text_t){known[i].pattern, strlen(known[i].pattern)}))
      return known[i].scan;
  return NULL;
}

const char *scan_pattern(int index) {
  return index >= 0 && (size_t)index < sizeof known / sizeof *known ? known[index].pattern : NULL;
}
