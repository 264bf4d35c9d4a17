/* Collective calls, as the ranks tell each other which they make (watch/calls.h). */
#ifndef FERRY_GROUP_CALLS_H
#define FERRY_GROUP_CALLS_H

#include "group/group.h"

/* A route's kind, which is what ranks must have in common of it before a row is sent, in one word: where each piece begins. Layout has 3
 * bits, topk 7, every other one. */
enum {
    FE_KIND_LAYOUT,
    FE_KIND_MODE = 3,
    FE_KIND_OVERFLOW,
    FE_KIND_PACKED,
    FE_KIND_WEIGHTS, /* are there topk_weights? */
    FE_KIND_TOPK,
    FE_KIND_COUNTS = 14, /* are counts exchanged? */
    FE_KIND_RENORMALISE,
    FE_KIND_ORDER
};

typedef enum fe_call {
    FE_CALL_ROUTE = 1, /* about: the route's kind (fe_route_kind) */
    FE_CALL_DISPATCH,  /* about: the route's number; its first half, or the whole */
    FE_CALL_COMBINE,   /* the same */
    FE_CALL_MEETING    /* about: what kind of meeting */
} fe_call;

/* The call is about to be made: from here on the others count on it. */
void fe_group_calls(const ferry_group *group, fe_call call, uint64_t about);

/* fe_watch.describe. */
void fe_call_describe(uint64_t call, char *text, size_t size);

#endif
