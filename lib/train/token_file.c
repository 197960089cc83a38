#include "train/token_file.h"

#include "base/file.h"

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

static nn_status_t check_fit(const int32_t *ids, int64_t count) {
  if (count > INT32_MAX)
    return status_fail(NN_ERR_UNSUPPORTED, "%lld tokens; a token file has at most %d",
                       (long long)count, INT32_MAX);
  for (int64_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] > UINT16_MAX)
      return status_fail(NN_ERR_UNSUPPORTED,
                         "the id at index %lld is %d; a token file has ids from 0 to %d",
                         (long long)i, ids[i], UINT16_MAX);
  return NN_OK;
}

static nn_status_t save_ids(const int32_t *ids, int64_t count, file_writer_t *writer) {
  const int32_t header[HEADER_WORDS] = {MAGIC, VERSION, (int32_t)count};
  uint16_t part[8192];
  STATUS_TRY(file_writer_write(writer, header, sizeof header));
  for (int64_t done = 0; done < count;) {
    int64_t size = 0;
    while (size < (int64_t)(sizeof part / sizeof *part) && done < count)
      part[size++] = (uint16_t)ids[done++];
    STATUS_TRY(file_writer_write(writer, part, (size_t)size * sizeof *part));
  }
  return NN_OK;
}

nn_status_t token_file_save(const char *path, const int32_t *ids, int64_t count) {
  file_writer_t writer = {0};
  STATUS_TRY(check_fit(ids, count));
  STATUS_TRY(file_writer_open(path, &writer));
  nn_status_t status = save_ids(ids, count, &writer);
  if (status == NN_OK) return file_writer_commit(&writer);
  file_writer_discard(&writer);
  return status;
}
