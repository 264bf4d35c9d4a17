/* The symmetric heap and its operations, on threads and on processes, on streams and without. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ranks/harness.h"
#include <pthread.h>
#include <stdio.h>

#define RANKS 4
#define HEAP  (1 << 20)

typedef struct place { /* what most tests need */
    ferry_group *group;
    ferry_stream *stream;
} place;

static bool open_place(rank_env *env, bool on_stream, place *p) {
    ferry_group_config cfg = ranks_config(4, 16, 4, 2);
    cfg.heap_bytes = HEAP;
    p->stream = NULL;
    if (!ranks_group(env, &cfg, &p->group)) return false;
    if (on_stream) RANK_OK(env, ferry_stream_create(p->group, &p->stream));
    return true;
}

static bool close_place(rank_env *env, place *p) {
    ranks_step(env, "closing");
    RANK_OK(env, ferry_group_error(p->group));
    RANK_OK(env, ferry_barrier(p->group, NULL));
    ferry_stream_destroy(p->stream);
    ferry_group_destroy(p->group);
    return true;
}

static bool pass(rank_env *env, const place *p) {
    if (p->stream) RANK_OK(env, ferry_stream_sync(p->stream));
    return true;
}

static uint8_t pattern(int rank, size_t i) {
    return (uint8_t)((size_t)rank * 37 + i * 11 + i / 251);
}

static void fill(uint8_t *at, size_t n, int rank) {
    for (size_t i = 0; i < n; i++) at[i] = pattern(rank, i);
}

static bool same(rank_env *env, const uint8_t *at, size_t n, int rank, const char *what) {
    for (size_t i = 0; i < n; i++)
        if (at[i] != pattern(rank, i))
            return ranks_fail(env, "%s: byte %zu of %zu is %d, not %d", what, i, n, at[i], pattern(rank, i));
    return true;
}

/* A rank of another pretend host: nothing of its heap can be pointed at. */
static bool is_far(const rank_env *env, int rank) {
    int each = env->ranks / ranks_hosts();
    return rank / each != env->rank / each;
}

/* Bytes of rank `rank`'s heap, through its pointer where that is memory of the host's. */
static bool peek(rank_env *env, const place *p, uint8_t *to, const uint8_t *at, size_t n, int rank) {
    const void *pointer = ranks_device() == FERRY_CPU ? ferry_heap_ptr(p->group, at, rank) : NULL;
    RANK_CHECK(env, pointer || ranks_device() != FERRY_CPU || is_far(env, rank));
    if (pointer)
        memcpy(to, pointer, n);
    else
        RANK_OK(env, ferry_get(p->group, to, at, n, rank, NULL));
    return true;
}

/* The pattern of `rank` is in this rank's own heap, at `at`. */
static bool see(rank_env *env, const place *p, uint8_t *room, const uint8_t *at, size_t n, int rank, const char *what) {
    RANK_OK(env, fe_memory_read(p->group, room, at, n));
    return same(env, room, n, rank, what);
}

static bool alloc_rank(rank_env *env) {
    place p;
    uint8_t *block[8], *room = ranks_new(env, 8000);
    if (!open_place(env, false, &p)) return false;
    ranks_step(env, "ferry_heap_alloc");
    for (int i = 0; i < 8; i++) {
        size_t bytes = (size_t)i * 1000 + 1;
        RANK_OK(env, ferry_heap_alloc(p.group, bytes, (void **)&block[i]));
        RANK_CHECK(env, (uintptr_t)block[i] % 256 == 0);
        fill(room, bytes, env->rank + i);
        RANK_OK(env, fe_memory_write(p.group, block[i], room, bytes));
    }
    RANK_OK(env, ferry_barrier(p.group, NULL));
    for (int r = 0; r < env->ranks; r++) { /* every peer's blocks are seen through its pointer */
        RANK_CHECK(env, (ferry_heap_ptr(p.group, block[3], r) == block[3]) == (r == env->rank));
        for (int i = 0; i < 8; i++) {
            size_t bytes = (size_t)i * 1000 + 1;
            if (!peek(env, &p, room, block[i], bytes, r) || !same(env, room, bytes, r + i, "peer's block"))
                return false;
        }
        uint8_t *inside = ferry_heap_ptr(p.group, block[7] + 5000, r), *begin = ferry_heap_ptr(p.group, block[7], r);
        RANK_CHECK(env, is_far(env, r) ? !inside && !begin : inside == begin + 5000);
    }
    RANK_OK(env, ferry_barrier(p.group, NULL));
    for (int i = 0; i < 8; i += 2) RANK_OK(env, ferry_heap_free(p.group, block[i]));
    for (int i = 1; i < 8; i += 2) { /* the others are as they were */
        size_t bytes = (size_t)i * 1000 + 1;
        if (!see(env, &p, room, block[i], bytes, env->rank + i, "block kept")) return false;
    }
    for (int round = 0; round < 200; round++) { /* freed room is used again: this would fill the heap three times */
        RANK_OK(env, ferry_heap_alloc(p.group, HEAP / 64, (void **)&block[0]));
        RANK_OK(env, ferry_heap_free(p.group, block[0]));
    }
    RANK_OK(env, ferry_heap_free(p.group, NULL));
    return close_place(env, &p);
}

