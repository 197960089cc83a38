/* A plugin of another release: its devices open, and their tables say an ABI version of their own,
 * or that they end early. */
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
  static backend_t small = {.abi_version = BACKEND_ABI_VERSION, .struct_size = 16};
  if (options->index == 7) return options->fail(NN_ERR_NOT_FOUND, "there is no device 7");
  old.close = small.close = old_close;
  *table = options->index == 8 ? &small : &old;
  *device = (backend_device_t *)&closed;
  return NN_OK;
}

/* How many devices were closed. */
extern __attribute__((visibility("default"))) int old_closed(void);
int old_closed(void) { return closed; }
