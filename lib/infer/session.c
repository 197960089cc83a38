#include "infer/session.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "model/rope.h"

enum { PREFILL_CHUNK = 256 };

/* What is known of each row of a pass; the last two hold an entry for each sequence instead. */
enum { ROW_ID, ROW_POSITION, ROW_SEQUENCE, ROW_ATTEND, ROW_KV_LEN, SESSION_ROW_KINDS };

static int64_t session_rows(const nn_session_options_t *options) {
  return options->batch > options->prefill_chunk ? options->batch : options->prefill_chunk;
}

nn_status_t session_check(const nn_model_config_t *config, const nn_session_options_t *options,
                          nn_session_options_t *checked) {
  *checked = *options;
  if (!checked->batch) checked->batch = 1;
  if (!checked->max_len) checked->max_len = config->context;
  if (!checked->prefill_chunk) checked->prefill_chunk = PREFILL_CHUNK;
  double longest = (double)config->context;
  longest *= rope_stretch(config);
  if (longest > INT32_MAX) longest = INT32_MAX; /* positions are int32_t */
  if (checked->batch < 1 || checked->prefill_chunk < 1)
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_session_options_t: batch %lld and prefill_chunk %lld are at least 1",
                       (long long)checked->batch, (long long)checked->prefill_chunk);
  if (checked->max_len < 1 || (double)checked->max_len > longest)
    return status_fail(
        NN_ERR_ARGUMENT,
        "nn_session_options_t: max_len is %lld; it goes from 1 to %.0f, the context and "
        "what RoPE stretches it by",
        (long long)checked->max_len, longest);
  if (checked->prefill_chunk > checked->max_len) checked->prefill_chunk = checked->max_len;
  int64_t tokens, slots, choices = config->top_k ? config->top_k : 1;
  if (!mem_mul(session_rows(checked), choices, &slots) || slots > INT32_MAX ||
      !mem_mul(checked->batch, checked->max_len, &tokens) || tokens > INT64_MAX / 64)
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_session_options_t: %lld sequences of %lld tokens are too many",
                       (long long)checked->batch, (long long)checked->max_len);
  return NN_OK;
}

static int64_t session_kv_width(const nn_model_config_t *config) {
  return config->kv_heads * config->head_dim;
}

static void session_take_cache(arena_t *arena, const nn_model_config_t *config,
                               const nn_session_options_t *options, int32_t act_dtype,
                               session_buffers_t *buffers) {
  int64_t positions = options->batch * options->max_len;
  int64_t width = config->layers * session_kv_width(config); /* less than the parameters: it fits */
  buffers->k = arena_take(arena, positions, width, nn_dtype_bytes(act_dtype));
  buffers->v = arena_take(arena, positions, width, nn_dtype_bytes(act_dtype));
}

static void session_take_activations(arena_t *arena, const nn_model_config_t *config,
                                     const nn_session_options_t *options, int32_t act_dtype,
                                     session_buffers_t *buffers) {
  int64_t rows = session_rows(options);
  size_t element = nn_dtype_bytes(act_dtype);
  buffers->x[0] = arena_take(arena, rows, config->hidden, element);
  buffers->x[1] = arena_take(arena, rows, config->hidden, element);
  buffers->y = arena_take(arena, rows, config->hidden, element);
  block_acts_take(arena, config, rows, act_dtype, BLOCK_ANY_LAYER, false, &buffers->acts);
  block_acts_take_ffn(arena, config, rows, act_dtype, BLOCK_ANY_LAYER, NULL, &buffers->acts);
}

static void session_take_workspace(arena_t *arena, const nn_device_t *device,
                                   const nn_model_config_t *config, int32_t dtype,
                                   const nn_session_options_t *options,
                                   session_buffers_t *buffers) {
  int64_t rows = session_rows(options);
  buffers->rows = arena_take(arena, SESSION_ROW_KINDS, rows, sizeof(int32_t));
  if (config->position == NN_POSITION_ROPE)
    buffers->rope = arena_take(arena, options->max_len, rope_dim(config), sizeof(float));
  buffers->logits = arena_take(arena, options->batch, config->vocab_size, sizeof(float));
  buffers->history = arena_take(arena, 1, options->max_len, sizeof(int32_t));
  buffers->token = arena_take(arena, 1, 1, sizeof(int32_t));
  if (config->experts) {
    buffers->router_stats = router_stats_take(arena, config, 1);
    buffers->stat_bytes =
        expert_counts_take(arena, config, &buffers->stat_count, &buffers->stat_prob);
  }
  backend_limits_t limits =
      block_limits(device, config, rows, options->batch, options->max_len, dtype, false);
  buffers->scratch.bytes = device->backend->workspace_bytes(device->place, &limits);
  buffers->scratch.data = arena_take(arena, 1, (int64_t)buffers->scratch.bytes, 1);
}