static bool full_rank(rank_env *env) {
    place p;
    void *most, *more;
    char left[32];
    if (!open_place(env, false, &p)) return false;
    RANK_STATUS(env, FERRY_NOMEM, ferry_heap_alloc(p.group, HEAP + 4096, &most));
    snprintf(left, sizeof left, "%d", HEAP);
    RANK_CHECK(env, strstr(ferry_last_error(), left) != NULL);
    RANK_OK(env, ferry_heap_alloc(p.group, HEAP, &most));
    RANK_STATUS(env, FERRY_NOMEM, ferry_heap_alloc(p.group, 1, &more));
    RANK_OK(env, ferry_heap_free(p.group, most));
    RANK_OK(env, ferry_heap_alloc(p.group, HEAP, &most));
    RANK_OK(env, ferry_heap_free(p.group, most));
    /* Sizes that differ are refused everywhere, and the heap is as before. */
    RANK_STATUS(env, FERRY_MISMATCH, ferry_heap_alloc(p.group, env->rank == 1 ? 512 : 1024, &more));
    RANK_CHECK(env, strstr(ferry_last_error(), "512") && strstr(ferry_last_error(), "1024"));
    RANK_OK(env, ferry_heap_alloc(p.group, HEAP, &most));
    return close_place(env, &p);
}

/* A group without a heap has none. */
static bool none_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 4, 2);
    place p = {0};
    void *block;
    uint64_t word = 0;
    if (!ranks_group(env, &cfg, &p.group)) return false;
    RANK_STATUS(env, FERRY_NOMEM, ferry_heap_alloc(p.group, 64, &block));
    RANK_CHECK(env, ferry_heap_ptr(p.group, &word, 0) == NULL);
    return close_place(env, &p);
}

static bool put_get_rank(rank_env *env) {
    static const size_t sizes[] = {0, 1, 7, 16, 255, 4096, 100001};
    place p;
    uint8_t *box, *mine = ranks_new(env, 100100), *back = ranks_new(env, 100100);
    if (!open_place(env, *(bool *)env->arg, &p)) return false;
    int to = (env->rank + 1) % env->ranks, from = (env->rank + env->ranks - 1) % env->ranks;
    RANK_OK(env, ferry_heap_alloc(p.group, 100100, (void **)&box));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i], at = i % 3; /* also at odd addresses */
        ranks_step(env, "put and get of %zu bytes", n);
        fill(mine, n, env->rank);
        RANK_OK(env, ferry_put(p.group, box + at, mine, n, to, p.stream));
        RANK_OK(env, ferry_barrier(p.group, p.stream));
        if (!pass(env, &p) || !see(env, &p, back, box + at, n, from, "what was put")) return false;
        RANK_OK(env, ferry_get(p.group, back, box + at, n, to, p.stream));
        RANK_OK(env, ferry_barrier(p.group, p.stream));
        if (!pass(env, &p) || !same(env, back, n, env->rank, "what was got")) return false;
    }
    RANK_OK(env, ferry_fence(p.group));
    RANK_OK(env, ferry_quiet(p.group));
    return close_place(env, &p);
}

