/* The byte tokenizer: an id per byte value, then three specials that stand for no text. */
#ifndef NN_TEXT_BYTES_H
#define NN_TEXT_BYTES_H

#include "text/tokenizer.h"

nn_status_t bytes_create(nn_tokenizer_t **tokenizer);

#endif
