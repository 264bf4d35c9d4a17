/* What has gone wrong in a group, on this rank: the first error is kept, with its sentence, and a group that has failed for good runs
 * nothing any more. Any thread. */
#ifndef FERRY_DEVICE_FAULT_H
#define FERRY_DEVICE_FAULT_H

#include "watch/watch.h"
#include <pthread.h>

typedef struct fe_fault {
    pthread_mutex_t lock; /* of status and sentence */
    ferry_status status;
    char sentence[FE_SENTENCE];
    _Atomic bool broken; /* a wait failed or ranks disagreed: no step will run any more */
} fe_fault;

void fe_fault_open(fe_fault *fault);
void fe_fault_close(fe_fault *fault);

/* Keeps `status` with ferry_last_error() of this thread, unless an earlier error is there. fatal: the group is broken. */
void fe_fault_note(fe_fault *fault, ferry_status status, bool fatal);
/* As if nothing had gone wrong. */
void fe_fault_clear(fe_fault *fault);
/* The first error, its sentence handed to this thread; FERRY_OK: none. */
ferry_status fe_fault_first(fe_fault *fault);
/* FERRY_OK, or FERRY_ABORTED with a sentence that says why `step` is not run. */
ferry_status fe_fault_check(fe_fault *fault, const fe_heap *heap, const char *step);

/* Is this an error after which ranks no longer agree on what comes next? */
static inline bool fe_fault_fatal(ferry_status status) {
    return status != FERRY_OK && status != FERRY_OVERFLOW && status != FERRY_INVALID && status != FERRY_UNSUPPORTED;
}

#endif
