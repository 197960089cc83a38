/* The machine's peaks: multiply-add rates of loops that touch registers alone, by the instructions
 * of the paths in use, and memory bandwidth over arrays far larger than the caches. Every thread
 * does the same work; the slowest counts. */
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
#define MUL_ADD(r, i)                                  \
  "vmulps %%" r "mm14, %%" r "mm15, %%" r "mm13\n\t" \
  "vaddps %%" r "mm13, %%" r "mm" #i ", %%" r "mm" #i "\n\t"
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
                       "xmm8", "xmm9", "xmm10", "xmm11", "xmm13", "xmm14", "xmm15");               \
  }
LOOP(loop_fma_512, FMA, "z")
LOOP(loop_fma_256, FMA, "y")
LOOP(loop_mul_add_128, MUL_ADD, "x") /* as the compiler has them for plain C */
LOOP(loop_bf16_512, DPBF, "z")
LOOP(loop_int8_512, DPBU, "z")
#endif

/* ---- reading: loads that nothing waits for ---- */

enum { LINE = 64, TURN = 8 * LINE }; /* bytes that a stream is read by */

/* Places of an array that are read side by side, and bytes from a load to what is requested: the
 * fastest of these ways is the ceiling. */
static const struct read_way {
  int32_t streams, ahead;
} read_ways[] = {{1, 0}, {2, 0}, {4, 0}, {1, 2048}, {2, 2048}, {4, 2048}};
enum { READ_WAYS = sizeof read_ways / sizeof *read_ways };

