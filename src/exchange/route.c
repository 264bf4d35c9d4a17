/* Making a route: count, exchange, place (docs/protocol.md, "Route"). */
#include "exchange/route.h"
#include "base/structs.h"
#include "group/calls.h"
#include "group/counters.h"

#include <stdlib.h>

/* ---- memory: one block of the device's, and a small one of the host's ---- */

static void *take(char **at, size_t count, size_t bytes) {
    void *here = *at;
    *at += (size_t)fe_align((int64_t)(count * bytes), 64);
    return here;
}

/* What place finds out, from `at` on; the end. The same on the device and in the host's copy. */
static char *lay_results(const fe_shape *s, char *at, fe_route_data *d) {
    const size_t blocks = (size_t)fe_local_units(s) * (size_t)s->ranks;
    d->totals = take(&at, 1, sizeof *d->totals);
    d->blocks.counts = take(&at, blocks, sizeof *d->blocks.counts);
    d->blocks.starts = take(&at, blocks, sizeof *d->blocks.starts);
    d->scratch.keep = take(&at, (size_t)fe_units(s), sizeof *d->scratch.keep);
    d->demand = take(&at, (size_t)fe_map_local(s->map, s->rank), sizeof *d->demand);
    return at;
}

static char *lay_far(const fe_engine *engine, const fe_shape *s, char *at, bool weights, fe_far_route *f) {
    const size_t hosts = (size_t)engine->heap.hosts.count;
    f->hosts = &engine->heap.hosts;
    f->header = fe_record_header(s->topk, weights);
    f->record = take(&at, hosts * (size_t)s->tokens, sizeof *f->record);
    f->records = take(&at, hosts, sizeof *f->records);
    f->kept_count = take(&at, hosts, sizeof *f->kept_count);
    f->came = take(&at, hosts, sizeof *f->came);
    f->kept = take(&at, hosts * (size_t)s->max_tokens, f->header);
    return at;
}

static char *lay_tables(const fe_engine *engine, const fe_shape *s, char *at, bool weights, fe_route_data *d) {
    const size_t choices = (size_t)s->tokens * (size_t)s->topk, units = (size_t)fe_units(s);
    d->table.home = take(&at, choices, sizeof *d->table.home);
    d->table.slot = take(&at, choices, sizeof *d->table.slot);
    d->table.order = take(&at, choices, sizeof *d->table.order);
    d->table.fan = take(&at, (size_t)s->tokens, sizeof *d->table.fan);
    d->table.weights = weights ? take(&at, choices, sizeof *d->table.weights) : NULL;
    d->scratch.stamp = take(&at, (size_t)s->ranks + (size_t)s->map->homes, sizeof *d->scratch.stamp);
    d->scratch.next = take(&at, units, sizeof *d->scratch.next);
    d->scratch.base = take(&at, units, sizeof *d->scratch.base);
    d->counts = take(&at, fe_counts_length(s->map), sizeof *d->counts);
    if (engine->far) at = lay_far(engine, s, at, weights, &d->far);
    d->extra = engine->device->extra ? take(&at, engine->device->extra(engine, s), 1) : NULL;
    return at;
}

static char *lay_host(ferry_route *r, char *at) {
    const fe_shape *s = &r->data.shape;
    const size_t local = (size_t)fe_map_local(s->map, s->rank), ranks = (size_t)s->ranks;
    r->expert_rows = take(&at, local, sizeof *r->expert_rows);
    r->expert_start = take(&at, local, sizeof *r->expert_start);
    r->source_rows = take(&at, ranks, sizeof *r->source_rows);
    r->rank_rows = take(&at, ranks, sizeof *r->rank_rows);
    fe_tally_lay_out(&r->tally, take(&at, fe_tally_words(s->ranks, (int)local), sizeof(int64_t)), s->ranks);
    return lay_results(s, at, &r->found);
}

