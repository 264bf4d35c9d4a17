/* Going on without a rank, and with it again: who is of the group is agreed upon (watch/council.h), and then everything that steps have
 * left behind is forgotten, so that an era begins as a group does. */
#include "group/counters.h"
#include "watch/calls.h"

static bool is_masked(const void *heap, int rank) {
    return fe_heap_masked(heap, rank);
}

static void take_mask(ferry_group *g, const fe_verdict *v) {
    fe_heap *heap = &g->engine.heap;
    for (int r = 0; r < g->ranks; r++)
        atomic_store_explicit(&heap->masked[r], !fe_bit(v->member, r), memory_order_relaxed);
    fe_map_mask(&g->map, is_masked, heap);
    memset(g->wish, 0, sizeof g->wish);
}

/* What was sent will not be received; the events stay for the next ones. */
static void forget_flights(fe_flight *flights, int count) {
    for (int i = 0; i < count; i++) flights[i] = (fe_flight){.done = flights[i].done};
}

static void forget_steps(ferry_group *g) {
    fe_counters_keep(g);
    g->meets = g->routes = g->exchanges = g->dispatches = g->combines = 0;
    forget_flights(g->dispatch, 2);
    forget_flights(g->combine, 2);
    forget_flights(&g->meeting, 1);
    forget_flights(&g->exchange, 1);
}

void fe_group_take_map(ferry_group *g, fe_map *map) {
    fe_map old = g->map;
    fe_counters_move(g);
    g->map = *map;
    *map = old;
}

/* This rank is of the new era, and all who are have come: nothing of theirs is under way. */
ferry_status fe_group_adopt(ferry_group *g, const fe_verdict *v) {
    fe_engine *e = &g->engine;
    e->heap.era = v->era;
    take_mask(g, v);
    forget_steps(g);
    FE_TRY(fe_heap_follow(&e->heap, &v->story));
    FE_TRY(e->device->renew(e, g->body.small_bytes));
    for (int r = 0; r < g->ranks; r++)
        if (fe_heap_masked(&e->heap, r)) fe_watch_mask(&e->heap, r);
    atomic_store(&fe_heap_control(&e->heap, g->rank)->failed, 0);
    fe_watch_await(&e->heap, -1);
    fe_recorder_renew(e->watch.recorder, &e->heap);
    fe_calls_forget(&e->heap);
    atomic_store(&fe_heap_control(&e->heap, g->rank)->lost, 0);
    fe_fault_clear(&e->fault);
    return fe_watch_resume(&e->heap) ? FERRY_OK : fe_watch_aborted(&e->heap);
}

bool fe_group_rest(ferry_group *g) {
    fe_engine *e = &g->engine;
    fe_group_look(g);
    bool hurt = atomic_load(&e->fault.broken) || fe_heap_why(&e->heap, g->rank) != FE_GOES_ON;
    if (hurt) fe_watch_recall(&e->heap, g->rank);
    e->device->drain(e);
    fe_group_look(g);
    return hurt || atomic_load(&e->fault.broken);
}

void fe_group_exclude(ferry_group *g) {
    atomic_store_explicit(&g->engine.heap.masked[g->rank], 1, memory_order_relaxed);
    fe_watch_exclude(&g->engine.heap);
}

/* One agreement. *again: it holds, but a rank was lost before all had begun the era. */
static ferry_status agree_once(ferry_group *g, bool *again) {
    fe_engine *e = &g->engine;
    fe_verdict verdict;
    bool hurt = fe_group_rest(g);
    if (fe_heap_why(&e->heap, g->rank) == FE_GROUP_ABORTED) return fe_watch_aborted(&e->heap);
    ferry_status status = fe_council_hold(&e->watch, g->wish, hurt, &verdict);
    if (status == FERRY_REFUSED) {
        take_mask(g, &verdict);
        fe_group_exclude(g);
    }
    FE_TRY(status);
    status = fe_group_adopt(g, &verdict);
    if (status != FERRY_OK) {
        fe_council_withdraw(&e->heap);
        return status;
    }
    status = fe_council_settle(&e->watch, &verdict, fe_map_hash(&g->map));
    *again = status != FERRY_OK && status != FERRY_MISMATCH && fe_heap_why(&e->heap, g->rank) != FE_GROUP_ABORTED;
    return status;
}

/* On one host. Each round is without a rank more. */
static ferry_status agree_here(ferry_group *g) {
    ferry_status status = FERRY_OK;
    bool again = true;
    for (int round = 0; again && round <= g->ranks; round++) {
        again = false;
        status = agree_once(g, &again);
        if (again) fe_fault_note(&g->engine.fault, status, true);
    }
    return status;
}

ferry_status ferry_group_agree(ferry_group *g, const ferry_unique_id *id, uint8_t *masked) {
    FE_TRY(fe_group_check(g, "ferry_group_agree"));
    bool far = g->engine.heap.hosts.count > 1;
    if (far && !id)
        return fe_fail(FERRY_INVALID, "ferry_group_agree: the group is on %d hosts, and the unique id is NULL",
                       g->engine.heap.hosts.count);
    ferry_status status = far ? fe_group_agree_at(g, id) : agree_here(g);
    if (status != FERRY_OK && status != FERRY_REFUSED) fe_fault_note(&g->engine.fault, status, true);
    return status == FERRY_OK && masked ? ferry_group_mask_get(g, masked) : status;
}

ferry_status ferry_group_mask_set(ferry_group *g, int rank, int masked) {
    FE_TRY(fe_group_check(g, "ferry_group_mask_set"));
    if (rank < 0 || rank >= g->ranks)
        return fe_fail(FERRY_INVALID, "ferry_group_mask_set: rank is %d, ranks are 0 to %d", rank, g->ranks - 1);
    if (rank == g->rank)
        return fe_fail(FERRY_INVALID, "ferry_group_mask_set: rank %d is this one: a rank leaves by ferry_group_destroy",
                       rank);
    if (masked != 0 && masked != 1)
        return fe_fail(FERRY_INVALID, "ferry_group_mask_set: masked is %d, neither 0 nor 1", masked);
    g->wish[rank] = masked ? 1 : -1;
    return FERRY_OK;
}

ferry_status ferry_group_mask_get(const ferry_group *g, uint8_t *masked) {
    FE_TRY(fe_group_check(g, "ferry_group_mask_get"));
    if (!masked) return fe_fail(FERRY_INVALID, "ferry_group_mask_get: masked is NULL");
    for (int r = 0; r < g->ranks; r++) masked[r] = fe_heap_masked(&g->engine.heap, r);
    return FERRY_OK;
}
