/* Meetings of all ranks: barrier, all-gather, broadcast, and the symmetric heap's allocations. Each is one or more rounds, numbered
 * from the group's beginning; a round is one MEET note to every rank and one from every rank (docs/protocol.md, "Meetings"). */
#include "group/group.h"

#include <stdio.h>

typedef enum meet_kind { MEET_BARRIER, MEET_GATHER, MEET_BROADCAST, MEET_ALLOC, MEET_FREE } meet_kind;

static const char *const names[] = {"barrier", "allgather", "broadcast", "heap_alloc", "heap_free"};

typedef struct meeting { /* what a stream keeps of the call: at most FE_CALL_BYTES */
    meet_kind kind;
    int root;
    uint64_t epoch; /* of the first round */
    const void *mine;
    void *all;
    size_t bytes;
} meeting;
_Static_assert(sizeof(meeting) <= FE_CALL_BYTES, "a meeting must fit a stream's call");

enum { WORD_KIND, WORD_BYTES, WORD_ROOT };

static ferry_status tell_difference(const fe_heap *heap, const meeting *m, int other, const uint64_t *theirs) {
    const char *name = theirs[WORD_KIND] < sizeof names / sizeof *names ? names[theirs[WORD_KIND]] : "nothing known";
    if (theirs[WORD_KIND] != m->kind)
        return fe_fail(FERRY_MISMATCH, "rank %d is in %s, rank %d in %s", heap->rank, names[m->kind], other, name);
    if (theirs[WORD_ROOT] != (uint64_t)m->root)
        return fe_fail(FERRY_MISMATCH, "%s: root is %d on rank %d, %llu on rank %d", name, m->root, heap->rank,
                       (unsigned long long)theirs[WORD_ROOT], other);
    return fe_fail(FERRY_MISMATCH, "%s of %zu bytes on rank %d, of %llu on rank %d", name, m->bytes, heap->rank,
                   (unsigned long long)theirs[WORD_BYTES], other);
}

/* One round. When it is over, every rank has come to it, with the same call. */
static ferry_status meet(const fe_engine *engine, const meeting *m, uint64_t epoch) {
    const fe_heap *heap = &engine->heap;
    uint64_t words[FE_CELL_WORDS] = {[WORD_KIND] = m->kind, [WORD_BYTES] = m->bytes, [WORD_ROOT] = (uint64_t)m->root};
    char step[40];
    int half = (int)(epoch & 1);
    snprintf(step, sizeof step, "%s %llu", names[m->kind], (unsigned long long)epoch);
    for (int i = 1; i <= heap->ranks; i++)
        fe_link_signal(heap, (heap->rank + i) % heap->ranks, FE_MEET, half, words, epoch);
    FE_TRY(fe_watch_cells(&engine->watch, FE_MEET, half, epoch, step));
    for (int r = 0; r < heap->ranks; r++) {
        const uint64_t *theirs = fe_link_words(heap, FE_MEET, half, r);
        if (memcmp(theirs, words, sizeof words) != 0) return tell_difference(heap, m, r, theirs);
    }
    return FERRY_OK;
}

static char *scratch_of(const fe_heap *heap, int rank, uint64_t epoch) {
    return fe_near(heap, rank, heap->scratch_at + (epoch & 1) * FE_SCRATCH);
}

/* Rounds that a call takes: a round carries FE_SCRATCH bytes of each rank. */
static uint64_t rounds_of(const meeting *m) {
    bool carries = m->kind == MEET_GATHER || m->kind == MEET_BROADCAST;
    return carries && m->bytes ? (m->bytes + FE_SCRATCH - 1) / FE_SCRATCH : 1;
}

/* A rank writes its own scratch of this half, meets, and reads the others'. Nobody writes this half again before all have read
 * it: its next round comes after the round between, which a reader enters only when it is done. */
static ferry_status carry(const fe_engine *engine, const meeting *m) {
    const fe_heap *heap = &engine->heap;
    uint64_t rounds = rounds_of(m);
    for (uint64_t i = 0; i < rounds; i++) {
        size_t at = (size_t)i * FE_SCRATCH, n = m->bytes - at < FE_SCRATCH ? m->bytes - at : FE_SCRATCH;
        if (m->kind == MEET_GATHER || heap->rank == m->root)
            memcpy(scratch_of(heap, heap->rank, m->epoch + i), (const char *)m->mine + at, n);
        FE_TRY(meet(engine, m, m->epoch + i));
        for (int r = 0; m->kind == MEET_GATHER && r < heap->ranks; r++)
            memcpy((char *)m->all + (size_t)r * m->bytes + at, scratch_of(heap, r, m->epoch + i), n);
        if (m->kind == MEET_BROADCAST && heap->rank != m->root)
            memcpy((char *)m->all + at, scratch_of(heap, m->root, m->epoch + i), n);
    }
    return FERRY_OK;
}

