/* Going on without a rank, and with it again: agreements among ranks that die, stop, come late, or disagree. That rows are right
 * afterwards, in every layout and mode, is for test_exchange, whose drawn cases lose ranks too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ranks/lost.h"
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

/* ------------------------------------------------------------------------------------------------------------------
 * A rank that is gone
 * ---------------------------------------------------------------------------------------------------------------- */

/* The others wait in vain, agree, and go on, with streams that they had; twice. */
static bool gone_rank(rank_env *env) {
    end how = *(const end *)env->arg;
    ferry_group *g;
    ferry_stream *stream;
    if (!open_group(env, BRIEF, &g)) return false;
    RANK_OK(env, ferry_stream_create(g, &stream));
    if (!check_space(env, g, stream) || !ranks_meet(env)) return false;
    if (env->rank == VICTIM) return be_gone(env, how, g);
    int64_t begun = ranks_now_ms();
    RANK_OK(env, ferry_barrier(g, stream));
    ferry_status status = ferry_stream_sync(stream);
    RANK_CHECK(env, status == FERRY_TIMEOUT || status == FERRY_ABORTED);
    RANK_CHECK(env, strstr(ferry_last_error(), status == FERRY_TIMEOUT ? "rank 1" : "agreement"));
    RANK_CHECK(env, ferry_barrier(g, NULL) != FERRY_OK);
    if (!agree(env, g, 1u << VICTIM)) return false;
    RANK_CHECK(env, ranks_now_ms() - begun < 6 * BRIEF);
    if (!check_space(env, g, stream)) return false;
    if (!agree(env, g, 1u << VICTIM) || !check_space(env, g, stream)) return false;
    ferry_group_destroy(g);
    return true;
}

static void test_a_rank_that_is_gone(void **state) {
    static const end ends[] = {LEAVES, KILLED, STOPPED};
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, gone_rank, (void *)(uintptr_t)&ends[0]);
    for (int i = 0; i < 3; i++) RANKS_ASSERT(RANKS_PROCESSES, RANKS, gone_rank, (void *)(uintptr_t)&ends[i]);
}

/* One is gone before the agreement, one dies while it is held: the last two have the same mask. */
static bool dying_rank(rank_env *env) {
    ferry_group *g;
    if (!open_group(env, LONG, &g) || !ranks_meet(env)) return false;
    if (env->rank == 3) return be_gone(env, KILLED, g);
    if (env->rank == 2) {
        ranks_doom(env);
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
        struct itimerspec in = {.it_value = {.tv_nsec = 200000000}};
        timer_t timer;
        RANK_CHECK(env, timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &in, NULL) == 0);
        ferry_group_agree(g, NULL, NULL); /* rank 1 is not there yet */
        return ranks_fail(env, "rank 2 has outlived the agreement");
    }
    if (env->rank == 1) nap_ms(500);
    if (!agree(env, g, 1u << 2 | 1u << 3) || !check_space(env, g, NULL)) return false;
    ferry_group_destroy(g);
    return true;
}

static void test_a_rank_that_dies_at_the_agreement(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, dying_rank, NULL);
}

/* ------------------------------------------------------------------------------------------------------------------
 * A rank that is late, and comes back
 * ---------------------------------------------------------------------------------------------------------------- */

/* Only rank 0 is impatient: the others, in a wait that would be long, are called. */
static bool called_rank(rank_env *env) {
    ferry_group *g;
    if (!open_group(env, env->rank == 0 ? BRIEF : LONG, &g)) return false;
    if (env->rank != VICTIM) {
        ferry_status status = ferry_barrier(g, NULL);
        RANK_CHECK(env, status == (env->rank == 0 ? FERRY_TIMEOUT : FERRY_ABORTED));
        RANK_CHECK(env, strstr(ferry_last_error(), env->rank == 0 ? "rank 1" : "asks for an agreement"));
        if (!agree(env, g, 1u << VICTIM) || !check_space(env, g, NULL)) return false;
    }
    if (!ranks_meet(env)) return false;
    if (env->rank == VICTIM) { /* it does not know yet; what it does harms nobody */
        RANK_STATUS(env, FERRY_ABORTED, ferry_barrier(g, NULL));
        RANK_CHECK(env, strstr(ferry_last_error(), "go on without it"));
        RANK_OK(env, ferry_group_abort(g));
    }
    if (!ranks_meet(env)) return false;
    if (env->rank != VICTIM && !check_space(env, g, NULL)) return false;
    return part(env, g);
}

