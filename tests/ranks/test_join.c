/* Meeting again: a new process takes a lost rank's place, experts move, and where ranks are on several hosts (FERRY_HOSTS) those that are
 * left go on without a host. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ranks/lost.h"
#include <stdio.h>

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
        if (s->leaves) RANK_OK(env, ferry_group_abort(x->group)); /* ends nothing but itself */
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
        wrong.hidden += 8;
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

/* Experts move while a rank is masked: it comes back with the old map, which nobody goes on with. */
static bool old_map_rank(rank_env *env) {
    story *s = env->arg;
    exchange *x = exchange_begin(env, &s->with, env->rank);
    x->steps = 2;
    if (!exchange_open(x, &env->id) || !exchange_step(x) || !exchange_barrier(x)) return false;
    exchange_done(x);
    ferry_group_config cfg = exchange_config(x);
    cfg.expert_first = s->without.expert_first;
    cfg.expert_rank = s->without.expert_rank;
    if (env->rank == 0) RANK_OK(env, ferry_group_mask_set(x->group, VICTIM, 1));
    RANK_STATUS(env, env->rank == VICTIM ? FERRY_REFUSED : FERRY_OK, ferry_group_agree(x->group, NULL, NULL));
    if (env->rank != VICTIM) RANK_OK(env, ferry_group_reconfigure(x->group, NULL, &cfg));
    if (env->rank == 0) RANK_OK(env, ferry_group_mask_set(x->group, VICTIM, 0));
    if (!ranks_meet(env)) return false;
    RANK_STATUS(env, FERRY_MISMATCH, ferry_group_agree(x->group, NULL, NULL));
    RANK_CHECK(env, strstr(ferry_last_error(), "the map of experts differs on rank"));
    RANK_CHECK(env, ferry_barrier(x->group, NULL) != FERRY_OK); /* not before they have one */
    ferry_unique_id id;
    int64_t offset = 0;
    if (env->rank == 0) tell_id(env, 0);
    if (!hear_id(env, &id, &offset)) return false;
    RANK_OK(env, ferry_group_reconfigure(x->group, &id, &cfg));
    exchange_use(x, &s->without);
    if (!check_mask(env, x->group, 0) || !exchange_step(x) || !exchange_barrier(x)) return false;
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
        RANKS_ASSERT(i % 2 ? RANKS_THREADS : RANKS_PROCESSES, RANKS, old_map_rank, &s);
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
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_new_process_joins),
        cmocka_unit_test(test_a_place_that_stays_empty),
        cmocka_unit_test(test_experts_move),
    };
    if (ranks_hosts() > 1) return cmocka_run_group_tests(far, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
