#define _DEFAULT_SOURCE /* flock, madvise */
#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/status.h"

/* ---- the tap --------------------------------------------------------------------------------- */

static file_tap_fn tap_fn;
static void *tap_user;

void file_tap(file_tap_fn tap, void *user) {
  tap_fn = tap;
  tap_user = user;
}

/* True, with errno set, when the operation is to fail. bytes is NULL but for writes. */
static bool file_tapped(const char *operation, const char *path, size_t *bytes) {
  int error = tap_fn ? tap_fn(tap_user, operation, path, bytes) : 0;
  if (error) errno = error;
  return error != 0;
}

/* The status and message of errno. */
static nn_status_t file_failed(const char *what, const char *path) {
  int error = errno;
  nn_status_t status = error == ENOENT   ? NN_ERR_NOT_FOUND
                       : error == ENOMEM ? NN_ERR_MEMORY
                                         : NN_ERR_IO;
  char reason[128];
  if (strerror_r(error, reason, sizeof reason)) snprintf(reason, sizeof reason, "error %d", error);
  return status_fail(status, "%s: %s: %s", file_show(path).text, what, reason);
}

file_shown_t file_show(const char *path) {
  enum { ROOM = sizeof(file_shown_t) - sizeof "..." };
  file_shown_t shown;
  size_t length = strlen(path);
  const char *end = length > ROOM ? path + length - ROOM : path;
  if (end != path)
    while (((unsigned char)*end & 0xc0) == 0x80) end++; /* the cut is not inside of a character */
  snprintf(shown.text, sizeof shown.text, "%s%s", end == path ? "" : "...", end);
  return shown;
}

static nn_status_t file_check_path(const char *path) {
  return path[0] ? NN_OK : status_fail(NN_ERR_ARGUMENT, "the path is empty");
}

/* ---- reading --------------------------------------------------------------------------------- */

static int file_open(const char *path, int flags) {
  if (file_tapped("open", path, NULL)) return -1;
  int fd;
  do fd = open(path, flags | O_CLOEXEC);
  while (fd < 0 && errno == EINTR);
  return fd;
}

static nn_status_t file_map_fd(const char *path, int fd, file_map_t *map) {
  struct stat info;
  if (file_tapped("stat", path, NULL) || fstat(fd, &info))
    return file_failed("cannot be examined", path);
  if (!S_ISREG(info.st_mode))
    return status_fail(NN_ERR_IO, "%s: is not a regular file", file_show(path).text);
  if ((uintmax_t)info.st_size > PTRDIFF_MAX)
    return status_fail(NN_ERR_IO, "%s: its %lld bytes cannot be mapped", file_show(path).text,
                       (long long)info.st_size);
  file_map_t made = {.data = "", .bytes = (size_t)info.st_size};
  made.device = info.st_dev;
  made.inode = info.st_ino;
  if (made.bytes) {
    void *data = file_tapped("map", path, NULL)
                     ? MAP_FAILED
                     : mmap(NULL, made.bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) return file_failed("cannot be mapped", path);
    made.data = data;
  }
  *map = made;
  return NN_OK;
}

nn_status_t file_map(const char *path, file_map_t *map) {
  STATUS_TRY(file_check_path(path));
  /* O_NONBLOCK: opening a named pipe must not wait for its writer */
  int fd = file_open(path, O_RDONLY | O_NONBLOCK);
  if (fd < 0) return file_failed("cannot be opened", path);
  nn_status_t status = file_map_fd(path, fd, map);
  close(fd);
  return status;
}

void file_unmap(file_map_t *map) {
  if (map->bytes) munmap((void *)(uintptr_t)map->data, map->bytes);
  *map = (file_map_t){0};
}

void file_map_forget(const file_map_t *map, const void *begin, size_t bytes) {
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), base = (uintptr_t)map->data;
  uintptr_t first = ((uintptr_t)begin + page - 1) / page * page;
  uintptr_t last = ((uintptr_t)begin + bytes) / page * page;
  /* only advice: a refusal costs memory that the system takes back when it needs it */
  if (map->bytes && first >= base && first < last)
    madvise((void *)first, last - first, MADV_DONTNEED);
}

bool file_map_own(file_map_t *map) {
  if (!map->bytes || file_tapped("own", "", NULL)) return false;
  void *data = (void *)(uintptr_t)map->data;
  if (mprotect(data, map->bytes, PROT_READ | PROT_WRITE)) return false;
  madvise(data, map->bytes, MADV_WILLNEED); /* advice: what is not in memory begins to be read */
  return true;
}