static void test_waits_end_when_a_rank_asks(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, called_rank, NULL);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, called_rank, NULL);
}

/* Masked for being late, refused, and taken back when another rank says so. */
static bool returning_rank(rank_env *env) {
    ferry_group *g;
    if (!open_group(env, env->rank == VICTIM ? LONG : BRIEF, &g)) return false;
    if (env->rank != VICTIM && !agree(env, g, 1u << VICTIM)) return false;
    if (!ranks_meet(env)) return false;
    if (env->rank == VICTIM) {
        RANK_STATUS(env, FERRY_REFUSED, ferry_group_agree(g, NULL, NULL));
        RANK_CHECK(env, strstr(ferry_last_error(), "go on without it"));
        if (!check_mask(env, g, 1u << VICTIM)) return false;
    } else if (!check_space(env, g, NULL)) {
        return false;
    }
    if (!ranks_meet(env)) return false;
    if (env->rank == 2) RANK_OK(env, ferry_group_mask_set(g, VICTIM, 0));
    if (!agree(env, g, 0) || !check_space(env, g, NULL)) return false;
    ferry_group_destroy(g);
    return true;
}

static void test_a_rank_comes_back(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, returning_rank, NULL);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, returning_rank, NULL);
}

/* While it was away the others have used the heap: its offsets would be others. */
static bool outdated_rank(rank_env *env) {
    ferry_group *g;
    void *block[3];
    if (!open_group(env, env->rank == VICTIM ? LONG : BRIEF, &g)) return false;
    if (env->rank != VICTIM) {
        RANK_OK(env, ferry_group_mask_set(g, VICTIM, 1));
        if (!agree(env, g, 1u << VICTIM)) return false;
        for (int i = 0; i < 3; i++) RANK_OK(env, ferry_heap_alloc(g, 1000, &block[i]));
        RANK_OK(env, ferry_heap_free(g, block[1]));
        RANK_OK(env, ferry_group_mask_set(g, VICTIM, 0));
    } else {
        while (ferry_barrier(g, NULL) == FERRY_OK) {
        }
        RANK_STATUS(env, FERRY_REFUSED, ferry_group_agree(g, NULL, NULL));
    }
    if (!ranks_meet(env)) return false;
    if (env->rank == VICTIM)
        RANK_STATUS(env, FERRY_REFUSED, ferry_group_agree(g, NULL, NULL));
    else if (!agree(env, g, 1u << VICTIM) || !check_space(env, g, NULL))
        return false;
    ferry_group_destroy(g);
    return true;
}

static void test_a_rank_with_another_heap_stays_out(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, outdated_rank, NULL);
}

/* A masked rank whose call nobody answers leaves again, and is not counted on. */
static bool lonely_rank(rank_env *env) {
    ferry_group *g;
    if (!open_group(env, env->rank == VICTIM ? 300 : LONG, &g)) return false;
    if (env->rank != VICTIM) {
        RANK_OK(env, ferry_group_mask_set(g, VICTIM, 1));
        if (!agree(env, g, 1u << VICTIM)) return false;
    }
    if (!ranks_meet(env)) return false;
    if (env->rank == VICTIM) {
        RANK_STATUS(env, FERRY_REFUSED, ferry_group_agree(g, NULL, NULL));
        RANK_STATUS(env, FERRY_TIMEOUT, ferry_group_agree(g, NULL, NULL));
        RANK_CHECK(env, strstr(ferry_last_error(), "masked"));
    } else if (!check_space(env, g, NULL)) {
        return false;
    }
    if (!ranks_meet(env)) return false;
    if (env->rank != VICTIM && !agree(env, g, 1u << VICTIM)) return false;
    ferry_group_destroy(g);
    return true;
}

static void test_a_masked_rank_waits_in_vain(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, lonely_rank, NULL);
}

static void nap_on_stream(void *ms) {
    nap_ms(*(const int *)ms);
}

/* Its stream is held up past the others' deadline: they go on without it, and write anew what it has not read yet. It hears so where it
 * asks for its stream, whatever its step has found. */
