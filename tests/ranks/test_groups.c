/* Ways to make groups, several groups at once, and streams and events. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ranks/harness.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define RANKS 4

static void nap_ms(int ms) {
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

/* The group is whole: everybody's rank comes back in its place. */
static bool check_group(rank_env *env, ferry_group *g, int rank, int ranks) {
    int *all = ranks_new(env, RANKS_MAX * sizeof *all);
    RANK_CHECK(env, ferry_group_rank(g) == rank && ferry_group_ranks(g) == ranks);
    all[rank] = rank;
    RANK_OK(env, ferry_allgather(g, all + rank, all, sizeof rank, NULL));
    for (int r = 0; r < ranks; r++) RANK_CHECK(env, all[r] == r);
    RANK_OK(env, ferry_barrier(g, NULL));
    return true;
}

static bool unique_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(7, 16, 8, 2);
    ferry_group *g;
    const int32_t *experts;
    int64_t bytes = 0;
    if (!ranks_group(env, &cfg, &g) || !check_group(env, g, env->rank, env->ranks)) return false;
    int next = 0; /* blocks of the seven experts, in rank order */
    for (int r = 0; r < env->ranks; r++) {
        int n = ferry_group_local_experts(g, r, &experts);
        for (int i = 0; i < n; i++, next++) RANK_CHECK(env, experts[i] == next && next * env->ranks / 7 <= r);
        RANK_CHECK(env, n == (r + 1) * 7 / env->ranks - r * 7 / env->ranks);
    }
    RANK_CHECK(env, next == 7);
    RANK_OK(env, ferry_group_bytes(&cfg, env->ranks, &bytes));
    RANK_CHECK(env, bytes > 0);
    ferry_group_destroy(g);
    return true;
}

static void test_unique_id(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 16; ranks = ranks * 2 + 1) {
        RANKS_ASSERT(RANKS_THREADS, ranks_even(ranks), unique_rank, NULL);
        RANKS_ASSERT(RANKS_PROCESSES, ranks_even(ranks), unique_rank, NULL);
    }
}

/* The same allgather that an MPI program would hand in, over the harness's shared words. */
typedef struct meeting {
    rank_env *env;
    int calls;
} meeting;

static int words_allgather(void *context, const void *mine, void *all, size_t bytes) {
    meeting *m = context;
    uint8_t *board = (uint8_t *)(uintptr_t)ranks_words(m->env);
    size_t room = sizeof(int64_t) * RANKS_WORDS / (size_t)m->env->ranks;
    m->calls++;
    for (size_t at = 0; at < bytes; at += room) {
        size_t n = bytes - at < room ? bytes - at : room;
        memcpy(board + room * (size_t)m->env->rank, (const uint8_t *)mine + at, n);
        if (!ranks_meet(m->env)) return 1;
        for (int r = 0; r < m->env->ranks; r++)
            memcpy((uint8_t *)all + bytes * (size_t)r + at, board + room * (size_t)r, n);
        if (!ranks_meet(m->env)) return 1;
    }
    return 0;
}

static bool callback_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *g;
    meeting m = {env, 0};
    RANK_OK(env, ferry_group_create_with(words_allgather, &m, env->rank, env->ranks, &cfg, &g));
    int calls = m.calls;
    if (!check_group(env, g, env->rank, env->ranks)) return false;
    RANK_CHECK(env, m.calls == calls && calls > 0); /* only during the call */
    ferry_group_destroy(g);
    return true;
}

static int failing_allgather(void *context, const void *mine, void *all, size_t bytes) {
    (void)mine, (void)all, (void)bytes;
    return *(int *)context;
}

static bool failing_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *g = NULL;
    int answer = 42;
    ferry_status s = ferry_group_create_with(failing_allgather, &answer, env->rank, env->ranks, &cfg, &g);
    RANK_CHECK(env, s != FERRY_OK && g == NULL && strstr(ferry_last_error(), "42") != NULL);
    return true;
}

