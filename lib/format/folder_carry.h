/* What a model folder holds beside the model, from the folder that a model was loaded from to the
 * one that it is saved in: the tokenizer's files, generation_config.json, and the ids of tokens
 * that config.json names. */
#ifndef NN_FORMAT_FOLDER_CARRY_H
#define NN_FORMAT_FOLDER_CARRY_H

#include <jansson.h>

#include "moenn.h"

/* Copies into the folder `place`, which becomes part of the folder `target`, each such file that
 * `source` has and `target` has not. */
nn_status_t folder_carry(const char *source, const char *target, const char *place);

/* The ids of tokens in the folder's config.json, as an object that the caller frees; empty where
 * there is no such file, or it cannot be read. */
nn_status_t folder_carry_tokens(const char *source, json_t **tokens);

#endif
