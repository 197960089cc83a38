/* What the tests of the CUDA backend share: the CPU and the GPU side by side, tensors that exist on
 * both, and comparisons of what an operation made on each.
 *
 *   gpu_begin(NN_BF16, limits, "norm n %d", n);
 *   gpu_tensor_t *x = gpu_in(count, 1, 0, seed), *y = gpu_out(GPU_ACT, count);
 *   op_norm_t op[GPU_SIDES];
 *   for (int s = 0; s < GPU_SIDES; s++) op[s] = (op_norm_t){.x = gpu_at(x, s, 0), ...};
 *   GPU_RUN(norm, op);
 *   gpu_check(y, "y", width, gpu_bound(1, width));
 *   gpu_end();
 *
 * On the CPU activations and weights are fp32; on the GPU they have the case's dtype, and inputs
 * are rounded to it before either side sees them. What is assigned is full of NaN before each run.
 * The GPU runs everything twice and must give the same bits, write nothing to its inputs, and
 * nothing behind tensors and scratch.
 *
 * Where MOENN_TEST_DEVICE is "cpu:PATH", the CPU by that path (reference, avx2, avx512, avx512bf16)
 * takes the GPU's place, with three threads and then with one. */
#ifndef NN_TEST_GPU_H
#define NN_TEST_GPU_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants the headers above first */
#include <cmocka.h>

#include "backend.h"

enum { GPU_SIDES = 2, GPU_CPU = 0, GPU_GPU = 1, GPU_SKIPPED = 77 };

/* Whether a GPU that could not be opened is absent: there is no driver or no GPU, or no plugin, and
 * MOENN_PLUGIN_PATH names none. */
int gpu_absent(nn_status_t status);

/* 0, or what main() has to return: GPU_SKIPPED after the reason is printed. */
int gpu_open(void);
int gpu_close(void **state); /* a group teardown */

/* NN_BF16, or NN_F16 where MOENN_TEST_HALF is "f16"; NN_F32. Where that is "f16" or "bf16", cases
 * of NN_F32 are left out. */
extern int32_t gpu_dtypes[2];

/* ---- cases ----------------------------------------------------------------------------------- */

/* Limits are those of the calls: in bf16 the GPU's scratch is for exactly these, in fp32 for more
 * rows. dtypes are filled in. */
