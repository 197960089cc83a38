#include "model/params.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/status.h"
#include "model/config.h"
#include "model/family.h"

/* ---- which parts there are, and how large ---------------------------------------------------- */

/* In a dense layer or a sparse one; the kind of layer is nothing to parts outside. */
static bool part_present(const part_t *part, const nn_model_config_t *c, bool dense) {
  switch (part->role) {
    case PARAM_NORM1_BIAS:
    case PARAM_NORM2_BIAS:
    case PARAM_NORM_FINAL_BIAS: return c->norm == NN_NORM_LAYER;
    case PARAM_Q: return !c->q_rank;
    case PARAM_Q_A:
    case PARAM_Q_A_NORM:
    case PARAM_Q_B: return c->q_rank;
    case PARAM_Q_BIAS:
    case PARAM_K_BIAS:
    case PARAM_V_BIAS:
    case PARAM_QKV_BIAS: return c->biases & NN_BIAS_QKV;
    case PARAM_O_BIAS: return c->biases & NN_BIAS_O;
    case PARAM_Q_NORM:
    case PARAM_K_NORM: return c->qk_norm;
    case PARAM_SINKS: return c->attention_sinks;
    case PARAM_ROUTER:
    case PARAM_GATE:
    case PARAM_UP:
    case PARAM_GATE_UP:
    case PARAM_DOWN: return !dense;
    case PARAM_GATE_UP_BIAS:
    case PARAM_DOWN_BIAS: return !dense && c->biases & NN_BIAS_FFN;
    case PARAM_ROUTER_BIAS: return !dense && c->biases & NN_BIAS_ROUTER;
    case PARAM_ROUTER_CHOICE_BIAS: return !dense && c->router_choice_bias;
    case PARAM_DENSE_GATE:
    case PARAM_DENSE_UP:
    case PARAM_DENSE_DOWN:
    case PARAM_FC:
    case PARAM_PROJ: return dense;
    case PARAM_DENSE_GATE_BIAS:
    case PARAM_DENSE_UP_BIAS:
    case PARAM_DENSE_DOWN_BIAS:
    case PARAM_FC_BIAS:
    case PARAM_PROJ_BIAS: return dense && c->biases & NN_BIAS_FFN;
    case PARAM_SHARED_GATE:
    case PARAM_SHARED_UP:
    case PARAM_SHARED_DOWN: return !dense && c->shared_ffn;
    case PARAM_SHARED_EXPERT_GATE: return !dense && c->shared_gate;
    case PARAM_HEAD: return !c->tied_head;
    case PARAM_HEAD_BIAS: return c->biases & NN_BIAS_HEAD;
    case PARAM_WTE:
    case PARAM_WPE:
    case PARAM_NORM1:
    case PARAM_K:
    case PARAM_V:
    case PARAM_QKV:
    case PARAM_KV_A:
    case PARAM_KV_A_NORM:
    case PARAM_KV_B:
    case PARAM_O:
    case PARAM_NORM2:
    case PARAM_NORM_FINAL: return true;
  }
  return true;
}

static int64_t part_dim(dim_t dim, const nn_model_config_t *c) {
  int64_t value_dim = config_value_dim(c);
  bool full = c->qk_norm == NN_QK_NORM_FULL;
  switch (dim) {
    case DIM_NONE:
    case DIM_ONE: return 1;
    case DIM_VOCAB: return c->vocab_size;
    case DIM_CONTEXT: return c->context;
    case DIM_HIDDEN: return c->hidden;
    case DIM_QUERY: return c->heads * c->head_dim;
    case DIM_KEY: return c->kv_heads * c->head_dim;
    case DIM_QKV: return (c->heads + 2 * c->kv_heads) * c->head_dim;
    case DIM_VALUES: return c->heads * value_dim;
    case DIM_HEADS: return c->heads;
    case DIM_QUERY_NORM: return full ? c->heads * c->head_dim : c->head_dim;
    case DIM_KEY_NORM: return full ? c->kv_heads * c->head_dim : c->head_dim;
    case DIM_FFN: return c->ffn;
    case DIM_GATE_UP: return 2 * c->ffn;
    case DIM_DENSE_FFN: return config_dense_ffn(c);
    case DIM_SHARED_FFN: return c->shared_ffn;
    case DIM_EXPERTS: return c->experts;
    case DIM_Q_RANK: return c->q_rank;
    case DIM_KV_RANK: return c->kv_rank;
    case DIM_KV_AND_ROPE: return c->kv_rank + c->rope_head_dim;
    case DIM_KEYS_VALUES: return c->heads * (c->head_dim - c->rope_head_dim + value_dim);
  }
  return 1;
}

