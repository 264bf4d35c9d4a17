/* What goes wrong between ranks: configs that differ, ranks that never come, die or stop, aborts; and that nothing leaks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ranks/harness.h"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define RANKS  4 /* two for each of two hosts, where FERRY_HOSTS says so */
#define VICTIM 1
/* Over several hosts each rank has a thread more, and notes make a detour: on a busy machine a step takes longer. */
#define TIMEOUT_MS timeout_ms()

static int timeout_ms(void) {
    return getenv("FERRY_HOSTS") ? 1000 : 700;
}

static void nap_ms(int ms) {
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Configs that differ
 * ---------------------------------------------------------------------------------------------------------------- */

typedef struct difference {
    const char *field;
    void (*change)(ferry_group_config *cfg);
} difference;

static const int32_t four_first[] = {0, 1, 2, 3, 4}, four_rank[] = {0, 1, 2, 2};

#define CHANGE(name, statement)                          \
    static void change_##name(ferry_group_config *cfg) { \
        statement;                                       \
    }
CHANGE(experts, cfg->experts = 5)
CHANGE(hidden, cfg->hidden = 32)
CHANGE(tokens, cfg->max_tokens = 9)
CHANGE(topk, cfg->max_topk = 3)
CHANGE(dtype, cfg->dtype = FERRY_FP32)
CHANGE(layouts, cfg->layouts = FERRY_LAYOUT_SLOTS)
CHANGE(recv, cfg->max_recv_rows = 77)
CHANGE(heap, cfg->heap_bytes = 4096)
CHANGE(map, (cfg->expert_first = four_first, cfg->expert_rank = four_rank))
CHANGE(nothing, (cfg->timeout_ms += 5, cfg->threads = 2))

static const difference differences[] = {
    {"experts", change_experts},    {"hidden", change_hidden},   {"max_tokens", change_tokens},
    {"max_topk", change_topk},      {"dtype", change_dtype},     {"layouts", change_layouts},
    {"max_recv_rows", change_recv}, {"heap_bytes", change_heap}, {"expert", change_map},
    {NULL, change_nothing},
};

static bool differing_rank(rank_env *env) {
    const difference *d = env->arg;
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *g = NULL;
    if (env->rank == VICTIM) d->change(&cfg);
    if (!d->field) {
        if (!ranks_group(env, &cfg, &g)) return false;
        RANK_OK(env, ferry_barrier(g, NULL));
        ferry_group_destroy(g);
        return true;
    }
    RANK_STATUS(env, FERRY_MISMATCH, ferry_group_create(&env->id, env->rank, env->ranks, &cfg, &g));
    RANK_CHECK(env, g == NULL);
    RANK_CHECK(env, strstr(ferry_last_error(), d->field) != NULL);
    RANK_CHECK(env, strstr(ferry_last_error(), "rank 1") != NULL);
    return true;
}

static void test_configs_that_differ(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof differences / sizeof *differences; i++)
        RANKS_ASSERT(RANKS_THREADS, RANKS, differing_rank, (void *)(uintptr_t)&differences[i]);
}

static bool size_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *g = NULL;
    cfg.timeout_ms = TIMEOUT_MS;
    ferry_status s = ferry_group_create(&env->id, env->rank, env->rank == 0 ? 2 : 3, &cfg, &g);
    RANK_CHECK(env, s == FERRY_MISMATCH || s == FERRY_TIMEOUT);
    RANK_CHECK(env, g == NULL && *ferry_last_error());
    return true;
}

static void test_numbers_of_ranks_that_differ(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, 2, size_rank, NULL);
}

static bool parting_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(8, 16, 8, 2);
    ferry_group *g = NULL;
    setenv("FERRY_FABRIC_PARTS", env->rank == 3 ? "2" : "3", 1);
    RANK_STATUS(env, FERRY_MISMATCH, ferry_group_create(&env->id, env->rank, env->ranks, &cfg, &g));
    RANK_CHECK(env, strstr(ferry_last_error(), "FERRY_FABRIC_PARTS is") && strstr(ferry_last_error(), "on rank 3"));
    RANK_CHECK(env, g == NULL);
    return true;
}

