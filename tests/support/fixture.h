/* What tests of whole models share: checked calls, devices of one path, small models, tokens, and
 * all parameters or gradients as one array. */
#ifndef NN_TEST_FIXTURE_H
#define NN_TEST_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
/* cmocka.h wants the headers above first */
#include <cmocka.h>

#include "moenn.h"

/* The call must give this status; its message is part of the failure. */
#define CHECK_STATUS(want, call) fixture_check(want, call, #call, __FILE__, __LINE__)
#define CHECK(call) CHECK_STATUS(NN_OK, call)
void fixture_check(nn_status_t want, nn_status_t got, const char *call, const char *file, int line);

/* A public struct of zeros that knows its size. */
#define STRUCT(type) ((type){.struct_size = sizeof(type)})

/* Zeroed memory, or the test ends. */
void *fixture_memory(size_t bytes);

/* ---- devices ---- */

/* CPU path masks, the plain one first; a device takes the best path of its mask. */
enum { FIXTURE_PATHS = 4 };
extern const int32_t fixture_path[FIXTURE_PATHS];
const char *fixture_path_name(int32_t path);

/* The CPU, or what MOENN_TEST_DEVICE names; ends the program as skipped where that is not there. */
nn_device_t *fixture_device(int32_t threads, int32_t paths);
nn_device_t *fixture_device_named(const char *name, int32_t threads, int32_t paths);

/* A device that has this path, or NULL where the processor or the build lacks it. A GPU stands in
 * for the first path. */
nn_device_t *fixture_device_of_path(int32_t threads, int32_t path);

nn_memory_t fixture_device_memory(const nn_device_t *device);

/* ---- models ---- */

/* Two layers, odd widths, grouped queries, both router losses. */
nn_model_config_t fixture_moe(void);
/* Two layers, odd inner width. */
nn_model_config_t fixture_gpt2(void);
/* Of the other families, with all that they have beyond those two; as wide as the first, two or
 * three layers. */
enum { FIXTURE_FAMILIES = 14 };
nn_model_config_t fixture_family(int32_t index);

/* Gives a configuration LongRoPE's factors, as many as its heads have pairs. */
void fixture_long_rope(nn_model_config_t *config);

nn_model_t *fixture_model(nn_device_t *device, const nn_model_config_t *config, uint64_t seed);
/* Prepares for training with a batch shape. */
void fixture_prepare(nn_model_t *model, int64_t batch, int64_t seq_len, int32_t recompute);

/* Ids in [0, vocab), a function of the seed. */
void fixture_tokens(int32_t *ids, int64_t count, int64_t vocab, uint64_t seed);
/* Targets for them: the same, about one in six -1. */
void fixture_targets(int32_t *ids, int64_t count, int64_t vocab, uint64_t seed);

/* All parameters (or gradients), in order of their index, each row-major in its published shape;
 * freed by the caller. F32 models. */
float *fixture_parameters(const nn_model_t *model, int64_t *count);
float *fixture_gradients(const nn_model_t *model, int64_t *count);
/* Both moments of every parameter. */
float *fixture_moments(const nn_model_t *model, const nn_optim_t *optim, int64_t *count);
/* The reverse of fixture_parameters(). */
void fixture_set_parameters(nn_model_t *model, const float *values);

/* Fills one parameter with a value. */
void fixture_fill(nn_model_t *model, const char *name, float value);

/* ---- comparison ---- */

/* Every bit is the same; `what` names the arrays. */
void fixture_same(const char *what, const float *a, const float *b, int64_t count);

/* |got - want| <= tolerance everywhere. */
void fixture_near(const char *what, const float *got, const float *want, int64_t count,
                  double tolerance);

double fixture_largest(const float *values, int64_t count);

/* Seconds of a clock that only goes forward. */
double fixture_seconds(void);

/* ---- files ---- */

/* A new folder for files, and its end with all that is in it. */
char *fixture_folder(void);
void fixture_folder_remove(char *folder);

#endif
