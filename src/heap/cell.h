/* The cells by which ranks tell each other how far they are. */
#ifndef FERRY_HEAP_CELL_H
#define FERRY_HEAP_CELL_H

#include "heap/hosts.h"

#include <stdint.h>

#define FE_PARTS 3 /* the most in which a step tells of what crosses to another host: each has a note of its own */

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
    FE_LANDED,  /* my tokens for your host are in your memory: hand them on; + 1: those of the second part, and so on */
    FE_RETURNED = FE_LANDED + FE_PARTS, /* the sums of your tokens on my host are in your memory; likewise */
    FE_KINDS = FE_RETURNED + FE_PARTS
} fe_kind;

/* Who hears a note, where ranks are on several hosts. */
typedef enum fe_reach {
    FE_REACH_ALL, /* everybody: near ranks from the sayer, a far host's from the sayer's column there, which relays it */
    FE_REACH_NEAR,   /* the sayer's host */
    FE_REACH_COLUMN, /* the sayer's column, itself left out */
} fe_reach;

FE_PURE fe_reach fe_reach_of(fe_kind kind) {
    if (kind >= FE_LANDED) return FE_REACH_COLUMN;
    switch (kind) {
    case FE_ROWS:
    case FE_PULLED:
    case FE_KERNEL: return FE_REACH_NEAR;
    default: return FE_REACH_ALL;
    }
}

/* Does a note of this kind from `source` come to this rank? With one host all do. */
FE_PURE bool fe_hosts_hear(const fe_hosts *hosts, fe_kind kind, int source) {
    if (hosts->count == 1) return true;
    bool near = fe_hosts_near(hosts, source), column = hosts->index_of[source] == hosts->index;
    switch (fe_reach_of(kind)) {
    case FE_REACH_ALL: return true;
    case FE_REACH_NEAR:
        return near || kind == FE_ROWS; /* a far rank's is said here by the gateway that fans out for it */
    case FE_REACH_COLUMN: return !near && column;
    }
    return true;
}

/* May the payload of a note be read, or has its sayer perhaps said the next one by then? An offer is kept until near ranks have pulled
 * and the column has returned its sums; other far ranks have no say in it (docs/protocol.md, "Several hosts"). */
FE_PURE bool fe_hosts_read(const fe_hosts *hosts, fe_kind kind, int source) {
    if (hosts->count == 1 || kind != FE_OFFER) return true;
    return fe_hosts_near(hosts, source) || hosts->index_of[source] == hosts->index;
}

/* What another host may ask for, of a rank's space. */
typedef enum fe_errand {
    FE_ADD = 1, /* of a word */
    FE_SWAP,
    FE_SET,
    FE_FLUSH, /* of nothing */
    FE_STOW,  /* of a range: bytes that came before, to their place */
    FE_FETCH  /* of a range: its bytes, to where they can be read */
} fe_errand;

/* Nobody says LANDED to itself: there the others write into a rank's cells that they go on without it, for its kernels, which look at its
 * control block only while they wait. Not 0: they do. */
FE_PURE int fe_outside_cell(int ranks, int rank) {
    return (int)FE_LANDED * 2 * ranks + rank;
}

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
