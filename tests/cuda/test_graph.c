/* Recorded graphs: one layer of a model forward, its loss and a part of the way back, recorded and
 * run with other inputs than were there while it was recorded, give the bits that the same calls
 * give. */
#include <math.h>

#include "gpu.h"

enum { BATCH = 2, T = 40, N = BATCH * T, H = 64, HEADS = 3, DIM = 16 };
enum { E = 4, K = 2, F = 96, V = 500 };
enum { Q = HEADS * DIM, QKV = Q + 2 * DIM, SLOTS = N * K };

typedef struct layer {
  gpu_tensor_t *ids, *position, *target, *turns, *scale, *wte, *norm_w, *qkv_w, *o_w, *router_w,
      *expert_w;
  gpu_tensor_t *x, *normed, *rstd, *qkv, *attended, *lse, *y;
  gpu_tensor_t *expert, *weight, *offset, *row_slot, *slot_row, *prob, *route_lse, *share,
      *mean_prob, *mean_lse2, *pre, *z, *row_loss, *loss, *dz, *dwte, *dx, *dweight, *d_expert;
} layer_t;

static layer_t layer_make(void) {
  float *table = gpu_memory(T * DIM, sizeof *table);
  for (int i = 0; i < T * DIM; i++)
    table[i] = (float)(i % DIM < DIM / 2 ? cos(0.1 * (i / DIM)) : sin(0.1 * (i / DIM)));
  int32_t *position = gpu_memory(N, sizeof *position);
  for (int i = 0; i < N; i++) position[i] = i % T;
  return (layer_t){.ids = gpu_ints(gpu_indices(N, V, 1), N),
                   .position = gpu_ints(position, N),
                   .target = gpu_ints(gpu_indices(N, V, 2), N),
                   .scale = gpu_tensor(GPU_F32, GPU_READ, &(float){0.5f}, 1),
                   .turns = gpu_tensor(GPU_F32, GPU_READ, table, T * DIM),
                   .wte = gpu_in(V * H, 1, 0, 3),
                   .norm_w = gpu_in(H, 0.5, 1, 4),
                   .qkv_w = gpu_in(QKV * H, 0.3, 0, 5),
                   .o_w = gpu_in(H * Q, 0.3, 0, 6),
                   .router_w = gpu_in(E * H, 0.3, 0, 7),
                   .expert_w = gpu_in(E * 3 * F * H, 0.2, 0, 8),
                   .x = gpu_out(GPU_ACT, N * H),
                   .normed = gpu_out(GPU_ACT, N * H),
                   .rstd = gpu_out(GPU_F32, N),
                   .qkv = gpu_out(GPU_ACT, N * QKV),
                   .attended = gpu_out(GPU_ACT, N * Q),
                   .lse = gpu_out(GPU_F32, N * HEADS),
                   .y = gpu_out(GPU_ACT, N * H),
                   .expert = gpu_out(GPU_I32, SLOTS),
                   .weight = gpu_out(GPU_F32, SLOTS),
                   .offset = gpu_out(GPU_I32, E + 1),
                   .row_slot = gpu_out(GPU_I32, SLOTS),
                   .slot_row = gpu_out(GPU_I32, SLOTS),
                   .prob = gpu_out(GPU_F32, N * E),
                   .route_lse = gpu_out(GPU_F32, N),
                   .share = gpu_out(GPU_F32, E),
                   .mean_prob = gpu_out(GPU_F32, E),
                   .mean_lse2 = gpu_out(GPU_F32, 1),
                   .pre = gpu_out(GPU_ACT, SLOTS * 2 * F),
                   .z = gpu_out(GPU_ACT, N * H),
                   .row_loss = gpu_out(GPU_F32, N),
                   .loss = gpu_out(GPU_F64, 1),
                   .dz = gpu_out(GPU_ACT, N * H),
                   .dwte = gpu_sum(GPU_F32, V * H, 9),
                   .dx = gpu_out(GPU_ACT, N * H),
                   .dweight = gpu_out(GPU_F32, SLOTS),
                   .d_expert = gpu_sum(GPU_F32, E * 3 * F * H, 10)};
}

static void *at(const gpu_tensor_t *t, int64_t offset) { return gpu_at(t, GPU_GPU, offset); }

