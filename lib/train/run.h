/* Batches through a prepared model: logits, loss, gradients. */
#ifndef NN_TRAIN_RUN_H
#define NN_TRAIN_RUN_H

#include "model/model.h"

/* The calling code has checked handles, shapes and ids, and holds the device. */

/* logits: host [batch, seq_len, vocab]. */
nn_status_t run_forward(nn_model_t *model, const int32_t *tokens, int64_t batch, int64_t seq_len,
                        float *logits);

/* Loss of a batch; with gradients, times scale and the loss scale, added to the model's. loss NULL:
 * nothing is waited for. */
nn_status_t run_loss(nn_model_t *model, const int32_t *tokens, const int32_t *targets,
                     int64_t batch, int64_t seq_len, bool gradients, float scale, nn_loss_t *loss);

#endif
