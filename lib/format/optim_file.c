#include "format/optim_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/mem.h"
#include "format/param_io.h"
#include "format/safetensors.h"

/* Each parameter has these tensors, in this order; fp32 parameters have no last. */
enum { STATE_M, STATE_V, STATE_MASTER, STATES, NAME_BYTES = PARAM_NAME_BYTES + 16 };

/* What the tensors are called and hold, where they lie, and how many of them each parameter has. */
typedef struct optim_parts {
  const char *suffix[STATES];
  int32_t dtype[STATES];
  void *data[STATES];
  int64_t count;
} optim_parts_t;

static optim_parts_t optim_parts(const optim_state_t *state) {
  bool whole = state->dtype == NN_F16;
  return (optim_parts_t){
      .suffix = {".exp_avg", ".exp_avg_sq", whole ? ".master" : ".master_low"},
      .dtype = {NN_F32, NN_F32, whole ? NN_F32 : NN_I16},
      .data = {state->m, state->v, state->masters},
      .count = state->masters ? STATES : STATES - 1,
  };
}

/* Bytes of all tensors. */
static int64_t optim_parts_bytes(const optim_parts_t *parts, int64_t elements) {
  int64_t each = 0;
  for (int64_t i = 0; i < parts->count; i++) each += (int64_t)nn_dtype_bytes(parts->dtype[i]);
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
  return param_io_write(&save->table->items[index / save->parts.count], save->parts.dtype[part],
                        save->parts.data[part], writer, &save->transfer);
}

/* The tensors' entries, in order, and their names. */
static void optim_entries(const param_table_t *table, const optim_parts_t *parts,
                          safetensors_entry_t *entries, state_name_t *names) {
  for (int64_t i = 0; i < table->count * parts->count; i++) {
    const param_t *param = &table->items[i / parts->count];
    int64_t part = i % parts->count;
    snprintf(names[i].text, NAME_BYTES, "%s%s", param->name, parts->suffix[part]);
    entries[i] = (safetensors_entry_t){.name = names[i].text,
                                       .dtype = parts->dtype[part],
                                       .ndim = param->ndim,
                                       .shape = param->shape};
  }
}

