/* The partitioned global address space: one-sided operations on the symmetric heap of a near rank, by load and store. */
#include "group/group.h"

#include <stdio.h>

/* The range [pointer, pointer + bytes) of the user's heap as an offset, checked together with the rank. */
static ferry_status locate(const ferry_group *g, const char *call, const char *what, const void *pointer, size_t bytes,
                           int rank, uint64_t *offset) {
    const fe_heap *heap = &g->engine.heap;
    *offset = 0;
    if (rank < 0 || rank >= g->ranks)
        return fe_fail(FERRY_INVALID, "%s: rank is %d, ranks are 0 to %d", call, rank, g->ranks - 1);
    int64_t at = fe_heap_offset(heap, pointer, bytes);
    if (at < (int64_t)heap->body_at) /* below lie the cells that the protocol runs on */
        return fe_fail(FERRY_INVALID, "%s: %s %p with %zu bytes is not inside rank %d's symmetric heap", call, what,
                       pointer, bytes, g->rank);
    *offset = (uint64_t)at;
    return FERRY_OK;
}

static ferry_status locate_word(const ferry_group *g, const char *call, const uint64_t *word, int rank,
                                uint64_t *offset) {
    FE_TRY(locate(g, call, "the word at", word, sizeof *word, rank, offset));
    if ((uintptr_t)word % sizeof *word == 0) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "%s: the word at %p is not aligned to 8 bytes", call, (const void *)word);
}

static _Atomic uint64_t *word_of(const fe_heap *heap, int rank, uint64_t offset) {
    return fe_near(heap, rank, offset);
}

void *ferry_heap_ptr(const ferry_group *g, const void *pointer, int rank) {
    if (!g || rank < 0 || rank >= g->ranks || !pointer) return NULL;
    const fe_heap *heap = &g->engine.heap;
    int64_t offset = fe_heap_offset(heap, pointer, 1);
    return offset < (int64_t)heap->body_at ? NULL : fe_near(heap, rank, (uint64_t)offset);
}

/* ---- put, get, signal ---- */

typedef struct transfer {
    void *to;
    const void *from;
    size_t bytes;
    int owner; /* of the signal; -1: none */
    ferry_signal_op op;
    uint64_t signal_at, value;
} transfer;
_Static_assert(sizeof(transfer) <= FE_CALL_BYTES, "a transfer must fit a stream's call");

static ferry_status run_transfer(fe_engine *engine, const void *argument) {
    const transfer *t = argument;
    FE_TRY(fe_fault_check(&engine->fault, &engine->heap, t->owner < 0 ? "put or get" : "put_signal"));
    if (t->bytes) memmove(t->to, t->from, t->bytes);
    if (t->owner < 0) return FERRY_OK;
    /* Sequentially consistent: release for the data, and ordered before the look for sleepers in fe_watch_ring. memmove may have
     * written past the cache; glibc fences such stores itself. */
    if (t->op == FERRY_SIGNAL_SET)
        atomic_store(word_of(&engine->heap, t->owner, t->signal_at), t->value);
    else
        atomic_fetch_add(word_of(&engine->heap, t->owner, t->signal_at), t->value);
    fe_watch_ring(&engine->heap, t->owner);
    return FERRY_OK;
}

static ferry_status call_transfer(ferry_group *g, const transfer *t, ferry_stream *stream, const char *call) {
    FE_TRY(fe_group_own(g, stream, call));
    return g->engine.device->call(&g->engine, stream, run_transfer, t, sizeof *t);
}

ferry_status ferry_put(ferry_group *g, void *symmetric, const void *source, size_t bytes, int rank,
                       ferry_stream *stream) {
    uint64_t at;
    FE_TRY(fe_group_check(g, "ferry_put"));
    FE_TRY(locate(g, "ferry_put", "symmetric", symmetric, bytes, rank, &at));
    if (bytes && !source) return fe_fail(FERRY_INVALID, "ferry_put: source is NULL");
    transfer t = {.to = fe_near(&g->engine.heap, rank, at), .from = source, .bytes = bytes, .owner = -1};
    return call_transfer(g, &t, stream, "ferry_put");
}

ferry_status ferry_get(ferry_group *g, void *destination, const void *symmetric, size_t bytes, int rank,
                       ferry_stream *stream) {
    uint64_t at;
    FE_TRY(fe_group_check(g, "ferry_get"));
    FE_TRY(locate(g, "ferry_get", "symmetric", symmetric, bytes, rank, &at));
    if (bytes && !destination) return fe_fail(FERRY_INVALID, "ferry_get: destination is NULL");
    transfer t = {.to = destination, .from = fe_near(&g->engine.heap, rank, at), .bytes = bytes, .owner = -1};
    return call_transfer(g, &t, stream, "ferry_get");
}