static ferry_status allocate(ferry_route *r, bool weights) {
    static char nowhere[64];
    const fe_shape *s = &r->data.shape;
    fe_engine *engine = &r->group->engine;
    char *results = lay_results(s, nowhere, &r->data), *end = lay_tables(engine, s, results, weights, &r->data);
    r->result_bytes = (size_t)(results - nowhere);
    r->memory_bytes = (size_t)(end - nowhere) + 64;
    r->memory = engine->device->alloc(engine, r->memory_bytes);
    size_t host_bytes = (size_t)(lay_host(r, nowhere) - nowhere) + 64;
    r->host_memory = malloc(host_bytes);
    if (!r->memory || !r->host_memory) return fe_fail(FERRY_NOMEM, "rank %d: no memory for a route", r->group->rank);
    lay_tables(engine, s, lay_results(s, r->memory, &r->data), weights, &r->data);
    memset(r->host_memory, 0, host_bytes);
    lay_host(r, r->host_memory);
    r->data.tally = &r->tally;
    fe_counters_join(r->group, &r->tally);
    return FERRY_OK;
}

static void begin_far(ferry_route *r) {
    fe_far_route *f = &r->data.far;
    f->boxes = &r->group->body.boxes;
    f->most_rows = r->group->body.rows;
}

/* ---- the config ---- */

static ferry_status check_number(const char *name, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "route config: %s is %lld, allowed are %lld to %lld", name, (long long)value,
                   (long long)low, (long long)high);
}

static ferry_status check_topk(const ferry_group *g, const ferry_route_config *cfg, bool *weights) {
    fe_view idx, w;
    FE_TRY(fe_view_2d(&cfg->topk_idx, "topk_idx", &idx));
    if (idx.dtype != FERRY_INT32 && idx.dtype != FERRY_INT64)
        return fe_fail(FERRY_INVALID, "topk_idx has dtype %d, neither int32 nor int64", (int)idx.dtype);
    FE_TRY(check_number("tokens (topk_idx.shape[0])", idx.rows, 0, g->config.max_tokens));
    FE_TRY(check_number("topk (topk_idx.shape[1])", idx.columns, 1, g->config.max_topk));
    *weights = fe_given(&cfg->topk_weights, idx.rows);
    if (!*weights) return FERRY_OK;
    FE_TRY(fe_view_2d(&cfg->topk_weights, "topk_weights", &w));
    FE_TRY(fe_view_dtype(&w, "topk_weights", FERRY_FP32));
    FE_TRY(fe_view_rows(&w, "topk_weights", idx.rows, false));
    return fe_view_columns(&w, "topk_weights", idx.columns);
}

static ferry_status check_config(const ferry_group *g, const ferry_route_config *cfg, bool *weights) {
    FE_CHECK_STRUCT(cfg, FERRY_MAGIC_ROUTE_CONFIG, "route config");
    FE_TRY(check_topk(g, cfg, weights));
    if (cfg->layout != FERRY_LAYOUT_RANK && cfg->layout != FERRY_LAYOUT_EXPERT && cfg->layout != FERRY_LAYOUT_SLOTS)
        return fe_fail(FERRY_INVALID, "route config: layout is %d, which is none", (int)cfg->layout);
    FE_TRY(check_number("mode", cfg->mode, FERRY_THROUGHPUT, FERRY_LATENCY));
    FE_TRY(check_number("expert_alignment", cfg->expert_alignment, 0, 1 << 20));
    FE_TRY(check_number("expert_capacity", cfg->expert_capacity, 0, INT32_MAX));
    FE_TRY(check_number("rank_capacity", cfg->rank_capacity, 0, INT32_MAX));
    FE_TRY(check_number("packed", cfg->packed, 0, 1));
    FE_TRY(check_number("renormalise", cfg->renormalise, 0, 1));
    FE_TRY(check_number("order", cfg->order, FERRY_ORDER_RANK, FERRY_ORDER_CHOICE));
    return check_number("overflow", cfg->overflow, FERRY_OVERFLOW_ERROR, FERRY_OVERFLOW_DROP);
}

/* The tensor with strides spelled out, for the moves. */
static ferry_tensor spelled_out(const ferry_tensor *t) {
    ferry_tensor out = *t;
    if (t->strides[0] == 0 && t->strides[1] == 0) {
        out.strides[0] = t->shape[1];
        out.strides[1] = 1;
    }
    return out;
}

