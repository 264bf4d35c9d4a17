/* Counters: what a rank has moved, waited for and left out, added up. */
#ifndef FERRY_GROUP_COUNTERS_H
#define FERRY_GROUP_COUNTERS_H

#include "group/group.h"
#include "route/tally.h"

ferry_status fe_counters_open(ferry_group *group);
void fe_counters_close(ferry_group *group);

/* The tally of a route, from when it is made to when nothing runs on it any more. */
void fe_counters_join(ferry_group *group, fe_tally *tally);
void fe_counters_leave(ferry_group *group, fe_tally *tally);

/* The map of experts changes: what was counted for each is of no use any more. Before it does. */
void fe_counters_move(ferry_group *group);

/* An era is over, and steps will be numbered from 0 again. */
void fe_counters_keep(ferry_group *group);

/* Writes the file of FERRY_METRICS_FILE, where there is one to write. */
void fe_counters_report(ferry_group *group);

#endif