/* A ring of messages: the data is there when its signal is, with SET and with ADD, many times over. */
static bool signal_rank(rank_env *env) {
    enum { N = 1000, ROUNDS = 300 };
    place p;
    uint8_t *box, *mine = ranks_new(env, N), *room = ranks_new(env, N);
    uint64_t *arrived, *taken;
    if (!open_place(env, *(bool *)env->arg, &p)) return false;
    int to = (env->rank + 1) % env->ranks, from = (env->rank + env->ranks - 1) % env->ranks;
    RANK_OK(env, ferry_heap_alloc(p.group, N, (void **)&box));
    RANK_OK(env, ferry_heap_alloc(p.group, 16, (void **)&arrived));
    taken = arrived + 1;
    RANK_OK(env, fe_memory_write(p.group, arrived, (uint64_t[]){0, 0}, 16));
    RANK_OK(env, ferry_barrier(p.group, NULL));
    for (uint64_t i = 1; i <= ROUNDS; i++) {
        ranks_step(env, "message %d", (int)i);
        ferry_signal_op op = i % 2 ? FERRY_SIGNAL_SET : FERRY_SIGNAL_ADD;
        fill(mine, N, env->rank + (int)i);
        RANK_OK(env, ferry_put_signal(p.group, box, mine, N, arrived, i % 2 ? i : 1, op, to, p.stream));
        RANK_OK(env, ferry_wait_until(p.group, arrived, FERRY_GE, i, 0, p.stream));
        if (!pass(env, &p) || !see(env, &p, room, box, N, from + (int)i, "message")) return false;
        RANK_OK(env, ferry_put_signal(p.group, box, mine, 0, taken, i, FERRY_SIGNAL_SET, from, p.stream));
        RANK_OK(env, ferry_wait_until(p.group, taken, FERRY_EQ, i, 0, p.stream));
        if (!pass(env, &p)) return false;
    }
    return close_place(env, &p);
}

static bool compare_rank(rank_env *env) {
    static const struct {
        ferry_compare compare;
        uint64_t value;
        bool holds;
    } of_five[] = {{FERRY_EQ, 5, 1}, {FERRY_EQ, 6, 0}, {FERRY_NE, 6, 1}, {FERRY_NE, 5, 0},
                   {FERRY_GT, 4, 1}, {FERRY_GT, 5, 0}, {FERRY_GE, 5, 1}, {FERRY_GE, 6, 0},
                   {FERRY_LT, 6, 1}, {FERRY_LT, 5, 0}, {FERRY_LE, 5, 1}, {FERRY_LE, 4, 0}};
    place p;
    uint64_t *word, five = 5;
    if (!open_place(env, false, &p)) return false;
    RANK_OK(env, ferry_heap_alloc(p.group, 8, (void **)&word));
    RANK_OK(env, fe_memory_write(p.group, word, &five, sizeof five));
    for (size_t i = 0; i < sizeof of_five / sizeof *of_five; i++) {
        int64_t start = ranks_now_ms();
        ferry_status wanted = of_five[i].holds ? FERRY_OK : FERRY_TIMEOUT;
        RANK_STATUS(env, wanted, ferry_wait_until(p.group, word, of_five[i].compare, of_five[i].value, 30, NULL));
        if (of_five[i].holds) continue;
        RANK_CHECK(env, strstr(ferry_last_error(), "5") != NULL); /* the value that was seen */
        RANK_CHECK(env, ranks_now_ms() - start >= 25 && ranks_now_ms() - start < 1030);
    }
    return close_place(env, &p); /* a wait that the caller ended early costs the group nothing */
}

typedef struct adder {
    ferry_group *group;
    uint64_t *word;
    bool good;
} adder;

static void *add_thread(void *argument) {
    adder *a = argument;
    a->good = true;
    for (int i = 0; i < 2000; i++) a->good = a->good && ferry_fetch_add(a->group, a->word, 3, 0, NULL) == FERRY_OK;
    return NULL;
}

