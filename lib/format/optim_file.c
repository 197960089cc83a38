#include "format/optim_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "format/param_io.h"

/* Tensor 2 i is the first moment of parameter i, 2 i + 1 its second. */
enum { MOMENTS = 2, NAME_BYTES = PARAM_NAME_BYTES + 16 };
static const long long most_steps = 1LL << 53; /* up to which doubles hold every number */
static const char *const suffixes[MOMENTS] = {".exp_avg", ".exp_avg_sq"};

typedef struct moment_name {
  char text[NAME_BYTES];
} moment_name_t;

/* ---- writing --------------------------------------------------------------------------------- */

typedef struct optim_save {
  const param_table_t *table;
  const float *moments[MOMENTS];
  transfer_t transfer;
} optim_save_t;

static nn_status_t optim_write(void *user, int64_t index, file_writer_t *writer) {
  optim_save_t *save = user;
  return param_io_write(&save->table->items[index / MOMENTS], NN_F32,
                        save->moments[index % MOMENTS], writer, &save->transfer);
}

nn_status_t optim_file_save(const char *path, const param_table_t *table, const float *m,
                            const float *v, int64_t steps, const atomic_int *cancel) {
  void *entries_memory = NULL, *names_memory = NULL;
  size_t count = (size_t)table->count * MOMENTS;
  nn_status_t status = mem_alloc(count, sizeof(safetensors_entry_t), &entries_memory);
  if (status == NN_OK) status = mem_alloc(count, sizeof(moment_name_t), &names_memory);
  if (status == NN_OK) {
    safetensors_entry_t *entries = entries_memory;
    moment_name_t *names = names_memory;
    for (size_t i = 0; i < count; i++) {
      const param_t *param = &table->items[i / MOMENTS];
      snprintf(names[i].text, NAME_BYTES, "%s%s", param->name, suffixes[i % MOMENTS]);
      entries[i] = (safetensors_entry_t){
          .name = names[i].text, .dtype = NN_F32, .ndim = param->ndim, .shape = param->shape};
    }
    optim_save_t save = {.table = table, .moments = {m, v}, .transfer = {.cancel = cancel}};
    save.transfer.total = table->elements * MOMENTS * (int64_t)sizeof(float);
    char step_text[24];
    snprintf(step_text, sizeof step_text, "%lld", (long long)steps);
    safetensors_pair_t step = {"step", step_text};
    status = safetensors_write(path, entries, (int64_t)count, &step, 1, optim_write, &save);
  }
  mem_free(entries_memory);
  mem_free(names_memory);
  return status;
}

/* ---- reading --------------------------------------------------------------------------------- */

static nn_status_t optim_read_steps(const safetensors_t *file, int64_t *steps) {
  const char *text = safetensors_metadata(file, "step");
  if (!text)
    return status_fail(NN_ERR_FORMAT, "__metadata__ has no \"step\"; this is no optimizer state");
  char *end;
  errno = 0;
  long long value = strtoll(text, &end, 10);
  if (errno || *end || text[0] < '0' || text[0] > '9' || value > most_steps)
    return status_fail(NN_ERR_FORMAT,
                       "\"step\" is \"%.32s\"; it must be a whole number of at most 2^53", text);
  *steps = value;
  return NN_OK;
}

static int optim_compare(const void *a, const void *b) {
  return strcmp(((const safetensors_tensor_t *)a)->name, ((const safetensors_tensor_t *)b)->name);
}

static nn_status_t optim_check_tensor(const param_t *param, const char *name,
                                      const safetensors_tensor_t *tensor) {
  if (!tensor) return status_fail(NN_ERR_FORMAT, "tensor \"%s\" is missing", name);
  if (tensor->dtype != NN_F32 || !param_io_fits(param, tensor))
    return status_fail(NN_ERR_FORMAT,
                       "tensor \"%s\" is not F32 in the shape of the model's parameter", name);
  return NN_OK;
}

