/* Base64 (RFC 4648, section 4). */
#ifndef NN_TEXT_BASE64_H
#define NN_TEXT_BASE64_H

#include <stdbool.h>

#include "text/index.h"

/* Room that decoding may need. */
static inline size_t base64_room(size_t characters) { return characters / 4 * 3 + 3; }

/* False for what is not base64; padding may be absent, but not wrong. data: [base64_room] */
bool base64_decode(text_t text, char *data, size_t *bytes);

/* Writes base64_length(bytes) characters, with padding and without a NUL. */
static inline size_t base64_length(size_t bytes) { return (bytes + 2) / 3 * 4; }
void base64_encode(const char *data, size_t bytes, char *text);

#endif
