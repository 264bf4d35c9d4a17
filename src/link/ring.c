#include "link/ring.h"

#include <stdlib.h>

bool fe_ring_open(fe_ring *ring, uint32_t slots) {
    *ring = (fe_ring){.slot = calloc(slots, sizeof *ring->slot), .mask = slots - 1};
    for (uint32_t i = 0; ring->slot && i < slots; i++) atomic_init(&ring->slot[i].turn, i);
    return ring->slot != NULL;
}

void fe_ring_close(fe_ring *ring) {
    free(ring->slot);
    ring->slot = NULL;
}

bool fe_ring_put(fe_ring *ring, const fe_order *order) {
    uint32_t at = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    for (;;) {
        fe_ring_slot *slot = &ring->slot[at & ring->mask];
        /* Acquire: the reader has taken out what was here. */
        int32_t ahead = (int32_t)(atomic_load_explicit(&slot->turn, memory_order_acquire) - at);
        if (ahead < 0) return false;
        if (ahead > 0) {
            at = atomic_load_explicit(&ring->tail, memory_order_relaxed);
            continue;
        }
        if (!atomic_compare_exchange_weak_explicit(&ring->tail, &at, at + 1, memory_order_relaxed,
                                                   memory_order_relaxed))
            continue;
        slot->order = *order;
        /* Release: the order, and the rows it speaks of. Sequentially consistent for the look at the sleeping proxy that follows. */
        atomic_store(&slot->turn, at + 1);
        return true;
    }
}

bool fe_ring_take(fe_ring *ring, fe_order *order) {
    fe_ring_slot *slot = &ring->slot[ring->head & ring->mask];
    if (atomic_load(&slot->turn) != ring->head + 1) return false;
    *order = slot->order;
    atomic_store_explicit(&slot->turn, ring->head + ring->mask + 1, memory_order_release);
    ring->head++;
    return true;
}
