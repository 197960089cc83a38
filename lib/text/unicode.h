/* UTF-8 and the classes of characters that tokenizers ask for. */
#ifndef NN_TEXT_UNICODE_H
#define NN_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { UNICODE_REPLACEMENT = 0xFFFD };

/* What a character is, by general category; SPACE is the property White_Space. */
enum {
  CLASS_LOWER = 1,         /* Ll */
  CLASS_UPPER = 2,         /* Lu, Lt */
  CLASS_OTHER_LETTER = 4,  /* Lm, Lo */
  CLASS_MARK = 8,          /* Mn, Mc, Me */
  CLASS_NUMBER = 16,       /* Nd, Nl, No */
  CLASS_SPACE = 32,
  CLASS_NEWLINE = 64,      /* carriage return and line feed, SPACE too */
  CLASS_PUNCTUATION = 128, /* P. */
  CLASS_SYMBOL = 256,      /* S. */
  CLASS_NONSPACING = 512,  /* Mn, MARK too */
  CLASS_OTHER = 1024,      /* Cc, Cf, Co, Cs */
  CLASS_WORD = 2048,       /* \w of regular expressions */
  CLASS_LETTER = CLASS_LOWER | CLASS_UPPER | CLASS_OTHER_LETTER
};

extern const uint16_t unicode_ascii[128];
uint32_t unicode_class_slow(uint32_t code);

static inline uint32_t unicode_class(uint32_t code) {
  return code < 128 ? unicode_ascii[code] : unicode_class_slow(code);
}

uint32_t utf8_decode_slow(const char *text, const char *end, uint32_t *bytes);

/* The character at text < end, and how many bytes it takes. What is malformed gives U+FFFD for its
 * longest part that could begin a character, or for one byte. */
static inline uint32_t utf8_decode(const char *text, const char *end, uint32_t *bytes) {
  if ((unsigned char)*text < 0x80) {
    *bytes = 1;
    return (unsigned char)*text;
  }
  return utf8_decode_slow(text, end, bytes);
}

/* Writes a code point, at most 4 bytes; returns their number. */
size_t utf8_write(uint32_t code, char *to);

/* Bytes from the beginning that are well-formed: all of them or the place of the first error. */
size_t utf8_valid(const char *text, size_t bytes);

/* Bytes at the end that begin a character but do not end it, 0 to 3. */
size_t utf8_unfinished(const char *text, size_t bytes);

/* The bounds of the character that byte `at` of text is part of, itself where it is of none. */
size_t utf8_begin(const char *text, size_t bytes, size_t at);
size_t utf8_end(const char *text, size_t bytes, size_t at);

#endif
