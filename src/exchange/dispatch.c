/* Dispatch: rows to their experts (docs/protocol.md, "Dispatch"). What is wrong with the arguments is found first; then two passes, one a
 * half, carry it out on whatever device the group has. */
#include "base/num.h"
#include "base/structs.h"
#include "exchange/route.h"
#include "group/calls.h"

/* One dispatch, from checked arguments: what becomes of it when nothing is wrong. */
typedef struct plan {
    ferry_route *r;
    uint64_t epoch;
    int half;
    ferry_dtype row_type, scale_type; /* as they arrive */
    fe_scatter scatter;
    fe_deliver deliver;
    ferry_dispatch_out out;       /* with the views filled in */
    uint64_t word[FE_CELL_WORDS]; /* of our READY note */
} plan;

/* ---- in ---- */

static ferry_status plan_rows(plan *p, const ferry_dispatch_in *in, ferry_cast cast) {
    const ferry_group *g = p->r->group;
    fe_view v;
    fe_scatter *s = &p->scatter;
    FE_TRY(fe_view_2d(&in->rows, "in.rows", &v));
    FE_TRY(fe_view_rows(&v, "in.rows", p->r->data.shape.tokens, false));
    FE_TRY(fe_view_solid(&v, "in.rows"));
    if (cast != FERRY_CAST_NONE && v.dtype != FERRY_BF16)
        return fe_fail(FERRY_INVALID, "cast %d takes bf16 rows, in.rows has dtype %d", (int)cast, (int)v.dtype);
    size_t bytes = (size_t)v.columns * ferry_dtype_bytes(v.dtype);
    if (v.columns < 1 || bytes % 16 != 0)
        return fe_fail(FERRY_INVALID, "in.rows: %lld columns are %zu bytes a row, not a multiple of 16",
                       (long long)v.columns, bytes);
    if (bytes > g->body.row_bytes)
        return fe_fail(FERRY_INVALID, "in.rows: %lld columns are %zu bytes a row, the group's are %zu",
                       (long long)v.columns, bytes, g->body.row_bytes);
    s->rows = v.data;
    s->row_stride = v.row;
    s->columns = (size_t)v.columns;
    s->cast = cast;
    s->row_bytes = cast == FERRY_CAST_NONE ? bytes : (size_t)v.columns;
    s->stream_bytes = g->stream_bytes;
    s->tails_at = g->body.tails;
    s->source_at = g->body.receive[p->half].source;
    p->row_type = cast == FERRY_CAST_NONE ? v.dtype : FERRY_E4M3;
    return FERRY_OK;
}

static ferry_status plan_scales(plan *p, const ferry_dispatch_in *in) {
    fe_scatter *s = &p->scatter;
    fe_view v;
    size_t blocks = (s->columns + FE_CAST_BLOCK - 1) / FE_CAST_BLOCK, most = p->r->group->body.scale_bytes;
    bool given = fe_given(&in->scales, p->r->data.shape.tokens);
    if (s->cast != FERRY_CAST_NONE) {
        if (given)
            return fe_fail(FERRY_INVALID, "in.scales are given together with cast %d, which makes them", (int)s->cast);
        s->scale_bytes = s->cast == FERRY_CAST_E4M3_UE8M0 ? (blocks + 3) / 4 * 4 : blocks * 4;
        p->scale_type = s->cast == FERRY_CAST_E4M3_UE8M0 ? FERRY_UE8M0X4 : FERRY_FP32;
        if (s->scale_bytes > most)
            return fe_fail(FERRY_INVALID,
                           "cast %d of %zu columns makes %zu bytes of scales, the group has room for %zu", (int)s->cast,
                           s->columns, s->scale_bytes, most);
        return FERRY_OK;
    }
    if (!given) return FERRY_OK;
    FE_TRY(fe_view_2d(&in->scales, "in.scales", &v));
    FE_TRY(fe_view_rows(&v, "in.scales", p->r->data.shape.tokens, false));
    size_t element = ferry_dtype_bytes(v.dtype);
    s->scale_bytes = (size_t)v.columns * element;
    if (element != 4 && v.dtype != FERRY_BYTES)
        return fe_fail(FERRY_INVALID, "in.scales has dtype %d: elements of 4 bytes or FERRY_BYTES are wanted",
                       (int)v.dtype);
    if (s->scale_bytes == 0 || s->scale_bytes % 4 != 0 || s->scale_bytes > most)
        return fe_fail(FERRY_INVALID, "in.scales: %zu bytes a row, allowed are multiples of 4 up to %zu",
                       s->scale_bytes, most);
    if (v.dtype == FERRY_BYTES) FE_TRY(fe_view_solid(&v, "in.scales"));
    s->scales = v.data;
    s->scale_row = v.row;
    s->scale_word = v.dtype == FERRY_BYTES ? 4 : v.column;
    p->scale_type = v.dtype;
    return FERRY_OK;
}

