/* The pool: persistent workers that join the caller's loop over items.
 *
 * A region is open while `region` is odd. A worker enters by raising `active` and then looking at
 * `region`; the caller leaves by closing `region` and then waiting for `active` to fall to zero.
 * Both orders are sequentially consistent, so either the worker sees the region closed and backs
 * out, or the caller sees the worker and waits: what belongs to a region is written only while
 * nobody is in it, and a worker that comes too late holds nobody up. Waiting spins for about as
 * long as most work that one thread does alone between regions of a step, and then sleeps. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"
#include "base/threads.h"
#include "cpu.h"

enum {
  POOL_SPINS = 2500, /* some 60 to 120 microseconds of pauses */
  POOL_LINE = 64     /* bytes that cores pass around together */
};

typedef struct pool_worker {
  pool_t *pool;
  pthread_t handle;
  int32_t thread;
} pool_worker_t;

struct pool {
  int32_t threads;
  int32_t spins; /* POOL_SPINS, or 0 where threads share cores and spinning only takes time away */
  int32_t started;
  int32_t (*cancelled)(const void *user);
  const void *cancel_user;
  pool_worker_t *workers; /* [threads - 1] */

  /* The region, written by the caller while no worker is inside. */
  pool_fn fn;
  void *context;
  int64_t items;
  bool deaf; /* does not ask whether it is cancelled */

  _Alignas(POOL_LINE) atomic_llong next; /* item to be claimed */
  _Alignas(POOL_LINE) atomic_uint region; /* odd: open */
  _Alignas(POOL_LINE) atomic_int active;  /* workers inside */
  atomic_bool skipped;                    /* an item was not done because of cancel */
  atomic_bool stop;

  _Alignas(POOL_LINE) pthread_mutex_t lock;
  pthread_cond_t opened, left; /* for sleepers: a region opened; the last worker left */
  atomic_int sleepers;         /* workers that sleep or are about to */
  atomic_bool caller_sleeps;
};

static inline void pool_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

static inline bool pool_is_cancelled(const pool_t *pool) {
  return pool->cancelled(pool->cancel_user) != 0;
}

static void pool_work(pool_t *pool, int32_t thread) {
  for (;;) {
    int64_t item = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
    if (item >= pool->items) return;
    if (!pool->deaf && pool_is_cancelled(pool)) {
      atomic_store_explicit(&pool->skipped, true, memory_order_relaxed);
      return;
    }
    pool->fn(pool->context, item, thread);
  }
}

/* True when a region is open that this worker has not worked in yet, or the pool ends. */
static bool pool_calls(pool_t *pool, unsigned seen) {
  unsigned region = atomic_load(&pool->region);
  return (region % 2 == 1 && region != seen) || atomic_load(&pool->stop);
}

static void pool_await_region(pool_t *pool, unsigned seen) {
  for (int32_t i = 0; i < pool->spins; i++) {
    if (pool_calls(pool, seen)) return;
    pool_pause();
  }
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->sleepers, 1);
  while (!pool_calls(pool, seen)) pthread_cond_wait(&pool->opened, &pool->lock);
  atomic_fetch_sub(&pool->sleepers, 1);
  pthread_mutex_unlock(&pool->lock);
}

static void pool_leave(pool_t *pool) {
  if (atomic_fetch_sub(&pool->active, 1) > 1 || !atomic_load(&pool->caller_sleeps)) return;
  pthread_mutex_lock(&pool->lock);
  pthread_cond_signal(&pool->left);
  pthread_mutex_unlock(&pool->lock);
}

static void *pool_main(void *data) {
  pool_worker_t *worker = data;
  pool_t *pool = worker->pool;
  unsigned seen = 0;
  for (;;) {
    pool_await_region(pool, seen);
    if (atomic_load(&pool->stop)) return NULL;
    atomic_fetch_add(&pool->active, 1);
    unsigned region = atomic_load(&pool->region);
    if (region % 2 == 1) {
      seen = region;
      pool_work(pool, worker->thread);
    }
    pool_leave(pool);
  }
}

static void pool_await_workers(pool_t *pool) {
  for (int32_t i = 0; i < pool->spins; i++) {
    if (atomic_load(&pool->active) == 0) return;
    pool_pause();
  }
  pthread_mutex_lock(&pool->lock);
  atomic_store(&pool->caller_sleeps, true);
  while (atomic_load(&pool->active) != 0) pthread_cond_wait(&pool->left, &pool->lock);
  atomic_store(&pool->caller_sleeps, false);
  pthread_mutex_unlock(&pool->lock);
}