/* What the receive buffer holds is a capacity like any other, where the worst case is more. */
static ferry_status fill_shape(const ferry_group *g, const ferry_route_config *cfg, fe_shape *s) {
    *s = (fe_shape){.map = &g->map,
                    .rank = g->rank,
                    .ranks = g->ranks,
                    .tokens = (int)cfg->topk_idx.shape[0],
                    .topk = (int)cfg->topk_idx.shape[1],
                    .max_tokens = g->config.max_tokens,
                    .layout = cfg->layout,
                    .mode = cfg->mode,
                    .alignment = cfg->expert_alignment > 1 ? cfg->expert_alignment : 1,
                    .expert_capacity = cfg->layout == FERRY_LAYOUT_RANK ? 0 : cfg->expert_capacity,
                    .overflow = cfg->overflow,
                    .packed = cfg->packed != 0,
                    .renormalise = cfg->renormalise != 0,
                    .order = cfg->order};
    int64_t most = 0, room = g->body.rows;
    for (int r = 0; r < g->ranks; r++) {
        int64_t rows = fe_worst_rows(s, r);
        if (rows > most) most = rows;
    }
    if (cfg->layout == FERRY_LAYOUT_SLOTS) {
        if (most <= room) return FERRY_OK;
        return fe_fail(
            FERRY_INVALID,
            "layout SLOTS needs %lld rows of receive buffer, max_recv_rows is %lld: name SLOTS in the group's "
            "layouts",
            (long long)most, (long long)room);
    }
    if (cfg->rank_capacity && cfg->rank_capacity < room) room = cfg->rank_capacity;
    if (room < most) s->rank_capacity = room;
    return FERRY_OK;
}

/* ---- the passes ---- */

enum { WORD_KIND, WORD_ALIGNMENT, WORD_EXPERT_CAPACITY, WORD_RANK_CAPACITY, WORD_ID, WORDS };
_Static_assert(WORDS <= FE_CELL_WORDS, "what ranks compare of a route must fit a note");

uint64_t fe_route_kind(const ferry_route *r) {
    const fe_shape *s = &r->data.shape;
    return (uint64_t)s->layout << FE_KIND_LAYOUT | (uint64_t)s->mode << FE_KIND_MODE |
           (uint64_t)s->overflow << FE_KIND_OVERFLOW | (uint64_t)s->packed << FE_KIND_PACKED |
           (uint64_t)(r->data.table.weights != NULL) << FE_KIND_WEIGHTS | (uint64_t)s->topk << FE_KIND_TOPK |
           (uint64_t)fe_needs_exchange(s) << FE_KIND_COUNTS | (uint64_t)s->renormalise << FE_KIND_RENORMALISE |
           (uint64_t)s->order << FE_KIND_ORDER;
}

static void fill_words(const ferry_route *r, uint64_t word[FE_CELL_WORDS]) {
    const fe_shape *s = &r->data.shape;
    memset(word, 0, FE_CELL_WORDS * sizeof *word);
    word[WORD_KIND] = fe_route_kind(r);
    word[WORD_ALIGNMENT] = (uint64_t)s->alignment;
    word[WORD_EXPERT_CAPACITY] = (uint64_t)s->expert_capacity;
    word[WORD_RANK_CAPACITY] = (uint64_t)s->rank_capacity;
    word[WORD_ID] = r->id;
}

ferry_status fe_agreed_compare(const fe_agreed *agreed, size_t count, const char *step, int rank, const uint64_t *ours,
                               int other, const uint64_t *theirs) {
    for (const fe_agreed *a = agreed; a < agreed + count; a++) {
        uint64_t mask = a->bits < 64 ? ((uint64_t)1 << a->bits) - 1 : ~(uint64_t)0;
        uint64_t mine = ours[a->word] >> a->shift & mask, his = theirs[a->word] >> a->shift & mask;
        if (mine != his)
            return fe_fail(FERRY_MISMATCH, "%s: %s is %llu on rank %d, %llu on rank %d", step, a->name,
                           (unsigned long long)mine * (unsigned)a->unit, rank,
                           (unsigned long long)his * (unsigned)a->unit, other);
    }
    return FERRY_OK;
}

