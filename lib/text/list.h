/* Growing arrays. */
#ifndef NN_TEXT_LIST_H
#define NN_TEXT_LIST_H

#include <stddef.h>

#include "base/status.h"

/* Room for `more` elements of `size` bytes behind the first count ones; what was there is kept.
 * items: where the pointer to the elements is. */
nn_status_t list_grow(void *items, size_t count, size_t more, size_t size, size_t *capacity);

/* Room for one more element. */
#define LIST_GROW(items, count, capacity) LIST_ROOM(items, count, 1, capacity)

/* Room for `more` elements. */
#define LIST_ROOM(items, count, more, capacity)             \
  ((capacity) - (count) >= (size_t)(more)                   \
       ? NN_OK                                              \
       : list_grow(&(items), count, more, sizeof *(items), &(capacity)))

#endif
