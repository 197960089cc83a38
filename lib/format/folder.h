/* Hugging Face model folders: config.json with model.safetensors, or with its shards and their
 * index.
 *
 * Saving is atomic. The new files are written into the subfolder ".moenn-saving"; renaming that to
 * ".moenn-saved" is the one step that makes the new model the folder's model. Then files of the
 * earlier model that have no successor are removed, the subfolder is renamed to ".moenn-moving",
 * its files are moved out over the earlier ones, and it is removed. A reader looks for each file in
 * these two subfolders first, and begins again when config.json was replaced while it opened the
 * others, so at every moment, and after a kill or a power cut at any point, it finds exactly the
 * earlier model or exactly the new one. The next save finishes what a killed one left.
 *
 * Programs that do not know the subfolders see the earlier model until files are moved, and the new
 * one after; killed in between, single files of either, each whole. */
#ifndef NN_FORMAT_FOLDER_H
#define NN_FORMAT_FOLDER_H

#include "base/tensor.h"
#include "format/param_io.h"
#include "format/safetensors.h"
#include "format/transfer.h"
#include "model/params.h"

/* A folder that was checked: its files are mapped, and they hold every parameter in its shape, in a
 * dtype that can be converted, and nothing that is not understood. */
typedef struct folder {
  nn_model_config_t config; /* validated */
  param_table_t table;      /* of the configuration */
  int32_t dtype;            /* of the first parameter: NN_F32, NN_BF16 or NN_F16 */
  safetensors_t *files;
  int64_t file_count;
  param_source_t *sources; /* [table.count] */
} folder_t;

/* A failure names the file and the tensor. Takes memory in proportion to the files' headers. Where
 * config.json ties the head to the embedding, an lm_head.weight in the files is left unread,
 * whatever it holds: the embedding wins. */
nn_status_t folder_open(const char *path, folder_t *folder);

/* Gives the parameter buffer that the file's own data is: where there is one file, laid out as the
 * buffer, of dtype, and the device reads host memory. The folder may be closed then; what is
 * written to the buffer does not reach the file, and the file must not be changed in place while
 * the buffer lives. Its bytes count as held by the device, though pages that nobody wrote to belong
 * to the system's cache of the file. NULL: the folder is to be read. */
nn_status_t folder_map(folder_t *folder, nn_device_t *device, int32_t dtype, storage_t **buffer);

/* Writes every parameter, converted, to its place in a buffer of table.elements of dtype (NN_F32,
 * NN_BF16 or NN_F16), or of none, where folder_map() gave one. progress (or NULL) hears of bytes of
 * the files; cancel may be NULL. device:
 * whose memory the buffer is, or NULL: host memory; so everywhere here. */
nn_status_t folder_read(const folder_t *folder, int32_t dtype, void *buffer,
                        nn_progress_fn progress, void *user, const atomic_int *cancel,
                        nn_device_t *device);

void folder_close(folder_t *folder); /* a zeroed one is left alone */

/* Saves a buffer of table.elements of dtype (as above) under the configuration that the
 * table was built from. Makes the folder if its parent is there, and removes it again if the save
 * then fails. Other files in it are left alone. Tensors come in the order of the buffer, so that a
 * single file can be mapped as one. shard_bytes: most bytes of tensor data in a file, 0: 5e10; a
 * larger tensor has its own file. source: the folder that the model was loaded from, whose files
 * beside the model are carried over (folder_carry.h), or NULL. */
nn_status_t folder_save(const char *path, const nn_model_config_t *config,
                        const param_table_t *table, int32_t dtype, const void *buffer,
                        int64_t shard_bytes, nn_progress_fn progress, void *user,
                        const atomic_int *cancel, nn_device_t *device, const char *source);

#endif
