/* The thread pool: every item once, region after region, cancel, and what cannot be had. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "cpu.h"
#include "ops.h"

enum { MOST_ITEMS = 1000, MOST_THREADS = 17 };

typedef struct count {
  atomic_int done[MOST_ITEMS];
  atomic_int inside[MOST_THREADS]; /* of one thread number: never two at a time */
  atomic_int wrong;
  int32_t threads;
  atomic_int *raise;    /* cancel flag to raise */
  int64_t raise_at;     /* by this item */
} count_t;

static void count_item(void *context, int64_t item, int32_t thread) {
  count_t *count = context;
  if (item < 0 || item >= MOST_ITEMS || thread < 0 || thread >= count->threads) {
    atomic_store(&count->wrong, 1);
    return;
  }
  if (atomic_fetch_add(&count->inside[thread], 1) != 0) atomic_store(&count->wrong, 1);
  atomic_fetch_add(&count->done[item], 1);
  if (count->raise && item == count->raise_at) atomic_store(count->raise, 1);
  atomic_fetch_sub(&count->inside[thread], 1);
}

static nn_status_t open_pool(int32_t threads, const int32_t *affinity, const atomic_int *cancel,
                             pool_t **pool) {
  backend_options_t options = ops_options(threads, NN_CPU_REFERENCE, cancel);
  options.affinity = affinity;
  return pool_create(&options, pool);
}

static void check_items_done_once(int32_t threads, int64_t regions) {
  atomic_int cancel = 0;
  pool_t *pool;
  assert_int_equal(open_pool(threads, NULL, &cancel, &pool), NN_OK);
  assert_int_equal(pool_threads(pool), threads);
  static count_t count;
  for (int64_t region = 0; region < regions; region++) {
    memset(&count, 0, sizeof count);
    count.threads = threads;
    int64_t items = region * 37 % MOST_ITEMS;
    assert_int_equal(pool_run(pool, items, count_item, &count), NN_OK);
    assert_false(atomic_load(&count.wrong));
    for (int64_t i = 0; i < MOST_ITEMS; i++)
      assert_int_equal(atomic_load(&count.done[i]), i < items ? 1 : 0);
  }
  pool_destroy(pool);
}

static void test_every_item_once(void **state) {
  (void)state;
  for (int32_t threads = 1; threads <= 4; threads++) check_items_done_once(threads, 300);
}

static void test_more_threads_than_cores(void **state) {
  (void)state;
  check_items_done_once(MOST_THREADS, 100);
}

/* Regions far apart find the workers asleep. */
static void test_sleeping_workers_wake(void **state) {
  (void)state;
  atomic_int cancel = 0;
  pool_t *pool;
  assert_int_equal(open_pool(3, NULL, &cancel, &pool), NN_OK);
  for (int i = 0; i < 20; i++) {
    static count_t count;
    memset(&count, 0, sizeof count);
    count.threads = 3;
    usleep(2000);
    assert_int_equal(pool_run(pool, 50, count_item, &count), NN_OK);
    for (int64_t j = 0; j < 50; j++) assert_int_equal(atomic_load(&count.done[j]), 1);
  }
  pool_destroy(pool);
}

/* Processor time that this process has used. */
static double used_seconds(void) {
  struct timespec used;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return (double)used.tv_sec + 1e-9 * (double)used.tv_nsec;
}

/* Workers that have nothing to do leave their cores alone: after a region each may spin for some
 * hundred microseconds, a few times as long where a sanitizer slows it. One that went on spinning
 * would use all of the tenth of a second; a fifth of that is allowed. */
static void test_idle_workers_sleep(void **state) {
  (void)state;
  atomic_int cancel = 0;
  pool_t *pool;
  assert_int_equal(open_pool(2, NULL, &cancel, &pool), NN_OK);
  static count_t count;
  memset(&count, 0, sizeof count);
  count.threads = 2;
  assert_int_equal(pool_run(pool, 50, count_item, &count), NN_OK);
  double before = used_seconds();
  usleep(100000);
  double used = used_seconds() - before;
  if (used > 0.02) fail_msg("an idle pool used %.4f s of 0.1", used);
  pool_destroy(pool);
}

static void wait_for_the_other(void *context, int64_t item, int32_t thread) {
  atomic_int *arrived = context;
  (void)item;
  (void)thread;
  struct timespec begin, now;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  atomic_fetch_add(arrived, 1);
  do {
    sched_yield();
    clock_gettime(CLOCK_MONOTONIC, &now);
  } while (atomic_load(arrived) < 2 && now.tv_sec - begin.tv_sec < 10);
}

/* Two items that each wait for the other can only end on two threads. */
static void test_items_run_at_the_same_time(void **state) {
  (void)state;
  atomic_int cancel = 0;
  pool_t *pool;
  assert_int_equal(open_pool(2, NULL, &cancel, &pool), NN_OK);
  for (int i = 0; i < 50; i++) {
    atomic_int arrived = 0;
    assert_int_equal(pool_run(pool, 2, wait_for_the_other, &arrived), NN_OK);
    assert_int_equal(atomic_load(&arrived), 2);
  }
  pool_destroy(pool);
}

