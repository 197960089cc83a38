/* Trains a small mixture-of-experts language model on a text, byte by byte, on the CPU or a GPU:
 * measures it, lets it write, saves it, and proves that what was saved is the same model. main()
 * tells the story; everything asked of libmoenn is in moenn.h. */
#define _GNU_SOURCE
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "moenn.h"
#include "stories.h"

enum { BATCH = 4, LENGTH = 256 };         /* sequences in a step, bytes in a sequence */
enum { SHORTEST = (LENGTH + 1) * 10 / 9 }; /* bytes of a text */
enum { PARTS = 20, SHORT_CHECK = 16 };    /* progress lines; batches of a validation on the way */

static const char usage[] =
    "usage: train_tiny [TEXT] [options]\n"
    "Trains a small mixture-of-experts model on the bytes of a file: the first 90 % train, the\n"
    "last 10 % validate. Without TEXT it learns built-in stories whose entropy is known.\n"
    "  --minutes M   train for M minutes (default: 1.2)\n"
    "  --steps N     train for N steps instead: the same losses on every run, at any thread count\n"
    "  --seed S      of weights, data and sample (default: 1)\n"
    "  --device D    cpu, or cuda:0 (default: cpu)\n"
    "  --threads T   threads that compute (default: one per core)\n"
    "  --out DIR     where the model is saved, before training and after (default: tiny-model)\n"
    "Ctrl-C saves the model and leaves with exit code 130; a second one leaves at once.\n";

static struct {
  const char *text, *out, *device;
  double minutes, steps, seed, threads;
} settings = {.out = "tiny-model", .device = "cpu", .seed = 1};

static nn_train_options_t shape = {.struct_size = sizeof shape, .batch = BATCH, .seq_len = LENGTH};
static int32_t tokens[BATCH * LENGTH], targets[BATCH * LENGTH];
static float logits[2][BATCH * LENGTH * NN_BYTE_VOCAB];
static volatile sig_atomic_t interrupted;

static void on_interrupt(int number) { interrupted = number; }

/* Says why, and ends the program. */
#define FAIL(code, ...) (fprintf(stderr, "train_tiny: " __VA_ARGS__), exit(code))

/* Ends the program if a call has failed. */
static void must(nn_status_t status) {
  if (status != NN_OK) FAIL(1, "%s: %s\n", nn_status_name(status), nn_last_error());
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double number(const char *option, double least, double most, int whole) {
  char *end;
  double value = strtod(optarg, &end);
  int good = end != optarg && !*end && value >= least && value <= most;
  if (!good || (whole && value != floor(value)))
    FAIL(2, "%s is %s; it takes a %snumber from %g to %g\n", option, optarg, whole ? "whole " : "",
         least, most);
  return value;
}

static void read_settings(int argc, char **argv) {
  static const struct option options[] = {
      {"minutes", 1, NULL, 'm'}, {"steps", 1, NULL, 'n'}, {"seed", 1, NULL, 's'},
      {"threads", 1, NULL, 't'}, {"out", 1, NULL, 'o'},   {"device", 1, NULL, 'd'},
      {"help", 0, NULL, 'h'}, {0}};
  for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
    switch (option) {
      case 'm': settings.minutes = number("--minutes", 0.01, 1e6, 0); break;
      case 'n': settings.steps = number("--steps", 1, 1e12, 1); break;
      case 's': settings.seed = number("--seed", 0, 0x1p53, 1); break;
      case 't': settings.threads = number("--threads", 1, 1024, 1); break;
      case 'o': settings.out = optarg; break;
      case 'd': settings.device = optarg; break;
      case 'h': fputs(usage, stdout); exit(ferror(stdout) ? 1 : 0);
      default: fputs(usage, stderr); exit(2);
    }
  }
  if (optind < argc) settings.text = argv[optind++];
  if (optind < argc) FAIL(2, "%s: there is a text already\n", argv[optind]);
  if (settings.minutes > 0 && settings.steps > 0) FAIL(2, "--minutes or --steps, not both\n");
  if (settings.minutes <= 0) settings.minutes = 1.2;
}

