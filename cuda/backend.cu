/* The CUDA backend: opening and closing, memory, copies, graphs, and what errors mean. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dlpack.h"
#include "device.h"

struct backend_graph {
  cudaGraphExec_t run;
};

/* ---- failures -------------------------------------------------------------------------------- */

nn_status_t cuda_fail(const backend_device_t *device, nn_status_t status, const char *operation,
                      const char *what) {
  char message[512];
  snprintf(message, sizeof message, "cuda:%d: %s: %s", device->index, operation, what);
  return device->options.fail(status, message);
}

/* Errors of a single call, after which the device works on. Every other one is taken to have lost
 * it: the driver repeats such an error on each later call. */
static int backend_error_passes(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorNotSupported:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated: return 1;
    default: return 0;
  }
}

nn_status_t cuda_check(backend_device_t *device, const char *operation, cudaError_t error) {
  if (error == cudaSuccess) return NN_OK;
  cudaGetLastError(); /* what passes is not to be found again by the next look */
  if (error == cudaErrorMemoryAllocation)
    return cuda_fail(device, NN_ERR_MEMORY, operation, "device memory could not be had");
  char what[256];
  const char *text = cudaGetErrorString(error);
  if (backend_error_passes(error))
    return cuda_fail(device, NN_ERR_DEVICE, operation, text);
  device->lost = 1;
  snprintf(what, sizeof what, "%s; the device is lost, and its handles can only be destroyed",
           text);
  return cuda_fail(device, NN_ERR_DEVICE, operation, what);
}

nn_status_t cuda_select(backend_device_t *device, const char *operation) {
  if (device->lost)
    return cuda_fail(device, NN_ERR_DEVICE, operation,
                        "the device was lost by an earlier failure");
  return cuda_check(device, operation, cudaSetDevice(device->index));
}

nn_status_t cuda_enter(backend_device_t *device, const char *operation) {
  if (!device->options.cancelled(device->options.cancel_user))
    return cuda_select(device, operation);
  return device->options.fail(NN_ERR_CANCELLED,
                              "cancelled; clear it with nn_device_cancel(device, 0)");
}

nn_status_t cuda_launched(backend_device_t *device, const char *operation) {
  return cuda_check(device, operation, cudaGetLastError());
}

/* ---- memory ---------------------------------------------------------------------------------- */

static nn_status_t backend_alloc(backend_device_t *device, size_t bytes, void **data) {
  CUDA_TRY(cuda_select(device, "alloc"));
  return cuda_check(device, "alloc", cudaMalloc(data, bytes));
}

/* cudaFree waits for the device, which no recording may see. Nothing can be said of its failures,
 * and nothing need be: only a lost device has them. */
static void backend_free(backend_device_t *device, void *data, size_t bytes) {
  (void)bytes;
  pthread_mutex_lock(&device->recording);
  if (cudaSetDevice(device->index) == cudaSuccess) cudaFree(data);
  pthread_mutex_unlock(&device->recording);
  cudaGetLastError();
}

/* Waits for the stream, after which the stage is free. */
static cudaError_t backend_settle(backend_device_t *device) {
  device->staged = 0;
  return cudaStreamSynchronize(device->stream);
}

/* A small copy through the stage, where that has room, and nobody waits. */
static cudaError_t backend_put_small(backend_device_t *device, void *data, const void *host,
                                     size_t bytes, size_t *done) {
  if (bytes > CUDA_STAGE_MOST || device->staged + bytes > CUDA_STAGE_BYTES) return cudaSuccess;
  char *at = device->stage + device->staged;
  device->staged += (bytes + 255) / 256 * 256;
  memcpy(at, host, bytes);
  *done = bytes;
  return cudaMemcpyAsync(data, at, bytes, cudaMemcpyHostToDevice, device->stream);
}

/* Straight from the caller's memory, which must be read by the end. */
static cudaError_t backend_put(backend_device_t *device, void *data, const void *host,
                               size_t bytes) {
  cudaError_t error = cudaMemcpyAsync(data, host, bytes, cudaMemcpyHostToDevice, device->stream);
  return error == cudaSuccess ? backend_settle(device) : error;
}