static void test_callback(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, callback_rank, NULL);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, callback_rank, NULL);
    RANKS_ASSERT(RANKS_THREADS, 2, failing_rank, NULL);
}

/* The launchers' variables for rank and ranks; all meet at the same place. */
typedef struct launcher {
    const char *rank, *ranks;
    bool torch; /* MASTER_ADDR and MASTER_PORT instead of FERRY_BOOT */
    bool bare;  /* neither meeting place nor secret: what the common parent process gives */
    int port;
} launcher;

static void clear_launchers(void) {
    static const char *const names[] = {"FERRY_RANK",
                                        "FERRY_RANKS",
                                        "RANK",
                                        "WORLD_SIZE",
                                        "MASTER_ADDR",
                                        "MASTER_PORT",
                                        "PMI_RANK",
                                        "PMI_SIZE",
                                        "OMPI_COMM_WORLD_RANK",
                                        "OMPI_COMM_WORLD_SIZE",
                                        "PMIX_RANK",
                                        "PMIX_SIZE",
                                        "SLURM_PROCID",
                                        "SLURM_NTASKS",
                                        "SLURM_NPROCS",
                                        "SLURM_STEP_ID",
                                        "TORCHELASTIC_RUN_ID",
                                        "FERRY_BOOT_SECRET",
                                        "FERRY_BOOT",
                                        "SLURM_JOB_ID",
                                        "PMIX_NAMESPACE",
                                        "OMPI_COMM_WORLD_LOCAL_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unsetenv(names[i]);
}

static void set_number(const char *name, int value) {
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    setenv(name, text, 1);
}

static bool env_rank(rank_env *env) {
    const launcher *l = env->arg;
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *g;
    char boot[32];
    clear_launchers();
    set_number(l->rank, env->rank);
    set_number(l->ranks, env->ranks);
    if (l->torch) {
        setenv("MASTER_ADDR", "127.0.0.1", 1);
        set_number("MASTER_PORT", l->port);
    } else if (!l->bare) {
        snprintf(boot, sizeof boot, "127.0.0.1:%d", l->port);
        setenv("FERRY_BOOT", boot, 1);
    }
    if (!l->bare) setenv("FERRY_BOOT_SECRET", "a secret of this test", 1);
    ranks_step(env, "ferry_group_create_env by %s", l->rank);
    RANK_OK(env, ferry_group_create_env(&cfg, &g));
    if (!check_group(env, g, env->rank, env->ranks)) return false;
    ferry_group_destroy(g);
    return true;
}

static bool port_is_free(int port) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    bool good = fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0;
    if (fd >= 0) close(fd);
    return good;
}

/* A port that was free a moment ago, and the next one too; below those that the system gives out by itself. */
static int free_port(void) {
    static int last;
    if (!last) last = 20000 + (int)getpid() % 10000;
    do last = last < 31000 ? last + 2 : 20000;
    while (!port_is_free(last) || !port_is_free(last + 1));
    return last;
}

static bool no_launcher_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *g = NULL;
    clear_launchers();
    RANK_STATUS(env, FERRY_INVALID, ferry_group_create_env(&cfg, &g));
    RANK_CHECK(env,
               g == NULL && strstr(ferry_last_error(), "FERRY_RANK") && strstr(ferry_last_error(), "SLURM_PROCID"));
    setenv("FERRY_RANK", "two", 1);
    setenv("FERRY_RANKS", "4", 1);
    RANK_STATUS(env, FERRY_INVALID, ferry_group_create_env(&cfg, &g));
    RANK_CHECK(env, strstr(ferry_last_error(), "two") != NULL);
    return true;
}

