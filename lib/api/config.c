/* Exported functions of nn_model_config_t. */
#include "api/config.h"

#include <string.h>

#include "base/mem.h"
#include "base/status.h"
#include "format/config_json.h"
#include "model/config.h"

nn_status_t api_config_read(const nn_model_config_t *config, const char *name,
                            nn_model_config_t *valid) {
  STATUS_REQUIRE(config);
  STATUS_TRY(status_read_options(valid, sizeof *valid, CONFIG_FIRST_BYTES, config, name));
  return config_validate(valid);
}

nn_status_t api_config_check(const nn_model_config_t *target, const char *name) {
  return status_check_result(target, CONFIG_FIRST_BYTES, name);
}

nn_status_t api_config_write(nn_model_config_t *target, const nn_model_config_t *config) {
  for (size_t i = target->struct_size; i < sizeof *config; i++)
    if (((const char *)config)[i])
      return status_fail(NN_ERR_STRUCT_SIZE,
                         "nn_model_config_t: struct_size is %zu, and the configuration has members "
                         "up to byte %zu; build with a header of this release",
                         target->struct_size, i);
  status_write_result(target, config, sizeof *config);
  return NN_OK;
}

nn_status_t nn_config_preset(const char *name, nn_model_config_t *config) {
  STATUS_REQUIRE(name);
  STATUS_TRY(api_config_check(config, "nn_model_config_t"));
  nn_model_config_t preset;
  STATUS_TRY(config_preset(name, &preset));
  return api_config_write(config, &preset);
}

nn_status_t nn_config_validate(nn_model_config_t *config) {
  nn_model_config_t checked;
  STATUS_TRY(api_config_read(config, "nn_model_config_t", &checked));
  return api_config_write(config, &checked);
}

nn_status_t nn_config_from_json(const char *text, size_t bytes, nn_model_config_t *config) {
  STATUS_REQUIRE(text);
  STATUS_TRY(api_config_check(config, "nn_model_config_t"));
  nn_model_config_t read;
  STATUS_TRY(config_json_read(text, bytes, &read));
  return api_config_write(config, &read);
}

nn_status_t nn_config_to_json(const nn_model_config_t *config, char *text, size_t capacity,
                              size_t *required) {
  STATUS_REQUIRE(config);
  STATUS_REQUIRE(required);
  if (capacity) STATUS_REQUIRE(text);
  nn_model_config_t checked;
  STATUS_TRY(api_config_read(config, "nn_model_config_t", &checked));
  char *written;
  size_t length;
  STATUS_TRY(config_json_write(&checked, -1, NULL, &written, &length));
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