static cudaError_t backend_get(backend_device_t *device, void *host, const void *data,
                               size_t bytes) {
  bool small = bytes <= CUDA_STAGE_MOST;
  if (small && device->staged + bytes > CUDA_STAGE_BYTES) {
    cudaError_t error = backend_settle(device);
    if (error != cudaSuccess) return error;
  }
  char *at = small ? device->stage + device->staged : (char *)host;
  cudaError_t error = cudaMemcpyAsync(at, data, bytes, cudaMemcpyDeviceToHost, device->stream);
  if (error == cudaSuccess) error = backend_settle(device);
  if (error == cudaSuccess && small) memcpy(host, at, bytes);
  return error;
}

/* No recording may hold a copy, which other threads may ask for at any time. */
static nn_status_t backend_copy_in(backend_device_t *device, void *data, const void *host,
                                   size_t bytes) {
  size_t done = 0;
  CUDA_TRY(cuda_select(device, "copy_in"));
  pthread_mutex_lock(&device->recording);
  cudaError_t error = backend_put_small(device, data, host, bytes, &done);
  pthread_mutex_unlock(&device->recording);
  CUDA_TRY(cuda_check(device, "copy_in", error));
  if (done < bytes) CUDA_TRY(cuda_copy_in(device, data, host, bytes, &done));
  if (done == bytes) return NN_OK;
  pthread_mutex_lock(&device->recording);
  error = backend_put(device, (char *)data + done, (const char *)host + done, bytes - done);
  pthread_mutex_unlock(&device->recording);
  return cuda_check(device, "copy_in", error);
}

static nn_status_t backend_copy_out(backend_device_t *device, void *host, const void *data,
                                    size_t bytes) {
  CUDA_TRY(cuda_select(device, "copy_out"));
  if (!bytes) return NN_OK;
  pthread_mutex_lock(&device->recording);
  cudaError_t error = backend_get(device, host, data, bytes);
  pthread_mutex_unlock(&device->recording);
  return cuda_check(device, "copy_out", error);
}

static nn_status_t backend_zero(backend_device_t *device, void *data, size_t bytes) {
  CUDA_TRY(cuda_select(device, "zero"));
  if (!bytes) return NN_OK;
  return cuda_check(device, "zero", cudaMemsetAsync(data, 0, bytes, device->stream));
}

static size_t backend_workspace_bytes(const backend_device_t *device,
                                      const backend_limits_t *limits) {
  size_t parts[] = {cuda_matmul_scratch(device, limits),    cuda_norm_scratch(device, limits),
                    cuda_column_sum_scratch(device, limits), cuda_attention_scratch(device, limits),
                    cuda_route_scratch(device, limits),     cuda_experts_scratch(device, limits),
                    cuda_head_loss_scratch(device, limits), cuda_optim_scratch(device),
                    cuda_sample_scratch(device, limits)};
  size_t most = 0;
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
    if (parts[i] > most) most = parts[i];
  return most;
}

/* ---- graphs ---------------------------------------------------------------------------------- */

/* Other threads may allocate meanwhile, so only this thread's calls are restricted. */
static nn_status_t backend_record_begin(backend_device_t *device) {
  CUDA_TRY(cuda_select(device, "record"));
  pthread_mutex_lock(&device->recording);
  nn_status_t status = cuda_check(
      device, "record", cudaStreamBeginCapture(device->stream, cudaStreamCaptureModeThreadLocal));
  if (status != NN_OK) pthread_mutex_unlock(&device->recording);
  return status;
}

static nn_status_t backend_record_end(backend_device_t *device, backend_graph_t **graph) {
  *graph = NULL;
  cudaGraph_t recorded = NULL;
  cudaError_t error = cudaStreamEndCapture(device->stream, &recorded);
  pthread_mutex_unlock(&device->recording);
  if (error == cudaErrorStreamCaptureInvalidated) {
    cudaGetLastError();
    return NN_OK;
  }
  CUDA_TRY(cuda_check(device, "record", error));
  cudaGraphExec_t run = NULL;
  error = cudaGraphInstantiate(&run, recorded, 0);
  cudaGraphDestroy(recorded);
  CUDA_TRY(cuda_check(device, "record", error));
  backend_graph_t *made = (backend_graph_t *)calloc(1, sizeof *made);
  if (!made) {
    cudaGraphExecDestroy(run);
    return cuda_fail(device, NN_ERR_MEMORY, "record", "host memory could not be had");
  }
  made->run = run;
  *graph = made;
  return NN_OK;
}

