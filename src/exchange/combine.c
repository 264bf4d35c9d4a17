/* Combine: experts' rows back to their tokens' owners, who pull and sum them (docs/protocol.md, "Combine"). */
#include "base/structs.h"
#include "exchange/route.h"
#include "group/calls.h"

typedef struct plan {
    ferry_route *r;
    uint64_t epoch;
    int half;
    fe_gather gather;
    fe_reduce reduce;
    bool weights;                 /* rows bring one back */
    uint64_t word[FE_CELL_WORDS]; /* of our OFFER note */
} plan;

static bool summable(ferry_dtype dtype) {
    return dtype == FERRY_BF16 || dtype == FERRY_FP16 || dtype == FERRY_FP32;
}

static ferry_status check_width(const ferry_group *g, const char *name, ferry_dtype dtype, int64_t columns) {
    if (!summable(dtype))
        return fe_fail(FERRY_INVALID, "%s has dtype %d: bf16, fp16 or fp32 can be summed", name, (int)dtype);
    if (columns < 1 || columns > (1 << 24))
        return fe_fail(FERRY_INVALID, "%s has %lld columns", name, (long long)columns);
    size_t bytes = (size_t)columns * ferry_dtype_bytes(dtype);
    if (bytes % 16 != 0 || bytes > g->body.row_bytes)
        return fe_fail(FERRY_INVALID, "%s: %lld columns are %zu bytes a row; allowed are multiples of 16 up to %zu",
                       name, (long long)columns, bytes, g->body.row_bytes);
    return FERRY_OK;
}

/* ---- in ---- */

static ferry_status plan_rows(plan *p, const ferry_combine_in *in) {
    const ferry_group *g = p->r->group;
    const fe_heap *heap = &g->engine.heap;
    int64_t rows = p->r->info.rows;
    fe_gather *m = &p->gather;
    fe_view v;
    FE_TRY(fe_view_slots(&in->rows, "in.rows", &p->r->data.shape, &v));
    FE_TRY(check_width(g, "in.rows", v.dtype, v.columns));
    FE_TRY(fe_view_rows(&v, "in.rows", rows, true));
    FE_TRY(fe_view_solid(&v, "in.rows"));
    *m = (fe_gather){.rows = v.data, .row_stride = v.row};
    m->row_bytes = (size_t)v.columns * ferry_dtype_bytes(v.dtype);
    p->reduce.in_type = v.dtype;
    p->reduce.columns = (size_t)v.columns;
    /* Rows that lie in the heap are read where they are; from the first to the last byte of them. */
    size_t span = rows && v.row >= 0 ? (size_t)(rows - 1) * (size_t)v.row + m->row_bytes : 0;
    int64_t offset = v.row >= 0 ? fe_heap_offset(heap, v.data, span) : -1;
    bool in_place = offset >= (int64_t)heap->body_at;
    p->word[FE_OFFER_ROWS] = in_place ? (uint64_t)offset : g->body.back[p->half].rows;
    p->word[FE_OFFER_STRIDE] = in_place ? (uint64_t)v.row : m->row_bytes;
    if (!in_place) m->rows_to = g->body.back[p->half].rows;
    return FERRY_OK;
}

static ferry_status plan_weights(plan *p, const ferry_combine_in *in) {
    const fe_shape *shape = &p->r->data.shape;
    bool by_rank = shape->layout == FERRY_LAYOUT_RANK;
    int64_t rows = p->r->info.rows;
    fe_view v;
    p->weights = fe_given(&in->weights, rows);
    if (!p->weights) return FERRY_OK;
    FE_TRY(by_rank ? fe_view_2d(&in->weights, "in.weights", &v) : fe_view_1d(&in->weights, "in.weights", &v));
    FE_TRY(fe_view_dtype(&v, "in.weights", FERRY_FP32));
    FE_TRY(fe_view_rows(&v, "in.weights", rows, true));
    if (by_rank) FE_TRY(fe_view_columns(&v, "in.weights", shape->topk));
    FE_TRY(fe_view_packed(&v, "in.weights"));
    p->gather.weights = v.data;
    p->gather.weight_bytes = sizeof(float) * (by_rank ? (size_t)shape->topk : 1);
    p->gather.weights_to = p->word[FE_OFFER_WEIGHTS] = p->r->group->body.back[p->half].weights;
    return FERRY_OK;
}

