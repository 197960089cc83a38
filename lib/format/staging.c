#include "format/staging.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/status.h"
#include "format/name_show.h"

static const char saving[] = ".moenn-saving", saved[] = ".moenn-saved", moving[] = ".moenn-moving";

/* ---- looking --------------------------------------------------------------------------------- */

/* Places of the model's files, in the order in which files go through them. */
enum { PLACES = 3 };
static const char *const places[PLACES] = {saved, moving, "."};

/* "folder/place/name"; the last place is the folder itself. */
static nn_status_t staging_path(const char *folder, int place, const char *name, char **path) {
  if (place == PLACES - 1) return file_join(folder, name, path);
  char *inside;
  STATUS_TRY(file_join(folder, places[place], &inside));
  nn_status_t status = file_join(inside, name, path);
  mem_free(inside);
  return status;
}

nn_status_t staging_map(const char *folder, const char *const *names, int32_t count,
                        file_map_t *map, int32_t *which) {
  for (int place = 0; place < PLACES; place++) {
    for (int32_t i = 0; i < count; i++) {
      char *path;
      STATUS_TRY(staging_path(folder, place, names[i], &path));
      /* looked for before it is opened, since a failure would leave its message behind */
      nn_status_t status = file_exists(path) ? file_map(path, map) : NN_ERR_NOT_FOUND;
      mem_free(path);
      if (status == NN_OK) *which = i;
      if (status != NN_ERR_NOT_FOUND) return status;
    }
  }
  return status_fail(NN_ERR_NOT_FOUND, "%s: holds no %s%s%s", file_show(folder).text,
                     name_show(names[0]).text, count > 1 ? " and no " : "",
                     count > 1 ? names[1] : "");
}

nn_status_t staging_map_is(const file_map_t *map, const char *folder, const char *name, bool *is) {
  bool exists = false;
  *is = false;
  for (int place = 0; place < PLACES && !exists; place++) {
    char *path;
    STATUS_TRY(staging_path(folder, place, name, &path));
    exists = file_exists(path);
    *is = exists && file_map_is(map, path);
    mem_free(path);
  }
  return NN_OK;
}

/* ---- steps over the files of a place --------------------------------------------------------- */

typedef struct step {
  const char *from, *to; /* folders */
  bool found;
} step_t;

static nn_status_t step_remove(void *user, const char *name) {
  step_t *step = user;
  char *path;
  STATUS_TRY(file_join(step->from, name, &path));
  nn_status_t status = file_remove(path);
  mem_free(path);
  step->found = true;
  return status;
}

static nn_status_t step_move(void *user, const char *name) {
  step_t *step = user;
  char *from, *to;
  STATUS_TRY(file_join(step->from, name, &from));
  nn_status_t status = file_join(step->to, name, &to);
  if (status == NN_OK) {
    status = file_rename(from, to);
    mem_free(to);
  }
  mem_free(from);
  step->found = true;
  return status;
}

/* model.safetensors, its index, or a shard, of whatever number. */
static bool staging_is_weights(const char *name) {
  if (strcmp(name, STAGING_WEIGHTS) == 0 || strcmp(name, STAGING_INDEX) == 0) return true;
  static const char pattern[] = "model-#####-of-#####.safetensors";
  if (strlen(name) != sizeof pattern - 1) return false;
  for (size_t i = 0; i < sizeof pattern - 1; i++) {
    bool digit = name[i] >= '0' && name[i] <= '9';
    if (pattern[i] == '#' ? !digit : name[i] != pattern[i]) return false;
  }
  return true;
}

/* Removes a weight file of the folder `from` that the folder `to` does not replace. */
static nn_status_t step_remove_stale(void *user, const char *name) {
  step_t *step = user;
  if (!staging_is_weights(name)) return NN_OK;
  char *successor;
  STATUS_TRY(file_join(step->to, name, &successor));
  bool replaced = file_exists(successor);
  mem_free(successor);
  return replaced ? NN_OK : step_remove(step, name);
}

/* Lists until nothing is found: a listing may miss names while others go. */
static nn_status_t step_all(file_visit_fn visit, const char *from, const char *to) {
  step_t step = {.from = from, .to = to, .found = true};
  while (step.found) {
    step.found = false;
    STATUS_TRY(file_list(from, visit, &step));
  }
  return NN_OK;
}

/* ---- from one model to the next -------------------------------------------------------------- */

