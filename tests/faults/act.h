/* What the victim of a plan does, and when. */
#ifndef FERRY_TESTS_FAULTS_ACT_H
#define FERRY_TESTS_FAULTS_ACT_H

#include "faults/plan.h"
#include "ranks/exchange.h"
#include <pthread.h>

struct middle;

typedef struct act {
    const plan *plan;
    rank_env *env;
    int step; /* that the rank is in */
    int seen; /* calls of the plan's name in this step */
    bool begun;
    int64_t struck_ms;
    pthread_t lurker; /* waits for the plan's note */
    bool lurks;
    _Atomic bool over;
    bool retried; /* a call that failed for want of memory was made again */
    struct middle *middle;
    ferry_status refused; /* of the first attempt at it */
} act;

/* The victim's exchange_before_fn; hand is its act. */
bool act_before(exchange *x, const char *call, ferry_status *status);
/* Whatever holds for the process as a whole is undone. */
void act_end(act *a);

/* Words of the run that all ranks share: whether the fault came to pass, and what the harness itself needs. */
enum { WORD_MET = 0, WORD_ID = 32, WORD_ACTED = 100, WORD_TOLD = 101 };

/* From `differ.c`: makes a call differ from the others'. false: it cannot. */
bool act_differ(exchange *x, const char *detail, bool group, bool route, bool dispatch);

/* A connection to the meeting place that goes through us (middle.c): *id is made to name us. amount: the byte that is changed, or (cut)
 * the last that is let through, of what goes up to the meeting place, or down from it. */
struct middle *middle_open(ferry_unique_id *id, bool up, int64_t amount, bool cut);
void middle_close(struct middle *m);

/* Of this process's connections to other hosts (sever.c): shut down, or deaf. How many. */
int sever_all(bool deaf);
/* In a mount namespace of this process's own, /dev/shm is a full one. false: it may not. */
bool fill_shm(void);

#endif
