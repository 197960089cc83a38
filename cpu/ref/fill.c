/* Normal numbers by the Box-Muller transform: of block b of Philox's words, the pairs of words are
 * the radius and angle of elements 4b, 4b + 1 and 4b + 2, 4b + 3. Plain float arithmetic in loops
 * that compilers vectorise; sqrt alone is the library's, and exact, so bits do not depend on it. */
#include <math.h>

#include "base/random.h"
#include "ref.h"

enum {
  FILL_GROUP = 64,              /* blocks of words made at once */
  FILL_CHUNK = 4 * FILL_GROUP,  /* elements of a group */
  FILL_BLOCK = 64 * FILL_CHUNK  /* elements of an item */
};

/* -2 ln u for u = (word + 1) / 2^32. With u = m 2^e and m within a factor sqrt(2) of 1,
 * ln m = 2 atanh(s) for s = (m - 1) / (m + 1), |s| < 0.172: five terms of the series leave 1e-9. */
static inline float fill_minus_2_ln(uint32_t word) {
  float u =
      (float)(int32_t)(word >> 16) * 0x1p-16f + (float)(int32_t)((word & 0xffff) + 1) * 0x1p-32f;
  int32_t bits;
  memcpy(&bits, &u, sizeof bits);
  const int32_t half_root = 0x3f3504f3; /* sqrt(1/2) */
  int32_t exponent = (bits - half_root) >> 23;
  bits -= exponent * (1 << 23);
  float m;
  memcpy(&m, &bits, sizeof m);
  float s = (m - 1) / (m + 1), t = s * s;
  float series = 1 + t * (1 / 3.0f + t * (1 / 5.0f + t * (1 / 7.0f + t * (1 / 9.0f))));
  return -2 * ((float)exponent * 0.693147181f + 2 * s * series);
}

/* Cosine and sine of 2 pi word / 2^32: Taylor series within an eighth of a turn of the nearest
 * quarter, then turned by that quarter. */
static inline void fill_turn(uint32_t word, float *cosine, float *sine) {
  uint32_t quarter = (word + (1u << 29)) >> 30;
  float x = (float)(int32_t)(word - (quarter << 30)) * (6.28318531f * 0x1p-32f), t = x * x;
  float s = x * (1 - t * (1 / 6.0f - t * (1 / 120.0f - t * (1 / 5040.0f - t * (1 / 362880.0f)))));
  float c = 1 - t * (1 / 2.0f - t * (1 / 24.0f - t * (1 / 720.0f - t * (1 / 40320.0f))));
  float along = quarter & 1 ? s : c, across = quarter & 1 ? c : s;
  *cosine = (quarter + 1) & 2 ? -along : along;
  *sine = quarter & 2 ? -across : across;
}

/* FILL_CHUNK normals from a group of blocks. */
static void fill_chunk(uint64_t seed, uint64_t stream, uint64_t block, float *normal) {
  uint32_t word[4][FILL_GROUP];
  float radius[FILL_GROUP], cosine[FILL_GROUP], sine[FILL_GROUP];
  for (int i = 0; i < FILL_GROUP; i++) {
    random_block_t made = random_block(seed, stream, block + (uint64_t)i);
    for (int w = 0; w < 4; w++) word[w][i] = made.word[w];
  }
  for (int pair = 0; pair < 4; pair += 2) {
    for (int i = 0; i < FILL_GROUP; i++) radius[i] = fill_minus_2_ln(word[pair][i]);
    for (int i = 0; i < FILL_GROUP; i++) radius[i] = sqrtf(radius[i]);
    for (int i = 0; i < FILL_GROUP; i++) fill_turn(word[pair + 1][i], &cosine[i], &sine[i]);
    for (int i = 0; i < FILL_GROUP; i++) {
      normal[4 * i + pair] = radius[i] * cosine[i];
      normal[4 * i + pair + 1] = radius[i] * sine[i];
    }
  }
}

/* Nearest bf16 of a finite number, ties to even. */
static inline uint16_t fill_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void fill_item(void *context, int64_t item, int32_t thread) {
  const op_fill_normal_t *op = context;
  (void)thread;
  float normal[FILL_CHUNK];
  int64_t end = ref_min(op->count, (item + 1) * FILL_BLOCK);
  for (int64_t i = item * FILL_BLOCK; i < end; i += FILL_CHUNK) {
    int64_t count = ref_min(end - i, FILL_CHUNK);
    fill_chunk(op->seed, op->stream, (uint64_t)i / 4, normal);
    if (op->dtype == NN_BF16)
      for (int64_t j = 0; j < count; j++)
        ((uint16_t *)op->out)[i + j] = fill_bf16(op->std * normal[j]);
    else if (op->dtype == NN_F16)
      for (int64_t j = 0; j < count; j++)
        ((uint16_t *)op->out)[i + j] = dtype_f32_to_f16(op->std * normal[j]);
    else
      for (int64_t j = 0; j < count; j++) ((float *)op->out)[i + j] = op->std * normal[j];
  }
}

nn_status_t ref_fill_normal(backend_device_t *device, const op_fill_normal_t *op,
                            backend_scratch_t scratch) {
  (void)scratch;
  pool_run_all(device->pool, ref_blocks(op->count, FILL_BLOCK), fill_item, (void *)op);
  return NN_OK;
}
