#include "format/llmc.h"

#include <string.h>

#include "base/mem.h"
#include "format/param_io.h"
#include "model/config.h"

enum { MAGIC = 20240326, VERSION_F32 = 3, VERSION_BF16 = 5 };
enum { VOCAB_MULTIPLE = 128 }; /* of what is written; what is read may be padded otherwise */

/* Words of the header. */
enum {
  WORD_MAGIC,
  WORD_VERSION,
  WORD_CONTEXT,
  WORD_VOCAB,
  WORD_LAYERS,
  WORD_HEADS,
  WORD_CHANNELS,
  WORD_PADDED_VOCAB,
  WORDS_USED,
  WORDS = 256
};

typedef struct header {
  int32_t words[WORDS];
} header_t;

/* ---- the order of tensors -------------------------------------------------------------------- */

static const param_role_t order[] = {
    PARAM_WTE, PARAM_WPE, /* each of the next twelve once for every layer */
    PARAM_NORM1, PARAM_NORM1_BIAS, PARAM_QKV, PARAM_QKV_BIAS, PARAM_O, PARAM_O_BIAS,
    PARAM_NORM2, PARAM_NORM2_BIAS, PARAM_FC, PARAM_FC_BIAS, PARAM_PROJ, PARAM_PROJ_BIAS,
    PARAM_NORM_FINAL, PARAM_NORM_FINAL_BIAS};
enum { ORDER = sizeof order / sizeof *order };

/* A way through the table in the file's order; zero at first. */
typedef struct cursor {
  int32_t role; /* index into order */
  int64_t item; /* of the table, where layers ascend */
} cursor_t;

/* The next parameter, or false. It is described as a vector of its elements as they are stored:
 * matrices are [out, in] in the file as in the buffer, whatever they are published as. */
static bool cursor_next(cursor_t *cursor, const param_table_t *table, param_t *param) {
  for (; cursor->role < ORDER; cursor->role++, cursor->item = 0)
    while (cursor->item < table->count) {
      const param_t *item = &table->items[cursor->item++];
      if (item->role != order[cursor->role]) continue;
      *param = *item;
      param->ndim = 1;
      param->shape[0] = item->elements;
      param->stride[0] = 1;
      return true;
    }
  return false;
}

/* ---- the header ------------------------------------------------------------------------------ */

static nn_status_t header_check_form(const header_t *header, int32_t *dtype) {
  const int32_t *words = header->words;
  if (words[WORD_MAGIC] != MAGIC)
    return status_fail(NN_ERR_FORMAT, "the magic number is %d; an llm.c model checkpoint's is %d",
                       words[WORD_MAGIC], MAGIC);
  if (words[WORD_VERSION] != VERSION_F32 && words[WORD_VERSION] != VERSION_BF16)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "the checkpoint has version %d; this library reads %d (fp32) and %d (bf16)",
                       words[WORD_VERSION], VERSION_F32, VERSION_BF16);
  /* programs that derive from llm.c put there what changes the form of the tensors */
  for (int i = WORDS_USED; i < WORDS; i++)
    if (words[i])
      return status_fail(NN_ERR_UNSUPPORTED, "word %d of the header is %d; llm.c leaves it 0", i,
                         words[i]);
  *dtype = words[WORD_VERSION] == VERSION_F32 ? NN_F32 : NN_BF16;
  return NN_OK;
}

static nn_status_t header_check_sizes(const header_t *header) {
  static const char *const names[WORDS_USED] = {
      [WORD_CONTEXT] = "max_seq_len",   [WORD_VOCAB] = "vocab_size",
      [WORD_LAYERS] = "num_layers",     [WORD_HEADS] = "num_heads",
      [WORD_CHANNELS] = "channels",     [WORD_PADDED_VOCAB] = "padded_vocab_size"};
  const int32_t *words = header->words;
  for (int i = WORD_CONTEXT; i < WORDS_USED; i++)
    if (words[i] < 1)
      return status_fail(NN_ERR_FORMAT, "the header's %s is %d; it must be at least 1", names[i],
                         words[i]);
  if (words[WORD_CHANNELS] % words[WORD_HEADS])
    return status_fail(NN_ERR_FORMAT,
                       "the header's channels is %d; num_heads, which is %d, must divide it",
                       words[WORD_CHANNELS], words[WORD_HEADS]);
  if (words[WORD_PADDED_VOCAB] < words[WORD_VOCAB])
    return status_fail(NN_ERR_FORMAT,
                       "the header's padded_vocab_size is %d, less than vocab_size, which is %d",
                       words[WORD_PADDED_VOCAB], words[WORD_VOCAB]);
  return NN_OK;
}

/* What the format says of every model, and does not write down. */
static const float layer_norm_eps = 1e-5f;
static int64_t ffn_of(int64_t channels) { return 4 * channels; }