/* ---- out ---- */

static ferry_status plan_out_rows(plan *p, size_t landing) {
    const fe_heap *heap = &p->r->group->engine.heap;
    const fe_shape *shape = &p->r->data.shape;
    fe_deliver *d = &p->deliver;
    int64_t rows = p->r->info.rows, columns = (int64_t)p->scatter.columns;
    ferry_tensor *t = &p->out.rows;
    fe_view v;
    d->rows_at = landing;
    d->row_stride = (int64_t)p->scatter.row_bytes;
    if (!t->data) {
        *t = fe_slots_tensor(shape, fe_near(heap, heap->rank, landing), p->row_type, rows, columns);
        return FERRY_OK;
    }
    FE_TRY(fe_view_slots(t, "out.rows", shape, &v));
    FE_TRY(fe_view_rows(&v, "out.rows", rows, true));
    FE_TRY(fe_view_columns(&v, "out.rows", columns));
    FE_TRY(fe_view_dtype(&v, "out.rows", p->row_type));
    FE_TRY(fe_view_solid(&v, "out.rows"));
    int64_t offset = fe_heap_offset(heap, v.data, (size_t)rows * p->scatter.row_bytes);
    if (offset >= (int64_t)heap->body_at && (v.row == d->row_stride || rows <= 1)) {
        d->rows_at = (uint64_t)offset; /* the others write straight into it */
        return FERRY_OK;
    }
    d->rows_to = v.data;
    d->rows_to_stride = v.row;
    return FERRY_OK;
}

static ferry_status plan_out_scales(plan *p, size_t landing) {
    const fe_heap *heap = &p->r->group->engine.heap;
    const fe_shape *shape = &p->r->data.shape;
    fe_deliver *d = &p->deliver;
    ferry_tensor *t = &p->out.scales;
    int64_t rows = p->r->info.rows, words = (int64_t)p->scatter.scale_bytes / 4;
    fe_view v;
    d->scales_at = landing;
    d->scale_stride = (int64_t)p->scatter.scale_bytes;
    if (!words) return FERRY_OK;
    if (!t->data) {
        int64_t columns = p->scale_type == FERRY_BYTES ? words * 4 : words;
        *t = fe_slots_tensor(shape, fe_near(heap, heap->rank, landing), p->scale_type, rows, columns);
        return FERRY_OK;
    }
    FE_TRY(fe_view_experts(t, "out.scales", shape, &v, &d->scale_to_expert, &d->expert_slots));
    FE_TRY(fe_view_rows(&v, "out.scales", rows, true));
    if (ferry_dtype_bytes(v.dtype) != 4 && v.dtype != FERRY_BYTES)
        return fe_fail(FERRY_INVALID, "out.scales has dtype %d: elements of 4 bytes or FERRY_BYTES are wanted",
                       (int)v.dtype);
    FE_TRY(fe_view_columns(&v, "out.scales", v.dtype == FERRY_BYTES ? words * 4 : words));
    if (v.dtype == FERRY_BYTES) FE_TRY(fe_view_solid(&v, "out.scales"));
    d->scales_to = v.data;
    d->scale_to_row = v.row;
    d->scale_to_word = v.dtype == FERRY_BYTES ? 4 : v.column;
    return FERRY_OK;
}

