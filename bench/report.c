/* The report: a table on standard output and, where asked for, the same as JSON. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static const bench_options_t *report_options;
static json_t *report_json, *report_rows;

static _Noreturn void report_unwritable(const char *path) {
  fprintf(stderr, "moenn-bench: %s cannot be written: %s\n", path, strerror(errno));
  exit(1);
}

/* Before all that is measured, rather than behind it. */
static void report_check_json(const char *path) {
  FILE *file = path ? fopen(path, "a") : NULL;
  if (path && !file) report_unwritable(path);
  if (file) fclose(file);
}

void report_begin(const bench_options_t *options, int argc, char **argv, const char *cpu,
                  int32_t threads, int32_t paths) {
  report_options = options;
  report_check_json(options->json);
  report_json = json_object();
  report_rows = json_array();
  char command[1024] = "";
  for (int i = 0; i < argc; i++) {
    size_t used = strlen(command);
    const char *quote = strchr(argv[i], ' ') ? "\"" : "";
    snprintf(command + used, sizeof command - used, "%s%s%s%s", i ? " " : "", quote, argv[i],
             quote);
  }
  char path_names[64];
  snprintf(path_names, sizeof path_names, "reference%s%s%s", paths & NN_CPU_AVX2 ? ", avx2" : "",
           paths & NN_CPU_AVX512 ? ", avx512" : "",
           paths & NN_CPU_AVX512_BF16 ? ", avx512bf16" : "");
  printf("libmoenn %s\ncommand  %s\ncpu      %s\nthreads  %d\npaths    %s\n", nn_version(),
         command, cpu, threads, path_names);
  printf("compiler %s\nflags    %s\n\n", __VERSION__, BENCH_FLAGS);
  json_object_set_new(report_json, "version", json_string(nn_version()));
  json_object_set_new(report_json, "command", json_string(command));
  json_object_set_new(report_json, "cpu", json_string(cpu));
  json_object_set_new(report_json, "threads", json_integer(threads));
  json_object_set_new(report_json, "paths", json_string(path_names));
  json_object_set_new(report_json, "compiler", json_string(__VERSION__));
  json_object_set_new(report_json, "flags", json_string(BENCH_FLAGS));
  json_object_set(report_json, "scenarios", report_rows);
}

void report_ceilings(const char *label, const bench_ceilings_t *c) {
  printf("ceilings, %s: fp32 %.1f, bf16 %.1f GFLOP/s, int8 %.1f GOP/s; read %.1f, copy %.1f, triad "
         "%.1f GB/s\n",
         label, c->fp32_flops * 1e-9, c->bf16_flops * 1e-9, c->int8_ops * 1e-9,
         c->read_bytes * 1e-9, c->copy_bytes * 1e-9, c->triad_bytes * 1e-9);
  fflush(stdout);
  json_t *row = json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "fp32_flops", c->fp32_flops,
                          "bf16_flops", c->bf16_flops, "int8_ops", c->int8_ops, "read_bytes",
                          c->read_bytes, "copy_bytes", c->copy_bytes, "triad_bytes",
                          c->triad_bytes);
  char key[64];
  snprintf(key, sizeof key, "ceilings %s", label);
  json_object_set_new(report_json, key, row);
}

bool report_wanted(const char *group, const char *name) {
  char both[256];
  snprintf(both, sizeof both, "%s/%s", group, name);
  return !report_options->filter || strstr(both, report_options->filter);
}

bool report_asked(const char *group) {
  const char *filter = report_options->filter;
  return filter && !strncmp(filter, group, strlen(group));
}

void report_line(const char *group, const char *name, double seconds, double fastest, int64_t runs,
                 bench_work_t work, const char *note) {
  static bool headed;
  if (!headed)
    printf("\n%-10s %-44s %12s %12s %10s %8s\n", "group", "scenario", "median", "fastest", "rate",
           "share");
  headed = true;
  char rate[32] = "", share[32] = "";
  double per_second = work.amount / seconds;
  if (work.unit == UNIT_FLOP) snprintf(rate, sizeof rate, "%.1f GF/s", per_second * 1e-9);
  if (work.unit == UNIT_BYTE) snprintf(rate, sizeof rate, "%.1f GB/s", per_second * 1e-9);
  if (work.ceiling > 0) snprintf(share, sizeof share, "%.1f %%", 100 * per_second / work.ceiling);
  printf("%-10s %-44s %9.2f us %9.2f us %10s %8s %s\n", group, name, seconds * 1e6, fastest * 1e6,
         rate, share, note);
  fflush(stdout);
  json_t *row = json_pack("{s:s, s:s, s:f, s:f, s:I, s:s}", "group", group, "name", name,
                          "median_s", seconds, "fastest_s", fastest, "runs", (json_int_t)runs,
                          "note", note);
  if (work.unit != UNIT_NONE) {
    json_object_set_new(row, work.unit == UNIT_FLOP ? "flops" : "bytes", json_real(work.amount));
  }
  if (work.ceiling > 0) { /* what the share is of */
    json_object_set_new(row, "ceiling", json_real(work.ceiling));
    json_object_set_new(row, "share", json_real(per_second / work.ceiling));
  }
  json_array_append_new(report_rows, row);
}

void report_run(const char *group, const char *name, bench_fn fn, void *context,
                bench_work_t work) {
  if (!report_wanted(group, name)) return;
  double fastest;
  int64_t runs;
  double median = bench_time(fn, context, report_options->seconds, &fastest, &runs);
  report_line(group, name, median, fastest, runs, work, "");
}

void report_end(void) {
  if (!json_array_size(report_rows) && report_options->filter) {
    fprintf(stderr, "moenn-bench: no scenario of %s contains \"%s\"\n", report_options->device,
            report_options->filter);
    exit(1);
  }
  const char *path = report_options->json;
  if (path && json_dump_file(report_json, path, JSON_INDENT(1))) report_unwritable(path);
  json_decref(report_rows);
  json_decref(report_json);
}
