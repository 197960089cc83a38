/* What tests of files share: messages, small files in a folder, tables of small models, and a tap
 * that makes a chosen file operation fail, fall short, or be the process's last. */
#ifndef NN_TEST_FILES_H
#define NN_TEST_FILES_H

#include "fixture.h"
#include "model/params.h"

/* The call fails with this status, and its message contains every one of the parts ("a|b|c"). */
#define CHECK_FAILS(want, parts, call)              \
  do {                                              \
    CHECK_STATUS(want, call);                       \
    files_check_message(parts, __FILE__, __LINE__); \
  } while (0)
void files_check_message(const char *parts, const char *file, int line);

/* "folder/name", valid until the next call but three. */
const char *files_path(const char *folder, const char *name);

void files_write(const char *folder, const char *name, const void *data, size_t bytes);
void files_write_text(const char *folder, const char *name, const char *text);
/* The bytes of a file, freed by the caller; NULL when there is none. */
void *files_read(const char *folder, const char *name, size_t *bytes);
int files_exists(const char *folder, const char *name);
/* Names in a folder, but "." and "..". */
int files_count(const char *folder);

/* The bytes of a safetensors file of this header and so many zero bytes of data; freed by the
 * caller. */
unsigned char *files_safetensors(const char *header, size_t data_bytes, size_t *bytes);

/* Small configurations, whose widths differ from each other, and their tables. */
nn_model_config_t files_mixtral(void);
nn_model_config_t files_gpt2(void);
/* One of a family, with every tensor that the family knows. */
nn_model_config_t files_family(int32_t family);
param_table_t files_table(const nn_model_config_t *config);

/* What a progress callback saw. files_watch_progress() takes one as its user, demands that the
 * count grows and stays within the total, and cancels at call number `stop_at`, from 1. */
typedef struct files_watch {
  int64_t done, total, calls, stop_at;
} files_watch_t;

int32_t files_watch_progress(int64_t done, int64_t total, void *user);

/* ---- faults ---------------------------------------------------------------------------------- */

typedef enum files_fault {
  FILES_COUNT,       /* none; operations are counted */
  FILES_FAIL,        /* operation number `at`, from 0, fails with EIO, once */
  FILES_EXIT,        /* at operation number `at` the process ends, as by a kill */
  FILES_SHORT_WRITE, /* every write writes at most `at` bytes */
  FILES_FULL         /* writes fail with ENOSPC once `at` bytes are written */
} files_fault_t;

typedef struct files_tap {
  files_fault_t fault;
  int64_t at;
  int64_t operations; /* seen so far */
  int64_t written;    /* bytes asked of writes so far */
} files_tap_t;

/* Installs a fault; files_tap_end() takes it out. The tap must live until then. */
void files_tap_begin(files_tap_t *tap, files_fault_t fault, int64_t at);
void files_tap_end(void);

/* The exit code of a process that FILES_EXIT ended. */
enum { FILES_EXIT_CODE = 41 };

#endif