/* What a row brings along: 4-byte elements, `columns` of them (0: a one-dimensional tensor). *to stays NULL for a view. */
static ferry_status plan_extra(plan *p, ferry_tensor *t, const char *name, ferry_dtype dtype, int64_t columns,
                               size_t landing, char **to) {
    const fe_heap *heap = &p->r->group->engine.heap;
    int64_t rows = p->r->info.rows;
    fe_view v;
    if (!t->data) {
        void *data = fe_near(heap, heap->rank, landing);
        *t = columns ? ferry_tensor_2d(data, dtype, rows, columns) : ferry_tensor_1d(data, dtype, rows);
        return FERRY_OK;
    }
    FE_TRY(columns ? fe_view_2d(t, name, &v) : fe_view_1d(t, name, &v));
    FE_TRY(fe_view_dtype(&v, name, dtype));
    FE_TRY(fe_view_rows(&v, name, rows, true));
    if (columns) FE_TRY(fe_view_columns(&v, name, columns));
    FE_TRY(fe_view_packed(&v, name));
    *to = v.data;
    return FERRY_OK;
}

static ferry_status plan_table(plan *p, ferry_tensor *t, const char *name, int32_t *ours, int32_t **to) {
    const fe_shape *shape = &p->r->data.shape;
    bool by_rank = shape->layout == FERRY_LAYOUT_RANK;
    int64_t units = fe_local_units(shape);
    fe_view v;
    if (!t->data) {
        *t = by_rank ? ferry_tensor_1d(ours, FERRY_INT32, shape->ranks)
                     : ferry_tensor_2d(ours, FERRY_INT32, units, shape->ranks);
        return FERRY_OK;
    }
    FE_TRY(by_rank ? fe_view_1d(t, name, &v) : fe_view_2d(t, name, &v));
    FE_TRY(fe_view_dtype(&v, name, FERRY_INT32));
    FE_TRY(fe_view_rows(&v, name, by_rank ? shape->ranks : units, false));
    if (!by_rank) FE_TRY(fe_view_columns(&v, name, shape->ranks));
    FE_TRY(fe_view_packed(&v, name));
    *to = (int32_t *)(void *)v.data;
    return FERRY_OK;
}

static ferry_status plan_out(plan *p, const ferry_dispatch_options *options) {
    const fe_route_data *data = &p->r->data;
    const struct fe_receive *at = &p->r->group->body.receive[p->half];
    fe_deliver *d = &p->deliver;
    bool by_rank = data->shape.layout == FERRY_LAYOUT_RANK;
    *d = (fe_deliver){.row_bytes = p->scatter.row_bytes,
                      .scale_bytes = p->scatter.scale_bytes,
                      .source_at = at->source,
                      .ids_at = at->ids,
                      .weights_at = at->weights,
                      .topk = !options->skip_topk,
                      .zero_padding = options->zero_padding != 0,
                      .tails_at = p->r->group->body.tails};
    FE_TRY(plan_out_rows(p, at->rows));
    FE_TRY(plan_out_scales(p, at->scales));
    FE_TRY(plan_table(p, &p->out.counts, "out.counts", data->blocks.counts, &d->counts_to));
    FE_TRY(plan_table(p, &p->out.starts, "out.starts", data->blocks.starts, &d->starts_to));
    if (!d->topk) return FERRY_OK;
    int64_t topk = data->shape.topk;
    FE_TRY(plan_extra(p, &p->out.source, "out.source", FERRY_INT32, 0, at->source, &d->source_to));
    if (by_rank) FE_TRY(plan_extra(p, &p->out.topk_idx, "out.topk_idx", FERRY_INT32, topk, at->ids, &d->ids_to));
    if (data->table.weights)
        FE_TRY(plan_extra(p, &p->out.topk_weights, "out.topk_weights", FERRY_FP32, by_rank ? topk : 0, at->weights,
                          &d->weights_to));
    return FERRY_OK;
}

/* ---- what ranks must agree on ---- */

static uint64_t format_of(const plan *p) {
    return (uint64_t)p->scatter.row_bytes | (uint64_t)(p->scatter.scale_bytes / 4) << 28 |
           (uint64_t)p->scatter.cast << 48 | (uint64_t)p->scatter.topk << 51 | (p->r->id & 0xfff) << 52;
}

