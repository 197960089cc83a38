#include "base/dtype.h"

#include <string.h>

/* The same bits come out where a mode of the processor flushes subnormals. Loops over the inline
 * functions have no branches, which lets compilers vectorise them. */

static inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline float widen_bf16(uint16_t bits) { return float_of((uint32_t)bits << 16); }

static inline uint16_t narrow_bf16(float value) {
  uint32_t bits = bits_of(value);
  uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  uint32_t nan = bits >> 16 | 0x40;
  return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

static inline uint32_t select(bool condition, uint32_t yes, uint32_t no) {
  uint32_t mask = 0u - (uint32_t)condition;
  return (yes & mask) | (no & ~mask);
}

static inline float widen_f16(uint16_t bits) {
  uint32_t sign = (uint32_t)(bits & 0x8000) << 16, magnitude = (uint32_t)(bits & 0x7fff) << 13;
  uint32_t normal = magnitude + ((127u - 15u) << 23);
  uint32_t infinity = magnitude + ((255u - 31u) << 23);
  uint32_t special = infinity | (uint32_t)(magnitude > 0x0f800000) << 22; /* NaN made quiet */
  /* m 2^-24 = (1 + m 2^-10) 2^-14 - 2^-14: both terms are normal, the difference is exact */
  uint32_t subnormal = bits_of(float_of(magnitude + (113u << 23)) - 0x1p-14f);
  uint32_t finite = select(magnitude < 0x00800000, subnormal, normal);
  return float_of(sign | select(magnitude >= 0x0f800000, special, finite));
}

static inline uint16_t narrow_f16(float value) {
  uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t normal = (magnitude - ((127u - 15u) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  /* the last bit of x + 0.5 is 2^-24, half precision's smallest step, and the sum rounds to it */
  uint32_t small = select(magnitude < 0x38800000, magnitude, 0);
  uint32_t subnormal = bits_of(float_of(small) + 0.5f) - (126u << 23);
  uint32_t finite = select(magnitude < 0x38800000, subnormal, normal);
  /* 65520 and above round to infinity */
  uint32_t special = select(magnitude > 0x7f800000, 0x7e00 | (magnitude >> 13 & 0x3ff), 0x7c00);
  return (uint16_t)(sign | select(magnitude >= 0x477ff000, special, finite));
}

float dtype_bf16_to_f32(uint16_t bits) { return widen_bf16(bits); }
float dtype_f16_to_f32(uint16_t bits) { return widen_f16(bits); }
uint16_t dtype_f32_to_bf16(float value) { return narrow_bf16(value); }
uint16_t dtype_f32_to_f16(float value) { return narrow_f16(value); }

static const struct {
  const char *name;
  size_t bytes;
} dtypes[] = {
    [NN_F32] = {"F32", 4}, [NN_BF16] = {"BF16", 2}, [NN_F16] = {"F16", 2}, [NN_F64] = {"F64", 8},
    [NN_I64] = {"I64", 8}, [NN_I32] = {"I32", 4},   [NN_I16] = {"I16", 2}, [NN_I8] = {"I8", 1},
    [NN_U8] = {"U8", 1},   [NN_BOOL] = {"BOOL", 1},
};

static bool dtype_known(int32_t dtype) {
  return dtype >= 0 && (size_t)dtype < sizeof dtypes / sizeof *dtypes;
}

size_t nn_dtype_bytes(int32_t dtype) { return dtype_known(dtype) ? dtypes[dtype].bytes : 0; }

const char *dtype_name(int32_t dtype) {
  return dtype_known(dtype) ? dtypes[dtype].name : "unknown";
}

bool dtype_is_float(int32_t dtype) {
  return dtype == NN_F32 || dtype == NN_BF16 || dtype == NN_F16;
}

/* ---- bulk ------------------------------------------------------------------------------------ */

/* Elements are read and written through memcpy, which compiles to unaligned moves. */

static void widen_row(float *restrict to, const unsigned char *restrict from, int32_t dtype,
                      int64_t count) {
  if (dtype == NN_F32) {
    memcpy(to, from, (size_t)count * sizeof *to);
  } else if (dtype == NN_BF16) {
    for (int64_t i = 0; i < count; i++) {
      uint16_t bits;
      memcpy(&bits, from + 2 * i, sizeof bits);
      to[i] = widen_bf16(bits);
    }
  } else {
    for (int64_t i = 0; i < count; i++) {
      uint16_t bits;
      memcpy(&bits, from + 2 * i, sizeof bits);
      to[i] = widen_f16(bits);
    }
  }
}

static void narrow_row(unsigned char *restrict to, int32_t dtype, const float *restrict from,
                       int64_t count) {
  if (dtype == NN_F32) {
    memcpy(to, from, (size_t)count * sizeof *from);
  } else if (dtype == NN_BF16) {
    for (int64_t i = 0; i < count; i++) {
      uint16_t bits = narrow_bf16(from[i]);
      memcpy(to + 2 * i, &bits, sizeof bits);
    }
  } else {
    for (int64_t i = 0; i < count; i++) {
      uint16_t bits = narrow_f16(from[i]);
      memcpy(to + 2 * i, &bits, sizeof bits);
    }
  }
}

void dtype_convert(void *to, int32_t to_dtype, const void *from, int32_t from_dtype,
                   int64_t count) {
  enum { ROW = 512 };
  unsigned char *target = to;
  const unsigned char *source = from;
  size_t to_bytes = nn_dtype_bytes(to_dtype), from_bytes = nn_dtype_bytes(from_dtype);
  if (to_dtype == from_dtype) {
    memcpy(to, from, (size_t)count * to_bytes);
    return;
  }
  for (int64_t done = 0; done < count; done += ROW) {
    float row[ROW];
    int64_t now = count - done < ROW ? count - done : ROW;
    widen_row(row, source + (size_t)done * from_bytes, from_dtype, now);
    narrow_row(target + (size_t)done * to_bytes, to_dtype, row, now);
  }
}

/* A transpose that leaves every bit as it is. */
static void transpose_same(unsigned char *to, int64_t to_stride, const unsigned char *from,
                           int64_t from_stride, int64_t rows, int64_t cols, size_t bytes) {
  enum { TILE = 32 };
  for (int64_t r = 0; r < rows; r += TILE)
    for (int64_t c = 0; c < cols; c++)
      for (int64_t i = r; i < rows && i < r + TILE; i++)
        memcpy(to + (size_t)(c * to_stride + i) * bytes,
               from + (size_t)(i * from_stride + c) * bytes, bytes);
}

void dtype_transpose(void *to, int32_t to_dtype, int64_t to_stride, const void *from,
                     int32_t from_dtype, int64_t from_stride, int64_t rows, int64_t cols) {
  enum { TILE = 32 };
  size_t to_bytes = nn_dtype_bytes(to_dtype), from_bytes = nn_dtype_bytes(from_dtype);
  if (to_dtype == from_dtype) {
    transpose_same(to, to_stride, from, from_stride, rows, cols, to_bytes);
    return;
  }
  for (int64_t r = 0; r < rows; r += TILE) {
    for (int64_t c = 0; c < cols; c += TILE) {
      int64_t tile_rows = rows - r < TILE ? rows - r : TILE;
      int64_t tile_cols = cols - c < TILE ? cols - c : TILE;
      float tile[TILE][TILE];
      for (int64_t i = 0; i < tile_rows; i++) {
        const unsigned char *row =
            (const unsigned char *)from + (size_t)((r + i) * from_stride + c) * from_bytes;
        widen_row(tile[i], row, from_dtype, tile_cols);
      }
      for (int64_t j = 0; j < tile_cols; j++) {
        float column[TILE];
        for (int64_t i = 0; i < tile_rows; i++) column[i] = tile[i][j];
        unsigned char *at = (unsigned char *)to + (size_t)((c + j) * to_stride + r) * to_bytes;
        narrow_row(at, to_dtype, column, tile_rows);
      }
    }
  }
}