static void open_text(nn_dataset_options_t options, nn_dataset_t **data, nn_dataset_t **valid) {
  struct stat file = {0};
  if (!stat(settings.text, &file) && S_ISREG(file.st_mode) && file.st_size < SHORTEST)
    FAIL(1, "%s: has %d bytes and needs %d: the first 90 %% must hold a window of %d\n",
         settings.text, (int)file.st_size, SHORTEST, LENGTH + 1);
  options.begin = file.st_size - file.st_size / 10;
  must(nn_dataset_open_text(settings.text, NULL, &options, valid));
  options.end = options.begin, options.begin = 0, options.shuffle = 1;
  must(nn_dataset_open_text(settings.text, NULL, &options, data));
}

/* Returns -ln of the stories' probability per byte: the loss of the best possible model. */
static double open_stories(const nn_dataset_options_t *options, uint64_t seed, size_t bytes,
                           nn_dataset_t **data) {
  stories_t stories;
  int32_t *ids = NULL;
  if (stories_make(seed, bytes, &stories) || !(ids = malloc(stories.bytes * sizeof *ids)))
    FAIL(1, "memory for the stories is short\n");
  for (size_t i = 0; i < stories.bytes; i++) ids[i] = (unsigned char)stories.text[i];
  must(nn_dataset_from_tokens(ids, (int64_t)stories.bytes, options, data));
  free(ids);
  free(stories.text);
  return stories.nats / (double)stories.bytes;
}

/* Nats per byte over the validation part, or its first batches. */
static double validate(nn_model_t *model, nn_dataset_t *valid, int64_t batches) {
  nn_dataset_info_t info = {.struct_size = sizeof info};
  double nats = 0, bytes = 0;
  must(nn_dataset_info(valid, &info));
  must(nn_dataset_seek(valid, 0));
  for (int64_t i = 0; i < batches && i < info.batches && !(interrupted && i); i++) {
    nn_loss_t loss = {.struct_size = sizeof loss};
    must(nn_dataset_next(valid, tokens, targets));
    must(nn_model_evaluate(model, tokens, targets, BATCH, LENGTH, &loss));
    nats += loss.loss * (double)loss.targets;
    bytes += (double)loss.targets;
  }
  return nats / bytes;
}

static void train(nn_device_t *device, nn_model_t *model, nn_dataset_t *data, nn_dataset_t *valid) {
  nn_optim_options_t adamw = {.struct_size = sizeof adamw, .weight_decay = 0.1f, .grad_clip = 1};
  nn_schedule_t schedule = {.struct_size = sizeof schedule, .kind = NN_SCHEDULE_COSINE,
      .lr = 1.5e-3f, .min_lr = 1.5e-5f, .warmup_steps = 50, .total_steps = 1000}; /* = the run */
  const char *clear = isatty(STDOUT_FILENO) ? "\r\033[K" : "";
  nn_memory_t memory = {.struct_size = sizeof memory};
  nn_optim_t *optim;
  must(nn_optim_create(model, &adamw, &optim));
  must(nn_device_memory(device, &memory));
  const double start = seconds();
  double share = 0; /* of the run that is done */
  for (int64_t step = 1, lines = 0; share < 1 && !interrupted; step++) {
    nn_loss_t loss = {.struct_size = sizeof loss};
    float lr;
    must(nn_dataset_next(data, tokens, targets));
    must(nn_model_zero_grad(model));
    must(nn_model_backward(model, tokens, targets, BATCH, LENGTH, 1, &loss));
    must(nn_schedule_lr(&schedule, (int64_t)(share * 1000), &lr));
    must(nn_optim_step(optim, lr, NULL));
    const double time = seconds() - start, done = (double)step;
    share = settings.steps > 0 ? done / settings.steps : time / (60 * settings.minutes);
    const int due = share * PARTS >= (double)lines + 1;
    if (*clear || due)
      printf("%sstep %4.0f  loss %.4f  %.0f tokens/s  %.0f MB  %.0f s left%s", clear, done,
             loss.loss, done * BATCH * LENGTH / time, 1e-6 * (double)memory.current_bytes,
             fmax(0, time / share - time), *clear ? "" : "\n");
    if (due && ++lines % 5 == 0 && share < 1)
      printf("%svalidation loss about %.4f\n", clear, validate(model, valid, SHORT_CHECK));
  }
  printf("%s", clear);
  nn_optim_destroy(optim);
}

