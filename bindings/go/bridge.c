#include "bridge.h"

#include "_cgo_export.h"

int32_t moenn_token(int32_t token, int64_t index, void *user) {
  return moennToken(token, index, (uintptr_t)user);
}

int32_t moenn_progress(int64_t done, int64_t total, void *user) {
  return moennProgress(done, total, (uintptr_t)user);
}

int32_t moenn_learning(int64_t done, int64_t total, void *user) {
  return moennLearning(done, total, (uintptr_t)user);
}

void moenn_log(int32_t level, const char *message, void *user) {
  moennLog(level, (char *)message, (uintptr_t)user);
}
