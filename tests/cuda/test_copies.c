/* Copies to a GPU and back: every size around those of the pieces that large ones go by, memory
 * that the caller changes as soon as the call returns, and many threads at once. */
#include <pthread.h>
#include <string.h>

#include "base/random.h"
#include "fixture.h"

enum { PIECE = 2 << 20, THREADS = 20, ROUNDS = 6 };

static nn_tensor_t *bytes_on(nn_device_t *device, int64_t bytes) {
  nn_tensor_t *tensor;
  CHECK(nn_tensor_create(device, NN_U8, 1, &bytes, &tensor));
  return tensor;
}

static void fill(unsigned char *data, int64_t bytes, uint64_t seed) {
  for (int64_t i = 0; i < bytes; i += 8) {
    uint64_t word = random_u64(seed, 7, (uint64_t)i);
    memcpy(data + i, &word, bytes - i < 8 ? (size_t)(bytes - i) : 8);
  }
}

static void check_copy(nn_device_t *device, int64_t bytes, uint64_t seed) {
  unsigned char *sent = fixture_memory((size_t)bytes), *back = fixture_memory((size_t)bytes);
  nn_tensor_t *tensor = bytes_on(device, bytes);
  for (uint64_t round = 0; round < 2; round++) {
    fill(sent, bytes, seed + round);
    CHECK(nn_tensor_copy_in(tensor, sent, (size_t)bytes));
    memset(sent, 0, (size_t)bytes);
    CHECK(nn_tensor_copy_out(tensor, back, (size_t)bytes));
    fill(sent, bytes, seed + round);
    assert_memory_equal(sent, back, (size_t)bytes);
  }
  nn_tensor_destroy(tensor);
  free(sent), free(back);
}

static void test_sizes(void **state) {
  (void)state;
  nn_device_t *device = fixture_device_named("cuda:0", 0, 0);
  static const int64_t sizes[] = {1,         (1 << 18) - 1, 1 << 18,           PIECE - 1, PIECE,
                                  PIECE + 1, 3 * PIECE,     17 * PIECE + 12345};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) check_copy(device, sizes[i], 10 * i);
  nn_device_destroy(device);
}

typedef struct job {
  nn_device_t *device;
  uint64_t number;
} job_t;

static void *copy(void *context) {
  const job_t *job = context;
  for (uint64_t round = 0; round < ROUNDS; round++)
    check_copy(job->device, PIECE / 2 + (int64_t)(job->number * round) * 100001,
               1000 * job->number + 10 * round);
  return NULL;
}

/* More threads than there are pieces. */
static void test_threads(void **state) {
  (void)state;
  nn_device_t *device = fixture_device_named("cuda:0", 0, 0);
  pthread_t threads[THREADS];
  job_t jobs[THREADS];
  for (int i = 0; i < THREADS; i++) {
    jobs[i] = (job_t){.device = device, .number = (uint64_t)i};
    assert_int_equal(pthread_create(&threads[i], NULL, copy, &jobs[i]), 0);
  }
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  assert_int_equal(fixture_device_memory(device).current_bytes, 0);
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sizes),
      cmocka_unit_test(test_threads),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
