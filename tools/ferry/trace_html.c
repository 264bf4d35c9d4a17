/* The page of ferry trace --html: trace.html, which CMake has made a string of, with the group's data in its place. */
#include "trace.h"

#include <stdlib.h>

extern const char fe_trace_page[]; /* trace.html, with one line "@DATA@" */

static cJSON *step_data(const fe_snap_step *s, int64_t taken) {
    cJSON *o = cJSON_CreateObject();
    cJSON_AddStringToObject(o, "text", s->text);
    cJSON_AddNumberToObject(o, "lane", s->lane);
    cJSON_AddNumberToObject(o, "route", (double)s->route);
    cJSON_AddNumberToObject(o, "bytes", (double)s->bytes);
    cJSON_AddBoolToObject(o, "live", s->live);
    if (s->status) cJSON_AddStringToObject(o, "status", ferry_status_name((ferry_status)s->status));
    cJSON *at = cJSON_AddArrayToObject(o, "at"); /* microseconds from the snapshot, negative; null: not there */
    for (int i = 0; i < FE_STEP_STAMPS; i++)
        cJSON_AddItemToArray(at, s->at[i] ? cJSON_CreateNumber((double)(s->at[i] - taken) / 1e3) : cJSON_CreateNull());
    for (int i = 0; i < 2; i++)
        if (s->kind[i] >= 0) cJSON_AddStringToObject(o, i ? "after" : "before", fe_kind_name(s->kind[i]));
    if (s->late_rank < 0) return o;
    cJSON_AddNumberToObject(o, "late", s->late_rank);
    cJSON_AddNumberToObject(o, "late_us", (double)s->late_ns / 1e3);
    return o;
}

/* All ranks by one clock and one moment: the first's. */
static cJSON *rank_data(const fe_snap *snap, int64_t taken) {
    cJSON *o = cJSON_CreateObject(), *steps, *peers;
    cJSON_AddNumberToObject(o, "rank", snap->rank);
    cJSON_AddNumberToObject(o, "pid", snap->pid);
    steps = cJSON_AddArrayToObject(o, "steps");
    for (int i = 0; i < snap->steps; i++) cJSON_AddItemToArray(steps, step_data(&snap->step[i], taken));
    peers = cJSON_AddArrayToObject(o, "peers");
    for (int r = 0; r < snap->ranks; r++) {
        const fe_snap_peer *p = &snap->peer[r];
        const double row[] = {(double)p->rows_sent,      (double)p->bytes_sent,   (double)p->rows_returned,
                              (double)p->bytes_returned, (double)p->rows_dropped, (double)p->waits,
                              (double)p->wait_ns / 1e3};
        cJSON_AddItemToArray(peers, cJSON_CreateDoubleArray(row, sizeof row / sizeof *row));
    }
    return o;
}

cJSON *fe_trace_data(const fe_trace_group *g) {
    cJSON *object = cJSON_CreateObject();
    char number[24], *text = NULL;
    size_t bytes;
    snprintf(number, sizeof number, "%016llx", (unsigned long long)g->group);
    cJSON_AddStringToObject(object, "group", number);
    cJSON_AddNumberToObject(object, "ranks", g->snap[0].ranks);
    FILE *table = open_memstream(&text, &bytes);
    if (table) {
        fe_hang_print(table, g->snap, g->count);
        fclose(table);
        cJSON_AddStringToObject(object, "table", text);
        free(text);
    }
    cJSON *ranks = cJSON_AddArrayToObject(object, "seen");
    for (int i = 0; i < g->count; i++) cJSON_AddItemToArray(ranks, rank_data(&g->snap[i], g->snap[0].taken_ns));
    return object;
}

/* The only text that is not this command's own is steps', and snap.c lets no '<' through. */
bool fe_trace_html(const fe_trace_group *g, const char *path, char *why) {
    static const char mark[] = "@DATA@";
    const char *at = strstr(fe_trace_page, mark);
    cJSON *json = fe_trace_data(g);
    char *data = cJSON_PrintUnformatted(json);
    FILE *file = data && at ? fopen(path, "we") : NULL;
    if (file) fprintf(file, "%.*s%s%s", (int)(at - fe_trace_page), fe_trace_page, data, at + strlen(mark));
    bool good = file && !ferror(file);
    if (file) good = fclose(file) == 0 && good;
    if (!good) snprintf(why, FE_TRACE_WHY, "the page could not be written to %.150s: %s", path, strerror(errno));
    cJSON_free(data);
    cJSON_Delete(json);
    return good;
}
