/* What an application does first; built by test_install.sh against an installed libmoenn. */
#include <moenn.h>
#include <stdio.h>

int main(void) {
  nn_device_t *device = NULL;
  nn_status_t status = nn_device_create("cpu", NULL, &device);
  if (status != NN_OK) {
    fprintf(stderr, "%s: %s\n", nn_status_name(status), nn_last_error());
    return 1;
  }
  nn_device_destroy(device);

  /* Reaches the JSON reader, so that a static link needs everything the library does. */
  nn_model_config_t config = {.struct_size = sizeof config};
  if (nn_config_from_json("{", 1, &config) != NN_ERR_FORMAT) return 1;
  printf("libmoenn %s\n", nn_version());
  return 0;
}
