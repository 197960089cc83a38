/* Conversions between F32, BF16 and F16: exact when widening, to nearest, ties to even, when
 * narrowing. NaN stays NaN (quiet, upper payload bits kept), overflow becomes infinity, subnormals
 * are kept. */
#ifndef NN_BASE_DTYPE_H
#define NN_BASE_DTYPE_H

#include <stdbool.h>
#include <stdint.h>

#include "moenn.h"

float dtype_bf16_to_f32(uint16_t bits);
float dtype_f16_to_f32(uint16_t bits);
uint16_t dtype_f32_to_bf16(float value);
uint16_t dtype_f32_to_f16(float value);

/* True for the dtypes that the functions below take. */
bool dtype_is_float(int32_t dtype);

/* The name of an NN_ dtype as safetensors spells it, such as "BF16"; "unknown" for others. */
const char *dtype_name(int32_t dtype);

/* to[i] = from[i] for count elements. Neither needs to be aligned; they do not overlap. */
void dtype_convert(void *to, int32_t to_dtype, const void *from, int32_t from_dtype, int64_t count);

/* to[c * to_stride + r] = from[r * from_stride + c], converted. Strides are in elements. Like
 * dtype_convert, it takes any dtype where both are the same, and then keeps every bit. */
void dtype_transpose(void *to, int32_t to_dtype, int64_t to_stride, const void *from,
                     int32_t from_dtype, int64_t from_stride, int64_t rows, int64_t cols);

#endif
