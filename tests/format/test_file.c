/* Mapped files, and the atomic writer under every fault that its operations can have. */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "files.h"

static char *folder;

static int setup(void **state) {
  (void)state;
  folder = fixture_folder();
  return 0;
}

static int teardown(void **state) {
  (void)state;
  fixture_folder_remove(folder);
  return 0;
}

static void files_are_mapped(void **state) {
  (void)state;
  file_map_t map = {0};
  files_write_text(folder, "a", "text");
  CHECK(file_map(files_path(folder, "a"), &map));
  assert_int_equal(map.bytes, 4);
  assert_memory_equal(map.data, "text", 4);
  assert_true(file_map_is(&map, files_path(folder, "a")));
  file_map_forget(&map, map.data, map.bytes);
  assert_memory_equal(map.data, "text", 4);
  files_write_text(folder, "b", "text");
  assert_false(file_map_is(&map, files_path(folder, "b")));
  assert_false(file_map_is(&map, files_path(folder, "none")));
  file_unmap(&map);
  file_unmap(&map);

  files_write_text(folder, "empty", "");
  CHECK(file_map(files_path(folder, "empty"), &map));
  assert_int_equal(map.bytes, 0);
  assert_non_null(map.data);
  file_unmap(&map);
}

static void what_cannot_be_mapped_says_why(void **state) {
  (void)state;
  file_map_t map = {0};
  CHECK_FAILS(NN_ERR_NOT_FOUND, "none|No such file", file_map(files_path(folder, "none"), &map));
  CHECK_FAILS(NN_ERR_IO, "not a regular file", file_map(folder, &map));
  assert_int_equal(mkfifo(files_path(folder, "pipe"), 0600), 0);
  CHECK_FAILS(NN_ERR_IO, "not a regular file", file_map(files_path(folder, "pipe"), &map));
  files_write_text(folder, "a", "text");
  CHECK_FAILS(NN_ERR_IO, "Not a directory", file_map(files_path(folder, "a/b"), &map));
  for (int64_t at = 0; at < 3; at++) {
    files_tap_t tap;
    files_tap_begin(&tap, FILES_FAIL, at);
    CHECK_FAILS(NN_ERR_IO, "/a|error", file_map(files_path(folder, "a"), &map));
    files_tap_end();
  }
  assert_null(map.data);
}

static nn_status_t write_text(const char *name, const char *text) {
  file_writer_t writer = {0};
  nn_status_t status = file_writer_open(files_path(folder, name), &writer);
  if (status != NN_OK) return status;
  status = file_writer_write(&writer, text, strlen(text));
  if (status == NN_OK) return file_writer_commit(&writer);
  file_writer_discard(&writer);
  return status;
}

static void check_content(const char *name, const char *text) {
  size_t bytes = 0;
  char *data = files_read(folder, name, &bytes);
  assert_non_null(data);
  assert_int_equal(bytes, strlen(text));
  assert_memory_equal(data, text, bytes);
  free(data);
}

static void a_writer_replaces_in_one_step(void **state) {
  (void)state;
  CHECK(write_text("a", "old"));
  check_content("a", "old");
  file_map_t map;
  CHECK(file_map(files_path(folder, "a"), &map));
  CHECK(write_text("a", "new and longer"));
  check_content("a", "new and longer");
  assert_memory_equal(map.data, "old", 3); /* whoever read the earlier file still has it */
  assert_false(file_map_is(&map, files_path(folder, "a")));
  file_unmap(&map);

  file_writer_t writer = {0};
  CHECK(file_writer_open(files_path(folder, "a"), &writer));
  CHECK(file_writer_write(&writer, "gone", 4));
  file_writer_discard(&writer);
  file_writer_discard(&writer);
  check_content("a", "new and longer");
  assert_int_equal(files_count(folder), 1);
}

static void leftovers_of_a_killed_writer_do_no_harm(void **state) {
  (void)state;
  files_write_text(folder, "a.tmp", "much longer than what comes now");
  CHECK(write_text("a", "new"));
  check_content("a", "new");
  assert_int_equal(files_count(folder), 1);
}

