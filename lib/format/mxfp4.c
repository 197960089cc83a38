#include "format/mxfp4.h"

#include <math.h>

void mxfp4_decode(float *values, const unsigned char *blocks, const unsigned char *scales,
                  int64_t count) {
  static const float numbers[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                    -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
  for (int64_t block = 0; block < count; block++) {
    float scaled[16];
    for (int i = 0; i < 16; i++) scaled[i] = ldexpf(numbers[i], scales[block] - 127);
    for (int byte = 0; byte < MXFP4_BLOCK_BYTES; byte++, blocks++) {
      *values++ = scaled[*blocks & 15];
      *values++ = scaled[*blocks >> 4];
    }
  }
}
