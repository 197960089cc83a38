/* What the files of the CUDA backend share on the host's side: the device, failures, scratch. */
#ifndef NN_CUDA_DEVICE_H
#define NN_CUDA_DEVICE_H

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <pthread.h>

#include "backend.h"

enum { CUDA_STAGE_BYTES = 64 << 10, CUDA_STAGE_MOST = 8 << 10 /* of one copy */ };

typedef struct matmul_plans matmul_plans_t; /* ops/matmul.cu */
typedef struct copy_pieces copy_pieces_t;   /* copy.cu */

struct backend_device {
  backend_t table;
  backend_options_t options; /* the caller's functions; pointers to arrays are not kept */
  int index;
  int capability;     /* 10 * major + minor */
  int multiprocessors;
  int shared_bytes;   /* most dynamic shared memory of a block */
  int cache_bytes;    /* of the second-level cache */
  char model[256];
  cudaStream_t stream; /* everything runs in its order */
  pthread_mutex_t recording; /* held from record_begin to record_end, and by what other threads may
                                ask for at any time and no recording may see: copies, and what waits
                                for the stream or the device */
  char *stage;   /* [CUDA_STAGE_BYTES] of the host that the GPU reads by itself: small copies */
  size_t staged; /* bytes of it that copies in flight may still read; of `recording` */
  unsigned *done; /* [1] in device memory: blocks of a kernel that are done; 0 between kernels */
  copy_pieces_t *copies;
  cublasLtHandle_t lt;
  matmul_plans_t *plans;
  volatile int lost;  /* 1 after an error that no later call can succeed after */
};

/* Says what the operation failed by; returns status. */
nn_status_t cuda_fail(const backend_device_t *device, nn_status_t status, const char *operation,
                      const char *what);

/* NN_OK, or the failure that a CUDA error means for the operation. */
nn_status_t cuda_check(backend_device_t *device, const char *operation, cudaError_t error);

/* What every operation begins with: the calling thread is put on the device; a lost device and a
 * cancelled call are failures. cuda_select leaves cancelling out. */
nn_status_t cuda_select(backend_device_t *device, const char *operation);
nn_status_t cuda_enter(backend_device_t *device, const char *operation);

/* What every operation ends with: the status of its launches. */
nn_status_t cuda_launched(backend_device_t *device, const char *operation);

#define CUDA_TRY(expression)                    \
  do {                                          \
    nn_status_t status_ = (expression);         \
    if (status_ != NN_OK) return status_;       \
  } while (0)

/* ---- scratch --------------------------------------------------------------------------------- */

/* Pieces of scratch follow one another, each aligned to 256 bytes. The same calls count (base NULL)
 * and hand out, so that workspace_bytes() and an operation cannot differ. */
typedef struct cuda_arena {
  char *base;
  size_t used;
} cuda_arena_t;

static inline void *cuda_take(cuda_arena_t *arena, int64_t count, size_t size) {
  void *at = arena->base ? arena->base + arena->used : NULL;
  arena->used += ((size_t)count * size + 255) / 256 * 256;
  return at;
}

static inline bool cuda_is_half(int32_t dtype) { return dtype == NN_BF16 || dtype == NN_F16; }
static inline size_t cuda_dtype_bytes(int32_t dtype) { return cuda_is_half(dtype) ? 2 : 4; }

static inline int64_t cuda_blocks(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* Scratch of each operation that takes some. */
size_t cuda_matmul_scratch(const backend_device_t *device, const backend_limits_t *limits);
size_t cuda_norm_scratch(const backend_device_t *device, const backend_limits_t *limits);
size_t cuda_column_sum_scratch(const backend_device_t *device, const backend_limits_t *limits);
size_t cuda_attention_scratch(const backend_device_t *device, const backend_limits_t *limits);
size_t cuda_route_scratch(const backend_device_t *device, const backend_limits_t *limits);
size_t cuda_experts_scratch(const backend_device_t *device, const backend_limits_t *limits);
size_t cuda_head_loss_scratch(const backend_device_t *device, const backend_limits_t *limits);
size_t cuda_optim_scratch(const backend_device_t *device);
size_t cuda_sample_scratch(const backend_device_t *device, const backend_limits_t *limits);

/* ---- operations ------------------------------------------------------------------------------ */

#define CUDA_OP(name, args) \
  nn_status_t cuda_##name(backend_device_t *device, const args *op, backend_scratch_t scratch)

CUDA_OP(embed, op_embed_t);
CUDA_OP(embed_bwd, op_embed_bwd_t);
CUDA_OP(norm, op_norm_t);
CUDA_OP(norm_bwd, op_norm_bwd_t);
CUDA_OP(matmul, op_matmul_t);
CUDA_OP(column_sum, op_column_sum_t);
CUDA_OP(clip, op_clip_t);
CUDA_OP(clip_bwd, op_clip_bwd_t);
CUDA_OP(copy_heads, op_copy_heads_t);
CUDA_OP(rope, op_rope_t);
CUDA_OP(attention, op_attention_t);
CUDA_OP(attention_bwd, op_attention_bwd_t);
CUDA_OP(kv_store, op_kv_store_t);
CUDA_OP(route, op_route_t);
CUDA_OP(route_bwd, op_route_bwd_t);
CUDA_OP(router_loss, op_router_loss_t);
CUDA_OP(glu, op_glu_t);
CUDA_OP(glu_bwd, op_glu_bwd_t);
CUDA_OP(row_gate, op_row_gate_t);
CUDA_OP(row_gate_bwd, op_row_gate_bwd_t);
CUDA_OP(experts, op_experts_t);
CUDA_OP(experts_bwd, op_experts_bwd_t);
CUDA_OP(head_loss, op_head_loss_t);
CUDA_OP(softmax, op_softmax_t);
CUDA_OP(grad_norm, op_grad_norm_t);
CUDA_OP(adamw, op_adamw_t);
CUDA_OP(sample, op_sample_t);
CUDA_OP(fill_normal, op_fill_normal_t);
CUDA_OP(project, op_project_t);
CUDA_OP(moe, op_moe_t);

/* copy.cu: copies by way of page-locked memory, returning once `host` is read. *done: bytes that
 * went that way; fewer than were asked for where the system has no such memory. */
nn_status_t cuda_copy_open(backend_device_t *device);
void cuda_copy_close(backend_device_t *device);
nn_status_t cuda_copy_in(backend_device_t *device, void *data, const void *host, size_t bytes,
                         size_t *done);

/* ops/matmul.cu: the handle's plans. */
nn_status_t cuda_matmul_open(backend_device_t *device);
void cuda_matmul_close(backend_device_t *device);

#endif
