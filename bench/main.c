/* moenn-bench: measures this machine's ceilings, then how near to them the library comes. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "bench.h"

static const char usage[] =
    "moenn-bench [options]: ceilings of this machine, and each scenario as a share of them\n"
    "  --device NAME   \"cpu\" (default) or \"cuda:0\"; groups there: gpu, gpt2, moe, decode,\n"
    "                  prefill, load, context, curve\n"
    "  --threads N     threads that compute (default: every core)\n"
    "  --filter TEXT   only scenarios whose \"group/name\" contains TEXT\n"
    "                  groups: ops, seed, gpt2, moe, decode, prefill, load, tokenizer\n"
    "                  run only where TEXT begins with their names, for they are long:\n"
    "                  context: moe-6.9b at 262,144 tokens; a GPU, or few layers and patience\n"
    "                  curve: losses of GPT-2 124M on a GPU and on the CPU, from one checkpoint\n"
    "  --seconds S     least time spent on a scenario (default 1)\n"
    "  --layers N      layers of moe-6.9b in decode, prefill, load and context (default: all\n"
    "                  30, 15 GB)\n"
    "  --tokenizer P   of the group tokenizer: a tokenizer file or folder (default: the bytes')\n"
    "  --text FILE     what it encodes (default: 10 MB of made-up words)\n"
    "  --cold          a CPU's operations work through buffers that exceed the caches\n"
    "  --tf32          a GPU may round what it multiplies in fp32 to TF32\n"
    "  --json FILE     write the report as JSON too\n"
    "  --help          print this\n";

static _Noreturn void usage_error(const char *what, const char *value) {
  fprintf(stderr, "moenn-bench: %s %s\n%s", what, value, usage);
  exit(2);
}

static double number(const char *option, const char *text, double least, double most) {
  char *end;
  double value = text ? strtod(text, &end) : 0;
  if (text && end != text && !*end && value >= least && value <= most) return value;
  char what[96];
  snprintf(what, sizeof what, "%s takes a number from %g to %g, not", option, least, most);
  usage_error(what, text ? text : "nothing");
}

static bench_options_t parse(int argc, char **argv) {
  bench_options_t options = {.seconds = 1, .device = "cpu"};
  for (int i = 1; i < argc; i++) {
    const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
    if (!strcmp(option, "--help")) {
      fputs(usage, stdout);
      exit(0);
    } else if (!strcmp(option, "--cold")) {
      options.cold = true;
      continue;
    } else if (!strcmp(option, "--tf32")) {
      options.tf32 = true;
      continue;
    } else if (!strcmp(option, "--device") && value) {
      options.device = value;
    } else if (!strcmp(option, "--threads")) {
      options.threads = (int32_t)number(option, value, 1, 1024);
    } else if (!strcmp(option, "--filter") && value) {
      options.filter = value;
    } else if (!strcmp(option, "--json") && value) {
      options.json = value;
    } else if (!strcmp(option, "--seconds")) {
      options.seconds = number(option, value, 0.001, 3600);
    } else if (!strcmp(option, "--tokenizer") && value) {
      options.tokenizer = value;
    } else if (!strcmp(option, "--text") && value) {
      options.text = value;
    } else if (!strcmp(option, "--layers")) {
      options.layers = (int64_t)number(option, value, 1, 30);
    } else {
      usage_error("unknown or incomplete option", option);
    }
    i++;
  }
  return options;
}

/* The processor's name, as Linux gives it. */
static void cpu_name(char *name, size_t bytes) {
  snprintf(name, bytes, "unknown");
  FILE *file = fopen("/proc/cpuinfo", "r");
  char line[256];
  while (file && fgets(line, sizeof line, file)) {
    char *colon = strchr(line, ':');
    if (strncmp(line, "model name", 10) || !colon) continue;
    colon[strcspn(colon, "\n")] = 0;
    snprintf(name, bytes, "%s", colon + 2);
    break;
  }
  if (file) fclose(file);
}

nn_device_t *bench_open_gpu(const bench_options_t *options, bool tf32) {
  nn_device_options_t asked = {.struct_size = sizeof asked, .threads = options->threads};
  nn_device_t *device;
  asked.tf32 = tf32;
  TRY(nn_device_create(options->device, &asked, &device));
  return device;
}

nn_device_t *bench_open_cpu(const bench_options_t *options) {
  int32_t threads = options->threads ? options->threads : pin_cpus();
  int32_t *affinity = bench_alloc((size_t)threads * sizeof *affinity);
  for (int32_t t = 0; t < threads; t++) affinity[t] = pin_cpu(t);
  nn_device_options_t asked = {
      .struct_size = sizeof asked, .threads = threads, .affinity = affinity};
  nn_device_t *device;
  TRY(nn_device_create("cpu", &asked, &device));
  mem_free(affinity);
  pin_self(true);
  return device;
}

static void bench_cpu(nn_device_t *device, const bench_options_t *options,
                      const nn_device_info_t *info) {
  bench_ceilings_t single = ceilings_measure(1, info->cpu_paths), all = single;
  report_ceilings("1 thread", &single);
  if (info->threads > 1) {
    all = ceilings_measure(info->threads, info->cpu_paths);
    char label[32];
    snprintf(label, sizeof label, "%d threads", info->threads);
    report_ceilings(label, &all);
  }
  bench_ops(device, options, &all);
  bench_seed(options, &single);
  bench_training(device, options, &all);
  bench_serving(device, options, &all);
  bench_load(device, options);
  pin_self(true);
  bench_tokenizer(options);
  bench_context(device, options, &all);
}

#ifdef BENCH_CUDA
/* The library is linked into this program, whose folder is not the plugin's. */
static void find_plugin(void) { setenv("MOENN_PLUGIN_PATH", BENCH_CUDA, 0); }

static void bench_cuda(nn_device_t *device, const bench_options_t *options) {
  int32_t index =
      (int32_t)strtol(options->device + strcspn(options->device, "0123456789"), NULL, 10);
  bench_ceilings_t peak = bench_gpu(device, index);
  bench_training(device, options, &peak);
  bench_serving(device, options, &peak);
  bench_load(device, options);
  bench_context(device, options, &peak);
  bench_curve(options);
}
#else
static void find_plugin(void) {}

static void bench_cuda(nn_device_t *device, const bench_options_t *options) {
  (void)device, (void)options;
  fprintf(stderr, "moenn-bench: this build has no CUDA\n");
  exit(1);
}
#endif

int main(int argc, char **argv) {
  bench_options_t options = parse(argc, argv);
  find_plugin();
  bool gpu = strcmp(options.device, "cpu") != 0;
  nn_device_t *device = gpu ? bench_open_gpu(&options, options.tf32) : bench_open_cpu(&options);
  nn_device_info_t info = {.struct_size = sizeof info};
  TRY(nn_device_info(device, &info));
  char cpu[128];
  cpu_name(cpu, sizeof cpu);
  report_begin(&options, argc, argv, gpu ? info.model : cpu, info.threads, info.cpu_paths);
  if (gpu)
    bench_cuda(device, &options);
  else
    bench_cpu(device, &options, &info);
  report_end();
  nn_device_destroy(device);
  return 0;
}
