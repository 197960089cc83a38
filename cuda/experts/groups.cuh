/* The experts that have rows, for kernels whose blocks each find all of them. */
#ifndef NN_CUDA_GROUPS_CUH
#define NN_CUDA_GROUPS_CUH

#include "experts/grouped.cuh"

template <int MOST>
struct groups_t {
  int32_t count;
  grouped_place_t at[MOST];
};

/* In order of the experts, by the block's first warp; all threads have them afterwards. Read from
 * the second-level cache: see launch.cuh. */
template <int MOST>
__device__ __forceinline__ void groups_find(const grouped_t &grouped, groups_t<MOST> *groups) {
  if (threadIdx.x < 32) {
    int32_t lane = threadIdx.x, found = 0;
    for (int32_t first = 0; first < grouped.experts; first += 32) {
      int32_t expert = first + lane, begin = 0, end = 0;
      if (expert < grouped.experts) {
        begin = __ldcg(grouped.offset + expert);
        end = __ldcg(grouped.offset + expert + 1);
      }
      unsigned full = __ballot_sync(0xffffffffu, end > begin);
      if (end > begin) groups->at[found + __popc(full & ((1u << lane) - 1))] = {expert, begin, end};
      found += __popc(full);
    }
    if (lane == 0) groups->count = found;
  }
  __syncthreads();
}

#endif
