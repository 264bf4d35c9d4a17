/* ferry trace: groups that run on this machine, as their flight recorders tell. */
#ifndef FERRY_TOOL_TRACE_H
#define FERRY_TOOL_TRACE_H

#include "watch/hang.h"
#include <cjson/cJSON.h>

enum { FE_TRACE_WHY = 256 };

typedef struct fe_trace_group {
    uint64_t group;
    fe_snap *snap; /* [count] ascending by rank, all of this group and of one number of ranks */
    int count;
} fe_trace_group;

typedef struct fe_trace_groups {
    fe_trace_group *group;
    int count;
} fe_trace_groups;

/* Reads the heaps of all processes whose memory this user may map. target NULL: all groups; else those that a process with this number is
 * of, or whose number begins so. false: no memory. */
bool fe_trace_find(const char *target, fe_trace_groups *found);
void fe_trace_free(fe_trace_groups *found);

/* The one group as a timeline in Chrome's trace format, which Perfetto reads; and as what the page of --html draws. */
cJSON *fe_trace_perfetto(const fe_trace_group *group);
cJSON *fe_trace_data(const fe_trace_group *group);
/* The page, with its data. false: why has a sentence. */
bool fe_trace_html(const fe_trace_group *group, const char *path, char *why);

#endif