#define CALL(name, ...) \
  gpu_expect(NN_OK, GPU_CALL(name, GPU_GPU, (&(op_##name##_t){__VA_ARGS__})), #name)

static void layer_attend(const layer_t *l, int32_t dtype) {
  CALL(embed, .n = N, .hidden = H, .ids = at(l->ids, 0), .position = at(l->position, 0),
       .wte = at(l->wte, 0), .weight_dtype = dtype, .act_dtype = dtype, .out = at(l->x, 0));
  CALL(norm, .n = N, .hidden = H, .kind = NN_NORM_RMS, .eps = 1e-5f, .x = at(l->x, 0),
       .w = at(l->norm_w, 0), .weight_dtype = dtype, .act_dtype = dtype, .y = at(l->normed, 0),
       .rstd = at(l->rstd, 0));
  CALL(matmul, .m = N, .n = QKV, .k = H, .trans_b = 1, .a = at(l->normed, 0), .lda = H,
       .b = at(l->qkv_w, 0), .ldb = H, .a_dtype = dtype, .b_dtype = dtype, .d = at(l->qkv, 0),
       .ldd = QKV, .d_dtype = dtype);
  CALL(rope, .n = N, .heads = HEADS + 1, .head_dim = DIM, .act_dtype = dtype, .x = at(l->qkv, 0),
       .ldx = QKV, .position = at(l->position, 0), .table = at(l->turns, 0));
  CALL(attention, .batch = BATCH, .q_len = T, .heads = HEADS, .kv_heads = 1, .head_dim = DIM,
       .act_dtype = dtype, .q = at(l->qkv, 0), .ldq = QKV, .k = at(l->qkv, Q),
       .v = at(l->qkv, Q + DIM), .ldkv = QKV, .kv_batch = T * QKV, .scale = 0.25f,
       .o = at(l->attended, 0), .lse = at(l->lse, 0));
  CALL(matmul, .m = N, .n = H, .k = Q, .trans_b = 1, .a = at(l->attended, 0), .lda = Q,
       .b = at(l->o_w, 0), .ldb = Q, .a_dtype = dtype, .b_dtype = dtype, .c = at(l->x, 0), .ldc = H,
       .d = at(l->y, 0), .ldd = H, .d_dtype = dtype);
}

static void layer_experts(const layer_t *l, int32_t dtype) {
  routing_t routing = {at(l->expert, 0), at(l->weight, 0), at(l->offset, 0), at(l->row_slot, 0),
                       at(l->slot_row, 0)};
  CALL(route, .n = N, .hidden = H, .experts = E, .top_k = K, .x = at(l->y, 0),
       .w = at(l->router_w, 0), .weight_dtype = dtype, .act_dtype = dtype, .out = routing,
       .prob = at(l->prob, 0), .lse = at(l->route_lse, 0), .share = at(l->share, 0),
       .mean_prob = at(l->mean_prob, 0), .mean_lse2 = at(l->mean_lse2, 0));
  CALL(experts, .n = N, .hidden = H, .ffn = F, .experts = E, .top_k = K, .x = at(l->y, 0),
       .routing = routing, .gate = at(l->expert_w, 0), .up = at(l->expert_w, F * H),
       .down = at(l->expert_w, 2 * F * H), .expert_stride = 3 * F * H, .weight_dtype = dtype,
       .act_dtype = dtype, .pre = at(l->pre, 0), .residual = at(l->y, 0), .out = at(l->z, 0));
  CALL(head_loss, .n = N, .hidden = H, .vocab = V, .x = at(l->z, 0), .w = at(l->wte, 0),
       .weight_dtype = dtype, .act_dtype = dtype, .target = at(l->target, 0),
       .row_loss = at(l->row_loss, 0), .loss_sum = at(l->loss, 0), .scale = at(l->scale, 0),
       .dx = at(l->dz, 0), .dw = at(l->dwte, 0));
  gpu_expect(NN_OK,
             gpu_table(GPU_GPU)->zero(gpu_device(GPU_GPU), at(l->d_expert, 0),
                                      E * 3 * F * H * sizeof(float)),
             "zero");
  CALL(experts_bwd, .n = N, .hidden = H, .ffn = F, .experts = E, .top_k = K, .x = at(l->y, 0),
       .routing = routing, .gate = at(l->expert_w, 0), .up = at(l->expert_w, F * H),
       .down = at(l->expert_w, 2 * F * H), .expert_stride = 3 * F * H, .weight_dtype = dtype,
       .act_dtype = dtype, .pre = at(l->pre, 0), .dout = at(l->dz, 0), .dx = at(l->dx, 0),
       .dweight = at(l->dweight, 0), .dgate = at(l->d_expert, 0), .dup = at(l->d_expert, F * H),
       .ddown = at(l->d_expert, 2 * F * H));
}

static void layer_run(const layer_t *l, int32_t dtype) {
  layer_attend(l, dtype);
  layer_experts(l, dtype);
}

static int has_graphs(void) { return gpu_table(GPU_GPU)->record_begin != NULL; }

static backend_graph_t *record(const layer_t *l, int32_t dtype) {
  const backend_t *table = gpu_table(GPU_GPU);
  backend_graph_t *graph = NULL;
  gpu_expect(NN_OK, table->record_begin(gpu_device(GPU_GPU)), "record_begin");
  layer_run(l, dtype);
  gpu_expect(NN_OK, table->record_end(gpu_device(GPU_GPU), &graph), "record_end");
  assert_non_null(graph);
  return graph;
}

static void begin(int32_t dtype) {
  gpu_begin(dtype,
            (backend_limits_t){.rows = N, .batch = BATCH, .hidden = H, .heads = HEADS,
                               .kv_heads = 1, .head_dim = DIM, .ffn = F, .experts = E, .top_k = K,
                               .vocab = V, .training = 1},
            "a layer in a graph");
}

/* What the graph makes of a third input, after a second one, is what the calls make of it. */
static void check_replay(int32_t dtype) {
  const backend_t *table = gpu_table(GPU_GPU);
  begin(dtype);
  layer_t l = layer_make();
  gpu_prepare(GPU_GPU, 0);
  backend_graph_t *graph = record(&l, dtype); /* first of all: nothing was called before it */
  gpu_collect("recording", 0);
  for (int64_t i = 0; i < N; i++) assert_true(isnan(gpu_value(l.row_loss, GPU_GPU, i)));

  double loss[2];
  for (int i = 0; i < 2; i++) {
    gpu_change(l.ids, gpu_indices(N, V, 20 + (uint64_t)i));
    gpu_change(l.wte, gpu_uniform(V * H, 1, 0, 30 + (uint64_t)i));
    gpu_prepare(GPU_GPU, 0);
    layer_run(&l, dtype);
    gpu_collect("calls", 0);
    loss[i] = gpu_value(l.loss, GPU_GPU, 0);
    assert_true(isfinite(loss[i]) && loss[i] > 0);
    for (int run = 1; run < 3; run++) { /* over garbage, twice: the bits of the calls */
      gpu_prepare(GPU_GPU, run);
      gpu_expect(NN_OK, table->graph_run(gpu_device(GPU_GPU), graph), "graph_run");
      gpu_collect("graph_run", run);
    }
  }
  assert_true(loss[0] != loss[1]);
  table->graph_free(gpu_device(GPU_GPU), graph);
  gpu_end();
}

static void test_replay(void **state) {
  (void)state;
  if (!has_graphs()) skip();
  check_replay(gpu_dtypes[0]);
  check_replay(NN_F32);
}

/* A recording that an operation failed in ends as any other; the device works on. */
static void test_failed_recording(void **state) {
  (void)state;
  if (!has_graphs()) skip();
  const backend_t *table = gpu_table(GPU_GPU);
  begin(gpu_dtypes[0]);
  layer_t l = layer_make();
  backend_graph_t *graph = (backend_graph_t *)&l;
  op_norm_t norm = {.n = N, .hidden = H, .kind = NN_NORM_RMS, .eps = 1e-5f, .x = at(l.wte, 0),
                    .w = at(l.norm_w, 0), .weight_dtype = gpu_dtypes[0], .act_dtype = gpu_dtypes[0],
                    .y = at(l.normed, 0), .rstd = at(l.rstd, 0)};
  gpu_prepare(GPU_GPU, 0);
  gpu_expect(NN_OK, table->record_begin(gpu_device(GPU_GPU)), "record_begin");
  gpu_expect(NN_OK, GPU_CALL(norm, GPU_GPU, &norm), "norm");
  gpu_cancel(1);
  gpu_expect(NN_ERR_CANCELLED, GPU_CALL(norm, GPU_GPU, &norm), "a cancelled norm");
  gpu_cancel(0);
  gpu_expect(NN_OK, table->record_end(gpu_device(GPU_GPU), &graph), "record_end");
  table->graph_free(gpu_device(GPU_GPU), graph);
  table->graph_free(gpu_device(GPU_GPU), NULL);

  gpu_expect(NN_OK, GPU_CALL(norm, GPU_GPU, &norm), "norm");
  gpu_collect("norm", 0);
  for (int64_t i = 0; i < N; i++) assert_true(gpu_value(l.rstd, GPU_GPU, i) > 0);
  graph = record(&l, gpu_dtypes[0]);
  table->graph_free(gpu_device(GPU_GPU), graph);
  gpu_end();
}

/* A graph is not begun for a cancelled caller; what cannot be cancelled still runs. */
static void test_cancel(void **state) {
  (void)state;
  if (!has_graphs()) skip();
  const backend_t *table = gpu_table(GPU_GPU);
  begin(gpu_dtypes[0]);
  layer_t l = layer_make();
  gpu_prepare(GPU_GPU, 0);
  backend_graph_t *graph = record(&l, gpu_dtypes[0]);
  gpu_cancel(1);
  gpu_expect(NN_ERR_CANCELLED, table->graph_run(gpu_device(GPU_GPU), graph), "graph_run");
  gpu_expect(NN_OK, table->zero(gpu_device(GPU_GPU), at(l.lse, 0), N * HEADS * sizeof(float)),
             "zero");
  gpu_cancel(0);
  gpu_collect("a cancelled graph", 0);
  for (int64_t i = 0; i < N; i++) assert_true(isnan(gpu_value(l.row_loss, GPU_GPU, i)));
  for (int64_t i = 0; i < N * HEADS; i++) assert_true(gpu_value(l.lse, GPU_GPU, i) == 0);
  table->graph_free(gpu_device(GPU_GPU), graph);
  gpu_end();
}

int main(void) {
  int skipped = gpu_open();
  if (skipped) return skipped;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_replay),
      cmocka_unit_test(test_failed_recording),
      cmocka_unit_test(test_cancel),
  };
  return cmocka_run_group_tests_name("graphs on a GPU", tests, NULL, gpu_close);
}
