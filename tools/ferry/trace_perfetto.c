/* A group's steps as a timeline: a process for each rank, a thread for each lane, a slice for each step and, in it, one for each part.
 * ("Trace Event Format", Google; Perfetto and chrome://tracing read it.) Times are microseconds. */
#include "trace.h"

#include <stdlib.h>

/* Nothing before it: times of the file begin here. */
static int64_t origin_of(const fe_trace_group *g) {
    int64_t first = INT64_MAX;
    for (int i = 0; i < g->count; i++)
        for (int s = 0; s < g->snap[i].steps; s++)
            if (g->snap[i].step[s].at[FE_STEP_START] && g->snap[i].step[s].at[FE_STEP_START] < first)
                first = g->snap[i].step[s].at[FE_STEP_START];
    return first == INT64_MAX ? 0 : first;
}

static cJSON *event(cJSON *list, const char *phase, const char *name, int rank, int lane) {
    cJSON *e = cJSON_CreateObject();
    cJSON_AddStringToObject(e, "ph", phase);
    cJSON_AddStringToObject(e, "name", name);
    cJSON_AddNumberToObject(e, "pid", rank);
    cJSON_AddNumberToObject(e, "tid", lane);
    cJSON_AddItemToArray(list, e);
    return e;
}

static void name_it(cJSON *list, const char *what, int rank, int lane, const char *name) {
    cJSON_AddStringToObject(cJSON_AddObjectToObject(event(list, "M", what, rank, lane), "args"), "name", name);
}

static cJSON *slice(cJSON *list, const char *name, const char *kind, int rank, int lane, int64_t from, int64_t to) {
    cJSON *e = event(list, "X", name, rank, lane);
    cJSON_AddStringToObject(e, "cat", kind);
    cJSON_AddNumberToObject(e, "ts", (double)from / 1e3);
    cJSON_AddNumberToObject(e, "dur", (double)(to > from ? to - from : 0) / 1e3);
    return e;
}

static int64_t end_of(const fe_snap *snap, const fe_snap_step *s) {
    return s->at[FE_STEP_END] ? s->at[FE_STEP_END] : s->live ? snap->taken_ns : s->at[FE_STEP_START];
}

static void add_args(cJSON *e, const fe_snap_step *s) {
    cJSON *args = cJSON_AddObjectToObject(e, "args");
    cJSON_AddNumberToObject(args, "number", (double)s->number);
    if (s->route) cJSON_AddNumberToObject(args, "route", (double)s->route);
    if (s->bytes) cJSON_AddNumberToObject(args, "bytes", (double)s->bytes);
    if (s->live) cJSON_AddBoolToObject(args, "goes_on", true);
    if (s->status) cJSON_AddStringToObject(args, "status", ferry_status_name((ferry_status)s->status));
    if (s->late_rank < 0) return;
    cJSON_AddNumberToObject(args, "waited_for_rank", s->late_rank);
    cJSON_AddNumberToObject(args, "waited_us", (double)s->late_ns / 1e3);
}

/* The parts: waits before the move and after it, and what is between. */
static void add_parts(cJSON *list, const fe_snap *snap, const fe_snap_step *s, int64_t origin) {
    int64_t start = s->at[FE_STEP_START] - origin, end = end_of(snap, s) - origin, from = start;
    char name[32];
    if (s->kind[0] >= 0) {
        int64_t heard = s->at[FE_STEP_HEARD] ? s->at[FE_STEP_HEARD] - origin : end;
        snprintf(name, sizeof name, "wait for %s", fe_kind_name(s->kind[0]));
        slice(list, name, "wait", snap->rank, s->lane, start, heard);
        from = heard;
    }
    if (s->kind[0] >= 0 && !s->at[FE_STEP_HEARD]) return;
    int64_t moved = s->at[FE_STEP_MOVED] ? s->at[FE_STEP_MOVED] - origin : end;
    slice(list, "move", "move", snap->rank, s->lane, from, moved);
    if (!s->at[FE_STEP_MOVED]) return;
    snprintf(name, sizeof name, "wait for %s", fe_kind_name(s->kind[1]));
    slice(list, name, "wait", snap->rank, s->lane, moved, end);
}

