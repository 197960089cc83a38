#include "model/replay.h"

nn_status_t replay_run(const nn_device_t *device, replay_t *replay, replay_fn work,
                       const void *context) {
  const backend_t *backend = device->backend;
  if (replay->graph) return backend->graph_run(device->place, replay->graph);
  if (!backend->record_begin || !replay->done) {
    replay->done = true;
    return work(context);
  }
  STATUS_TRY(backend->record_begin(device->place));
  nn_status_t status = work(context);
  STATUS_TRY(backend->record_end(device->place, &replay->graph));
  if (!replay->graph) return work(context);
  if (status == NN_OK) return backend->graph_run(device->place, replay->graph);
  replay_forget(device, replay);
  return status;
}

void replay_forget(const nn_device_t *device, replay_t *replay) {
  if (replay->graph) device->backend->graph_free(device->place, replay->graph);
  *replay = (replay_t){0};
}
