/* A reader of safetensors files for tests, independent of the library's: it trusts its files and
 * ends the test where they are not as expected. */
#ifndef NN_TEST_GOLDEN_H
#define NN_TEST_GOLDEN_H

#include <stdint.h>

#include "moenn.h"

enum { GOLDEN_DIMS = 4 };

typedef struct golden_tensor {
  char *name;
  int32_t dtype; /* NN_ dtype; F32, F64, I32 and I64 are known */
  int32_t ndim;
  int64_t shape[GOLDEN_DIMS], elements;
  const void *data;
} golden_tensor_t;

typedef struct golden {
  char *bytes;
  golden_tensor_t *tensors;
  int64_t count;
} golden_t;

/* Opens tests/golden/<folder>/<file>. */
void golden_open(golden_t *golden, const char *folder, const char *file);
void golden_close(golden_t *golden);

/* The tensor called prefix and name put together, which must be there. */
const golden_tensor_t *golden_get(const golden_t *golden, const char *prefix, const char *name);

/* The same as an array of one type, which it must have. */
const float *golden_f32(const golden_t *golden, const char *name);
const double *golden_f64(const golden_t *golden, const char *name);
const int32_t *golden_i32(const golden_t *golden, const char *name);

/* The text of tests/golden/<folder>/<file> and its length; freed by the caller. */
char *golden_text(const char *folder, const char *file, size_t *bytes);

#endif