static bool late_rank(rank_env *env) {
    static int late = 3 * BRIEF; /* they wait as long for its notes, and again for its word */
    int64_t mine = env->rank, all[RANKS] = {-1, -1, -1, -1};
    ferry_group *g;
    ferry_stream *stream;
    if (!open_group(env, env->rank == VICTIM ? LONG : BRIEF, &g)) return false;
    RANK_OK(env, ferry_stream_create(g, &stream));
    if (!ranks_meet(env)) return false;
    if (env->rank == VICTIM) {
        RANK_OK(env, ferry_stream_call(stream, nap_on_stream, &late));
        RANK_OK(env, ferry_allgather(g, &mine, all, sizeof mine, stream));
        RANK_STATUS(env, FERRY_ABORTED, ferry_stream_sync(stream));
        RANK_CHECK(env, strstr(ferry_last_error(), "go on without it"));
        RANK_STATUS(env, FERRY_ABORTED, ferry_group_error(g));
    } else {
        ferry_status status = ferry_allgather(g, &mine, all, sizeof mine, NULL);
        RANK_CHECK(env, status == FERRY_TIMEOUT || status == FERRY_ABORTED);
        if (!agree(env, g, 1u << VICTIM)) return false;
        for (mine = 100; mine < 104; mine++) RANK_OK(env, ferry_allgather(g, &mine, all, sizeof mine, NULL));
    }
    return ranks_meet(env) && part(env, g);
}

enum { TOKENS = 8, COLUMNS = 16, TOPK = 2 };

typedef struct parcel { /* every token to both experts of rank 0, every channel its rank's number */
    int32_t idx[TOKENS * TOPK];
    _Alignas(16) uint16_t rows[TOKENS * COLUMNS], arrived[RANKS * TOKENS * COLUMNS];
} parcel;

static ferry_status send_parcel(const rank_env *env, parcel *p, ferry_route *route, ferry_stream *stream,
                                ferry_dispatch_out *out) {
    ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
    for (int i = 0; i < TOKENS * COLUMNS; i++) p->rows[i] = (uint16_t)(0x4000 + env->rank);
    in.rows = ferry_tensor_2d(p->rows, FERRY_BF16, TOKENS, COLUMNS);
    *out = FERRY_DISPATCH_OUT_INIT;
    return ferry_dispatch(route, &in, out, NULL, stream);
}

static bool route_parcel(rank_env *env, ferry_group *g, parcel *p, ferry_route **route) {
    ferry_route_config cfg = FERRY_ROUTE_CONFIG_INIT;
    for (int i = 0; i < TOKENS * TOPK; i++) p->idx[i] = i % TOPK;
    cfg.topk_idx = ferry_tensor_2d(p->idx, FERRY_INT32, TOKENS, TOPK);
    cfg.layout = FERRY_LAYOUT_RANK;
    RANK_OK(env, ferry_route_create(g, &cfg, route, NULL));
    return true;
}

/* Its rows would come to where the others' are by now. */
static bool late_sender(rank_env *env) {
    static int late = 3 * BRIEF;
    parcel *p = ranks_new(env, sizeof *p);
    ferry_group *g;
    ferry_route *route;
    ferry_stream *stream;
    ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
    if (!open_group(env, env->rank == VICTIM ? LONG : BRIEF, &g) || !route_parcel(env, g, p, &route)) return false;
    RANK_OK(env, ferry_stream_create(g, &stream));
    if (!ranks_meet(env)) return false;
    if (env->rank == VICTIM) {
        RANK_OK(env, ferry_stream_call(stream, nap_on_stream, &late));
        RANK_OK(env, send_parcel(env, p, route, stream, &out));
        RANK_STATUS(env, FERRY_ABORTED, ferry_stream_sync(stream));
        return ranks_meet(env) && ranks_meet(env) && part(env, g);
    }
    ferry_status status = send_parcel(env, p, route, NULL, &out);
    RANK_CHECK(env, status == FERRY_TIMEOUT || status == FERRY_ABORTED);
    if (!agree(env, g, 1u << VICTIM) || !route_parcel(env, g, p, &route)) return false;
    RANK_OK(env, send_parcel(env, p, route, NULL, &out));
    if (!ranks_meet(env)) return false;
    size_t bytes = (RANKS - 1) * sizeof p->rows;
    if (env->rank == 0) RANK_OK(env, ferry_get(g, p->arrived, out.rows.data, bytes, 0, NULL));
    for (int i = 0; env->rank == 0 && i < (RANKS - 1) * TOKENS; i++) {
        int source = i / TOKENS + (i / TOKENS >= VICTIM);
        for (int c = 0; c < COLUMNS; c++) RANK_CHECK(env, p->arrived[i * COLUMNS + c] == 0x4000 + source);
    }
    return ranks_meet(env) && part(env, g);
}