nn_status_t session_count(const nn_device_t *device, const nn_model_config_t *config, int32_t dtype,
                          const nn_session_options_t *checked, session_bytes_t *bytes) {
  session_buffers_t buffers = {0};
  arena_t cache = {0}, activations = {0}, workspace = {0};
  int32_t act_dtype = block_act_dtype(device, dtype);
  session_take_cache(&cache, config, checked, act_dtype, &buffers);
  session_take_activations(&activations, config, checked, act_dtype, &buffers);
  session_take_workspace(&workspace, device, config, dtype, checked, &buffers);
  if (cache.overflowed || activations.overflowed || workspace.overflowed)
    return status_fail(NN_ERR_ARGUMENT, "a session of %lld x %lld tokens overflows memory sizes",
                       (long long)checked->batch, (long long)checked->max_len);
  bytes->cache = cache.used;
  bytes->activations = activations.used;
  bytes->workspace = workspace.used;
  return NN_OK;
}

/* Host arrays. */
static nn_status_t session_allocate_host(nn_session_t *session) {
  const nn_session_options_t *options = &session->options;
  size_t batch = (size_t)options->batch;
  void *got = NULL;
  STATUS_TRY(mem_alloc(SESSION_ROW_KINDS * (size_t)session->rows, sizeof(int32_t), &got));
  session->rows_host = got;
  STATUS_TRY(mem_alloc(batch * (size_t)options->max_len, sizeof(int32_t), &got));
  session->tokens = got;
  STATUS_TRY(mem_alloc(batch, sizeof(int32_t), &got));
  session->part_of = got;
  STATUS_TRY(mem_alloc(batch, sizeof(int64_t), &got));
  session->length = got;
  STATUS_TRY(mem_alloc(batch, sizeof(bool), &got));
  session->fresh = got;
  STATUS_TRY(mem_alloc((size_t)session->model->config.layers, sizeof(router_stats_t), &got));
  session->router = got;
  return NN_OK;
}

static nn_status_t session_allocate_device(nn_session_t *session) {
  nn_model_t *model = session->model;
  nn_device_t *device = model->device;
  const nn_model_config_t *config = &model->config;
  session_buffers_t *buffers = &session->buffers;
  session_bytes_t bytes = {0};
  STATUS_TRY(session_count(device, config, model->dtype, &session->options, &bytes));
  STATUS_TRY(storage_create(device, bytes.cache, "a key-value cache", &session->cache));
  STATUS_TRY(storage_create(device, bytes.activations, "a session's activations",
                            &session->activations));
  STATUS_TRY(storage_create(device, bytes.workspace, "a session's workspace",
                            &session->workspace));
  arena_t cache = {.base = session->cache->data};
  arena_t activations = {.base = session->activations->data};
  arena_t workspace = {.base = session->workspace->data};
  session_take_cache(&cache, config, &session->options, session->act_dtype, buffers);
  session_take_activations(&activations, config, &session->options, session->act_dtype, buffers);
  session_take_workspace(&workspace, device, config, model->dtype, &session->options, buffers);
  for (int64_t l = 0; l < config->layers; l++)
    session->router[l] = router_stats_row(config, buffers->router_stats, 0);
  if (config->position == NN_POSITION_ROPE)
    STATUS_TRY(rope_fill(device, config, session->options.max_len, session->options.max_len,
                         buffers->rope));
  return device_zero(device, buffers->stat_count, buffers->stat_bytes);
}

nn_status_t session_create(nn_model_t *model, const nn_session_options_t *checked,
                           nn_session_t **session) {
  void *got = NULL;
  STATUS_TRY(mem_alloc(1, sizeof(nn_session_t), &got));
  nn_session_t *made = got;
  made->model = model;
  model_retain(model);
  made->options = *checked;
  made->rows = session_rows(checked);
  made->act_dtype = block_act_dtype(model->device, model->dtype);
  nn_status_t status = session_allocate_host(made);
  if (status == NN_OK) status = session_allocate_device(made);
  if (status != NN_OK) {
    session_free(made);
    return status;
  }
  *session = made;
  return NN_OK;
}