#if defined(__x86_64__)
static inline void read_turn(const char *p, bool wide) {
  if (wide)
    __asm__ volatile("vmovdqa64 (%0), %%zmm0\n\tvmovdqa64 64(%0), %%zmm1\n\t"
                     "vmovdqa64 128(%0), %%zmm2\n\tvmovdqa64 192(%0), %%zmm3\n\t"
                     "vmovdqa64 256(%0), %%zmm4\n\tvmovdqa64 320(%0), %%zmm5\n\t"
                     "vmovdqa64 384(%0), %%zmm6\n\tvmovdqa64 448(%0), %%zmm7\n\t"
                     :
                     : "r"(p)
                     : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
  else
    for (int i = 0; i < TURN; i += 2 * LINE)
      __asm__ volatile("movdqa (%0), %%xmm0\n\tmovdqa 16(%0), %%xmm1\n\t"
                       "movdqa 32(%0), %%xmm2\n\tmovdqa 48(%0), %%xmm3\n\t"
                       "movdqa 64(%0), %%xmm4\n\tmovdqa 80(%0), %%xmm5\n\t"
                       "movdqa 96(%0), %%xmm6\n\tmovdqa 112(%0), %%xmm7\n\t"
                       :
                       : "r"(p + i)
                       : "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
}

static void read_end(bool wide) {
  if (wide) __asm__ volatile("vzeroupper");
}

static bool read_wide(void) { return __builtin_cpu_supports("avx512f"); }
#else
static inline void read_turn(const char *p, bool wide) {
  const volatile uint64_t *words = (const volatile uint64_t *)(const void *)p;
  for (size_t i = 0; i < TURN / sizeof *words; i++) (void)words[i];
  (void)wide;
}

static void read_end(bool wide) { (void)wide; }

static bool read_wide(void) { return false; }
#endif

/* Parts have an odd number of turns, so that streams share no sets of a cache. */
static void read_all(const char *data, size_t bytes, const struct read_way *way) {
  bool wide = read_wide();
  size_t part = ((bytes / (size_t)way->streams / TURN - 1) | 1) * TURN;
  for (size_t i = 0; i < part; i += TURN)
    for (int32_t s = 0; s < way->streams; s++) {
      const char *p = data + (size_t)s * part + i;
      for (int line = 0; way->ahead && line < TURN; line += LINE)
        __builtin_prefetch(p + way->ahead + line);
      read_turn(p, wide);
    }
  read_end(wide);
}

/* ---- measuring ---- */

typedef enum ceiling_kind { KIND_LOOP, KIND_READ, KIND_COPY, KIND_TRIAD } ceiling_kind_t;

typedef struct ceiling_job {
  ceiling_kind_t kind;
  void (*loop)(void);
  size_t count; /* elements of each array */
  uint64_t *a, *b, *c;
  double seconds[READ_WAYS][REPEATS]; /* of what is not reading, the first row alone */
  pthread_barrier_t *barrier;
} ceiling_job_t;

static int ceiling_ways(ceiling_kind_t kind) { return kind == KIND_READ ? READ_WAYS : 1; }

static void ceiling_run(const ceiling_job_t *job, int way) {
  size_t n = job->count;
  if (job->kind == KIND_LOOP) {
    job->loop();
  } else if (job->kind == KIND_READ) {
    read_all((const char *)job->a, n * sizeof *job->a, &read_ways[way]);
  } else if (job->kind == KIND_COPY) {
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
  if (job->kind >= KIND_READ) memset(job->a = bench_alloc(bytes), 1, bytes);
  if (job->kind >= KIND_COPY) memset(job->b = bench_alloc(bytes), 0, bytes);
  if (job->kind >= KIND_TRIAD) memset(job->c = bench_alloc(bytes), 0, bytes);
  for (int i = -1; i < REPEATS; i++) /* the first one warms up */
    for (int way = 0; way < ceiling_ways(job->kind); way++) {
      pthread_barrier_wait(job->barrier);
      double begin = bench_now();
      ceiling_run(job, way);
      if (i >= 0) job->seconds[way][i] = bench_now() - begin;
    }
  mem_free(job->a), mem_free(job->b), mem_free(job->c);
  return NULL;
}

typedef struct ceiling_rate {
  double best, median;
} ceiling_rate_t;

/* Of one way, all threads' amount per second, which is the slowest one's. */
static ceiling_rate_t ceiling_of_way(ceiling_job_t *jobs, int32_t threads, int way, double amount) {
  double best = 0, median = 0;
  for (int32_t t = 0; t < threads; t++) {
    double fastest, typical = bench_median(jobs[t].seconds[way], REPEATS, &fastest);
    if (fastest > best) best = fastest;
    if (typical > median) median = typical;
  }
  return (ceiling_rate_t){amount * (double)threads / best, amount * (double)threads / median};
}

/* Of the fastest way, `amount` being one thread's of one run. */
static ceiling_rate_t ceiling_rate(int32_t threads, const ceiling_job_t *work, double amount) {
  pthread_t ids[1024];
  ceiling_job_t *jobs = calloc((size_t)threads, sizeof *jobs);
  if (!jobs) exit(1);
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, NULL, (unsigned)threads);
  for (int32_t t = 0; t < threads; t++) {
    jobs[t] = *work, jobs[t].barrier = &barrier;
    pin_start(&ids[t], t, ceiling_thread, &jobs[t]);
  }
  for (int32_t t = 0; t < threads; t++) pthread_join(ids[t], NULL);
  ceiling_rate_t rate = {0};
  for (int way = 0; way < ceiling_ways(work->kind); way++) {
    ceiling_rate_t one = ceiling_of_way(jobs, threads, way, amount);
    if (one.best > rate.best) rate.best = one.best;
    if (one.median > rate.median) rate.median = one.median;
  }
  pthread_barrier_destroy(&barrier);
  free(jobs);
  return rate;
}

/* Arrays of 512 MB, all threads' together, each moved `times` times. */
static ceiling_rate_t ceiling_memory(int32_t threads, ceiling_kind_t kind, double times) {
  size_t bytes = (size_t)(512 << 20) / (size_t)threads / TURN * TURN;
  ceiling_job_t work = {.kind = kind, .count = bytes / sizeof(uint64_t)};
  return ceiling_rate(threads, &work, times * (double)bytes);
}

double ceilings_read(int32_t threads) { return ceiling_memory(threads, KIND_READ, 1).median; }

double ceilings_products(const bench_ceilings_t *peak, int32_t dtype) {
  double narrow = dtype == NN_BF16 ? peak->bf16_flops : dtype == NN_F16 ? peak->f16_flops : 0;
  return narrow > 0 ? narrow : peak->fp32_flops;
}

static double ceilings_loop(int32_t threads, void (*loop)(void), double flops) {
  ceiling_job_t work = {.kind = KIND_LOOP, .loop = loop};
  return ceiling_rate(threads, &work, (double)LOOPS * IN_FLIGHT * flops).best;
}

bench_ceilings_t ceilings_measure(int32_t threads, int32_t paths) {
  bench_ceilings_t found = {0};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (paths & NN_CPU_AVX512)
    found.fp32_flops = ceilings_loop(threads, loop_fma_512, 32);
  else if (paths & NN_CPU_AVX2)
    found.fp32_flops = ceilings_loop(threads, loop_fma_256, 16);
  else if (__builtin_cpu_supports("avx"))
    found.fp32_flops = ceilings_loop(threads, loop_mul_add_128, 8);
  if (paths & NN_CPU_AVX512_BF16) found.bf16_flops = ceilings_loop(threads, loop_bf16_512, 64);
  if (paths & NN_CPU_AVX512 && __builtin_cpu_supports("avx512vnni"))
    found.int8_ops = ceilings_loop(threads, loop_int8_512, 128);
#endif
  found.read_bytes = ceiling_memory(threads, KIND_READ, 1).best;
  found.copy_bytes = ceiling_memory(threads, KIND_COPY, 2).best;
  found.triad_bytes = ceiling_memory(threads, KIND_TRIAD, 3).best;
  return found;
}