/* Finds every moment. The file's tensors are sorted by name for it. */
static nn_status_t optim_match(safetensors_t *file, const param_table_t *table,
                               const safetensors_tensor_t **sources) {
  qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, optim_compare);
  for (int64_t i = 0; i < table->count * MOMENTS; i++) {
    const param_t *param = &table->items[i / MOMENTS];
    moment_name_t name;
    snprintf(name.text, NAME_BYTES, "%s%s", param->name, suffixes[i % MOMENTS]);
    safetensors_tensor_t key = {.name = name.text};
    sources[i] = bsearch(&key, file->tensors, (size_t)file->count, sizeof key, optim_compare);
    STATUS_TRY(optim_check_tensor(param, name.text, sources[i]));
  }
  if (file->count != table->count * MOMENTS)
    return status_fail(NN_ERR_FORMAT, "has %lld tensors; the model has %lld moments",
                       (long long)file->count, (long long)(table->count * MOMENTS));
  return NN_OK;
}

/* Whether all are finite and, if asked, none is below zero. */
static bool moments_are_valid(const unsigned char *data, size_t bytes, bool negative_too) {
  static const uint32_t sign = 0x80000000, infinity = 0x7f800000;
  /* seen as unsigned numbers, a negative float follows every positive one; -0 becomes 0 */
  const uint32_t mask = negative_too ? ~sign : ~0u;
  bool valid = true;
  for (size_t at = 0; at < bytes; at += sizeof(uint32_t)) {
    uint32_t bits;
    memcpy(&bits, data + at, sizeof bits);
    if (bits == sign) bits = 0;
    valid &= (bits & mask) < infinity;
  }
  return valid;
}

/* Looks at every value, piece by piece. */
static nn_status_t optim_check_values(const safetensors_t *file, const safetensors_tensor_t *tensor,
                                      bool second, transfer_t *transfer) {
  for (size_t at = 0; at < tensor->bytes; at += TRANSFER_PIECE) {
    size_t bytes = tensor->bytes - at < TRANSFER_PIECE ? tensor->bytes - at : TRANSFER_PIECE;
    if (!moments_are_valid(tensor->data + at, bytes, !second))
      return status_fail(NN_ERR_FORMAT, "tensor \"%s\" has a value that is %s", tensor->name,
                         second ? "negative, infinite or NaN" : "infinite or NaN");
    file_map_forget(&file->map, tensor->data + at, bytes);
    STATUS_TRY(transfer_advance(transfer, (int64_t)bytes));
  }
  return NN_OK;
}

static nn_status_t optim_load(safetensors_t *file, const param_table_t *table, float *m, float *v,
                              int64_t *steps, const atomic_int *cancel) {
  int64_t read_steps = 0;
  void *memory;
  STATUS_TRY(optim_read_steps(file, &read_steps));
  STATUS_TRY(mem_alloc((size_t)table->count * MOMENTS, sizeof(safetensors_tensor_t *), &memory));
  const safetensors_tensor_t **sources = memory;
  nn_status_t status = optim_match(file, table, sources);
  transfer_t transfer = {.cancel = cancel};
  transfer.total = 2 * table->elements * MOMENTS * (int64_t)sizeof(float); /* each is read twice */
  for (int64_t i = 0; status == NN_OK && i < table->count * MOMENTS; i++)
    status = optim_check_values(file, sources[i], i % MOMENTS != 0, &transfer);
  for (int64_t i = 0; status == NN_OK && i < table->count * MOMENTS; i++)
    status = param_io_read(&table->items[i / MOMENTS], NN_F32, i % MOMENTS ? v : m, file,
                           sources[i], &transfer);
  if (status == NN_OK) *steps = read_steps;
  mem_free(memory);
  return status;
}

nn_status_t optim_file_load(const char *path, const param_table_t *table, float *m, float *v,
                            int64_t *steps, const atomic_int *cancel) {
  safetensors_t file;
  STATUS_TRY(safetensors_open(path, &file));
  nn_status_t status = optim_load(&file, table, m, v, steps, cancel);
  safetensors_close(&file);
  return status == NN_OK ? NN_OK : status_prefix(status, "%s", file_show(path).text);
}