static ferry_status plan_bias(plan *p, const ferry_combine_options *options) {
    static const char *const names[] = {"options.bias[0]", "options.bias[1]"};
    for (int b = 0; b < 2; b++) {
        fe_view v;
        if (!options->bias[b].data) continue;
        FE_TRY(fe_view_2d(&options->bias[b], names[b], &v));
        FE_TRY(fe_view_rows(&v, names[b], p->r->data.shape.tokens, false));
        FE_TRY(fe_view_columns(&v, names[b], (int64_t)p->reduce.columns));
        FE_TRY(fe_view_dtype(&v, names[b], p->reduce.in_type));
        FE_TRY(fe_view_solid(&v, names[b]));
        p->reduce.bias[b] = v.data;
        p->reduce.bias_stride[b] = v.row;
    }
    return FERRY_OK;
}

static ferry_status plan_options(plan *p, const ferry_combine_options *options) {
    const fe_shape *shape = &p->r->data.shape;
    fe_reduce *m = &p->reduce;
    fe_view v;
    FE_CHECK_STRUCT(options, FERRY_MAGIC_COMBINE_OPTIONS, "combine options");
    FE_TRY(plan_bias(p, options));
    m->weighted = options->weighted != 0;
    if (!m->weighted) return FERRY_OK;
    if (!options->weights.data) {
        if (p->r->data.table.weights || shape->tokens == 0) return FERRY_OK;
        return fe_fail(FERRY_INVALID,
                       "a weighted combine without weights: neither the route nor options.weights has any");
    }
    FE_TRY(fe_view_2d(&options->weights, "options.weights", &v));
    FE_TRY(fe_view_dtype(&v, "options.weights", FERRY_FP32));
    FE_TRY(fe_view_rows(&v, "options.weights", shape->tokens, false));
    FE_TRY(fe_view_columns(&v, "options.weights", shape->topk));
    m->weights = (const float *)(const void *)v.data;
    m->weight_row = v.row / (int64_t)sizeof(float);
    m->weight_choice = v.column / (int64_t)sizeof(float);
    return FERRY_OK;
}

/* ---- out ---- */

static ferry_status plan_out(const ferry_route *r, const ferry_combine_out *out, bool weights, fe_reduce *m) {
    const fe_shape *shape = &r->data.shape;
    fe_view v;
    FE_CHECK_STRUCT(out, FERRY_MAGIC_COMBINE_OUT, "combine out");
    FE_TRY(fe_view_2d(&out->rows, "out.rows", &v));
    if (!summable(v.dtype))
        return fe_fail(FERRY_INVALID, "out.rows has dtype %d: bf16, fp16 or fp32 can be written", (int)v.dtype);
    FE_TRY(fe_view_rows(&v, "out.rows", shape->tokens, false));
    FE_TRY(fe_view_columns(&v, "out.rows", (int64_t)m->columns));
    FE_TRY(fe_view_solid(&v, "out.rows"));
    m->out = v.data;
    m->out_type = v.dtype;
    m->out_stride = v.row;
    m->weights_out = NULL;
    if (!weights) return FERRY_OK;
    FE_TRY(fe_view_2d(&out->weights, "out.weights", &v));
    FE_TRY(fe_view_dtype(&v, "out.weights", FERRY_FP32));
    FE_TRY(fe_view_rows(&v, "out.weights", shape->tokens, false));
    FE_TRY(fe_view_columns(&v, "out.weights", shape->topk));
    FE_TRY(fe_view_packed(&v, "out.weights"));
    m->weights_out = (float *)(void *)v.data;
    return FERRY_OK;
}

/* ---- what ranks must agree on ---- */

static uint64_t format_of(const plan *p) {
    return (uint64_t)p->reduce.columns | (uint64_t)p->reduce.in_type << 28 | (uint64_t)p->weights << 32 |
           (p->r->id & 0xfff) << 52;
}

static ferry_status explain(const char *step, int rank, const uint64_t *ours, int other, const uint64_t *theirs) {
    static const fe_agreed agreed[] = {{"route number (modulo 4096)", FE_OFFER_FORMAT, 52, 12, 1},
                                       {"dtype of in.rows", FE_OFFER_FORMAT, 28, 4, 1},
                                       {"columns of in.rows", FE_OFFER_FORMAT, 0, 28, 1},
                                       {"presence of in.weights", FE_OFFER_FORMAT, 32, 1, 1}};
    return fe_agreed_compare(agreed, sizeof agreed / sizeof *agreed, step, rank, ours, other, theirs);
}

/* ---- the two passes ---- */

