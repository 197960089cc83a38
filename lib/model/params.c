#include "model/params.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/status.h"

/* ---- what each family has -------------------------------------------------------------------- */

/* Where a parameter repeats. The items of a table follow this order, experts inside their layer. */
typedef enum scope { SCOPE_FIRST, SCOPE_LAYER, SCOPE_EXPERT, SCOPE_LAST, SCOPES } scope_t;

typedef enum dim {
  DIM_NONE, /* second dimension of a vector */
  DIM_VOCAB,
  DIM_CONTEXT,
  DIM_HIDDEN,
  DIM_QUERY, /* heads * head_dim */
  DIM_KEY,   /* kv_heads * head_dim */
  DIM_QKV,   /* query and twice key */
  DIM_FFN,
  DIM_EXPERTS
} dim_t;

typedef struct part {
  param_role_t role;
  scope_t scope;
  const char *name; /* behind the prefix of its scope */
  dim_t rows, cols; /* as stored */
  bool transposed;  /* published as [cols, rows] */
} part_t;

/* Parts in the order of the family's state dict; those of one scope adjacent but for the layer's,
 * which may stand on both sides of its experts. */
typedef struct family {
  const char *layer_prefix, *expert_prefix;
  const part_t *parts;
  int32_t count;
} family_t;

static const part_t mixtral_parts[] = {
    {PARAM_WTE, SCOPE_FIRST, "model.embed_tokens.weight", DIM_VOCAB, DIM_HIDDEN, false},
    {PARAM_Q, SCOPE_LAYER, "self_attn.q_proj.weight", DIM_QUERY, DIM_HIDDEN, false},
    {PARAM_K, SCOPE_LAYER, "self_attn.k_proj.weight", DIM_KEY, DIM_HIDDEN, false},
    {PARAM_V, SCOPE_LAYER, "self_attn.v_proj.weight", DIM_KEY, DIM_HIDDEN, false},
    {PARAM_O, SCOPE_LAYER, "self_attn.o_proj.weight", DIM_HIDDEN, DIM_QUERY, false},
    {PARAM_ROUTER, SCOPE_LAYER, "block_sparse_moe.gate.weight", DIM_EXPERTS, DIM_HIDDEN, false},
    {PARAM_GATE, SCOPE_EXPERT, "w1.weight", DIM_FFN, DIM_HIDDEN, false},
    {PARAM_DOWN, SCOPE_EXPERT, "w2.weight", DIM_HIDDEN, DIM_FFN, false},
    {PARAM_UP, SCOPE_EXPERT, "w3.weight", DIM_FFN, DIM_HIDDEN, false},
    {PARAM_NORM1, SCOPE_LAYER, "input_layernorm.weight", DIM_HIDDEN, DIM_NONE, false},
    {PARAM_NORM2, SCOPE_LAYER, "post_attention_layernorm.weight", DIM_HIDDEN, DIM_NONE, false},
    {PARAM_NORM_FINAL, SCOPE_LAST, "model.norm.weight", DIM_HIDDEN, DIM_NONE, false},
    {PARAM_HEAD, SCOPE_LAST, "lm_head.weight", DIM_VOCAB, DIM_HIDDEN, false},
};

static const part_t gpt2_parts[] = {
    {PARAM_WTE, SCOPE_FIRST, "transformer.wte.weight", DIM_VOCAB, DIM_HIDDEN, false},
    {PARAM_WPE, SCOPE_FIRST, "transformer.wpe.weight", DIM_CONTEXT, DIM_HIDDEN, false},
    {PARAM_NORM1, SCOPE_LAYER, "ln_1.weight", DIM_HIDDEN, DIM_NONE, false},
    {PARAM_NORM1_BIAS, SCOPE_LAYER, "ln_1.bias", DIM_HIDDEN, DIM_NONE, false},
    {PARAM_QKV, SCOPE_LAYER, "attn.c_attn.weight", DIM_QKV, DIM_HIDDEN, true},
    {PARAM_QKV_BIAS, SCOPE_LAYER, "attn.c_attn.bias", DIM_QKV, DIM_NONE, false},
    {PARAM_O, SCOPE_LAYER, "attn.c_proj.weight", DIM_HIDDEN, DIM_QUERY, true},
    {PARAM_O_BIAS, SCOPE_LAYER, "attn.c_proj.bias", DIM_HIDDEN, DIM_NONE, false},
    {PARAM_NORM2, SCOPE_LAYER, "ln_2.weight", DIM_HIDDEN, DIM_NONE, false},
    {PARAM_NORM2_BIAS, SCOPE_LAYER, "ln_2.bias", DIM_HIDDEN, DIM_NONE, false},
    {PARAM_FC, SCOPE_LAYER, "mlp.c_fc.weight", DIM_FFN, DIM_HIDDEN, true},
    {PARAM_FC_BIAS, SCOPE_LAYER, "mlp.c_fc.bias", DIM_FFN, DIM_NONE, false},
    {PARAM_PROJ, SCOPE_LAYER, "mlp.c_proj.weight", DIM_HIDDEN, DIM_FFN, true},
    {PARAM_PROJ_BIAS, SCOPE_LAYER, "mlp.c_proj.bias", DIM_HIDDEN, DIM_NONE, false},
    {PARAM_NORM_FINAL, SCOPE_LAST, "transformer.ln_f.weight", DIM_HIDDEN, DIM_NONE, false},
    {PARAM_NORM_FINAL_BIAS, SCOPE_LAST, "transformer.ln_f.bias", DIM_HIDDEN, DIM_NONE, false},
    {PARAM_HEAD, SCOPE_LAST, "lm_head.weight", DIM_VOCAB, DIM_HIDDEN, false},
};

