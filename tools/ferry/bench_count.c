/* Counters of the whole bench, warm-up and checks included. */
#include "bench.h"
#include <stdio.h>

bool fe_bench_count(fe_lane *lane) {
    ferry_counters k = FERRY_COUNTERS_INIT;
    fe_bench_counted *c = &lane->bench->shared->counted[lane->self->rank];
    ferry_status status = ferry_group_counters(lane->group, &k);
    if (status == FERRY_UNSUPPORTED) return true; /* FERRY_RECORDER=0 */
    FE_RANK_OK(lane->self, status);
    for (int r = 0; r < k.ranks; r++) {
        const ferry_peer_counters *p = &k.peers[r];
        c->rows_sent += (double)p->rows_sent;
        c->bytes_sent += (double)p->bytes_sent;
        c->bytes_returned += (double)p->bytes_returned;
        c->rows_dropped += (double)p->rows_dropped;
        c->waits += (double)p->waits;
        c->waited_us[r] = (double)p->wait_ns / 1e3;
        c->wait_us += c->waited_us[r];
    }
    c->experts = k.local_experts;
    for (int e = 0; e < k.local_experts; e++) {
        c->expert_rows += (double)k.expert_rows[e];
        if ((double)k.expert_rows[e] > c->fullest) c->fullest = (double)k.expert_rows[e];
    }
    c->told = true;
    return true;
}

typedef struct sums {
    double sent, waits, wait_us, most_us; /* most: that all others waited for one rank */
    double load;                          /* rows of the fullest expert, of the mean */
    int slowest;
} sums;

static sums add_up(const fe_bench *b) {
    sums s = {0};
    double fullest = 0, rows = 0, experts = 0;
    for (int r = 0; r < b->o.ranks; r++) {
        const fe_bench_counted *c = &b->shared->counted[r];
        double for_it = 0;
        for (int other = 0; other < b->o.ranks; other++) for_it += b->shared->counted[other].waited_us[r];
        if (for_it > s.most_us) s.slowest = r;
        if (for_it > s.most_us) s.most_us = for_it;
        s.sent += c->bytes_sent;
        s.waits += c->waits;
        s.wait_us += c->wait_us;
        if (c->fullest > fullest) fullest = c->fullest;
        rows += c->expert_rows;
        experts += c->experts;
    }
    s.load = rows > 0 ? fullest * experts / rows : 0;
    return s;
}

void fe_bench_print_counted(const fe_bench *b) {
    if (!b->shared->counted[0].told) return;
    sums s = add_up(b);
    printf("\nsent %.1f MB in all; %.0f waits past spinning, %.1f ms of a rank's time", s.sent / 1e6, s.waits,
           s.wait_us / 1e3 / b->o.ranks);
    if (s.most_us > 0) printf(", %.0f%% of it for rank %d", 100 * s.most_us / s.wait_us, s.slowest);
    if (s.load > 0) printf("\nthe fullest expert has %.2f times the rows of the mean one", s.load);
}

cJSON *fe_bench_json_counted(const fe_bench *b) {
    cJSON *object = cJSON_CreateObject(), *ranks = cJSON_AddArrayToObject(object, "ranks");
    sums s = add_up(b);
    cJSON_AddNumberToObject(object, "expert_load", s.load);
    cJSON_AddNumberToObject(object, "slowest_rank", s.most_us > 0 ? s.slowest : -1);
    for (int r = 0; r < b->o.ranks; r++) {
        const fe_bench_counted *c = &b->shared->counted[r];
        cJSON *o = cJSON_CreateObject();
        cJSON_AddNumberToObject(o, "rows_sent", c->rows_sent);
        cJSON_AddNumberToObject(o, "bytes_sent", c->bytes_sent);
        cJSON_AddNumberToObject(o, "bytes_returned", c->bytes_returned);
        cJSON_AddNumberToObject(o, "rows_dropped", c->rows_dropped);
        cJSON_AddNumberToObject(o, "waits", c->waits);
        cJSON_AddNumberToObject(o, "wait_us", c->wait_us);
        cJSON_AddItemToObject(o, "waited_us_for", cJSON_CreateDoubleArray(c->waited_us, b->o.ranks));
        cJSON_AddItemToArray(ranks, o);
    }
    return object;
}