static ferry_status explain(const char *step, int rank, const uint64_t *ours, int other, const uint64_t *theirs) {
    static const fe_agreed agreed[] = {
        {"layout", WORD_KIND, FE_KIND_LAYOUT, 3, 1},     {"mode", WORD_KIND, FE_KIND_MODE, 1, 1},
        {"overflow", WORD_KIND, FE_KIND_OVERFLOW, 1, 1}, {"presence of topk_weights", WORD_KIND, FE_KIND_WEIGHTS, 1, 1},
        {"packed", WORD_KIND, FE_KIND_PACKED, 1, 1},     {"renormalise", WORD_KIND, FE_KIND_RENORMALISE, 1, 1},
        {"order", WORD_KIND, FE_KIND_ORDER, 1, 1},       {"topk", WORD_KIND, FE_KIND_TOPK, 7, 1},
        {"expert_alignment", WORD_ALIGNMENT, 0, 64, 1},  {"expert_capacity", WORD_EXPERT_CAPACITY, 0, 64, 1},
        {"rank_capacity", WORD_RANK_CAPACITY, 0, 64, 1}, {"route number", WORD_ID, 0, 64, 1}};
    return fe_agreed_compare(agreed, sizeof agreed / sizeof *agreed, step, rank, ours, other, theirs);
}

static fe_pass count_pass(ferry_route *r) {
    fe_pass p = {.move = FE_MOVE_COUNT, .route = &r->data};
    fe_pass_name(&p, "route", r->id, " (count)");
    return p;
}

/* Sends this rank's counts, once everybody has read those of the exchange before the last, and waits for all others'. */
static fe_pass spread_pass(ferry_route *r, uint64_t epoch) {
    fe_pass p = {.move = FE_MOVE_SPREAD, .route = &r->data, .half = (int)(epoch & 1), .explain = explain};
    fe_pass_name(&p, "route", r->id, " (counts)");
    p.await = (fe_await){.used = true, .kind = FE_COUNTED, .half = p.half, .epoch = epoch > 2 ? epoch - 2 : 0};
    p.signal = (fe_note){.used = true, .kind = FE_COUNTS, .half = p.half, .epoch = epoch};
    fill_words(r, p.signal.word);
    p.settle = (fe_await){.used = true, .kind = FE_COUNTS, .half = p.half, .epoch = epoch, .same = (1u << WORDS) - 1};
    memcpy(p.settle.word, p.signal.word, sizeof p.settle.word);
    return p;
}

static fe_pass place_pass(ferry_route *r, uint64_t epoch) {
    fe_pass p = {.move = FE_MOVE_PLACE, .route = &r->data, .half = (int)(epoch & 1)};
    fe_pass_name(&p, "route", r->id, " (place)");
    if (epoch) p.signal = (fe_note){.used = true, .kind = FE_COUNTED, .half = p.half, .epoch = epoch};
    return p;
}

/* Nothing that a graph holds has run when the call returns. */
static bool captured(const ferry_group *g, ferry_stream *stream) {
    const fe_device *device = g->engine.device;
    return stream && device->stream_captured && device->stream_captured(stream);
}

/* The count comes first and alone: an index that is no expert stops the route before another rank has heard of it, and the call
 * has had no effect. Only where nobody waits for it, on a stream in LATENCY mode or in a graph, everything is queued at once. */
static ferry_status make(ferry_group *g, ferry_route *r, ferry_stream *stream) {
    bool wait = !stream || (r->data.shape.mode == FERRY_THROUGHPUT && !captured(g, stream));
    r->id = r->data.number = g->routes + 1;
    fe_pass pass = count_pass(r);
    FE_TRY(fe_route_submit(g, stream, &pass, wait));
    g->routes++;
    fe_group_calls(g, FE_CALL_ROUTE, fe_route_kind(r));
    uint64_t epoch = fe_needs_exchange(&r->data.shape) ? ++g->exchanges : 0;
    if (epoch) {
        pass = spread_pass(r, epoch);
        FE_TRY(fe_flight_await(g, &g->exchange, stream));
        FE_TRY(fe_route_submit(g, stream, &pass, wait));
    }
    pass = place_pass(r, epoch);
    FE_TRY(fe_route_submit(g, stream, &pass, wait));
    return epoch ? fe_flight_mark(g, &g->exchange, wait ? NULL : stream) : FERRY_OK;
}

/* ---- what the host knows ---- */

