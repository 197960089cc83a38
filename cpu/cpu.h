/* What the files of the CPU backend share: the device, its threads, and the tables of each path. */
#ifndef NN_CPU_H
#define NN_CPU_H

#include <stdint.h>

#include "backend.h"
#include "base/status.h"
#include "dispatch.h"

/* ---- threads.c: the pool --------------------------------------------------------------------- */

typedef struct pool pool_t;

/* Does one item; thread is 0 .. threads - 1 (0: the caller), for scratch of its own. */
typedef void (*pool_fn)(void *context, int64_t item, int32_t thread);

/* Takes threads, affinity and cancelled from the options. */
nn_status_t pool_create(const backend_options_t *options, pool_t **pool);
void pool_destroy(pool_t *pool);
int32_t pool_threads(const pool_t *pool);

/* Runs fn for items 0 .. items - 1, each once, in any order, on any thread; returns when all are
 * done. Once the caller cancels, the remaining items are skipped and the status is
 * NN_ERR_CANCELLED. One region at a time; fn must not call into the pool. */
nn_status_t pool_run(pool_t *pool, int64_t items, pool_fn fn, void *context);

/* The same, deaf to cancelling. */
void pool_run_all(pool_t *pool, int64_t items, pool_fn fn, void *context);

/* ---- device ---------------------------------------------------------------------------------- */

struct backend_device {
  backend_t table;   /* filled with the reference first, then overridden by the allowed paths */
  pool_t *pool;
  int32_t threads;
  int32_t cpu_paths; /* paths in use */
  char model[DISPATCH_MODEL_BYTES];
};

/* ---- tables: each sets the operations that its path has -------------------------------------- */

void ref_table(backend_t *table);
void avx2_table(backend_t *table);
void avx512_table(backend_t *table);

#endif