static bool same(const fe_snap_step *a, const fe_snap_step *b) {
    return strcmp(a->text, b->text) == 0 && a->kind[0] == b->kind[0] && a->kind[1] == b->kind[1];
}

static const fe_snap_step *same_step(const fe_trace_group *g, int rank, const fe_snap_step *step) {
    for (int i = 0; i < g->count; i++)
        for (int s = 0; g->snap[i].rank == rank && s < g->snap[i].steps; s++)
            if (same(&g->snap[i].step[s], step)) return &g->snap[i].step[s];
    return NULL;
}

/* An arrow from the rank that was waited for longest, where its own part of the step had moved, to the end of the wait. */
static void add_arrow(cJSON *list, const fe_trace_group *g, const fe_snap *snap, const fe_snap_step *s, int64_t origin,
                      int number) {
    const fe_snap_step *from = s->late_rank >= 0 ? same_step(g, s->late_rank, s) : NULL;
    if (!from || !from->at[FE_STEP_START]) return;
    int64_t said = from->at[FE_STEP_MOVED] ? from->at[FE_STEP_MOVED] : from->at[FE_STEP_START];
    int64_t heard = s->at[FE_STEP_MOVED] && s->at[FE_STEP_END] ? s->at[FE_STEP_END] : s->at[FE_STEP_HEARD];
    if (!heard || heard < said) return;
    cJSON *a = event(list, "s", "waited for", s->late_rank, from->lane),
          *b = event(list, "f", "waited for", snap->rank, s->lane);
    cJSON_AddStringToObject(a, "cat", "late");
    cJSON_AddStringToObject(b, "cat", "late");
    cJSON_AddStringToObject(b, "bp", "e");
    cJSON_AddNumberToObject(a, "ts", (double)(said - origin) / 1e3);
    cJSON_AddNumberToObject(b, "ts", (double)(heard - origin) / 1e3);
    cJSON_AddNumberToObject(a, "id", number);
    cJSON_AddNumberToObject(b, "id", number);
}

static void add_rank(cJSON *list, const fe_trace_group *g, const fe_snap *snap, int64_t origin, int *arrows) {
    char name[48], kind[FE_STEP_TEXT + 1];
    int lanes = 0;
    snprintf(name, sizeof name, "rank %d (process %d)", snap->rank, snap->pid);
    name_it(list, "process_name", snap->rank, 0, name);
    for (int i = 0; i < snap->steps; i++) {
        const fe_snap_step *s = &snap->step[i];
        if (!s->at[FE_STEP_START]) continue;
        if (s->lane >= lanes) lanes = s->lane + 1;
        snprintf(kind, sizeof kind, "%.*s", (int)strcspn(s->text, " "), s->text);
        add_args(
            slice(list, s->text, kind, snap->rank, s->lane, s->at[FE_STEP_START] - origin, end_of(snap, s) - origin),
            s);
        add_parts(list, snap, s, origin);
        add_arrow(list, g, snap, s, origin, ++*arrows);
    }
    for (int lane = 0; lane < lanes; lane++) {
        snprintf(name, sizeof name, lane ? "stream %d" : "calls", lane);
        name_it(list, "thread_name", snap->rank, lane, name);
    }
}

cJSON *fe_trace_perfetto(const fe_trace_group *g) {
    cJSON *object = cJSON_CreateObject(), *list = cJSON_AddArrayToObject(object, "traceEvents");
    int64_t origin = origin_of(g);
    int arrows = 0;
    cJSON_AddStringToObject(object, "displayTimeUnit", "ns");
    for (int i = 0; i < g->count; i++) add_rank(list, g, &g->snap[i], origin, &arrows);
    return object;
}