static const family_t families[] = {
    [NN_FAMILY_MIXTRAL] = {"model.layers.", "block_sparse_moe.experts.", mixtral_parts,
                           sizeof mixtral_parts / sizeof *mixtral_parts},
    [NN_FAMILY_GPT2] = {"transformer.h.", "", gpt2_parts, sizeof gpt2_parts / sizeof *gpt2_parts},
};

static bool part_present(const part_t *part, const nn_model_config_t *config) {
  return part->role != PARAM_HEAD || !config->tied_head;
}

static int64_t part_dim(dim_t dim, const nn_model_config_t *config) {
  switch (dim) {
    case DIM_VOCAB: return config->vocab_size;
    case DIM_CONTEXT: return config->context;
    case DIM_HIDDEN: return config->hidden;
    case DIM_QUERY: return config->heads * config->head_dim;
    case DIM_KEY: return config->kv_heads * config->head_dim;
    case DIM_QKV: return (config->heads + 2 * config->kv_heads) * config->head_dim;
    case DIM_FFN: return config->ffn;
    case DIM_EXPERTS: return config->experts;
    default: return 1;
  }
}

static bool part_decays(const part_t *part) { return part->cols != DIM_NONE; }

/* ---- the layout of the buffer ---------------------------------------------------------------- */

/* [0, decayed): first parts, then layer after layer (its parts, then expert after expert), then
 * last parts; behind it the vectors, likewise. Inside each of these, parts stand in the order of
 * param_role_t, which puts Q, K, V and an expert's gate, up, down side by side. */
typedef struct layout {
  int64_t size[SCOPES][2]; /* elements of one instance of a scope: [0] vectors, [1] matrices */
  int64_t layer[2];        /* elements of a layer with its experts */
  int64_t total[2];
  int64_t items[SCOPES];   /* parts present in a scope */
} layout_t;

/* Element counts stay below this, so that the bytes of an fp32 buffer fit half of a size_t. */
static const int64_t most_elements = PTRDIFF_MAX / (int64_t)sizeof(float);

static bool layout_count(const nn_model_config_t *config, layout_t *layout) {
  const family_t *family = &families[config->family];
  memset(layout, 0, sizeof *layout);
  for (int32_t i = 0; i < family->count; i++) {
    const part_t *part = &family->parts[i];
    if (!part_present(part, config)) continue;
    int64_t *size = &layout->size[part->scope][part_decays(part)], elements;
    if (!mem_mul(part_dim(part->rows, config), part_dim(part->cols, config), &elements) ||
        !mem_add(*size, elements, size))
      return false;
    layout->items[part->scope]++;
  }
  for (int decays = 0; decays < 2; decays++) {
    int64_t experts, layers, *layer = &layout->layer[decays], *total = &layout->total[decays];
    if (!mem_mul(layout->size[SCOPE_EXPERT][decays], config->experts, &experts) ||
        !mem_add(layout->size[SCOPE_LAYER][decays], experts, layer) ||
        !mem_mul(*layer, config->layers, &layers) ||
        !mem_add(layout->size[SCOPE_FIRST][decays], layers, total) ||
        !mem_add(*total, layout->size[SCOPE_LAST][decays], total))
      return false;
  }
  int64_t elements;
  return mem_add(layout->total[0], layout->total[1], &elements) && elements <= most_elements;
}

