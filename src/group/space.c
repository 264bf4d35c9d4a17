/* The partitioned global address space: one-sided operations on the symmetric heap, by load and store of a near
 * rank, over the network of a far one. */
#include "base/structs.h"
#include "group/group.h"

#include <stdio.h>

/* The range [pointer, pointer + bytes) of the user's heap as an offset, checked together with the rank. */
static ferry_status locate(const ferry_group *g, const char *call, const char *what, const void *pointer, size_t bytes,
                           int rank, uint64_t *offset) {
    const fe_heap *heap = &g->engine.heap;
    *offset = 0;
    FE_TRY(fe_group_reaches(g, call, "rank", rank));
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

void *ferry_heap_ptr(const ferry_group *g, const void *pointer, int rank) {
    if (!g || rank < 0 || rank >= g->ranks || !pointer) return NULL;
    const fe_heap *heap = &g->engine.heap;
    int64_t offset = fe_heap_offset(heap, pointer, 1);
    if (!fe_heap_reaches(heap, rank)) return NULL;
    return offset < (int64_t)heap->body_at ? NULL : fe_near(heap, rank, (uint64_t)offset);
}

int64_t ferry_heap_offset(const ferry_group *g, const void *pointer) {
    if (!g || !pointer) return -1;
    const fe_heap *heap = &g->engine.heap;
    int64_t at = fe_heap_offset(heap, pointer, 1) - (int64_t)heap->user_at;
    return at < 0 || at >= g->config.heap_bytes ? -1 : at;
}

void *ferry_heap_at(const ferry_group *g, int64_t offset) {
    if (!g || offset < 0 || offset >= g->config.heap_bytes) return NULL;
    return fe_near(&g->engine.heap, g->rank, g->engine.heap.user_at + (uint64_t)offset);
}

ferry_status ferry_group_device(ferry_group *g, ferry_device_group *handle) {
    FE_TRY(fe_group_check(g, "ferry_group_device"));
    FE_CHECK_STRUCT(handle, FERRY_MAGIC_DEVICE_GROUP, "device group");
    if (!g->engine.device->handle)
        return fe_fail(FERRY_UNSUPPORTED, "ferry_group_device: the %s device runs no kernels of the caller's",
                       g->engine.device->name);
    return g->engine.device->handle(&g->engine, handle);
}

/* ---- put, get, signal ---- */

/* The address of that offset in the rank's space; NULL of a far one, which the transfer then names. */
static void *place_of(const ferry_group *g, int rank, uint64_t at, fe_transfer *t) {
    bool near = fe_heap_near(&g->engine.heap, rank);
    t->far_rank = near ? -1 : rank;
    t->far_at = at;
    return near ? fe_near(&g->engine.heap, rank, at) : NULL;
}

static ferry_status transfer(ferry_group *g, const fe_transfer *t, ferry_stream *stream, const char *call) {
    FE_TRY(fe_group_own(g, stream, call));
    fe_pass pass = {.move = FE_MOVE_TRANSFER, .transfer = *t};
    snprintf(pass.step, sizeof pass.step, "%s", call);
    return fe_submit(&g->engine, stream, &pass);
}

ferry_status ferry_put(ferry_group *g, void *symmetric, const void *source, size_t bytes, int rank,
                       ferry_stream *stream) {
    uint64_t at;
    FE_TRY(fe_group_check(g, "ferry_put"));
    FE_TRY(locate(g, "ferry_put", "symmetric", symmetric, bytes, rank, &at));
    if (bytes && !source) return fe_fail(FERRY_INVALID, "ferry_put: source is NULL");
    fe_transfer t = {.from = source, .bytes = bytes, .owner = -1};
    t.to = place_of(g, rank, at, &t);
    return transfer(g, &t, stream, "ferry_put");
}

ferry_status ferry_get(ferry_group *g, void *destination, const void *symmetric, size_t bytes, int rank,
                       ferry_stream *stream) {
    uint64_t at;
    FE_TRY(fe_group_check(g, "ferry_get"));
    FE_TRY(locate(g, "ferry_get", "symmetric", symmetric, bytes, rank, &at));
    if (bytes && !destination) return fe_fail(FERRY_INVALID, "ferry_get: destination is NULL");
    fe_transfer t = {.to = destination, .bytes = bytes, .owner = -1, .get = true};
    t.from = place_of(g, rank, at, &t);
    return transfer(g, &t, stream, "ferry_get");
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
    fe_transfer t = {.from = source, .bytes = bytes, .owner = rank, .op = op, .signal_at = signal_at, .value = value};
    t.to = place_of(g, rank, at, &t);
    return transfer(g, &t, stream, call);
}

/* ---- atomics, order ---- */

static ferry_status on_word(ferry_group *g, const char *call, uint64_t *symmetric, int rank, fe_atomic a,
                            uint64_t *old) {
    uint64_t before = 0;
    FE_TRY(fe_group_check(g, call));
    FE_TRY(locate_word(g, call, symmetric, rank, &a.at));
    a.owner = rank;
    a.old = &before;
    fe_pass pass = {.move = FE_MOVE_ATOMIC, .atomic = a};
    snprintf(pass.step, sizeof pass.step, "%s", call);
    FE_TRY(fe_submit(&g->engine, NULL, &pass));
    if (old) *old = before;
    return FERRY_OK;
}

ferry_status ferry_fetch_add(ferry_group *g, uint64_t *symmetric, uint64_t value, int rank, uint64_t *old) {
    return on_word(g, "ferry_fetch_add", symmetric, rank, (fe_atomic){.add = value}, old);
}

ferry_status ferry_compare_swap(ferry_group *g, uint64_t *symmetric, uint64_t expected, uint64_t desired, int rank,
                                uint64_t *old) {
    return on_word(g, "ferry_compare_swap", symmetric, rank,
                   (fe_atomic){.swap = true, .expected = expected, .desired = desired}, old);
}

ferry_status ferry_fence(ferry_group *g) {
    FE_TRY(fe_group_check(g, "ferry_fence"));
    fe_link_fence();
    return g->engine.far ? fe_far_quiet(g->engine.far) : FERRY_OK; /* the network keeps no order of its own */
}

/* Near stores are complete everywhere once they are visible. */
ferry_status ferry_quiet(ferry_group *g) {
    FE_TRY(fe_group_check(g, "ferry_quiet"));
    fe_link_fence();
    return g->engine.far ? fe_far_quiet(g->engine.far) : FERRY_OK;
}

/* ---- wait until ---- */

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
    fe_pass pass = {.step = "wait_until", .move = FE_MOVE_UNTIL};
    pass.lenient = !stream; /* on a stream, what comes next counts on the word */
    pass.until = (fe_until){.at = at, .compare = compare, .value = value};
    pass.until.timeout_ns = timeout_ms ? (int64_t)timeout_ms * 1000000 : g->engine.watch.timeout_ns;
    return fe_submit(&g->engine, stream, &pass);
}