static void two_writers_do_not_mix(void **state) {
  (void)state;
  file_writer_t first = {0}, second = {0};
  CHECK(file_writer_open(files_path(folder, "a"), &first));
  CHECK_FAILS(NN_ERR_IO, "another save", file_writer_open(files_path(folder, "a"), &second));
  CHECK(file_writer_write(&first, "first", 5));
  CHECK(file_writer_commit(&first));
  check_content("a", "first");
  CHECK(write_text("a", "second"));
  check_content("a", "second");
}

static file_writer_t racing;

/* Between the opening of the temporary by a second writer and its lock, the first one commits. */
static int commit_before_lock(void *user, const char *operation, const char *path, size_t *bytes) {
  (void)user, (void)path, (void)bytes;
  if (strcmp(operation, "lock") != 0) return 0;
  file_tap(NULL, NULL);
  CHECK(file_writer_commit(&racing));
  return 0;
}

static void a_writer_does_not_take_over_a_published_file(void **state) {
  (void)state;
  file_writer_t second = {0};
  CHECK(file_writer_open(files_path(folder, "a"), &racing));
  CHECK(file_writer_write(&racing, "first", 5));
  file_tap(commit_before_lock, NULL);
  CHECK(file_writer_open(files_path(folder, "a"), &second));
  check_content("a", "first");
  CHECK(file_writer_write(&second, "second", 6));
  check_content("a", "first");
  CHECK(file_writer_commit(&second));
  check_content("a", "second");
}

static int record(void *user, const char *operation, const char *path, size_t *bytes) {
  (void)path, (void)bytes;
  strcat(strcat(user, operation), " ");
  return 0;
}

/* A power cut loses what was not synced: the data must be safe before its name is, and the name
 * before the call returns. */
static void data_is_synced_before_it_is_named(void **state) {
  (void)state;
  char operations[200] = "";
  file_tap(record, operations);
  CHECK(write_text("a", "text"));
  file_tap(NULL, NULL);
  assert_string_equal(operations, "create lock truncate write sync rename open sync ");
}

static void what_cannot_be_written_says_why(void **state) {
  (void)state;
  CHECK_FAILS(NN_ERR_NOT_FOUND, "none/a.tmp|No such file", write_text("none/a", "text"));
  assert_int_equal(mkdir(files_path(folder, "d"), 0700), 0);
  CHECK_FAILS(NN_ERR_IO, "/d|is a folder", write_text("d", "text"));
  assert_int_equal(files_count(folder), 1);
  assert_int_equal(mkdir(files_path(folder, "e.tmp"), 0700), 0);
  CHECK_STATUS(NN_ERR_IO, write_text("e", "text"));
}

/* What rename would replace though it is no file: each, and a link to it, stays as it is. */
static void what_is_no_file_is_not_replaced(void **state) {
  (void)state;
  char before[1000];
  assert_non_null(getcwd(before, sizeof before));
  assert_int_equal(chdir(folder), 0); /* names of sockets are short */
  assert_int_equal(mkfifo("pipe", 0600), 0);
  struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "socket"};
  int listening = socket(AF_UNIX, SOCK_STREAM, 0);
  assert_true(listening >= 0);
  assert_int_equal(bind(listening, (struct sockaddr *)&name, sizeof name), 0);
  assert_int_equal(symlink("/dev/null", "device"), 0); /* a link: the worst takes this one away */
  assert_int_equal(symlink("pipe", "link"), 0);
  files_write_text(folder, "file", "precious");
  int stream = open("file", O_RDWR);
  assert_true(stream >= 0);
  char way[40];
  snprintf(way, sizeof way, "/proc/self/fd/%d", stream);
  assert_int_equal(symlink(way, "stream"), 0); /* as /dev/stdout of a process that has a file */
  static const char *const there[] = {"pipe", "socket", "device", "link", "stream"};
  for (int i = 0; i < 5; i++) {
    struct stat was, is;
    assert_int_equal(lstat(there[i], &was), 0);
    CHECK_FAILS(NN_ERR_IO, there[i], write_text(there[i], "text"));
    files_check_message("a device, a pipe, a socket", __FILE__, __LINE__);
    assert_int_equal(lstat(there[i], &is), 0);
    assert_int_equal(is.st_ino, was.st_ino);
    assert_int_equal(is.st_mode, was.st_mode);
    assert_int_equal(files_count(folder), 6);
  }
  check_content("file", "precious");
  close(stream);
  close(listening);
  assert_int_equal(chdir(before), 0);
}

