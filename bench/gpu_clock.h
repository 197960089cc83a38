/* Time on a GPU, by events in the stream in which it works, and its memory bandwidth. A failure of
 * CUDA ends the program with its message. */
#ifndef BENCH_GPU_CLOCK_H
#define BENCH_GPU_CLOCK_H

#ifdef __cplusplus
extern "C" {
#endif

typedef struct gpu_clock gpu_clock_t;

/* queue: a cudaStream_t of the device. */
gpu_clock_t *gpu_clock_open(int device, void *queue);
void gpu_clock_begin(gpu_clock_t *clock);
/* Seconds since begin of what was queued, once it is done. */
double gpu_clock_end(gpu_clock_t *clock);
void gpu_clock_close(gpu_clock_t *clock);

/* Bytes a second of reading alone and of a copy, counting both ways; medians. */
void gpu_bandwidth(int device, double *read, double *copy);

#ifdef __cplusplus
}
#endif

#endif
