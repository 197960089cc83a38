/* Files: mapped for reading, replaced atomically when written, and the few folder operations that
 * saving needs. Every operation goes through a tap with which tests make it fail. */
#ifndef NN_BASE_FILE_H
#define NN_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "moenn.h"

/* A path as it may stand in a message: of a long one the end, which names the file. */
typedef struct file_shown {
  char text[204];
} file_shown_t;
file_shown_t file_show(const char *path);

/* ---- reading --------------------------------------------------------------------------------- */

/* A regular file in memory, read-only. Who truncates it meanwhile takes the process down (SIGBUS):
 * writers must replace files, as the one below does. */
typedef struct file_map {
  const void *data; /* never NULL once open */
  size_t bytes;
  dev_t device; /* with inode: which file it is, whatever it is called by now */
  ino_t inode;
} file_map_t;

/* NN_ERR_ARGUMENT when the path is empty, NN_ERR_NOT_FOUND when there is no such file, NN_ERR_IO
 * when it cannot be read or is no file. */
nn_status_t file_map(const char *path, file_map_t *map);
void file_unmap(file_map_t *map); /* a zeroed map is left alone */

/* Gives back the memory of a part that was read; it can be read again. */
void file_map_forget(const file_map_t *map, const void *begin, size_t bytes);

/* Lets the process write to its view of the file: what it writes is its own, the file stays as it
 * is. False where the system refuses; the map is then as before. */
bool file_map_own(file_map_t *map);

/* True when path leads to the mapped file now. */
bool file_map_is(const file_map_t *map, const char *path);

/* ---- writing --------------------------------------------------------------------------------- */

/* Writes beside the target ("<path>.tmp", locked against a second writer); commit makes it durable
 * and puts it in the target's place in one step. A zeroed writer is closed. */
typedef struct file_writer {
  char *path, *temporary, *folder;
  int fd;
  int64_t bytes; /* written so far */
} file_writer_t;

/* Whether a file may be put at the path, whatever is there: NN_ERR_ARGUMENT when it is empty,
 * NN_ERR_IO when a folder, a device, a pipe or a socket is there or where a link there leads, or a
 * link into /proc. Another link to a regular file or to nothing may be replaced: itself, never what
 * it leads to. */
nn_status_t file_check_target(const char *path);

/* Refuses at once what file_check_target() refuses. */
nn_status_t file_writer_open(const char *path, file_writer_t *writer);
nn_status_t file_writer_write(file_writer_t *writer, const void *data, size_t bytes);
/* Sync, rename, sync the folder. The writer is closed either way; on failure the target is as
 * before, unless only the last sync failed. */
nn_status_t file_writer_commit(file_writer_t *writer);
/* Closes and removes what was written; a closed writer is left alone. */
void file_writer_discard(file_writer_t *writer);

/* ---- names and folders ----------------------------------------------------------------------- */

/* "folder/name", to be freed with mem_free. */
nn_status_t file_join(const char *folder, const char *name, char **path);

/* The path from the root of the file system, to be freed with mem_free. */
nn_status_t file_absolute(const char *path, char **absolute);

/* False where there is no such file or folder; true also where that cannot be told: opening it says
 * why. */
bool file_exists(const char *path);

bool file_is_folder(const char *path);

/* A symbolic link, wherever it leads. */
bool file_is_link(const char *path);

/* NN_ERR_ARGUMENT when the path is empty, NN_ERR_NOT_FOUND when nothing is there, NN_ERR_IO when it
 * is no folder or that cannot be told. */
nn_status_t file_check_folder(const char *path);

/* Makes one folder, durably; it may be there already. made (or NULL): whether it was not. */
nn_status_t file_make_folder(const char *path, bool *made);

/* Locks a folder against others who do the same, in this process or another; NN_ERR_IO when one
 * holds it. File systems without locks grant it always. file_unlock_folder(-1) does nothing. */
nn_status_t file_lock_folder(const char *path, int *lock);
void file_unlock_folder(int lock);

nn_status_t file_rename(const char *from, const char *to);
nn_status_t file_remove(const char *path);        /* what is not there is no error */
nn_status_t file_remove_folder(const char *path); /* an empty one */
nn_status_t file_sync_folder(const char *path);

/* Calls visit with each name in a folder but "." and ".."; stops at the first failure and returns
 * it. Names may be renamed or removed meanwhile. */
typedef nn_status_t (*file_visit_fn)(void *user, const char *name);
nn_status_t file_list(const char *folder, file_visit_fn visit, void *user);

/* ---- tests ----------------------------------------------------------------------------------- */

/* Called before each operation: "open", "stat", "map", "own", "create", "lock", "truncate",
 * "write", "sync", "rename", "mkdir", "list", "remove", "rmdir". Returns 0, or the errno to fail
 * with; may lower *bytes of a write, which then writes less. NULL takes it out. Not for use while
 * other threads work on files. */
typedef int (*file_tap_fn)(void *user, const char *operation, const char *path, size_t *bytes);
void file_tap(file_tap_fn tap, void *user);

#endif
