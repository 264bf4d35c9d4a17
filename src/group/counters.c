#include "group/counters.h"
#include "base/env.h"
#include "base/log.h"
#include "base/structs.h"
#include "watch/snap.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

struct fe_counted {
    ferry_peer_counters *peer; /* [ranks] as last told */
    uint64_t *experts;         /* [local] as last told ... */
    uint64_t *left;            /* [local] ... and of routes that are gone */
    fe_tally *tallies;
    uint64_t routes, dispatches, combines, meetings; /* of eras that are over */
};

ferry_status fe_counters_open(ferry_group *g) {
    size_t local = (size_t)g->map.most_local + 1; /* never 0; a later map has no more */
    g->counted = calloc(1, sizeof *g->counted);
    if (!g->counted) return fe_fail(FERRY_NOMEM, "rank %d: no memory for counters", g->rank);
    g->counted->peer = calloc((size_t)g->ranks, sizeof *g->counted->peer);
    g->counted->experts = calloc(local, sizeof *g->counted->experts);
    g->counted->left = calloc(local, sizeof *g->counted->left);
    if (g->counted->peer && g->counted->experts && g->counted->left) return FERRY_OK;
    return fe_fail(FERRY_NOMEM, "rank %d: no memory for counters", g->rank);
}

void fe_counters_close(ferry_group *g) {
    if (!g->counted) return;
    free(g->counted->peer);
    free(g->counted->experts);
    free(g->counted->left);
    free(g->counted);
    g->counted = NULL;
}

static void add_experts(const ferry_group *g, const fe_tally *tally, uint64_t *to) {
    uint64_t times = atomic_load_explicit(&tally->arrived, memory_order_acquire);
    for (int e = 0; times && e < fe_map_local(&g->map, g->rank); e++) to[e] += times * (uint64_t)tally->experts[e];
}

void fe_counters_join(ferry_group *g, fe_tally *tally) {
    tally->next = g->counted->tallies;
    g->counted->tallies = tally;
}

void fe_counters_leave(ferry_group *g, fe_tally *tally) {
    add_experts(g, tally, g->counted->left);
    for (fe_tally **at = &g->counted->tallies; *at; at = &(*at)->next) {
        if (*at != tally) continue;
        *at = tally->next;
        break;
    }
}

void fe_counters_move(ferry_group *g) {
    for (fe_tally *t = g->counted->tallies; t; t = t->next) atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
    memset(g->counted->left, 0, ((size_t)g->map.most_local + 1) * sizeof *g->counted->left);
}

void fe_counters_keep(ferry_group *g) {
    g->counted->routes += g->routes;
    g->counted->dispatches += g->dispatches;
    g->counted->combines += g->combines;
    g->counted->meetings += g->meets;
}

/* ---- asking ---- */

static void fill_peer(const fe_snap_peer *from, ferry_peer_counters *to) {
    *to = (ferry_peer_counters){.rows_sent = from->rows_sent,
                                .bytes_sent = from->bytes_sent,
                                .rows_received = from->rows_received,
                                .bytes_received = from->bytes_received,
                                .rows_returned = from->rows_returned,
                                .bytes_returned = from->bytes_returned,
                                .rows_dropped = from->rows_dropped,
                                .waits = from->waits,
                                .wait_ns = (uint64_t)from->wait_ns};
}

ferry_status ferry_group_counters(ferry_group *g, ferry_counters *c) {
    FE_TRY(fe_group_check(g, "ferry_group_counters"));
    FE_CHECK_STRUCT(c, FERRY_MAGIC_COUNTERS, "counters");
    const fe_recorder *recorder = g->engine.watch.recorder;
    if (!recorder) return fe_fail(FERRY_UNSUPPORTED, "rank %d counts nothing: FERRY_RECORDER is 0", g->rank);
    struct fe_counted *counted = g->counted;
    size_t local = (size_t)fe_map_local(&g->map, g->rank);
    fe_snap_peer peer;
    for (int r = 0; r < g->ranks; r++) {
        fe_snap_peer_of(recorder, r, &peer);
        fill_peer(&peer, &counted->peer[r]);
    }
    memcpy(counted->experts, counted->left, local * sizeof *counted->experts);
    for (const fe_tally *t = counted->tallies; t; t = t->next) add_experts(g, t, counted->experts);
    c->ranks = g->ranks;
    c->local_experts = (int)local;
    c->routes = counted->routes + g->routes;
    c->dispatches = counted->dispatches + g->dispatches;
    c->combines = counted->combines + g->combines;
    c->meetings = counted->meetings + g->meets;
    c->peers = counted->peer;
    c->expert_rows = counted->experts;
    return FERRY_OK;
}

