/* Launches that overlap: a kernel may begin while the one before it on the stream still runs, and
 * waits inside for its results (programmatic dependent launch, from compute capability 9.0 on).
 *
 * A kernel launched by launch_chained must, in every thread and before it leaves, call
 * launch_wait() once. Before that call it
 * - writes nothing that an earlier kernel of the chain reads or writes,
 * - may prefetch into the second-level cache, where no value can go stale, and
 * - reads only what copies from the host wrote (positions, sequences, their lengths); parameters,
 *   for kernels that write these never call launch_next(); and, if the kernel before calls
 *   launch_next() after launch_wait(), what was done when that one had waited, or what that one
 *   wrote before a __threadfence() and its launch_next(); from the second-level cache (__ldcg)
 *   where it changes from layer to layer.
 * Then all earlier work on the stream is done, for each kernel of a chain has waited for the one
 * before. Afterwards it reads what earlier kernels wrote by ordinary loads, not through the
 * read-only path. launch_next() lets the next kernel begin. It is called first of all where nothing
 * speaks against it: blocks that wait take no time away from others. */
#ifndef NN_CUDA_LAUNCH_CUH
#define NN_CUDA_LAUNCH_CUH

#include "kernel.cuh"

__device__ __forceinline__ void launch_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void launch_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Asks for a row of bytes; called by one thread. Whole sixteens from an aligned address go by one
 * instruction, where there is one. */
__device__ __forceinline__ void launch_prefetch(const void *from, int64_t bytes) {
#if __CUDA_ARCH__ >= 900
  if ((((uintptr_t)from | (uintptr_t)bytes) & 15) == 0) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;"
                 :
                 : "l"(__cvta_generic_to_global(from)), "r"((uint32_t)bytes));
    return;
  }
#endif
  size_t begin = __cvta_generic_to_global(from);
  for (int64_t at = 0; at < bytes; at += 128)
    asm volatile("prefetch.global.L2 [%0];" : : "l"(begin + at));
}

/* cluster: blocks of a cluster; 0 without. A failure is found by cuda_launched. */
template <typename... Parameters, typename... Arguments>
static inline void launch_chained(const backend_device_t *device, void (*kernel)(Parameters...),
                                  dim3 grid, dim3 block, size_t shared, unsigned cluster,
                                  Arguments... arguments) {
  cudaLaunchAttribute attribute[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared;
  config.stream = device->stream, config.attrs = attribute;
  if (device->capability >= 90) {
    attribute[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster) {
    cudaLaunchAttribute *at = &attribute[config.numAttrs++];
    at->id = cudaLaunchAttributeClusterDimension;
    at->val.clusterDim.x = cluster, at->val.clusterDim.y = at->val.clusterDim.z = 1;
  }
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

#endif
