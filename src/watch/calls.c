#include "watch/calls.h"

void fe_calls_note(const fe_heap *heap, uint64_t call) {
    fe_control *mine = fe_heap_control(heap, heap->rank);
    uint64_t number = atomic_load_explicit(&mine->calls, memory_order_relaxed); /* ours alone to write */
    atomic_store_explicit(&mine->call[number % FE_CALLS], call, memory_order_relaxed);
    atomic_store_explicit(&mine->calls, number + 1, memory_order_release); /* after its word */
}

void fe_calls_forget(const fe_heap *heap) {
    atomic_store_explicit(&fe_heap_control(heap, heap->rank)->calls, 0, memory_order_release);
}

/* Call `number` of a rank that has made `calls`; 0: it is not kept any more, or was just written over. */
static uint64_t call_of(const fe_control *control, uint64_t number) {
    uint64_t call = atomic_load_explicit(&control->call[number % FE_CALLS], memory_order_acquire);
    return atomic_load_explicit(&control->calls, memory_order_relaxed) - number < FE_CALLS ? call : 0;
}

ferry_status fe_calls_compare(const fe_watch *watch, int rank, const char *step) {
    const fe_heap *heap = watch->heap;
    if (!watch->describe || !fe_heap_near(heap, rank)) return FERRY_OK;
    const fe_control *mine = fe_heap_control(heap, heap->rank), *its = fe_heap_control(heap, rank);
    uint64_t ours = atomic_load_explicit(&mine->calls, memory_order_acquire),
             theirs = atomic_load_explicit(&its->calls, memory_order_acquire), both = ours < theirs ? ours : theirs;
    uint64_t from = both > FE_CALLS ? both - FE_CALLS : 0;
    for (uint64_t n = from; n < both; n++) {
        uint64_t here = call_of(mine, n), there = call_of(its, n);
        if (!here || !there || here == there) continue;
        char mine_text[FE_SENTENCE / 4], its_text[FE_SENTENCE / 4];
        watch->describe(here, mine_text, sizeof mine_text);
        watch->describe(there, its_text, sizeof its_text);
        atomic_store(&fe_heap_control(heap, heap->rank)->failed, 1);
        return fe_fail(FERRY_MISMATCH, "%s: call %llu of the group is %s on rank %d, %s on rank %d", step,
                       (unsigned long long)n + 1, mine_text, heap->rank, its_text, rank);
    }
    return FERRY_OK;
}
