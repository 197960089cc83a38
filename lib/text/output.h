/* A file that is put together in memory and written at once. */
#ifndef NN_TEXT_OUTPUT_H
#define NN_TEXT_OUTPUT_H

#include "base/status.h"

/* A zeroed one is empty. The first failure is kept in status, and what follows does nothing. */
typedef struct output {
  char *data;
  size_t bytes, capacity;
  nn_status_t status;
} output_t;

void output_add(output_t *output, const void *data, size_t bytes);
void output_text(output_t *output, const char *text); /* up to its NUL */

/* Writes the file whole or not at all; returns the status that was kept where there is one. */
nn_status_t output_save(const output_t *output, const char *path);
void output_free(output_t *output);

#endif
