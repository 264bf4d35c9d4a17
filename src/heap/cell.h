/* The cells by which ranks tell each other how far they are. */
#ifndef FERRY_HEAP_CELL_H
#define FERRY_HEAP_CELL_H

#include <stdint.h>

/* What a cell announces. One writer, one reader, and a value that only grows; see docs/protocol.md. */
typedef enum fe_kind {
    FE_COUNTS,  /* my row of counts is in your memory */
    FE_COUNTED, /* I have read your row of counts */
    FE_READY,   /* you may write my receive buffer, at these offsets */
    FE_ROWS,    /* my rows are in your receive buffer */
    FE_OFFER,   /* my experts' outputs are at this offset of my heap */
    FE_PULLED,  /* I have read what I need of your outputs */
    FE_MEET,    /* barrier, all-gather, broadcast, symmetric allocation */
    FE_KERNEL,  /* the barrier of kernels of the caller's (ferry/device.cuh) */
    FE_KINDS
} fe_kind;

#define FE_CELL_WORDS 7

/* Payload first, then a release store of epoch; whoever acquires the epoch sees the payload. Kernels, which are C++, have their own
 * words for the epoch's order. */
typedef struct fe_cell {
#ifdef __cplusplus
    uint64_t epoch;
#else
    _Atomic uint64_t epoch;
#endif
    uint64_t word[FE_CELL_WORDS];
} fe_cell;

#endif