/* Who tells of rows in more parts than are listened for would be waited for in vain. */
static void test_parts_that_differ(void **state) {
    (void)state;
    if (!getenv("FERRY_HOSTS")) skip();
    RANKS_ASSERT(RANKS_PROCESSES, 4, parting_rank, NULL);
}

static bool taken_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *g = NULL;
    cfg.timeout_ms = TIMEOUT_MS;
    ferry_status s = ferry_group_create(&env->id, 0, 2, &cfg, &g); /* both say that they are rank 0 */
    RANK_CHECK(env, s == FERRY_MISMATCH || s == FERRY_TIMEOUT);
    volatile int64_t *words = ranks_words(env);
    if (s == FERRY_MISMATCH) __atomic_fetch_add(&words[0], 1, __ATOMIC_SEQ_CST);
    RANK_CHECK(env, ranks_meet(env));
    RANK_CHECK(env, g == NULL && words[0] >= 1);
    return true;
}

static void test_a_rank_twice(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, 2, taken_rank, NULL);
}

static bool stranger_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *g = NULL;
    cfg.timeout_ms = 2000;
    if (env->rank == 0) {
        if (!ranks_group(env, &cfg, &g)) return false;
    } else { /* the right address and a wrong secret: any one byte of the id's end may be part of it */
        int refused = 0;
        for (size_t i = 0; i < sizeof env->id.bytes && refused == 0; i++) {
            ferry_unique_id forged = env->id;
            if (forged.bytes[i] == 0) continue;
            forged.bytes[i] ^= 1;
            cfg.timeout_ms = 200;
            ferry_status s = ferry_group_create(&forged, 1, 2, &cfg, &g);
            RANK_CHECK(env, s != FERRY_OK && g == NULL);
            refused += s == FERRY_REFUSED;
        }
        RANK_CHECK(env, refused > 0);
        cfg.timeout_ms = 2000;
        RANK_OK(env, ferry_group_create(&env->id, 1, 2, &cfg, &g));
    }
    ferry_group_destroy(g);
    return true;
}

static void test_a_stranger_is_refused(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, 2, stranger_rank, NULL);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Ranks that are late for ever
 * ---------------------------------------------------------------------------------------------------------------- */

typedef struct table { /* everything that a step may need */
    ferry_group *g;
    ferry_route *route;
    int32_t idx[8 * 2];
    _Alignas(16) uint16_t rows[8 * 16], sum[8 * 16], given[64 * 16];
    ferry_dispatch_in in;
    ferry_dispatch_out out;
    ferry_combine_in back;
    ferry_combine_out result;
    char all[RANKS];
    void *block;
} table;

static ferry_status do_route(table *t) {
    ferry_route_config cfg = FERRY_ROUTE_CONFIG_INIT;
    cfg.topk_idx = ferry_tensor_2d(t->idx, FERRY_INT32, 8, 2);
    cfg.layout = FERRY_LAYOUT_RANK;
    return ferry_route_create(t->g, &cfg, &t->route, NULL);
}
static ferry_status do_send(table *t) {
    t->out = FERRY_DISPATCH_OUT_INIT;
    return ferry_dispatch_send(t->route, &t->in, &t->out, NULL, NULL);
}
static ferry_status do_recv(table *t) {
    return ferry_dispatch_recv(t->route, &t->out, NULL);
}
static ferry_status do_dispatch(table *t) {
    t->out = FERRY_DISPATCH_OUT_INIT;
    return ferry_dispatch(t->route, &t->in, &t->out, NULL, NULL);
}
static ferry_status do_combine(table *t) {
    ferry_route_info info = FERRY_ROUTE_INFO_INIT;
    ferry_route_get_info(t->route, &info);
    t->back.rows = ferry_tensor_2d(t->given, FERRY_BF16, info.rows, 16);
    return ferry_combine(t->route, &t->back, &t->result, NULL, NULL);
}
static ferry_status do_barrier(table *t) {
    return ferry_barrier(t->g, NULL);
}
static ferry_status do_alloc(table *t) {
    return ferry_heap_alloc(t->g, 100, &t->block);
}
static ferry_status do_gather(table *t) {
    return ferry_allgather(t->g, t->all, t->all, 1, NULL);
}

