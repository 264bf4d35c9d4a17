/* Collective calls, as the ranks tell each other which they make (watch/calls.h). */
#ifndef FERRY_GROUP_CALLS_H
#define FERRY_GROUP_CALLS_H

#include "group/group.h"

typedef enum fe_call {
    FE_CALL_ROUTE = 1, /* about: the route's kind (exchange/route.h) */
    FE_CALL_DISPATCH,  /* about: the route's number; its first half, or the whole */
    FE_CALL_COMBINE,   /* the same */
    FE_CALL_MEETING    /* about: what kind of meeting */
} fe_call;

/* The call is about to be made: from here on the others count on it. */
void fe_group_calls(const ferry_group *group, fe_call call, uint64_t about);

/* fe_watch.describe. */
void fe_call_describe(uint64_t call, char *text, size_t size);

#endif