static void test_environment(void **state) {
    (void)state;
    launcher launchers[] = {{.rank = "FERRY_RANK", .ranks = "FERRY_RANKS"},
                            {.rank = "RANK", .ranks = "WORLD_SIZE", .torch = true},
                            {.rank = "OMPI_COMM_WORLD_RANK", .ranks = "OMPI_COMM_WORLD_SIZE"},
                            {.rank = "PMI_RANK", .ranks = "PMI_SIZE"},
                            {.rank = "PMIX_RANK", .ranks = "PMIX_SIZE"},
                            {.rank = "PMIX_RANK", .ranks = "SLURM_NTASKS"},
                            {.rank = "SLURM_PROCID", .ranks = "SLURM_NTASKS"},
                            {.rank = "SLURM_PROCID", .ranks = "SLURM_NPROCS"},
                            {.rank = "PMI_RANK", .ranks = "PMI_SIZE", .bare = true}};
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) {
        launchers[i].port = free_port();
        RANKS_ASSERT(RANKS_PROCESSES, RANKS, env_rank, &launchers[i]);
    }
    RANKS_ASSERT(RANKS_PROCESSES, 1, no_launcher_rank, NULL);
}

/* Several groups at once: one of all ranks, one of all in reverse order, and one of each rank alone; used in turns. */
static bool many_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *all, *reverse, *alone;
    meeting m = {env, 0};
    ferry_unique_id own, *board = (ferry_unique_id *)(uintptr_t)ranks_words(env);
    int last = env->ranks - 1;
    cfg.heap_bytes = 4096;
    if (!ranks_group(env, &cfg, &all)) return false;
    if (env->rank == last) RANK_OK(env, ferry_unique_id_create(board));
    RANK_CHECK(env, ranks_meet(env));
    ferry_unique_id id = *board;
    RANK_CHECK(env, ranks_meet(env));
    RANK_OK(env, ferry_group_create(&id, last - env->rank, env->ranks, &cfg, &reverse));
    RANK_OK(env, ferry_unique_id_create(&own));
    RANK_OK(env, ferry_group_create(&own, 0, 1, &cfg, &alone));
    for (int i = 0; i < 50; i++) {
        if (!check_group(env, all, env->rank, env->ranks) || !check_group(env, alone, 0, 1)) return false;
        if (!check_group(env, reverse, last - env->rank, env->ranks)) return false;
    }
    RANK_CHECK(env, ranks_meet(env)); /* else a rank would still be in the barrier of the group that is aborted */
    RANK_OK(env, ferry_group_abort(reverse)); /* the others go on */
    if (!check_group(env, all, env->rank, env->ranks) || !check_group(env, alone, 0, 1)) return false;
    ferry_group_destroy(reverse);
    RANK_OK(env, ferry_group_create_with(words_allgather, &m, env->rank, env->ranks, &cfg, &reverse));
    if (!check_group(env, reverse, env->rank, env->ranks)) return false;
    ferry_group_destroy(alone);
    ferry_group_destroy(all);
    ferry_group_destroy(reverse);
    return true;
}

static void test_many_groups(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, many_rank, NULL);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, many_rank, NULL);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Streams and events
 * ---------------------------------------------------------------------------------------------------------------- */

typedef struct note {
    int *log, *next, value, nap;
} note;

static void write_note(void *argument) {
    note *n = argument;
    if (n->nap) nap_ms(n->nap);
    n->log[__atomic_fetch_add(n->next, 1, __ATOMIC_SEQ_CST)] = n->value;
}

