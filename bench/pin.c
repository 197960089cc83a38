/* A CPU for each thread that is measured: schedulers may keep two busy threads on one CPU for
 * seconds, which then measures the scheduler. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>

#include "bench.h"

/* The CPUs that this process was started with. */
static const cpu_set_t *pin_allowed(void) {
  static cpu_set_t allowed;
  if (!CPU_COUNT(&allowed) && sched_getaffinity(0, sizeof allowed, &allowed)) CPU_SET(0, &allowed);
  return &allowed;
}

int32_t pin_cpus(void) { return CPU_COUNT(pin_allowed()); }

int32_t pin_cpu(int32_t thread) {
  const cpu_set_t *allowed = pin_allowed();
  int32_t skip = thread % pin_cpus();
  for (int32_t cpu = 0;; cpu++)
    if (CPU_ISSET((size_t)cpu, allowed) && skip-- == 0) return cpu;
}

void pin_start(pthread_t *id, int32_t thread, void *(*run)(void *context), void *context) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((size_t)pin_cpu(thread), &set);
  pthread_attr_t attr;
  if (pthread_attr_init(&attr) || pthread_attr_setaffinity_np(&attr, sizeof set, &set) ||
      pthread_create(id, &attr, run, context))
    exit(1);
  pthread_attr_destroy(&attr);
}

void pin_self(bool pinned) {
  cpu_set_t set = *pin_allowed();
  if (pinned) {
    CPU_ZERO(&set);
    CPU_SET((size_t)pin_cpu(0), &set);
  }
  sched_setaffinity(0, sizeof set, &set);
}
