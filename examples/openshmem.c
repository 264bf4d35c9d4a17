/* openshmem.c - Ferry beside OpenSHMEM in one program: each has a symmetric heap of its own, and neither knows of the other.
 *
 *     oshcc -std=c11 openshmem.c -o openshmem $(pkg-config --cflags --libs ferry)
 *     oshrun -n 4 ./openshmem
 *
 * Every rank makes a ring of both: OpenSHMEM puts a word into the next one's memory, Ferry's put-with-signal a row into the next but
 * one's. The ranks find each other through OpenSHMEM's own collective, so that no address need be known. (Debian 12's Open MPI 4.1.4 crashes
 * when any OpenSHMEM program ends, unless its memory hooks are off: oshrun --mca memory ^patcher.) */
#include <ferry/ferry.h>
#include <shmem.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { WORDS = 64, ROUNDS = 8, GATHER_MAX = 65536 };

#define TRY(call)                                                                                   \
    do {                                                                                            \
        ferry_status status_ = (call);                                                              \
        if (status_ != FERRY_OK) {                                                                  \
            fprintf(stderr, "%s: %s: %s\n", #call, ferry_status_name(status_), ferry_last_error()); \
            return false;                                                                           \
        }                                                                                           \
    } while (0)

typedef struct board { /* symmetric memory of OpenSHMEM's: a slot for each rank */
    char *slots;
} board;

static int allgather(void *context, const void *mine, void *all, size_t bytes) {
    const board *b = context;
    int me = shmem_my_pe(), n = shmem_n_pes();
    if (bytes > GATHER_MAX) return 1;
    for (int pe = 0; pe < n; pe++) shmem_putmem(b->slots + (size_t)me * GATHER_MAX, mine, bytes, pe);
    shmem_barrier_all(); /* which completes the puts */
    for (int pe = 0; pe < n; pe++) memcpy((char *)all + (size_t)pe * bytes, b->slots + (size_t)pe * GATHER_MAX, bytes);
    shmem_barrier_all();
    return 0;
}

static bool check(int me, const char *by, int round, long wanted, long got) {
    if (wanted == got) return true;
    fprintf(stderr, "rank %d, round %d: %ld came by %s, not %ld\n", me, round, got, by, wanted);
    return false;
}

/* row[WORDS] and seen lie in Ferry's heap, word in OpenSHMEM's. */
static bool go_round(ferry_group *g, int round, int64_t *row, uint64_t *seen, long *word) {
    int me = shmem_my_pe(), n = shmem_n_pes();
    int64_t mine[WORDS];
    for (int i = 0; i < WORDS; i++) mine[i] = 1000 * me + round + i;
    shmem_long_p(word, 10 * me + round, (me + 1) % n);
    TRY(ferry_put_signal(g, row, mine, sizeof mine, seen, (uint64_t)round + 1, FERRY_SIGNAL_SET, (me + 2) % n, NULL));
    TRY(ferry_wait_until(g, seen, FERRY_GE, (uint64_t)round + 1, 0, NULL));
    shmem_barrier_all();
    bool good = check(me, "shmem_long_p", round, 10L * ((me + n - 1) % n) + round, *word);
    for (int i = 0; i < WORDS; i++)
        good = check(me, "ferry_put_signal", round, 1000L * ((me + 2 * n - 2) % n) + round + i, (long)row[i]) && good;
    TRY(ferry_barrier(g, NULL)); /* nobody writes the next round before all have looked */
    return good;
}

static bool run(board *b) {
    int me = shmem_my_pe(), n = shmem_n_pes();
    ferry_group_config cfg = FERRY_GROUP_CONFIG_INIT;
    ferry_group *g;
    void *row, *seen;
    long *word = shmem_malloc(sizeof *word);
    cfg.experts = n;
    cfg.hidden = 64;
    cfg.max_tokens = 16;
    cfg.max_topk = 2;
    cfg.heap_bytes = 1 << 20;
    cfg.threads = 1;
    TRY(ferry_group_create_with(allgather, b, me, n, &cfg, &g));
    TRY(ferry_heap_alloc(g, WORDS * sizeof(int64_t), &row));
    TRY(ferry_heap_alloc(g, sizeof(uint64_t), &seen));
    memset(seen, 0, sizeof(uint64_t));
    TRY(ferry_barrier(g, NULL));
    bool good = word != NULL;
    for (int round = 0; good && round < ROUNDS; round++) good = go_round(g, round, row, seen, word);
    ferry_group_destroy(g);
    shmem_free(word);
    if (good && me == 0) printf("%d rounds among %d ranks: both heaps are right\n", ROUNDS, n);
    return good;
}

int main(void) {
    shmem_init();
    board b = {shmem_malloc((size_t)shmem_n_pes() * GATHER_MAX)};
    if (!b.slots || !run(&b)) shmem_global_exit(1);
    fflush(stdout);
    shmem_free(b.slots);
    shmem_finalize();
    return 0;
}