typedef struct step {
    const char *name;                   /* that the sentence must have */
    ferry_status (*before[3])(table *); /* done by all */
    ferry_status (*last)(table *);      /* not done by the victim */
} step;

static const step steps[] = {
    {"barrier", {NULL}, do_barrier},
    {"alloc", {NULL}, do_alloc},
    {"gather", {NULL}, do_gather},
    {"route", {NULL}, do_route},
    {"dispatch", {do_route}, do_dispatch},
    {"dispatch", {do_route, do_dispatch}, do_dispatch},
    {"combine", {do_route, do_dispatch}, do_combine},
    {"combine", {do_route, do_dispatch, do_combine}, do_combine},
    {"barrier", {do_route, do_send, do_recv}, do_barrier},
};

typedef enum fate { ABSENT, KILLED, STOPPED } fate;

typedef struct late {
    fate fate;
    const step *step; /* NULL: the making of the group */
} late;

static void fill_table(table *t) {
    memset(t, 0, sizeof *t);
    for (int i = 0; i < 16; i++) t->idx[i] = i % 4;
    t->in = FERRY_DISPATCH_IN_INIT;
    t->in.rows = ferry_tensor_2d(t->rows, FERRY_BF16, 8, 16);
    t->out = FERRY_DISPATCH_OUT_INIT;
    t->back = FERRY_COMBINE_IN_INIT;
    t->result = FERRY_COMBINE_OUT_INIT;
    t->result.rows = ferry_tensor_2d(t->sum, FERRY_BF16, 8, 16);
}

/* FERRY_TIMEOUT at the right time, with a sentence that names the victim, nobody else, and the step. */
static bool check_late(rank_env *env, ferry_status status, int64_t started, const char *name) {
    int64_t took = ranks_now_ms() - started;
    const char *sentence = ferry_last_error();
    if (status != FERRY_TIMEOUT)
        return ranks_fail(env, "%s, not FERRY_TIMEOUT: %s", ferry_status_name(status), sentence);
    /* A group that is being made ends for all when the first one's time is up. */
    if ((*name && took < TIMEOUT_MS - 50) || took > TIMEOUT_MS + 1000)
        return ranks_fail(env, "FERRY_TIMEOUT after %lld ms, the deadline is %d ms: %s", (long long)took, TIMEOUT_MS,
                          sentence);
    if (!strstr(sentence, "rank 1")) return ranks_fail(env, "rank 1 is not named: %s", sentence);
    for (int r = 0; r < RANKS; r++) {
        char other[32];
        snprintf(other, sizeof other, "rank %d", r);
        if (r != VICTIM && r != env->rank && strstr(sentence, other))
            return ranks_fail(env, "%s is named, but it came: %s", other, sentence);
    }
    if (!strstr(sentence, name)) return ranks_fail(env, "the step \"%s\" is not named: %s", name, sentence);
    return true;
}

static bool be_late(rank_env *env, fate how) {
    if (how == KILLED || how == STOPPED) {
        ranks_doom(env);
        kill(getpid(), how == KILLED ? SIGKILL : SIGSTOP);
        pause();
    }
    return ranks_meet(env); /* absent: until the others have seen it */
}

static bool late_rank(rank_env *env) {
    const late *l = env->arg;
    table *t = ranks_new(env, sizeof *t);
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    cfg.timeout_ms = TIMEOUT_MS;
    cfg.heap_bytes = 4096;
    fill_table(t);
    int64_t started = ranks_now_ms();
    if (!l->step) {
        if (env->rank == VICTIM) return be_late(env, l->fate);
        if (!check_late(env, ferry_group_create(&env->id, env->rank, RANKS, &cfg, &t->g), started, "")) return false;
        return l->fate != ABSENT || ranks_meet(env);
    }
    if (!ranks_group(env, &cfg, &t->g)) return false;
    for (int i = 0; i < 3 && l->step->before[i]; i++) RANK_OK(env, l->step->before[i](t));
    if (!ranks_meet(env)) return false; /* a rank of another host that dies takes along what has not left it yet */
    if (env->rank == VICTIM) {
        bool good = be_late(env, l->fate);
        ferry_group_destroy(t->g);
        return good;
    }
    started = ranks_now_ms();
    if (!check_late(env, l->step->last(t), started, l->step->name)) return false;
    /* The group now only accepts destroy, and destroy does not wait for the rank either. */
    RANK_CHECK(env, ferry_barrier(t->g, NULL) != FERRY_OK);
    started = ranks_now_ms();
    ferry_route_destroy(t->route);
    ferry_group_destroy(t->g);
    RANK_CHECK(env, ranks_now_ms() - started < 1000);
    return l->fate != ABSENT || ranks_meet(env);
}