/* Wakes as many sleepers as there is work for; the caller does one item itself. */
static void pool_wake(pool_t *pool, int64_t items) {
  if (atomic_load(&pool->sleepers) == 0) return;
  pthread_mutex_lock(&pool->lock);
  if (items - 1 >= pool->threads - 1)
    pthread_cond_broadcast(&pool->opened);
  else
    for (int64_t i = 0; i < items - 1; i++) pthread_cond_signal(&pool->opened);
  pthread_mutex_unlock(&pool->lock);
}

static void pool_region(pool_t *pool, int64_t items, pool_fn fn, void *context, bool deaf) {
  pool->fn = fn;
  pool->context = context;
  pool->items = items;
  pool->deaf = deaf;
  atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
  atomic_store_explicit(&pool->skipped, false, memory_order_relaxed);
  bool alone = pool->threads == 1 || items <= 1;
  if (!alone) {
    atomic_fetch_add(&pool->region, 1);
    pool_wake(pool, items);
  }
  pool_work(pool, 0);
  if (!alone) {
    atomic_fetch_add(&pool->region, 1);
    pool_await_workers(pool);
  }
}

static nn_status_t pool_fail_cancelled(void) {
  return status_fail(NN_ERR_CANCELLED,
                     "the device's cancel flag is set; nn_device_cancel(device, 0) clears it");
}

nn_status_t pool_run(pool_t *pool, int64_t items, pool_fn fn, void *context) {
  if (pool_is_cancelled(pool)) return pool_fail_cancelled();
  pool_region(pool, items, fn, context, false);
  return atomic_load_explicit(&pool->skipped, memory_order_relaxed) ? pool_fail_cancelled() : NN_OK;
}

void pool_run_all(pool_t *pool, int64_t items, pool_fn fn, void *context) {
  pool_region(pool, items, fn, context, true);
}

int32_t pool_threads(const pool_t *pool) { return pool->threads; }

/* Cores that this process may use; at least 1. */
static int32_t pool_cores(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return CPU_COUNT(&set);
}

static nn_status_t pool_pin(const pool_worker_t *worker, int32_t cpu) {
  if (cpu < 0 || cpu >= CPU_SETSIZE)
    return status_fail(NN_ERR_ARGUMENT, "affinity[%d] is %d; logical CPUs are 0 to %d",
                       worker->thread, cpu, CPU_SETSIZE - 1);
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET((size_t)cpu, &set);
  int error = pthread_setaffinity_np(worker->handle, sizeof set, &set);
  if (error)
    return status_fail(NN_ERR_ARGUMENT,
                       "affinity[%d]: the system refuses logical CPU %d (error %d)", worker->thread,
                       cpu, error);
  return NN_OK;
}

static nn_status_t pool_start(pool_t *pool, const int32_t *affinity) {
  nn_status_t status = NN_OK;
  while (status == NN_OK && pool->started < pool->threads - 1) {
    pool_worker_t *worker = &pool->workers[pool->started];
    worker->pool = pool;
    worker->thread = pool->started + 1;
    int error = threads_start(&worker->handle, pool_main, worker);
    if (error) {
      status = status_fail(NN_ERR_MEMORY,
                           "thread %d of %d could not be started (error %d); ask for fewer",
                           worker->thread + 1, pool->threads, error);
      break;
    }
    pool->started++;
    if (affinity) status = pool_pin(worker, affinity[worker->thread]);
  }
  return status;
}

nn_status_t pool_create(const backend_options_t *options, pool_t **pool) {
  void *memory;
  STATUS_TRY(mem_alloc_aligned(sizeof(pool_t), &memory));
  pool_t *made = memory;
  memset(made, 0, sizeof *made);
  made->threads = options->threads;
  made->spins = options->threads <= pool_cores() ? POOL_SPINS : 0;
  made->cancelled = options->cancelled;
  made->cancel_user = options->cancel_user;
  void *workers;
  nn_status_t status = mem_alloc((size_t)options->threads, sizeof(pool_worker_t), &workers);
  if (status != NN_OK) {
    mem_free(made);
    return status;
  }
  made->workers = workers;
  pthread_mutex_init(&made->lock, NULL);
  pthread_cond_init(&made->opened, NULL);
  pthread_cond_init(&made->left, NULL);
  status = pool_start(made, options->affinity);
  if (status != NN_OK) {
    pool_destroy(made);
    return status;
  }
  *pool = made;
  return NN_OK;
}

void pool_destroy(pool_t *pool) {
  if (!pool) return;
  pthread_mutex_lock(&pool->lock);
  atomic_store(&pool->stop, true);
  pthread_cond_broadcast(&pool->opened);
  pthread_mutex_unlock(&pool->lock);
  for (int32_t i = 0; i < pool->started; i++) pthread_join(pool->workers[i].handle, NULL);
  pthread_cond_destroy(&pool->left);
  pthread_cond_destroy(&pool->opened);
  pthread_mutex_destroy(&pool->lock);
  mem_free(pool->workers);
  mem_free(pool);
}
