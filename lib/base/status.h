/* Statuses, the calling thread's message, and option structs of any age. */
#ifndef NN_BASE_STATUS_H
#define NN_BASE_STATUS_H

#include "moenn.h"

/* Sets the calling thread's message (printf format) and returns status. A message says what was
 * asked, what was found, what to do; no capital at the start, no full stop at the end. */
nn_status_t status_fail(nn_status_t status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Puts "context: " (printf format) before the calling thread's message and returns status. */
nn_status_t status_prefix(nn_status_t status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Reads a caller's option struct, of this header's age or another, into `known` bytes at `target`:
 * what the caller's is too short for becomes zero; a longer tail must be zero. NULL source: all
 * zero. `first` is the struct's size in the release that brought it: no caller can have a smaller
 * one. The first member of both is size_t struct_size. */
nn_status_t status_read_options(void *target, size_t known, size_t first, const void *source,
                                const char *name);

/* Checks that a result struct can be written: not NULL, struct_size at least `first`. */
nn_status_t status_check_result(const void *target, size_t first, const char *name);

/* Writes a result: the members that the caller's struct_size has room for. Checked before. */
void status_write_result(void *target, const void *source, size_t known);

/* For pointers that must be given. */
#define STATUS_REQUIRE(pointer)                                                            \
  do {                                                                                     \
    if (!(pointer)) return status_fail(NN_ERR_ARGUMENT, "the argument " #pointer " is NULL"); \
  } while (0)

/* Passes a failure on. */
#define STATUS_TRY(call)                          \
  do {                                            \
    nn_status_t status_try_ = (call);             \
    if (status_try_ != NN_OK) return status_try_; \
  } while (0)

#endif
