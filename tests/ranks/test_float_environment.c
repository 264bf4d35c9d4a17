/* A caller that flushes subnormals to zero, or rounds otherwise, gets the same bits: the library computes in the default floating-point
 * environment and gives the caller's back. On this thread, on a stream, and by helpers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ranks/harness.h"
#include <fenv.h>
#include <stdio.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

enum { RANKS = 2, TOKENS = 40, HIDDEN = 64 };

/* Flushes and takes subnormals for zero, and rounds up. */
static void spoil_environment(void) {
    fesetround(FE_UPWARD);
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
}

static bool still_spoilt(void) {
#if defined(__x86_64__)
    if ((_mm_getcsr() & 0x8040) != 0x8040) return false;
#endif
    return fegetround() == FE_UPWARD;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Both ranks return every row as it came; a token goes to both, so its sum is x + x. */
static bool sum_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(2, HIDDEN, TOKENS, 2);
    ferry_group *g;
    ferry_stream *stream = NULL;
    ferry_route *route;
    ferry_route_config rc = FERRY_ROUTE_CONFIG_INIT;
    int32_t idx[TOKENS * 2];
    static _Thread_local float x[TOKENS * HIDDEN], y[TOKENS * HIDDEN];
    for (int i = 0; i < TOKENS * 2; i++) idx[i] = i % 2;
    /* Subnormals, and sums that are no float: 2^24 + 1 twice is exact, 1 + 2^-23 + itself too; 3 * 2^-149 stays subnormal. */
    for (int i = 0; i < TOKENS * HIDDEN; i++) x[i] = i % 2 ? (float)(i + 3) * 0x1p-149f : -(float)(i + 1) * 0x1p-149f;
    cfg.dtype = FERRY_FP32;
    cfg.threads = 2;
    spoil_environment();
    if (!ranks_group(env, &cfg, &g)) return false;
    if (*(bool *)env->arg) RANK_OK(env, ferry_stream_create(g, &stream));
    rc.topk_idx = ferry_tensor_2d(idx, FERRY_INT32, TOKENS, 2);
    rc.layout = FERRY_LAYOUT_RANK;
    RANK_OK(env, ferry_route_create(g, &rc, &route, stream));
    ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
    ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
    ferry_combine_in back = FERRY_COMBINE_IN_INIT;
    ferry_combine_out sum = FERRY_COMBINE_OUT_INIT;
    in.rows = ferry_tensor_2d(x, FERRY_FP32, TOKENS, HIDDEN);
    sum.rows = ferry_tensor_2d(y, FERRY_FP32, TOKENS, HIDDEN);
    RANK_OK(env, ferry_dispatch(route, &in, &out, NULL, stream));
    back.rows = out.rows;
    RANK_OK(env, ferry_combine(route, &back, &sum, NULL, stream));
    if (stream) RANK_OK(env, ferry_stream_sync(stream));
    RANK_CHECK(env, still_spoilt());
    fesetenv(FE_DFL_ENV);
    for (int i = 0; i < TOKENS * HIDDEN; i++)
        if (bits_of(y[i]) != bits_of(2 * x[i]))
            return ranks_fail(env, "element %d: %a, not %a", i, (double)y[i], (double)(2 * x[i]));
    ferry_route_destroy(route);
    ferry_stream_destroy(stream);
    ferry_group_destroy(g);
    return true;
}

static void test_sums_in_a_spoilt_environment(void **state) {
    (void)state;
    if (ranks_device() != FERRY_CPU) {
        printf("SKIP the floating-point environment: it is the host's, and only the CPU device computes in it\n");
        fflush(stdout);
        skip();
    }
    for (int on_stream = 0; on_stream < 2; on_stream++) {
        bool arg = on_stream;
        RANKS_ASSERT(RANKS_THREADS, RANKS, sum_rank, &arg);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sums_in_a_spoilt_environment)};
    setenv("FERRY_TOUCH_MB", "1", 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
