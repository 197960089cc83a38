/* The keys of config.json: how each one is understood, and what is read of them before the members
 * of a configuration are put together. */
#ifndef NN_FORMAT_CONFIG_KEYS_H
#define NN_FORMAT_CONFIG_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/config.h"
#include "moenn.h"

typedef enum key_rule {
  KEY_SIZE,          /* int64_t, at least 1 */
  KEY_SIZE_OR_NULL,  /* the same; null: 0 */
  KEY_SIZE_OR_OFF,   /* the same; null and 0: 0 */
  KEY_COUNT,         /* int64_t, at least 0 */
  KEY_POSITIVE,      /* float, above 0 */
  KEY_NUMBER,        /* float, at least 0 */
  KEY_NUMBER_OR_NULL, /* the same; null: 0 */
  KEY_INVERSE,       /* float, 1 / the value, which is above 0 */
  KEY_FLAG,          /* int32_t, true or false */
  KEY_NOT,           /* int32_t, 1 for false */
  KEY_BIASES,        /* true or false: the biases of the mask `bits` */
  KEY_AUX_NORM,      /* aux_loss, "switch" or "joint" */
  KEY_FACTORS,       /* float [CONFIG_ROPE_FACTORS]: a list of numbers above 0; 0 behind them */
  KEY_ROPE,          /* null, or an object that says how RoPE is scaled: config_rope.h */
  KEY_LAYER_TYPES,   /* null, or a list of which layers have the window */
  KEY_DENSE_LIST,    /* null, or a list of the layers that are dense */
  KEY_TOPK_METHOD,   /* "greedy" or "group_limited_greedy" */
  KEY_MXFP4,         /* null, or an object whose quant_method is "mxfp4": tensors say the rest */
  KEY_OFF,           /* must be null, false, 0 or empty */
  KEY_ON,            /* must be true */
  KEY_EQUAL,         /* must be null or `number` */
  KEY_TEXT,          /* must be one of the texts */
  KEY_TEXT_OR_NULL,  /* the same, or null */
  KEY_CLASSES,       /* null, or a list that names no class but the family's own */
  KEY_ANY            /* bookkeeping */
} key_rule_t;

/* When a key is written. */
typedef enum key_written {
  WRITE_NEVER,
  WRITE_ALWAYS,
  WRITE_SET /* where its value is not 0 or the member's default: other programs do not know it, or
               take its absence for that */
} key_written_t;

typedef struct key {
  const char *name;
  const char *const *texts; /* KEY_TEXT: NULL ends them; the first is written */
  double number;            /* KEY_EQUAL; of a key with WRITE_SET: the default */
  uint16_t offset;          /* of the member of reading_t, where the rule has one */
  int16_t bits;             /* KEY_BIASES */
  uint8_t rule, written;    /* key_rule_t, key_written_t */
} key_line_t;

/* Which layers have the window where no list says it. */
typedef enum window_rule {
  WINDOW_ALL,
  WINDOW_FROM,       /* those from max_window_layers on */
  WINDOW_EVEN_BELOW, /* those of even number below max_window_layers */
  WINDOW_EVEN        /* those of even number */
} window_rule_t;

/* What is read of a text, or to be written, key by key. */
typedef struct reading {
  nn_model_config_t config;
  window_rule_t window_rule;
  int32_t use_window;
  int64_t max_window_layers;
  int64_t layer_types;                         /* entries of the list; 0: none was given */
  int64_t sliding_types;                       /* how many of them have the window */
  uint64_t sliding[CONFIG_PATTERN_LAYERS / 64]; /* which */
  int64_t sparse_step;  /* every such layer has experts */
  int64_t first_dense;  /* so many layers have none */
  bool dense_far;       /* the list of dense layers has one beyond CONFIG_PATTERN_LAYERS */
  int64_t shared_experts; /* shared_ffn counted in experts; 0: it is given itself */
  int64_t nope_head_dim;  /* head_dim without rope_head_dim; 0: head_dim is given itself */
  float partial_rotary;   /* rotary_dim / head_dim */
  int64_t original_context; /* of a key beside the object that should hold it */
  int32_t router_logits;  /* whether the auxiliary loss counts */
  bool greedy;            /* groups do not count */
  bool seen[2048];        /* members that were given, by offset */
} reading_t;

_Static_assert(offsetof(reading_t, seen) <= sizeof((reading_t *)0)->seen,
               "seen has room for every member");

typedef struct key_list {
  const key_line_t *keys;
  size_t count;
} key_list_t;

enum { KEY_LISTS = 5 };

/* The keys of a family: KEY_LISTS lists, the last of which may be empty. The first that has a name
 * decides. */
const key_list_t *family_keys(int32_t family);

/* The line of a name, or NULL. */
const key_line_t *key_find(int32_t family, const char *name);

/* What absent keys of a family mean. */
reading_t family_defaults(int32_t family);

#endif
