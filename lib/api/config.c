/* Exported functions of nn_model_config_t. */
#include <string.h>

#include "base/mem.h"
#include "base/status.h"
#include "format/config_json.h"
#include "model/config.h"

nn_status_t nn_config_preset(const char *name, nn_model_config_t *config) {
  STATUS_REQUIRE(name);
  STATUS_TRY(status_check_result(config, sizeof *config, "nn_config_preset: config"));
  nn_model_config_t preset;
  STATUS_TRY(config_preset(name, &preset));
  status_write_result(config, &preset, sizeof preset);
  return NN_OK;
}

nn_status_t nn_config_validate(nn_model_config_t *config) {
  STATUS_REQUIRE(config);
  nn_model_config_t checked;
  STATUS_TRY(status_read_options(&checked, sizeof checked, sizeof checked, config, "nn_config_validate: config"));
  STATUS_TRY(config_validate(&checked));
  status_write_result(config, &checked, sizeof checked);
  return NN_OK;
}

nn_status_t nn_config_from_json(const char *text, size_t bytes, nn_model_config_t *config) {
  STATUS_REQUIRE(text);
  STATUS_TRY(status_check_result(config, sizeof *config, "nn_config_from_json: config"));
  nn_model_config_t read;
  STATUS_TRY(config_json_read(text, bytes, &read));
  status_write_result(config, &read, sizeof read);
  return NN_OK;
}

nn_status_t nn_config_to_json(const nn_model_config_t *config, char *text, size_t capacity,
                              size_t *required) {
  STATUS_REQUIRE(config);
  STATUS_REQUIRE(required);
  if (capacity) STATUS_REQUIRE(text);
  nn_model_config_t checked;
  STATUS_TRY(status_read_options(&checked, sizeof checked, sizeof checked, config, "nn_config_to_json: config"));
  STATUS_TRY(config_validate(&checked));
  char *written;
  size_t length;
  STATUS_TRY(config_json_write(&checked, -1, &written, &length));
  *required = length + 1;
  nn_status_t status = NN_OK;
  if (capacity > length)
    memcpy(text, written, length + 1);
  else
    status = status_fail(NN_ERR_CAPACITY,
                         "nn_config_to_json: the text takes %zu bytes and capacity is %zu",
                         length + 1, capacity);
  mem_free(written);
  return status;
}
