#define _POSIX_C_SOURCE 200809L
#include "processor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moenn.h"

/* Paths that this build has, where the processor has them. */
#ifdef MOENN_NO_VEC
enum { BUILT = NN_CPU_REFERENCE };
#else
enum { BUILT = NN_CPU_REFERENCE | NN_CPU_AVX2 | NN_CPU_AVX512 | NN_CPU_AVX512_BF16 };
#endif

/* Whether all of the words, which have a blank on either side, are in the line. */
static int processor_names(const char *line, const char *const *words) {
  for (; *words; words++)
    if (!strstr(line, *words)) return 0;
  return 1;
}

/* What a line of flags says. */
static int32_t processor_read(const char *line) {
  static const char *const avx2[] = {" avx2 ", " fma ", " f16c ", NULL};
  static const char *const avx512[] = {" avx512f ",  " avx512bw ", " avx512dq ",
                                       " avx512vl ", " f16c ",     NULL};
  static const char *const bf16[] = {" avx512_bf16 ", NULL};
  int32_t paths = NN_CPU_REFERENCE;
  if (processor_names(line, avx2)) paths |= NN_CPU_AVX2;
  if (processor_names(line, avx512)) paths |= NN_CPU_AVX512;
  if (paths & NN_CPU_AVX512 && processor_names(line, bf16)) paths |= NN_CPU_AVX512_BF16;
  return paths;
}

int32_t processor_paths(void) {
  FILE *file = fopen("/proc/cpuinfo", "r");
  char *line = NULL;
  size_t room = 0;
  int32_t paths = -1;
  while (file && paths < 0 && getline(&line, &room, file) >= 0) {
    if (strncmp(line, "flags", 5)) continue;
    line[strcspn(line, "\n")] = ' ';
    paths = processor_read(line) & BUILT;
  }
  free(line);
  if (file) fclose(file);
  return paths;
}

int processor_has(int32_t paths) {
  int32_t all = processor_paths();
  return all >= 0 && (all & paths) == paths;
}
