/* The moves of meetings and of the address space. */
#include "cpu/cpu.h"

static char *scratch_of(const fe_heap *heap, int rank, int half) {
    return fe_near(heap, rank, heap->scratch_at + (size_t)half * FE_SCRATCH);
}

/* For other hosts: into the mirror that this rank's column there keeps of its scratch, where the ranks of that host read it. */
ferry_status fe_cpu_publish(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    const fe_publish *p = &pass->publish;
    if (!p->bytes) return FERRY_OK;
    memcpy(scratch_of(heap, heap->rank, pass->half), p->from, p->bytes);
    for (int h = 0; crew->engine->far && h < heap->hosts.count; h++)
        if (h != heap->hosts.mine)
            FE_TRY(fe_far_push(crew->engine->far, h, FE_MEET, pass->half,
                               heap->scratch_at + (size_t)pass->half * FE_SCRATCH,
                               fe_room_mirror(heap, pass->half, heap->hosts.mine), p->bytes));
    return FERRY_OK;
}

/* Where this rank reads what `rank` published. */
static const char *published(const fe_heap *heap, int rank, int half) {
    if (fe_heap_near(heap, rank)) return scratch_of(heap, rank, half);
    return fe_near(heap, fe_hosts_gateway(&heap->hosts, rank), fe_room_mirror(heap, half, heap->hosts.host_of[rank]));
}

void fe_cpu_collect(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    const fe_collect *c = &pass->collect;
    for (int r = 0; c->bytes && r < heap->ranks; r++)
        if ((c->root < 0 || c->root == r) && !fe_heap_masked(heap, r))
            memcpy(c->to + (size_t)(c->root < 0 ? r : 0) * c->apart, published(heap, r, pass->half), c->bytes);
}

static _Atomic uint64_t *word_of(const fe_heap *heap, int rank, uint64_t at) {
    return fe_near(heap, rank, at);
}

ferry_status fe_cpu_transfer(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    const fe_transfer *t = &pass->transfer;
    if (fe_pass_crosses(heap, pass)) return fe_device_cross(crew->engine->far, pass);
    if (t->bytes) memmove(t->to, t->from, t->bytes);
    if (t->owner < 0) return FERRY_OK;
    /* Sequentially consistent: release for the data, and ordered before the look for sleepers in fe_watch_ring. memmove may have
     * written past the cache; glibc fences such stores itself. */
    if (t->op == FERRY_SIGNAL_SET)
        atomic_store(word_of(heap, t->owner, t->signal_at), t->value);
    else
        atomic_fetch_add(word_of(heap, t->owner, t->signal_at), t->value);
    fe_watch_ring(heap, t->owner);
    return FERRY_OK;
}

ferry_status fe_cpu_atomic(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    const fe_atomic *a = &pass->atomic;
    if (fe_pass_crosses(heap, pass)) return fe_device_cross(crew->engine->far, pass);
    uint64_t before = a->expected; /* on failure the exchange writes what it found */
    if (a->swap)
        atomic_compare_exchange_strong(word_of(heap, a->owner, a->at), &before, a->desired);
    else
        before = atomic_fetch_add(word_of(heap, a->owner, a->at), a->add);
    fe_watch_ring(heap, a->owner);
    *a->old = before;
    return FERRY_OK;
}

typedef struct awaited {
    const _Atomic uint64_t *word;
    const fe_until *until;
} awaited;

static bool word_ready(const void *what) {
    const awaited *a = what;
    uint64_t seen = atomic_load(a->word), value = a->until->value; /* acquires what was put before the signal */
    switch (a->until->compare) {
    case FERRY_EQ: return seen == value;
    case FERRY_NE: return seen != value;
    case FERRY_GT: return seen > value;
    case FERRY_GE: return seen >= value;
    case FERRY_LT: return seen < value;
    case FERRY_LE: return seen <= value;
    }
    return false;
}

ferry_status fe_cpu_until(const fe_crew *crew, const fe_pass *pass) {
    static const char *const signs[] = {"==", "!=", ">", ">=", "<", "<="};
    const fe_heap *heap = &crew->engine->heap;
    const fe_until *u = &pass->until;
    awaited a = {word_of(heap, heap->rank, u->at), u};
    fe_waited waited = fe_watch_wait(&crew->engine->watch, word_ready, &a, fe_now_ns() + u->timeout_ns);
    if (waited == FE_ARRIVED) return FERRY_OK;
    if (waited == FE_ABORTED) return fe_watch_ended(heap, " during wait_until");
    return fe_fail(FERRY_TIMEOUT, "rank %d waited %lld ms until a word was %s %llu: it is %llu", heap->rank,
                   (long long)(u->timeout_ns / 1000000), signs[u->compare], (unsigned long long)u->value,
                   (unsigned long long)atomic_load(a.word));
}
