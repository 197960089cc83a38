#include "text/unicode.h"

#include <string.h>
#include <utf8proc.h>

#define FIVE(class) class, class, class, class, class
#define LETTERS(class) FIVE(class), FIVE(class), FIVE(class), FIVE(class), FIVE(class), class
#define OTHER4 CLASS_OTHER, CLASS_OTHER, CLASS_OTHER, CLASS_OTHER

enum {
  LINE = CLASS_SPACE | CLASS_NEWLINE | CLASS_OTHER,
  BLANK = CLASS_SPACE | CLASS_OTHER,
  DIGIT = CLASS_NUMBER | CLASS_WORD,
  UPPER = CLASS_UPPER | CLASS_WORD,
  LOWER = CLASS_LOWER | CLASS_WORD,
  PUNCT = CLASS_PUNCTUATION,
  SYMBOL = CLASS_SYMBOL
};

const uint16_t unicode_ascii[128] = {
    OTHER4, OTHER4, CLASS_OTHER, BLANK, LINE, BLANK, BLANK, LINE, CLASS_OTHER, CLASS_OTHER, OTHER4,
    OTHER4, OTHER4, OTHER4,
    /* space ! " # $ % & ' ( ) * + , - . / */
    CLASS_SPACE, PUNCT, PUNCT, PUNCT, SYMBOL, FIVE(PUNCT), PUNCT, SYMBOL, PUNCT, PUNCT, PUNCT,
    PUNCT, FIVE(DIGIT), FIVE(DIGIT),
    /* : ; < = > ? @ */
    PUNCT, PUNCT, SYMBOL, SYMBOL, SYMBOL, PUNCT, PUNCT, LETTERS(UPPER),
    /* [ \ ] ^ _ ` */
    PUNCT, PUNCT, PUNCT, SYMBOL, PUNCT | CLASS_WORD, SYMBOL, LETTERS(LOWER),
    /* { | } ~ delete */
    PUNCT, SYMBOL, PUNCT, SYMBOL, CLASS_OTHER};

static bool is_space(uint32_t code) {
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) ||
         code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

/* Letters by the property Alphabetic that are symbols by category, and the two joiners. */
static bool is_other_word(uint32_t code) {
  return (code >= 0x24B6 && code <= 0x24E9) || (code >= 0x1F130 && code <= 0x1F149) ||
         (code >= 0x1F150 && code <= 0x1F169) || (code >= 0x1F170 && code <= 0x1F189) ||
         code == 0x200C || code == 0x200D;
}

uint32_t unicode_class_slow(uint32_t code) {
  static const uint16_t classes[] = {
      [UTF8PROC_CATEGORY_LU] = CLASS_UPPER | CLASS_WORD,
      [UTF8PROC_CATEGORY_LT] = CLASS_UPPER | CLASS_WORD,
      [UTF8PROC_CATEGORY_LL] = CLASS_LOWER | CLASS_WORD,
      [UTF8PROC_CATEGORY_LM] = CLASS_OTHER_LETTER | CLASS_WORD,
      [UTF8PROC_CATEGORY_LO] = CLASS_OTHER_LETTER | CLASS_WORD,
      [UTF8PROC_CATEGORY_MN] = CLASS_MARK | CLASS_NONSPACING | CLASS_WORD,
      [UTF8PROC_CATEGORY_MC] = CLASS_MARK | CLASS_WORD,
      [UTF8PROC_CATEGORY_ME] = CLASS_MARK | CLASS_WORD,
      [UTF8PROC_CATEGORY_ND] = CLASS_NUMBER | CLASS_WORD,
      [UTF8PROC_CATEGORY_NL] = CLASS_NUMBER | CLASS_WORD,
      [UTF8PROC_CATEGORY_NO] = CLASS_NUMBER,
      [UTF8PROC_CATEGORY_PC] = CLASS_PUNCTUATION | CLASS_WORD,
      [UTF8PROC_CATEGORY_PD] = CLASS_PUNCTUATION,
      [UTF8PROC_CATEGORY_PS] = CLASS_PUNCTUATION,
      [UTF8PROC_CATEGORY_PE] = CLASS_PUNCTUATION,
      [UTF8PROC_CATEGORY_PI] = CLASS_PUNCTUATION,
      [UTF8PROC_CATEGORY_PF] = CLASS_PUNCTUATION,
      [UTF8PROC_CATEGORY_PO] = CLASS_PUNCTUATION,
      [UTF8PROC_CATEGORY_SM] = CLASS_SYMBOL,
      [UTF8PROC_CATEGORY_SC] = CLASS_SYMBOL,
      [UTF8PROC_CATEGORY_SK] = CLASS_SYMBOL,
      [UTF8PROC_CATEGORY_SO] = CLASS_SYMBOL,
      [UTF8PROC_CATEGORY_CC] = CLASS_OTHER,
      [UTF8PROC_CATEGORY_CF] = CLASS_OTHER,
      [UTF8PROC_CATEGORY_CO] = CLASS_OTHER,
      [UTF8PROC_CATEGORY_CS] = CLASS_OTHER,
  };
  const size_t category = (size_t)utf8proc_category((utf8proc_int32_t)code);
  uint32_t class = category < sizeof classes / sizeof *classes ? classes[category] : 0;
  if (is_space(code)) class |= CLASS_SPACE;
  if (is_other_word(code)) class |= CLASS_WORD;
  return class;
}

