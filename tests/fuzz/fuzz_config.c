/* The config.json reader: any text is refused, or gives a valid configuration that is written and
 * read again as the same. */
#include <stdlib.h>
#include <string.h>

#include "moenn.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  nn_model_config_t config = {.struct_size = sizeof config}, again = config;
  if (nn_config_from_json((const char *)data, size, &config) != NN_OK) return 0;
  again = config;
  if (nn_config_validate(&again) != NN_OK || memcmp(&again, &config, sizeof config) != 0) abort();
  static char text[1 << 16]; /* a list of 256 layers is the longest */
  size_t required;
  if (nn_config_to_json(&config, text, sizeof text, &required) != NN_OK) abort();
  if (nn_config_from_json(text, required - 1, &again) != NN_OK) abort();
  if (memcmp(&again, &config, sizeof config) != 0) abort();
  return 0;
}
