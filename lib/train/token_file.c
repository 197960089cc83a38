#include "train/token_file.h"

enum { HEADER_WORDS = 256, MAGIC = 20240520, VERSION = 1 };

nn_status_t token_file_parse(const void *data, size_t bytes, const uint16_t **ids, int64_t *count) {
  const int32_t *header = data;
  const size_t header_bytes = HEADER_WORDS * sizeof *header;
  if (bytes < header_bytes)
    return status_fail(NN_ERR_FORMAT, "%zu bytes are too few for a token file's header of %zu",
                       bytes, header_bytes);
  if (header[0] != MAGIC)
    return status_fail(NN_ERR_FORMAT, "the magic number is %d; a token file's is %d", header[0],
                       MAGIC);
  if (header[1] != VERSION)
    return status_fail(NN_ERR_UNSUPPORTED, "the token file has version %d; this library reads %d",
                       header[1], VERSION);
  if (header[2] < 0)
    return status_fail(NN_ERR_FORMAT, "the header counts %d tokens", header[2]);
  if (bytes != header_bytes + (size_t)header[2] * sizeof **ids)
    return status_fail(NN_ERR_FORMAT,
                       "the header counts %d tokens, which makes a file of %zu bytes; it has %zu",
                       header[2], header_bytes + (size_t)header[2] * sizeof **ids, bytes);
  *ids = (const uint16_t *)(header + HEADER_WORDS);
  *count = header[2];
  return NN_OK;
}