static bool order_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *g;
    ferry_stream *a, *b;
    ferry_event *event;
    int log[64], next = 0;
    note notes[64];
    if (!ranks_group(env, &cfg, &g)) return false;
    RANK_OK(env, ferry_stream_create(g, &a));
    RANK_OK(env, ferry_stream_create(g, &b));
    RANK_OK(env, ferry_event_create(g, &event));
    RANK_CHECK(env, ferry_event_done(event) == 1); /* never recorded: has happened */
    RANK_OK(env, ferry_stream_wait_event(b, event));
    RANK_OK(env, ferry_event_sync(event));
    RANK_CHECK(env, ferry_stream_idle(a) == 1);
    for (int i = 0; i < 32; i++) { /* in order on one stream, although the early ones are slow; barriers between */
        notes[i] = (note){log, &next, i, i < 4 ? 20 : 0};
        RANK_OK(env, ferry_stream_call(a, write_note, &notes[i]));
        if (i % 8 == 0) RANK_OK(env, ferry_barrier(g, a));
    }
    RANK_CHECK(env, ferry_stream_idle(a) == 0);
    RANK_OK(env, ferry_event_record(event, a));
    RANK_CHECK(env, ferry_event_done(event) == 0);
    RANK_OK(env, ferry_stream_wait_event(b, event)); /* b goes on only after a */
    for (int i = 32; i < 64; i++) {
        notes[i] = (note){log, &next, i, 0};
        RANK_OK(env, ferry_stream_call(b, write_note, &notes[i]));
    }
    RANK_OK(env, ferry_event_sync(event));
    RANK_CHECK(env, ferry_event_done(event) == 1 && __atomic_load_n(&next, __ATOMIC_SEQ_CST) >= 32);
    RANK_OK(env, ferry_stream_sync(b));
    RANK_OK(env, ferry_stream_sync(a));
    RANK_CHECK(env, ferry_stream_idle(a) == 1 && ferry_stream_idle(b) == 1);
    for (int i = 0; i < 64; i++) RANK_CHECK(env, log[i] == i);
    RANK_OK(env, ferry_event_record(event, NULL)); /* NULL stream: now */
    RANK_CHECK(env, ferry_event_done(event) == 1);
    ferry_event_destroy(event);
    ferry_stream_destroy(a);
    ferry_stream_destroy(b);
    ferry_group_destroy(g);
    return true;
}

/* The caller computes while a stream waits for a rank that comes late; the call itself returned at once. */
static bool overlap_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *g;
    ferry_stream *s;
    char *all = ranks_new(env, RANKS_MAX), *mine = all + env->rank;
    *mine = (char)env->rank;
    if (!ranks_group(env, &cfg, &g)) return false;
    RANK_OK(env, ferry_stream_create(g, &s));
    if (env->rank == 0) nap_ms(300);
    int64_t started = ranks_now_ms();
    RANK_OK(env, ferry_allgather(g, mine, all, 1, s));
    RANK_CHECK(env, ranks_now_ms() - started < 150);
    if (env->rank != 0) RANK_CHECK(env, ferry_stream_idle(s) == 0);
    RANK_OK(env, ferry_stream_sync(s));
    for (int r = 0; r < env->ranks; r++) RANK_CHECK(env, all[r] == r);
    ferry_stream_destroy(s);
    ferry_group_destroy(g);
    return true;
}

typedef struct expert { /* the caller's compute between dispatch and combine, on the stream: y = 2 * x */
    ferry_dispatch_out *out;
    int64_t rows;
} expert;

static void run_expert(void *argument) {
    expert *e = argument;
    float *x = e->out->rows.data;
    for (int64_t i = 0; i < e->rows * 16; i++) x[i] *= 2;
}

