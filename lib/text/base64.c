#include "text/base64.h"

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static int digit_value(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  return c == '/' ? 63 : -1;
}

bool base64_decode(text_t text, char *data, size_t *bytes) {
  size_t end = text.bytes, written = 0;
  uint32_t bits = 0, held = 0; /* held: bits that are not written yet */
  if (end % 4 == 0)
    for (int padding = 0; padding < 2 && end && text.data[end - 1] == '='; padding++) end--;
  if (end % 4 == 1) return false;
  for (size_t i = 0; i < end; i++) {
    int value = digit_value(text.data[i]);
    if (value < 0) return false;
    bits = bits << 6 | (uint32_t)value;
    held += 6;
    if (held < 8) continue;
    held -= 8;
    data[written++] = (char)(bits >> held & 255);
  }
  if (bits & ((1u << held) - 1)) return false; /* what is left over must be zero */
  *bytes = written;
  return true;
}

void base64_encode(const char *data, size_t bytes, char *text) {
  for (size_t i = 0; i < bytes; i += 3) {
    uint32_t bits = 0;
    for (size_t j = 0; j < 3; j++)
      bits = bits << 8 | (i + j < bytes ? (unsigned char)data[i + j] : 0);
    for (size_t j = 0; j < 4; j++)
      *text++ = i + j > bytes ? '=' : digits[bits >> (18 - 6 * j) & 63];
  }
}