/* ---- UTF-8 ----------------------------------------------------------------------------------- */

uint32_t utf8_decode_slow(const char *text, const char *end, uint32_t *bytes) {
  const unsigned char *at = (const unsigned char *)text;
  const uint32_t first = at[0];
  const size_t left = (size_t)(end - text);
  /* the second byte's bounds keep out overlong forms, surrogates and what is beyond U+10FFFF */
  uint32_t low = 0x80, high = 0xBF, code;
  unsigned more;
  *bytes = 1;
  if (first < 0x80) return first;
  if (first >= 0xC2 && first <= 0xDF) {
    more = 1;
    code = first & 0x1F;
  } else if (first >= 0xE0 && first <= 0xEF) {
    more = 2;
    code = first & 0x0F;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    more = 3;
    code = first & 0x07;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  } else {
    return UNICODE_REPLACEMENT;
  }
  for (unsigned i = 1; i <= more; i++) {
    if (i >= left || at[i] < low || at[i] > high) return UNICODE_REPLACEMENT;
    code = code << 6 | (at[i] & 0x3F);
    *bytes = i + 1;
    low = 0x80;
    high = 0xBF;
  }
  return code;
}

size_t utf8_write(uint32_t code, char *to) {
  if (code < 0x80) {
    to[0] = (char)code;
    return 1;
  }
  if (code < 0x800) {
    to[0] = (char)(0xC0 | code >> 6);
    to[1] = (char)(0x80 | (code & 0x3F));
    return 2;
  }
  if (code < 0x10000) {
    to[0] = (char)(0xE0 | code >> 12);
    to[1] = (char)(0x80 | (code >> 6 & 0x3F));
    to[2] = (char)(0x80 | (code & 0x3F));
    return 3;
  }
  to[0] = (char)(0xF0 | code >> 18);
  to[1] = (char)(0x80 | (code >> 12 & 0x3F));
  to[2] = (char)(0x80 | (code >> 6 & 0x3F));
  to[3] = (char)(0x80 | (code & 0x3F));
  return 4;
}

/* True for a real U+FFFD, which decodes like an error. */
static bool is_replacement(const char *text, uint32_t bytes) {
  return bytes == 3 && memcmp(text, "\xEF\xBF\xBD", 3) == 0;
}

size_t utf8_valid(const char *text, size_t bytes) {
  size_t at = 0;
  while (at < bytes) {
    uint64_t word;
    if (bytes - at >= 8) {
      memcpy(&word, text + at, 8);
      if (!(word & 0x8080808080808080u)) {
        at += 8;
        continue;
      }
    }
    uint32_t taken;
    if (utf8_decode(text + at, text + bytes, &taken) == UNICODE_REPLACEMENT &&
        !is_replacement(text + at, taken))
      return at;
    at += taken;
  }
  return bytes;
}

size_t utf8_unfinished(const char *text, size_t bytes) {
  for (size_t back = 1; back <= 3 && back <= bytes; back++) {
    const unsigned char first = (unsigned char)text[bytes - back];
    uint32_t taken;
    if (first < 0x80) return 0;
    if (first < 0xC0) continue;
    const size_t whole = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4 || whole <= back) return 0;
    utf8_decode(text + bytes - back, text + bytes, &taken);
    return taken == back ? back : 0;
  }
  return 0;
}

size_t utf8_begin(const char *text, size_t bytes, size_t at) {
  for (size_t back = 1; back <= 3 && back <= at; back++) {
    if (((unsigned char)text[at - back + 1] & 0xC0) != 0x80) return at;
    uint32_t taken;
    if (((unsigned char)text[at - back] & 0xC0) == 0x80) continue;
    utf8_decode(text + at - back, text + bytes, &taken);
    return taken > back ? at - back : at;
  }
  return at;
}

size_t utf8_end(const char *text, size_t bytes, size_t at) {
  const size_t begin = utf8_begin(text, bytes, at);
  uint32_t taken;
  utf8_decode(text + begin, text + bytes, &taken);
  return begin + taken;
}
