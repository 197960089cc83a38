/* What routing's forward and backward share. Where a token has LANES lanes of a warp, lane q of
 * them holds experts q + LANES * j, j < PER. At most 1024 experts. */
#ifndef NN_CUDA_ROUTE_CUH
#define NN_CUDA_ROUTE_CUH

#include "kernel.cuh"

enum { ROUTE_THREADS = 256, ROUTE_WARPS = ROUTE_THREADS / 32 };

/* Whether experts are chosen by the softmax of x w^T alone. */
static inline int route_plain(const op_router_t *router) {
  return router->score == NN_SCORE_SOFTMAX && !router->groups && !router->bias &&
         !router->choice_bias;
}

enum {
  ROUTE_BLOCKS = 256, /* most blocks: each reads the counts of all */
  ROUTE_LEAST = 16,   /* least tokens of a block where there are several: scratch counts on it */
  ROUTE_FEW = 16,     /* few experts */
  ROUTE_RANKED = ROUTE_FEW /* most experts where a block ranks its slots */
};

typedef struct route_plan {
  int64_t tokens;  /* of a block */
  int blocks;
  int wide;        /* threads side by side over experts: the power of two from E on, at most all */
  int vectors;     /* x and w may be read in 16 bytes */
  int ranked;      /* slot_row has ROUTE_RANKED times how many of the block's earlier tokens chose
                      the same, and the expert */
  int32_t *count;  /* [blocks, E], or [blocks, ROUTE_RANKED] where ranked: slots of each block's
                      tokens that chose e */
  double *sums;    /* [blocks, E + 1] over each block's tokens: probabilities, lse^2 */
} route_plan_t;

/* route_few.cu: what route_plain says, up to ROUTE_TILE tokens and ROUTE_FEW experts. vectors: x
 * and w may be read in 16 bytes. */
void route_few(backend_device_t *device, const op_route_t *op, int vectors);

/* route_sm90.cu: the first kernel, where it is for this device and operation; fills in the plan and
 * ranks. */
int route90_takes(const backend_device_t *device, const op_route_t *op, const route_plan_t *plan);
nn_status_t route90(backend_device_t *device, const op_route_t *op, route_plan_t *plan);

/* route_many.cu: logits and the first kernel for more experts than ROUTE_FEW; fills in the plan. */
nn_status_t route_many(backend_device_t *device, const op_route_t *op, route_plan_t *plan,
                       backend_scratch_t scratch);

/* route_sorted.cu: whether it is for this operation, and the first kernel behind the product. */
int route_sorts(const op_route_t *op);
nn_status_t route_sorted(backend_device_t *device, const op_route_t *op, const route_plan_t *plan);

/* route_place_many.cu: the second kernel for more experts than ROUTE_FEW and up to this many. */
enum { ROUTE_PLACE_MANY = 256 };
void route_place_many(backend_device_t *device, const op_route_t *op, const route_plan_t *plan);

/* route_bwd.cu */
size_t route_bwd_scratch(const backend_device_t *device, const backend_limits_t *limits);

#endif
