/* Orders for the proxy: a bounded queue with many writers (workers, callers) and one reader. A slot's turn says whose it is: equal to the
 * position, it is free for the writer of that position; one more, it is full (D. Vyukov's bounded queue). */
#ifndef FERRY_LINK_RING_H
#define FERRY_LINK_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fe_order {
    int peer;
    bool read;              /* get; else write */
    uint32_t immediate;     /* 0: none */
    uint64_t local, remote; /* offsets in the two spaces */
    size_t bytes;
    _Atomic uint32_t
        *done; /* becomes `then` when it is complete, `then` + FE_FAILED when it failed; NULL: nobody asks */
    uint32_t then;
} fe_order;

#define FE_FAILED 0x100u

typedef struct fe_ring_slot {
    _Atomic uint32_t turn;
    fe_order order;
} fe_ring_slot;

typedef struct fe_ring {
    fe_ring_slot *slot;
    uint32_t mask;
    _Alignas(64) _Atomic uint32_t tail; /* writers */
    _Alignas(64) uint32_t head;         /* the reader */
} fe_ring;

/* slots: a power of two. false: no memory. */
bool fe_ring_open(fe_ring *ring, uint32_t slots);
void fe_ring_close(fe_ring *ring);
bool fe_ring_put(fe_ring *ring, const fe_order *order); /* false: full. Any thread */
bool fe_ring_take(fe_ring *ring, fe_order *order);      /* false: empty. One thread */

#endif
