/* Conversions between F32, BF16 and F16, over every 16-bit value, every rounding boundary, and
 * in bulk at every alignment. */
#include <math.h>
#include <string.h>

#include "base/dtype.h"
#include "fixture.h"

static float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/* The value of a half by its definition; the exponent is not 31. */
static double half_value(uint32_t bits) {
  int exponent = (int)(bits >> 10 & 31), mantissa = (int)(bits & 1023);
  double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
  return bits & 0x8000 ? -magnitude : magnitude;
}

static void every_half_widens_exactly_and_returns(void **state) {
  (void)state;
  for (uint32_t bits = 0; bits < 65536; bits++) {
    float wide = dtype_f16_to_f32((uint16_t)bits);
    uint16_t back = dtype_f32_to_f16(wide);
    if ((bits & 0x7c00) != 0x7c00) {
      assert_true((double)wide == half_value(bits));
      assert_int_equal(signbit(wide) != 0, bits >> 15);
      assert_int_equal(back, bits);
    } else if ((bits & 0x3ff) == 0) {
      assert_true(isinf(wide) && (wide < 0) == (bits >> 15));
      assert_int_equal(back, bits);
    } else {
      assert_true(isnan(wide));
      assert_int_equal(back, bits | 0x200); /* payload kept, made quiet */
    }
  }
}

static void every_bf16_widens_exactly_and_returns(void **state) {
  (void)state;
  for (uint32_t bits = 0; bits < 65536; bits++) {
    float wide = dtype_bf16_to_f32((uint16_t)bits);
    assert_int_equal(bits_of(wide), bits << 16);
    uint32_t nan = (bits & 0x7f80) == 0x7f80 && (bits & 0x7f);
    assert_int_equal(dtype_f32_to_bf16(wide), nan ? bits | 0x40 : bits);
  }
}

/* Between neighbours a < b of a 16-bit type, given as floats: what lies below their middle goes to
 * a, above to b, and the middle to the one whose last bit is 0. */
static void check_boundary(uint16_t (*narrow)(float), uint16_t low, float a, float b) {
  float middle = (float)(((double)a + (double)b) / 2); /* exact: one bit more than the type has */
  uint16_t high = (uint16_t)(low + 1), even = low & 1 ? high : low;
  assert_int_equal(narrow(middle), even);
  assert_int_equal(narrow(nextafterf(middle, a)), low);
  assert_int_equal(narrow(nextafterf(middle, b)), high);
  assert_int_equal(narrow(-middle), even | 0x8000);
}

static void narrowing_rounds_to_nearest_even(void **state) {
  (void)state;
  for (uint32_t bits = 0; bits < 0x7bff; bits++)
    check_boundary(dtype_f32_to_f16, (uint16_t)bits, dtype_f16_to_f32((uint16_t)bits),
                   dtype_f16_to_f32((uint16_t)(bits + 1)));
  for (uint32_t bits = 0; bits < 0x7f7f; bits++)
    check_boundary(dtype_f32_to_bf16, (uint16_t)bits, dtype_bf16_to_f32((uint16_t)bits),
                   dtype_bf16_to_f32((uint16_t)(bits + 1)));
}

static void what_is_too_large_becomes_infinite(void **state) {
  (void)state;
  assert_int_equal(dtype_f32_to_f16(65519.996f), 0x7bff);
  assert_int_equal(dtype_f32_to_f16(65520), 0x7c00);
  assert_int_equal(dtype_f32_to_f16(-65520), 0xfc00);
  assert_int_equal(dtype_f32_to_f16(3e38f), 0x7c00);
  assert_int_equal(dtype_f32_to_f16(INFINITY), 0x7c00);
  assert_int_equal(dtype_f32_to_bf16(float_of(0x7f7f7fff)), 0x7f7f);
  assert_int_equal(dtype_f32_to_bf16(float_of(0x7f7f8000)), 0x7f80);
  assert_int_equal(dtype_f32_to_bf16(-INFINITY), 0xff80);
}

static void every_nan_stays_nan(void **state) {
  (void)state;
  /* all upper payload bits, and lower ones that would be cut off */
  for (uint32_t upper = 0; upper < 128; upper++)
    for (uint32_t lower = 0; lower < 2; lower++) {
      uint32_t bits = 0x7f800000 | upper << 16 | lower;
      if (!(bits & 0x7fffff)) continue;
      assert_true(isnan(dtype_bf16_to_f32(dtype_f32_to_bf16(float_of(bits)))));
      assert_true(isnan(dtype_f16_to_f32(dtype_f32_to_f16(float_of(bits)))));
      assert_true(isnan(dtype_f16_to_f32(dtype_f32_to_f16(float_of(bits | 0x80000000)))));
    }
}

