/* Work that is done again and again with the same arguments, only on other contents of device
 * memory: it runs as it is the first time, so that what is set up once is; is noted down the second
 * time, where the backend has graphs; and from then on is one launch. */
#ifndef NN_MODEL_REPLAY_H
#define NN_MODEL_REPLAY_H

#include "base/device.h"

typedef struct replay {
  backend_graph_t *graph; /* NULL: not noted down yet */
  bool done;              /* the work ran once */
} replay_t;

/* Calls operations and nothing else of the backend, and leaves host memory as it is: where a
 * recording is broken off, it is called again. */
typedef nn_status_t (*replay_fn)(const void *context);

nn_status_t replay_run(const nn_device_t *device, replay_t *replay, replay_fn work,
                       const void *context);

/* Forgets the work: other arguments come, or the memory that it used goes. */
void replay_forget(const nn_device_t *device, replay_t *replay);

#endif