/* Ten layers queued at once on one stream, nothing waited for in between. */
static bool layers_rank(rank_env *env) {
    enum { TOKENS = 8, LAYERS = 10 };
    ferry_group_config cfg = ranks_config(4, 16, TOKENS, 2);
    ferry_group *g;
    ferry_stream *s;
    ferry_route *route;
    ferry_route_info info = FERRY_ROUTE_INFO_INIT;
    ferry_route_config rc = FERRY_ROUTE_CONFIG_INIT;
    int32_t *idx = ranks_new(env, TOKENS * sizeof *idx);
    float(*x)[TOKENS * 16] = ranks_new(env, (LAYERS + 1) * sizeof *x);
    ferry_dispatch_out *out = ranks_new(env, LAYERS * sizeof *out);
    expert experts[LAYERS];
    cfg.dtype = FERRY_FP32;
    for (int i = 0; i < TOKENS; i++) idx[i] = (i + env->rank) % 4;
    for (int i = 0; i < TOKENS * 16; i++) x[0][i] = (float)(i + env->rank);
    if (!ranks_group(env, &cfg, &g)) return false;
    RANK_OK(env, ferry_stream_create(g, &s));
    rc.topk_idx = ferry_tensor_2d(idx, FERRY_INT32, TOKENS, 1);
    rc.layout = FERRY_LAYOUT_EXPERT;
    RANK_OK(env, ferry_route_create(g, &rc, &route, s));
    RANK_OK(env, ferry_route_get_info(route, &info));
    for (int l = 0; l < LAYERS; l++) {
        ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
        ferry_combine_in back = FERRY_COMBINE_IN_INIT;
        ferry_combine_out result = FERRY_COMBINE_OUT_INIT;
        out[l] = FERRY_DISPATCH_OUT_INIT;
        in.rows = ferry_tensor_2d(x[l], FERRY_FP32, TOKENS, 16);
        if (ranks_device() != FERRY_CPU) /* the expert, a function of the host's, cannot work on a view */
            out[l].rows = ferry_tensor_2d(ranks_new(env, (size_t)info.rows * 64), FERRY_FP32, info.rows, 16);
        result.rows = ferry_tensor_2d(x[l + 1], FERRY_FP32, TOKENS, 16);
        RANK_OK(env, ferry_dispatch(route, &in, &out[l], NULL, s));
        experts[l] = (expert){&out[l], info.rows};
        RANK_OK(env, ferry_stream_call(s, run_expert, &experts[l]));
        back.rows = out[l].rows;
        RANK_OK(env, ferry_combine(route, &back, &result, NULL, s));
    }
    RANK_OK(env, ferry_stream_sync(s));
    for (int i = 0; i < TOKENS * 16; i++) RANK_CHECK(env, x[LAYERS][i] == (float)(i + env->rank) * (1 << LAYERS));
    ferry_route_destroy(route);
    ferry_stream_destroy(s);
    ferry_group_destroy(g);
    return true;
}

static void nap_for(void *ms) {
    nap_ms(*(int *)ms);
}

/* Meetings that are called one after another, each on another stream, on ranks that reach them at different times. */
static bool meetings_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 2);
    ferry_group *g;
    ferry_stream *a, *b;
    void *block;
    char *mine = ranks_new(env, 1), *all = ranks_new(env, RANKS_MAX);
    *mine = (char)env->rank;
    cfg.heap_bytes = 4096;
    if (!ranks_group(env, &cfg, &g)) return false;
    RANK_OK(env, ferry_stream_create(g, &a));
    RANK_OK(env, ferry_stream_create(g, &b));
    for (int i = 0; i < 5; i++) {
        int nap = (env->rank + i) % 3 * 20;
        RANK_OK(env, ferry_stream_call(a, nap_for, &nap));
        RANK_OK(env, ferry_barrier(g, a));
        RANK_OK(env, ferry_allgather(g, mine, all, 1, b));
        RANK_OK(env, ferry_barrier(g, NULL));
        RANK_OK(env, ferry_heap_alloc(g, 64, &block));
        RANK_OK(env, ferry_heap_free(g, block));
        for (int r = 0; r < env->ranks; r++) RANK_CHECK(env, all[r] == r);
    }
    RANK_OK(env, ferry_stream_sync(a));
    RANK_OK(env, ferry_stream_sync(b));
    ferry_stream_destroy(a);
    ferry_stream_destroy(b);
    ferry_group_destroy(g);
    return true;
}

static void test_meetings_on_streams(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, meetings_rank, NULL);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, meetings_rank, NULL);
}

static void test_order_on_streams(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, order_rank, NULL);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, order_rank, NULL);
}

static void test_overlap(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, overlap_rank, NULL);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, overlap_rank, NULL);
}

static void test_layers_on_a_stream(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, RANKS, layers_rank, NULL);
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, layers_rank, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unique_id),          cmocka_unit_test(test_callback),
        cmocka_unit_test(test_environment),        cmocka_unit_test(test_many_groups),
        cmocka_unit_test(test_order_on_streams),   cmocka_unit_test(test_overlap),
        cmocka_unit_test(test_layers_on_a_stream), cmocka_unit_test(test_meetings_on_streams),
    };
    setenv("FERRY_TOUCH_MB", "1", 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