static void sum_blocks(ferry_route *r) {
    const fe_shape *s = &r->data.shape;
    const fe_blocks *blocks = &r->found.blocks;
    int local = fe_map_local(s->map, s->rank), units = fe_local_units(s);
    bool by_rank = s->layout == FERRY_LAYOUT_RANK;
    memset(r->source_rows, 0, (size_t)s->ranks * sizeof *r->source_rows);
    memset(r->rank_rows, 0, (size_t)s->ranks * sizeof *r->rank_rows);
    memcpy(r->expert_rows, r->found.demand, (size_t)local * sizeof *r->expert_rows);
    for (int u = 0; u < units; u++) {
        const int32_t *counts = blocks->counts + (size_t)u * (size_t)s->ranks;
        if (!by_rank) r->expert_rows[u] = 0;
        for (int source = 0; source < s->ranks; source++) {
            r->source_rows[source] += counts[source];
            if (!by_rank) r->expert_rows[u] += counts[source];
        }
        /* The first source's block begins where the expert's does. SLOTS counts inside the expert: slot u * R * M + 0. */
        if (!by_rank)
            r->expert_start[u] = s->layout == FERRY_LAYOUT_SLOTS ? (int32_t)((int64_t)u * s->ranks * s->max_tokens)
                                                                 : blocks->starts[(size_t)u * (size_t)s->ranks];
    }
    for (int unit = 0; unit < fe_units(s); unit++)
        r->rank_rows[by_rank ? unit : s->map->home_rank[unit]] += r->found.scratch.keep[unit];
}

static ferry_status fill_info(ferry_route *r, ferry_stream *stream) {
    const fe_shape *s = &r->data.shape;
    ferry_route_info *i = &r->info;
    *i = FERRY_ROUTE_INFO_INIT;
    i->tokens = s->tokens;
    i->topk = s->topk;
    i->local_experts = fe_map_local(s->map, s->rank);
    i->ranks = s->ranks;
    i->layout = s->layout;
    i->mode = s->mode;
    i->rows = fe_worst_rows(s, s->rank);
    i->received = i->sent = i->dropped = -1;
    if (s->mode == FERRY_LATENCY || captured(r->group, stream)) return FERRY_OK;
    fe_engine *engine = &r->group->engine;
    FE_TRY(engine->device->fetch(engine, stream, r->found.totals, r->memory, r->result_bytes));
    const fe_totals *t = r->found.totals;
    sum_blocks(r);
    if (!engine->device->records) { /* nobody else looks at what it moves */
        fe_tally_place(&r->tally, s, r->found.scratch.keep, NULL);
        fe_tally_arrive(&r->tally, s, &r->found.blocks, r->found.demand);
    }
    i->rows = t->rows;
    i->received = t->received;
    i->sent = t->sent;
    i->dropped = t->dropped;
    i->expert_rows = r->expert_rows;
    i->source_rows = r->source_rows;
    i->rank_rows = r->rank_rows;
    if (s->layout == FERRY_LAYOUT_RANK)
        i->source_start = r->found.blocks.starts;
    else
        i->expert_start = r->expert_start;
    return FERRY_OK;
}

/* ---- the calls ---- */

ferry_status ferry_route_create(ferry_group *g, const ferry_route_config *cfg, ferry_route **route,
                                ferry_stream *stream) {
    bool weights;
    FE_TRY(fe_group_check(g, "ferry_route_create"));
    FE_TRY(fe_group_own(g, stream, "ferry_route_create"));
    FE_TRY(check_config(g, cfg, &weights));
    if (!route) return fe_fail(FERRY_INVALID, "ferry_route_create: route is NULL");
    FE_TRY(fe_group_ready(g, "ferry_route_create"));
    ferry_route *r = calloc(1, sizeof *r);
    if (!r) return fe_fail(FERRY_NOMEM, "rank %d: no memory for a route", g->rank);
    r->group = g;
    r->era = g->engine.heap.era;
    r->next = g->made;
    g->made = r;
    ferry_status status = fill_shape(g, cfg, &r->data.shape);
    if (status == FERRY_OK) status = allocate(r, weights);
    if (status == FERRY_OK) {
        r->data.counts_at = g->body.counts;
        if (g->engine.far) begin_far(r);
        r->data.topk_idx = spelled_out(&cfg->topk_idx);
        r->data.topk_weights = spelled_out(&cfg->topk_weights);
        status = make(g, r, stream);
    }
    if (status == FERRY_OK) status = fill_info(r, stream);
    if (status != FERRY_OK) {
        if (stream) g->engine.device->stream_drain(stream); /* passes that are queued already know the route's memory */
        ferry_route_destroy(r);
        return status;
    }
    *route = r;
    return FERRY_OK;
}

