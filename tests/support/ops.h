/* What the tests of operations share: devices of every path and thread count, scratch that notices
 * misuse, inputs, and comparisons against fp64.
 *
 * A trial walks over all paths that this machine has, 1, 2 and 3 threads, and two runs each (one
 * with sanitizers, which find nothing more in the second):
 *
 *   ops_trial_t trial;
 *   ops_begin(&trial, limits);
 *   while (ops_next(&trial)) {
 *     ... fill what is assigned with garbage, what is accumulated with known values ...
 *     OPS_RUN(&trial, norm, &op);
 *     ops_check(&trial, 0, "y", y, want, slack, count);
 *   }
 *
 * The first run of a path fixes the bits that its other runs must give.
 *
 * Where MOENN_TEST_DEVICE names a GPU, that is the one path, and the data below lies in memory that
 * the host and the GPU share. */
#ifndef NN_TEST_OPS_H
#define NN_TEST_OPS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants the headers above first */
#include <cmocka.h>

#include "backend.h"

enum { OPS_SLOTS = 8 };

typedef struct ops_trial {
  backend_limits_t limits;
  const backend_t *table;
  backend_device_t *device;
  atomic_int cancel;
  int32_t path;    /* index of the path */
  int32_t threads;
  int32_t repeat;  /* 0 or 1 */
  const char *path_name;
  void *scratch; /* NULL until lent in this run */
  size_t scratch_bytes;
  struct {
    void *bits;
    size_t bytes;
  } first[OPS_SLOTS]; /* what the path's first run gave */
} ops_trial_t;

/* Options of a device whose cancel flag is the given one. */
backend_options_t ops_options(int32_t threads, int32_t cpu_paths, const atomic_int *cancel);

void ops_begin(ops_trial_t *trial, backend_limits_t limits);

/* Opens the next device, or returns 0 after the last one, with everything closed. */
int ops_next(ops_trial_t *trial);

/* Scratch of exactly workspace_bytes(limits), in each run at first full of NaN or other garbage,
 * later of what earlier operations left. The bytes behind it must stay as they are. */
backend_scratch_t ops_lend(ops_trial_t *trial);
void ops_return(const ops_trial_t *trial);

#define OPS_STATUS(trial, name, op) \
  ops_finish(trial, (trial)->table->name((trial)->device, op, ops_lend(trial)))
#define OPS_RUN(trial, name, op) ops_expect(trial, #name, NN_OK, OPS_STATUS(trial, name, op))

/* The operation, asked for under a raised cancel flag, says so. For calls of some size: work of a
 * few microseconds may be done without a look at the flag. */
#define OPS_RUN_CANCELLED(trial, name, op)                                          \
  do {                                                                              \
    atomic_store(&(trial)->cancel, 1);                                              \
    ops_expect(trial, #name, NN_ERR_CANCELLED, OPS_STATUS(trial, name, op));        \
    atomic_store(&(trial)->cancel, 0);                                              \
  } while (0)

nn_status_t ops_finish(const ops_trial_t *trial, nn_status_t status);
void ops_expect(const ops_trial_t *trial, const char *name, nn_status_t want, nn_status_t got);

/* |got - want| <= slack for each element, and the same bits as in the path's first run. */
void ops_check(ops_trial_t *trial, int slot, const char *name, const float *got, const double *want,
               const double *slack, int64_t count);

/* The same bits as in the path's first run. */
void ops_check_bits(ops_trial_t *trial, int slot, const char *name, const void *got, size_t bytes);

/* Whether weights of 16 bits beside fp32 activations can be had: on the CPU, but not on a GPU. */
int ops_widens(void);

/* ---- data; freed together by ops_free() ------------------------------------------------------ */

void *ops_memory(int64_t count, size_t size);
float *ops_floats(int64_t count);
double *ops_doubles(int64_t count);
int32_t *ops_ints(int64_t count);
void ops_free(void);

/* Uniform in [-scale, scale), a function of seed and index. */
float *ops_uniform(int64_t count, float scale, uint64_t seed);

/* The same as a parameter of NN_F32, NN_BF16 or NN_F16, moved by shift. */
void *ops_weights(int64_t count, int32_t dtype, float scale, float shift, uint64_t seed);

/* What a parameter of that dtype makes of the numbers; data itself where it is NN_F32. */
void *ops_pack(float *data, int64_t count, int32_t dtype);

/* Element i of such a parameter. */
double ops_weight(const void *data, int32_t dtype, int64_t i);

/* All of them; zeros where data is NULL. */
double *ops_widen(const void *data, int32_t dtype, int64_t count);

/* The numbers, rounded. */
float *ops_narrow(const double *data, int64_t count);

/* ops_uniform, rounded to bf16 where a product multiplies them with weights of NN_BF16: a path that
 * rounds its inputs to bf16 then has the same inputs as all others. */
float *ops_inputs(int64_t count, int32_t weight_dtype, float scale, uint64_t seed);

/* By how much the open device may round what it multiplies with weights of a dtype: 2^-8, half a
 * unit in the last place of bf16, or 0. */
double ops_rounding(const ops_trial_t *trial, int32_t weight_dtype);

/* In [0, bound). */
int64_t ops_random_index(int64_t bound, uint64_t seed, uint64_t index);

/* What an operation must overwrite: NaN. */
void ops_garbage(float *data, int64_t count);

/* A copy of count floats. */
float *ops_copy(const float *data, int64_t count);

/* A copy of so many bytes, and one of values that are written out: OPS_PUT(float, 1, 2). No
 * operation is given a test's own arrays: what is on the stack, static or constant is the host's
 * alone. */
void *ops_put(const void *values, size_t bytes);
#define OPS_PUT(type, ...) \
  ops_put((const type[]){__VA_ARGS__}, sizeof((const type[]){__VA_ARGS__}))

/* ---- tolerances ------------------------------------------------------------------------------ */

/* Half a unit in the last place of 1: the relative error of one fp32 operation. */
#define OPS_U 0x1p-24

/* Relative error, against the sum of magnitudes, that n fp32 additions (and the products they add)
 * may have in any order: the certain bound is n u; rounding errors of either sign give 8 sqrt(n) u
 * with a probability beyond doubt (Higham and Mary, 2019), which is what is asked for where it is
 * smaller. */
double ops_sum_error(int64_t n);

/* ---- finite differences ---------------------------------------------------------------------- */

/* d f / d x[i] by central differences in fp64, for i < count; f(context) reads x. gradient[i] must
 * agree to 1e-7 of the largest |gradient| (step 1e-5: truncation is h^2 f'''/6, about 1e-11,
 * rounding about 1e-16 f / h, about 1e-11; what is differentiated is of order 1 to 100). */
void ops_check_gradient(const char *name, double (*f)(const void *context), const void *context,
                        double *x, const double *gradient, int64_t count);

#endif
