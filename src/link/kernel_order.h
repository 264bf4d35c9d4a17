/* Orders of kernels for the proxy: a ring in the rank's post, which kernels fill and the proxy empties. Many writers, which take turns by a
 * counter in the GPU's memory, and one reader. The slot of position p says whose it is: its turn is twice the number of times that the ring
 * has gone round before, and it is p's writer's; one more, it is full. C and C++. */
#ifndef FERRY_LINK_KERNEL_ORDER_H
#define FERRY_LINK_KERNEL_ORDER_H

#include "base/pure.h"
#include "heap/cell.h"

#define FE_KERNEL_ORDERS 1024

typedef struct fe_kernel_order {
#ifdef __cplusplus
    uint32_t turn;
#else
    _Atomic uint32_t turn;
#endif
    int32_t host; /* -1: all others */
    int32_t kind, half;
    uint64_t
        bytes; /* not 0: to be written to the column, from `local` here to `remote` there, for the note of kind and half */
    uint64_t local, remote;
    uint64_t epoch; /* not 0: that note is to be said */
    uint64_t word[FE_CELL_WORDS];
    uint64_t relay_bytes; /* of what was written with it, from `local` on, that goes to each rank there */
} fe_kernel_order;

FE_PURE uint32_t fe_kernel_turn(uint64_t position) {
    return (uint32_t)(position / FE_KERNEL_ORDERS * 2);
}

#endif