bool file_map_is(const file_map_t *map, const char *path) {
  struct stat info;
  if (stat(path, &info)) return false;
  return info.st_dev == map->device && info.st_ino == map->inode;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* A copy of the first bytes of a text and a suffix. */
static nn_status_t file_text(const char *text, size_t bytes, const char *suffix, char **copy) {
  void *made;
  STATUS_TRY(mem_alloc(bytes + strlen(suffix) + 1, 1, &made));
  memcpy(made, text, bytes);
  memcpy((char *)made + bytes, suffix, strlen(suffix) + 1);
  *copy = made;
  return NN_OK;
}

/* The folder that a path lies in. */
static nn_status_t file_parent(const char *path, char **parent) {
  size_t length = strlen(path);
  while (length && path[length - 1] == '/') length--;
  while (length && path[length - 1] != '/') length--;
  return length ? file_text(path, length, "", parent) : file_text(".", 1, "", parent);
}

/* Opens and locks the temporary. A writer that held the lock before may have renamed the file away
 * between the two, so its name is checked again under the lock. */
static nn_status_t file_writer_claim(const char *temporary, int *claimed) {
  for (;;) {
    if (file_tapped("create", temporary, NULL)) return file_failed("cannot be created", temporary);
    /* O_NOFOLLOW: a link of that name leads to somebody's file, which is no temporary */
    int fd = open(temporary, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
    if (fd < 0 && errno == EINTR) continue;
    if (fd < 0) return file_failed("cannot be created", temporary);
    bool refused = file_tapped("lock", temporary, NULL) || flock(fd, LOCK_EX | LOCK_NB);
    if (refused && errno == EWOULDBLOCK) {
      close(fd);
      return status_fail(NN_ERR_IO, "%s: another save is writing it; try again when it is done",
                         file_show(temporary).text);
    }
    struct stat held, named;
    bool regular = fstat(fd, &held) == 0 && S_ISREG(held.st_mode);
    if (!regular) {
      close(fd);
      return status_fail(NN_ERR_IO, "%s: is not a regular file", file_show(temporary).text);
    }
    if (stat(temporary, &named) == 0 && named.st_ino == held.st_ino &&
        named.st_dev == held.st_dev) {
      *claimed = fd;
      return NN_OK;
    }
    close(fd);
  }
}

/* A link to what a process has open, as /dev/stdout is. */
static bool file_is_stream(const char *path) {
  char target[sizeof "/proc/"] = "";
  return readlink(path, target, sizeof target - 1) > 0 && strcmp(target, "/proc/") == 0;
}

nn_status_t file_check_target(const char *path) {
  STATUS_TRY(file_check_path(path));
  struct stat info;
  bool there = stat(path, &info) == 0;
  if (path[strlen(path) - 1] == '/' || (there && S_ISDIR(info.st_mode)))
    return status_fail(NN_ERR_IO, "%s: is a folder; a file cannot take its place",
                       file_show(path).text);
  if ((there && !S_ISREG(info.st_mode)) || file_is_stream(path)) /* rename would replace it */
    return status_fail(NN_ERR_IO,
                       "%s: is a device, a pipe, a socket or a process's stream; a file must not "
                       "replace it", file_show(path).text);
  return NN_OK;
}

nn_status_t file_writer_open(const char *path, file_writer_t *writer) {
  STATUS_TRY(file_check_target(path));
  file_writer_t made = {.fd = -1};
  nn_status_t status = file_text(path, strlen(path), "", &made.path);
  if (status == NN_OK) status = file_text(path, strlen(path), ".tmp", &made.temporary);
  if (status == NN_OK) status = file_parent(path, &made.folder);
  if (status == NN_OK) status = file_writer_claim(made.temporary, &made.fd);
  if (status == NN_OK && (file_tapped("truncate", made.temporary, NULL) || ftruncate(made.fd, 0)))
    status = file_failed("cannot be emptied", made.temporary);
  if (status != NN_OK) {
    file_writer_discard(&made);
    return status;
  }
  *writer = made;
  return NN_OK;
}

nn_status_t file_writer_write(file_writer_t *writer, const void *data, size_t bytes) {
  const char *at = data;
  while (bytes) {
    size_t asked = bytes < 1 << 30 ? bytes : 1 << 30;
    ssize_t wrote =
        file_tapped("write", writer->temporary, &asked) ? -1 : write(writer->fd, at, asked);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return file_failed("cannot be written", writer->temporary);
    at += wrote;
    bytes -= (size_t)wrote;
    writer->bytes += wrote;
  }
  return NN_OK;
}

/* Closes without removing. */
static void file_writer_close(file_writer_t *writer) {
  if (writer->fd >= 0) close(writer->fd);
  mem_free(writer->path);
  mem_free(writer->temporary);
  mem_free(writer->folder);
  *writer = (file_writer_t){.fd = -1};
}

void file_writer_discard(file_writer_t *writer) {
  if (!writer->path) return;
  if (writer->fd >= 0) unlink(writer->temporary);
  file_writer_close(writer);
}

nn_status_t file_writer_commit(file_writer_t *writer) {
  nn_status_t status = NN_OK;
  if (file_tapped("sync", writer->temporary, NULL) || fsync(writer->fd))
    status = file_failed("cannot be synced", writer->temporary);
  /* renamed before it is closed: the lock must hold until the temporary's name is gone */
  if (status == NN_OK) status = file_rename(writer->temporary, writer->path);
  if (status != NN_OK) {
    file_writer_discard(writer);
    return status;
  }
  status = file_sync_folder(writer->folder);
  file_writer_close(writer);
  return status;
}

/* ---- names and folders ----------------------------------------------------------------------- */

nn_status_t file_join(const char *folder, const char *name, char **path) {
  size_t length = strlen(folder);
  void *joined;
  STATUS_TRY(mem_alloc(length + strlen(name) + 2, 1, &joined));
  *path = joined;
  memcpy(*path, folder, length);
  (*path)[length] = '/';
  memcpy(*path + length + 1, name, strlen(name) + 1);
  return NN_OK;
}

nn_status_t file_absolute(const char *path, char **absolute) {
  char found[PATH_MAX];
  if (!realpath(path, found)) return file_failed("its place cannot be told", path);
  return file_text(found, strlen(found), "", absolute);
}

bool file_exists(const char *path) {
  struct stat info;
  return stat(path, &info) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

bool file_is_folder(const char *path) {
  struct stat info;
  return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool file_is_link(const char *path) {
  struct stat info;
  return lstat(path, &info) == 0 && S_ISLNK(info.st_mode);
}

nn_status_t file_check_folder(const char *path) {
  STATUS_TRY(file_check_path(path));
  struct stat info;
  if (stat(path, &info)) return file_failed("the folder cannot be examined", path);
  if (S_ISDIR(info.st_mode)) return NN_OK;
  return status_fail(NN_ERR_IO, "%s: is not a folder", file_show(path).text);
}

nn_status_t file_make_folder(const char *path, bool *made) {
  if (made) *made = false;
  STATUS_TRY(file_check_path(path));
  if (file_is_folder(path)) return NN_OK;
  char *parent;
  STATUS_TRY(file_parent(path, &parent));
  nn_status_t status = NN_OK;
  if (file_tapped("mkdir", path, NULL) || mkdir(path, 0777)) {
    status = file_failed("the folder cannot be made", path);
  } else {
    status = file_sync_folder(parent);
    if (status != NN_OK) rmdir(path);
    if (made) *made = status == NN_OK;
  }
  mem_free(parent);
  return status;
}

nn_status_t file_lock_folder(const char *path, int *lock) {
  int fd = file_open(path, O_RDONLY | O_DIRECTORY);
  if (fd < 0) return file_failed("the folder cannot be opened", path);
  bool refused = file_tapped("lock", path, NULL) || flock(fd, LOCK_EX | LOCK_NB);
  if (refused && errno == EWOULDBLOCK) {
    close(fd);
    return status_fail(NN_ERR_IO, "%s: another save is writing it; try again when it is done",
                       file_show(path).text);
  }
  *lock = fd;
  return NN_OK;
}

void file_unlock_folder(int lock) {
  if (lock >= 0) close(lock);
}

nn_status_t file_rename(const char *from, const char *to) {
  if (file_tapped("rename", to, NULL) || rename(from, to))
    return file_failed("cannot be put in place", to);
  return NN_OK;
}

nn_status_t file_remove(const char *path) {
  if ((file_tapped("remove", path, NULL) || unlink(path)) && errno != ENOENT)
    return file_failed("cannot be removed", path);
  return NN_OK;
}

nn_status_t file_remove_folder(const char *path) {
  if (file_tapped("rmdir", path, NULL) || rmdir(path))
    return file_failed("the folder cannot be removed", path);
  return NN_OK;
}

nn_status_t file_sync_folder(const char *path) {
  int fd = file_open(path, O_RDONLY | O_DIRECTORY);
  if (fd < 0) return file_failed("the folder cannot be opened", path);
  nn_status_t status = NN_OK;
  /* EINVAL: a file system whose folders cannot be synced apart from their files */
  if ((file_tapped("sync", path, NULL) || fsync(fd)) && errno != EINVAL)
    status = file_failed("the folder cannot be synced", path);
  close(fd);
  return status;
}

nn_status_t file_list(const char *folder, file_visit_fn visit, void *user) {
  DIR *listing = file_tapped("list", folder, NULL) ? NULL : opendir(folder);
  if (!listing) return file_failed("the folder cannot be listed", folder);
  nn_status_t status = NN_OK;
  while (status == NN_OK) {
    errno = 0;
    const struct dirent *entry = readdir(listing);
    if (!entry) {
      if (errno) status = file_failed("the folder cannot be listed", folder);
      break;
    }
    if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
      status = visit(user, entry->d_name);
  }
  closedir(listing);
  return status;
}
