/* Time of a function: the median of repeated runs. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/mem.h"
#include "bench.h"

enum { MOST_RUNS = 2000, LEAST_RUNS = 5 };

double bench_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void bench_try(nn_status_t status, const char *call) {
  if (status == NN_OK) return;
  fprintf(stderr, "moenn-bench: %s: %s: %s\n", call, nn_status_name(status), nn_last_error());
  exit(1);
}

void *bench_alloc(size_t bytes) {
  void *data;
  TRY(mem_alloc_aligned(bytes, &data));
  return data;
}

static int bench_compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

double bench_median(double *times, int64_t count, double *fastest) {
  qsort(times, (size_t)count, sizeof *times, bench_compare);
  *fastest = times[0];
  return count % 2 ? times[count / 2] : 0.5 * (times[count / 2 - 1] + times[count / 2]);
}

double bench_time(bench_fn fn, void *context, double seconds, double *fastest, int64_t *runs) {
  static double times[MOST_RUNS];
  double begin = bench_now();
  fn(context);
  double first = bench_now() - begin;
  /* Short functions run many times between two looks at the clock. */
  int64_t inner = first < 20e-6 ? (int64_t)(20e-6 / (first + 1e-9)) + 1 : 1;
  for (double end = bench_now() + 0.1 * seconds; bench_now() < end;) fn(context);
  int64_t count = 0;
  double stop = bench_now() + seconds;
  while (count < MOST_RUNS && (count < LEAST_RUNS || bench_now() < stop)) {
    double start = bench_now();
    for (int64_t i = 0; i < inner; i++) fn(context);
    times[count++] = (bench_now() - start) / (double)inner;
  }
  *runs = count * inner;
  return bench_median(times, count, fastest);
}