static void test_a_rank_whose_stream_is_late(void **state) {
    (void)state;
    RANKS_ASSERT(ranks_device() == FERRY_CPU ? RANKS_THREADS : RANKS_PROCESSES, RANKS, late_rank, NULL);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, late_sender, NULL);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Proposals
 * ---------------------------------------------------------------------------------------------------------------- */

/* Ranks 0 and 3 each want the other out. The lower one is heard if it comes before it is decided; else it is the one. In no case both, and all
 * agree on which. */
static bool quarrelling_rank(rank_env *env) {
    ferry_group *g;
    uint8_t masked[RANKS];
    volatile int64_t *words = ranks_words(env);
    if (!open_group(env, LONG, &g)) return false;
    if (env->rank == 0) RANK_OK(env, ferry_group_mask_set(g, 3, 1));
    if (env->rank == 3) RANK_OK(env, ferry_group_mask_set(g, 0, 1));
    ferry_status status = ferry_group_agree(g, NULL, NULL);
    RANK_OK(env, ferry_group_mask_get(g, masked));
    RANK_CHECK(env, masked[0] + masked[3] == 1 && !masked[1] && !masked[2]);
    if (status != (masked[env->rank] ? FERRY_REFUSED : FERRY_OK))
        return ranks_fail(env, "%s with masked[] %d", ferry_status_name(status), masked[env->rank]);
    __atomic_fetch_add(&words[masked[0] ? 0 : 1], 1, __ATOMIC_SEQ_CST);
    if (!ranks_meet(env)) return false;
    RANK_CHECK(env, words[0] + words[1] == RANKS && (words[0] == 0 || words[1] == 0));
    if (!masked[env->rank] && !check_space(env, g, NULL)) return false;
    return part(env, g);
}

static void test_ranks_that_mask_each_other(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, quarrelling_rank, NULL);
}

/* Nobody is lost: the group is as before, many times over. */
static bool peaceful_rank(rank_env *env) {
    ferry_group *g;
    if (!open_group(env, LONG, &g)) return false;
    for (int i = 0; i < 100; i++)
        if (!agree(env, g, 0) || (i % 10 == 0 && !check_space(env, g, NULL))) return false;
    ferry_group_destroy(g);
    return true;
}

static void test_agreements_without_a_loss(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, peaceful_rank, NULL);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, peaceful_rank, NULL);
}