/* What is refused here is in order as a file, and too large for the library. */
static nn_status_t header_configure(const header_t *header, nn_model_config_t *config) {
  const int32_t *words = header->words;
  nn_model_config_t made = {.struct_size = sizeof made,
                            .family = NN_FAMILY_GPT2,
                            .norm = NN_NORM_LAYER,
                            .position = NN_POSITION_LEARNED,
                            .ffn_kind = NN_FFN_GELU_TANH,
                            .vocab_size = words[WORD_VOCAB],
                            .context = words[WORD_CONTEXT],
                            .layers = words[WORD_LAYERS],
                            .hidden = words[WORD_CHANNELS],
                            .heads = words[WORD_HEADS],
                            .ffn = ffn_of(words[WORD_CHANNELS]),
                            .biases = NN_BIAS_ALL,
                            .tied_head = 1,
                            .norm_eps = layer_norm_eps};
  nn_status_t status = config_validate(&made);
  if (status != NN_OK) return status == NN_ERR_ARGUMENT ? NN_ERR_UNSUPPORTED : status;
  *config = made;
  return NN_OK;
}

/* Bytes of all tensors, padding included. */
static nn_status_t llmc_count(const nn_model_config_t *config, int64_t padding, int32_t dtype,
                              int64_t *bytes) {
  param_table_t counts;
  int64_t elements;
  STATUS_TRY(param_table_count(config, &counts));
  if (!mem_add(counts.elements, padding, &elements) ||
      !mem_mul(elements, (int64_t)nn_dtype_bytes(dtype), bytes))
    return status_fail(NN_ERR_UNSUPPORTED,
                       "%lld parameters and %lld elements of padding are too many for a file",
                       (long long)counts.elements, (long long)padding);
  return NN_OK;
}

/* ---- reading --------------------------------------------------------------------------------- */

nn_status_t llmc_parse(const unsigned char *data, size_t bytes, llmc_t *file) {
  header_t header;
  if (bytes < sizeof header)
    return status_fail(NN_ERR_FORMAT,
                       "%zu bytes are too few for an llm.c model checkpoint's header of %zu", bytes,
                       sizeof header);
  memcpy(&header, data, sizeof header);
  llmc_t parsed = {.data = data + sizeof header};
  STATUS_TRY(header_check_form(&header, &parsed.dtype));
  STATUS_TRY(header_check_sizes(&header));
  STATUS_TRY(header_configure(&header, &parsed.config));
  parsed.padding =
      (header.words[WORD_PADDED_VOCAB] - parsed.config.vocab_size) * parsed.config.hidden;
  STATUS_TRY(llmc_count(&parsed.config, parsed.padding, parsed.dtype, &parsed.bytes));
  if ((uint64_t)parsed.bytes != bytes - sizeof header)
    return status_fail(NN_ERR_FORMAT,
                       "its header asks for %lld bytes of tensors, and %zu bytes follow it",
                       (long long)parsed.bytes, bytes - sizeof header);
  *file = parsed;
  return NN_OK;
}

nn_status_t llmc_open(const char *path, llmc_t *file) {
  file_map_t map;
  STATUS_TRY(file_map(path, &map));
  nn_status_t status = llmc_parse(map.data, map.bytes, file);
  if (status != NN_OK) {
    file_unmap(&map);
    return status_prefix(status, "%s", file_show(path).text);
  }
  file->map = map;
  return NN_OK;
}

void llmc_close(llmc_t *file) {
  file_unmap(&file->map);
  *file = (llmc_t){0};
}

/* Which parameters are still to be read, and where the next one begins. */
typedef struct rest {
  const llmc_t *file;
  const param_table_t *table;
  cursor_t cursor;
  param_source_t source;
  int32_t dtype;
  void *buffer;
} rest_t;

static bool rest_next(void *user, param_item_t *item) {
  rest_t *rest = user;
  *item = (param_item_t){.dtype = rest->dtype, .buffer = rest->buffer, .source = rest->source};
  if (!cursor_next(&rest->cursor, rest->table, &item->param)) return false;
  int64_t elements = item->param.elements;
  if (item->param.role == PARAM_WTE) elements += rest->file->padding;
  rest->source.data += (size_t)elements * nn_dtype_bytes(rest->file->dtype);
  return true;
}

nn_status_t llmc_read(const llmc_t *file, const param_table_t *table, int32_t dtype, void *buffer,
                      nn_progress_fn progress, void *user, const atomic_int *cancel,
                      nn_device_t *device) {
  transfer_t transfer = {.progress = progress, .user = user, .cancel = cancel, .device = device,
                         .done = file->padding * (int64_t)nn_dtype_bytes(file->dtype),
                         .total = file->bytes};
  rest_t rest = {.file = file, .table = table, .dtype = dtype, .buffer = buffer};
  rest.source = (param_source_t){.map = &file->map, .dtype = file->dtype, .data = file->data};
  return param_io_read(rest_next, &rest, &transfer);
}

