/* How bytes reach a near rank: its space is mapped here, so a store is a put, and a cell is written in place. */
#ifndef FERRY_LINK_NEAR_H
#define FERRY_LINK_NEAR_H

#include "watch/watch.h"

static inline void *fe_near(const fe_heap *heap, int rank, uint64_t offset) {
    return heap->space[rank] + offset;
}
/* What notes, and what else the network carries but for rows, are in: host memory, wherever the space is. On the CPU rows as well. */
static inline void *fe_post(const fe_heap *heap, int rank, uint64_t offset) {
    return heap->post[rank] + offset;
}

/* Announces `epoch`, with its payload, in `source`'s cell at `owner`, and wakes the owner if it sleeps. Everything that this thread
 * stored before (and fenced, if by non-temporal stores) is visible to whoever acquires the epoch. */
static inline void fe_link_signal_for(const fe_heap *heap, int source, int owner, fe_kind kind, int half,
                                      const uint64_t *word, uint64_t epoch) {
    fe_cell *cell = fe_heap_cell(heap, owner, kind, half, source);
    memcpy(cell->word, word, sizeof cell->word);
    /* Sequentially consistent: release for the payload, and ordered before fe_watch_ring's look for sleepers. */
    atomic_store(&cell->epoch, epoch);
    fe_watch_ring(heap, owner);
}

static inline void fe_link_signal(const fe_heap *heap, int owner, fe_kind kind, int half, const uint64_t *word,
                                  uint64_t epoch) {
    fe_link_signal_for(heap, heap->rank, owner, kind, half, word, epoch);
}

/* The payload that `source` left in this rank's cell; after fe_watch_cells has seen its epoch. */
static inline const uint64_t *fe_link_words(const fe_heap *heap, fe_kind kind, int half, int source) {
    return fe_heap_cell(heap, heap->rank, kind, half, source)->word;
}

/* All of this thread's stores so far, non-temporal ones included, before all later ones. */
static inline void fe_link_fence(void) {
#if defined(__x86_64__)
    __builtin_ia32_mfence();
#elif defined(__aarch64__)
    __asm__ volatile("dmb ish" ::: "memory");
#else
    __sync_synchronize();
#endif
}

#endif
