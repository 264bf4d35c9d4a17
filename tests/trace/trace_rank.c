/* A rank whose steps `ferry trace` is to see: dispatches and combines, by calls and on a stream, until one of them stops.
 *
 *   trace_rank STEPS VICTIM [LATENCY]   under a launcher; rank VICTIM stops its own process before dispatch STEPS + 1
 *
 * The others wait for it until the group's timeout, and then end with 3; when the victim goes on, all end with 0. */
#include "ferry/ferry.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { TOKENS = 32, COLUMNS = 512, TOPK = 2, EXPERTS = 8 };

static int32_t topk[TOKENS * TOPK];
static _Alignas(16) uint16_t rows[TOKENS * COLUMNS], sums[TOKENS * COLUMNS];

static void need(ferry_status status) {
    if (status == FERRY_OK) return;
    fprintf(stderr, "%s: %s\n", ferry_status_name(status), ferry_last_error());
    exit(3);
}

static void step(ferry_route *route, ferry_stream *stream) {
    ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
    ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
    ferry_combine_in back = FERRY_COMBINE_IN_INIT;
    ferry_combine_out sum = FERRY_COMBINE_OUT_INIT;
    in.rows = ferry_tensor_2d(rows, FERRY_BF16, TOKENS, COLUMNS);
    sum.rows = ferry_tensor_2d(sums, FERRY_BF16, TOKENS, COLUMNS);
    need(ferry_dispatch(route, &in, &out, NULL, stream));
    back.rows = out.rows;
    need(ferry_combine(route, &back, &sum, NULL, stream));
    if (stream) need(ferry_stream_sync(stream));
}

int main(int argc, char **argv) {
    ferry_group_config cfg = FERRY_GROUP_CONFIG_INIT;
    ferry_route_config how = FERRY_ROUTE_CONFIG_INIT;
    ferry_group *group;
    ferry_stream *stream;
    ferry_route *route;
    signal(SIGTERM, SIG_IGN); /* the first rank that times out ends the job; the others are to time out too */
    int steps = argc > 1 ? atoi(argv[1]) : 0, victim = argc > 2 ? atoi(argv[2]) : -1;
    cfg.experts = EXPERTS;
    cfg.hidden = COLUMNS;
    cfg.max_tokens = TOKENS;
    cfg.max_topk = TOPK;
    cfg.layouts = FERRY_LAYOUT_SLOTS;
    cfg.threads = 1;
    need(ferry_group_create_env(&cfg, &group));
    need(ferry_stream_create(group, &stream));
    for (int i = 0; i < TOKENS * TOPK; i++) topk[i] = i % EXPERTS;
    how.topk_idx = ferry_tensor_2d(topk, FERRY_INT32, TOKENS, TOPK);
    how.layout = FERRY_LAYOUT_SLOTS;
    how.mode = argc > 3 ? FERRY_LATENCY : FERRY_THROUGHPUT;
    need(ferry_route_create(group, &how, &route, NULL));
    for (int i = 0; i < steps; i++) step(route, i % 2 ? stream : NULL);
    if (ferry_group_rank(group) == victim) raise(SIGSTOP);
    step(route, NULL);
    need(ferry_barrier(group, NULL));
    ferry_group_destroy(group);
    return 0;
}
