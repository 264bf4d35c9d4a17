/* How ranks that can map each other's memory agree on who goes on (docs/protocol.md, "Agreement"). Each comes, by its own control block;
 * when all have come that can, one of them says who is of the next era, and compare-and-swap sees to it that one is heard. A rank may die
 * at any step: what it has said lies in memory that outlives it. */
#ifndef FERRY_WATCH_COUNCIL_H
#define FERRY_WATCH_COUNCIL_H

#include "watch/watch.h"

typedef struct fe_verdict {
    uint64_t era;
    uint64_t member[FE_MASK_WORDS];
    fe_story story; /* that the user's heap has on whoever is furthest */
} fe_verdict;

static inline bool fe_bit(const uint64_t *words, int rank) {
    return words[rank / 64] >> rank % 64 & 1;
}

/* Comes, and waits for the verdict. This rank's streams are empty. wish: [ranks] 1: mask it, -1: take it back, 0: neither. hurt: this rank
 * cannot go on as things are, so the others are called at once; else they are given half of the time to come by themselves.
 * FERRY_REFUSED: this rank is not of the new era; FERRY_TIMEOUT: it was not before, and no agreement was held; FERRY_ABORTED. */
ferry_status fe_council_hold(const fe_watch *watch, const int8_t *wish, bool hurt, fe_verdict *verdict);
/* Nothing of the last era is left on this rank, whose map of experts has this hash. Waits until the others say the same. FERRY_TIMEOUT: one does
 * not; FERRY_ABORTED: one asks for the next agreement; FERRY_MISMATCH: all do, and one has another map. */
ferry_status fe_council_settle(const fe_watch *watch, const fe_verdict *verdict, uint64_t map);
/* What was agreed upon elsewhere (group/regroup.c), for those who will look here. */
void fe_council_record(const fe_heap *heap, const fe_verdict *verdict);
/* This rank is at no agreement, after all. */
void fe_council_withdraw(const fe_heap *heap);

#endif