void gpu_begin(int32_t dtype, backend_limits_t limits, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void gpu_end(void);

/* Whether a case of so many multiply-adds is left out: by MOENN_TEST_HALF and select.h or, to be
 * quick, where a CPU is in the GPU's place: that is there for bf16 alone, since fp32 has tests of
 * its own (tests/ops), and for what its path does in a second. Asked once for each case. */
int gpu_leaves(int32_t dtype, double work);

/* Of activations and weights on a side. */
int32_t gpu_dtype(int side);

const backend_t *gpu_table(int side);
backend_device_t *gpu_device(int side);

/* Raised, operations of the GPU return NN_ERR_CANCELLED. */
void gpu_cancel(int32_t raised);

/* ---- tensors; freed by gpu_end() ------------------------------------------------------------- */

typedef enum gpu_kind { GPU_ACT, GPU_F32, GPU_F64, GPU_I16, GPU_I32, GPU_I64 } gpu_kind_t;

typedef enum gpu_use {
  GPU_READ,   /* may not change */
  GPU_WRITE,  /* assigned: NaN before each run */
  GPU_UPDATE, /* accumulated or changed in place: has its first content before each run */
  GPU_SPENT   /* the same, and what is left in it does not matter */
} gpu_use_t;

typedef struct gpu_tensor gpu_tensor_t;

/* values: [count] float for GPU_ACT, otherwise of the kind; NULL for GPU_WRITE. */
gpu_tensor_t *gpu_tensor(gpu_kind_t kind, gpu_use_t use, const void *values, int64_t count);

/* Activations or weights to be read, uniform in shift +- scale. */
gpu_tensor_t *gpu_in(int64_t count, double scale, double shift, uint64_t seed);
gpu_tensor_t *gpu_out(gpu_kind_t kind, int64_t count);
/* Activations, or fp32, that something is added to. */
gpu_tensor_t *gpu_sum(gpu_kind_t kind, int64_t count, uint64_t seed);
gpu_tensor_t *gpu_ints(const int32_t *values, int64_t count);

/* Element `offset` on a side; NULL for no tensor. */
void *gpu_at(const gpu_tensor_t *tensor, int side, int64_t offset);

/* Element i after the last run. */
double gpu_value(const gpu_tensor_t *tensor, int side, int64_t i);

/* Other content for a tensor that is read. */
void gpu_change(gpu_tensor_t *tensor, const void *values);

/* Host memory, freed with the tensors. */
void *gpu_memory(int64_t count, size_t size);
float *gpu_uniform(int64_t count, double scale, double shift, uint64_t seed);
int32_t *gpu_indices(int64_t count, int64_t bound, uint64_t seed); /* in [0, bound) */

/* ---- runs ------------------------------------------------------------------------------------ */

/* op: [GPU_SIDES] */
#define GPU_RUN(name, op)                                                                       \
  do {                                                                                          \
    GPU_RUN_CPU(name, op);                                                                      \
    for (int run_ = 0; run_ < 2; run_++) {                                                      \
      gpu_prepare(GPU_GPU, run_);                                                               \
      gpu_expect(NN_OK, GPU_CALL(name, GPU_GPU, &(op)[GPU_GPU]), #name);                        \
      gpu_collect(#name, run_);                                                                 \
    }                                                                                           \
  } while (0)

/* The CPU's part alone, for what a later operation reads. */
#define GPU_RUN_CPU(name, op)                                             \
  do {                                                                    \
    gpu_prepare(GPU_CPU, 0);                                              \
    gpu_expect(NN_OK, GPU_CALL(name, GPU_CPU, &(op)[GPU_CPU]), #name);    \
  } while (0)

#define GPU_CALL(name, side, op) (gpu_table(side)->name(gpu_device(side), op, gpu_scratch(side)))

/* Gives every tensor of a side its content, and scratch garbage: another one in each run. */
void gpu_prepare(int side, int run);
backend_scratch_t gpu_scratch(int side);
void gpu_expect(nn_status_t want, nn_status_t got, const char *operation);
/* Takes over what the GPU wrote. Run 0 fixes the bits of later ones. */
void gpu_collect(const char *operation, int run);

/* ---- comparisons ----------------------------------------------------------------------------- */

/* Relative error, in the Frobenius norm, of a result whose inputs are exact, after so many
 * independent roundings to the case's dtype and fp32 sums of so many terms.
 *
 * bf16 has 8 significant bits, fp16 11, so one rounding moves a number by at most 2^-8 or 2^-11 of
 * itself, and an array by at most that in norm; independent errors add as squares do. An fp32 sum
 * of n random terms is off by about sqrt(n)/3 2^-24 of itself when added one by one; 2 sqrt(n) is
 * asked for, and 16 units for exp and the like, each of which is good to a few. */
double gpu_bound(int roundings, int64_t terms);
/* The same without roundings, for what is fp32 beside 16 bits too. */
double gpu_bound_f32(int64_t terms);

/* Rows of `width` elements, `stride` apart, from element `offset`, on both sides: in norm the GPU
 * is off by at most `bound` of the CPU's; and each element by at most 8 bound of its own size and
 * its row's root mean square (8: the largest of a million normal errors is 5 of their deviations),
 * so that one wrong row is seen. To this comes bound / 64 + 2^-18 of the whole's root mean square,
 * for rows that are differences of larger numbers. What an fp32 accumulation added is compared, not
 * the sum; the sum's own roundings may be 8 units. NaN never passes. */
void gpu_check_rows(const gpu_tensor_t *tensor, const char *name, int64_t offset, int64_t rows,
                    int64_t width, int64_t stride, double bound);

/* All of a tensor, in rows of `width`. */
void gpu_check(const gpu_tensor_t *tensor, const char *name, int64_t width, double bound);

/* What lies between rows of `width` elements, `stride` apart, was not written. */
void gpu_check_gaps(const gpu_tensor_t *tensor, const char *name, int64_t width, int64_t stride);

/* The first `count` elements are equal. */
void gpu_check_equal(const gpu_tensor_t *tensor, const char *name, int64_t count);

#endif
