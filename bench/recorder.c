/* What the flight recorder and the counters take of a LATENCY round (dispatch and combine, SLOTS): rounds with and without them by turns, in
 * one process, so that what else the machine does meets both alike.
 *
 *   cc -std=c11 -O2 -D_GNU_SOURCE -I src -I include bench/recorder.c build/libferry_core.a -lpthread -lm -ldl -o build/recorder
 *   build/recorder TOKENS [HIDDEN [RANKS [BLOCKS]]]
 *
 * Prints, of blocks of rounds, the quartiles and the least; and of each block with the recorder, the difference from the one without beside
 * it: median, and the quartiles between which half of them lie. */
#include "group/group.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST = 8, EXPERTS = 256, TOPK = 8 };

static int tokens = 1, hidden = 7168, ranks = 2, blocks = 400, rounds;
static ferry_unique_id id;
static double *took[2]; /* [blocks] microseconds a round, without and with */

static void need(ferry_status status) {
    if (status == FERRY_OK) return;
    fprintf(stderr, "%s: %s\n", ferry_status_name(status), ferry_last_error());
    exit(1);
}

static void run_block(ferry_route *route, const ferry_dispatch_in *in, ferry_combine_out *sum) {
    for (int i = 0; i < rounds; i++) {
        ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
        ferry_combine_in back = FERRY_COMBINE_IN_INIT;
        need(ferry_dispatch(route, in, &out, NULL, NULL));
        back.rows = out.rows;
        need(ferry_combine(route, &back, sum, NULL, NULL));
    }
}

static void *run_rank(void *argument) {
    int rank = (int)(intptr_t)argument;
    ferry_group_config cfg = FERRY_GROUP_CONFIG_INIT;
    ferry_route_config how = FERRY_ROUTE_CONFIG_INIT;
    ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
    ferry_combine_out sum = FERRY_COMBINE_OUT_INIT;
    ferry_group *g;
    ferry_route *route;
    size_t bytes = (size_t)tokens * (size_t)hidden * 2;
    int32_t *topk = calloc((size_t)tokens * TOPK, sizeof *topk);
    void *rows = aligned_alloc(64, (bytes + 63) / 64 * 64), *sums = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!topk || !rows || !sums) exit(1);
    memset(rows, 0, bytes);
    for (int i = 0; i < tokens * TOPK; i++) topk[i] = (int32_t)((unsigned)(i + rank) * 2654435761u % EXPERTS);
    cfg.experts = EXPERTS;
    cfg.hidden = hidden;
    cfg.max_tokens = tokens;
    cfg.max_topk = TOPK;
    cfg.layouts = FERRY_LAYOUT_SLOTS;
    cfg.threads = 1;
    need(ferry_group_create(&id, rank, ranks, &cfg, &g));
    how.topk_idx = ferry_tensor_2d(topk, FERRY_INT32, tokens, TOPK);
    how.layout = FERRY_LAYOUT_SLOTS;
    how.mode = FERRY_LATENCY;
    need(ferry_route_create(g, &how, &route, NULL));
    in.rows = ferry_tensor_2d(rows, FERRY_BF16, tokens, hidden);
    sum.rows = ferry_tensor_2d(sums, FERRY_BF16, tokens, hidden);
    fe_recorder *recorder = g->engine.watch.recorder;
    for (int b = -4; b < 2 * blocks; b++) {
        int with = (b ^ b / 2) & 1; /* off on, on off, ... */
        g->engine.watch.recorder = with ? recorder : NULL;
        need(ferry_barrier(g, NULL));
        int64_t start = fe_now_ns();
        run_block(route, &in, &sum);
        if (rank == 0 && b >= 0) took[with][b / 2] = (double)(fe_now_ns() - start) / 1e3 / rounds;
    }
    ferry_group_destroy(g);
    free(topk);
    free(rows);
    free(sums);
    return NULL;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print(const char *name, double *of) {
    qsort(of, (size_t)blocks, sizeof *of, by_size);
    printf("%-10s least %8.3f  quarter %8.3f  half %8.3f  three quarters %8.3f us\n", name, of[0], of[blocks / 4],
           of[blocks / 2], of[blocks * 3 / 4]);
}

int main(int argc, char **argv) {
    pthread_t thread[MOST];
    if (argc > 1) tokens = atoi(argv[1]);
    if (argc > 2) hidden = atoi(argv[2]);
    if (argc > 3) ranks = atoi(argv[3]);
    if (argc > 4) blocks = atoi(argv[4]);
    if (tokens < 1 || hidden < 16 || ranks < 1 || ranks > MOST || blocks < 4) return 2;
    rounds = tokens > 16 ? 10 : 200;
    double *difference = calloc((size_t)blocks, sizeof *difference);
    for (int i = 0; i < 2; i++) took[i] = calloc((size_t)blocks, sizeof **took);
    if (!difference || !took[0] || !took[1]) return 1;
    need(ferry_unique_id_create(&id));
    for (int r = 0; r < ranks; r++) pthread_create(&thread[r], NULL, run_rank, (void *)(intptr_t)r);
    for (int r = 0; r < ranks; r++) pthread_join(thread[r], NULL);
    for (int b = 0; b < blocks; b++) difference[b] = took[1][b] - took[0][b];
    printf("%d ranks as threads, %d tokens, hidden %d, top-%d of %d; %d blocks of %d rounds each way\n", ranks, tokens,
           hidden, TOPK, EXPERTS, blocks, rounds);
    print("without", took[0]);
    print("with", took[1]);
    print("difference", difference);
    printf("%.2f%% of the median round; of the least ones %.2f%%\n", 100 * difference[blocks / 2] / took[0][blocks / 2],
           100 * (took[1][0] - took[0][0]) / took[0][0]);
    return 0;
}
