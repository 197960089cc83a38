#include "text/output.h"

#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "text/list.h"

void output_add(output_t *output, const void *data, size_t bytes) {
  if (output->status == NN_OK)
    output->status = LIST_ROOM(output->data, output->bytes, bytes, output->capacity);
  if (output->status != NN_OK || !bytes) return;
  memcpy(output->data + output->bytes, data, bytes);
  output->bytes += bytes;
}

void output_text(output_t *output, const char *text) { output_add(output, text, strlen(text)); }

nn_status_t output_save(const output_t *output, const char *path) {
  file_writer_t writer = {0};
  STATUS_TRY(output->status);
  STATUS_TRY(file_writer_open(path, &writer));
  nn_status_t status = file_writer_write(&writer, output->data, output->bytes);
  if (status == NN_OK) return file_writer_commit(&writer);
  file_writer_discard(&writer);
  return status;
}

void output_free(output_t *output) {
  mem_free(output->data);
  *output = (output_t){0};
}
