/* Which paths of the CPU backend this processor has, by what the kernel says of it: what the
 * library finds by itself is held against that. */
#ifndef NN_TEST_PROCESSOR_H
#define NN_TEST_PROCESSOR_H

#include <stdint.h>

/* NN_CPU_ mask of this processor and this build; -1 where no /proc/cpuinfo tells. */
int32_t processor_paths(void);

/* Whether all of these paths ought to be there: then a test that lacks them fails. */
int processor_has(int32_t paths);

#endif