static fe_pass send_pass(const plan *p) {
    fe_pass pass = {.half = p->half, .move = FE_MOVE_GATHER, .route = &p->r->data, .gather = p->gather};
    fe_pass_name(&pass, "combine", p->epoch, " (send)");
    pass.signal = (fe_note){.used = true, .kind = FE_OFFER, .half = p->half, .epoch = p->epoch};
    memcpy(pass.signal.word, p->word, sizeof p->word);
    return pass;
}

static fe_await await_offers(const plan *p) {
    fe_await await = {
        .used = true, .kind = FE_OFFER, .half = p->half, .epoch = p->epoch, .same = 1u << FE_OFFER_FORMAT};
    memcpy(await.word, p->word, sizeof p->word);
    return await;
}

static fe_part parts_of(const plan *p) {
    return fe_route_parts(p->r, p->reduce.columns * ferry_dtype_bytes(p->reduce.in_type));
}

/* Several hosts: sums what the ranks here hold of other hosts' tokens, and sends it to their owners. */
static fe_pass sums_pass(const plan *p) {
    fe_pass pass = {
        .half = p->half, .move = FE_MOVE_SUMS, .route = &p->r->data, .reduce = p->reduce, .explain = explain};
    fe_pass_name(&pass, "combine", p->epoch, " (sums)");
    pass.await = await_offers(p);
    pass.part = parts_of(p);
    return pass;
}

/* Hears all offers, pulls and sums, says that it has, and waits until the others have read from this rank too: then its rows may be
 * overwritten, and so may its offer. */
static fe_pass recv_pass(const plan *p) {
    fe_pass pass = {
        .half = p->half, .move = FE_MOVE_REDUCE, .route = &p->r->data, .reduce = p->reduce, .explain = explain};
    fe_pass_name(&pass, "combine", p->epoch, " (receive)");
    pass.await = await_offers(p);
    if (p->r->data.far.hosts) { /* the offers were heard by the pass before it */
        pass.await.kind = FE_RETURNED;
        pass.await.same = 0;
        pass.part = parts_of(p);
    }
    pass.signal = (fe_note){.used = true, .kind = FE_PULLED, .half = p->half, .epoch = p->epoch};
    pass.settle = (fe_await){.used = true, .kind = FE_PULLED, .half = p->half, .epoch = p->epoch};
    return pass;
}

/* Rows that are read in place need no pass of their own: the offer is announced by the one that pulls. */
static fe_pass whole_pass(const plan *p) {
    fe_pass pass = recv_pass(p);
    fe_pass_name(&pass, "combine", p->epoch, "");
    pass.announce = send_pass(p).signal;
    return pass;
}

/* What this rank asks of those who sum for it on other hosts. */
static void plan_far(plan *p) {
    const fe_reduce *m = &p->reduce;
    p->word[FE_OFFER_WANTS] = (m->weighted ? FE_WANTS_WEIGHTED : 0u) | (p->weights ? FE_WANTS_WEIGHTS : 0u);
    if (!m->weighted || !m->weights) return;
    p->word[FE_OFFER_WANTS] |= FE_WANTS_SENT;
    p->gather.far_weights = m->weights;
    p->gather.far_weight_row = m->weight_row;
    p->gather.far_weight_choice = m->weight_choice;
}

/* ---- the calls ---- */

static ferry_status make_plan(ferry_route *r, const ferry_combine_in *in, const ferry_combine_options *options,
                              plan *p) {
    const ferry_combine_options none = FERRY_COMBINE_OPTIONS_INIT;
    FE_CHECK_STRUCT(in, FERRY_MAGIC_COMBINE_IN, "combine in");
    if (r->data.shape.mode == FERRY_LATENCY && !r->dispatched)
        return fe_fail(FERRY_INVALID,
                       "a combine in LATENCY mode needs a dispatch before it: the counts come with its rows");
    if (r->data.far.hosts && !r->dispatched)
        return fe_fail(
            FERRY_INVALID,
            "a combine over several hosts needs a dispatch before it: each host sums by the choices that came "
            "with the tokens");
    *p = (plan){.r = r, .epoch = r->group->combines + 1};
    p->half = (int)(p->epoch & 1);
    FE_TRY(fe_flight_free(&r->group->combine[p->half], "combine"));
    FE_TRY(plan_rows(p, in));
    FE_TRY(plan_weights(p, in));
    FE_TRY(plan_options(p, options ? options : &none));
    p->word[FE_OFFER_FORMAT] = format_of(p);
    if (r->data.far.hosts) plan_far(p);
    return FERRY_OK;
}