void session_free(nn_session_t *session) {
  if (!session) return;
  replay_forget(session->model->device, &session->step);
  replay_forget(session->model->device, &session->part);
  mem_free(session->rows_host);
  mem_free(session->tokens);
  mem_free(session->length);
  mem_free(session->fresh);
  mem_free(session->router);
  mem_free(session->part_of);
  storage_release(session->cache);
  storage_release(session->activations);
  storage_release(session->workspace);
  model_release(session->model);
  mem_free(session);
}

/* ---- passes ---------------------------------------------------------------------------------- */

/* One kind of the host's rows, or of the device's. */
static int32_t *session_host(const nn_session_t *session, int32_t kind) {
  return session->rows_host + kind * session->rows;
}
static int32_t *session_place(const nn_session_t *session, int32_t kind) {
  return session->buffers.rows + kind * session->rows;
}

static nn_status_t session_copy_in(nn_session_t *session, void *target, const void *source,
                                   int64_t count) {
  nn_device_t *device = session->model->device;
  return device->backend->copy_in(device->place, target, source, (size_t)count * sizeof(int32_t));
}

/* Describes n rows to the device. Only a long prompt, whose rows lie far apart, needs several
 * copies. */
static nn_status_t session_rows_in(nn_session_t *session, int64_t n) {
  enum { FEW = 1024 };
  if (session->rows <= FEW)
    return session_copy_in(session, session->buffers.rows, session->rows_host,
                           SESSION_ROW_KINDS * session->rows);
  for (int32_t kind = 0; kind < SESSION_ROW_KINDS; kind++)
    STATUS_TRY(
        session_copy_in(session, session_place(session, kind), session_host(session, kind), n));
  return NN_OK;
}

/* The pass over batch x q_len rows that were described. */
static void session_begin(nn_session_t *session, int64_t batch, int64_t q_len, block_cache_t *cache,
                          pass_t *pass) {
  nn_model_t *model = session->model;
  const nn_model_config_t *config = &model->config;
  session_buffers_t *buffers = &session->buffers;
  int64_t sequence_stride = session->options.max_len * session_kv_width(config);
  *cache = (block_cache_t){.k = buffers->k, .v = buffers->v, .sequence_stride = sequence_stride};
  cache->layer_stride = session->options.batch * sequence_stride;
  cache->sequence = session_place(session, ROW_SEQUENCE);
  cache->attend = session_place(session, ROW_ATTEND);
  cache->kv_len = session_place(session, ROW_KV_LEN);
  *pass = (pass_t){.config = config, .backend = model->device->backend, .cache = cache};
  pass->place = model->device->place, pass->scratch = buffers->scratch;
  pass->weights = &model->weights, pass->weight_dtype = model->dtype;
  pass->act_dtype = session->act_dtype;
  pass->batch = batch, pass->q_len = q_len;
  pass->ids = session_place(session, ROW_ID), pass->position = session_place(session, ROW_POSITION);
  pass->rope = buffers->rope, pass->router = session->router;
  pass->stat_count = buffers->stat_count, pass->stat_prob = buffers->stat_prob;
}

/* From tokens to the last block's output. */
static nn_status_t session_blocks(nn_session_t *session, const pass_t *pass, void **out) {
  const nn_model_t *model = session->model;
  session_buffers_t *buffers = &session->buffers;
  op_embed_t embed = {.n = pass->batch * pass->q_len, .hidden = pass->config->hidden};
  embed.ids = pass->ids, embed.position = pass->position;
  embed.weight_dtype = pass->weight_dtype, embed.act_dtype = pass->act_dtype;
  embed.alpha = pass->config->embedding_scale;
  embed.wte = model->weights.wte, embed.wpe = model->weights.wpe, embed.out = buffers->x[0];
  STATUS_TRY(pass->backend->embed(pass->place, &embed, pass->scratch));
  for (int64_t l = 0; l < pass->config->layers; l++)
    STATUS_TRY(block_forward(pass, l, buffers->x[l % 2], buffers->x[(l + 1) % 2], &buffers->acts));
  *out = buffers->x[pass->config->layers % 2];
  return NN_OK;
}

