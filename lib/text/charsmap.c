/* The precompiled_charsmap of SentencePiece: a 32-bit little-endian count of bytes, that many bytes
 * of a double-array trie (Darts-clone) of source strings, then the replacements, each ended by a
 * NUL. */
#include <utf8proc.h>

#include "text/normalize.h"
#include "text/unicode.h"

enum { REPLACEMENT_MOST = 255 }; /* bytes; Unicode's longest decomposition has 33 */

typedef struct charsmap {
  const unsigned char *units;
  uint32_t count; /* of units */
  text_t pool;
} charsmap_t;

static uint32_t little_endian(const unsigned char *at) {
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static charsmap_t charsmap_open(text_t map) {
  const unsigned char *data = (const unsigned char *)map.data;
  const uint32_t bytes = little_endian(data);
  return (charsmap_t){data + 4, bytes / 4, {map.data + 4 + bytes, map.bytes - 4 - bytes}};
}

nn_status_t charsmap_check(text_t map) {
  if (map.bytes < 8)
    return status_fail(NN_ERR_FORMAT, "a charsmap of %zu bytes is too short", map.bytes);
  const uint32_t bytes = little_endian((const unsigned char *)map.data);
  if (bytes < 4 || bytes % 4 || bytes > map.bytes - 4)
    return status_fail(NN_ERR_FORMAT, "a charsmap of %zu bytes says that its trie has %u",
                       map.bytes, bytes);
  if (map.bytes > 4 + (size_t)bytes && map.data[map.bytes - 1] != 0)
    return status_fail(NN_ERR_FORMAT, "a charsmap's last replacement has no end");
  for (size_t at = 4 + (size_t)bytes, length; at < map.bytes; at += length + 1)
    if ((length = strlen(map.data + at)) > REPLACEMENT_MOST)
      return status_fail(NN_ERR_FORMAT, "a charsmap has a replacement of %zu bytes; at most %d are"
                         " understood", length, REPLACEMENT_MOST);
  return NN_OK;
}

static bool charsmap_unit(const charsmap_t *map, uint32_t at, uint32_t *unit) {
  if (at >= map->count) return false;
  *unit = little_endian(map->units + 4 * (size_t)at);
  return true;
}

static uint32_t unit_offset(uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); }

/* The replacement for the shortest or longest string of the map that text begins with, and that
 * string's bytes, 0: there is none. */
static uint32_t look_up(const charsmap_t *map, const char *text, uint32_t bytes, bool longest,
                        text_t *replacement) {
  uint32_t node = 0, unit, leaf, found = 0, value = 0;
  if (!charsmap_unit(map, 0, &unit)) return 0;
  node ^= unit_offset(unit);
  for (uint32_t i = 0; i < bytes && (longest || !found); i++) {
    node ^= (unsigned char)text[i];
    if (!charsmap_unit(map, node, &unit)) break;
    if ((unit & (0x80000000u | 0xFF)) != (unsigned char)text[i]) break;
    node ^= unit_offset(unit);
    if ((unit >> 8 & 1) && charsmap_unit(map, node, &leaf)) {
      found = i + 1;
      value = leaf & 0x7FFFFFFF;
    }
  }
  if (!found || value >= map->pool.bytes) return 0;
  replacement->data = map->pool.data + value;
  replacement->bytes = strlen(replacement->data); /* charsmap_check saw a NUL at the end */
  return found;
}

uint32_t charsmap_find(text_t map, const char *text, uint32_t bytes, text_t *replacement) {
  const charsmap_t opened = charsmap_open(map);
  return look_up(&opened, text, bytes, true, replacement);
}

static uint32_t count_characters(const char *text, size_t bytes) {
  uint32_t count = 0, taken;
  for (const char *end = text + bytes; text < end; text += taken, count++)
    utf8_decode(text, end, &taken);
  return count;
}

/* Replaces the next `bytes` by the text. Characters beyond those replaced are new; the last one
 * takes with it those that are too many. */
static void replace(edit_t *edit, uint32_t bytes, text_t text) {
  const uint32_t before = count_characters(edit->from->data + edit->at, bytes);
  const uint32_t after = count_characters(text.data, text.bytes), begin = edit->at;
  uint32_t taken;
  const char *at = text.data, *end = text.data + text.bytes;
  for (uint32_t i = 0; at < end; at += taken, i++) {
    const uint32_t code = utf8_decode(at, end, &taken);
    edit_put(edit, code, i < before ? 0 : 1);
  }
  if (after < before) edit_skip(edit, begin + bytes - edit->at);
}

static uint32_t grapheme_end(const work_t *from, uint32_t at) {
  const char *end = from->data + from->bytes;
  utf8proc_int32_t state = 0;
  uint32_t bytes, code = utf8_decode(from->data + at, end, &bytes);
  for (at += bytes; at < from->bytes; at += bytes) {
    const uint32_t next = utf8_decode(from->data + at, end, &bytes);
    if (utf8proc_grapheme_break_stateful((utf8proc_int32_t)code, (utf8proc_int32_t)next, &state))
      break;
    code = next;
  }
  return at;
}

static void apply_graphemes(const charsmap_t *map, edit_t *edit) {
  const work_t *from = edit->from;
  text_t other;
  while (edit->at < from->bytes && edit->status == NN_OK) {
    const uint32_t begin = edit->at, end = grapheme_end(from, begin);
    if (end - begin < 6 && look_up(map, from->data + begin, end - begin, false, &other)) {
      replace(edit, end - begin, other);
      continue;
    }
    while (edit->at < end && edit->status == NN_OK) {
      uint32_t bytes;
      utf8_decode(from->data + edit->at, from->data + end, &bytes);
      if (look_up(map, from->data + edit->at, bytes, false, &other)) replace(edit, bytes, other);
      else edit_copy(edit, bytes);
    }
  }
}

static void apply_longest(const charsmap_t *map, edit_t *edit) {
  const work_t *from = edit->from;
  text_t other;
  while (edit->at < from->bytes && edit->status == NN_OK) {
    uint32_t bytes = look_up(map, from->data + edit->at, from->bytes - edit->at, true, &other);
    if (bytes) {
      replace(edit, bytes, other);
    } else {
      utf8_decode(from->data + edit->at, from->data + from->bytes, &bytes);
      edit_copy(edit, bytes);
    }
  }
}

void charsmap_apply(text_t map, bool graphemes, edit_t *edit) {
  const charsmap_t opened = charsmap_open(map);
  if (graphemes) apply_graphemes(&opened, edit);
  else apply_longest(&opened, edit);
}
