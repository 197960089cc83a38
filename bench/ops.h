/* What the files about a CPU's operations share: buffers cut from one block, and running an
 * operation on them. */
#ifndef BENCH_OPS_H
#define BENCH_OPS_H

#include <stddef.h>

#include "bench.h"

/* The device and one large block of fp32 numbers that buffers are cut from. */
typedef struct ops {
  const backend_t *backend;
  backend_device_t *place;
  backend_scratch_t scratch;
  const bench_ceilings_t *peak;
  float *pool;
  size_t pool_floats, used;
  bool cold;
} ops_t;

enum { OPS_TOKENS = 1024, OPS_NAME = 96 };

/* A buffer of the pool, full of small numbers, until ops_drop, which gives all of them back. */
float *ops_take(ops_t *ops, int64_t count);
int32_t *ops_take_ints(ops_t *ops, int64_t count);
void ops_drop(ops_t *ops);

/* Numbers of a dtype, its name, and what stands behind the names of lines that are not fp32's. */
void *ops_take_as(ops_t *ops, int64_t count, int32_t dtype);
const char *ops_dtype(int32_t dtype);
const char *ops_tail(int32_t dtype);
/* What a CPU's activations have beside weights of a dtype. */
int32_t ops_act(int32_t dtype);
/* Element i of what has a dtype. */
void *ops_at(void *data, int64_t i, int32_t dtype);

/* Measures an operation and prints its line. With --cold all of its buffers that lie in the pool
 * are others from call to call, as many as fit there. */
typedef nn_status_t (*ops_fn)(backend_device_t *, const void *, backend_scratch_t);
void ops_run(ops_t *ops, const char *name, ops_fn fn, const void *op, size_t bytes,
             bench_work_t work);
#define RUN(ops, name, member, op, work) \
  ops_run(ops, name, (ops_fn)(void (*)(void))(ops)->backend->member, &(op), sizeof(op), work)

/* Work as a share of the rate of products beside weights of a dtype. */
bench_work_t ops_flops(const ops_t *ops, double amount, int32_t dtype);
/* Work as a share of bandwidth, which is no ceiling of what stays in the caches. */
bench_work_t ops_moved(const ops_t *ops, double amount, bool writes);

/* ---- the files ---- */
void ops_attentions(ops_t *ops);
void ops_mixtures(ops_t *ops);
void ops_others(ops_t *ops);

#endif
