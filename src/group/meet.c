/* Meetings of all ranks: barrier, all-gather, broadcast, and the symmetric heap's allocations. Each is one or more rounds, numbered
 * from the group's beginning; a round is one MEET note to every rank and one from every rank (docs/protocol.md, "Meetings"). */
#include "group/calls.h"

typedef enum meet_kind { MEET_BARRIER, MEET_GATHER, MEET_BROADCAST, MEET_ALLOC, MEET_FREE } meet_kind;

static const char *const names[] = {"barrier", "allgather", "broadcast", "heap_alloc", "heap_free"};

typedef struct meeting {
    meet_kind kind;
    int root;
    const char *mine;
    char *all;
    size_t bytes;
} meeting;

enum { WORD_KIND, WORD_BYTES, WORD_ROOT, WORDS };

const char *fe_meeting_name(uint64_t kind) {
    return kind < sizeof names / sizeof *names ? names[kind] : "nothing known";
}

static ferry_status explain(const char *step, int rank, const uint64_t *ours, int other, const uint64_t *theirs) {
    if (theirs[WORD_KIND] != ours[WORD_KIND])
        return fe_fail(FERRY_MISMATCH, "rank %d is in %s, rank %d in %s", rank, step, other,
                       fe_meeting_name(theirs[WORD_KIND]));
    if (theirs[WORD_ROOT] != ours[WORD_ROOT])
        return fe_fail(FERRY_MISMATCH, "%s: root is %llu on rank %d, %llu on rank %d", step,
                       (unsigned long long)ours[WORD_ROOT], rank, (unsigned long long)theirs[WORD_ROOT], other);
    return fe_fail(FERRY_MISMATCH, "%s: %llu bytes on rank %d, %llu on rank %d", step,
                   (unsigned long long)ours[WORD_BYTES], rank, (unsigned long long)theirs[WORD_BYTES], other);
}

/* One round. When it is over, every rank has come to it, with the same call. Sizes that differ in an allocation cost nobody a
 * step, and the group goes on; in anything else ranks would disagree on how many rounds there are. */
static fe_pass round_pass(const meeting *m, uint64_t epoch) {
    fe_pass p = {.half = (int)(epoch & 1), .explain = explain};
    fe_pass_name(&p, names[m->kind], epoch, "");
    p.lenient = m->kind == MEET_ALLOC || m->kind == MEET_FREE;
    p.signal = (fe_note){.used = true, .kind = FE_MEET, .half = p.half, .epoch = epoch};
    p.signal.word[WORD_KIND] = m->kind;
    p.signal.word[WORD_BYTES] = m->bytes;
    p.signal.word[WORD_ROOT] = (uint64_t)m->root;
    p.settle = (fe_await){.used = true, .kind = FE_MEET, .half = p.half, .epoch = epoch, .same = (1u << WORDS) - 1};
    memcpy(p.settle.word, p.signal.word, sizeof p.settle.word);
    return p;
}

/* Bytes [at, at + n) of the call. A rank writes its own scratch of this half, meets, and reads the others'. Nobody writes this half
 * again before all have read it: its next round comes after the round between, which a reader enters only when it is done. */
static ferry_status carry(ferry_group *g, const meeting *m, size_t at, size_t n, ferry_stream *stream) {
    fe_pass p = round_pass(m, ++g->meets);
    if (m->kind == MEET_GATHER || g->rank == m->root) {
        p.move = FE_MOVE_PUBLISH;
        p.publish = (fe_publish){.from = m->mine + at, .bytes = n};
    }
    FE_TRY(fe_submit(&g->engine, stream, &p));
    if (m->kind == MEET_BROADCAST && g->rank == m->root) return FERRY_OK;
    fe_pass out = {.half = p.half, .move = FE_MOVE_COLLECT};
    memcpy(out.step, p.step, sizeof out.step);
    out.collect =
        (fe_collect){.to = m->all + at, .bytes = n, .apart = m->bytes, .root = m->kind == MEET_GATHER ? -1 : m->root};
    return fe_submit(&g->engine, stream, &out);
}

static ferry_status hold(ferry_group *g, const meeting *m, ferry_stream *stream) {
    if (!m->bytes || (m->kind != MEET_GATHER && m->kind != MEET_BROADCAST)) {
        fe_pass p = round_pass(m, ++g->meets);
        return fe_submit(&g->engine, stream, &p);
    }
    for (size_t at = 0; at < m->bytes; at += FE_SCRATCH)
        FE_TRY(carry(g, m, at, m->bytes - at < FE_SCRATCH ? m->bytes - at : FE_SCRATCH, stream));
    return FERRY_OK;
}

/* A rank says of its meetings only how far it has come: they must be held in the order of the calls, whatever their streams. */
static ferry_status call_meeting(ferry_group *g, const meeting *m, ferry_stream *stream) {
    FE_TRY(fe_group_own(g, stream, names[m->kind]));
    FE_TRY(fe_group_ready(g, names[m->kind]));
    FE_TRY(fe_flight_await(g, &g->meeting, stream));
    fe_group_calls(g, FE_CALL_MEETING, m->kind);
    FE_TRY(hold(g, m, stream));
    return fe_flight_mark(g, &g->meeting, stream);
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

ferry_status fe_group_gather(ferry_group *g, const void *mine, void *all, size_t bytes) {
    meeting m = {.kind = MEET_GATHER, .mine = mine, .all = all, .bytes = bytes};
    return call_meeting(g, &m, NULL);
}

ferry_status ferry_broadcast(ferry_group *g, void *buffer, size_t bytes, int root, ferry_stream *stream) {
    FE_TRY(fe_group_check(g, "ferry_broadcast"));
    if (bytes && !buffer) return fe_fail(FERRY_INVALID, "ferry_broadcast: buffer is NULL");
    FE_TRY(fe_group_reaches(g, "ferry_broadcast", "root", root));
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