/* ---- writing --------------------------------------------------------------------------------- */

/* The family's configurations share all that llm.c's models do but for these. */
static nn_status_t llmc_check_config(const nn_model_config_t *config) {
  static const int64_t most_vocab = INT32_MAX / VOCAB_MULTIPLE * VOCAB_MULTIPLE;
  if (config->family != NN_FAMILY_GPT2)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "family is %d; an llm.c checkpoint holds NN_FAMILY_GPT2 alone, which is %d",
                       config->family, NN_FAMILY_GPT2);
  if (config->ffn != ffn_of(config->hidden))
    return status_fail(NN_ERR_UNSUPPORTED,
                       "ffn is %lld; an llm.c checkpoint needs 4 x hidden, which is %lld",
                       (long long)config->ffn, (long long)ffn_of(config->hidden));
  if (config->norm_eps != layer_norm_eps)
    return status_fail(NN_ERR_UNSUPPORTED, "norm_eps is %g; an llm.c checkpoint needs %g",
                       (double)config->norm_eps, (double)layer_norm_eps);
  if (config->vocab_size > most_vocab)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "vocab_size is %lld; an llm.c checkpoint has at most %lld",
                       (long long)config->vocab_size, (long long)most_vocab);
  return NN_OK;
}

static int64_t vocab_padded(int64_t vocab) {
  return (vocab + VOCAB_MULTIPLE - 1) / VOCAB_MULTIPLE * VOCAB_MULTIPLE;
}

static nn_status_t save_header(const nn_model_config_t *config, int32_t dtype,
                               file_writer_t *writer) {
  const header_t header = {{[WORD_MAGIC] = MAGIC,
                            [WORD_VERSION] = dtype == NN_F32 ? VERSION_F32 : VERSION_BF16,
                            [WORD_CONTEXT] = (int32_t)config->context,
                            [WORD_VOCAB] = (int32_t)config->vocab_size,
                            [WORD_LAYERS] = (int32_t)config->layers,
                            [WORD_HEADS] = (int32_t)config->heads,
                            [WORD_CHANNELS] = (int32_t)config->hidden,
                            [WORD_PADDED_VOCAB] = (int32_t)vocab_padded(config->vocab_size)}};
  return file_writer_write(writer, &header, sizeof header);
}

/* Less than VOCAB_MULTIPLE rows of wte. */
static nn_status_t save_padding(int64_t bytes, file_writer_t *writer, transfer_t *transfer) {
  void *zeros;
  STATUS_TRY(mem_alloc((size_t)bytes, 1, &zeros));
  nn_status_t status = file_writer_write(writer, zeros, (size_t)bytes);
  mem_free(zeros);
  return status == NN_OK ? transfer_advance(transfer, bytes) : status;
}

static nn_status_t save_tensors(const param_table_t *table, int32_t dtype, const void *buffer,
                                int64_t padding, file_writer_t *writer, transfer_t *transfer) {
  param_t param;
  for (cursor_t cursor = {0}; cursor_next(&cursor, table, &param);) {
    STATUS_TRY(param_io_write(&param, dtype, buffer, writer, transfer));
    if (param.role == PARAM_WTE && padding)
      STATUS_TRY(save_padding(padding * (int64_t)nn_dtype_bytes(dtype), writer, transfer));
  }
  return NN_OK;
}

nn_status_t llmc_save(const char *path, const nn_model_config_t *config, const param_table_t *table,
                      int32_t dtype, const void *buffer, nn_progress_fn progress, void *user,
                      const atomic_int *cancel, nn_device_t *device) {
  STATUS_TRY(llmc_check_config(config));
  if (dtype == NN_F16)
    return status_fail(NN_ERR_UNSUPPORTED, "llm.c's files hold fp32 or bf16, not fp16 parameters");
  transfer_t transfer = {.progress = progress, .user = user, .cancel = cancel, .device = device};
  int64_t padding = (vocab_padded(config->vocab_size) - config->vocab_size) * config->hidden;
  STATUS_TRY(llmc_count(config, padding, dtype, &transfer.total));
  file_writer_t writer = {0};
  STATUS_TRY(file_writer_open(path, &writer));
  nn_status_t status = save_header(config, dtype, &writer);
  if (status == NN_OK) status = save_tensors(table, dtype, buffer, padding, &writer, &transfer);
  if (status == NN_OK) return file_writer_commit(&writer);
  file_writer_discard(&writer);
  return status;
}
