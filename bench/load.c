/* Opening moe-6.9b in bf16, from the page cache as far as that holds it: one file, several, and as
 * fp32, which the host makes of them for a GPU. */
#include <stdio.h>
#include <string.h>

#include "bench.h"

static const int64_t shard_bytes = 700000000;

typedef struct load {
  nn_device_t *device;
  const char *folder;
  int32_t dtype;
} load_t;

static void load_run(void *context) {
  load_t *job = context;
  nn_model_t *model;
  TRY(nn_model_load(job->device, job->folder, job->dtype, NULL, &model));
  nn_model_destroy(model);
}

/* Saves a model into a folder below TMPDIR, lets go of it, for two would be too large together, and
 * times opening it. */
static void load_scenario(nn_device_t *device, const nn_model_config_t *config, int64_t file_bytes,
                          int32_t dtype, const char *what) {
  char name[96], folder[TEMP_PATH];
  snprintf(name, sizeof name, "moe-6.9b bf16, %lld layers, %s", (long long)config->layers, what);
  if (!report_wanted("load", name)) return;
  temp_make(folder);
  nn_plan_t plan = {.struct_size = sizeof plan};
  TRY(nn_plan_inference(device, config, NN_BF16, NULL, &plan));
  nn_file_options_t layout = {.struct_size = sizeof layout, .shard_bytes = file_bytes};
  nn_model_t *model;
  TRY(nn_model_create(device, config, NN_BF16, 1, &model));
  TRY(nn_model_save(model, folder, &layout));
  nn_model_destroy(model);
  load_t job = {.device = device, .folder = folder, .dtype = dtype};
  double bytes = (double)plan.parameters * (double)nn_dtype_bytes(dtype);
  report_run("load", name, load_run, &job, (bench_work_t){UNIT_BYTE, bytes, 0});
  temp_remove(folder);
}

void bench_load(nn_device_t *device, const bench_options_t *options) {
  nn_model_config_t config = {.struct_size = sizeof config};
  TRY(nn_config_preset("moe-6.9b", &config));
  if (options->layers) config.layers = options->layers;
  pin_self(false); /* files are read by threads that inherit this one's CPUs */
  load_scenario(device, &config, 0, NN_BF16, "cached");
  load_scenario(device, &config, shard_bytes, NN_BF16, "files of 700 MB");
  if (strcmp(options->device, "cpu") != 0)
    load_scenario(device, &config, shard_bytes, NN_F32, "files of 700 MB, as fp32");
}