static bool part_decays(const part_t *part) { return part->cols != DIM_NONE; }

static bool part_stacked(const part_t *part) {
  return part->form == FORM_STACKED || part->form == FORM_STACKED_TRANSPOSED;
}

/* ---- the layout of the buffer ---------------------------------------------------------------- */

enum { SPARSE, DENSE, LAYER_KINDS };

/* [0, decayed): first parts, then layer after layer (its parts, then expert after expert), then
 * last parts; behind it the vectors, likewise. Inside each of these, parts stand in the order of
 * param_role_t, which puts Q, K, V and an expert's gate, up, down side by side. */
typedef struct layout {
  int64_t size[LAYER_KINDS][SCOPES][2]; /* elements of one instance of a scope, in a layer of a
                                           kind: [0] vectors, [1] matrices */
  int64_t items[LAYER_KINDS][SCOPES];   /* parts present in a scope, those of all experts apart */
  int64_t stacked;                      /* parts of all experts at once */
  int64_t layers[LAYER_KINDS];          /* of each kind */
  int64_t layer[LAYER_KINDS][2];        /* elements of a layer with its experts */
  int64_t total[2];
} layout_t;

/* Element counts stay below this, so that the bytes of an fp32 buffer fit half of a size_t. */
static const int64_t most_elements = PTRDIFF_MAX / (int64_t)sizeof(float);

static bool layout_count_parts(const nn_model_config_t *config, layout_t *layout) {
  for (int kind = 0; kind < LAYER_KINDS; kind++)
    for (const part_t *part = families[config->family].parts; part->name; part++) {
      if (!part_present(part, config, kind == DENSE)) continue;
      int64_t *size = &layout->size[kind][part->scope][part_decays(part)], elements;
      if (!mem_mul(part_dim(part->rows, config), part_dim(part->cols, config), &elements) ||
          !mem_add(*size, elements, size))
        return false;
      if (part_stacked(part))
        layout->stacked++;
      else
        layout->items[kind][part->scope]++;
    }
  return true;
}

static bool layout_count(const nn_model_config_t *config, layout_t *layout) {
  memset(layout, 0, sizeof *layout);
  layout->layers[SPARSE] = config_sparse_layers(config);
  layout->layers[DENSE] = config->layers - layout->layers[SPARSE];
  if (!layout_count_parts(config, layout)) return false;
  for (int decays = 0; decays < 2; decays++) {
    int64_t *total = &layout->total[decays];
    if (!mem_add(layout->size[SPARSE][SCOPE_FIRST][decays],
                 layout->size[SPARSE][SCOPE_LAST][decays], total))
      return false;
    for (int kind = 0; kind < LAYER_KINDS; kind++) {
      int64_t experts, layers, *layer = &layout->layer[kind][decays];
      if (!mem_mul(layout->size[kind][SCOPE_EXPERT][decays], config->experts, &experts) ||
          !mem_add(layout->size[kind][SCOPE_LAYER][decays], experts, layer) ||
          !mem_mul(*layer, layout->layers[kind], &layers) || !mem_add(*total, layers, total))
        return false;
    }
  }
  int64_t elements;
  return mem_add(layout->total[0], layout->total[1], &elements) && elements <= most_elements;
}

/* ---- the table ------------------------------------------------------------------------------- */