static void links_are_not_followed(void **state) {
  (void)state;
  /* in the temporary's place: it leads to a file that a save has nothing to do with */
  files_write_text(folder, "other", "precious");
  assert_int_equal(symlink(files_path(folder, "other"), files_path(folder, "a.tmp")), 0);
  CHECK_FAILS(NN_ERR_IO, "a.tmp|symbolic links", write_text("a", "text"));
  check_content("other", "precious");
  assert_false(files_exists(folder, "a"));

  /* in the file's place, to a file, to nothing and to itself: the link itself is replaced */
  static const char *const links[] = {"to-file", "to-nothing", "to-itself"};
  static const char *const ends[] = {"other", "nothing", "to-itself"};
  for (int i = 0; i < 3; i++) {
    assert_int_equal(symlink(ends[i], files_path(folder, links[i])), 0);
    CHECK(write_text(links[i], "text"));
    struct stat info;
    assert_int_equal(lstat(files_path(folder, links[i]), &info), 0);
    assert_true(S_ISREG(info.st_mode));
    check_content(links[i], "text");
  }
  check_content("other", "precious");
  assert_false(files_exists(folder, "nothing"));
}

static void every_fault_leaves_the_old_file_or_the_new(void **state) {
  (void)state;
  files_tap_t tap;
  files_tap_begin(&tap, FILES_COUNT, 0);
  CHECK(write_text("a", "old"));
  files_tap_end();
  int64_t operations = tap.operations;
  assert_true(operations > 5);
  int failures = 0;
  for (int64_t at = 0; at < operations; at++) {
    files_write_text(folder, "a", "old");
    files_tap_begin(&tap, FILES_FAIL, at);
    nn_status_t status = write_text("a", "new");
    files_tap_end();
    /* a lock that the file system does not grant is done without; behind the rename come only the
     * two operations that sync the folder */
    failures += status != NN_OK;
    if (status == NN_OK)
      check_content("a", "new");
    else
      CHECK_STATUS(NN_ERR_IO, status);
    if (status != NN_OK && at < operations - 2) check_content("a", "old");
    if (status != NN_OK && at >= operations - 2) check_content("a", "new");
    assert_int_equal(files_count(folder), 1);
  }
  assert_int_equal(failures, operations - 1);
}

static void short_writes_are_continued_and_full_disks_reported(void **state) {
  (void)state;
  static const char text[] = "a text of some length";
  files_tap_t tap;
  files_tap_begin(&tap, FILES_SHORT_WRITE, 2);
  CHECK(write_text("a", text));
  files_tap_end();
  check_content("a", text);
  for (int64_t room = 0; room < (int64_t)strlen(text); room++) {
    files_tap_begin(&tap, FILES_FULL, room);
    CHECK_FAILS(NN_ERR_IO, "No space left", write_text("a", "another of the same ."));
    files_tap_end();
    check_content("a", text);
    assert_int_equal(files_count(folder), 1);
  }
}

static void a_kill_leaves_the_old_file_or_the_new(void **state) {
  (void)state;
  files_tap_t tap;
  files_tap_begin(&tap, FILES_COUNT, 0);
  CHECK(write_text("a", "old"));
  files_tap_end();
  int old = 0, new = 0;
  for (int64_t at = 0; at < tap.operations; at++) {
    files_write_text(folder, "a", "old");
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
      files_tap_t inner;
      files_tap_begin(&inner, FILES_EXIT, at);
      write_text("a", "new");
      _exit(0);
    }
    int result;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_true(WIFEXITED(result) && WEXITSTATUS(result) == FILES_EXIT_CODE);
    size_t bytes;
    char *data = files_read(folder, "a", &bytes);
    assert_int_equal(bytes, 3);
    old += memcmp(data, "old", 3) == 0;
    new += memcmp(data, "new", 3) == 0;
    free(data);
  }
  assert_int_equal(old + new, tap.operations);
  assert_true(old > 0 && new > 0);
}

static void a_writer_needs_its_memory(void **state) {
  (void)state;
  files_write_text(folder, "a", "old");
  int64_t after = 0;
  for (;; after++) {
    mem_fail_after(after);
    nn_status_t status = write_text("a", "new");
    mem_fail_after(-1);
    if (status == NN_OK) break;
    CHECK_STATUS(NN_ERR_MEMORY, status);
    assert_int_equal(files_count(folder), 1);
  }
  assert_true(after >= 2);
  check_content("a", "new");
}