static void all_steps(fate of_rank, ranks_how how) {
    late making = {of_rank, NULL};
    RANKS_ASSERT(how, RANKS, late_rank, &making);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        late l = {of_rank, &steps[i]};
        RANKS_ASSERT(how, RANKS, late_rank, &l);
    }
}

static void test_a_rank_that_never_comes(void **state) {
    (void)state;
    all_steps(ABSENT, RANKS_THREADS);
}

static void test_a_rank_that_is_killed(void **state) {
    (void)state;
    all_steps(KILLED, RANKS_PROCESSES);
}

static void test_a_rank_that_is_stopped(void **state) {
    (void)state;
    late making = {STOPPED, NULL};
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, late_rank, &making);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i += 3) {
        late l = {STOPPED, &steps[i]};
        RANKS_ASSERT(RANKS_PROCESSES, RANKS, late_rank, &l);
    }
}

/* The same on a stream: the call returns, sync and ferry_group_error have the timeout, and destroy ends. What waits on another stream at that
 * moment has not been done either, whichever of the two gives up first, and its sync says so. */
static bool late_stream_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *g;
    ferry_stream *stream, *other;
    cfg.timeout_ms = TIMEOUT_MS;
    if (!ranks_group(env, &cfg, &g)) return false;
    if (env->rank != VICTIM) {
        RANK_OK(env, ferry_stream_create(g, &stream));
        int64_t started = ranks_now_ms();
        RANK_OK(env, ferry_stream_create(g, &other));
        RANK_OK(env, ferry_barrier(g, stream));
        RANK_OK(env, ferry_barrier(g, other));
        RANK_CHECK(env, ranks_now_ms() - started < TIMEOUT_MS / 2);
        if (!check_late(env, ferry_stream_sync(stream), started, "barrier")) return false;
        ferry_status second = ferry_stream_sync(other);
        RANK_CHECK(env, second == FERRY_TIMEOUT || second == FERRY_ABORTED);
        RANK_STATUS(env, FERRY_TIMEOUT, ferry_group_error(g));
        ferry_stream_destroy(other);
        ferry_stream_destroy(stream);
    }
    RANK_CHECK(env, ranks_meet(env));
    ferry_group_destroy(g);
    return true;
}

static void test_late_on_a_stream(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, late_stream_rank, NULL);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, late_stream_rank, NULL);
}

/* An index that is no expert, on a stream and with nobody waiting: told by ferry_group_error though nobody has synced, then by the sync, once;
 * the step goes on without the choice, and so does the group. */
static bool wrong_index_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_route_config rc = FERRY_ROUTE_CONFIG_INIT;
    ferry_group *g;
    ferry_stream *stream;
    ferry_route *route;
    int64_t *idx = ranks_new(env, 2 * sizeof *idx);
    bool mine = env->rank == VICTIM;
    if (!ranks_group(env, &cfg, &g)) return false;
    RANK_OK(env, ferry_stream_create(g, &stream));
    idx[0] = env->rank;
    idx[1] = mine ? 4 : -1;
    rc.topk_idx = ferry_tensor_2d(idx, FERRY_INT64, 1, 2);
    rc.layout = FERRY_LAYOUT_RANK;
    rc.mode = FERRY_LATENCY;
    RANK_OK(env, ferry_route_create(g, &rc, &route, stream));
    while (!ferry_stream_idle(stream)) nap_ms(1);
    RANK_STATUS(env, mine ? FERRY_INVALID : FERRY_OK, ferry_group_error(g));
    RANK_STATUS(env, mine ? FERRY_INVALID : FERRY_OK, ferry_stream_sync(stream));
    RANK_OK(env, ferry_stream_sync(stream));
    RANK_OK(env, ferry_barrier(g, stream));
    RANK_OK(env, ferry_stream_sync(stream));
    ferry_route_destroy(route);
    ferry_stream_destroy(stream);
    ferry_group_destroy(g);
    return true;
}