nn_status_t param_table_count(const nn_model_config_t *config, param_table_t *counts) {
  layout_t layout;
  if (!layout_count(config, &layout))
    return status_fail(
        NN_ERR_ARGUMENT,
        "vocab_size %lld, context %lld, layers %lld, hidden %lld, ffn %lld and experts "
        "%lld make more parameters than memory can address",
        (long long)config->vocab_size, (long long)config->context, (long long)config->layers,
        (long long)config->hidden, (long long)config->ffn, (long long)config->experts);
  int64_t expert = layout.size[SPARSE][SCOPE_EXPERT][1];
  int64_t vectors = layout.size[SPARSE][SCOPE_EXPERT][0];
  int64_t idle = layout.layers[SPARSE] * (config->experts - config->top_k) * (expert + vectors);
  int64_t looked_up = config->tied_head ? 0 : config->vocab_size * config->hidden;
  int64_t elements = layout.total[0] + layout.total[1];
  *counts = (param_table_t){
      .count = layout.items[SPARSE][SCOPE_FIRST] + layout.items[SPARSE][SCOPE_LAST] +
               layout.layers[DENSE] * layout.items[DENSE][SCOPE_LAYER] +
               layout.layers[SPARSE] *
                   (layout.items[SPARSE][SCOPE_LAYER] + layout.stacked +
                    config->experts * layout.items[SPARSE][SCOPE_EXPERT]),
      .elements = elements,
      .decayed = layout.total[1],
      .active = elements - looked_up - idle,
      .expert_elements = expert,
      .expert_vector_elements = vectors,
  };
  return NN_OK;
}

/* Where items are being appended. */
typedef struct place {
  const nn_model_config_t *config;
  const family_t *family;
  const layout_t *layout;
  param_table_t *table;
  int64_t layer, expert; /* -1 outside */
  int kind;              /* of the layer */
  int64_t before[2];     /* elements of the layers before it */
} place_t;

/* First element of a part. */
static int64_t place_offset(const place_t *place, const part_t *part) {
  const layout_t *layout = place->layout;
  const bool decays = part_decays(part);
  int64_t offset = decays ? 0 : layout->total[1];
  if (part->scope != SCOPE_FIRST)
    offset += layout->size[SPARSE][SCOPE_FIRST][decays] + place->before[decays];
  if (part->scope == SCOPE_EXPERT)
    offset += layout->size[place->kind][SCOPE_LAYER][decays] +
              (place->expert > 0 ? place->expert : 0) *
                  layout->size[place->kind][SCOPE_EXPERT][decays];
  for (const part_t *other = place->family->parts; other->name; other++)
    if (other->scope == part->scope && part_decays(other) == decays && other->role < part->role &&
        part_present(other, place->config, place->kind == DENSE))
      offset += part_dim(other->rows, place->config) * part_dim(other->cols, place->config);
  return offset;
}

static void place_name(const place_t *place, const part_t *part, param_t *param) {
  const family_t *family = place->family;
  const long long layer = place->layer, expert = place->expert;
  const size_t room = sizeof param->name;
  if (part->scope == SCOPE_LAYER)
    snprintf(param->name, room, "%s%lld.%s", family->layer_prefix, layer, part->name);
  else if (part->scope == SCOPE_EXPERT && expert < 0)
    snprintf(param->name, room, "%s%lld.%s%s", family->layer_prefix, layer, family->expert_prefix,
             part->name);
  else if (part->scope == SCOPE_EXPERT)
    snprintf(param->name, room, "%s%lld.%s%lld.%s", family->layer_prefix, layer,
             family->expert_prefix, expert, part->name);
  else
    snprintf(param->name, room, "%s", part->name);
}

