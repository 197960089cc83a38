/* llm.c tokenizer files: any bytes are refused, or make a tokenizer that works. */
#include "text.h"
#include "text/llmc_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  text_try_reader(llmc_tokenizer_read, data, size);
  return 0;
}