static void test_cancel(void **state) {
  (void)state;
  for (int32_t threads = 1; threads <= 3; threads++) {
    atomic_int cancel = 1;
    pool_t *pool;
    assert_int_equal(open_pool(threads, NULL, &cancel, &pool), NN_OK);
    static count_t count;
    memset(&count, 0, sizeof count);
    count.threads = threads;
    assert_int_equal(pool_run(pool, 100, count_item, &count), NN_ERR_CANCELLED);
    assert_int_equal(pool_run(pool, 0, count_item, &count), NN_ERR_CANCELLED);
    for (int64_t i = 0; i < 100; i++) assert_int_equal(atomic_load(&count.done[i]), 0);
    pool_run_all(pool, 100, count_item, &count);
    for (int64_t i = 0; i < 100; i++) assert_int_equal(atomic_load(&count.done[i]), 1);

    /* Raised by item 10: items that others have claimed by then may still be done. */
    memset(&count, 0, sizeof count);
    count.threads = threads;
    count.raise = &cancel;
    count.raise_at = 10;
    atomic_store(&cancel, 0);
    assert_int_equal(pool_run(pool, MOST_ITEMS, count_item, &count), NN_ERR_CANCELLED);
    for (int64_t i = 0; i < MOST_ITEMS; i++) assert_true(atomic_load(&count.done[i]) <= 1);
    if (threads == 1) assert_int_equal(atomic_load(&count.done[11]), 0);

    /* Raised by the last item, nothing is left undone. */
    memset(&count, 0, sizeof count);
    count.threads = threads;
    count.raise = &cancel;
    count.raise_at = 0;
    atomic_store(&cancel, 0);
    assert_int_equal(pool_run(pool, 1, count_item, &count), NN_OK);
    pool_destroy(pool);
  }
}

static void note_cpu(void *context, int64_t item, int32_t thread) {
  atomic_int *cpu = context;
  (void)item;
  if (thread == 1) atomic_store(&cpu[1], sched_getcpu());
  else usleep(1000); /* leaves items to the worker */
}

static void test_affinity(void **state) {
  (void)state;
  cpu_set_t set;
  assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
  int32_t allowed = 0;
  while (!CPU_ISSET((size_t)allowed, &set)) allowed++;
  atomic_int cancel = 0;
  pool_t *pool;
  int32_t affinity[2] = {-1, allowed};
  assert_int_equal(open_pool(2, affinity, &cancel, &pool), NN_OK);
  atomic_int cpu[2] = {-1, -1};
  assert_int_equal(pool_run(pool, 100, note_cpu, cpu), NN_OK);
  assert_int_equal(atomic_load(&cpu[1]), allowed);
  pool_destroy(pool);

  int32_t out_of_range[2] = {0, CPU_SETSIZE}, negative[2] = {0, -1};
  assert_int_equal(open_pool(2, out_of_range, &cancel, &pool), NN_ERR_ARGUMENT);
  assert_int_equal(open_pool(2, negative, &cancel, &pool), NN_ERR_ARGUMENT);
}

static void note_signals(void *context, int64_t item, int32_t thread) {
  sigset_t *blocked = context;
  (void)item;
  if (thread == 1) pthread_sigmask(SIG_SETMASK, NULL, blocked);
  else usleep(1000); /* leaves items to the worker */
}

/* Workers leave the application's signals to its own threads, but not those that they raise. */
static void test_signals(void **state) {
  (void)state;
  atomic_int cancel = 0;
  pool_t *pool;
  sigset_t blocked, mine, before;
  sigemptyset(&blocked);
  pthread_sigmask(SIG_SETMASK, NULL, &before);
  assert_int_equal(open_pool(2, NULL, &cancel, &pool), NN_OK);
  assert_int_equal(pool_run(pool, 100, note_signals, &blocked), NN_OK);
  pool_destroy(pool);
  const int raised[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
  const int sent[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGCHLD, SIGALRM, SIGPROF};
  for (size_t i = 0; i < sizeof raised / sizeof *raised; i++)
    assert_int_equal(sigismember(&blocked, raised[i]), 0);
  for (size_t i = 0; i < sizeof sent / sizeof *sent; i++)
    assert_int_equal(sigismember(&blocked, sent[i]), 1);
  pthread_sigmask(SIG_SETMASK, NULL, &mine);
  for (int i = 1; i < SIGRTMIN; i++)
    assert_int_equal(sigismember(&mine, i), sigismember(&before, i));
}

static void test_pool_without_memory(void **state) {
  (void)state;
  atomic_int cancel = 0;
  pool_t *pool = NULL;
  nn_status_t status = NN_ERR_MEMORY;
  int64_t after = 0;
  for (; after < 10 && status == NN_ERR_MEMORY; after++) {
    mem_fail_after(after);
    status = open_pool(3, NULL, &cancel, &pool);
    if (status == NN_ERR_MEMORY) assert_null(pool);
  }
  mem_fail_after(-1);
  assert_int_equal(status, NN_OK);
  assert_true(after > 1);
  pool_destroy(pool);
  pool_destroy(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_item_once),
      cmocka_unit_test(test_more_threads_than_cores),
      cmocka_unit_test(test_sleeping_workers_wake),
      cmocka_unit_test(test_idle_workers_sleep),
      cmocka_unit_test(test_items_run_at_the_same_time),
      cmocka_unit_test(test_cancel),
      cmocka_unit_test(test_affinity),
      cmocka_unit_test(test_signals),
      cmocka_unit_test(test_pool_without_memory),
  };
  return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
