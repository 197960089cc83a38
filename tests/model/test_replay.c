/* Work that is replayed: as it is, noted down, one launch; and what failures on the way leave. */
#include <string.h>

#include "fixture.h"
#include "model/replay.h"

struct backend_graph {
  int32_t unused;
};

static struct {
  int32_t worked, begun, ended, launched, freed, recording;
  nn_status_t work, end;
  int32_t broken; /* the next recording is broken off, and its work fails by that */
} calls;
static backend_graph_t graph;

static nn_status_t begin(backend_device_t *device) {
  (void)device;
  calls.begun++, calls.recording = 1;
  return NN_OK;
}

static nn_status_t end(backend_device_t *device, backend_graph_t **made) {
  (void)device;
  calls.ended++, calls.recording = 0;
  *made = calls.end == NN_OK && !calls.broken ? &graph : NULL;
  calls.broken = 0;
  return calls.end;
}

static nn_status_t launch(backend_device_t *device, backend_graph_t *which) {
  (void)device;
  assert_ptr_equal(which, &graph);
  calls.launched++;
  return NN_OK;
}

static void forget(backend_device_t *device, backend_graph_t *which) {
  (void)device;
  assert_ptr_equal(which, &graph);
  calls.freed++;
}

static nn_status_t work(const void *context) {
  assert_int_equal(*(const int32_t *)context, 7);
  calls.worked++;
  return calls.broken ? NN_ERR_DEVICE : calls.work;
}

static nn_status_t run(const nn_device_t *device, replay_t *replay) {
  const int32_t context = 7;
  return replay_run(device, replay, work, &context);
}

static void test_with_graphs(void **state) {
  (void)state;
  const backend_t table = {
      .record_begin = begin, .record_end = end, .graph_run = launch, .graph_free = forget};
  const nn_device_t device = {.backend = &table};
  replay_t replay = {0};
  memset(&calls, 0, sizeof calls);
  assert_int_equal(run(&device, &replay), NN_OK);
  assert_int_equal(calls.worked, 1);
  assert_int_equal(calls.begun, 0);

  calls.work = NN_ERR_CANCELLED; /* in the middle of noting down */
  assert_int_equal(run(&device, &replay), NN_ERR_CANCELLED);
  assert_int_equal(calls.recording, 0);
  assert_int_equal(calls.freed, 1); /* a graph that lacks something */
  assert_null(replay.graph);
  calls.work = NN_OK;
  assert_int_equal(run(&device, &replay), NN_OK);
  assert_int_equal(calls.begun, 1);
  calls.end = NN_ERR_MEMORY;
  assert_int_equal(run(&device, &replay), NN_ERR_MEMORY);
  assert_null(replay.graph);
  assert_int_equal(calls.launched, 0);

  calls.end = NN_OK;
  assert_int_equal(run(&device, &replay), NN_OK);
  assert_int_equal(calls.launched, 1);
  int32_t worked = calls.worked;
  for (int i = 0; i < 3; i++) assert_int_equal(run(&device, &replay), NN_OK);
  assert_int_equal(calls.worked, worked);
  assert_int_equal(calls.launched, 4);
  assert_int_equal(calls.begun, 3);
  assert_int_equal(calls.ended, 3);

  replay_forget(&device, &replay);
  assert_int_equal(calls.freed, 2);
  assert_int_equal(run(&device, &replay), NN_OK);
  assert_int_equal(calls.worked, worked + 1);
  replay_forget(&device, &replay); /* nothing was noted down since */
  assert_int_equal(calls.freed, 2);
}

/* What a recording that was broken off noted down is done as it is; the next call records it. */
static void test_broken_off(void **state) {
  (void)state;
  const backend_t table = {
      .record_begin = begin, .record_end = end, .graph_run = launch, .graph_free = forget};
  const nn_device_t device = {.backend = &table};
  replay_t replay = {.done = true};
  memset(&calls, 0, sizeof calls);
  calls.broken = 1;
  assert_int_equal(run(&device, &replay), NN_OK);
  assert_int_equal(calls.worked, 2);
  assert_int_equal(calls.recording, 0);
  assert_null(replay.graph);

  calls.broken = 1, calls.work = NN_ERR_CANCELLED; /* its own failure is its status */
  assert_int_equal(run(&device, &replay), NN_ERR_CANCELLED);
  assert_int_equal(calls.worked, 4);
  assert_null(replay.graph);

  calls.work = NN_OK;
  assert_int_equal(run(&device, &replay), NN_OK);
  assert_int_equal(calls.worked, 5);
  assert_int_equal(calls.launched, 1);
  replay_forget(&device, &replay);
}

static void test_without_graphs(void **state) {
  (void)state;
  const backend_t table = {.record_begin = NULL};
  const nn_device_t device = {.backend = &table};
  replay_t replay = {0};
  memset(&calls, 0, sizeof calls);
  for (int i = 0; i < 3; i++) assert_int_equal(run(&device, &replay), NN_OK);
  assert_int_equal(calls.worked, 3);
  replay_forget(&device, &replay);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_with_graphs),
      cmocka_unit_test(test_broken_off),
      cmocka_unit_test(test_without_graphs),
  };
  return cmocka_run_group_tests_name("replay", tests, NULL, NULL);
}