/* ---- Prometheus' text format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats) ---- */

static const struct metric {
    const char *name, *help;
    size_t at; /* in ferry_peer_counters */
    double unit;
} metrics[] = {
    {"rows_sent", "Rows that this rank's dispatches sent to the peer", offsetof(ferry_peer_counters, rows_sent), 1},
    {"bytes_sent", "Bytes of those rows", offsetof(ferry_peer_counters, bytes_sent), 1},
    {"rows_received", "Rows that dispatches received from the peer", offsetof(ferry_peer_counters, rows_received), 1},
    {"bytes_received", "Bytes of those rows", offsetof(ferry_peer_counters, bytes_received), 1},
    {"rows_returned", "Rows that combines got back from the peer", offsetof(ferry_peer_counters, rows_returned), 1},
    {"bytes_returned", "Bytes of those rows", offsetof(ferry_peer_counters, bytes_returned), 1},
    {"rows_dropped", "Rows left out for the peer's capacity", offsetof(ferry_peer_counters, rows_dropped), 1},
    {"waits", "Waits for the peer past spinning", offsetof(ferry_peer_counters, waits), 1},
    {"wait_seconds", "Time in those waits", offsetof(ferry_peer_counters, wait_ns), 1e-9},
};

static void write_head(FILE *to, const char *name, const char *help) {
    fprintf(to, "# HELP ferry_%s_total %s\n# TYPE ferry_%s_total counter\n", name, help, name);
}

static void write_step(FILE *to, const char *who, const char *name, uint64_t count) {
    fprintf(to, "ferry_steps_total{%s,step=\"%s\"} %llu\n", who, name, (unsigned long long)count);
}

static void write_metrics(FILE *to, const ferry_group *g, const ferry_counters *c) {
    char who[64];
    snprintf(who, sizeof who, "group=\"%016llx\",rank=\"%d\"", (unsigned long long)g->engine.heap.group, g->rank);
    for (size_t m = 0; m < sizeof metrics / sizeof *metrics; m++) {
        write_head(to, metrics[m].name, metrics[m].help);
        for (int r = 0; r < c->ranks; r++) {
            uint64_t value;
            memcpy(&value, (const char *)&c->peers[r] + metrics[m].at, sizeof value);
            fprintf(to, "ferry_%s_total{%s,peer=\"%d\"} ", metrics[m].name, who, r);
            fprintf(to, metrics[m].unit == 1 ? "%.0f\n" : "%.9f\n", (double)value * metrics[m].unit);
        }
    }
    write_head(to, "expert_rows", "Rows that a local expert received");
    for (int e = 0; e < c->local_experts; e++)
        fprintf(to, "ferry_expert_rows_total{%s,expert=\"%d\"} %llu\n", who,
                g->map.home_expert[g->map.rank_first[g->rank] + e], (unsigned long long)c->expert_rows[e]);
    write_head(to, "steps", "Steps begun");
    write_step(to, who, "route", c->routes);
    write_step(to, who, "dispatch", c->dispatches);
    write_step(to, who, "combine", c->combines);
    write_step(to, who, "meeting", c->meetings);
}

/* Whoever reads the file meanwhile finds the old one or the new one, whole. */
ferry_status ferry_group_metrics_write(ferry_group *g, const char *path) {
    ferry_counters c = FERRY_COUNTERS_INIT;
    char beside[4096];
    FE_TRY(fe_group_check(g, "ferry_group_metrics_write"));
    if (!path || !*path) return fe_fail(FERRY_INVALID, "ferry_group_metrics_write: path is NULL or empty");
    FE_TRY(ferry_group_counters(g, &c));
    if (snprintf(beside, sizeof beside, "%s.%d.new", path, (int)getpid()) >= (int)sizeof beside)
        return fe_fail(FERRY_INVALID, "ferry_group_metrics_write: the path has more than 4000 characters");
    FILE *file = fopen(beside, "we");
    if (!file) return fe_fail_errno("rank %d: opening %.300s", g->rank, beside);
    write_metrics(file, g, &c);
    bool bad = ferror(file) != 0;
    if ((fclose(file) == 0 && !bad) && rename(beside, path) == 0) return FERRY_OK;
    ferry_status status = fe_fail_errno("rank %d: writing %.300s", g->rank, path);
    unlink(beside);
    return status;
}

void fe_counters_report(ferry_group *g) {
    char path[4096];
    const char *pattern = fe_env_text(FE_ENV_FERRY_METRICS_FILE);
    if (!pattern || !g->counted || !g->engine.watch.recorder) return;
    fe_expand_path(pattern, g->rank, path, sizeof path);
    ferry_group_metrics_write(g, path); /* a failure is logged, and no reason not to leave */
}
