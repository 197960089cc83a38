/* Random numbers as a function of (seed, stream, counter): Philox 4x32-10 (Salmon et al., 2011). No
 * state, so any part of a sequence can be made by any thread, and a run resumes from its
 * position. */
#ifndef NN_BASE_RANDOM_H
#define NN_BASE_RANDOM_H

#include <stdint.h>

typedef struct random_block {
  uint32_t word[4];
} random_block_t;

static inline random_block_t random_block(uint64_t seed, uint64_t stream, uint64_t counter) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32);
  uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return (random_block_t){{c0, c1, c2, c3}};
}

static inline uint64_t random_u64(uint64_t seed, uint64_t stream, uint64_t counter) {
  random_block_t block = random_block(seed, stream, counter);
  return (uint64_t)block.word[1] << 32 | block.word[0];
}

/* Uniform in [0, 1), 53 bits. */
static inline double random_uniform(uint64_t seed, uint64_t stream, uint64_t counter) {
  return (double)(random_u64(seed, stream, counter) >> 11) * 0x1p-53;
}

#endif
