/* A plan of what goes wrong in a run: read from JSON, or drawn from a seed; and what must come of it. */
#ifndef FERRY_TESTS_FAULTS_PLAN_H
#define FERRY_TESTS_FAULTS_PLAN_H

#include "ranks/case.h"

/* X(name, what the victim does, who is lost by it). Faults that wait `amount` ms do so in the middle of things. */
typedef enum fate { NOBODY, VICTIM_DEAD, VICTIM_LATE } fate;
#define FAULTS(X)                                                                                                 \
    X(none, NOBODY)                                                                                               \
    X(kill, VICTIM_DEAD)   /* kill -9 of its process */                                                           \
    X(stop, VICTIM_DEAD)   /* SIGSTOP, for good */                                                                \
    X(pause, NOBODY)       /* SIGSTOP, and SIGCONT after `amount` ms, well before the deadline */                 \
    X(delay, VICTIM_LATE)  /* the same, long after the deadline */                                                \
    X(stuck, VICTIM_LATE)  /* its own code, on its stream where it has one, takes `amount` ms */                  \
    X(leave, VICTIM_LATE)  /* destroys the group in the middle of a step */                                       \
    X(abort, NOBODY)       /* ferry_group_abort */                                                                \
    X(wrong, NOBODY)       /* another call, `detail`, in the place of the right one; "nothing" leaves it out */   \
    X(differ, NOBODY)      /* the right call with another `detail` than the others */                             \
    X(memory, NOBODY)      /* no address space left for the call (RLIMIT_AS); a route is tried again with some */ \
    X(file_size, NOBODY)   /* no file, and so no heap, may grow (RLIMIT_FSIZE) */                                 \
    X(descriptors, NOBODY) /* no more descriptors (RLIMIT_NOFILE) */                                              \
    X(full_shm, NOBODY)    /* /dev/shm is full: nothing of Ferry's is to notice */                                \
    X(flip, NOBODY) /* byte `amount` of what it says to (`detail`: up) or hears from (down) the meeting place */  \
    X(cut, NOBODY)  /* the connection to the meeting place ends there */                                          \
    X(shut, NOBODY) /* its connections to other hosts are shut down */                                            \
    X(hole, NOBODY) /* nothing of what other hosts send arrives any more */

typedef enum fault {
#define FAULT_NUMBER(name, who) FAULT_##name,
    FAULTS(FAULT_NUMBER)
#undef FAULT_NUMBER
        FAULT_KINDS
} fault;

#define PLAN_STEPS 3

typedef struct plan {
    char name[64];
    int64_t seed;     /* -1: not drawn */
    int ranks, hosts; /* in processes; pretend hosts */
    int steps;        /* each a route, its dispatches and combines */
    int deadline_ms;  /* the group's timeout */
    int victim, step; /* who, and in which step, from 0 */
    fault fault;
    char call[32]; /* before which call of the step: "route_create", "dispatch_send", ... */
    int nth;       /* the how-manieth of that name */
    char note[16]; /* instead: once the victim has said this note (READY, ROWS, ...) to the first rank that it tells */
    int64_t after_us; /* later by this */
    char detail[32];
    int64_t amount;
    xcase c; /* what the steps carry */
    char status
        [64]; /* that the others must get: "TIMEOUT", "TIMEOUT|SYSTEM"; "OK": nothing fails; "": what the fault gives */
    char says[64]; /* that their sentences must have */
} plan;

/* false: why says what is wrong with it. */
bool plan_read(const char *json, plan *p, char *why, size_t size);
/* Its inverse; free() it. */
char *plan_print(const plan *p);
plan plan_draw(uint64_t seed);

/* The environment that cases are made in: FERRY_HOSTS. */
void plan_environment(int hosts);
/* A wrong call that the others need not notice: nobody waits for a rank's receipt of a dispatch. */
bool plan_keeps_to_itself(const plan *p);
/* Do the others go on in the same group, by an agreement? Else in a new one. */
bool plan_agrees(const plan *p);
const char *plan_fault_name(fault f);
fate plan_lost(const plan *p);

/* What a rank that is not the victim may get. */
typedef struct verdict {
    bool may_pass, may_fail;
    unsigned statuses; /* bit s: ferry_status s is one that it may fail with */
    bool named;        /* the sentence must name the victim ... */
    bool alone;        /* ... and nobody else but the speaker */
} verdict;
verdict plan_verdict(const plan *p);

#endif