/* The words that must be equal, field by field. */
static const fe_agreed agreed[] = {{"route number (modulo 4096)", FE_AT_FORMAT, 52, 12, 1},
                                   {"layout of the route", FE_AT_ROUTE, FE_KIND_LAYOUT, 3, 1},
                                   {"mode of the route", FE_AT_ROUTE, FE_KIND_MODE, 1, 1},
                                   {"overflow of the route", FE_AT_ROUTE, FE_KIND_OVERFLOW, 1, 1},
                                   {"packed of the route", FE_AT_ROUTE, FE_KIND_PACKED, 1, 1},
                                   {"presence of topk_weights", FE_AT_ROUTE, FE_KIND_WEIGHTS, 1, 1},
                                   {"topk of the route", FE_AT_ROUTE, FE_KIND_TOPK, 7, 1},
                                   {"exchange of counts for the route (capacities)", FE_AT_ROUTE, FE_KIND_COUNTS, 1, 1},
                                   {"renormalise of the route", FE_AT_ROUTE, FE_KIND_RENORMALISE, 1, 1},
                                   {"order of the route", FE_AT_ROUTE, FE_KIND_ORDER, 1, 1},
                                   {"row bytes", FE_AT_FORMAT, 0, 28, 1},
                                   {"cast", FE_AT_FORMAT, 48, 3, 1},
                                   {"dtype of rows", FE_AT_ROUTE, 24, 8, 1},
                                   {"delivery of topk", FE_AT_FORMAT, 51, 1, 1},
                                   {"scale bytes", FE_AT_FORMAT, 28, 20, 4}};

static ferry_status explain(const char *step, int rank, const uint64_t *ours, int other, const uint64_t *theirs) {
    return fe_agreed_compare(agreed, sizeof agreed / sizeof *agreed, step, rank, ours, other, theirs);
}

/* ---- the two passes ---- */

/* Rows that go straight to their receivers (cpu/pack.c) are not handed on: nothing is gained by hearing of some earlier. */
static fe_part parts_of(const plan *p) {
    const fe_route_data *data = &p->r->data;
    bool straight = data->far.hosts && fe_record_may_go_straight(&data->far, &data->shape);
    return straight ? (fe_part){0, 0} : fe_route_parts(p->r, p->scatter.row_bytes);
}

/* Announces where this rank wants its rows, hears it from all others, writes theirs, and says so. */
static fe_pass send_pass(const plan *p) {
    fe_pass pass = {
        .half = p->half, .move = FE_MOVE_SCATTER, .route = &p->r->data, .scatter = p->scatter, .explain = explain};
    fe_pass_name(&pass, "dispatch", p->epoch, " (send)");
    pass.announce = (fe_note){.used = true, .kind = FE_READY, .half = p->half, .epoch = p->epoch};
    memcpy(pass.announce.word, p->word, sizeof p->word);
    pass.await = (fe_await){.used = true,
                            .kind = FE_READY,
                            .half = p->half,
                            .epoch = p->epoch,
                            .same = 1u << FE_AT_FORMAT | 1u << FE_AT_ROUTE};
    memcpy(pass.await.word, p->word, sizeof p->word);
    pass.signal = (fe_note){.used = true, .kind = FE_ROWS, .half = p->half, .epoch = p->epoch};
    pass.part = parts_of(p);
    return pass;
}

static ferry_status explain_landed(const char *step, int rank, const uint64_t *ours, int other,
                                   const uint64_t *theirs) {
    return fe_fail(
        FERRY_MISMATCH,
        "%s: tokens from other hosts have %llu bytes, %llu before the row, on rank %d; %llu and %llu on rank %d", step,
        (unsigned long long)ours[FE_LANDED_STRIDE], (unsigned long long)ours[FE_LANDED_HEADER], rank,
        (unsigned long long)theirs[FE_LANDED_STRIDE], (unsigned long long)theirs[FE_LANDED_HEADER], other);
}

