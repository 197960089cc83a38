/* Which paths this processor, its operating system and this build can run, and its name. */
#ifndef NN_CPU_DISPATCH_H
#define NN_CPU_DISPATCH_H

#include <stdint.h>

/* NN_CPU_ mask; NN_CPU_REFERENCE is always in it. */
int32_t dispatch_paths(void);

enum { DISPATCH_MODEL_BYTES = 49 };

/* The processor's name for itself, or "CPU" where it has none. name: [DISPATCH_MODEL_BYTES]. */
void dispatch_model(char *name);

#endif