static void folders_are_made_once_and_locked(void **state) {
  (void)state;
  const char *path = files_path(folder, "new");
  bool made;
  CHECK(file_make_folder(path, &made));
  assert_true(made);
  CHECK(file_make_folder(path, &made));
  assert_false(made);
  CHECK(file_make_folder(files_path(folder, "slash//"), NULL));
  CHECK_FAILS(NN_ERR_NOT_FOUND, "no/new", file_make_folder(files_path(folder, "no/new"), &made));
  assert_false(made);
  files_write_text(folder, "a", "text");
  CHECK_FAILS(NN_ERR_IO, "/a", file_make_folder(files_path(folder, "a"), NULL));
  CHECK(file_check_folder(folder));
  CHECK_FAILS(NN_ERR_IO, "/a: is not a folder", file_check_folder(files_path(folder, "a")));
  CHECK_FAILS(NN_ERR_NOT_FOUND, "/none", file_check_folder(files_path(folder, "none")));
  assert_true(file_exists(folder) && file_exists(files_path(folder, "a")));
  assert_false(file_exists(files_path(folder, "none")) || file_exists(files_path(folder, "a/b")));
  int first = -1, second = -1;
  CHECK(file_lock_folder(folder, &first));
  CHECK_FAILS(NN_ERR_IO, "another save", file_lock_folder(folder, &second));
  file_unlock_folder(first);
  CHECK(file_lock_folder(folder, &second));
  file_unlock_folder(second);
  file_unlock_folder(-1);
}

/* In an empty folder as the working one, where a temporary would be left. */
static void empty_paths_are_refused(void **state) {
  (void)state;
  file_map_t map = {0};
  file_writer_t writer = {0};
  char before[1000];
  assert_non_null(getcwd(before, sizeof before));
  assert_int_equal(chdir(folder), 0);
  CHECK_FAILS(NN_ERR_ARGUMENT, "path is empty", file_map("", &map));
  CHECK_FAILS(NN_ERR_ARGUMENT, "path is empty", file_writer_open("", &writer));
  CHECK_FAILS(NN_ERR_ARGUMENT, "path is empty", file_make_folder("", NULL));
  CHECK_FAILS(NN_ERR_ARGUMENT, "path is empty", file_check_folder(""));
  CHECK_FAILS(NN_ERR_IO, "none/|is a folder", file_writer_open("none/", &writer));
  assert_int_equal(chdir(before), 0);
  assert_int_equal(files_count(folder), 0);
}

/* The reason and the file's name are there however long the path is. Wherever the cut falls in the
 * two bytes of an umlaut and the slash before it, what is left begins with a whole character. */
static void long_paths_are_cut_in_messages(void **state) {
  (void)state;
  static const char *const names[] = {"/model", "/xmodel", "/xxmodel"};
  for (int i = 0; i < 3; i++) {
    file_map_t map = {0};
    char path[900] = "";
    while (strlen(path) < 700) strcat(path, "/\xc3\xa4");
    strcat(path, names[i]);
    CHECK_FAILS(NN_ERR_NOT_FOUND, "...|model: |No such file", file_map(path, &map));
    CHECK_FAILS(NN_ERR_NOT_FOUND, names[i], file_map(path, &map));
    assert_true(strlen(nn_last_error()) < 300);
    assert_memory_not_equal(nn_last_error() + 3, "\xa4", 1);
  }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(files_are_mapped),
      TEST(what_cannot_be_mapped_says_why),
      TEST(a_writer_replaces_in_one_step),
      TEST(leftovers_of_a_killed_writer_do_no_harm),
      TEST(two_writers_do_not_mix),
      TEST(a_writer_does_not_take_over_a_published_file),
      TEST(data_is_synced_before_it_is_named),
      TEST(what_cannot_be_written_says_why),
      TEST(what_is_no_file_is_not_replaced),
      TEST(links_are_not_followed),
      TEST(every_fault_leaves_the_old_file_or_the_new),
      TEST(short_writes_are_continued_and_full_disks_reported),
      TEST(a_kill_leaves_the_old_file_or_the_new),
      TEST(a_writer_needs_its_memory),
      TEST(folders_are_made_once_and_locked),
      TEST(empty_paths_are_refused),
      TEST(long_paths_are_cut_in_messages),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