static void test_wrong_index_on_a_stream(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, wrong_index_rank, NULL);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, wrong_index_rank, NULL);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Abort
 * ---------------------------------------------------------------------------------------------------------------- */

static void *abort_soon(void *group) {
    nap_ms(100);
    ferry_group_abort(group);
    return NULL;
}

/* The others wait for rank 1, whose other thread aborts. */
static bool abort_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *g;
    ferry_stream *stream = NULL;
    pthread_t thread;
    cfg.timeout_ms = 15000;
    if (!ranks_group(env, &cfg, &g)) return false;
    if (*(bool *)env->arg) RANK_OK(env, ferry_stream_create(g, &stream));
    int64_t started = ranks_now_ms();
    if (env->rank == VICTIM) {
        RANK_CHECK(env, pthread_create(&thread, NULL, abort_soon, g) == 0);
        pthread_join(thread, NULL);
    } else {
        ferry_status s = ferry_barrier(g, stream);
        if (stream && s == FERRY_OK) s = ferry_stream_sync(stream);
        RANK_CHECK(env, s == FERRY_ABORTED);
    }
    RANK_CHECK(env, ranks_now_ms() - started < 2000);
    RANK_STATUS(env, FERRY_ABORTED, ferry_barrier(g, NULL));
    RANK_STATUS(env, FERRY_ABORTED, ferry_group_error(g));
    RANK_OK(env, ferry_group_abort(g)); /* again, by everybody */
    ferry_stream_destroy(stream);
    ferry_group_destroy(g);
    RANK_CHECK(env, ranks_now_ms() - started < 3000);
    return true;
}

static void test_abort_wakes_all(void **state) {
    (void)state;
    for (int stream = 0; stream < 2; stream++) {
        bool arg = stream;
        RANKS_ASSERT(RANKS_THREADS, RANKS, abort_rank, &arg);
        RANKS_ASSERT(RANKS_PROCESSES, RANKS, abort_rank, &arg);
    }
}

/* ------------------------------------------------------------------------------------------------------------------
 * Leaks
 * ---------------------------------------------------------------------------------------------------------------- */

typedef enum ending { IN_PEACE, ABORTED, UNDESTROYED_PARTS } ending;

static bool live_once(rank_env *env, const ferry_unique_id *id, ending how, table *t) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_stream *stream;
    ferry_event *event;
    cfg.heap_bytes = 4096;
    cfg.threads = 2;
    fill_table(t);
    RANK_OK(env, ferry_group_create(id, env->rank, env->ranks, &cfg, &t->g));
    RANK_OK(env, ferry_stream_create(t->g, &stream));
    RANK_OK(env, ferry_event_create(t->g, &event));
    RANK_OK(env, do_alloc(t));
    RANK_OK(env, do_route(t));
    RANK_OK(env, do_dispatch(t));
    RANK_OK(env, do_combine(t));
    RANK_OK(env, ferry_event_record(event, stream));
    RANK_CHECK(env, ranks_meet(env));
    if (how == ABORTED) RANK_OK(env, ferry_group_abort(t->g));
    if (how != UNDESTROYED_PARTS) { /* "destroy frees everything of it: routes, heap memory and its streams" */
        ferry_event_destroy(event);
        ferry_route_destroy(t->route);
        ferry_stream_destroy(stream);
    } else {
        ferry_event_destroy(event);
    }
    ferry_group_destroy(t->g);
    return true;
}

static bool leak_rank(rank_env *env) {
    ending how = *(ending *)env->arg;
    volatile int64_t *words = ranks_words(env);
    ferry_unique_id *shared = (ferry_unique_id *)(uintptr_t)&words[8], id;
    ranks_holds before = {0};
    table *t = ranks_new(env, sizeof *t);
    for (int round = 0; round < 6; round++) {
        ranks_step(env, "life %d", round);
        if (env->rank == 0 && round > 0) RANK_OK(env, ferry_unique_id_create(shared));
        RANK_CHECK(env, ranks_meet(env));
        id = round > 0 ? *shared : env->id;
        if (!live_once(env, &id, how, t)) return false;
        RANK_CHECK(env, ranks_meet(env));
        /* Threads share a process: one of them counts while the others wait. The first lives warm up what libc keeps. */
        if (round == 1) nap_ms(100);
        if (round == 1 && (env->rank == 0 || env->how == RANKS_PROCESSES)) before = ranks_held();
        RANK_CHECK(env, ranks_meet(env));
    }
    bool counts = env->rank == 0 || env->how == RANKS_PROCESSES;
    bool good = !counts || ranks_no_leak(env, before);
    return ranks_meet(env) && good;
}

