/* Time on a GPU, by events, and its memory bandwidth, by kernels and copies that do no more. */
#include <algorithm>
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

#include "gpu_clock.h"

enum { REPEATS = 15, TURNS = 8 };
static const size_t BYTES = (size_t)4 << 30; /* of each of two buffers: far more than the caches */

static void gpu_try(cudaError_t error) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "moenn-bench: %s\n", cudaGetErrorString(error));
  exit(1);
}

/* ---- time ---- */

struct gpu_clock {
  cudaStream_t queue;
  cudaEvent_t begin, end;
};

gpu_clock_t *gpu_clock_open(int device, void *queue) {
  gpu_clock_t *clock = (gpu_clock_t *)malloc(sizeof *clock);
  if (!clock) exit(1);
  clock->queue = (cudaStream_t)queue;
  gpu_try(cudaSetDevice(device));
  gpu_try(cudaEventCreate(&clock->begin));
  gpu_try(cudaEventCreate(&clock->end));
  return clock;
}

void gpu_clock_begin(gpu_clock_t *clock) { gpu_try(cudaEventRecord(clock->begin, clock->queue)); }

double gpu_clock_end(gpu_clock_t *clock) {
  float milliseconds;
  gpu_try(cudaEventRecord(clock->end, clock->queue));
  gpu_try(cudaEventSynchronize(clock->end));
  gpu_try(cudaEventElapsedTime(&milliseconds, clock->begin, clock->end));
  return 1e-3 * milliseconds;
}

void gpu_clock_close(gpu_clock_t *clock) {
  cudaEventDestroy(clock->begin);
  cudaEventDestroy(clock->end);
  free(clock);
}

/* ---- bandwidth ---- */

__global__ void gpu_fill(uint4 *data, size_t count) {
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count;
       i += (size_t)gridDim.x * blockDim.x) {
    unsigned x = (unsigned)i * 2654435761u;
    data[i] = make_uint4(x, x ^ 0x9e3779b9u, x * 40503u, ~x);
  }
}

/* Reads everything; what it writes keeps the compiler from leaving that out. */
__global__ void gpu_read(const uint4 *data, size_t count, unsigned *out) {
  unsigned sum = 0;
  size_t step = (size_t)gridDim.x * blockDim.x, i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {
    uint4 a = data[i], b = data[i + step], c = data[i + 2 * step], d = data[i + 3 * step];
    sum += a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w;
    sum += c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
  }
  for (; i < count; i += step) sum += data[i].x;
  if (sum == 0x12345678u) *out = sum;
}

/* Bytes a second of reading alone and of a copy, counting both ways; medians. */
void gpu_bandwidth(int device, double *read, double *copy) {
  uint4 *a, *b;
  unsigned *out;
  gpu_clock_t *clock = gpu_clock_open(device, NULL);
  cudaDeviceProp found;
  gpu_try(cudaGetDeviceProperties(&found, device));
  gpu_try(cudaMalloc(&a, BYTES));
  gpu_try(cudaMalloc(&b, BYTES));
  gpu_try(cudaMalloc(&out, sizeof *out));
  size_t count = BYTES / sizeof(uint4);
  int blocks = 8 * found.multiProcessorCount;
  gpu_fill<<<blocks, 256>>>(a, count);
  gpu_fill<<<blocks, 256>>>(b, count);
  for (int kind = 0; kind < 2; kind++) {
    double times[REPEATS];
    for (int i = -2; i < REPEATS; i++) { /* two for warming up */
      gpu_clock_begin(clock);
      for (int t = 0; t < TURNS; t++) {
        if (kind)
          gpu_try(cudaMemcpyAsync(b, a, BYTES, cudaMemcpyDeviceToDevice));
        else
          gpu_read<<<blocks, 512>>>(a, count, out);
      }
      double seconds = gpu_clock_end(clock);
      if (i >= 0) times[i] = seconds / TURNS;
    }
    std::sort(times, times + REPEATS);
    *(kind ? copy : read) = (kind ? 2.0 : 1.0) * (double)BYTES / times[REPEATS / 2];
  }
  cudaFree(a);
  cudaFree(b);
  cudaFree(out);
  gpu_clock_close(clock);
}