static void place_append(const place_t *place, const part_t *part) {
  const int64_t rows = part_dim(part->rows, place->config);
  const int64_t cols = part_dim(part->cols, place->config);
  param_t *param = &place->table->items[place->table->count++];
  *param = (param_t){.role = part->role,
                     .layer = place->layer,
                     .expert = place->expert,
                     .ndim = part_decays(part) ? 2 : 1,
                     .shape = {rows, cols},
                     .stride = {cols, 1},
                     .offset = place_offset(place, part),
                     .elements = rows * cols,
                     .runs = 1};
  place_name(place, part, param);
  if (part->form == FORM_TRANSPOSED) {
    param->shape[0] = cols, param->shape[1] = rows;
    param->stride[0] = 1, param->stride[1] = cols;
  } else if (part_stacked(part)) {
    bool turned = part->form == FORM_STACKED_TRANSPOSED;
    param->runs = place->config->experts;
    param->run_stride = place->layout->size[place->kind][SCOPE_EXPERT][part_decays(part)];
    param->elements *= param->runs;
    param->ndim++;
    param->shape[0] = param->runs, param->stride[0] = param->run_stride;
    param->shape[1] = turned ? cols : rows, param->stride[1] = turned ? 1 : cols;
    param->shape[2] = turned ? rows : cols, param->stride[2] = turned ? cols : 1;
  }
}

/* Appends the parts [part, end), which share a scope; stacked: those of all experts, or the
 * others. */
static void place_append_parts(const place_t *place, const part_t *part, const part_t *end,
                               bool stacked) {
  for (; part < end; part++)
    if (part_present(part, place->config, place->kind == DENSE) &&
        stacked == part_stacked(part))
      place_append(place, part);
}

/* One past the last part that shares the scope of a part. */
static const part_t *part_run_end(const part_t *part) {
  scope_t scope = part->scope;
  while (part->name && part->scope == scope) part++;
  return part;
}

static void place_append_layer(place_t *place, const part_t *part) {
  for (const part_t *next; part->scope != SCOPE_LAST; part = next) {
    next = part_run_end(part);
    if (part->scope == SCOPE_EXPERT) {
      place_append_parts(place, part, next, true);
      for (place->expert = 0; place->expert < place->config->experts; place->expert++)
        place_append_parts(place, part, next, false);
      place->expert = -1;
    } else {
      place_append_parts(place, part, next, false);
    }
  }
}

nn_status_t param_table_build(const nn_model_config_t *config, param_table_t *table) {
  param_table_t built;
  layout_t layout;
  STATUS_TRY(param_table_count(config, &built));
  layout_count(config, &layout);
  void *items;
  STATUS_TRY(mem_alloc((size_t)built.count, sizeof(param_t), &items));
  built.items = items;
  built.count = 0; /* counted up again as items are appended */

  const family_t *family = &families[config->family];
  place_t place = {.config = config, .family = family, .layout = &layout, .table = &built,
                   .layer = -1, .expert = -1};
  const part_t *layer_parts = part_run_end(family->parts), *last = layer_parts;
  while (last->scope != SCOPE_LAST) last++;
  place_append_parts(&place, family->parts, layer_parts, false);
  for (int64_t layer = 0; layer < config->layers; layer++) {
    place.layer = layer;
    place.kind = config_layer_is_dense(config, layer) ? DENSE : SPARSE;
    place_append_layer(&place, layer_parts);
    for (int decays = 0; decays < 2; decays++)
      place.before[decays] += layout.layer[place.kind][decays];
  }
  place.layer = -1;
  place_append_parts(&place, last, part_run_end(last), false);
  *table = built;
  return NN_OK;
}

void param_table_free(param_table_t *table) {
  mem_free(table->items);
  *table = (param_table_t){0};
}

bool param_is_assigned(const param_table_t *table, const param_t *param, bool tied_head) {
  switch (param->role) {
    case PARAM_WTE: return tied_head;
    case PARAM_WPE:
    case PARAM_ROUTER:
    case PARAM_SHARED_EXPERT_GATE: return false;
    default: return param->offset < table->decayed;
  }
}

const param_t *param_find(const param_table_t *table, const char *name) {
  for (int64_t i = 0; i < table->count; i++)
    if (strcmp(table->items[i].name, name) == 0) return &table->items[i];
  return NULL;
}
