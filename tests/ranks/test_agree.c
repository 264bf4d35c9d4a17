/* Going on without a rank, and with it again: agreements among ranks that die, stop, come late, or disagree. That rows are right
 * afterwards, in every layout and mode, is for test_exchange, whose drawn cases lose ranks too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ranks/exchange.h"
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define RANKS  4
#define VICTIM 1
#define BRIEF  1000  /* ms: a deadline that is meant to pass ... */
#define LONG   15000 /* ... and one that is not */

static void nap_ms(int ms) {
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

static bool open_group(rank_env *env, int timeout_ms, ferry_group **g) {
    ferry_group_config cfg = ranks_config(8, 16, 8, 2);
    cfg.timeout_ms = timeout_ms;
    cfg.heap_bytes = 1 << 16;
    return ranks_group(env, &cfg, g);
}

/* mask: bit r for each rank that must be masked, and no other. */
static bool check_mask(rank_env *env, const ferry_group *g, unsigned mask) {
    uint8_t masked[CASE_RANKS];
    RANK_OK(env, ferry_group_mask_get(g, masked));
    for (int r = 0; r < ferry_group_ranks(g); r++)
        if (masked[r] != (mask >> r & 1)) return ranks_fail(env, "masked[%d] is %d", r, masked[r]);
    return true;
}

static bool agree(rank_env *env, ferry_group *g, unsigned mask) {
    ranks_step(env, "ferry_group_agree");
    RANK_OK(env, ferry_group_agree(g, NULL, NULL));
    return check_mask(env, g, mask);
}

/* Everything but rows works among the ranks that are left: meetings, allocation, puts. */
static bool check_space(rank_env *env, ferry_group *g, ferry_stream *stream) {
    uint8_t masked[RANKS];
    int32_t *word = NULL, mine = env->rank + 100, next = env->rank;
    int64_t *all = ranks_new(env, RANKS * sizeof *all), offset;
    for (int r = 0; r < env->ranks; r++) all[r] = -7;
    RANK_OK(env, ferry_group_error(g));
    RANK_OK(env, ferry_group_mask_get(g, masked));
    RANK_OK(env, ferry_heap_alloc(g, 300, (void **)&word));
    char *base = ferry_heap_ptr(g, word, env->rank);
    RANK_CHECK(env, base == (char *)word);
    do next = (next + 1) % env->ranks;
    while (masked[next]);
    RANK_OK(env, ferry_put(g, word, &mine, sizeof mine, next, NULL));
    RANK_OK(env, ferry_quiet(g));
    RANK_OK(env, ferry_barrier(g, stream));
    if (stream) RANK_OK(env, ferry_stream_sync(stream));
    all[env->rank] = env->rank * 11;
    RANK_OK(env, ferry_allgather(g, &all[env->rank], all, sizeof offset, NULL));
    for (int r = 0; r < env->ranks; r++) RANK_CHECK(env, all[r] == (masked[r] ? -7 : r * 11));
    for (int r = 0; r < env->ranks; r++) {
        if (!masked[r]) continue;
        RANK_STATUS(env, FERRY_INVALID, ferry_put(g, word, &mine, sizeof mine, r, NULL));
        RANK_CHECK(env, strstr(ferry_last_error(), "is masked"));
        RANK_STATUS(env, FERRY_INVALID, ferry_broadcast(g, all, 8, r, NULL));
        RANK_CHECK(env, ferry_heap_ptr(g, word, r) == NULL);
    }
    RANK_OK(env, ferry_heap_free(g, word));
    return true;
}

/* ------------------------------------------------------------------------------------------------------------------
 * A rank that is gone
 * ---------------------------------------------------------------------------------------------------------------- */

typedef enum end { LEAVES, KILLED, STOPPED } end;

static bool be_gone(rank_env *env, end how, ferry_group *g) {
    if (how == LEAVES) {
        ferry_group_destroy(g);
        return true;
    }
    ranks_doom(env);
    kill(getpid(), how == KILLED ? SIGKILL : SIGSTOP);
    pause();
    return false;
}

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
    RANK_CHECK(env, ranks_now_ms() - begun < (how == STOPPED ? 4 : 3) * BRIEF);
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
    ferry_group_destroy(g);
    return true;
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

/* ------------------------------------------------------------------------------------------------------------------
 * Proposals
 * ---------------------------------------------------------------------------------------------------------------- */

/* Ranks 0 and 3 each want the other out: the lower one is heard, if it comes in time. Rank 1 comes last, and until then nothing is decided. */
static bool quarrelling_rank(rank_env *env) {
    ferry_group *g;
    if (!open_group(env, LONG, &g)) return false;
    if (env->rank == 0) RANK_OK(env, ferry_group_mask_set(g, 3, 1));
    if (env->rank == 3) RANK_OK(env, ferry_group_mask_set(g, 0, 1));
    if (!ranks_meet(env)) return false;
    if (env->rank == 1) nap_ms(200);
    if (env->rank == 3) {
        RANK_STATUS(env, FERRY_REFUSED, ferry_group_agree(g, NULL, NULL));
        if (!check_mask(env, g, 1u << 3)) return false;
    } else if (!agree(env, g, 1u << 3) || !check_space(env, g, NULL)) {
        return false;
    }
    if (!ranks_meet(env)) return false;
    ferry_group_destroy(g);
    return true;
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

typedef struct story { /* three steps of one group: with all, without some, with all */
    case_data with, without;
} story;

static bool story_rank(rank_env *env) {
    story *s = env->arg;
    bool lost = s->without.masked[env->rank];
    exchange *x = exchange_begin(env, &s->with, env->rank);
    x->steps = 2;
    if (!exchange_open(x, &env->id) || !exchange_step(x) || !exchange_barrier(x)) return false;
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

/* ------------------------------------------------------------------------------------------------------------------
 * A new process, a new map
 * ---------------------------------------------------------------------------------------------------------------- */

#define SPARE     RANKS /* a rank of the harness that is none of the group's at first */
#define WORD_ID   0     /* of ranks_words: a unique id in 16 words, ... */
#define WORD_GO   16    /* ... 1: it is there; ... */
#define WORD_HEAP 17    /* ... the offset of an allocation in the heap */

static void tell_id(rank_env *env, int64_t offset) {
    ferry_unique_id id;
    volatile int64_t *words = ranks_words(env);
    if (ferry_unique_id_create(&id) != FERRY_OK) abort();
    for (int i = 0; i < 16; i++) memcpy((void *)(uintptr_t)&words[WORD_ID + i], id.bytes + 8 * i, 8);
    words[WORD_HEAP] = offset;
    __atomic_store_n(&words[WORD_GO], 1, __ATOMIC_SEQ_CST);
}

static bool hear_id(rank_env *env, ferry_unique_id *id, int64_t *offset) {
    volatile int64_t *words = ranks_words(env);
    for (int64_t until = ranks_now_ms() + 15000; !__atomic_load_n(&words[WORD_GO], __ATOMIC_SEQ_CST); nap_ms(1))
        if (ranks_now_ms() > until) return ranks_fail(env, "no id has been told");
    memcpy(id->bytes, (const void *)(uintptr_t)&words[WORD_ID], sizeof id->bytes);
    *offset = words[WORD_HEAP];
    return true;
}

/* The group is whole again: heap data of those who stayed is as it was, offsets are the same everywhere, and steps are right. */
static bool check_whole(exchange *x, int64_t offset) {
    uint64_t *there = ferry_heap_at(x->group, offset), mine = 0xabcd0000u + (uint64_t)x->rank, got = 0, *more = NULL;
    int64_t *all = ranks_new(x->env, (size_t)RANKS * 8);
    RANK_CHECK(x->env, there && ferry_heap_offset(x->group, there) == offset);
    RANK_OK(x->env, ferry_barrier(x->group, NULL));
    RANK_OK(x->env, ferry_put(x->group, there + 1, &mine, 8, (x->rank + 1) % RANKS, NULL));
    RANK_OK(x->env, ferry_barrier(x->group, NULL));
    RANK_OK(x->env, ferry_get(x->group, &got, there + 1, 8, x->rank, NULL));
    RANK_CHECK(x->env, got == 0xabcd0000u + (uint64_t)(x->rank + RANKS - 1) % RANKS);
    RANK_OK(x->env, ferry_heap_alloc(x->group, 5000, (void **)&more));
    all[x->rank] = ferry_heap_offset(x->group, more);
    RANK_OK(x->env, ferry_allgather(x->group, &all[x->rank], all, 8, NULL));
    for (int r = 0; r < RANKS; r++) RANK_CHECK(x->env, all[r] == all[0] && all[r] > offset);
    RANK_OK(x->env, ferry_heap_free(x->group, more));
    return exchange_step(x) && exchange_barrier(x);
}

typedef struct succession {
    story data;
    bool agrees, leaves; /* the others go on without it for a while; it says that it leaves */
} succession;

static bool join_late(rank_env *env, const succession *s) {
    exchange *x = exchange_begin(env, &s->data.with, VICTIM);
    ferry_unique_id id;
    int64_t offset = 0;
    x->steps = 3;
    if (!hear_id(env, &id, &offset)) return false;
    ferry_group_config cfg = exchange_config(x);
    ranks_step(env, "ferry_group_join");
    RANK_OK(env, ferry_group_join(&id, VICTIM, RANKS, &cfg, &x->group));
    if (!check_whole(x, offset)) return false;
    exchange_end(x);
    return true;
}

/* A rank is gone; the others agree, work without it, and meet the one that takes its place. */
static bool succession_rank(rank_env *env) {
    const succession *s = env->arg;
    if (env->rank == SPARE) return join_late(env, s);
    exchange *x = exchange_begin(env, &s->data.with, env->rank);
    uint64_t *block[2], mine = 77u + (uint64_t)env->rank, got = 0;
    x->steps = 3;
    if (!exchange_open(x, &env->id)) return false;
    ferry_group_config cfg = exchange_config(x);
    RANK_OK(env, ferry_heap_alloc(x->group, 300, (void **)&block[0]));
    RANK_OK(env, ferry_heap_alloc(x->group, 700, (void **)&block[1]));
    RANK_OK(env, ferry_heap_free(x->group, block[0])); /* so that the list is no mere sequence */
    RANK_OK(env, ferry_put(x->group, block[1], &mine, 8, env->rank, NULL));
    if (!exchange_step(x) || !exchange_barrier(x)) return false;
    exchange_done(x);
    if (env->rank == VICTIM) {
        if (s->leaves) RANK_OK(env, ferry_group_leave(x->group));
        if (env->how == RANKS_PROCESSES) return be_gone(env, KILLED, x->group);
        exchange_end(x);
        return true;
    }
    if (s->agrees) {
        if (!agree(env, x->group, 1u << VICTIM)) return false;
        exchange_use(x, &s->data.without);
        if (!exchange_step(x) || !exchange_barrier(x)) return false;
        exchange_done(x);
    }
    if (env->rank == 0) tell_id(env, ferry_heap_offset(x->group, block[1]));
    ferry_unique_id id;
    int64_t offset = 0;
    if (!hear_id(env, &id, &offset)) return false;
    ranks_step(env, "ferry_group_reconfigure");
    RANK_OK(env, ferry_group_reconfigure(x->group, &id, &cfg));
    if (!check_mask(env, x->group, 0)) return false;
    RANK_CHECK(env, ferry_heap_at(x->group, offset) == (void *)block[1]);
    RANK_OK(env, ferry_get(x->group, &got, block[1], 8, env->rank, NULL));
    RANK_CHECK(env, got == mine);
    exchange_use(x, &s->data.with);
    if (!check_whole(x, offset)) return false;
    exchange_end(x);
    return true;
}

static bool build_story(int seed, story *s) {
    xcase c;
    bool good = case_parse("ranks=4 experts=7 copies=1 tokens=30 topk=4 weights=1 columns=48 dtype=1 in_type=1 "
                           "out_type=3 layout=1 back=1 weighted=1 grad=1 rounds=2 lost=1",
                           &c);
    c.layout = (int64_t)1 << seed % 3;
    c.mode = seed / 3 % 2;
    for (c.seed = seed;; c.seed += 12) { /* the lost one is chosen by the seed */
        good = good && case_build(&c, NULL, &s->without);
        if (!good || s->without.masked[VICTIM]) break;
        case_free(&s->without);
    }
    c.lost = 0;
    return good && case_build(&c, NULL, &s->with);
}

static void test_a_new_process_joins(void **state) {
    (void)state;
    for (int i = 0; i < 6; i++) {
        succession s = {.agrees = i % 3 != 0, .leaves = i % 2};
        assert_true(build_story(i, &s.data));
        RANKS_ASSERT(i < 2 ? RANKS_THREADS : RANKS_PROCESSES, RANKS + 1, succession_rank, &s);
        case_free(&s.data.with);
        case_free(&s.data.without);
    }
}

/* Nobody comes to take the place, or somebody with another config: those who are there learn of it, and go on as they were. */
static bool missing_rank(rank_env *env) {
    ferry_group *g, *other = NULL;
    ferry_unique_id id;
    int64_t offset = 0;
    ferry_group_config cfg = ranks_config(8, 16, 8, 2);
    bool differs = env->arg != NULL;
    cfg.timeout_ms = BRIEF;
    cfg.heap_bytes = 1 << 16;
    if (env->rank == SPARE) {
        if (!differs) return true;
        cfg.experts = 9;
        if (!hear_id(env, &id, &offset)) return false;
        RANK_STATUS(env, FERRY_MISMATCH, ferry_group_join(&id, VICTIM, RANKS, &cfg, &other));
        RANK_CHECK(env, strstr(ferry_last_error(), "experts") && other == NULL);
        return true;
    }
    RANK_OK(env, ferry_group_create(&env->id, env->rank, RANKS, &cfg, &g));
    RANK_OK(env, ferry_barrier(g, NULL));
    if (env->rank == VICTIM) return be_gone(env, LEAVES, g);
    if (!differs) RANK_OK(env, ferry_group_mask_set(g, VICTIM, 1));
    if (env->rank == 0) tell_id(env, 0);
    if (!hear_id(env, &id, &offset)) return false;
    ferry_status status = ferry_group_reconfigure(g, &id, &cfg);
    if (differs)
        RANK_CHECK(env, status == FERRY_MISMATCH && strstr(ferry_last_error(), "experts"));
    else
        RANK_CHECK(env, status == FERRY_OK);
    if (differs && !agree(env, g, 1u << VICTIM)) return false;
    uint8_t masked[RANKS];
    RANK_OK(env, ferry_group_mask_get(g, masked));
    for (int r = 0; r < RANKS; r++) RANK_CHECK(env, masked[r] == (r == VICTIM));
    RANK_OK(env, ferry_barrier(g, NULL));
    ferry_group_destroy(g);
    return true;
}

static void test_a_place_that_stays_empty(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS + 1, missing_rank, NULL);
    RANKS_ASSERT(RANKS_THREADS, RANKS + 1, missing_rank, (void *)(uintptr_t)SPARE);
}

/* A load balancer moves experts: the map of another case, and back. */
static bool rebalanced_rank(rank_env *env) {
    story *s = env->arg;
    exchange *x = exchange_begin(env, &s->with, env->rank);
    x->steps = 3;
    if (!exchange_open(x, &env->id) || !exchange_step(x) || !exchange_barrier(x)) return false;
    ferry_group_config cfg = exchange_config(x), wrong = cfg;
    for (int i = 0; i < 2; i++) {
        const case_data *next = i ? &s->with : &s->without;
        exchange_done(x);
        wrong.experts++;
        RANK_STATUS(env, FERRY_INVALID, ferry_group_reconfigure(x->group, NULL, &wrong));
        cfg.expert_first = next->expert_first;
        cfg.expert_rank = next->expert_rank;
        RANK_OK(env, ferry_group_reconfigure(x->group, NULL, &cfg));
        exchange_use(x, next);
        if (!exchange_step(x) || !exchange_barrier(x)) return false;
    }
    cfg.expert_first = cfg.expert_rank = NULL;
    if (env->rank == 0) { /* the default on one rank alone */
        RANK_STATUS(env, FERRY_MISMATCH, ferry_group_reconfigure(x->group, NULL, &cfg));
    } else {
        cfg.expert_first = s->with.expert_first;
        cfg.expert_rank = s->with.expert_rank;
        RANK_STATUS(env, FERRY_MISMATCH, ferry_group_reconfigure(x->group, NULL, &cfg));
    }
    RANK_CHECK(env, strstr(ferry_last_error(), "map of experts"));
    exchange_end(x);
    return true;
}

static void test_experts_move(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) {
        story s;
        xcase c;
        assert_true(case_parse("ranks=4 experts=9 copies=1 tokens=30 topk=4 weights=1 columns=48 dtype=1 in_type=1 "
                               "out_type=3 layout=1 back=1 weighted=1 rounds=2",
                               &c));
        c.layout = (int64_t)1 << i;
        c.mode = i % 2;
        c.seed = 1 + i;
        assert_true(case_build(&c, NULL, &s.with));
        for (c.seed += 50;; c.seed++) { /* another map that has room in the first one's */
            assert_true(case_build(&c, NULL, &s.without));
            if (s.without.homes_most <= s.with.homes_most && s.without.expert_first[9] <= s.with.expert_first[9]) break;
            case_free(&s.without);
        }
        RANKS_ASSERT(i % 2 ? RANKS_PROCESSES : RANKS_THREADS, RANKS, rebalanced_rank, &s);
        case_free(&s.with);
        case_free(&s.without);
    }
}

/* ------------------------------------------------------------------------------------------------------------------
 * Several hosts, of two ranks each: FERRY_HOSTS says how many
 * ---------------------------------------------------------------------------------------------------------------- */

#define FAR_VICTIM 3 /* on host 1, with rank 2 */

/* A host is lost, or one of its ranks: the others name it, agree at a new id, and go on without the whole host; again and again. */
static bool far_rank(rank_env *env) {
    const succession *s = env->arg; /* leaves: rank 2 outlives the other one of its host */
    exchange *x = exchange_begin(env, &s->data.with, env->rank);
    x->steps = 2;
    if (!exchange_open(x, &env->id) || !exchange_step(x) || !exchange_barrier(x) || !ranks_meet(env)) return false;
    exchange_done(x);
    if (env->rank == FAR_VICTIM || (env->rank == FAR_VICTIM - 1 && !s->leaves)) {
        if (env->how == RANKS_PROCESSES) return be_gone(env, KILLED, x->group);
        exchange_end(x);
        return true;
    }
    ferry_unique_id id;
    int64_t offset = 0;
    RANK_STATUS(env, FERRY_INVALID, ferry_group_agree(x->group, NULL, NULL));
    ferry_status status = ferry_barrier(x->group, NULL);
    RANK_CHECK(env, status == FERRY_TIMEOUT || status == FERRY_ABORTED || status == FERRY_SYSTEM);
    if (status == FERRY_TIMEOUT)
        RANK_CHECK(env, strstr(ferry_last_error(), "rank 2") || strstr(ferry_last_error(), "rank 3"));
    if (env->rank == 0) tell_id(env, 0);
    if (!hear_id(env, &id, &offset)) return false;
    ranks_step(env, "ferry_group_agree");
    status = ferry_group_agree(x->group, &id, NULL);
    if (env->rank == FAR_VICTIM - 1) {
        if (status != FERRY_REFUSED) return ranks_fail(env, "%s, not FERRY_REFUSED", ferry_status_name(status));
        exchange_end(x);
        return true;
    }
    RANK_OK(env, status);
    if (!check_mask(env, x->group, 1u << 2 | 1u << 3)) return false;
    exchange_use(x, &s->data.without);
    for (int i = 0; i < 2; i++) {
        if (!exchange_step(x) || !exchange_barrier(x)) return false;
        exchange_done(x);
    }
    exchange_end(x);
    return true;
}

static bool build_far_story(int seed, story *s) {
    char text[CASE_TEXT];
    xcase c;
    snprintf(text, sizeof text,
             "ranks=%d experts=11 copies=1 tokens=30 topk=4 weights=1 columns=48 dtype=1 in_type=1 out_type=3 back=1 "
             "layout=1 weighted=1 grad=1 rounds=2",
             2 * ranks_hosts());
    bool good = case_parse(text, &c);
    c.layout = (int64_t)1 << seed % 3;
    c.mode = seed / 3 % 2;
    c.stream = seed % 2;
    for (c.lost = 2, c.seed = seed;; c.seed += 12) {
        good = good && case_build(&c, NULL, &s->without);
        if (!good || (s->without.masked[2] && s->without.masked[3])) break;
        case_free(&s->without);
    }
    c.lost = 0;
    return good && case_build(&c, NULL, &s->with);
}

static void test_a_host_is_lost(void **state) {
    (void)state;
    for (int i = 0; i < 6; i++) {
        succession s = {.leaves = i % 2};
        assert_true(build_far_story(i, &s.data));
        RANKS_ASSERT(i < 2 ? RANKS_THREADS : RANKS_PROCESSES, 2 * ranks_hosts(), far_rank, &s);
        case_free(&s.data.with);
        case_free(&s.data.without);
    }
}

int main(void) {
    setenv("FERRY_TEST_TIMEOUT_MS", "3000", 0); /* of steps that fail; where nothing does, nobody waits so long */
    const struct CMUnitTest far[] = {cmocka_unit_test(test_a_host_is_lost)};
    if (ranks_hosts() > 1) return cmocka_run_group_tests(far, NULL, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_rank_that_is_gone),
        cmocka_unit_test(test_a_rank_that_dies_at_the_agreement),
        cmocka_unit_test(test_waits_end_when_a_rank_asks),
        cmocka_unit_test(test_a_rank_comes_back),
        cmocka_unit_test(test_a_rank_with_another_heap_stays_out),
        cmocka_unit_test(test_a_masked_rank_waits_in_vain),
        cmocka_unit_test(test_ranks_that_mask_each_other),
        cmocka_unit_test(test_agreements_without_a_loss),
        cmocka_unit_test(test_arguments_and_aborts),
        cmocka_unit_test(test_routes_end_with_their_era),
        cmocka_unit_test(test_steps_before_and_after),
        cmocka_unit_test(test_a_new_process_joins),
        cmocka_unit_test(test_a_place_that_stays_empty),
        cmocka_unit_test(test_experts_move),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