/* Final norm of `count` rows of x, and their logits to those of sequences first, first + 1, ... */
static nn_status_t session_head(nn_session_t *session, const pass_t *pass, const void *x,
                                int64_t count, int64_t first) {
  const nn_model_config_t *config = pass->config;
  session_buffers_t *buffers = &session->buffers;
  op_matmul_t op = {.m = count, .n = config->vocab_size, .k = config->hidden, .trans_b = 1};
  op.a = buffers->y, op.lda = config->hidden, op.a_dtype = pass->act_dtype;
  op.b = pass->weights->head, op.ldb = config->hidden, op.b_dtype = pass->weight_dtype;
  op.alpha = config->logit_scale, op.bias = pass->weights->head_bias;
  op.d = buffers->logits + first * config->vocab_size, op.ldd = config->vocab_size;
  op.d_dtype = NN_F32;
  op_project_t all = {.norm = final_norm(pass, count, x, buffers->y, NULL, NULL), .matmul = op};
  return pass->backend->project(pass->place, &all, pass->scratch);
}

static nn_status_t session_logits_out(nn_session_t *session, int64_t sequence, float *logits) {
  nn_device_t *device = session->model->device;
  int64_t vocab = session->model->config.vocab_size;
  return device->backend->copy_out(device->place, logits,
                                   session->buffers.logits + sequence * vocab,
                                   (size_t)vocab * sizeof(float));
}

nn_status_t session_prefill(nn_session_t *session, int64_t sequence, const int32_t *tokens,
                            int64_t count, float *logits) {
  int64_t hidden = session->model->config.hidden, start = session->length[sequence];
  session->fresh[sequence] = false;
  block_cache_t cache;
  pass_t pass;
  void *x = NULL;
  int64_t n = 0;
  for (int64_t done = 0; done < count; done += n) {
    n = count - done;
    if (n > session->options.prefill_chunk) n = session->options.prefill_chunk;
    for (int64_t i = 0; i < n; i++) {
      session_host(session, ROW_ID)[i] = tokens[done + i];
      session_host(session, ROW_POSITION)[i] = (int32_t)(start + done + i);
      session_host(session, ROW_SEQUENCE)[i] = (int32_t)sequence;
    }
    session_host(session, ROW_ATTEND)[0] = (int32_t)sequence;
    session_host(session, ROW_KV_LEN)[0] = (int32_t)(start + done + n);
    STATUS_TRY(device_poll(session->model->device));
    STATUS_TRY(session_rows_in(session, n));
    session_begin(session, 1, n, &cache, &pass);
    STATUS_TRY(session_blocks(session, &pass, &x));
  }
  STATUS_TRY(
      session_head(session, &pass, block_at(x, pass.act_dtype, (n - 1) * hidden), 1, sequence));
  if (logits) STATUS_TRY(session_logits_out(session, sequence, logits));
  memcpy(session->tokens + sequence * session->options.max_len + start, tokens,
         (size_t)count * sizeof *tokens);
  session->length[sequence] = start + count;
  session->fresh[sequence] = true;
  return NN_OK;
}

/* A step over the rows that were described. */
typedef struct session_step {
  nn_session_t *session;
  int64_t rows;
} session_step_t;

/* One token for each row, in whatever order of sequences. Its arguments are the same as long as
 * these are: it can be replayed. */
static nn_status_t session_step(const void *context) {
  const session_step_t *step = context;
  nn_session_t *session = step->session;
  int64_t rows = step->rows;
  const int32_t *sequence = session_host(session, ROW_SEQUENCE);
  block_cache_t cache;
  pass_t pass;
  void *x;
  session_begin(session, rows, 1, &cache, &pass);
  STATUS_TRY(session_blocks(session, &pass, &x));
  for (int64_t row = 0, run; row < rows; row += run) { /* runs of neighbouring sequences */
    for (run = 1; row + run < rows && sequence[row + run] == sequence[row] + run;) run++;
    const void *from = block_at(x, pass.act_dtype, row * pass.config->hidden);
    STATUS_TRY(session_head(session, &pass, from, run, sequence[row]));
  }
  return NN_OK;
}

/* Describes a row: the next token of a sequence. */
static void session_describe(nn_session_t *session, int64_t row, int64_t sequence, int32_t token) {
  session_host(session, ROW_ID)[row] = token;
  session_host(session, ROW_POSITION)[row] = (int32_t)session->length[sequence];
  session_host(session, ROW_SEQUENCE)[row] = session_host(session, ROW_ATTEND)[row] =
      (int32_t)sequence;
  session_host(session, ROW_KV_LEN)[row] = (int32_t)session->length[sequence] + 1;
  session->fresh[sequence] = false;
}

