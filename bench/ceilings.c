/* The machine's peaks: multiply-add rates of loops that touch registers alone, and memory bandwidth
 * over arrays far larger than the caches. Every thread does the same work; the slowest counts. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "bench.h"

enum { LOOPS = 2000000, REPEATS = 5 };

/* Twelve independent multiply-adds a turn, more than latency x ports on any core of today. */
#define TWELVE_OF(F, r)                                                                            \
  F(r, 0) F(r, 1) F(r, 2) F(r, 3) F(r, 4) F(r, 5) F(r, 6) F(r, 7) F(r, 8) F(r, 9) F(r, 10) F(r, 11)
enum { IN_FLIGHT = 12 };

#if defined(__x86_64__)
#define FMA(r, i) "vfmadd231ps %%" r "mm14, %%" r "mm15, %%" r "mm" #i "\n\t"
#define DPBF(r, i) "vdpbf16ps %%" r "mm14, %%" r "mm15, %%" r "mm" #i "\n\t"
#define DPBU(r, i) "vpdpbusd %%" r "mm14, %%" r "mm15, %%" r "mm" #i "\n\t"
#define ZERO(r, i) "vpxor %%xmm" #i ", %%xmm" #i ", %%xmm" #i "\n\t"
#define LOOP(name, F, r)                                                                           \
  static void name(void) {                                                                         \
    int64_t left = LOOPS;                                                                          \
    __asm__ volatile(TWELVE_OF(ZERO, r) ZERO(r, 14) ZERO(r, 15)                                    \
                     ".p2align 4\n\t1:\n\t" TWELVE_OF(F, r)                                        \
                     "dec %0\n\tjnz 1b\n\tvzeroupper\n\t"                                          \
                     : "+r"(left)                                                                  \
                     :                                                                             \
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",       \
                       "xmm8", "xmm9", "xmm10", "xmm11", "xmm14", "xmm15");                        \
  }
LOOP(loop_fma_512, FMA, "z")
LOOP(loop_fma_256, FMA, "y")
LOOP(loop_bf16_512, DPBF, "z")
LOOP(loop_int8_512, DPBU, "z")
#endif

typedef struct ceiling_job {
  void (*loop)(void);
  int kind; /* 0: loop; 1: read; 2: copy; 3: triad */
  size_t count;
  uint64_t *a, *b, *c;
  double seconds[REPEATS];
  uint64_t sum;
  pthread_barrier_t *barrier;
} ceiling_job_t;

static void ceiling_memory(ceiling_job_t *job) {
  size_t n = job->count;
  if (job->kind == 1) {
    uint64_t s[8] = {0};
    for (size_t i = 0; i < n; i += 8)
      for (int j = 0; j < 8; j++) s[j] += job->a[i + (size_t)j];
    for (int j = 0; j < 8; j++) job->sum += s[j];
  } else if (job->kind == 2) {
    memcpy(job->a, job->b, n * sizeof *job->a);
  } else {
    double *restrict a = (double *)job->a;
    const double *b = (const double *)job->b, *c = (const double *)job->c;
    for (size_t i = 0; i < n; i++) a[i] = b[i] + 3.0 * c[i];
  }
}

static void *ceiling_thread(void *context) {
  ceiling_job_t *job = context;
  size_t bytes = job->count * sizeof(uint64_t);
  if (job->kind) memset(job->a = bench_alloc(bytes), 1, bytes);
  if (job->kind > 1) memset(job->b = bench_alloc(bytes), 0, bytes);
  if (job->kind > 2) memset(job->c = bench_alloc(bytes), 0, bytes);
  for (int i = -1; i < REPEATS; i++) { /* the first one warms up */
    pthread_barrier_wait(job->barrier);
    double begin = bench_now();
    if (job->kind) ceiling_memory(job);
    else job->loop();
    if (i >= 0) job->seconds[i] = bench_now() - begin;
  }
  mem_free(job->a), mem_free(job->b), mem_free(job->c);
  return NULL;
}

typedef struct ceiling_rate {
  double best, median;
} ceiling_rate_t;

/* Work of all threads per second, `work` being one thread's. */
static ceiling_rate_t ceiling_rate(int32_t threads, void (*loop)(void), int kind, double work,
                                   size_t count) {
  pthread_t ids[1024];
  ceiling_job_t *jobs = calloc((size_t)threads, sizeof *jobs);
  if (!jobs) exit(1);
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, NULL, (unsigned)threads);
  for (int32_t t = 0; t < threads; t++) {
    jobs[t] = (ceiling_job_t){.loop = loop, .kind = kind, .count = count, .barrier = &barrier};
    pin_start(&ids[t], t, ceiling_thread, &jobs[t]);
  }
  double best = 0, median = 0; /* of the slowest thread */
  for (int32_t t = 0; t < threads; t++) {
    pthread_join(ids[t], NULL);
    double fastest, typical = bench_median(jobs[t].seconds, REPEATS, &fastest);
    if (fastest > best) best = fastest;
    if (typical > median) median = typical;
  }
  pthread_barrier_destroy(&barrier);
  free(jobs);
  return (ceiling_rate_t){work * (double)threads / best, work * (double)threads / median};
}

/* Elements of each array of a thread. */
static size_t ceiling_count(int32_t threads) {
  return (size_t)(512 << 20) / (size_t)threads / sizeof(uint64_t) / 8 * 8;
}

static ceiling_rate_t ceiling_read(int32_t threads) {
  size_t count = ceiling_count(threads);
  return ceiling_rate(threads, NULL, 1, (double)(count * sizeof(uint64_t)), count);
}

double ceilings_read(int32_t threads) { return ceiling_read(threads).median; }

bench_ceilings_t ceilings_measure(int32_t threads) {
  bench_ceilings_t found = {0};
#if defined(__x86_64__)
  __builtin_cpu_init();
  double loops = (double)LOOPS * IN_FLIGHT;
  if (__builtin_cpu_supports("avx512f"))
    found.fp32_flops = ceiling_rate(threads, loop_fma_512, 0, loops * 32, 0).best;
  else if (__builtin_cpu_supports("fma"))
    found.fp32_flops = ceiling_rate(threads, loop_fma_256, 0, loops * 16, 0).best;
  if (__builtin_cpu_supports("avx512bf16"))
    found.bf16_flops = ceiling_rate(threads, loop_bf16_512, 0, loops * 64, 0).best;
  if (__builtin_cpu_supports("avx512vnni"))
    found.int8_ops = ceiling_rate(threads, loop_int8_512, 0, loops * 128, 0).best;
#endif
  size_t count = ceiling_count(threads);
  double bytes = (double)(count * sizeof(uint64_t));
  found.read_bytes = ceiling_read(threads).best;
  found.copy_bytes = ceiling_rate(threads, NULL, 2, 2 * bytes, count).best;
  found.triad_bytes = ceiling_rate(threads, NULL, 3, 3 * bytes, count).best;
  return found;
}
