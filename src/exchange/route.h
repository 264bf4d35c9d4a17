/* A route, inside, and what dispatch and combine share. */
#ifndef FERRY_EXCHANGE_ROUTE_H
#define FERRY_EXCHANGE_ROUTE_H

#include "exchange/tensor.h"
#include "group/group.h"
#include "route/tally.h"

struct ferry_route {
    ferry_group *group;
    ferry_route *next; /* in the group's list */
    fe_route_data data;
    ferry_route_info info;
    uint64_t
        id; /* the group's how-manieth: the same on every rank, and told in every note, so that ranks that confuse two routes learn of it */
    uint64_t era; /* in which it was made: an agreement ends it */
    bool dispatched;
    void *memory;                      /* the device's, of data's arrays */
    size_t memory_bytes, result_bytes; /* all of it; of what place finds out, at its beginning */
    /* The host's: what place found out, copied (THROUGHPUT), and what follows from it. */
    fe_route_data found;
    int32_t *expert_rows, *expert_start, *source_rows, *rank_rows;
    fe_tally tally;
    void *host_memory;
};

/* NULL, a wrong struct, a stream of another group, a failed group: what every call looks at first. */
ferry_status fe_route_check(const ferry_route *route, const ferry_stream *stream, const char *call);

/* The pieces FE_KIND_... of group/calls.h. */
uint64_t fe_route_kind(const ferry_route *route);

/* A piece of a note's payload that is the same on all ranks. unit: what its number counts. */
typedef struct fe_agreed {
    const char *name;
    int word, shift, bits, unit;
} fe_agreed;
/* FERRY_MISMATCH, which names the first piece that differs, and both numbers; FERRY_OK: none does. */
ferry_status fe_agreed_compare(const fe_agreed *agreed, size_t count, const char *step, int rank, const uint64_t *ours,
                               int other, const uint64_t *theirs);

/* Puts the pass on the stream (NULL: runs it). wait: does not return before it has run, with its status. */
ferry_status fe_route_submit(ferry_group *group, ferry_stream *stream, const fe_pass *pass, bool wait);

/* Several hosts: in how many parts a step whose rows travel as row_bytes each tells of them. The same on every rank. */
fe_part fe_route_parts(const ferry_route *route, size_t row_bytes);
/* A part of a step: of `pass`, which awaits a note for each, the one with this index. */
fe_pass fe_pass_of_part(const fe_pass *pass, int index);

/* May the half be used for the next step? */
ferry_status fe_flight_free(const fe_flight *flight, const char *what);

/* The oldest flight of this route; NULL: none is under way. */
fe_flight *fe_flight_of(fe_flight flights[2], const ferry_route *route);

#endif
