/* What one step of a route moves, by rank and by expert: what counters add up (group/counters.c). Host memory. */
#ifndef FERRY_ROUTE_TALLY_H
#define FERRY_ROUTE_TALLY_H

#include "route/route.h"
#include <stdatomic.h>

typedef struct fe_tally {
    struct fe_tally *next;   /* of the group's routes */
    int64_t *sent, *dropped; /* [ranks] rows of this rank's tokens: to each, and left out */
    int64_t *received;       /* [ranks] rows from each */
    int64_t *
        experts; /* [local experts] rows of each; by the RANK layout tokens that chose it, where counts are exchanged */
    bool placed, heard; /* sent and dropped are known; so are received and experts */
    /* Dispatches of the route whose rows have arrived. The first one knows received and experts before; release, so whoever acquires
     * more than 0 sees them. One writer at a time: receives of a route keep their order. */
    _Atomic uint64_t arrived;
} fe_tally;

/* Words that the arrays need. */
static inline size_t fe_tally_words(int ranks, int local) {
    return 3 * (size_t)ranks + (size_t)local;
}
void fe_tally_lay_out(fe_tally *tally, int64_t *words, int ranks);

/* keep: of fe_scratch. counts: this rank's row, or NULL: what was dropped is not known. */
void fe_tally_place(fe_tally *tally, const fe_shape *shape, const int32_t *keep, const int32_t *counts);
/* demand: of fe_route_data; read only where counts are exchanged. */
void fe_tally_arrive(fe_tally *tally, const fe_shape *shape, const fe_blocks *blocks, const int32_t *demand);

#endif