/* Every combination, at every length up to past the block size, from and to odd addresses. */
static void bulk_equals_single(void **state) {
  (void)state;
  enum { MOST = 1100 };
  static const int32_t dtypes[] = {NN_F32, NN_BF16, NN_F16};
  static float values[MOST];
  static unsigned char from[4 * MOST + 1], to[4 * MOST + 2];
  for (int i = 0; i < MOST; i++) values[i] = (float)(i - 500) * 0.37f;
  for (int f = 0; f < 3; f++)
    for (int t = 0; t < 3; t++)
      for (int count = 0; count < MOST; count = count < 40 ? count + 1 : count + 259) {
        size_t to_bytes = nn_dtype_bytes(dtypes[t]);
        dtype_convert(from + 1, dtypes[f], values, NN_F32, count);
        memset(to, 0xee, sizeof to);
        dtype_convert(to + 1, dtypes[t], from + 1, dtypes[f], count);
        for (int i = 0; i < count; i++) {
          float value = values[i];
          if (dtypes[f] == NN_BF16) value = dtype_bf16_to_f32(dtype_f32_to_bf16(value));
          if (dtypes[f] == NN_F16) value = dtype_f16_to_f32(dtype_f32_to_f16(value));
          uint16_t narrow =
              dtypes[t] == NN_BF16 ? dtype_f32_to_bf16(value) : dtype_f32_to_f16(value);
          if (dtypes[t] == NN_F32)
            assert_memory_equal(to + 1 + 4 * i, &value, 4);
          else
            assert_memory_equal(to + 1 + 2 * i, &narrow, 2);
        }
        assert_int_equal(to[0], 0xee);
        assert_int_equal(to[1 + (size_t)count * to_bytes], 0xee);
      }
}

static void transposes_move_every_element(void **state) {
  (void)state;
  static const int sizes[][2] = {{1, 1}, {1, 70}, {70, 1}, {32, 32}, {33, 31}, {65, 100}};
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    int rows = sizes[s][0], cols = sizes[s][1], from_stride = cols + 3, to_stride = rows + 2;
    uint16_t *from = fixture_memory((size_t)(rows * from_stride) * 2);
    float *to = fixture_memory((size_t)(cols * to_stride) * 4);
    for (int i = 0; i < rows * from_stride; i++) from[i] = dtype_f32_to_bf16((float)(i % 251));
    for (int i = 0; i < cols * to_stride; i++) to[i] = -1;
    dtype_transpose(to, NN_F32, to_stride, from, NN_BF16, from_stride, rows, cols);
    for (int c = 0; c < cols; c++)
      for (int r = 0; r < to_stride; r++) {
        float wanted = r < rows ? (float)((r * from_stride + c) % 251) : -1;
        assert_true(to[c * to_stride + r] == wanted);
      }
    free(from);
    free(to);
  }
}

static void dtypes_have_sizes_and_names(void **state) {
  (void)state;
  assert_int_equal(nn_dtype_bytes(NN_F32), 4);
  assert_int_equal(nn_dtype_bytes(NN_BF16), 2);
  assert_int_equal(nn_dtype_bytes(NN_F64), 8);
  assert_int_equal(nn_dtype_bytes(NN_BOOL), 1);
  assert_int_equal(nn_dtype_bytes(-1), 0);
  assert_int_equal(nn_dtype_bytes(10), 0);
  assert_string_equal(dtype_name(NN_BF16), "BF16");
  assert_string_equal(dtype_name(99), "unknown");
  assert_true(dtype_is_float(NN_F16));
  assert_false(dtype_is_float(NN_F64));
  assert_false(dtype_is_float(NN_I8));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_half_widens_exactly_and_returns),
      cmocka_unit_test(every_bf16_widens_exactly_and_returns),
      cmocka_unit_test(narrowing_rounds_to_nearest_even),
      cmocka_unit_test(what_is_too_large_becomes_infinite),
      cmocka_unit_test(every_nan_stays_nan),
      cmocka_unit_test(bulk_equals_single),
      cmocka_unit_test(transposes_move_every_element),
      cmocka_unit_test(dtypes_have_sizes_and_names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