static void test_nothing_leaks(void **state) {
    (void)state;
    for (int how = IN_PEACE; how <= UNDESTROYED_PARTS; how++) {
        ending arg = (ending)how;
        RANKS_ASSERT(RANKS_THREADS, RANKS, leak_rank, &arg);
        RANKS_ASSERT(RANKS_PROCESSES, RANKS, leak_rank, &arg);
    }
}

/* All shared memory of this machine, in MB: heaps have no names to look for. */
static int64_t shared_mb(void) {
    FILE *f = fopen("/proc/meminfo", "r");
    char line[256];
    long long kb = 0;
    while (f && fgets(line, sizeof line, f)) sscanf(line, "Shmem: %lld", &kb);
    if (f) fclose(f);
    return kb / 1024;
}

enum { HEAP_MB = 64, SOME_MB = 64 }; /* of each rank; what others may take or give back meanwhile */

/* After a kill -9 of everybody, nothing of their heaps is left: neither a name in /dev/shm nor the memory. */
static bool killed_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    const int64_t *before = env->arg;
    ferry_group *g;
    void *mine;
    cfg.heap_bytes = (int64_t)HEAP_MB << 20;
    if (!ranks_group(env, &cfg, &g)) return false;
    RANK_OK(env, ferry_heap_alloc(g, (size_t)HEAP_MB << 20, &mine));
    if (cfg.device == FERRY_CPU) memset(mine, 1, (size_t)HEAP_MB << 20);
    RANK_CHECK(env, ranks_meet(env));
    if (cfg.device == FERRY_CPU) RANK_CHECK(env, shared_mb() - *before > RANKS * HEAP_MB - SOME_MB);
    RANK_CHECK(env, ranks_meet(env));
    ranks_doom(env);
    kill(getpid(), SIGKILL);
    return false;
}

/* Whether it all came back; the machine's memory is also everybody else's. */
static bool all_came_back(char *why) {
    int64_t before = shared_mb();
    if (!ranks_run(RANKS_PROCESSES, RANKS, RANKS_DEFAULT, killed_rank, &before, why)) return false;
    for (int i = 0; i < 300 && shared_mb() > before + SOME_MB; i++)
        nap_ms(10); /* the last of them is being taken apart */
    if (shared_mb() <= before + SOME_MB) return true;
    snprintf(why, RANKS_WHY, "%lld MB of shared memory before, %lld after", (long long)before, (long long)shared_mb());
    return false;
}

static void test_no_shared_memory_after_kill(void **state) {
    (void)state;
    char why[RANKS_WHY] = "";
    bool good = false;
    int files = ranks_held().shm_files;
    for (int attempt = 0; attempt < 5 && !good; attempt++) good = all_came_back(why);
    if (!good) fail_msg("five times: %s", why);
    assert_int_equal(ranks_held().shm_files, files);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_configs_that_differ),
        cmocka_unit_test(test_numbers_of_ranks_that_differ),
        cmocka_unit_test(test_parts_that_differ),
        cmocka_unit_test(test_a_rank_twice),
        cmocka_unit_test(test_a_stranger_is_refused),
        cmocka_unit_test(test_a_rank_that_never_comes),
        cmocka_unit_test(test_a_rank_that_is_killed),
        cmocka_unit_test(test_a_rank_that_is_stopped),
        cmocka_unit_test(test_late_on_a_stream),
        cmocka_unit_test(test_wrong_index_on_a_stream),
        cmocka_unit_test(test_abort_wakes_all),
        cmocka_unit_test(test_nothing_leaks),
        cmocka_unit_test(test_no_shared_memory_after_kill),
    };
    setenv("FERRY_TOUCH_MB", "1", 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
