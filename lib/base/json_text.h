/* JSON from text and to text, where memory may end at any point: the parser and the writer of
 * jansson do not always say so. */
#ifndef NN_BASE_JSON_TEXT_H
#define NN_BASE_JSON_TEXT_H

#include <jansson.h>
#include <stddef.h>

#include "moenn.h"

/* Parses a text whose objects have no key twice; flags: more of jansson's. NN_ERR_FORMAT says where
 * it is no JSON. The caller frees root with json_decref(). */
nn_status_t json_text_read(const void *text, size_t bytes, size_t flags, json_t **root);

/* The text of a value, in memory that mem_free() frees, with `room` bytes of zero behind it. NULL
 * stands for a value that there was no memory to build. All that fails is NN_ERR_MEMORY. */
nn_status_t json_text_write(const json_t *root, size_t flags, size_t room, char **text,
                            size_t *bytes);

#endif
