/* How a model folder goes from one model to the next in one step; folder.h says what holds when.
 *
 * A save writes into ".moenn-saving", which nobody reads. Renamed to ".moenn-saved" its files are
 * the model; weight files of the earlier model that they do not replace are then removed. Renamed
 * to ".moenn-moving" they are moved out. A file only ever goes forward along these places, so
 * whoever looks for it in the same order finds it. */
#ifndef NN_FORMAT_STAGING_H
#define NN_FORMAT_STAGING_H

#include "base/file.h"

#define STAGING_CONFIG "config.json"
#define STAGING_WEIGHTS "model.safetensors"
#define STAGING_INDEX "model.safetensors.index.json"
#define STAGING_SHARD "model-%05d-of-%05d.safetensors"

/* Maps the first of these files that the folder's model has, and says which; NN_ERR_NOT_FOUND. */
nn_status_t staging_map(const char *folder, const char *const *names, int32_t count,
                        file_map_t *map, int32_t *which);

/* Says whether this file of the folder's model is the mapped one. */
nn_status_t staging_map_is(const file_map_t *map, const char *folder, const char *name, bool *is);

/* A save under way. */
typedef struct staging {
  const char *folder;            /* the caller's */
  char *saving, *saved, *moving; /* the subfolders; files are written into the first */
  int lock;                      /* of the folder */
  bool made;                     /* the folder was not there */
  bool writing;                  /* the first subfolder is there, and this save's */
} staging_t;

/* Makes the folder if its parent is there, locks it, refuses what stands in the way of a save,
 * finishes what an earlier save left and makes an empty place to write to. Commit or abandon
 * follows. */
nn_status_t staging_begin(const char *folder, staging_t *staging);

/* Makes the files written the folder's model and puts them where others look. A failure says
 * whether the new model is in place by then; if not, the save is abandoned. */
nn_status_t staging_commit(staging_t *staging);

/* Removes what was written, and the folder if it was made for it. Returns status, the failure that
 * led here, whose message stays. */
nn_status_t staging_abandon(staging_t *staging, nn_status_t status);

#endif
