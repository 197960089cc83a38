#include "base/json_text.h"

#include <errno.h>

#include "base/mem.h"
#include "base/status.h"

nn_status_t json_text_read(const void *text, size_t bytes, size_t flags, json_t **root) {
  json_error_t error;
  errno = 0;
  json_t *read = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | flags, &error);
  /* without memory the parser gives no reason, or a wrong one, or a text that lacks a byte */
  if (errno == ENOMEM || (!read && json_error_code(&error) == json_error_out_of_memory)) {
    json_decref(read);
    return status_fail(NN_ERR_MEMORY, "memory to read %zu bytes of JSON could not be had", bytes);
  }
  if (!read)
    return status_fail(NN_ERR_FORMAT, "line %d, column %d: %s", error.line, error.column,
                       error.text);
  *root = read;
  return NN_OK;
}

nn_status_t json_text_write(const json_t *root, size_t flags, size_t room, char **text,
                            size_t *bytes) {
  const size_t length = root ? json_dumpb(root, NULL, 0, flags) : 0;
  void *made = NULL;
  if (length) STATUS_TRY(mem_alloc(length + room, 1, &made));
  /* writing takes memory too: what failed midway would pass for a text */
  if (!length || json_dumpb(root, made, length, flags) != length) {
    mem_free(made);
    return status_fail(NN_ERR_MEMORY, "memory to write JSON could not be had");
  }
  *text = made;
  *bytes = length;
  return NN_OK;
}
