/* The demo's steps through Ferry: what the ranks do together. */
#include "demo_model.h"
#include "memory.h"
#include <math.h>
#include <string.h>

enum { H = FE_DEMO_HIDDEN, F = FE_DEMO_INNER, E = FE_DEMO_EXPERTS, K = FE_DEMO_TOPK };

#define TRY(call)                                      \
    do {                                               \
        ferry_status try_status = (call);              \
        if (try_status != FERRY_OK) return try_status; \
    } while (0)

/* Dispatch and combine both carry one row per choice. */
static void count_bytes(fe_demo_model *m, int rows) {
    m->bytes += (uint64_t)rows * H * sizeof(float);
}

static ferry_status make_route(fe_demo_model *m, fe_demo_layer *l, fe_demo_path path) {
    ferry_route_config c = FERRY_ROUTE_CONFIG_INIT;
    c.topk_idx = ferry_tensor_2d(l->choice, FERRY_INT32, m->tokens, K);
    c.topk_weights = ferry_tensor_2d(l->weight, FERRY_FP32, m->tokens, K);
    c.layout = path == FE_DEMO_DECODE ? FERRY_LAYOUT_SLOTS : FERRY_LAYOUT_EXPERT;
    c.mode = path == FE_DEMO_DECODE ? FERRY_LATENCY : FERRY_THROUGHPUT;
    ferry_route_destroy(l->route);
    l->route = NULL;
    TRY(ferry_route_create(m->group, &c, &l->route, NULL));
    l->info = FERRY_ROUTE_INFO_INIT;
    return ferry_route_get_info(l->route, &l->info);
}

/* Rows packed by expert, into memory of the model's: the backward pass needs them again. */
static ferry_status run_packed(fe_demo_model *m, fe_demo_layer *l, const ferry_dispatch_in *in, ferry_tensor *back) {
    ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
    out.rows = ferry_tensor_2d(l->received, FERRY_FP32, l->info.rows, H);
    out.topk_weights = ferry_tensor_1d(l->received_weight, FERRY_FP32, l->info.rows);
    TRY(ferry_dispatch(l->route, in, &out, NULL, NULL));
    for (int e = 0; e < m->local_experts; e++) {
        int64_t at = l->info.expert_start[e];
        fe_demo_expert_rows(&l->expert[e], l->info.expert_rows[e], l->received + at * H, l->inner + at * F,
                            l->active + at * F, l->returned + at * H);
    }
    *back = ferry_tensor_2d(l->returned, FERRY_FP32, l->info.rows, H);
    return FERRY_OK;
}

/* Rows of a view, to read: where they are, or a copy. */
static ferry_status view_rows(fe_demo_model *m, const ferry_tensor *view, int64_t first, int64_t rows,
                              const float **at) {
    const float *there = (const float *)view->data + first * H;
    *at = m->arrived ? m->arrived : there;
    return m->arrived ? fe_memory_read(m->group, m->arrived, there, (size_t)rows * H * sizeof(float)) : FERRY_OK;
}

/* And to write: where they belong, or where answer_rows takes them from. */
static float *room_for(fe_demo_model *m, const ferry_tensor *view, int64_t first) {
    return m->answered ? m->answered : (float *)view->data + first * H;
}

static ferry_status answer_rows(fe_demo_model *m, const ferry_tensor *view, int64_t first, int64_t rows) {
    float *there = (float *)view->data + first * H;
    return m->answered ? fe_memory_write(m->group, there, m->answered, (size_t)rows * H * sizeof(float)) : FERRY_OK;
}

/* Rows in static slots, read where Ferry put them and written where the combine takes them from. */
static ferry_status run_slots(fe_demo_model *m, fe_demo_layer *l, const ferry_dispatch_in *in, ferry_tensor *back) {
    ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
    out.counts = ferry_tensor_2d(m->counts, FERRY_INT32, m->local_experts, m->ranks);
    out.starts = ferry_tensor_2d(m->starts, FERRY_INT32, m->local_experts, m->ranks);
    TRY(ferry_dispatch(l->route, in, &out, NULL, NULL));
    TRY(ferry_combine_buffer(l->route, FERRY_FP32, H, back, NULL));
    int64_t slots = out.rows.shape[1];
    for (int e = 0; e < m->local_experts; e++) {
        for (int r = 0; r < m->ranks; r++) {
            int64_t first = e * slots + m->starts[e * m->ranks + r];
            int rows = m->counts[e * m->ranks + r];
            const float *x;
            TRY(view_rows(m, &out.rows, first, rows, &x));
            fe_demo_expert_rows(&l->expert[e], rows, x, l->inner, l->active, room_for(m, back, first));
            TRY(answer_rows(m, back, first, rows));
        }
    }
    return FERRY_OK;
}

