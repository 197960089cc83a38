/* Which paths this processor, its operating system and this build can run. The compiler's own test
 * asks the processor for the instructions and the operating system (XCR0) for the registers. */
#include "dispatch.h"

#include "moenn.h"

int32_t dispatch_paths(void) {
  int32_t paths = NN_CPU_REFERENCE;
#ifndef MOENN_NO_VEC
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) paths |= NN_CPU_AVX2;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    paths |= NN_CPU_AVX512;
#endif
  return paths;
}