/* ".moenn-saved" is there: what stands in its files' way goes. */
static nn_status_t staging_clear_way(const staging_t *staging) {
  STATUS_TRY(step_all(step_remove_stale, staging->folder, staging->saved));
  STATUS_TRY(file_sync_folder(staging->folder));
  STATUS_TRY(file_rename(staging->saved, staging->moving));
  return file_sync_folder(staging->folder);
}

/* ".moenn-moving" is there: its files come out. */
static nn_status_t staging_move_out(const staging_t *staging) {
  STATUS_TRY(step_all(step_move, staging->moving, staging->folder));
  STATUS_TRY(file_sync_folder(staging->folder));
  STATUS_TRY(file_remove_folder(staging->moving));
  return file_sync_folder(staging->folder);
}

static nn_status_t staging_finish(const staging_t *staging) {
  if (file_exists(staging->moving)) STATUS_TRY(staging_move_out(staging));
  if (!file_exists(staging->saved)) return NN_OK;
  STATUS_TRY(staging_clear_way(staging));
  return staging_move_out(staging);
}

/* ---- a save ---------------------------------------------------------------------------------- */

static void staging_end(staging_t *staging) {
  file_unlock_folder(staging->lock);
  mem_free(staging->saving);
  mem_free(staging->saved);
  mem_free(staging->moving);
  *staging = (staging_t){.lock = -1};
}

nn_status_t staging_abandon(staging_t *staging, nn_status_t status) {
  char message[512];
  snprintf(message, sizeof message, "%s", nn_last_error());
  /* as far as it goes: the next save clears what is left; what others write is theirs */
  if (staging->writing && step_all(step_remove, staging->saving, NULL) == NN_OK)
    file_remove_folder(staging->saving);
  if (staging->made) file_remove_folder(staging->folder);
  staging_end(staging);
  return status_fail(status, "%s", message);
}

/* What stands where a file of the model belongs and is no file. */
static nn_status_t step_check_target(void *user, const char *name) {
  const step_t *step = user;
  if (!staging_is_weights(name) && strcmp(name, STAGING_CONFIG) != 0) return NN_OK;
  char *path;
  STATUS_TRY(file_join(step->from, name, &path));
  nn_status_t status = file_check_target(path);
  mem_free(path);
  if (status == NN_OK) return NN_OK;
  return status_prefix(status, "a save needs this name for a file; move it away");
}

/* What could fail between a save's first step and its last is found before the first. */
static nn_status_t staging_check_way(const staging_t *staging) {
  const char *paths[] = {staging->saving, staging->saved, staging->moving};
  for (int i = 0; i < 3; i++) {
    nn_status_t status = NN_OK;
    if (file_is_link(paths[i])) /* what it leads to is not a save's to clear */
      status = status_fail(NN_ERR_IO, "%s: is a symbolic link", file_show(paths[i]).text);
    else if (file_exists(paths[i]))
      status = file_check_folder(paths[i]);
    if (status != NN_OK)
      return status_prefix(status, "a save needs this name for a folder of its own; move it away");
  }
  step_t step = {.from = staging->folder};
  return file_list(staging->folder, step_check_target, &step);
}

nn_status_t staging_begin(const char *folder, staging_t *staging) {
  staging_t begun = {.folder = folder, .lock = -1};
  nn_status_t status = file_make_folder(folder, &begun.made);
  if (status == NN_OK) status = file_lock_folder(folder, &begun.lock);
  if (status == NN_OK) status = file_join(folder, saving, &begun.saving);
  if (status == NN_OK) status = file_join(folder, saved, &begun.saved);
  if (status == NN_OK) status = file_join(folder, moving, &begun.moving);
  if (status == NN_OK) status = staging_check_way(&begun);
  if (status == NN_OK) status = staging_finish(&begun);
  if (status == NN_OK) status = file_make_folder(begun.saving, NULL);
  begun.writing = status == NN_OK;
  if (status == NN_OK) status = step_all(step_remove, begun.saving, NULL);
  if (status != NN_OK) return staging_abandon(&begun, status);
  *staging = begun;
  return NN_OK;
}

nn_status_t staging_commit(staging_t *staging) {
  nn_status_t status = file_rename(staging->saving, staging->saved);
  if (status != NN_OK) return staging_abandon(staging, status);
  status = file_sync_folder(staging->folder);
  if (status == NN_OK) status = staging_finish(staging);
  if (status != NN_OK)
    status_prefix(
        status,
        "the new model is saved, but not all of its files are moved to their place, which "
        "the next save does");
  staging_end(staging);
  return status;
}
