/* A group, inside. */
#ifndef FERRY_GROUP_GROUP_H
#define FERRY_GROUP_GROUP_H

#include "device/record.h"
#include "group/body.h"
#include "watch/council.h"

/* One of the two steps that may be in flight: where its second half's work is kept until it is asked for. */
typedef struct fe_flight {
    ferry_route *route; /* NULL: nothing is in flight here */
    uint64_t epoch;
    fe_pass before;             /* several hosts: what the second half does for the column first */
    fe_pass pass;               /* of the second half */
    const ferry_route *counted; /* the route whose counts this half's receive wrote last; only compared */
    bool orphan;           /* its route was destroyed before the second half: this half of the buffers stays closed */
    const void *out;       /* what the first half was given to fill */
    ferry_stream *done_on; /* the stream that ran a half last, if it was on one ... */
    ferry_event *done;     /* ... and its end, so that another stream's next half waits for it */
} fe_flight;

struct ferry_group {
    fe_engine engine;
    int rank, ranks;
    ferry_group_config config; /* expert_first and expert_rank are not kept: map has them */
    fe_map map;
    fe_body body;
    struct {
        int homes, most_local;
    } room; /* that a map may need: the group's memory is laid out for it */
    uint64_t meets, routes,
        exchanges; /* steps so far of that kind; equal on all ranks. exchanges: routes that exchange counts */
    uint64_t dispatches, combines;
    fe_flight dispatch[2], combine[2]; /* by half */
    fe_flight meeting, exchange;       /* the last: on different streams too they keep the order of their calls */
    ferry_route *made;                 /* list of routes */
    struct fe_counted *counted;        /* counters.c's */
    int64_t stream_bytes;
    int8_t wish[FERRY_MAX_RANKS]; /* for the next agreement: 1: mask it, -1: take it back */
};

/* FERRY_INVALID for NULL. */
ferry_status fe_group_check(const ferry_group *group, const char *call);
/* The rank is one of the group's that steps reach; FERRY_INVALID names it otherwise. */
ferry_status fe_group_reaches(const ferry_group *group, const char *call, const char *what, int rank);
/* The step may go on: the group is not aborted and has not failed. */
ferry_status fe_group_ready(ferry_group *group, const char *step);
/* The stream is NULL or this group's. */
ferry_status fe_group_own(const ferry_group *group, const ferry_stream *stream, const char *call);

/* What went wrong beside the calls, into the group's fault. */
void fe_group_look(ferry_group *group);

/* "barrier", "allgather" and so on: the meetings of meet.c by their numbers. */
const char *fe_meeting_name(uint64_t kind);

/* Making, and meeting again. prepare: everything that can be found wrong without the others. plan_heap: what the heap is made by, once hosts and
 * body are known. settle_in: what needs nobody else, once the heap is there. last_word: [collective over boot] whether all are well; this rank's own failure is returned with its sentence. */
ferry_status fe_group_prepare(const ferry_group_config *cfg, int rank, int ranks, ferry_group **group);
void fe_group_plan_heap(ferry_group *group);
ferry_status fe_group_settle_in(ferry_group *group);
ferry_status fe_group_last_word(fe_boot *boot, ferry_status status);
/* No pass of this rank is under way afterwards. One that cannot go on, of which it tells, gives up what it waits for. */
bool fe_group_rest(ferry_group *group);
/* Begins the verdict's era. */
ferry_status fe_group_adopt(ferry_group *group, const fe_verdict *verdict);
/* The others go on without this rank. */
void fe_group_exclude(ferry_group *group);
/* The agreement of several hosts, at the id's hub. */
ferry_status fe_group_agree_at(ferry_group *group, const ferry_unique_id *id);
/* This map from the next era on. *map gets the one that there was. */
void fe_group_take_map(ferry_group *group, fe_map *map);
/* All-gather of the ranks that are not masked, in this thread. */
ferry_status fe_group_gather(ferry_group *group, const void *mine, void *all, size_t bytes);

/* Keeps order between streams: what `flight` last did on another stream is over before `stream` (or, NULL, this thread) goes on. */
ferry_status fe_flight_await(ferry_group *group, fe_flight *flight, ferry_stream *stream);
/* Notes that a half of the flight has been put on the stream. */
ferry_status fe_flight_mark(ferry_group *group, fe_flight *flight, ferry_stream *stream);

#endif
