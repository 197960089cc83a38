/* llm.c model checkpoints: GPT-2 in one file.
 *
 * 256 int32 (magic 20240326; version 3 with fp32 tensors, 5 with bf16; max_seq_len, vocab_size,
 * num_layers, num_heads, channels C, padded_vocab_size; zeros), then wte [padded_vocab_size, C],
 * wpe [max_seq_len, C], of each the tensors of all layers in turn ln1w [C], ln1b [C], qkvw [3C, C],
 * qkvb [3C], attprojw [C, C], attprojb [C], ln2w [C], ln2b [C], fcw [4C, C], fcb [4C],
 * fcprojw [C, 4C], fcprojb [C], and lnfw [C], lnfb [C]; row-major, little-endian, without gaps. */
#ifndef NN_FORMAT_LLMC_H
#define NN_FORMAT_LLMC_H

#include "base/file.h"
#include "format/transfer.h"
#include "model/params.h"

/* A file that was checked: its header is understood, and it has exactly the bytes that follow from
 * it. */
typedef struct llmc {
  file_map_t map;           /* zero when parsed from memory */
  nn_model_config_t config; /* validated */
  int32_t dtype;            /* NN_F32 or NN_BF16 */
  int64_t padding;          /* elements of wte behind the vocabulary's rows */
  const unsigned char *data; /* the tensors */
  int64_t bytes;             /* of data */
} llmc_t;

/* Maps a file and checks its header and size; takes no memory. A failure names the path. */
nn_status_t llmc_open(const char *path, llmc_t *file);
/* The same for a file in memory, which must outlive it; messages name no path. */
nn_status_t llmc_parse(const unsigned char *data, size_t bytes, llmc_t *file);
void llmc_close(llmc_t *file); /* a zeroed one is left alone */

/* Writes every parameter, converted, to its place in a buffer of dtype (NN_F32 or NN_BF16) that the
 * table of file->config lays out. progress (or NULL) hears of bytes of tensors; cancel may be NULL.
 * device: whose memory the buffer is, or NULL: host memory; so everywhere here. */
nn_status_t llmc_read(const llmc_t *file, const param_table_t *table, int32_t dtype, void *buffer,
                      nn_progress_fn progress, void *user, const atomic_int *cancel,
                      nn_device_t *device);

/* Saves a buffer of dtype (NN_F32 or NN_BF16) under the validated configuration that the table was
 * built from, whole or not at all. NN_ERR_UNSUPPORTED names what the format has no place for. */
nn_status_t llmc_save(const char *path, const nn_model_config_t *config, const param_table_t *table,
                      int32_t dtype, const void *buffer, nn_progress_fn progress, void *user,
                      const atomic_int *cancel, nn_device_t *device);

#endif
