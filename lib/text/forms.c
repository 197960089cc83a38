/* Unicode normal forms, character by character, so that each character that comes out knows which
 * ones it was made of: decomposed, put into canonical order and, for NFC and NFKC, composed
 * (Unicode Standard Annex 15). The data are utf8proc's.
 *
 * With each character goes a change, as edit_put takes it: the first character of a decomposition
 * replaces, the others are new, and a composition removes what it took in. */
#include <utf8proc.h>

#include "text/normalize.h"
#include "text/pipeline.h"
#include "text/unicode.h"

enum { PENDING = 64 };

typedef struct piece {
  uint32_t code;
  int32_t change;
  uint8_t order; /* canonical combining class */
} piece_t;

/* A starter that may compose with what follows, then what could not compose so far. */
typedef struct former {
  edit_t *edit;
  bool compose;
  piece_t pending[PENDING]; /* decomposed, in canonical order from `ordered` on */
  int count;
  piece_t kept[PENDING]; /* [0]: the starter, if has_starter; then marks that did not compose */
  int kept_count;
  bool has_starter;
} former_t;

static uint8_t combining_class(uint32_t code) {
  return (uint8_t)utf8proc_get_property((utf8proc_int32_t)code)->combining_class;
}

/* The canonical composition of two characters, 0: there is none. */
static uint32_t compose(uint32_t first, uint32_t second) {
  utf8proc_int32_t both[3] = {(utf8proc_int32_t)first, (utf8proc_int32_t)second, 0};
  if (second < 0x300) return 0;
  return utf8proc_normalize_utf32(both, 2, UTF8PROC_COMPOSE | UTF8PROC_STABLE) == 1
             ? (uint32_t)both[0] : 0;
}

static void give(former_t *former) {
  for (int i = 0; i < former->kept_count; i++)
    edit_put(former->edit, former->kept[i].code, former->kept[i].change);
  former->kept_count = 0;
  former->has_starter = false;
}

/* One character in canonical order. */
static void take_ordered(former_t *former, piece_t piece) {
  if (!former->compose) {
    edit_put(former->edit, piece.code, piece.change);
    return;
  }
  if (!former->has_starter) {
    if (piece.order != 0) {
      edit_put(former->edit, piece.code, piece.change);
      return;
    }
    former->kept[0] = piece;
    former->kept_count = 1;
    former->has_starter = true;
    return;
  }
  const bool first = former->kept_count == 1;
  if (first || former->kept[former->kept_count - 1].order < piece.order) {
    const uint32_t whole = compose(former->kept[0].code, piece.code);
    if (whole) {
      former->kept[0].code = whole;
      former->kept[0].change += piece.change - 1;
      return;
    }
  }
  if (piece.order == 0) {
    give(former);
    former->kept[0] = piece;
    former->kept_count = 1;
    former->has_starter = true;
    return;
  }
  if (former->kept_count == PENDING) { /* from here on nothing is composed with the starter */
    give(former);
    edit_put(former->edit, piece.code, piece.change);
    return;
  }
  former->kept[former->kept_count++] = piece;
}

/* Gives the decomposed characters on, marks sorted by class, equal ones as they came. */
static void flush_pending(former_t *former) {
  for (int i = 1; i < former->count; i++) {
    const piece_t piece = former->pending[i];
    int at = i;
    for (; at > 0 && former->pending[at - 1].order > piece.order; at--)
      former->pending[at] = former->pending[at - 1];
    former->pending[at] = piece;
  }
  for (int i = 0; i < former->count; i++) take_ordered(former, former->pending[i]);
  former->count = 0;
}

static void take(former_t *former, uint32_t code, int32_t change) {
  const piece_t piece = {code, change, combining_class(code)};
  /* More marks on one letter than any language has are not sorted across this bound. */
  if (piece.order == 0 || former->count == PENDING) flush_pending(former);
  if (piece.order == 0) take_ordered(former, piece);
  else former->pending[former->count++] = piece;
}