nn_status_t optim_file_save(const char *path, const param_table_t *table,
                            const optim_state_t *state, const atomic_int *cancel,
                            nn_device_t *device) {
  void *entries = NULL, *names = NULL;
  optim_save_t save = {.table = table, .parts = optim_parts(state)};
  save.transfer = (transfer_t){.cancel = cancel, .device = device};
  save.transfer.total = optim_parts_bytes(&save.parts, table->elements);
  size_t count = (size_t)(table->count * save.parts.count);
  nn_status_t status = mem_alloc(count, sizeof(safetensors_entry_t), &entries);
  if (status == NN_OK) status = mem_alloc(count, sizeof(state_name_t), &names);
  if (status == NN_OK) {
    optim_entries(table, &save.parts, entries, names);
    char numbers[3][24];
    snprintf(numbers[0], sizeof numbers[0], "%lld", (long long)state->steps);
    snprintf(numbers[1], sizeof numbers[1], "%lld", (long long)state->loss_scale);
    snprintf(numbers[2], sizeof numbers[2], "%lld", (long long)state->loss_scale_steps);
    const safetensors_pair_t pairs[] = {
        {"step", numbers[0]}, {"loss_scale", numbers[1]}, {"loss_scale_steps", numbers[2]}};
    status = safetensors_write(path, entries, (int64_t)count, pairs, state->dtype == NN_F16 ? 3 : 1,
                               optim_write, &save);
  }
  mem_free(entries);
  mem_free(names);
  return status;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* A whole number from least to most in __metadata__. */
static nn_status_t optim_read_number(const safetensors_t *file, const char *key, int64_t least,
                                     int64_t most, int64_t *number) {
  const char *text = safetensors_metadata(file, key);
  if (!text)
    return status_fail(NN_ERR_FORMAT,
                       "__metadata__ has no \"%s\"; this is no optimizer state of such a model",
                       key);
  char *end;
  errno = 0;
  long long value = strtoll(text, &end, 10);
  if (errno || *end || text[0] < '0' || text[0] > '9' || value < least || value > most)
    return status_fail(NN_ERR_FORMAT,
                       "\"%s\" is \"%.32s\"; it must be a whole number from %lld to %lld", key,
                       text, (long long)least, (long long)most);
  *number = value;
  return NN_OK;
}

/* The numbers of the state; what fp32 and bf16 parameters lack stays. */
static nn_status_t optim_read_numbers(const safetensors_t *file, optim_state_t *state) {
  STATUS_TRY(optim_read_number(file, "step", 0, OPTIM_MOST_STEPS, &state->steps));
  if (state->dtype != NN_F16) return NN_OK;
  STATUS_TRY(optim_read_number(file, "loss_scale", 1, OPTIM_MOST_LOSS_SCALE, &state->loss_scale));
  if (state->loss_scale & (state->loss_scale - 1))
    return status_fail(NN_ERR_FORMAT, "\"loss_scale\" is %lld, not a power of two",
                       (long long)state->loss_scale);
  return optim_read_number(file, "loss_scale_steps", 0, OPTIM_MOST_STEPS,
                           &state->loss_scale_steps);
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
static nn_status_t optim_match(safetensors_t *file, const param_table_t *table,
                               const optim_parts_t *parts, const safetensors_tensor_t **sources) {
  qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, optim_compare);
  int64_t count = table->count * parts->count;
  for (int64_t i = 0; i < count; i++) {
    const param_t *param = &table->items[i / parts->count];
    int64_t part = i % parts->count;
    state_name_t name;
    snprintf(name.text, NAME_BYTES, "%s%s", param->name, parts->suffix[part]);
    safetensors_tensor_t key = {.name = name.text};
    sources[i] = bsearch(&key, file->tensors, (size_t)file->count, sizeof key, optim_compare);
    STATUS_TRY(optim_check_tensor(param, name.text, parts->dtype[part], sources[i]));
  }
  if (file->count != count)
    return status_fail(NN_ERR_FORMAT, "has %lld tensors; the model's state has %lld",
                       (long long)file->count, (long long)count);
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

/* Which numbers are still to be read. */
typedef struct rest {
  const safetensors_t *file;
  const param_table_t *table;
  const optim_parts_t *parts;
  const safetensors_tensor_t **sources;
  int64_t next;
} rest_t;

static bool rest_next(void *user, param_item_t *item) {
  rest_t *rest = user;
  int64_t param = rest->next / rest->parts->count, part = rest->next % rest->parts->count;
  if (param == rest->table->count) return false;
  const safetensors_tensor_t *source = rest->sources[rest->next++];
  *item = (param_item_t){
      .param = rest->table->items[param],
      .dtype = rest->parts->dtype[part],
      .buffer = rest->parts->data[part],
      .source = {.map = &rest->file->map, .dtype = source->dtype, .data = source->data}};
  return true;
}

static nn_status_t optim_load(safetensors_t *file, const param_table_t *table,
                              optim_state_t *state, transfer_t *transfer) {
  optim_parts_t parts = optim_parts(state);
  optim_state_t read = *state;
  int64_t count = table->count * parts.count;
  void *memory;
  STATUS_TRY(optim_read_numbers(file, &read));
  STATUS_TRY(mem_alloc((size_t)count, sizeof(safetensors_tensor_t *), &memory));
  const safetensors_tensor_t **sources = memory;
  nn_status_t status = optim_match(file, table, &parts, sources);
  transfer->total = optim_parts_bytes(&parts, table->elements);
  for (int64_t i = 0; i < parts.count; i++) /* numbers that are looked at are read twice */
    if (parts.dtype[i] == NN_F32) transfer->total += table->elements * (int64_t)sizeof(float);
  for (int64_t i = 0; status == NN_OK && i < count; i++)
    if (parts.dtype[i % parts.count] == NN_F32)
      status = optim_check_values(file, sources[i], i % parts.count == STATE_V, transfer);
  rest_t rest = {.file = file, .table = table, .parts = &parts, .sources = sources};
  if (status == NN_OK) status = param_io_read(rest_next, &rest, transfer);
  if (status == NN_OK) *state = read;
  mem_free(memory);
  return status;
}

nn_status_t optim_file_load(const char *path, const param_table_t *table, optim_state_t *state,
                            const atomic_int *cancel, nn_device_t *device) {
  safetensors_t file;
  STATUS_TRY(safetensors_open(path, &file));
  transfer_t transfer = {.cancel = cancel, .device = device};
  nn_status_t status = optim_load(&file, table, state, &transfer);
  safetensors_close(&file);
  return status == NN_OK ? NN_OK : status_prefix(status, "%s", file_show(path).text);
}
