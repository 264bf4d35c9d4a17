/* What each rank has called: collective calls are made by all ranks in the same order, and each rank keeps its last ones where the others
 * can look. A rank that is waited for in vain may have gone another way; then it is no timeout, and need not become one.
 *
 * Devices whose steps can be captured into graphs keep no log: a capture may be made more often on one rank than on another. */
#ifndef FERRY_WATCH_CALLS_H
#define FERRY_WATCH_CALLS_H

#include "watch/watch.h"

/* A call as one word, other than 0, that is the same on every rank; fe_watch.describe puts it in words. */
void fe_calls_note(const fe_heap *heap, uint64_t call);
/* The log begins anew: nobody waits for this rank. */
void fe_calls_forget(const fe_heap *heap);

/* FERRY_MISMATCH, when this rank and a near one, whose note is missing, have made different calls at the same place; the sentence names
 * the place and both. */
ferry_status fe_calls_compare(const fe_watch *watch, int rank, const char *step);

#endif
