/* Who waits for whom: a table of the ranks of a group, from what their recorders say. */
#ifndef FERRY_WATCH_HANG_H
#define FERRY_WATCH_HANG_H

#include "watch/snap.h"
#include "watch/watch.h"
#include <stdio.h>

/* snap[count]: ranks of one group, ascending; those that are missing live elsewhere, or no more. */
void fe_hang_print(FILE *to, const fe_snap *snap, int count);

/* The table of all near ranks, written by one of them to DIRECTORY/ferry-GROUP-RANK-PID.txt, which must not be there yet. */
void fe_hang_dump(const fe_heap *heap, const char *directory);

#endif
