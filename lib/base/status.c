#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MESSAGE_BYTES = 512 };

static _Thread_local char message[MESSAGE_BYTES];

const char *nn_version(void) {
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
  return TEXT(NN_VERSION_MAJOR) "." TEXT(NN_VERSION_MINOR) "." TEXT(NN_VERSION_PATCH);
}

int32_t nn_abi_version(void) { return NN_ABI_VERSION; }

const char *nn_last_error(void) { return message; }

const char *nn_status_name(nn_status_t status) {
  switch (status) {
    case NN_OK: return "NN_OK";
    case NN_ERR_ARGUMENT: return "NN_ERR_ARGUMENT";
    case NN_ERR_STRUCT_SIZE: return "NN_ERR_STRUCT_SIZE";
    case NN_ERR_MEMORY: return "NN_ERR_MEMORY";
    case NN_ERR_IO: return "NN_ERR_IO";
    case NN_ERR_FORMAT: return "NN_ERR_FORMAT";
    case NN_ERR_UNSUPPORTED: return "NN_ERR_UNSUPPORTED";
    case NN_ERR_STATE: return "NN_ERR_STATE";
    case NN_ERR_NOT_FOUND: return "NN_ERR_NOT_FOUND";
    case NN_ERR_NONFINITE: return "NN_ERR_NONFINITE";
    case NN_ERR_CANCELLED: return "NN_ERR_CANCELLED";
    case NN_ERR_CAPACITY: return "NN_ERR_CAPACITY";
    case NN_ERR_DEVICE: return "NN_ERR_DEVICE";
    default: return "unknown status";
  }
}

nn_status_t status_fail(nn_status_t status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  /* Arguments may point into the old message, so it is replaced only when the new one is whole. */
  char text[MESSAGE_BYTES];
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  /* What comes out of files must not command the terminal that shows it. */
  for (char *at = text; *at; at++)
    if ((unsigned char)*at < ' ' || *at == 0x7f) *at = '?';
  memcpy(message, text, sizeof message);
  return status;
}

nn_status_t status_prefix(nn_status_t status, const char *format, ...) {
  char context[MESSAGE_BYTES];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(context, sizeof context, format, arguments);
  va_end(arguments);
  return status_fail(status, "%.240s: %s", context, message); /* the reason must fit too */
}

/* struct_size of a caller's struct. */
static size_t struct_size_of(const void *data) {
  size_t size;
  memcpy(&size, data, sizeof size);
  return size;
}

/* No struct is as large as the upper bound; an uninitialised size most likely is. */
static nn_status_t status_check_size(size_t size, size_t first, const char *name) {
  if (size >= first && size <= 1 << 16) return NN_OK;
  return status_fail(NN_ERR_STRUCT_SIZE,
                     "%s: struct_size is %zu; set it to sizeof(%s), which is at least %zu", name,
                     size, name, first);
}

nn_status_t status_read_options(void *target, size_t known, size_t first, const void *source,
                                const char *name) {
  memset(target, 0, known);
  if (source) {
    size_t size = struct_size_of(source);
    STATUS_TRY(status_check_size(size, first, name));
    for (size_t i = known; i < size; i++)
      if (((const unsigned char *)source)[i])
        return status_fail(
            NN_ERR_STRUCT_SIZE,
            "%s: struct_size is %zu, this library knows %zu bytes, and byte %zu is set; "
            "it needs a newer library",
            name, size, known, i);
    memcpy(target, source, size < known ? size : known);
  }
  memcpy(target, &known, sizeof known);
  return NN_OK;
}

nn_status_t status_check_result(const void *target, size_t first, const char *name) {
  if (!target) return status_fail(NN_ERR_ARGUMENT, "%s: the result struct is NULL", name);
  return status_check_size(struct_size_of(target), first, name);
}

void status_write_result(void *target, const void *source, size_t known) {
  size_t size = struct_size_of(target), copied = size < known ? size : known;
  memcpy((char *)target + sizeof size, (const char *)source + sizeof size, copied - sizeof size);
  if (size > known) memset((char *)target + known, 0, size - known);
}