/* Validation loss, and how evenly it used the experts. */
static void measure(nn_model_t *model, nn_dataset_t *valid, int64_t layers, double entropy) {
  must(nn_model_expert_stats_reset(model));
  double loss = validate(model, valid, INT64_MAX);
  if (interrupted) return;
  printf("validation loss %.4f nats per byte\n", loss);
  if (entropy > 0)
    printf("true entropy    %.4f (all stories: %.4f), %.4f from the best possible\n", entropy,
           stories_entropy(), loss - entropy);
  for (int64_t layer = 0; layer < layers; layer++) {
    nn_expert_stats_t use = {.struct_size = sizeof use};
    must(nn_model_expert_stats(model, layer, NULL, NULL, &use));
    printf("layer %d: entropy of expert use %.3f of 1, the busiest has %.2f times its share\n",
           (int)layer, use.entropy, use.max_load);
  }
}

static int32_t print_byte(int32_t token, int64_t index, void *user) {
  (void)index, (void)user;
  if (token < NN_BYTE_BOS) putchar(token < ' ' && token != '\n' ? '?' : token);
  return interrupted;
}

static void write_sample(nn_model_t *model) {
  const nn_sample_options_t sampling = {
      .struct_size = sizeof sampling, .temperature = 0.8f, .seed = (uint64_t)settings.seed};
  const nn_generate_options_t options = {
      .struct_size = sizeof options, .sampling = &sampling, .on_token = print_byte};
  nn_session_t *session;
  int64_t count;
  must(nn_session_create(model, NULL, &session));
  must(nn_session_generate(session, 0, &(int32_t){'\n'}, 1, &options, NULL, 0, &count, NULL));
  printf("\n\n");
  nn_session_destroy(session);
}

/* Saves, loads, and compares every logit of a batch, bit for bit. */
static void save_and_prove(nn_device_t *device, nn_model_t *model) {
  nn_model_t *loaded;
  must(nn_model_save(model, settings.out, NULL));
  must(nn_model_load(device, settings.out, NN_F32, NULL, &loaded));
  must(nn_model_prepare(loaded, &shape));
  must(nn_model_forward(model, tokens, BATCH, LENGTH, logits[0]));
  must(nn_model_forward(loaded, tokens, BATCH, LENGTH, logits[1]));
  if (memcmp(logits[0], logits[1], sizeof *logits)) FAIL(1, "%s: other logits\n", settings.out);
  printf("saved in %s; reloaded, it gives the same logits, bit for bit\n", settings.out);
  nn_model_destroy(loaded);
}

int main(int argc, char **argv) {
  setvbuf(stdout, NULL, _IONBF, 0);
  read_settings(argc, argv);
  const uint64_t seed = (uint64_t)settings.seed;
  const nn_device_options_t place = {.struct_size = sizeof place,
                                     .threads = (int32_t)settings.threads};
  nn_dataset_options_t windows = {
      .struct_size = sizeof windows, .batch = BATCH, .seq_len = LENGTH, .seed = seed};
  nn_model_config_t config = {.struct_size = sizeof config};
  nn_device_t *device;
  nn_dataset_t *data, *valid;
  nn_model_t *model;
  double entropy = 0;
  if (settings.text) {
    open_text(windows, &data, &valid);
  } else {
    entropy = open_stories(&windows, 2 * seed, 1 << 16, &valid);
    windows.shuffle = 1;
    open_stories(&windows, 2 * seed + 1, 4 << 20, &data);
  }
  must(nn_device_create(settings.device, &place, &device));
  must(nn_config_preset("small", &config));
  must(nn_model_create(device, &config, NN_F32, seed, &model));
  must(nn_model_prepare(model, &shape));
  must(nn_model_save(model, settings.out, NULL)); /* a bad folder is found now, not after hours */
  struct sigaction once = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
  sigaction(SIGINT, &once, NULL);
  train(device, model, data, valid);
  if (!interrupted) measure(model, valid, config.layers, entropy);
  if (!interrupted) write_sample(model);
  save_and_prove(device, model);
  nn_model_destroy(model);
  nn_dataset_destroy(data);
  nn_dataset_destroy(valid);
  nn_device_destroy(device);
  if (ferror(stdout)) FAIL(1, "not all of the output could be written\n");
  return interrupted ? 130 : 0;
}
