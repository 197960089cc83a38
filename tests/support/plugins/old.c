/* A plugin of another release: its device opens, and its table says an ABI version of its own. */
#include "backend.h"

static int closed;

static void old_close(backend_device_t *device) {
  (void)device;
  closed++;
}

nn_status_t moenn_cuda_open(const backend_options_t *options, const backend_t **table,
                            backend_device_t **device);

__attribute__((visibility("default"))) nn_status_t moenn_cuda_open(const backend_options_t *options,
                                                                   const backend_t **table,
                                                                   backend_device_t **device) {
  static backend_t old = {.abi_version = BACKEND_ABI_VERSION - 1, .struct_size = sizeof old};
  if (options->index == 7) return options->fail(NN_ERR_NOT_FOUND, "there is no device 7");
  old.close = old_close;
  *table = &old;
  *device = (backend_device_t *)&closed;
  return NN_OK;
}

/* How many devices were closed. */
extern __attribute__((visibility("default"))) int old_closed(void);
int old_closed(void) { return closed; }