/* First element of a part in its layer and expert. */
static int64_t layout_offset(const nn_model_config_t *config, const layout_t *layout,
                             const part_t *part, int64_t layer, int64_t expert) {
  const family_t *family = &families[config->family];
  bool decays = part_decays(part);
  int64_t offset = decays ? 0 : layout->total[1];
  if (part->scope != SCOPE_FIRST) offset += layout->size[SCOPE_FIRST][decays];
  if (part->scope == SCOPE_LAST) offset += config->layers * layout->layer[decays];
  if (part->scope == SCOPE_LAYER || part->scope == SCOPE_EXPERT)
    offset += layer * layout->layer[decays];
  if (part->scope == SCOPE_EXPERT)
    offset += layout->size[SCOPE_LAYER][decays] + expert * layout->size[SCOPE_EXPERT][decays];
  for (int32_t i = 0; i < family->count; i++) {
    const part_t *other = &family->parts[i];
    if (other->scope == part->scope && part_decays(other) == decays && other->role < part->role)
      offset += part_dim(other->rows, config) * part_dim(other->cols, config);
  }
  return offset;
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
  int64_t idle = config->layers * (config->experts - config->top_k) * layout.size[SCOPE_EXPERT][1];
  int64_t looked_up = config->tied_head ? 0 : config->vocab_size * config->hidden;
  int64_t elements = layout.total[0] + layout.total[1];
  *counts = (param_table_t){
      .count = layout.items[SCOPE_FIRST] + layout.items[SCOPE_LAST] +
               config->layers *
                   (layout.items[SCOPE_LAYER] + config->experts * layout.items[SCOPE_EXPERT]),
      .elements = elements,
      .decayed = layout.total[1],
      .active = elements - looked_up - idle,
      .expert_elements = layout.size[SCOPE_EXPERT][1],
  };
  return NN_OK;
}

static void param_describe(const nn_model_config_t *config, const layout_t *layout,
                           const part_t *part, int64_t layer, int64_t expert, param_t *param) {
  const family_t *family = &families[config->family];
  int64_t rows = part_dim(part->rows, config), cols = part_dim(part->cols, config);
  *param = (param_t){.role = part->role,
                     .layer = layer,
                     .expert = expert,
                     .ndim = part_decays(part) ? 2 : 1,
                     .shape = {part->transposed ? cols : rows, part->transposed ? rows : cols},
                     .stride = {part->transposed ? 1 : cols, part->transposed ? cols : 1},
                     .offset = layout_offset(config, layout, part, layer, expert),
                     .elements = rows * cols};
  if (part->scope == SCOPE_LAYER)
    snprintf(param->name, sizeof param->name, "%s%lld.%s", family->layer_prefix, (long long)layer,
             part->name);
  else if (part->scope == SCOPE_EXPERT)
    snprintf(param->name, sizeof param->name, "%s%lld.%s%lld.%s", family->layer_prefix,
             (long long)layer, family->expert_prefix, (long long)expert, part->name);
  else
    snprintf(param->name, sizeof param->name, "%s", part->name);
}

/* Appends the items of parts [begin, end), which share a scope, for one layer and expert. */
static void param_append(param_table_t *table, const nn_model_config_t *config,
                         const layout_t *layout, int32_t begin, int32_t end, int64_t layer,
                         int64_t expert) {
  const part_t *parts = families[config->family].parts;
  for (int32_t i = begin; i < end; i++)
    if (part_present(&parts[i], config))
      param_describe(config, layout, &parts[i], layer, expert, &table->items[table->count++]);
}

/* One past the last part that shares the scope of part i. */
static int32_t part_run_end(const family_t *family, int32_t i) {
  scope_t scope = family->parts[i].scope;
  while (i < family->count && family->parts[i].scope == scope) i++;
  return i;
}

static void param_append_layer(param_table_t *table, const nn_model_config_t *config,
                               const layout_t *layout, int32_t begin, int32_t end, int64_t layer) {
  const family_t *family = &families[config->family];
  for (int32_t i = begin, next; i < end; i = next) {
    next = part_run_end(family, i);
    if (family->parts[i].scope == SCOPE_LAYER)
      param_append(table, config, layout, i, next, layer, -1);
    else
      for (int64_t expert = 0; expert < config->experts; expert++)
        param_append(table, config, layout, i, next, layer, expert);
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
  int32_t begin = part_run_end(family, 0), end = begin;
  while (family->parts[end].scope != SCOPE_LAST) end++;
  param_append(&built, config, &layout, 0, begin, -1, -1);
  for (int64_t layer = 0; layer < config->layers; layer++)
    param_append_layer(&built, config, &layout, begin, end, layer);
  param_append(&built, config, &layout, end, family->count, -1, -1);
  *table = built;
  return NN_OK;
}

void param_table_free(param_table_t *table) {
  mem_free(table->items);
  *table = (param_table_t){0};
}

const param_t *param_find(const param_table_t *table, const char *name) {
  for (int64_t i = 0; i < table->count; i++)
    if (strcmp(table->items[i].name, name) == 0) return &table->items[i];
  return NULL;
}