/* What was sent and never received: the others may still be writing into that half. It is not used again. */
static void forget_route(fe_flight flights[2], const ferry_route *route) {
    for (int half = 0; half < 2; half++) {
        if (flights[half].route != route) continue;
        flights[half].route = NULL;
        flights[half].orphan = true;
    }
}

void ferry_route_destroy(ferry_route *r) {
    if (!r) return;
    ferry_group *g = r->group;
    forget_route(g->dispatch, r);
    forget_route(g->combine, r);
    for (ferry_route **at = &g->made; *at; at = &(*at)->next) {
        if (*at != r) continue;
        *at = r->next;
        break;
    }
    if (r->data.tally) fe_counters_leave(g, r->data.tally);
    if (r->memory) g->engine.device->release(&g->engine, r->memory, r->memory_bytes);
    free(r->host_memory);
    free(r);
}

ferry_status ferry_route_get_info(const ferry_route *route, ferry_route_info *info) {
    if (!route) return fe_fail(FERRY_INVALID, "ferry_route_get_info: route is NULL");
    FE_CHECK_STRUCT(info, FERRY_MAGIC_ROUTE_INFO, "route info");
    size_t size = info->size;
    *info = route->info;
    info->size = size;
    return FERRY_OK;
}

ferry_status fe_route_check(const ferry_route *route, const ferry_stream *stream, const char *call) {
    if (!route) return fe_fail(FERRY_INVALID, "%s: route is NULL", call);
    FE_TRY(fe_group_own(route->group, stream, call));
    FE_TRY(fe_group_ready(route->group, call));
    if (route->era == route->group->engine.heap.era) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "%s: the route was made before the group's last agreement: make it anew", call);
}

ferry_status fe_route_submit(ferry_group *g, ferry_stream *stream, const fe_pass *pass, bool wait) {
    if (!stream || !wait) return fe_submit(&g->engine, stream, pass);
    fe_outcome outcome = {.status = FERRY_OK};
    fe_pass mine = *pass;
    mine.outcome = &outcome;
    FE_TRY(fe_submit(&g->engine, stream, &mine));
    g->engine.device->stream_drain(stream);
    return outcome.status == FERRY_OK ? FERRY_OK : fe_fail_again(outcome.status, outcome.sentence);
}

/* ---- parts ---- */

#define PART_BYTES 1048576 /* of rows, of the last and smallest: it takes longer to tell of fewer than that saves */

static int parts_by_size(size_t bytes, int most) {
    int parts = 1;
    while (parts < most && fe_part_from((fe_part){parts, parts + 1}, (int64_t)bytes) + PART_BYTES <= (int64_t)bytes)
        parts++;
    return parts;
}

fe_part fe_route_parts(const ferry_route *r, size_t row_bytes) {
    const fe_engine *e = &r->group->engine;
    if (!e->far || r->data.shape.mode == FERRY_LATENCY) return (fe_part){0, 0}; /* its steps are short */
    int parts = fe_far_parts(e->far), most = e->device->parts;
    if (!parts) parts = parts_by_size((size_t)r->data.shape.max_tokens * row_bytes, most);
    if (parts <= 1 || most <= 1) return (fe_part){0, 0};
    return (fe_part){.count = parts < most ? parts : most};
}

fe_pass fe_pass_of_part(const fe_pass *pass, int index) {
    fe_pass one = *pass;
    one.part.index = index;
    one.await.kind = (fe_kind)((int)pass->await.kind + index);
    return one;
}

/* ---- flights ---- */

ferry_status fe_flight_free(const fe_flight *flight, const char *what) {
    if (flight->orphan)
        return fe_fail(FERRY_INVALID,
                       "%s %llu was never received, and its route is destroyed: its half of the buffers is lost", what,
                       (unsigned long long)flight->epoch);
    if (!flight->route) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "%s %llu is not received yet, and with it two are under way", what,
                   (unsigned long long)flight->epoch);
}

fe_flight *fe_flight_of(fe_flight flights[2], const ferry_route *route) {
    fe_flight *oldest = NULL;
    for (int half = 0; half < 2; half++)
        if (flights[half].route == route && (!oldest || flights[half].epoch < oldest->epoch)) oldest = &flights[half];
    return oldest;
}
