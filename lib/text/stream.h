/* Decoding id by id. */
#ifndef NN_TEXT_STREAM_H
#define NN_TEXT_STREAM_H

#include "text/tokenizer.h"

typedef struct stream {
  bool keep_special;
  int64_t begin; /* of the window of ids */
  size_t given;  /* bytes of the window's text that have been given out */
} stream_t;

/* The contract of nn_tokenizer_decode_next; the ids are in range, begin is at most count. The text
 * goes behind what `out` holds. */
nn_status_t stream_next(const nn_tokenizer_t *tokenizer, stream_t *stream, const int32_t *ids,
                        int64_t count, bool finish, buffer_t *out);

#endif
