/* Copies to a GPU and back: every size around those by which a copy goes another way, memory that
 * the caller changes as soon as the call returns, many small ones in a row, many threads at once,
 * views. */
#include <pthread.h>
#include <string.h>

#include "base/random.h"
#include "fixture.h"

enum { SMALL = 8 << 10, PIECE = 2 << 20, THREADS = 20, ROUNDS = 6 };

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
  static const int64_t sizes[] = {1,     SMALL,     SMALL + 1, PIECE - 1,
                                  PIECE, PIECE + 1, 3 * PIECE, 17 * PIECE + 12345};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) check_copy(device, sizes[i], 10 * i);
  nn_device_destroy(device);
}

/* More than the memory for small ones holds at once, and then more than there are pieces. */
static void test_many_small(void **state) {
  (void)state;
  enum { EACH = 1000, MANY = 400 };
  nn_device_t *device = fixture_device_named("cuda:0", 0, 0);
  nn_tensor_t *all = bytes_on(device, EACH * MANY);
  static unsigned char sent[EACH * MANY], back[EACH * MANY];
  fill(sent, sizeof sent, 1);
  for (int64_t i = 0; i < MANY; i++) {
    unsigned char part[EACH];
    nn_tensor_t *slice;
    CHECK(nn_tensor_slice(all, 0, i * EACH, (i + 1) * EACH, &slice));
    memcpy(part, sent + i * EACH, EACH);
    CHECK(nn_tensor_copy_in(slice, part, EACH));
    memset(part, 0, EACH);
    nn_tensor_destroy(slice);
  }
  CHECK(nn_tensor_copy_out(all, back, sizeof back));
  assert_memory_equal(sent, back, sizeof back);
  nn_tensor_destroy(all);
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

/* Elements of a view, forth and back; what lies between them stays. */
static void check_view(nn_device_t *device, nn_tensor_t *all, const int64_t shape[2],
                       const int64_t strides[2]) {
  nn_tensor_info_t info = {.struct_size = sizeof info};
  CHECK(nn_tensor_info(all, &info));
  nn_tensor_t *view;
  CHECK(nn_tensor_wrap(device, info.data, NN_F32, 2, shape, strides, &view));
  size_t bytes = (size_t)info.elements * sizeof(float);
  size_t some = (size_t)(shape[0] * shape[1]) * sizeof(float);
  float *kept = fixture_memory(bytes), *found = fixture_memory(bytes), *part = fixture_memory(some);
  for (int64_t i = 0; i < info.elements; i++) kept[i] = (float)i;
  CHECK(nn_tensor_copy_in(all, kept, bytes));
  CHECK(nn_tensor_copy_out(view, part, some));
  for (int64_t i = 0; i < shape[0]; i++)
    for (int64_t j = 0; j < shape[1]; j++) {
      float *here = &part[i * shape[1] + j], *there = &kept[i * strides[0] + j * strides[1]];
      assert_true(*here == *there);
      *here = *there = -*here;
    }
  CHECK(nn_tensor_copy_in(view, part, some));
  CHECK(nn_tensor_copy_out(all, found, bytes));
  assert_memory_equal(kept, found, bytes);
  free(kept), free(found), free(part);
  nn_tensor_destroy(view);
}

/* A transpose takes two copies, not one for each of its elements: 2^24 of these are minutes. */
static void test_views(void **state) {
  (void)state;
  nn_device_t *device = fixture_device_named("cuda:0", 0, 0);
  nn_tensor_t *all;
  int64_t size = 4096 * 4096;
  CHECK(nn_tensor_create(device, NN_F32, 1, &size, &all));
  check_view(device, all, (int64_t[]){4096, 4096}, (int64_t[]){1, 4096});
  check_view(device, all, (int64_t[]){50, 4096}, (int64_t[]){4096 * 70, 1});
  check_view(device, all, (int64_t[]){300, 5}, (int64_t[]){4096, 1});
  check_view(device, all, (int64_t[]){3, 40}, (int64_t[]){2, 7});
  nn_tensor_destroy(all);
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sizes),
      cmocka_unit_test(test_many_small),
      cmocka_unit_test(test_threads),
      cmocka_unit_test(test_views),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
