#include "text/work.h"

#include <string.h>

#include "base/mem.h"
#include "text/list.h"
#include "text/unicode.h"

void buffer_free(buffer_t *buffer) {
  mem_free(buffer->data);
  mem_free(buffer->places);
  *buffer = (buffer_t){0};
}

nn_status_t buffer_room(buffer_t *buffer, size_t more) {
  return LIST_ROOM(buffer->data, buffer->bytes, more, buffer->capacity);
}

nn_status_t buffer_add(buffer_t *buffer, const char *data, size_t bytes) {
  STATUS_TRY(buffer_room(buffer, bytes));
  if (bytes) memcpy(buffer->data + buffer->bytes, data, bytes);
  buffer->bytes += bytes;
  return NN_OK;
}

edit_t edit_begin(const work_t *from, buffer_t *to, bool places) {
  return (edit_t){.from = from, .to = to, .places = places};
}

nn_status_t edit_end(const edit_t *edit, size_t start, work_t *work) {
  STATUS_TRY(edit->status);
  if (edit->to->bytes == start) { /* there may be no memory yet */
    *work = (work_t){.data = "", .base = edit->from->base};
    return NN_OK;
  }
  *work = (work_t){.data = edit->to->data + start,
                   .bytes = (uint32_t)(edit->to->bytes - start),
                   .places = edit->places ? edit->to->places + start : NULL,
                   .base = edit->from->base};
  return NN_OK;
}

/* The place of the character that byte `at` of the source is part of. */
static place_t place_at(const work_t *from, uint32_t at) {
  if (from->places) return from->places[at];
  return (place_t){from->base + (uint32_t)utf8_begin(from->data, from->bytes, at),
                   from->base + (uint32_t)utf8_end(from->data, from->bytes, at)};
}

/* Room for more bytes. Where there is none, the edit has nothing left to read: its loops end. */
static bool room(edit_t *edit, size_t more) {
  buffer_t *to = edit->to;
  if (edit->status == NN_OK && more > UINT32_MAX - to->bytes)
    edit->status = status_fail(NN_ERR_UNSUPPORTED, "a text of 4 GiB or more when normalized");
  if (edit->status == NN_OK) edit->status = buffer_room(to, more);
  if (edit->status == NN_OK && edit->places)
    edit->status = LIST_ROOM(to->places, to->bytes, more, to->place_capacity);
  if (edit->status != NN_OK) edit->at = edit->from->bytes;
  return edit->status == NN_OK;
}

static void write(edit_t *edit, const char *data, size_t bytes, place_t place) {
  buffer_t *to = edit->to;
  if (!room(edit, bytes)) return;
  memcpy(to->data + to->bytes, data, bytes);
  for (size_t i = 0; edit->places && i < bytes; i++) to->places[to->bytes + i] = place;
  to->bytes += bytes;
}

static place_t last_place(const edit_t *edit) {
  if (!edit->places || edit->at == 0) return (place_t){edit->from->base, edit->from->base};
  return place_at(edit->from, edit->at - 1);
}

static void skip_character(edit_t *edit) {
  const work_t *from = edit->from;
  uint32_t bytes;
  if (edit->at >= from->bytes) return;
  utf8_decode(from->data + edit->at, from->data + from->bytes, &bytes);
  edit->at += bytes;
}

void edit_put(edit_t *edit, uint32_t code, int32_t change) {
  char data[4];
  const size_t bytes = utf8_write(code, data);
  if (change > 0 || edit->at >= edit->from->bytes) {
    write(edit, data, bytes, last_place(edit));
    return;
  }
  write(edit, data, bytes,
        edit->places ? place_at(edit->from, edit->at) : (place_t){0, 0});
  for (; change <= 0; change++) skip_character(edit);
}

void edit_copy(edit_t *edit, uint32_t bytes) {
  buffer_t *to = edit->to;
  const work_t *from = edit->from;
  if (!room(edit, bytes)) return;
  if (bytes) memcpy(to->data + to->bytes, from->data + edit->at, bytes);
  for (uint32_t i = 0; edit->places && i < bytes; i++)
    to->places[to->bytes + i] = place_at(from, edit->at + i);
  to->bytes += bytes;
  edit->at += bytes;
}

void edit_skip(edit_t *edit, uint32_t bytes) { edit->at += bytes; }

void edit_insert(edit_t *edit, text_t text) {
  if (text.bytes) write(edit, text.data, text.bytes, last_place(edit));
}

void edit_prepend(edit_t *edit, text_t text) {
  const work_t *from = edit->from;
  const place_t place = edit->places ? place_at(from, edit->at) : (place_t){0, 0};
  uint32_t bytes;
  utf8_decode(from->data + edit->at, from->data + from->bytes, &bytes);
  if (text.bytes) write(edit, text.data, text.bytes, place);
  edit_copy(edit, bytes);
}

place_t work_place(const work_t *work, span_t span, const char *text, size_t bytes) {
  if (work->places)
    return (place_t){work->places[span.begin].begin, work->places[span.end - 1].end};
  return (place_t){(uint32_t)utf8_begin(text, bytes, work->base + span.begin),
                   (uint32_t)utf8_end(text, bytes, work->base + span.end - 1)};
}
