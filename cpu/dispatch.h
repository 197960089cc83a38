/* Which paths this processor, its operating system and this build can run. */
#ifndef NN_CPU_DISPATCH_H
#define NN_CPU_DISPATCH_H

#include <stdint.h>

/* NN_CPU_ mask; NN_CPU_REFERENCE is always in it. */
int32_t dispatch_paths(void);

#endif
