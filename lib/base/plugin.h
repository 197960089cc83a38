/* Backends in shared objects of their own, opened when first asked for. */
#ifndef NN_BASE_PLUGIN_H
#define NN_BASE_PLUGIN_H

#include "backend.h"

/* Finds a backend's open function in a file of the folder that MOENN_PLUGIN_PATH names or, where it
 * is not set, of this library's own folder. An opened file stays open. NN_ERR_NOT_FOUND says where
 * was looked and what the system said. Any thread. */
nn_status_t plugin_open(const char *file, const char *function, backend_open_fn *open);

#endif