static nn_status_t backend_graph_run(backend_device_t *device, backend_graph_t *graph) {
  CUDA_TRY(cuda_enter(device, "graph"));
  return cuda_check(device, "graph", cudaGraphLaunch(graph->run, device->stream));
}

static void backend_graph_free(backend_device_t *device, backend_graph_t *graph) {
  if (!graph) return;
  pthread_mutex_lock(&device->recording);
  if (cudaSetDevice(device->index) == cudaSuccess) {
    backend_settle(device);
    cudaGraphExecDestroy(graph->run);
  }
  pthread_mutex_unlock(&device->recording);
  cudaGetLastError();
  free(graph);
}

/* ---- opening --------------------------------------------------------------------------------- */

/* Fills as much of the caller's struct as it has. */
static void backend_describe(const backend_device_t *device, backend_info_t *info) {
  backend_info_t found = {};
  found.struct_size = info->struct_size;
  found.threads = 1;
  found.dlpack_device = DLPACK_CUDA;
  found.dlpack_id = device->index;
  found.act_dtype = NN_BF16, found.act_dtype_f16 = NN_F16;
  found.model = device->model;
  found.queue = device->stream;
  memcpy(info, &found, info->struct_size < sizeof found ? info->struct_size : sizeof found);
}

static void backend_close(backend_device_t *device) {
  if (!device) return;
  if (cudaSetDevice(device->index) == cudaSuccess) {
    if (device->stream) cudaStreamSynchronize(device->stream);
    cuda_matmul_close(device);
    cuda_copy_close(device);
    cudaFree(device->done);
    cudaFreeHost(device->stage);
    if (device->stream) cudaStreamDestroy(device->stream);
  }
  cudaGetLastError();
  pthread_mutex_destroy(&device->recording);
  free(device);
}

static void backend_fill_table(backend_t *table) {
  table->abi_version = BACKEND_ABI_VERSION;
  table->struct_size = sizeof *table;
  table->close = backend_close;
  table->describe = backend_describe;
  table->alloc = backend_alloc;
  table->free = backend_free;
  table->copy_in = backend_copy_in;
  table->copy_out = backend_copy_out;
  table->zero = backend_zero;
  table->workspace_bytes = backend_workspace_bytes;
  table->embed = cuda_embed;
  table->embed_bwd = cuda_embed_bwd;
  table->norm = cuda_norm;
  table->norm_bwd = cuda_norm_bwd;
  table->matmul = cuda_matmul;
  table->column_sum = cuda_column_sum;
  table->clip = cuda_clip;
  table->clip_bwd = cuda_clip_bwd;
  table->copy_heads = cuda_copy_heads;
  table->rope = cuda_rope;
  table->attention = cuda_attention;
  table->attention_bwd = cuda_attention_bwd;
  table->kv_store = cuda_kv_store;
  table->route = cuda_route;
  table->route_bwd = cuda_route_bwd;
  table->router_loss = cuda_router_loss;
  table->glu = cuda_glu;
  table->glu_bwd = cuda_glu_bwd;
  table->row_gate = cuda_row_gate;
  table->row_gate_bwd = cuda_row_gate_bwd;
  table->experts = cuda_experts;
  table->experts_bwd = cuda_experts_bwd;
  table->head_loss = cuda_head_loss;
  table->softmax = cuda_softmax;
  table->grad_norm = cuda_grad_norm;
  table->adamw = cuda_adamw;
  table->sample = cuda_sample;
  table->fill_normal = cuda_fill_normal;
  table->project = cuda_project;
  table->moe = cuda_moe;
  table->record_begin = backend_record_begin;
  table->record_end = backend_record_end;
  table->graph_run = backend_graph_run;
  table->graph_free = backend_graph_free;
}

