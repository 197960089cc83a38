/* Decoding id by id. What an id's text is can depend on the ids before it (a space that only the
 * first token leaves out, bytes of one character in several tokens), never on those far before: a
 * window of ids is decoded, and what of its text has been given out is remembered. */
#include "text/stream.h"

#include "text/unicode.h"

/* The last id that has a text of its own; the window may begin there. `from` where none has. */
static int64_t last_with_text(const nn_tokenizer_t *tokenizer, const int32_t *ids, int64_t from,
                              int64_t count, bool keep_special) {
  for (int64_t i = count - 1; i > from; i--) {
    const id_entry_t *entry = &tokenizer->ids[ids[i]];
    if (entry->text.data && (keep_special || !entry->special)) return i;
  }
  return from;
}

/* Appends text with U+FFFD for what is malformed. */
static nn_status_t add_valid(buffer_t *out, const char *text, size_t bytes) {
  while (bytes) {
    const size_t valid = utf8_valid(text, bytes);
    uint32_t taken = 0;
    STATUS_TRY(buffer_add(out, text, valid));
    if (valid < bytes) {
      utf8_decode(text + valid, text + bytes, &taken);
      STATUS_TRY(buffer_add(out, "\xEF\xBF\xBD", 3));
    }
    text += valid + taken;
    bytes -= valid + taken;
  }
  return NN_OK;
}

nn_status_t stream_next(const nn_tokenizer_t *tokenizer, stream_t *stream, const int32_t *ids,
                        int64_t count, bool finish, buffer_t *out) {
  buffer_t window = {0}, last = {0};
  const int64_t begin = stream->begin;
  nn_status_t status = tokenizer_decode(tokenizer, ids + begin, count - begin,
                                        stream->keep_special, true, &window);
  const size_t unfinished = status == NN_OK && !finish
                                ? utf8_unfinished(window.data, window.bytes) : 0;
  const size_t end = window.bytes - unfinished;
  if (status == NN_OK && end > stream->given)
    status = add_valid(out, window.data + stream->given, end - stream->given);
  if (status == NN_OK && end > stream->given) stream->given = end;
  /* Without a text of its own an id is no first one for those to come. That may be a space, which
   * is left out of the first token alone: the id before it then. */
  int64_t next = count;
  for (int i = 0; status == NN_OK && !unfinished && !last.bytes && i < 2; i++) {
    next = last_with_text(tokenizer, ids, begin, next, stream->keep_special);
    if (next == begin) break;
    status = tokenizer_decode(tokenizer, ids + next, count - next, stream->keep_special, true,
                              &last);
  }
  if (status == NN_OK && last.bytes) {
    stream->begin = next;
    stream->given = last.bytes;
  }
  buffer_free(&window);
  buffer_free(&last);
  return status;
}