/* Several hosts: hands on what came from the others, before this rank's own receive, which waits for what its gateways hand on. */
static fe_pass fanout_pass(const plan *p) {
    fe_pass pass = {.half = p->half,
                    .move = FE_MOVE_FANOUT,
                    .route = &p->r->data,
                    .scatter = p->scatter,
                    .explain = explain_landed};
    fe_pass_name(&pass, "dispatch", p->epoch, " (fan out)");
    pass.await = (fe_await){.used = true,
                            .kind = FE_LANDED,
                            .half = p->half,
                            .epoch = p->epoch,
                            .same = 1u << FE_LANDED_STRIDE | 1u << FE_LANDED_HEADER};
    pass.part = parts_of(p);
    pass.await.word[FE_LANDED_HEADER] = p->r->data.far.header;
    pass.await.word[FE_LANDED_STRIDE] =
        fe_record_stride(p->r->data.far.header, p->scatter.row_bytes, p->scatter.scale_bytes);
    return pass;
}

static fe_pass recv_pass(const plan *p) {
    fe_pass pass = {.half = p->half, .move = FE_MOVE_DELIVER, .route = &p->r->data, .deliver = p->deliver};
    fe_pass_name(&pass, "dispatch", p->epoch, " (receive)");
    pass.await = (fe_await){.used = true, .kind = FE_ROWS, .half = p->half, .epoch = p->epoch};
    return pass;
}

/* With nothing to copy and nothing to pad, what the second half has to do is hear the others and read their counts: a whole dispatch is
 * then one pass, which on a GPU saves a launch. */
static bool fits_one_pass(const plan *p) {
    const fe_deliver *d = &p->deliver;
    bool pads = p->r->data.shape.layout == FERRY_LAYOUT_EXPERT && (d->topk || d->zero_padding);
    return !p->r->data.far.hosts && !pads && !d->rows_to && !d->scales_to && !d->source_to && !d->ids_to &&
           !d->weights_to;
}

static fe_pass whole_pass(const plan *p) {
    fe_pass pass = send_pass(p);
    fe_pass_name(&pass, "dispatch", p->epoch, "");
    pass.settle = recv_pass(p).await;
    pass.deliver = p->deliver;
    pass.counts_last = true;
    return pass;
}

/* ---- the calls ---- */

static ferry_status check_options(const ferry_dispatch_options *options) {
    FE_CHECK_STRUCT(options, FERRY_MAGIC_DISPATCH_OPTIONS, "dispatch options");
    if (options->cast < FERRY_CAST_NONE || options->cast > FERRY_CAST_E4M3_UE8M0)
        return fe_fail(FERRY_INVALID, "dispatch options: cast is %d, which is none", (int)options->cast);
    return FERRY_OK;
}

static ferry_status make_plan(ferry_route *r, const ferry_dispatch_in *in, const ferry_dispatch_out *out,
                              const ferry_dispatch_options *options, plan *p) {
    const ferry_dispatch_options none = FERRY_DISPATCH_OPTIONS_INIT;
    if (!options) options = &none;
    FE_CHECK_STRUCT(in, FERRY_MAGIC_DISPATCH_IN, "dispatch in");
    FE_CHECK_STRUCT(out, FERRY_MAGIC_DISPATCH_OUT, "dispatch out");
    FE_TRY(check_options(options));
    *p = (plan){.r = r, .epoch = r->group->dispatches + 1, .out = *out};
    p->half = (int)(p->epoch & 1);
    FE_TRY(fe_flight_free(&r->group->dispatch[p->half], "dispatch"));
    FE_TRY(plan_rows(p, in, options->cast));
    FE_TRY(plan_scales(p, in));
    p->scatter.topk = !options->skip_topk;
    FE_TRY(plan_out(p, options));
    p->word[FE_AT_ROWS] = p->deliver.rows_at;
    p->word[FE_AT_SCALES] = p->deliver.scales_at;
    p->word[FE_AT_ROUTE] = fe_route_kind(r) | (uint64_t)p->row_type << 24;
    p->word[FE_AT_IDS] = p->deliver.ids_at;
    p->word[FE_AT_WEIGHTS] = p->deliver.weights_at;
    p->word[FE_AT_STRIDES] = fe_strides((uint64_t)p->deliver.row_stride, (uint64_t)p->deliver.scale_stride);
    p->word[FE_AT_FORMAT] = format_of(p);
    return FERRY_OK;
}

