/* What tests of tokenizer files share: the bytes of small files, and a round through a tokenizer
 * that was made of untrusted ones. */
#ifndef NN_TEST_TEXT_H
#define NN_TEST_TEXT_H

#include "text/pipeline.h"

/* Bytes that grow; the program ends when memory does. A zeroed one is empty. */
typedef struct text_bytes {
  unsigned char *data;
  size_t bytes, capacity;
} text_bytes_t;

void text_put(text_bytes_t *to, const void *data, size_t bytes);
void text_put_u32(text_bytes_t *to, uint32_t value);
void text_put_u64(text_bytes_t *to, uint64_t value);
void text_bytes_free(text_bytes_t *bytes);

typedef nn_status_t (*text_read_fn)(text_t file, pipeline_t *pipeline);

/* Of fuzzers: reads any bytes; what is accepted must make a tokenizer that encodes texts, decodes
 * every id of its own, and can be written as tokenizer.json or says why not. */
void text_try_reader(text_read_fn read, const uint8_t *data, size_t size);

#endif