/* MOENN_CUDA_CAPABILITY, as 80, makes a newer GPU take the kernels of an older one, as MOENN_CPU
 * does with paths: for tests. */
static int backend_capability(int found) {
  const char *text = getenv("MOENN_CUDA_CAPABILITY");
  int asked = text ? atoi(text) : found;
  return asked >= 80 && asked < found ? asked : found;
}

/* What the device is; a GPU that the kernels were not built for is refused. */
static nn_status_t backend_probe(backend_device_t *device) {
  cudaDeviceProp found;
  CUDA_TRY(cuda_check(device, "open", cudaGetDeviceProperties(&found, device->index)));
  device->capability = backend_capability(10 * found.major + found.minor);
  device->multiprocessors = found.multiProcessorCount;
  device->shared_bytes = (int)found.sharedMemPerBlockOptin;
  device->cache_bytes = found.l2CacheSize;
  snprintf(device->model, sizeof device->model, "%s", found.name);
  if (device->capability >= 80) return NN_OK;
  char what[384];
  snprintf(what, sizeof what, "%s has compute capability %d.%d; 8.0 is the least", found.name,
           found.major, found.minor);
  return cuda_fail(device, NN_ERR_UNSUPPORTED, "open", what);
}

static nn_status_t backend_stage(backend_device_t *device) {
  cudaError_t error =
      cudaHostAlloc((void **)&device->stage, CUDA_STAGE_BYTES, cudaHostAllocDefault);
  if (error != cudaErrorMemoryAllocation) return cuda_check(device, "open", error);
  cudaGetLastError();
  return cuda_fail(device, NN_ERR_MEMORY, "open", "page-locked host memory could not be had");
}

static nn_status_t backend_begin(backend_device_t *device) {
  CUDA_TRY(backend_probe(device));
  CUDA_TRY(cuda_select(device, "open"));
  CUDA_TRY(cuda_check(device, "open",
                      cudaStreamCreateWithFlags(&device->stream, cudaStreamNonBlocking)));
  CUDA_TRY(cuda_check(device, "open", cudaMalloc((void **)&device->done, sizeof *device->done)));
  CUDA_TRY(backend_zero(device, device->done, sizeof *device->done));
  CUDA_TRY(backend_stage(device));
  CUDA_TRY(cuda_copy_open(device));
  return cuda_matmul_open(device);
}

/* Says whether the system has the GPU that was asked for. */
static nn_status_t backend_find(const backend_options_t *options) {
  char message[320];
  int count = 0, driver = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  cudaGetLastError();
  if (error != cudaSuccess && error != cudaErrorNoDevice) {
    snprintf(message, sizeof message, "cuda:%d: no GPU can be used: %s", options->index,
             driver ? cudaGetErrorString(error) : "there is no NVIDIA driver");
    return options->fail(NN_ERR_NOT_FOUND, message);
  }
  if (options->index >= 0 && options->index < count) return NN_OK;
  snprintf(message, sizeof message, "cuda:%d: the system shows %d GPU%s", options->index, count,
           count == 1 ? "" : "s");
  return options->fail(NN_ERR_NOT_FOUND, message);
}

extern "C" __attribute__((visibility("default"))) nn_status_t moenn_cuda_open(
    const backend_options_t *options, const backend_t **table, backend_device_t **device) {
  if (options->struct_size < sizeof *options)
    return options->fail(NN_ERR_UNSUPPORTED,
                         "libmoenn_cuda.so is newer than the library that opens it");
  CUDA_TRY(backend_find(options));
  backend_device_t *made = (backend_device_t *)calloc(1, sizeof *made);
  if (!made) return options->fail(NN_ERR_MEMORY, "host memory could not be had");
  made->options = *options;
  made->options.affinity = NULL;
  made->index = options->index;
  pthread_mutex_init(&made->recording, NULL);
  backend_fill_table(&made->table);
  nn_status_t status = backend_begin(made);
  if (status != NN_OK) {
    backend_close(made);
    return status;
  }
  *table = &made->table;
  *device = made;
  return NN_OK;
}
