/* Which paths this processor, its operating system and this build can run, and its name. The
 * compiler's own test asks the processor for the instructions and the operating system (XCR0) for
 * the registers. */
#include "dispatch.h"

#include <string.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "moenn.h"

/* Conversions of fp16, which not every compiler's test knows of. They use the registers of AVX. */
#ifndef MOENN_NO_VEC
static int dispatch_f16c(void) {
  uint32_t words[4];
  return __get_cpuid(1, &words[0], &words[1], &words[2], &words[3]) && words[2] & bit_F16C;
}
#endif

int32_t dispatch_paths(void) {
  int32_t paths = NN_CPU_REFERENCE;
#ifndef MOENN_NO_VEC
  __builtin_cpu_init();
  int f16c = dispatch_f16c();
  if (f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    paths |= NN_CPU_AVX2;
  if (f16c && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    paths |= NN_CPU_AVX512;
  if (paths & NN_CPU_AVX512 && __builtin_cpu_supports("avx512bf16")) paths |= NN_CPU_AVX512_BF16;
#endif
  return paths;
}

void dispatch_model(char *name) {
  char said[DISPATCH_MODEL_BYTES] = {0};
#ifdef __x86_64__
  for (uint32_t leaf = 0; leaf < 3; leaf++) { /* 16 bytes each */
    uint32_t words[4];
    if (!__get_cpuid(0x80000002 + leaf, &words[0], &words[1], &words[2], &words[3])) break;
    memcpy(said + leaf * sizeof words, words, sizeof words);
  }
#endif
  const char *first = said + strspn(said, " ");
  size_t length = strlen(first);
  while (length && first[length - 1] == ' ') length--;
  if (!length) first = "CPU", length = strlen(first);
  memcpy(name, first, length);
  name[length] = 0;
}
