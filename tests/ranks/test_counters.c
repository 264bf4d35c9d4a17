/* Counters beside what test_exchange compares with the oracle after each of its cases: routes that are gone, waits, the file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ranks/harness.h"
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { RANKS = 4, TOKENS = 8, COLUMNS = 16, EXPERTS = 8, ROUNDS = 3 };

typedef struct memory {
    int32_t idx[TOKENS];
    _Alignas(16) uint16_t rows[TOKENS * COLUMNS];
} memory;

/* Every token goes to one expert: token t of rank r to expert (r + t) % EXPERTS. One row to each expert from each rank. */
static bool one_route(rank_env *env, ferry_group *g, memory *m, int rounds) {
    ferry_route_config cfg = FERRY_ROUTE_CONFIG_INIT;
    ferry_route *route;
    for (int t = 0; t < TOKENS; t++) m->idx[t] = (env->rank + t) % EXPERTS;
    cfg.topk_idx = ferry_tensor_2d(m->idx, FERRY_INT32, TOKENS, 1);
    cfg.layout = FERRY_LAYOUT_EXPERT;
    RANK_OK(env, ferry_route_create(g, &cfg, &route, NULL));
    for (int i = 0; i < rounds; i++) {
        ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
        ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
        in.rows = ferry_tensor_2d(m->rows, FERRY_BF16, TOKENS, COLUMNS);
        RANK_OK(env, ferry_dispatch(route, &in, &out, NULL, NULL));
    }
    ferry_route_destroy(route);
    return true;
}

static bool kept_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(EXPERTS, COLUMNS, TOKENS, 1);
    ferry_group *g;
    ferry_counters k = FERRY_COUNTERS_INIT;
    memory *m = ranks_new(env, sizeof *m);
    if (!ranks_group(env, &cfg, &g)) return false;
    for (int i = 1; i <= ROUNDS; i++)
        if (!one_route(env, g, m, i)) return false;
    RANK_OK(env, ferry_group_counters(g, &k));
    RANK_CHECK(env, k.routes == ROUNDS && k.dispatches == 6 && k.combines == 0 && k.local_experts == EXPERTS / RANKS);
    for (int e = 0; e < k.local_experts; e++) RANK_CHECK(env, k.expert_rows[e] == 6 * RANKS);
    for (int r = 0; r < RANKS; r++) {
        const ferry_peer_counters *p = &k.peers[r];
        RANK_CHECK(env, p->rows_sent == 12 && p->rows_received == 12 && p->bytes_sent == 12 * COLUMNS * 2);
        RANK_CHECK(env, p->rows_returned == 0 && p->rows_dropped == 0);
    }
    ferry_counters old = {.size = 8};
    RANK_STATUS(env, FERRY_INVALID, ferry_group_counters(g, &old));
    RANK_STATUS(env, FERRY_INVALID, ferry_group_counters(g, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_group_counters(NULL, &k));
    ferry_group_destroy(g);
    return true;
}

static void test_routes_that_are_gone(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, kept_rank, NULL);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, kept_rank, NULL);
}

/* An agreement begins steps anew, and counters go on. */
static bool agreed_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(EXPERTS, COLUMNS, TOKENS, 1);
    ferry_group *g;
    ferry_counters k = FERRY_COUNTERS_INIT;
    memory *m = ranks_new(env, sizeof *m);
    if (!ranks_group(env, &cfg, &g)) return false;
    if (!one_route(env, g, m, 2)) return false;
    RANK_OK(env, ferry_group_agree(g, NULL, NULL));
    if (!one_route(env, g, m, 1)) return false;
    RANK_OK(env, ferry_group_counters(g, &k));
    RANK_CHECK(env, k.routes == 2 && k.dispatches == 3);
    for (int e = 0; e < k.local_experts; e++) RANK_CHECK(env, k.expert_rows[e] == 3 * RANKS);
    for (int r = 0; r < RANKS; r++) RANK_CHECK(env, k.peers[r].rows_sent == 6 && k.peers[r].rows_received == 6);
    ferry_group_destroy(g);
    return true;
}

static void test_after_an_agreement(void **state) {
    (void)state;
    if (ranks_hosts() > 1) skip(); /* they agree on one host only */
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, agreed_rank, NULL);
}

/* Rank 1 comes late: the others say so, and how late. */
static bool late_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(EXPERTS, COLUMNS, TOKENS, 1);
    ferry_group *g;
    ferry_counters k = FERRY_COUNTERS_INIT;
    struct timespec nap = {.tv_nsec = 200000000};
    if (!ranks_group(env, &cfg, &g)) return false;
    RANK_OK(env, ferry_barrier(g, NULL));
    if (env->rank == 1) nanosleep(&nap, NULL);
    RANK_OK(env, ferry_barrier(g, NULL));
    RANK_OK(env, ferry_group_counters(g, &k));
    RANK_CHECK(env, k.meetings == 2);
    if (env->rank != 1 && ranks_device() == FERRY_CPU)
        RANK_CHECK(env, k.peers[1].waits >= 1 && k.peers[1].wait_ns > 100000000 && k.peers[1].wait_ns < 20000000000);
    ferry_group_destroy(g);
    return true;
}