static bool arguing_rank(rank_env *env) {
    ferry_group *g;
    uint8_t masked[RANKS];
    if (!open_group(env, LONG, &g)) return false;
    RANK_STATUS(env, FERRY_INVALID, ferry_group_agree(NULL, NULL, masked));
    RANK_STATUS(env, FERRY_INVALID, ferry_group_mask_set(NULL, 0, 1));
    RANK_STATUS(env, FERRY_INVALID, ferry_group_mask_set(g, -1, 1));
    RANK_STATUS(env, FERRY_INVALID, ferry_group_mask_set(g, env->ranks, 1));
    RANK_STATUS(env, FERRY_INVALID, ferry_group_mask_set(g, env->rank, 1));
    RANK_STATUS(env, FERRY_INVALID, ferry_group_mask_set(g, (env->rank + 1) % env->ranks, 2));
    RANK_STATUS(env, FERRY_INVALID, ferry_group_mask_get(g, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_group_mask_get(NULL, masked));
    RANK_OK(env, ferry_group_mask_set(g, (env->rank + 1) % env->ranks, 1)); /* thought better of */
    RANK_OK(env, ferry_group_mask_set(g, (env->rank + 1) % env->ranks, 0));
    if (!agree(env, g, 0) || !check_space(env, g, NULL)) return false;
    RANK_OK(env, ferry_barrier(g, NULL));
    if (env->rank == 0) RANK_OK(env, ferry_group_abort(g)); /* for good */
    if (!ranks_meet(env)) return false;
    RANK_STATUS(env, FERRY_ABORTED, ferry_group_agree(g, NULL, masked));
    ferry_group_destroy(g);
    return true;
}

static void test_arguments_and_aborts(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, arguing_rank, NULL);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Steps
 * ---------------------------------------------------------------------------------------------------------------- */

/* Routes of the era before are refused and can be destroyed; halves that were sent and never received are free again. */
static bool outlived_rank(rank_env *env) {
    exchange *x = exchange_begin(env, env->arg, env->rank);
    uint8_t *idx = ranks_new(env, 64), *rows = ranks_new(env, 4096);
    ferry_route_config cfg = FERRY_ROUTE_CONFIG_INIT;
    ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
    ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
    ferry_route *old[2];
    cfg.topk_idx = ferry_tensor_2d(idx, FERRY_INT32, 1, 1);
    cfg.layout = FERRY_LAYOUT_RANK;
    in.rows = ferry_tensor_2d(rows, (ferry_dtype)x->c->dtype, 1, x->c->columns);
    if (!exchange_open(x, &env->id)) return false;
    for (int i = 0; i < 2; i++) {
        RANK_OK(env, ferry_route_create(x->group, &cfg, &old[i], NULL));
        RANK_OK(env, ferry_dispatch_send(old[i], &in, &out, NULL, NULL));
    }
    ferry_route_destroy(old[1]);
    if (!agree(env, x->group, 0)) return false;
    RANK_STATUS(env, FERRY_INVALID, ferry_dispatch_recv(old[0], &out, NULL));
    RANK_CHECK(env, strstr(ferry_last_error(), "before the group's last agreement"));
    ferry_route_destroy(old[0]);
    if (!exchange_step(x) || !exchange_barrier(x)) return false;
    exchange_end(x);
    return true;
}

static void test_routes_end_with_their_era(void **state) {
    case_data d;
    xcase c;
    (void)state;
    assert_true(case_parse("ranks=4 experts=8 tokens=20 topk=3 weights=1 columns=32 dtype=1 layout=1 in_type=1 "
                           "out_type=1 split=1 rounds=3 weighted=1",
                           &c));
    assert_true(case_build(&c, NULL, &d));
    RANKS_ASSERT(RANKS_THREADS, RANKS, outlived_rank, &d);
    case_free(&d);
}

static bool story_rank(rank_env *env) {
    story *s = env->arg;
    bool lost = s->without.masked[env->rank];
    exchange *x = exchange_begin(env, &s->with, env->rank);
    x->steps = 2;
    if (!exchange_open(x, &env->id) || !exchange_step(x) || !exchange_barrier(x)) return false;
    if (!ranks_meet(env))
        return false; /* a slow rank that is left out while it still leaves the barrier has its call aborted */
    exchange_done(x);
    exchange_use(x, &s->without);
    if (!lost && (!exchange_lose(x) || !exchange_step(x) || !exchange_barrier(x))) return false;
    if (lost) RANK_STATUS(env, FERRY_REFUSED, ferry_group_agree(x->group, NULL, NULL));
    exchange_done(x);
    if (!ranks_meet(env)) return false;
    for (int r = 0; !lost && r < env->ranks; r++)
        if (s->without.masked[r]) RANK_OK(env, ferry_group_mask_set(x->group, r, 0));
    exchange_use(x, &s->with);
    if (!agree(env, x->group, 0) || !exchange_step(x) || !exchange_barrier(x)) return false;
    exchange_end(x);
    return true;
}

static void test_steps_before_and_after(void **state) {
    (void)state;
    for (int i = 0; i < 12; i++) {
        story s;
        xcase c;
        assert_true(case_parse("ranks=4 experts=7 copies=1 tokens=30 topk=4 weights=1 columns=48 dtype=1 in_type=1 "
                               "out_type=3 layout=1 back=1 weighted=1 grad=1 rounds=2 lost=2 alive=1",
                               &c));
        c.layout = (int64_t)1 << i % 3;
        c.mode = i / 3 % 2;
        c.renorm = i / 6;
        c.stream = i % 2;
        c.split = i / 2 % 2;
        c.out = 0;
        c.seed = i;
        case_fix(&c);
        assert_true(case_build(&c, NULL, &s.without));
        c.lost = c.alive = 0;
        assert_true(case_build(&c, NULL, &s.with));
        RANKS_ASSERT(i % 2 ? RANKS_PROCESSES : RANKS_THREADS, RANKS, story_rank, &s);
        case_free(&s.without);
        case_free(&s.with);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_rank_that_is_gone),
        cmocka_unit_test(test_a_rank_that_dies_at_the_agreement),
        cmocka_unit_test(test_waits_end_when_a_rank_asks),
        cmocka_unit_test(test_a_rank_comes_back),
        cmocka_unit_test(test_a_rank_with_another_heap_stays_out),
        cmocka_unit_test(test_a_masked_rank_waits_in_vain),
        cmocka_unit_test(test_a_rank_whose_stream_is_late),
        cmocka_unit_test(test_ranks_that_mask_each_other),
        cmocka_unit_test(test_agreements_without_a_loss),
        cmocka_unit_test(test_arguments_and_aborts),
        cmocka_unit_test(test_routes_end_with_their_era),
        cmocka_unit_test(test_steps_before_and_after),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