static ferry_status run_meeting(fe_engine *engine, const void *argument) {
    const meeting *m = argument;
    bool carries = m->bytes && (m->kind == MEET_GATHER || m->kind == MEET_BROADCAST);
    FE_TRY(fe_fault_check(&engine->fault, &engine->heap, names[m->kind]));
    ferry_status status = carries ? carry(engine, m) : meet(engine, m, m->epoch);
    /* Sizes that differ in an allocation cost nobody a step: the group goes on. */
    bool harmless = status == FERRY_MISMATCH && (m->kind == MEET_ALLOC || m->kind == MEET_FREE);
    if (fe_fault_fatal(status) && !harmless) fe_fault_note(&engine->fault, status, true);
    return status;
}

static ferry_status call_meeting(ferry_group *g, meeting *m, ferry_stream *stream) {
    FE_TRY(fe_group_own(g, stream, names[m->kind]));
    FE_TRY(fe_group_ready(g, names[m->kind]));
    m->epoch = g->meets + 1;
    g->meets += rounds_of(m);
    return g->engine.device->call(&g->engine, stream, run_meeting, m, sizeof *m);
}

ferry_status ferry_barrier(ferry_group *g, ferry_stream *stream) {
    FE_TRY(fe_group_check(g, "ferry_barrier"));
    meeting m = {.kind = MEET_BARRIER};
    return call_meeting(g, &m, stream);
}

ferry_status ferry_allgather(ferry_group *g, const void *mine, void *all, size_t bytes, ferry_stream *stream) {
    FE_TRY(fe_group_check(g, "ferry_allgather"));
    if (bytes && (!mine || !all)) return fe_fail(FERRY_INVALID, "ferry_allgather: %s is NULL", mine ? "all" : "mine");
    if (bytes > SIZE_MAX / (size_t)g->ranks)
        return fe_fail(FERRY_INVALID, "ferry_allgather: %zu bytes of %d ranks are too many", bytes, g->ranks);
    meeting m = {.kind = MEET_GATHER, .mine = mine, .all = all, .bytes = bytes};
    return call_meeting(g, &m, stream);
}

ferry_status ferry_broadcast(ferry_group *g, void *buffer, size_t bytes, int root, ferry_stream *stream) {
    FE_TRY(fe_group_check(g, "ferry_broadcast"));
    if (bytes && !buffer) return fe_fail(FERRY_INVALID, "ferry_broadcast: buffer is NULL");
    if (root < 0 || root >= g->ranks)
        return fe_fail(FERRY_INVALID, "ferry_broadcast: root is %d, ranks are 0 to %d", root, g->ranks - 1);
    meeting m = {.kind = MEET_BROADCAST, .mine = buffer, .all = buffer, .bytes = bytes, .root = root};
    return call_meeting(g, &m, stream);
}

ferry_status ferry_heap_alloc(ferry_group *g, size_t bytes, void **pointer) {
    FE_TRY(fe_group_check(g, "ferry_heap_alloc"));
    if (!pointer) return fe_fail(FERRY_INVALID, "ferry_heap_alloc: pointer is NULL");
    fe_heap *heap = &g->engine.heap;
    meeting m = {.kind = MEET_ALLOC, .bytes = bytes};
    FE_TRY(fe_heap_reserve(heap));
    FE_TRY(call_meeting(g, &m, NULL));
    int64_t offset = fe_heap_take(heap, bytes); /* the same on every rank, or on none */
    if (offset < 0)
        return fe_fail(FERRY_NOMEM, "rank %d: no room for %zu bytes: heap_bytes is %lld, the largest free piece %zu",
                       g->rank, bytes, (long long)g->config.heap_bytes, fe_heap_largest(heap));
    *pointer = fe_near(heap, g->rank, (uint64_t)offset);
    return FERRY_OK;
}

ferry_status ferry_heap_free(ferry_group *g, void *pointer) {
    FE_TRY(fe_group_check(g, "ferry_heap_free"));
    if (!pointer) return FERRY_OK;
    fe_heap *heap = &g->engine.heap;
    int64_t offset = fe_heap_offset(heap, pointer, 0);
    if (!fe_heap_taken(heap, offset))
        return fe_fail(FERRY_INVALID, "rank %d: %p is not the start of a heap allocation", g->rank, pointer);
    meeting m = {.kind = MEET_FREE, .bytes = (size_t)offset};
    FE_TRY(call_meeting(g, &m, NULL));
    return fe_heap_give(heap, offset);
}