/* The step over the described rows. */
static nn_status_t session_advance(nn_session_t *session, int64_t rows) {
  const nn_device_t *device = session->model->device;
  const session_step_t work = {session, rows};
  STATUS_TRY(session_rows_in(session, rows));
  if (rows == session->options.batch)
    return replay_run(device, &session->step, session_step, &work);
  const int32_t *sequence = session_host(session, ROW_SEQUENCE);
  size_t bytes = (size_t)rows * sizeof *sequence;
  if (rows != session->part_rows || memcmp(session->part_of, sequence, bytes)) {
    replay_forget(device, &session->part);
    memcpy(session->part_of, sequence, bytes);
    session->part_rows = rows;
  }
  return replay_run(device, &session->part, session_step, &work);
}

/* The described tokens belong to their sequences from here on. */
static void session_append(nn_session_t *session, int64_t rows) {
  for (int64_t row = 0; row < rows; row++) {
    int64_t s = session_host(session, ROW_SEQUENCE)[row];
    session->tokens[s * session->options.max_len + session->length[s]++] =
        session_host(session, ROW_ID)[row];
    session->fresh[s] = true;
  }
}

nn_status_t session_decode(nn_session_t *session, const int32_t *tokens, float *logits) {
  int64_t vocab = session->model->config.vocab_size, rows = 0;
  for (int64_t s = 0; s < session->options.batch; s++)
    if (tokens[s] >= 0) session_describe(session, rows++, s, tokens[s]);
  if (!rows) return NN_OK;
  STATUS_TRY(session_advance(session, rows));
  const int32_t *sequence = session_host(session, ROW_SEQUENCE);
  for (int64_t row = 0; logits && row < rows; row++)
    STATUS_TRY(session_logits_out(session, sequence[row], logits + sequence[row] * vocab));
  session_append(session, rows);
  return NN_OK;
}

nn_status_t session_decode_one(nn_session_t *session, int64_t sequence, int32_t token) {
  session_describe(session, 0, sequence, token);
  STATUS_TRY(session_advance(session, 1));
  session_append(session, 1);
  return NN_OK;
}

/* ---- choice ---------------------------------------------------------------------------------- */

nn_status_t sample_check(const nn_sample_options_t *options, nn_sample_options_t *checked) {
  *checked = *options;
  if (checked->repetition_penalty == 0) checked->repetition_penalty = 1;
  if (!(checked->temperature >= 0 && isfinite(checked->temperature)))
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_sample_options_t: temperature is %g; it must be at least 0",
                       (double)checked->temperature);
  if (checked->top_k < 0)
    return status_fail(NN_ERR_ARGUMENT, "nn_sample_options_t: top_k is %d; it must be at least 0",
                       checked->top_k);
  if (!(checked->top_p >= 0 && checked->top_p <= 1 && checked->min_p >= 0 && checked->min_p <= 1))
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_sample_options_t: top_p %g and min_p %g must be in [0, 1]",
                       (double)checked->top_p, (double)checked->min_p);
  if (!(checked->repetition_penalty > 0 && isfinite(checked->repetition_penalty)))
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_sample_options_t: repetition_penalty is %g; it must be above 0",
                       (double)checked->repetition_penalty);
  return NN_OK;
}

nn_status_t session_sample(nn_session_t *session, int64_t sequence,
                           const nn_sample_options_t *options, int32_t *token) {
  nn_device_t *device = session->model->device;
  session_buffers_t *buffers = &session->buffers;
  int64_t vocab = session->model->config.vocab_size, length = session->length[sequence];
  op_sample_t op = {.vocab = vocab, .logits = buffers->logits + sequence * vocab};
  op.temperature = options->temperature, op.top_k = options->top_k, op.top_p = options->top_p;
  op.min_p = options->min_p, op.repetition_penalty = options->repetition_penalty;
  op.seed = options->seed, op.counter = (uint64_t)length;
  op.history = buffers->history, op.token = buffers->token;
  if (op.repetition_penalty != 1) {
    op.history_len = length;
    STATUS_TRY(session_copy_in(session, buffers->history,
                               session->tokens + sequence * session->options.max_len, length));
  }
  STATUS_TRY(device->backend->sample(device->place, &op, buffers->scratch));
  int32_t chosen;
  STATUS_TRY(device->backend->copy_out(device->place, &chosen, buffers->token, sizeof chosen));
  if (chosen < 0)
    return status_fail(NN_ERR_NONFINITE,
                       "the logits of sequence %lld hold NaN: the parameters are not usable",
                       (long long)sequence);
  *token = chosen;
  return NN_OK;
}
