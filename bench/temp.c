/* Folders for what a scenario writes and reads again. */
#define _XOPEN_SOURCE 700
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

void temp_make(char folder[TEMP_PATH]) {
  const char *parent = getenv("TMPDIR");
  int length = snprintf(folder, TEMP_PATH, "%s/moenn-bench-XXXXXX", parent ? parent : "/tmp");
  if (length < TEMP_PATH && mkdtemp(folder)) return;
  fprintf(stderr, "moenn-bench: %s cannot be made: %s; TMPDIR names another place\n", folder,
          strerror(errno));
  exit(1);
}

static int temp_remove_one(const char *path, const struct stat *status, int type,
                           struct FTW *place) {
  (void)status, (void)type, (void)place;
  return remove(path);
}

void temp_remove(const char *folder) {
  if (nftw(folder, temp_remove_one, 16, FTW_DEPTH | FTW_PHYS))
    fprintf(stderr, "moenn-bench: %s was not removed\n", folder);
}
