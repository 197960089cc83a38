/* The text on its way through normalizer and pre-tokenizer: a piece of the caller's text or an
 * edited copy, and for each byte the place in the caller's text that it came from.
 *
 * Places are kept as the tokenizers package keeps them: an edit says of each character that it
 * writes how it relates to those that it replaces, and takes their places over. */
#ifndef NN_TEXT_WORK_H
#define NN_TEXT_WORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "text/index.h"

/* Bytes [begin, end) of the caller's text. */
typedef struct place {
  uint32_t begin, end;
} place_t;

/* Bytes [begin, end) of a work's data. */
typedef struct span {
  uint32_t begin, end;
} span_t;

typedef struct work {
  const char *data;
  uint32_t bytes;
  const place_t *places; /* [bytes]; NULL: byte i is byte base + i of the caller's text, or places
                            are not followed */
  uint32_t base;
} work_t;

/* Memory that an edit writes to. A zeroed one is empty. */
typedef struct buffer {
  char *data;
  size_t bytes, capacity;
  place_t *places;
  size_t place_capacity;
} buffer_t;

void buffer_free(buffer_t *buffer);
/* Room for more bytes behind those there are. */
nn_status_t buffer_room(buffer_t *buffer, size_t more);
nn_status_t buffer_add(buffer_t *buffer, const char *data, size_t bytes);

/* An edit reads `from` once, forwards, and writes to `to`. The first failure is kept in status, and
 * what follows does nothing. */
typedef struct edit {
  const work_t *from;
  buffer_t *to;
  bool places; /* followed */
  uint32_t at; /* how far from has been read */
  nn_status_t status;
} edit_t;

edit_t edit_begin(const work_t *from, buffer_t *to, bool places);
/* What was written since edit_begin, as a work; base means nothing when places are not followed. */
nn_status_t edit_end(const edit_t *edit, size_t start, work_t *work);

/* Writes one character. change 1: it is new and takes the place of what was read last. 0: it
 * replaces the next character. -n: it replaces the next one, and the n after that are removed. */
void edit_put(edit_t *edit, uint32_t code, int32_t change);
/* Copies the next bytes as they are; they are whole characters. */
void edit_copy(edit_t *edit, uint32_t bytes);
/* Reads bytes without writing anything. */
void edit_skip(edit_t *edit, uint32_t bytes);
/* Writes characters that are all new. */
void edit_insert(edit_t *edit, text_t text);
/* Writes text before the next character, sharing that one's place, and copies the character. */
void edit_prepend(edit_t *edit, text_t text);

/* The place of bytes [begin, end) of a work, begin < end, in whole characters of the caller's
 * text. */
place_t work_place(const work_t *work, span_t span, const char *text, size_t bytes);

#endif
