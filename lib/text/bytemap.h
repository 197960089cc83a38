/* The byte map of byte-level vocabularies: a printable character for each byte. 33 to 126, 161 to
 * 172 and 174 to 255 stand for themselves as code points; the others, in order, are U+0100, U+0101,
 * ... */
#ifndef NN_TEXT_BYTEMAP_H
#define NN_TEXT_BYTEMAP_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

enum { BYTEMAP_END = 0x144 }; /* one past the largest code point of the map */

static inline uint32_t bytemap_code(unsigned char byte) {
  if (byte < 33) return 0x100u + byte;
  if (byte < 127) return byte;
  if (byte < 161) return 0x100u + 33 + (byte - 127u);
  return byte == 173 ? 0x143 : byte;
}

/* Writes the byte's character as UTF-8 and returns its bytes, 1 or 2. */
static inline size_t bytemap_write(unsigned char byte, char *to) {
  const uint32_t code = bytemap_code(byte);
  if (code < 0x80) {
    to[0] = (char)code;
    return 1;
  }
  to[0] = (char)(0xC0 | code >> 6);
  to[1] = (char)(0x80 | (code & 0x3F));
  return 2;
}

/* The byte that a code point stands for, -1: none. */
static inline int bytemap_byte(uint32_t code) {
  if (code >= BYTEMAP_END) return -1;
  if (code == 0x143) return 173;
  if (code >= 0x100 + 33) return (int)(127 + (code - 0x100 - 33));
  if (code >= 0x100) return (int)(code - 0x100);
  if ((code >= 33 && code < 127) || (code >= 161 && code != 173)) return (int)code;
  return -1;
}

/* The bytes that a token in the spelling of the map stands for; false: it has other characters.
 * raw: [bytes] */
bool bytemap_read(const char *text, size_t bytes, char *raw, size_t *raw_bytes);

#endif
