/* What the files of moenn-bench share: options, timing, the report, the machine's ceilings. */
#ifndef BENCH_H
#define BENCH_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "moenn.h"

/* Ends the program with the library's message when a call fails: a benchmark cannot go on. */
#define TRY(call) bench_try((call), #call)
void bench_try(nn_status_t status, const char *call);
void *bench_alloc(size_t bytes); /* as the CPU backend has its memory; freed by mem_free */

/* What the command line asks for. */
typedef struct bench_options {
  const char *device;  /* "cpu" or "cuda:N" */
  int32_t threads;     /* 0: every core */
  const char *filter;  /* only scenarios whose "group/name" contains it; NULL: all */
  const char *json;    /* file for the JSON report; NULL: none */
  int64_t layers;      /* of moe-6.9b in decode, prefill and load; 0: all */
  const char *tokenizer; /* file or folder; NULL: the byte tokenizer */
  const char *text;      /* file to encode; NULL: made-up words */
  double seconds;      /* least time spent measuring a scenario */
  bool cold;           /* operations: work through buffers that exceed the last-level cache */
  bool tf32;           /* nn_device_options_t's, of a GPU */
} bench_options_t;

/* Units of work. */
typedef enum bench_unit { UNIT_NONE, UNIT_FLOP, UNIT_BYTE } bench_unit_t;

/* The machine's measured peaks with the threads and, of a CPU, the paths in use. */
typedef struct bench_ceilings {
  /* multiply-adds count twice; 0: no instruction for it */
  double fp32_flops, bf16_flops, f16_flops, int8_ops;
  /* per second; copy and triad count reads and writes */
  double read_bytes, copy_bytes, triad_bytes;
} bench_ceilings_t;

/* A scenario's work, for its share of the ceiling. */
typedef struct bench_work {
  bench_unit_t unit;
  double amount;  /* flops or bytes of one run */
  double ceiling; /* per second; 0: none applies */
} bench_work_t;

/* ---- main.c ---- */
/* Each thread on a CPU of its own, the calling one included. */
nn_device_t *bench_open_cpu(const bench_options_t *options);
nn_device_t *bench_open_gpu(const bench_options_t *options, bool tf32);

/* ---- timing.c ---- */
double bench_now(void);
typedef void (*bench_fn)(void *context);
/* Median seconds of one run: warm-up apart, at least 5 runs, at least `seconds` in all. */
double bench_time(bench_fn fn, void *context, double seconds, double *fastest, int64_t *runs);
double bench_median(double *times, int64_t count, double *fastest); /* sorts them */

/* ---- temp.c ---- */
enum { TEMP_PATH = 512 };
void temp_make(char folder[TEMP_PATH]); /* an empty one below TMPDIR */
void temp_remove(const char *folder);   /* with all that is in it */

/* ---- pin.c ---- */
int32_t pin_cpus(void);          /* logical CPUs that this program was started with */
int32_t pin_cpu(int32_t thread); /* the logical CPU for a thread, 0 being the program's own */
/* pthread_create on that CPU. */
void pin_start(pthread_t *id, int32_t thread, void *(*run)(void *context), void *context);
void pin_self(bool pinned); /* the calling thread on CPU 0 of the process, or on any of them */

/* ---- report.c ---- */
void report_begin(const bench_options_t *options, int argc, char **argv, const char *cpu,
                  int32_t threads, int32_t paths);
void report_ceilings(const char *label, const bench_ceilings_t *ceilings);
/* True when the filter lets the scenario through. */
bool report_wanted(const char *group, const char *name);
/* Of a group that takes a minute and more: true only when the filter begins with its name. */
bool report_asked(const char *group);
/* Measures and prints one scenario. */
void report_run(const char *group, const char *name, bench_fn fn, void *context,
                bench_work_t work);
/* Prints one that measured itself. note: words behind it, or "". */
void report_line(const char *group, const char *name, double seconds, double fastest, int64_t runs,
                 bench_work_t work, const char *note);
void report_end(void);

/* ---- the groups ---- */
bench_ceilings_t ceilings_measure(int32_t threads, int32_t paths);
/* What reading gives now: by medians, where read_bytes is the best of its runs. */
double ceilings_read(int32_t threads);
/* Flops per second of products beside weights of a dtype: fp32's where no instruction is theirs. */
double ceilings_products(const bench_ceilings_t *peak, int32_t dtype);
/* The operations of a GPU, which is cuda:index; gives its ceilings. */
bench_ceilings_t bench_gpu(nn_device_t *device, int32_t index);
void bench_ops(nn_device_t *device, const bench_options_t *options, const bench_ceilings_t *peak);
void bench_seed(const bench_options_t *options, const bench_ceilings_t *single);
void bench_training(nn_device_t *device, const bench_options_t *options,
                    const bench_ceilings_t *peak);
void bench_serving(nn_device_t *device, const bench_options_t *options,
                   const bench_ceilings_t *peak);
void bench_load(nn_device_t *device, const bench_options_t *options);
void bench_tokenizer(const bench_options_t *options);
void bench_context(nn_device_t *device, const bench_options_t *options,
                   const bench_ceilings_t *peak);
void bench_curve(const bench_options_t *options); /* where the device is a GPU */

#endif
