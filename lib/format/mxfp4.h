/* MXFP4 (Open Compute Project, 2023): blocks of 32 numbers of four bits, two a byte, the first in
 * the lower half, with one scale, a power of two, for each block. */
#ifndef NN_FORMAT_MXFP4_H
#define NN_FORMAT_MXFP4_H

#include <stdint.h>

enum { MXFP4_BLOCK = 32, MXFP4_BLOCK_BYTES = 16 };

/* values[32 * blocks] = number * 2^(scale - 127). */
void mxfp4_decode(float *values, const unsigned char *blocks, const unsigned char *scales,
                  int64_t count);

#endif
