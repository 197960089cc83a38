#include "text/bytemap.h"

#include "text/unicode.h"

bool bytemap_read(const char *text, size_t bytes, char *raw, size_t *raw_bytes) {
  size_t written = 0;
  uint32_t taken;
  for (const char *end = text + bytes; text < end; text += taken) {
    const int byte = bytemap_byte(utf8_decode(text, end, &taken));
    if (byte < 0) return false;
    raw[written++] = (char)byte;
  }
  *raw_bytes = written;
  return true;
}
