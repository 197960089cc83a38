/* What an optimizer keeps from update to update, and what its files hold. */
#ifndef NN_MODEL_OPTIM_STATE_H
#define NN_MODEL_OPTIM_STATE_H

#include <stdint.h>

#define OPTIM_MOST_STEPS ((int64_t)1 << 53) /* up to which a double holds every number */
#define OPTIM_MOST_LOSS_SCALE ((int64_t)1 << 24)

typedef struct optim_state {
  int32_t dtype; /* of the parameters */
  float *m, *v;  /* [params.elements], in device memory */
  void *masters; /* [params.elements] int16_t beside bf16 parameters, float beside fp16 ones, or
                    NULL */
  int64_t steps;
  int64_t loss_scale;       /* of fp16 parameters: a power of two */
  int64_t loss_scale_steps; /* updates since it last changed */
} optim_state_t;

#endif
