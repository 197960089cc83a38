/* What SentencePiece makes of a text before it looks for pieces. */
#include "text/normalize.h"
#include "text/unicode.h"

static const text_t blank = {"\xe2\x96\x81", 3}; /* U+2581 */

/* The longest of the sorted strings that text begins with, or 0 bytes. The strings that have the
 * first i bytes in common are neighbours, the shortest first. */
static uint32_t kept_bytes(const normalizer_step_t *step, const char *text, uint32_t bytes) {
  size_t low = 0, high = step->kept_count;
  uint32_t found = 0;
  for (uint32_t i = 0; low < high; i++) {
    if (step->kept[low].bytes == i) {
      found = i;
      low++;
    }
    if (i >= bytes) break;
    const unsigned char byte = (unsigned char)text[i];
    size_t end = high;
    for (size_t first = low, last = high; first < last;) { /* the first string of byte or more */
      const size_t middle = first + (last - first) / 2;
      if ((unsigned char)step->kept[middle].data[i] < byte) first = low = middle + 1;
      else last = middle;
    }
    for (size_t first = low, last = high; first < last;) { /* the first string of more */
      const size_t middle = first + (last - first) / 2;
      if ((unsigned char)step->kept[middle].data[i] <= byte) first = middle + 1;
      else last = end = middle;
    }
    high = end;
  }
  return found;
}

/* What the next bytes of the text become; returns their number. */
static uint32_t next_part(const normalizer_step_t *step, const edit_t *edit, text_t *becomes) {
  const char *text = edit->from->data + edit->at;
  const uint32_t left = edit->from->bytes - edit->at;
  uint32_t bytes = kept_bytes(step, text, left), taken;
  if (!bytes && step->content.bytes) {
    bytes = charsmap_find(step->content, text, left, becomes);
    if (bytes) return bytes;
  }
  if (!bytes) {
    utf8_decode(text, text + left, &bytes);
    taken = (uint32_t)utf8_valid(text, bytes);
    if (taken < bytes) { /* a byte that is none of UTF-8 */
      *becomes = TEXT("\xef\xbf\xbd");
      return 1;
    }
  }
  *becomes = (text_t){text, bytes};
  return bytes;
}

/* Writes a part in place of the next bytes. */
static void put_part(const normalizer_step_t *step, edit_t *edit, text_t part, uint32_t bytes) {
  const uint32_t end = edit->at + bytes;
  uint32_t taken;
  for (size_t i = 0; i < part.bytes; i += taken) {
    uint32_t code = utf8_decode(part.data + i, part.data + part.bytes, &taken);
    if (code == ' ' && step->escape) code = 0x2581;
    edit_put(edit, code, i || edit->at >= end ? 1 : 0);
  }
  edit->at = end;
}

static bool ends_with(const buffer_t *to, text_t text) {
  return to->bytes >= text.bytes &&
         memcmp(to->data + to->bytes - text.bytes, text.data, text.bytes) == 0;
}

void sentencepiece_normalize(const normalizer_step_t *step, edit_t *edit) {
  const text_t space = step->escape ? blank : TEXT(" ");
  const uint32_t end = edit->from->bytes;
  bool after_space = step->collapse;
  text_t part;
  while (step->collapse && edit->at < end) {
    const uint32_t bytes = next_part(step, edit, &part);
    if (!text_equal(part, TEXT(" "))) break;
    edit_skip(edit, bytes);
  }
  if (edit->at >= end) return;
  if (step->left) edit_insert(edit, space);
  while (edit->at < end && edit->status == NN_OK) {
    const uint32_t bytes = next_part(step, edit, &part);
    while (after_space && part.bytes && *part.data == ' ') part.data++, part.bytes--;
    if (part.bytes) after_space = step->collapse && part.data[part.bytes - 1] == ' ';
    put_part(step, edit, part, bytes);
  }
  while (step->collapse && edit->status == NN_OK && ends_with(edit->to, space))
    edit->to->bytes -= space.bytes;
  if (step->right) edit_insert(edit, space);
}