ferry_status ferry_put_signal(ferry_group *g, void *symmetric, const void *source, size_t bytes, uint64_t *signal,
                              uint64_t value, ferry_signal_op op, int rank, ferry_stream *stream) {
    static const char call[] = "ferry_put_signal";
    uint64_t at, signal_at;
    FE_TRY(fe_group_check(g, call));
    FE_TRY(locate(g, call, "symmetric", symmetric, bytes, rank, &at));
    FE_TRY(locate_word(g, call, signal, rank, &signal_at));
    if (bytes && !source) return fe_fail(FERRY_INVALID, "%s: source is NULL", call);
    if (op != FERRY_SIGNAL_SET && op != FERRY_SIGNAL_ADD)
        return fe_fail(FERRY_INVALID, "%s: op is %d, which is no ferry_signal_op", call, (int)op);
    transfer t = {.to = fe_near(&g->engine.heap, rank, at),
                  .from = source,
                  .bytes = bytes,
                  .owner = rank,
                  .op = op,
                  .signal_at = signal_at,
                  .value = value};
    return call_transfer(g, &t, stream, call);
}

/* ---- atomics, order ---- */

ferry_status ferry_fetch_add(ferry_group *g, uint64_t *symmetric, uint64_t value, int rank, uint64_t *old) {
    uint64_t at;
    FE_TRY(fe_group_check(g, "ferry_fetch_add"));
    FE_TRY(locate_word(g, "ferry_fetch_add", symmetric, rank, &at));
    uint64_t before = atomic_fetch_add(word_of(&g->engine.heap, rank, at), value);
    fe_watch_ring(&g->engine.heap, rank);
    if (old) *old = before;
    return FERRY_OK;
}

ferry_status ferry_compare_swap(ferry_group *g, uint64_t *symmetric, uint64_t expected, uint64_t desired, int rank,
                                uint64_t *old) {
    uint64_t at;
    FE_TRY(fe_group_check(g, "ferry_compare_swap"));
    FE_TRY(locate_word(g, "ferry_compare_swap", symmetric, rank, &at));
    uint64_t before = expected; /* on failure the exchange writes what it found */
    atomic_compare_exchange_strong(word_of(&g->engine.heap, rank, at), &before, desired);
    fe_watch_ring(&g->engine.heap, rank);
    if (old) *old = before;
    return FERRY_OK;
}

ferry_status ferry_fence(ferry_group *g) {
    FE_TRY(fe_group_check(g, "ferry_fence"));
    fe_link_fence();
    return FERRY_OK;
}

/* Near stores are complete everywhere once they are visible. */
ferry_status ferry_quiet(ferry_group *g) {
    FE_TRY(fe_group_check(g, "ferry_quiet"));
    fe_link_fence();
    return FERRY_OK;
}

/* ---- wait until ---- */

typedef struct until {
    const _Atomic uint64_t *word;
    ferry_compare compare;
    uint64_t value;
    int timeout_ms;
    bool fatal; /* on a stream: what comes next counts on the word */
} until;
_Static_assert(sizeof(until) <= FE_CALL_BYTES, "a wait must fit a stream's call");

static bool word_ready(const void *what) {
    const until *u = what;
    uint64_t seen = atomic_load(u->word); /* acquires what was put before the signal */
    switch (u->compare) {
    case FERRY_EQ: return seen == u->value;
    case FERRY_NE: return seen != u->value;
    case FERRY_GT: return seen > u->value;
    case FERRY_GE: return seen >= u->value;
    case FERRY_LT: return seen < u->value;
    case FERRY_LE: return seen <= u->value;
    }
    return false;
}

static ferry_status run_until(fe_engine *engine, const void *argument) {
    static const char *const signs[] = {"==", "!=", ">", ">=", "<", "<="};
    const until *u = argument;
    const fe_heap *heap = &engine->heap;
    FE_TRY(fe_fault_check(&engine->fault, heap, "wait_until"));
    int64_t ns = u->timeout_ms ? (int64_t)u->timeout_ms * 1000000 : engine->watch.timeout_ns;
    fe_waited waited = fe_watch_wait(&engine->watch, word_ready, u, fe_now_ns() + ns);
    if (waited == FE_ARRIVED) return FERRY_OK;
    if (waited == FE_ABORTED)
        return fe_fail(FERRY_ABORTED, "rank %d: the group was aborted during wait_until", heap->rank);
    ferry_status status = fe_fail(FERRY_TIMEOUT, "rank %d waited %lld ms until a word was %s %llu: it is %llu",
                                  heap->rank, (long long)(ns / 1000000), signs[u->compare],
                                  (unsigned long long)u->value, (unsigned long long)atomic_load(u->word));
    if (u->fatal) fe_fault_note(&engine->fault, status, true);
    return status;
}

ferry_status ferry_wait_until(ferry_group *g, const uint64_t *signal, ferry_compare compare, uint64_t value,
                              int timeout_ms, ferry_stream *stream) {
    uint64_t at;
    FE_TRY(fe_group_check(g, "ferry_wait_until"));
    FE_TRY(locate_word(g, "ferry_wait_until", signal, g->rank, &at));
    FE_TRY(fe_group_own(g, stream, "ferry_wait_until"));
    if (compare < FERRY_EQ || compare > FERRY_LE)
        return fe_fail(FERRY_INVALID, "ferry_wait_until: compare is %d, which is no ferry_compare", (int)compare);
    if (timeout_ms < 0)
        return fe_fail(FERRY_INVALID, "ferry_wait_until: timeout_ms is %d: no wait is unbounded", timeout_ms);
    until u = {word_of(&g->engine.heap, g->rank, at), compare, value, timeout_ms, stream != NULL};
    return g->engine.device->call(&g->engine, stream, run_until, &u, sizeof u);
}