static ferry_status submit(const plan *p, const fe_pass *pass, ferry_stream *stream) {
    ferry_group *g = p->r->group;
    FE_TRY(fe_flight_await(g, &g->combine[p->half], stream));
    fe_group_calls(g, FE_CALL_COMBINE, p->r->id);
    FE_TRY(fe_route_submit(g, stream, pass, false));
    g->combines = p->epoch;
    g->combine[p->half].epoch = p->epoch;
    return FERRY_OK;
}

static ferry_status send(const plan *p, ferry_stream *stream) {
    fe_flight *flight = &p->r->group->combine[p->half];
    fe_pass pass = send_pass(p);
    FE_TRY(submit(p, &pass, stream));
    flight->route = p->r;
    flight->before = sums_pass(p);
    flight->pass = recv_pass(p);
    return FERRY_OK;
}

static ferry_status receive(fe_flight *flight, ferry_stream *stream) {
    ferry_group *g = flight->route->group;
    if (flight->route->data.far.hosts) FE_TRY(fe_route_submit(g, stream, &flight->before, false));
    for (int i = 0; i < fe_part_count(flight->pass.part); i++) {
        fe_pass reduce = fe_pass_of_part(&flight->pass, i);
        if (!fe_part_last(reduce.part)) reduce.signal.used = reduce.settle.used = false; /* not all is pulled yet */
        FE_TRY(fe_route_submit(g, stream, &reduce, false));
    }
    flight->route = NULL;
    return fe_flight_mark(g, flight, stream);
}

ferry_status ferry_combine_send(ferry_route *r, const ferry_combine_in *in, const ferry_combine_options *options,
                                ferry_stream *stream) {
    plan p;
    FE_TRY(fe_route_check(r, stream, "ferry_combine_send"));
    FE_TRY(make_plan(r, in, options, &p));
    FE_TRY(send(&p, stream));
    return fe_flight_mark(r->group, &r->group->combine[p.half], stream);
}

ferry_status ferry_combine_recv(ferry_route *r, ferry_combine_out *out, ferry_stream *stream) {
    FE_TRY(fe_route_check(r, stream, "ferry_combine_recv"));
    fe_flight *flight = fe_flight_of(r->group->combine, r);
    if (!flight) return fe_fail(FERRY_INVALID, "ferry_combine_recv: nothing was sent on this route");
    bool weights = flight->pass.await.word[FE_OFFER_WEIGHTS] != 0;
    fe_reduce reduce = flight->pass.reduce;
    FE_TRY(plan_out(r, out, weights, &reduce));
    flight->pass.reduce = reduce;
    FE_TRY(fe_flight_await(r->group, flight, stream));
    return receive(flight, stream);
}

ferry_status ferry_combine(ferry_route *r, const ferry_combine_in *in, ferry_combine_out *out,
                           const ferry_combine_options *options, ferry_stream *stream) {
    plan p;
    FE_TRY(fe_route_check(r, stream, "ferry_combine"));
    FE_TRY(make_plan(r, in, options, &p));
    FE_TRY(plan_out(r, out, p.weights, &p.reduce));
    if (!p.gather.rows_to && !p.gather.weights_to && !r->data.far.hosts) {
        fe_pass pass = whole_pass(&p);
        FE_TRY(submit(&p, &pass, stream));
        return fe_flight_mark(r->group, &r->group->combine[p.half], stream);
    }
    FE_TRY(send(&p, stream));
    return receive(&r->group->combine[p.half], stream);
}

ferry_status ferry_combine_buffer(ferry_route *r, ferry_dtype dtype, int64_t columns, ferry_tensor *rows,
                                  ferry_stream *stream) {
    FE_TRY(fe_route_check(r, stream, "ferry_combine_buffer"));
    if (!rows) return fe_fail(FERRY_INVALID, "ferry_combine_buffer: rows is NULL");
    ferry_group *g = r->group;
    FE_TRY(check_width(g, "ferry_combine_buffer: rows", dtype, columns));
    int half = (int)((g->combines + 1) & 1);
    FE_TRY(fe_flight_free(&g->combine[half], "combine"));
    FE_TRY(fe_flight_await(g, &g->combine[half], stream));
    void *data = fe_near(&g->engine.heap, g->rank, g->body.back[half].rows);
    *rows = fe_slots_tensor(&r->data.shape, data, dtype, r->info.rows, columns);
    return FERRY_OK;
}
