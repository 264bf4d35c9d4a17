/* Dispatch and combine with the routing decisions of a real model, recorded in *.routes.jsonl files, on 1 to 4 ranks.
 * The files are looked for in FERRY_ROUTES_DIR; without any the test is skipped, and says so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ranks/case.h"
#include "ranks/trace.h"
#include <glob.h>
#include <stdio.h>

#ifndef FERRY_SOURCE_DIR
#define FERRY_SOURCE_DIR "."
#endif

static void check_trace_case(const trace *t, const xcase *c) {
    char why[RANKS_WHY], text[CASE_TEXT];
    case_choices given = {t->tokens, t->idx, t->weights};
    case_data d;
    bool good = false;
    snprintf(why, sizeof why, "no memory for the case");
    if (case_build(c, &given, &d))
        good = ranks_run(c->processes ? RANKS_PROCESSES : RANKS_THREADS, (int)c->ranks, 60000, exchange_rank, &d, why);
    case_free(&d);
    case_print(c, text);
    if (!good) fail_msg("%s\n  case: %s", why, text);
}

/* Every number of ranks, with the layouts and modes in turn. */
static void check_trace(const trace *t) {
    for (int i = 0; i < 12; i++) {
        int ranks = i < 3 ? 1 : ranks_even(i / 3 + 1);
        xcase c = {.seed = i,
                   .processes = i % 2,
                   .ranks = ranks,
                   .threads = 1,
                   .experts = t->experts,
                   .tokens = (t->tokens + ranks - 1) / ranks,
                   .topk = t->topk,
                   .weights = 1,
                   .columns = 64,
                   .dtype = FERRY_BF16,
                   .cast = i % 3 == 1 ? FERRY_CAST_E4M3 : FERRY_CAST_NONE,
                   .layout = (int64_t)1 << i % 3,
                   .mode = (ranks + i) % 2,
                   .align = i % 3 == 1 ? 128 : 0,
                   .back = 1,
                   .in_type = FERRY_BF16,
                   .out_type = FERRY_BF16,
                   .weighted = 1,
                   .rounds = 1};
        check_trace_case(t, &c);
    }
}

static void test_recorded_routes(void **state) {
    (void)state;
    const char *set = getenv("FERRY_ROUTES_DIR"), *directory = set && *set ? set : FERRY_SOURCE_DIR "/../shared/data";
    char pattern[4096], why[512];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/*.routes.jsonl", directory);
    if (glob(pattern, 0, NULL, &found) != 0) {
        printf("SKIP recorded routes: no file %s; FERRY_ROUTES_DIR names another directory\n", pattern);
        fflush(stdout);
        skip();
    }
    for (size_t i = 0; i < found.gl_pathc; i++) {
        trace t;
        if (!trace_read(found.gl_pathv[i], 0, &t, why, sizeof why)) fail_msg("%s", why);
        printf("%s: %lld tokens, top-%d of %d experts\n", found.gl_pathv[i], (long long)t.tokens, t.topk, t.experts);
        check_trace(&t);
        trace_free(&t);
    }
    globfree(&found);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_recorded_routes)};
    setenv("FERRY_TOUCH_MB", "1", 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