/* ---- what needs no look ---------------------------------------------------------------------- */

/* Starters that NFC leaves alone and that never compose with the character before. */
static bool nfc_inert(uint32_t code) {
  if (code < 0x300) return true;
  if (code >= 0x48A && code < 0x559) return true;                     /* Cyrillic, Armenian */
  if (code >= 0x388 && code < 0x483) return true;                     /* Greek, Cyrillic */
  if (code >= 0x2010 && code < 0x20D0) return true;                   /* punctuation, currency */
  if (code >= 0x2190 && code < 0x2329) return true;                   /* arrows, operators */
  if (code >= 0x2400 && code < 0x2ADC) return true;                   /* forms, dingbats */
  if (code >= 0x3000 && code < 0x302A) return true;                   /* CJK punctuation */
  if (code >= 0x3041 && code < 0x3099) return true;                   /* Hiragana */
  if (code >= 0x309B && code < 0xA66F) return true;                   /* Katakana to Yi */
  if (code >= 0xAC00 && code < 0xD7A4) return true;                   /* Hangul syllables */
  return code >= 0xFF00 ? code < 0xFFFE || (code >= 0x1F000 && code < 0x1FC00)
                        : code >= 0xE000 && code < 0xF900;
}

bool normalize_form_stable(int32_t kind, const char *text, uint32_t bytes) {
  const char *end = text + bytes;
  while (text < end) {
    uint64_t word;
    while (end - text >= 8) {
      memcpy(&word, text, 8);
      if (word & 0x8080808080808080u) break;
      text += 8;
    }
    if (text == end) return true;
    uint32_t taken;
    const uint32_t code = utf8_decode(text, end, &taken);
    if (code >= 0x80 && (kind != NORMALIZE_NFC || !nfc_inert(code))) return false;
    text += taken;
  }
  return true;
}

/* ---- the forms ------------------------------------------------------------------------------- */

static void decompose(former_t *former, uint32_t code, utf8proc_option_t options) {
  utf8proc_int32_t parts[32];
  int boundary = 0;
  const utf8proc_ssize_t count =
      utf8proc_decompose_char((utf8proc_int32_t)code, parts, 32, options, &boundary);
  if (count <= 0 || count > 32) {
    take(former, code, 0);
    return;
  }
  for (utf8proc_ssize_t i = 0; i < count; i++) take(former, (uint32_t)parts[i], i ? 1 : 0);
}

/* True where an inert character stands at `at`, or nothing. */
static bool inert_at(const work_t *from, uint32_t at) {
  uint32_t bytes;
  return at >= from->bytes ||
         nfc_inert(utf8_decode(from->data + at, from->data + from->bytes, &bytes));
}

/* The reader runs ahead of the edit, which moves as characters are written. */
void normalize_form(int32_t kind, edit_t *edit) {
  const bool compatible = kind == NORMALIZE_NFKC || kind == NORMALIZE_NFKD;
  former_t former = {.edit = edit, .compose = kind == NORMALIZE_NFC || kind == NORMALIZE_NFKC};
  const utf8proc_option_t options =
      compatible ? UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT : UTF8PROC_DECOMPOSE;
  const work_t *from = edit->from;
  uint32_t at = 0, bytes;
  while (at < from->bytes && edit->status == NN_OK) {
    const uint32_t code = utf8_decode(from->data + at, from->data + from->bytes, &bytes);
    /* before a mark, a composed letter comes apart: the mark may have to stand first */
    const bool inert = code < 0x80 || (kind == NORMALIZE_NFC && nfc_inert(code) &&
                                       inert_at(from, at + bytes));
    if (code == UNICODE_REPLACEMENT && bytes != 3) { /* malformed: stays */
      flush_pending(&former);
      give(&former);
      edit_copy(edit, bytes);
    } else if (inert) {
      take(&former, code, 0);
    } else {
      decompose(&former, code, options);
    }
    at += bytes;
  }
  flush_pending(&former);
  give(&former);
}