static void test_a_rank_that_is_late(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, late_rank, NULL);
}

/* ---- the file ---- */

static bool metric(rank_env *env, const char *text, const char *line, double wanted) {
    const char *at = strstr(text, line);
    if (!at || at == text || at[-1] != '\n') return ranks_fail(env, "no line %s in %s", line, text);
    double got = strtod(at + strlen(line), NULL);
    return got == wanted || ranks_fail(env, "%s is %g, not %g", line, got, wanted);
}

/* Every line is empty, a comment, or a name with labels and a number. */
static bool well_formed(rank_env *env, char *text) {
    for (char *line = text, *end; *line; line = end + 1) {
        end = strchr(line, '\n');
        RANK_CHECK(env, end != NULL);
        if (*line == '#') continue;
        char name[64], labels[200], rest[8];
        double value;
        *end = 0;
        int n = sscanf(line, "%63[a-z_]{%199[^}]} %lf%7s", name, labels, &value, rest);
        if (n != 3 || value < 0) return ranks_fail(env, "no metric: %s", line);
        *end = '\n';
    }
    return true;
}

static bool file_rank(rank_env *env) {
    static char text[RANKS][1 << 16];
    ferry_group_config cfg = ranks_config(EXPERTS, COLUMNS, TOKENS, 1);
    ferry_group *g;
    memory *m = ranks_new(env, sizeof *m);
    char path[300], *mine = text[env->rank];
    if (!ranks_group(env, &cfg, &g)) return false;
    if (!one_route(env, g, m, 2)) return false;
    RANK_STATUS(env, FERRY_SYSTEM, ferry_group_metrics_write(g, "/nowhere/at/all"));
    RANK_STATUS(env, FERRY_INVALID, ferry_group_metrics_write(g, ""));
    ferry_group_destroy(g); /* FERRY_METRICS_FILE names a file in env->arg */
    snprintf(path, sizeof path, "%s/%d.prom", (const char *)env->arg, env->rank);
    FILE *file = fopen(path, "r");
    RANK_CHECK(env, file != NULL);
    mine[fread(mine, 1, sizeof text[0] - 1, file)] = 0;
    fclose(file);
    RANK_CHECK(env, remove(path) == 0);
    if (!well_formed(env, mine)) return false;
    char *group = strstr(mine, "group=\""), line[160];
    RANK_CHECK(env, group != NULL);
    for (int r = 0; r < RANKS; r++) {
        snprintf(line, sizeof line, "ferry_rows_sent_total{group=\"%.16s\",rank=\"%d\",peer=\"%d\"} ", group + 7,
                 env->rank, r);
        if (!metric(env, mine, line, 4)) return false;
    }
    for (int e = 0; e < EXPERTS / RANKS; e++) {
        snprintf(line, sizeof line, "ferry_expert_rows_total{group=\"%.16s\",rank=\"%d\",expert=\"%d\"} ", group + 7,
                 env->rank, env->rank * EXPERTS / RANKS + e);
        if (!metric(env, mine, line, 2 * RANKS)) return false;
    }
    snprintf(line, sizeof line, "ferry_steps_total{group=\"%.16s\",rank=\"%d\",step=\"dispatch\"} ", group + 7,
             env->rank);
    return metric(env, mine, line, 2);
}

static void test_the_file(void **state) {
    (void)state;
    char folder[] = "/tmp/ferry-counters-XXXXXX", pattern[64];
    assert_non_null(mkdtemp(folder));
    snprintf(pattern, sizeof pattern, "%s/%%r.prom", folder);
    setenv("FERRY_METRICS_FILE", pattern, 1);
    RANKS_ASSERT(RANKS_THREADS, RANKS, file_rank, folder);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, file_rank, folder);
    unsetenv("FERRY_METRICS_FILE");
    assert_int_equal(rmdir(folder), 0); /* and nothing else was left there */
}

static bool off_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(EXPERTS, COLUMNS, TOKENS, 1);
    ferry_group *g;
    ferry_counters k = FERRY_COUNTERS_INIT;
    memory *m = ranks_new(env, sizeof *m);
    if (!ranks_group(env, &cfg, &g)) return false;
    if (!one_route(env, g, m, 1)) return false;
    RANK_STATUS(env, FERRY_UNSUPPORTED, ferry_group_counters(g, &k));
    RANK_STATUS(env, FERRY_UNSUPPORTED, ferry_group_metrics_write(g, "/tmp/ferry-no-such-file"));
    ferry_group_destroy(g);
    return true;
}

static void test_switched_off(void **state) {
    (void)state;
    setenv("FERRY_RECORDER", "0", 1);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, off_rank, NULL);
    unsetenv("FERRY_RECORDER");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_routes_that_are_gone),
                                       cmocka_unit_test(test_after_an_agreement),
                                       cmocka_unit_test(test_a_rank_that_is_late), cmocka_unit_test(test_the_file),
                                       cmocka_unit_test(test_switched_off)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
