#define _GNU_SOURCE
#include "base/plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

/* The path of a file in the plugins' folder. */
static nn_status_t plugin_path(const char *file, char *path, size_t bytes) {
  /* none where the program has more rights than whoever set the environment */
  const char *folder = secure_getenv("MOENN_PLUGIN_PATH");
  int length = 0;
  if (folder && *folder) {
    length = snprintf(path, bytes, "%s/%s", folder, file);
  } else {
    Dl_info self;
    static const char here;
    if (!dladdr(&here, &self) || !self.dli_fname)
      return status_fail(NN_ERR_NOT_FOUND,
                         "this library's own folder, where %s is looked for, could "
                         "not be found; set MOENN_PLUGIN_PATH",
                         file);
    const char *slash = strrchr(self.dli_fname, '/');
    int kept = slash ? (int)(slash - self.dli_fname) + 1 : 0;
    length = snprintf(path, bytes, "%.*s%s", kept, self.dli_fname, file);
  }
  if (length < 0 || (size_t)length >= bytes)
    return status_fail(NN_ERR_NOT_FOUND, "the path of %s is too long", file);
  return NN_OK;
}

nn_status_t plugin_open(const char *file, const char *function, backend_open_fn *open) {
  char path[PATH_MAX];
  STATUS_TRY(plugin_path(file, path, sizeof path));
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library)
    return status_fail(NN_ERR_NOT_FOUND,
                       "%s could not be opened, in this library's folder or that of "
                       "MOENN_PLUGIN_PATH; a build without CUDA has none: %s",
                       file, dlerror());
  void *found = dlsym(library, function);
  if (!found) {
    status_fail(NN_ERR_UNSUPPORTED, "%s has no function %s: it is of another release", path,
                function);
    dlclose(library);
    return NN_ERR_UNSUPPORTED;
  }
  memcpy(open, &found, sizeof found); /* C has no cast from an object's to a function's pointer */
  return NN_OK;
}