/* Two threads of every rank add to one word of rank 0; and ranks elect one winner a round with compare-swap. */
static bool atomic_rank(rank_env *env) {
    place p;
    static const uint64_t zeros[32];
    uint64_t *word, old = 0;
    pthread_t thread;
    if (!open_place(env, false, &p)) return false;
    RANK_OK(env, ferry_heap_alloc(p.group, 256, (void **)&word));
    RANK_OK(env, fe_memory_write(p.group, word, zeros, sizeof zeros));
    RANK_OK(env, ferry_barrier(p.group, NULL));
    adder here = {p.group, word, false}, there = {p.group, word, false};
    RANK_CHECK(env, pthread_create(&thread, NULL, add_thread, &there) == 0);
    add_thread(&here);
    pthread_join(thread, NULL);
    RANK_CHECK(env, here.good && there.good);
    RANK_OK(env, ferry_barrier(p.group, NULL));
    RANK_OK(env, ferry_fetch_add(p.group, word, 0, 0, &old));
    RANK_CHECK(env, old == (uint64_t)env->ranks * 2 * 2000 * 3);
    int64_t *won = ranks_new(env, sizeof *won), *all = ranks_new(env, RANKS * sizeof *all);
    for (uint64_t round = 0; round < 200; round++) {
        RANK_OK(env, ferry_compare_swap(p.group, word + 1, round, round + 1, env->ranks - 1, &old));
        RANK_CHECK(env, old == round || old == round + 1);
        *won += old == round;
        RANK_OK(env, ferry_barrier(p.group, NULL));
    }
    RANK_OK(env, ferry_allgather(p.group, won, all, sizeof *won, NULL));
    for (int r = 1; r < env->ranks; r++) all[0] += all[r];
    RANK_CHECK(env, all[0] == 200);
    return close_place(env, &p);
}

/* No rank leaves a barrier before every rank has come to it. */
static bool barrier_rank(rank_env *env) {
    place p;
    volatile int64_t *words = ranks_words(env);
    if (!open_place(env, *(bool *)env->arg, &p)) return false;
    for (int i = 1; i <= 500; i++) {
        ranks_step(env, "barrier %d", i);
        __atomic_store_n(&words[env->rank], i, __ATOMIC_SEQ_CST);
        RANK_OK(env, ferry_barrier(p.group, p.stream));
        if (!pass(env, &p)) return false;
        for (int r = 0; r < env->ranks; r++) RANK_CHECK(env, __atomic_load_n(&words[r], __ATOMIC_SEQ_CST) >= i);
    }
    return close_place(env, &p);
}

static bool gather_rank(rank_env *env) {
    static const size_t sizes[] = {0, 1, 3, 8, 1000, 65536, 65537, 300001}; /* up to several times the scratch */
    place p;
    if (!open_place(env, *(bool *)env->arg, &p)) return false;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i];
        ranks_step(env, "allgather and broadcast of %zu bytes", n);
        uint8_t *mine = ranks_new(env, n + 1), *all = ranks_new(env, n * (size_t)env->ranks + 1);
        fill(mine, n, env->rank);
        all[n * (size_t)env->ranks] = 77;
        RANK_OK(env, ferry_allgather(p.group, mine, all, n, p.stream));
        if (!pass(env, &p)) return false;
        for (int r = 0; r < env->ranks; r++)
            if (!same(env, all + n * (size_t)r, n, r, "allgather")) return false;
        RANK_CHECK(env, all[n * (size_t)env->ranks] == 77);
        for (int root = 0; root < env->ranks; root++) {
            fill(mine, n, env->rank == root ? root + 9 : env->rank);
            RANK_OK(env, ferry_broadcast(p.group, mine, n, root, p.stream));
            if (!pass(env, &p) || !same(env, mine, n, root + 9, "broadcast")) return false;
        }
    }
    return close_place(env, &p);
}

