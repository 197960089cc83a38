#include "format/optim_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/mem.h"
#include "format/param_io.h"
#include "format/safetensors.h"

/* Each parameter has these tensors, in this order; only bf16 parameters have the last. */
enum { STATE_M, STATE_V, STATE_LOW, STATES, NAME_BYTES = PARAM_NAME_BYTES + 16 };
static const long long most_steps = 1LL << 53; /* up to which doubles hold every number */
static const char *const suffixes[STATES] = {".exp_avg", ".exp_avg_sq", ".master_low"};
static const int32_t dtypes[STATES] = {NN_F32, NN_F32, NN_I16};

/* Where the state lies, and how many of the tensors each parameter has. */
typedef struct optim_parts {
  void *data[STATES];
  int64_t count;
} optim_parts_t;

static optim_parts_t optim_parts(const float *m, const float *v, const int16_t *low) {
  return (optim_parts_t){{(void *)(uintptr_t)m, (void *)(uintptr_t)v, (void *)(uintptr_t)low},
                         low ? STATES : STATES - 1};
}

/* Bytes of all tensors. */
static int64_t optim_parts_bytes(const optim_parts_t *parts, int64_t elements) {
  int64_t each = 0;
  for (int64_t i = 0; i < parts->count; i++) each += (int64_t)nn_dtype_bytes(dtypes[i]);
  return elements * each;
}

typedef struct state_name {
  char text[NAME_BYTES];
} state_name_t;

/* ---- writing --------------------------------------------------------------------------------- */

typedef struct optim_save {
  const param_table_t *table;
  optim_parts_t parts;
  transfer_t transfer;
} optim_save_t;

static nn_status_t optim_write(void *user, int64_t index, file_writer_t *writer) {
  optim_save_t *save = user;
  int64_t part = index % save->parts.count;
  return param_io_write(&save->table->items[index / save->parts.count], dtypes[part],
                        save->parts.data[part], writer, &save->transfer);
}

nn_status_t optim_file_save(const char *path, const param_table_t *table, const float *m,
                            const float *v, const int16_t *low, int64_t steps,
                            const atomic_int *cancel, nn_device_t *device) {
  void *entries_memory = NULL, *names_memory = NULL;
  optim_save_t save = {.table = table, .parts = optim_parts(m, v, low)};
  save.transfer = (transfer_t){.cancel = cancel, .device = device};
  save.transfer.total = optim_parts_bytes(&save.parts, table->elements);
  size_t count = (size_t)(table->count * save.parts.count);
  nn_status_t status = mem_alloc(count, sizeof(safetensors_entry_t), &entries_memory);
  if (status == NN_OK) status = mem_alloc(count, sizeof(state_name_t), &names_memory);
  if (status == NN_OK) {
    safetensors_entry_t *entries = entries_memory;
    state_name_t *names = names_memory;
    for (size_t i = 0; i < count; i++) {
      const param_t *param = &table->items[i / (size_t)save.parts.count];
      size_t part = i % (size_t)save.parts.count;
      snprintf(names[i].text, NAME_BYTES, "%s%s", param->name, suffixes[part]);
      entries[i] = (safetensors_entry_t){
          .name = names[i].text, .dtype = dtypes[part], .ndim = param->ndim, .shape = param->shape};
    }
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

static nn_status_t optim_check_tensor(const param_t *param, const char *name, int32_t dtype,
                                      const safetensors_tensor_t *tensor) {
  if (!tensor) return status_fail(NN_ERR_FORMAT, "tensor \"%s\" is missing", name);
  bool fits = tensor->dtype == dtype && tensor->ndim == param->ndim;
  for (int32_t i = 0; fits && i < param->ndim; i++) fits = tensor->shape[i] == param->shape[i];
  if (!fits)
    return status_fail(NN_ERR_FORMAT,
                       "tensor \"%s\" is not %s in the shape of the model's parameter", name,
                       dtype_name(dtype));
  return NN_OK;
}

/* Finds every tensor of the state. The file's tensors are sorted by name for it. */
static nn_status_t optim_match(safetensors_t *file, const param_table_t *table, int64_t parts,
                               const safetensors_tensor_t **sources) {
  qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, optim_compare);
  for (int64_t i = 0; i < table->count * parts; i++) {
    const param_t *param = &table->items[i / parts];
    state_name_t name;
    snprintf(name.text, NAME_BYTES, "%s%s", param->name, suffixes[i % parts]);
    safetensors_tensor_t key = {.name = name.text};
    sources[i] = bsearch(&key, file->tensors, (size_t)file->count, sizeof key, optim_compare);
    STATUS_TRY(optim_check_tensor(param, name.text, dtypes[i % parts], sources[i]));
  }
  if (file->count != table->count * parts)
    return status_fail(NN_ERR_FORMAT, "has %lld tensors; the model's state has %lld",
                       (long long)file->count, (long long)(table->count * parts));
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

static nn_status_t optim_load(safetensors_t *file, const param_table_t *table,
                              const optim_parts_t *parts, int64_t *steps, transfer_t *transfer) {
  int64_t read_steps = 0, count = table->count * parts->count;
  void *memory;
  STATUS_TRY(optim_read_steps(file, &read_steps));
  STATUS_TRY(mem_alloc((size_t)count, sizeof(safetensors_tensor_t *), &memory));
  const safetensors_tensor_t **sources = memory;
  nn_status_t status = optim_match(file, table, parts->count, sources);
  transfer->total = optim_parts_bytes(parts, table->elements) +
                    2 * table->elements * (int64_t)sizeof(float); /* moments are read twice */
  for (int64_t i = 0; status == NN_OK && i < count; i++)
    if (i % parts->count != STATE_LOW)
      status = optim_check_values(file, sources[i], i % parts->count == STATE_V, transfer);
  for (int64_t i = 0; status == NN_OK && i < count; i++)
    status = param_io_read(&table->items[i / parts->count], dtypes[i % parts->count],
                           parts->data[i % parts->count], &file->map, sources[i]->data,
                           sources[i]->dtype, transfer);
  if (status == NN_OK) *steps = read_steps;
  mem_free(memory);
  return status;
}

nn_status_t optim_file_load(const char *path, const param_table_t *table, float *m, float *v,
                            int16_t *low, int64_t *steps, const atomic_int *cancel,
                            nn_device_t *device) {
  safetensors_t file;
  STATUS_TRY(safetensors_open(path, &file));
  optim_parts_t parts = optim_parts(m, v, low);
  transfer_t transfer = {.cancel = cancel, .device = device};
  nn_status_t status = optim_load(&file, table, &parts, steps, &transfer);
  safetensors_close(&file);
  return status == NN_OK ? NN_OK : status_prefix(status, "%s", file_show(path).text);
}
