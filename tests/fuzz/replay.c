/* Runs every file of a folder through LLVMFuzzerTestOneInput, in the order of their names, without
 * a fuzzing engine. Fails when the folder holds none. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_visible(const struct dirent *entry) { return entry->d_name[0] != '.'; }

/* The input gets a block of exactly its size, so that the address sanitizer sees one byte too
 * far. */
static int replay_file(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) return -1;
  int result = -1;
  uint8_t *data = NULL;
  if (fseek(file, 0, SEEK_END) == 0) {
    long end = ftell(file);
    rewind(file);
    if (end >= 0 && (data = malloc(end ? (size_t)end : 1)) &&
        fread(data, 1, (size_t)end, file) == (size_t)end)
      result = LLVMFuzzerTestOneInput(data, (size_t)end);
  }
  free(data);
  fclose(file);
  return result;
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
    return 2;
  }
  struct dirent **entries;
  int count = scandir(argv[1], &entries, replay_visible, alphasort), failed = 0;
  if (count < 0) {
    perror(argv[1]);
    return 1;
  }
  for (int i = 0; i < count; i++) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", argv[1], entries[i]->d_name);
    if (replay_file(path) != 0) {
      fprintf(stderr, "%s: could not be replayed\n", path);
      failed++;
    }
    free(entries[i]);
  }
  free(entries);
  printf("%d inputs replayed, %d failed\n", count - failed, failed);
  return count > 0 && failed == 0 ? 0 : 1;
}