static bool misuse_rank(rank_env *env) {
    place p;
    uint8_t *box;
    uint64_t *word, old;
    char outside[16] = {0};
    if (!open_place(env, false, &p)) return false;
    ferry_group *g = p.group;
    RANK_OK(env, ferry_heap_alloc(g, HEAP, (void **)&box));
    word = (uint64_t *)(void *)box;
    RANK_CHECK(env, ferry_heap_ptr(g, box, env->ranks) == NULL && ferry_heap_ptr(g, box, -1) == NULL);
    RANK_CHECK(env, ferry_heap_ptr(g, outside, 0) == NULL && ferry_heap_ptr(g, NULL, 0) == NULL);
    RANK_CHECK(env, ferry_heap_ptr(NULL, box, 0) == NULL);
    RANK_STATUS(env, FERRY_INVALID, ferry_put(g, box, outside, 8, env->ranks, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_put(g, box, outside, 8, -1, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_put(g, outside, box, 8, 0, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_put(g, box, NULL, 8, 0, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_put(g, box + HEAP - 8, outside, 16, 0, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_put(g, box, outside, SIZE_MAX, 0, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_get(g, outside, box + HEAP - 8, 16, 0, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_get(g, NULL, box, 8, 0, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_get(g, outside, box, 8, env->ranks, NULL));
    uint64_t *crooked = (uint64_t *)(void *)(box + 4);
    RANK_STATUS(env, FERRY_INVALID, ferry_put_signal(g, box, outside, 8, crooked, 1, FERRY_SIGNAL_SET, 0, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_put_signal(g, box, outside, 8, word, 1, (ferry_signal_op)2, 0, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_put_signal(g, box, outside, 8, NULL, 1, FERRY_SIGNAL_SET, 0, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_fetch_add(g, crooked, 1, 0, &old));
    RANK_STATUS(env, FERRY_INVALID, ferry_fetch_add(g, &old, 1, 0, &old));
    RANK_STATUS(env, FERRY_INVALID, ferry_fetch_add(g, word, 1, env->ranks, &old));
    RANK_STATUS(env, FERRY_INVALID, ferry_compare_swap(g, crooked, 1, 0, 0, &old));
    RANK_STATUS(env, FERRY_INVALID, ferry_compare_swap(g, word, 1, 0, -1, &old));
    RANK_STATUS(env, FERRY_INVALID, ferry_wait_until(g, word, (ferry_compare)6, 0, 10, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_wait_until(g, word, FERRY_GE, 0, -1, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_wait_until(g, crooked, FERRY_GE, 0, 10, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_wait_until(g, &old, FERRY_GE, 0, 10, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_broadcast(g, outside, 8, env->ranks, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_broadcast(g, NULL, 8, 0, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_allgather(g, outside, NULL, 8, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_heap_alloc(g, 64, NULL));
    RANK_STATUS(env, FERRY_INVALID, ferry_heap_free(g, box + 256));
    RANK_STATUS(env, FERRY_INVALID, ferry_heap_free(g, outside));
    return close_place(env, &p);
}

static void on_both(rank_fn function, bool streams) {
    for (int on_stream = 0; on_stream <= (streams ? 1 : 0); on_stream++) {
        bool arg = on_stream;
        RANKS_ASSERT(RANKS_THREADS, RANKS, function, &arg);
        RANKS_ASSERT(RANKS_PROCESSES, RANKS, function, &arg);
    }
}

#define HEAP_TEST(name, function, streams) \
    static void name(void **state) {       \
        (void)state;                       \
        on_both(function, streams);        \
    }

HEAP_TEST(test_alloc_free_and_pointers, alloc_rank, false)
HEAP_TEST(test_heap_full_and_sizes_that_differ, full_rank, false)
HEAP_TEST(test_no_heap, none_rank, false)
HEAP_TEST(test_put_and_get, put_get_rank, true)
HEAP_TEST(test_put_signal_and_wait_until, signal_rank, true)
HEAP_TEST(test_every_comparison, compare_rank, false)
HEAP_TEST(test_fetch_add_and_compare_swap, atomic_rank, false)
HEAP_TEST(test_barrier, barrier_rank, true)
HEAP_TEST(test_allgather_and_broadcast, gather_rank, true)
HEAP_TEST(test_misuse, misuse_rank, false)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alloc_free_and_pointers),
        cmocka_unit_test(test_heap_full_and_sizes_that_differ),
        cmocka_unit_test(test_no_heap),
        cmocka_unit_test(test_put_and_get),
        cmocka_unit_test(test_put_signal_and_wait_until),
        cmocka_unit_test(test_every_comparison),
        cmocka_unit_test(test_fetch_add_and_compare_swap),
        cmocka_unit_test(test_barrier),
        cmocka_unit_test(test_allgather_and_broadcast),
        cmocka_unit_test(test_misuse),
    };
    setenv("FERRY_TOUCH_MB", "1", 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