/* to = x + sum of w(c) expert_c(h): the residual enters the combine as its bias. */
static ferry_status layer_forward(fe_demo_model *m, int layer, float *to, fe_demo_path path) {
    fe_demo_layer *l = &m->layer[layer];
    fe_demo_gate(m, layer);
    TRY(make_route(m, l, path));
    ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
    in.rows = ferry_tensor_2d(l->h, FERRY_FP32, m->tokens, H);
    ferry_combine_in back = FERRY_COMBINE_IN_INIT;
    TRY((path == FE_DEMO_DECODE ? run_slots : run_packed)(m, l, &in, &back.rows));
    ferry_combine_out out = FERRY_COMBINE_OUT_INIT;
    out.rows = ferry_tensor_2d(to, FERRY_FP32, m->tokens, H);
    ferry_combine_options options = FERRY_COMBINE_OPTIONS_INIT;
    options.weighted = 1;
    options.bias[0] = ferry_tensor_2d(l->x, FERRY_FP32, m->tokens, H);
    count_bytes(m, 2 * m->tokens * K);
    return ferry_combine(l->route, &back, &out, &options, NULL);
}

ferry_status fe_demo_forward(fe_demo_model *m, fe_demo_path path) {
    fe_demo_embed(m);
    for (int i = 0; i < FE_DEMO_LAYERS; i++)
        TRY(layer_forward(m, i, i + 1 < FE_DEMO_LAYERS ? m->layer[i + 1].x : m->x, path));
    fe_demo_output(m);
    return FERRY_OK;
}

/* Every shard's values, in the order of the shards, on every rank. `mine` may be in its place in `all`. */
static ferry_status gather(fe_demo_model *m, const void *mine, void *all, size_t bytes_per_shard) {
    size_t bytes = bytes_per_shard * (size_t)m->local_shards;
    m->bytes += bytes * (size_t)m->ranks;
    return ferry_allgather(m->group, mine, all, bytes, NULL);
}

ferry_status fe_demo_loss(fe_demo_model *m, double *bits) {
    double nats = 0;
    int64_t tokens = 0;
    for (int s = 0; s < m->local_shards; s++) fe_demo_tally_shard(m, s);
    TRY(gather(m, m->tally + m->rank * m->local_shards, m->tally, sizeof *m->tally));
    for (int s = 0; s < m->shards; s++) {
        nats += m->tally[s].nats;
        for (int e = 0; e < E; e++) tokens += m->tally[s].chosen[0][e];
    }
    *bits = nats / ((double)tokens / K) / M_LN2;
    return FERRY_OK;
}

/* The gradient of a combine is a dispatch on the same route; that of a dispatch is an unweighted combine. */
static ferry_status layer_backward(fe_demo_model *m, int layer) {
    fe_demo_layer *l = &m->layer[layer];
    ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
    in.rows = ferry_tensor_2d(m->dx, FERRY_FP32, m->tokens, H);
    ferry_dispatch_out arrived = FERRY_DISPATCH_OUT_INIT;
    ferry_dispatch_options options = FERRY_DISPATCH_OPTIONS_INIT;
    options.skip_topk = 1;
    TRY(ferry_dispatch(l->route, &in, &arrived, &options, NULL));
    ferry_combine_in back = FERRY_COMBINE_IN_INIT;
    TRY(ferry_combine_buffer(l->route, FERRY_FP32, H, &back.rows, NULL));
    for (int e = 0; e < m->local_experts; e++) {
        int64_t first = l->info.expert_start[e];
        int rows = l->info.expert_rows[e];
        const float *dy;
        TRY(view_rows(m, &arrived.rows, first, rows, &dy));
        fe_demo_expert_back(m, l, e, (int)first, rows, dy, room_for(m, &back.rows, first));
        TRY(answer_rows(m, &back.rows, first, rows));
    }
    back.weights = ferry_tensor_1d(m->drow_weight, FERRY_FP32, l->info.rows);
    ferry_combine_out out = FERRY_COMBINE_OUT_INIT;
    out.rows = ferry_tensor_2d(m->dh, FERRY_FP32, m->tokens, H);
    out.weights = ferry_tensor_2d(m->dweight, FERRY_FP32, m->tokens, K);
    TRY(ferry_combine(l->route, &back, &out, NULL, NULL));
    count_bytes(m, 2 * m->tokens * K);
    fe_demo_gate_back(m, layer);
    return FERRY_OK;
}

ferry_status fe_demo_backward(fe_demo_model *m) {
    fe_demo_output_back(m);
    for (int i = FE_DEMO_LAYERS - 1; i >= 0; i--) TRY(layer_backward(m, i));
    fe_demo_embed_back(m);
    TRY(gather(m, m->gradient, m->gathered, sizeof *m->gradient));
    for (int s = 1; s < m->shards; s++)
        fe_add((float *)m->gathered, (const float *)(m->gathered + s), sizeof *m->gathered / sizeof(float));
    return FERRY_OK;
}

void fe_demo_update(fe_demo_model *m, int step, float rate) {
    const fe_adam adam = fe_adam_at(step, rate);
    const int64_t experts = (int64_t)m->local_experts * (int64_t)(sizeof(fe_demo_expert) / sizeof(float));
    fe_adam_update(&adam, (float *)m->dense, (const float *)m->gathered, (float *)m->mean, (float *)m->square,
                   sizeof *m->dense / sizeof(float));
    for (int i = 0; i < FE_DEMO_LAYERS; i++) {
        fe_demo_layer *l = &m->layer[i];
        fe_adam_update(&adam, (float *)l->expert, (const float *)l->gradient, (float *)l->mean, (float *)l->square,
                       experts);
    }
}
