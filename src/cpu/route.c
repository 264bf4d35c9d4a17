/* Route moves: the arithmetic is route/'s, the memory is the heap's. */
#include "cpu/cpu.h"
#include "route/tally.h"

static void copy_weights(fe_route_data *route) {
    const ferry_tensor *w = &route->topk_weights;
    if (!route->table.weights) return;
    const float *from = w->data;
    for (int64_t t = 0; t < route->shape.tokens; t++)
        for (int64_t k = 0; k < route->shape.topk; k++)
            route->table.weights[t * route->shape.topk + k] = from[t * w->strides[0] + k * w->strides[1]];
}

static void renormalise(fe_route_data *route) {
    const fe_shape *s = &route->shape;
    for (int64_t t = 0; s->renormalise && route->table.weights && t < s->tokens; t++)
        fe_renormalise(s, &route->topk_idx, route->table.home + t * s->topk, route->table.weights + t * s->topk, t);
}

/* Where somebody waits for the outcome, a wrong index stops the route before any other rank hears of it. Where nobody does, the others
 * may be counting on this rank already: it takes part without a single choice, and the error is the stream's. */
ferry_status fe_cpu_count(const fe_crew *crew, const fe_pass *pass) {
    (void)crew;
    fe_route_data *route = pass->route;
    ferry_status status =
        fe_route_count(&route->shape, &route->topk_idx, &route->table, &route->scratch, route->counts);
    if (status != FERRY_OK) fe_route_empty(&route->shape, &route->table, route->counts);
    copy_weights(route);
    if (status == FERRY_OK) renormalise(route);
    return status;
}

static uint64_t counts_offset(const fe_route_data *route, int half, int source) {
    size_t length = fe_counts_length(route->shape.map);
    return route->counts_at + ((size_t)half * (size_t)route->shape.ranks + (size_t)source) * length * sizeof(int32_t);
}

void fe_cpu_counts_place(const fe_pass *pass, int rank, uint64_t *at, size_t *bytes) {
    *at = counts_offset(pass->route, pass->half, rank);
    *bytes = fe_counts_length(pass->route->shape.map) * sizeof(int32_t);
}

/* To other hosts from this rank's own space, and there on from its column's: the note that follows says so. */
ferry_status fe_cpu_spread(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    uint64_t at;
    size_t bytes;
    fe_cpu_counts_place(pass, heap->rank, &at, &bytes);
    for (int r = 0; r < heap->ranks; r++)
        if (fe_heap_reaches(heap, r)) memcpy(fe_near(heap, r, at), pass->route->counts, bytes);
    for (int h = 0; crew->engine->far && h < heap->hosts.count; h++)
        if (h != heap->hosts.mine) FE_TRY(fe_far_push(crew->engine->far, h, FE_COUNTS, pass->half, at, at, bytes));
    return FERRY_OK;
}

/* After an overflow, which all ranks see alike, nothing is sent: what is already queued behind moves no row. */
static void forget_rows(fe_route_data *route) {
    size_t blocks = (size_t)fe_local_units(&route->shape) * (size_t)route->shape.ranks;
    fe_route_empty(&route->shape, &route->table, route->counts);
    memset(route->blocks.counts, 0, blocks * sizeof *route->blocks.counts);
    memset(route->scratch.keep, 0, (size_t)fe_units(&route->shape) * sizeof *route->scratch.keep);
    route->totals->received = 0;
    if (route->far.hosts) fe_route_records(&route->shape, &route->table, &route->far);
}

/* Rows of counts from other hosts: slots follow from them, so none may be more than a rank can send. */
static ferry_status check_counts(const fe_heap *heap, const fe_shape *shape, const int32_t *all) {
    size_t length = fe_counts_length(shape->map);
    for (int r = 0; r < heap->ranks; r++) {
        if (fe_heap_near(heap, r)) continue;
        for (size_t i = FE_COUNT_HEADER; i < length; i++) {
            int32_t count = all[(size_t)r * length + i];
            if (count < 0 || count > shape->max_tokens)
                return fe_fail(FERRY_SYSTEM,
                               "rank %d: rank %d says that it sends %d rows to one place, max_tokens is %d", heap->rank,
                               r, count, shape->max_tokens);
        }
    }
    return FERRY_OK;
}

ferry_status fe_cpu_place(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    fe_route_data *route = pass->route;
    const fe_shape *shape = &route->shape;
    const int32_t *all = fe_near(heap, heap->rank, counts_offset(route, pass->half, 0));
    if (fe_needs_exchange(shape)) {
        FE_TRY(check_counts(heap, shape, all));
        fe_route_demand(shape, all, route->demand);
    } else {
        all = route->counts - (size_t)shape->rank * fe_counts_length(shape->map);
    }
    fe_route_blocks(shape, all, &route->scratch, &route->blocks, route->totals);
    if (route->totals->overflow_rank >= 0 && shape->overflow == FERRY_OVERFLOW_ERROR) {
        forget_rows(route);
        fe_tally_place(route->tally, shape, route->scratch.keep, NULL);
        return fe_route_tell_overflow(shape, route->totals);
    }
    fe_route_place(shape, &route->table, &route->scratch, route->totals);
    fe_tally_place(route->tally, shape, route->scratch.keep, route->counts);
    if (route->far.hosts) fe_route_records(shape, &route->table, &route->far);
    return FERRY_OK;
}