static ferry_status submit(const plan *p, const fe_pass *pass, ferry_dispatch_out *out, ferry_stream *stream) {
    ferry_group *g = p->r->group;
    FE_TRY(fe_flight_await(g, &g->dispatch[p->half], stream));
    fe_group_calls(g, FE_CALL_DISPATCH, p->r->id);
    FE_TRY(fe_route_submit(g, stream, pass, false));
    g->dispatches = p->epoch;
    g->dispatch[p->half].epoch = p->epoch;
    *out = p->out;
    return FERRY_OK;
}

static ferry_status send(const plan *p, ferry_dispatch_out *out, ferry_stream *stream) {
    fe_flight *flight = &p->r->group->dispatch[p->half];
    fe_pass pass = send_pass(p);
    FE_TRY(submit(p, &pass, out, stream));
    flight->route = p->r;
    flight->before = fanout_pass(p);
    flight->pass = recv_pass(p);
    flight->out = out->rows.data;
    return FERRY_OK;
}

/* Receives write their route's counts: two of one route keep their order, on different streams too. */
static ferry_status await_counts(fe_flight *flight, ferry_route *r, ferry_stream *stream) {
    fe_flight *halves = r->group->dispatch, *other = flight == halves ? halves + 1 : halves;
    flight->counted = r;
    return other->counted == r ? fe_flight_await(r->group, other, stream) : FERRY_OK;
}

static ferry_status receive(fe_flight *flight, ferry_stream *stream) {
    ferry_route *r = flight->route;
    FE_TRY(await_counts(flight, r, stream));
    for (int i = 0; r->data.far.hosts && i < fe_part_count(flight->before.part); i++) {
        fe_pass fanout = fe_pass_of_part(&flight->before, i);
        FE_TRY(fe_route_submit(r->group, stream, &fanout, false));
    }
    FE_TRY(fe_route_submit(r->group, stream, &flight->pass, false));
    flight->route = NULL;
    r->dispatched = true;
    return fe_flight_mark(r->group, flight, stream);
}

ferry_status ferry_dispatch_send(ferry_route *r, const ferry_dispatch_in *in, ferry_dispatch_out *out,
                                 const ferry_dispatch_options *options, ferry_stream *stream) {
    plan p;
    FE_TRY(fe_route_check(r, stream, "ferry_dispatch_send"));
    FE_TRY(make_plan(r, in, out, options, &p));
    FE_TRY(send(&p, out, stream));
    return fe_flight_mark(r->group, &r->group->dispatch[p.half], stream);
}

ferry_status ferry_dispatch_recv(ferry_route *r, ferry_dispatch_out *out, ferry_stream *stream) {
    FE_TRY(fe_route_check(r, stream, "ferry_dispatch_recv"));
    FE_CHECK_STRUCT(out, FERRY_MAGIC_DISPATCH_OUT, "dispatch out");
    fe_flight *flight = fe_flight_of(r->group->dispatch, r);
    if (!flight) return fe_fail(FERRY_INVALID, "ferry_dispatch_recv: nothing was sent on this route");
    if (flight->out != out->rows.data)
        return fe_fail(FERRY_INVALID, "ferry_dispatch_recv: out is not what dispatch %llu was sent with",
                       (unsigned long long)flight->epoch);
    FE_TRY(fe_flight_await(r->group, flight, stream));
    return receive(flight, stream);
}

ferry_status ferry_dispatch(ferry_route *r, const ferry_dispatch_in *in, ferry_dispatch_out *out,
                            const ferry_dispatch_options *options, ferry_stream *stream) {
    plan p;
    FE_TRY(fe_route_check(r, stream, "ferry_dispatch"));
    FE_TRY(make_plan(r, in, out, options, &p));
    if (fits_one_pass(&p)) {
        fe_pass pass = whole_pass(&p);
        FE_TRY(await_counts(&r->group->dispatch[p.half], r, stream));
        FE_TRY(submit(&p, &pass, out, stream));
        r->dispatched = true;
        return fe_flight_mark(r->group, &r->group->dispatch[p.half], stream);
    }
    FE_TRY(send(&p, out, stream));
    return receive(&r->group->dispatch[p.half], stream);
}
