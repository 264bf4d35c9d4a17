/* Route moves: the arithmetic is route/'s, the memory is the heap's. */
#include "cpu/cpu.h"

static void copy_weights(fe_route_data *route) {
    const ferry_tensor *w = &route->topk_weights;
    if (!route->table.weights) return;
    const float *from = w->data;
    for (int64_t t = 0; t < route->shape.tokens; t++)
        for (int64_t k = 0; k < route->shape.topk; k++)
            route->table.weights[t * route->shape.topk + k] = from[t * w->strides[0] + k * w->strides[1]];
}

ferry_status fe_cpu_count(const fe_crew *crew, const fe_pass *pass) {
    (void)crew;
    fe_route_data *route = pass->route;
    FE_TRY(fe_route_count(&route->shape, &route->topk_idx, &route->table, &route->scratch, route->counts));
    copy_weights(route);
    return FERRY_OK;
}

static uint64_t counts_offset(const fe_route_data *route, int half, int source) {
    size_t length = fe_counts_length(route->shape.map);
    return route->counts_at + ((size_t)half * (size_t)route->shape.ranks + (size_t)source) * length * sizeof(int32_t);
}

void fe_cpu_spread(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    const fe_route_data *route = pass->route;
    size_t bytes = fe_counts_length(route->shape.map) * sizeof(int32_t);
    uint64_t at = counts_offset(route, pass->half, heap->rank);
    for (int r = 0; r < heap->ranks; r++) memcpy(fe_near(heap, r, at), route->counts, bytes);
}

ferry_status fe_cpu_place(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    fe_route_data *route = pass->route;
    const fe_shape *shape = &route->shape;
    fe_totals *totals = &route->totals;
    const int32_t *all = fe_near(heap, heap->rank, counts_offset(route, pass->half, 0));
    if (!fe_needs_exchange(shape)) all = route->counts - (size_t)shape->rank * fe_counts_length(shape->map);
    fe_route_blocks(shape, all, &route->scratch, &route->blocks, totals);
    if (totals->overflow_rank >= 0 && shape->overflow == FERRY_OVERFLOW_ERROR) {
        if (totals->overflow_expert >= 0)
            return fe_fail(FERRY_OVERFLOW, "rank %d: expert %d on rank %d would get %lld rows, expert_capacity is %lld",
                           shape->rank, totals->overflow_expert, totals->overflow_rank, (long long)totals->fullest,
                           (long long)totals->limit);
        return fe_fail(FERRY_OVERFLOW, "rank %d: rank %d would need %lld row slots, its capacity is %lld", shape->rank,
                       totals->overflow_rank, (long long)totals->fullest, (long long)totals->limit);
    }
    fe_route_place(shape, &route->table, &route->scratch, totals);
    return FERRY_OK;
}
