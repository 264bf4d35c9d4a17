/* Ranks that share a GPU: eight on one, those that do not fit, and those that wait in a kernel for one that never comes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ranks/case.h"
#include <stdio.h>

#define RANKS      8
#define VICTIM     1
#define TIMEOUT_MS 700

static void need_gpu(void) {
    if (ranks_device() == FERRY_CUDA) return;
    printf("SKIP tests of a shared GPU: FERRY_TEST_DEVICE is not cuda\n");
    fflush(stdout);
    skip();
}

/* Every layout and mode, on a stream, two dispatches in flight. */
static void exchange_on_eight(void) {
    for (int i = 0; i < 6; i++) {
        char why[RANKS_WHY];
        case_data d;
        xcase c;
        assert_true(case_parse(
            "ranks=8 experts=24 tokens=40 topk=6 columns=512 weights=1 weighted=1 dtype=1 in_type=1 out_type=1 "
            "back=1 stream=1 split=1 rounds=3 threads=1",
            &c));
        c.layout = (int64_t)1 << i % 3;
        c.mode = i / 3;
        case_fix(&c);
        bool good = case_build(&c, NULL, &d) && ranks_run(RANKS_THREADS, RANKS, RANKS_DEFAULT, exchange_rank, &d, why);
        case_free(&d);
        if (!good) fail_msg("layout %d, mode %d: %s", (int)c.layout, (int)c.mode, why);
    }
}

static void test_eight_ranks_on_a_gpu(void **state) {
    (void)state;
    need_gpu();
    exchange_on_eight();
}

static void test_eight_ranks_of_one_sm(void **state) {
    (void)state;
    need_gpu();
    setenv("FERRY_SMS", "1", 1);
    exchange_on_eight();
    unsetenv("FERRY_SMS");
}

/* No GPU has eight times 1000 SMs. */
static bool unfit_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(8, 16, 8, 2);
    ferry_group *g = NULL;
    cfg.sms = 1000;
    RANK_STATUS(env, FERRY_INVALID, ferry_group_create(&env->id, env->rank, env->ranks, &cfg, &g));
    RANK_CHECK(env, g == NULL && strstr(ferry_last_error(), "sms") && strstr(ferry_last_error(), "1000"));
    return true;
}

static void test_ranks_that_do_not_fit(void **state) {
    (void)state;
    need_gpu();
    RANKS_ASSERT(RANKS_THREADS, RANKS, unfit_rank, NULL);
}

/* All have dispatched once; then one stays away, from a dispatch or (arg) from a combine. */
static bool late_rank(rank_env *env) {
    enum { TOKENS = 8, COLUMNS = 64 };
    bool in_combine = *(bool *)env->arg;
    ferry_group_config cfg = ranks_config(8, COLUMNS, TOKENS, 2);
    ferry_route_config rc = FERRY_ROUTE_CONFIG_INIT;
    ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
    ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT, again = out;
    ferry_combine_in back = FERRY_COMBINE_IN_INIT;
    ferry_combine_out sum = FERRY_COMBINE_OUT_INIT;
    ferry_group *g;
    ferry_stream *stream;
    ferry_route *route;
    int32_t *idx = ranks_new(env, sizeof *idx * TOKENS * 2);
    for (int i = 0; i < TOKENS * 2; i++) idx[i] = (i * 3 + env->rank) % 8;
    cfg.timeout_ms = TIMEOUT_MS;
    if (!ranks_group(env, &cfg, &g)) return false;
    RANK_OK(env, ferry_stream_create(g, &stream));
    rc.topk_idx = ferry_tensor_2d(idx, FERRY_INT32, TOKENS, 2);
    rc.layout = FERRY_LAYOUT_RANK;
    rc.mode = FERRY_LATENCY;
    in.rows = ferry_tensor_2d(ranks_new(env, 2 * TOKENS * COLUMNS), FERRY_BF16, TOKENS, COLUMNS);
    sum.rows = ferry_tensor_2d(ranks_new(env, 2 * TOKENS * COLUMNS), FERRY_BF16, TOKENS, COLUMNS);
    RANK_OK(env, ferry_route_create(g, &rc, &route, stream));
    RANK_OK(env, ferry_dispatch(route, &in, &out, NULL, stream));
    back.rows = out.rows;
    RANK_OK(env, ferry_stream_sync(stream));
    RANK_CHECK(env, ranks_meet(env));
    int64_t started = ranks_now_ms();
    if (env->rank != VICTIM) {
        ferry_status status = in_combine ? ferry_combine(route, &back, &sum, NULL, stream)
                                         : ferry_dispatch(route, &in, &again, NULL, stream);
        RANK_STATUS(env, FERRY_OK, status);
        RANK_CHECK(env, ranks_now_ms() - started < TIMEOUT_MS / 2); /* the call waits for nobody */
        RANK_STATUS(env, FERRY_TIMEOUT, ferry_stream_sync(stream));
        RANK_CHECK(env, ranks_now_ms() - started < TIMEOUT_MS + 1000);
        RANK_CHECK(env, strstr(ferry_last_error(), in_combine ? "combine" : "dispatch"));
        RANK_CHECK(env, strstr(ferry_last_error(), "rank 1"));
        RANK_STATUS(env, FERRY_TIMEOUT, ferry_group_error(g));
        RANK_CHECK(env, ferry_barrier(g, NULL) != FERRY_OK);
    }
    RANK_CHECK(env, ranks_meet(env));
    started = ranks_now_ms();
    ferry_route_destroy(route);
    ferry_stream_destroy(stream);
    ferry_group_destroy(g);
    RANK_CHECK(env, ranks_now_ms() - started < 2000);
    return true;
}

static void test_late_in_a_kernel(void **state) {
    (void)state;
    need_gpu();
    for (int i = 0; i < 2; i++) {
        bool in_combine = i;
        RANKS_ASSERT(RANKS_THREADS, 4, late_rank, &in_combine);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_eight_ranks_on_a_gpu),
        cmocka_unit_test(test_eight_ranks_of_one_sm),
        cmocka_unit_test(test_ranks_that_do_not_fit),
        cmocka_unit_test(test_late_in_a_kernel),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
