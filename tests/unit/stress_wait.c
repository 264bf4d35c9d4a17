/* Waiting and signalling under stress: three ranks, as threads, on memory laid out as a heap's. Every row is checked whole after its note,
 * so a store that is seen out of order is found; and here ranks sleep at once and until they are woken, so a wake-up that is lost
 * is a deadline that passes. Prints TAP, without a test framework: it runs on emulated machines and under the thread sanitizer as well.
 *
 *   FERRY_STRESS_ROUNDS=n    rounds of each test */
#define YIELD_NS 0
#define SLEEP_NS INT64_MAX
#include "watch/wait.c" /* in place of the library's own */

#include "link/near.h"
#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>

enum { RANKS = 3, LANES = 2, ROW = 61, DEADLINE_MS = 30000 };
#define DEFAULT_ROUNDS 4000

typedef struct space {
    fe_cell cell[FE_KINDS * 2 * RANKS];
    uint64_t row[LANES][2][RANKS][ROW]; /* [lane][half][source] */
} space;

static alignas(FE_CACHE_LINE) fe_control controls[RANKS];
static alignas(FE_CACHE_LINE) space spaces[RANKS];
static char *bases[RANKS], *space_starts[RANKS];
static fe_heap heaps[RANKS];
static _Atomic int wrong;
static int64_t rounds = DEFAULT_ROUNDS;

typedef struct walker { /* one thread of one rank */
    int rank, lane;
    uint32_t random;
} walker;

static void reset(void) {
    memset(controls, 0, sizeof controls);
    memset(spaces, 0, sizeof spaces);
    for (int r = 0; r < RANKS; r++) {
        bases[r] = (char *)&controls[r];
        space_starts[r] = (char *)&spaces[r];
        heaps[r] = (fe_heap){.rank = r,
                             .ranks = RANKS,
                             .hosts = {.count = 1},
                             .base = bases,
                             .space = space_starts,
                             .post = space_starts};
    }
}

static fe_watch watch_of(int rank) {
    return (fe_watch){.heap = &heaps[rank], .timeout_ns = (int64_t)DEADLINE_MS * 1000000};
}

static void complain(const walker *w, uint64_t n, const char *what) {
    printf("# rank %d, lane %d, round %llu: %s\n", w->rank, w->lane, (unsigned long long)n, what);
    atomic_store(&wrong, 1);
    fe_watch_abort(&heaps[w->rank]);
}

/* A pause of a length that changes from call to call, so that every two steps of two threads meet in every order. */
static void dawdle(walker *w) {
    w->random = w->random * 1664525 + 1013904223;
    for (uint32_t i = w->random >> 24; i > 0; i--) fe_pause();
}

static uint64_t value(int source, int lane, uint64_t n, size_t i) {
    return n * 1000003 + (uint64_t)source * 101 + (uint64_t)lane * 11 + i;
}

static void say(walker *w, int to, uint64_t n) {
    uint64_t word[FE_CELL_WORDS], *row = spaces[to].row[w->lane][n & 1][w->rank];
    for (size_t i = 0; i < ROW; i++) row[i] = value(w->rank, w->lane, n, i);
    for (size_t i = 0; i < FE_CELL_WORDS; i++) word[i] = value(w->rank, w->lane, n, ROW + i);
    dawdle(w);
    fe_link_signal(&heaps[w->rank], to, w->lane ? FE_ROWS : FE_MEET, (int)(n & 1), word, n);
}

static bool right(const walker *w, int source, uint64_t n) {
    const uint64_t *row = spaces[w->rank].row[w->lane][n & 1][source];
    const uint64_t *word = fe_link_words(&heaps[w->rank], w->lane ? FE_ROWS : FE_MEET, (int)(n & 1), source);
    for (size_t i = 0; i < ROW; i++)
        if (row[i] != value(source, w->lane, n, i)) return false;
    for (size_t i = 0; i < FE_CELL_WORDS; i++)
        if (word[i] != value(source, w->lane, n, ROW + i)) return false;
    return true;
}

typedef struct look {
    walker *w;
    const fe_cell *cell;
    uint64_t epoch;
} look;

/* A look that takes a while to answer: what happens between it and what its caller does next is what is on trial. */
static bool slow_look(const void *what) {
    const look *l = what;
    bool there = atomic_load(&l->cell->epoch) >= l->epoch;
    if (!there) dawdle(l->w);
    return there;
}

/* A wait that ends at its deadline may find what it waited for then; it has been slept through all the same. */
static fe_waited wait_in_time(walker *w, int source, fe_kind kind, uint64_t n) {
    fe_watch watch = watch_of(w->rank);
    look l = {w, fe_heap_cell(&heaps[w->rank], w->rank, kind, (int)(n & 1), source), n};
    int64_t deadline = fe_now_ns() + watch.timeout_ns;
    fe_waited waited = fe_watch_wait(&watch, slow_look, &l, deadline);
    return fe_now_ns() < deadline ? waited : FE_LATE;
}

static void hear(walker *w, uint64_t n) {
    fe_kind kind = w->lane ? FE_ROWS : FE_MEET;
    fe_watch watch = watch_of(w->rank);
    fe_waited waited = FE_ARRIVED;
    for (int source = 0; waited == FE_ARRIVED && source < RANKS; source++) waited = wait_in_time(w, source, kind, n);
    if (waited == FE_LATE) complain(w, n, "slept through a note");
    if (waited == FE_ARRIVED && fe_watch_cells(&watch, kind, (int)(n & 1), n, "a round", NULL) != FERRY_OK)
        complain(w, n, ferry_last_error());
}

/* Rounds as meetings have them: what is written for round n + 2 was read by all before they came to n + 1. */
static void *walk(void *argument) {
    walker *w = argument;
    for (uint64_t n = 1; n <= (uint64_t)rounds && !atomic_load(&wrong); n++) {
        for (int i = 1; i <= RANKS; i++) say(w, (w->rank + i) % RANKS, n);
        dawdle(w);
        hear(w, n);
        if (atomic_load(&wrong)) break;
        for (int source = 0; source < RANKS; source++)
            if (!right(w, source, n)) complain(w, n, "a row or a word is not what its writer wrote before the epoch");
    }
    return NULL;
}

static void run(void *(*function)(void *), walker *walkers, int count) {
    pthread_t threads[RANKS * LANES];
    int started = 0;
    while (started < count && fe_thread_start(&threads[started], function, &walkers[started]) == 0) started++;
    if (started < count) complain(&walkers[started], 0, "no thread");
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
}

/* ---- duels: rank 0 goes to sleep at the moment at which rank 1 wakes it, by a note or by an abort, and nobody else helps ---- */

static _Atomic int64_t at_the_line[2];

/* Spinning, so that both leave together. false: the other one has given up. */
static bool meet_at_the_line(const walker *w, int64_t n) {
    atomic_store(&at_the_line[w->rank], n);
    for (int turn = 1; atomic_load(&at_the_line[1 - w->rank]) < n; turn++) {
        if (atomic_load(&wrong)) return false;
        if (turn % 1000 == 0) sched_yield();
    }
    return !atomic_load(&wrong);
}

static void sleep_once(walker *w, int64_t n) {
    fe_waited waited = wait_in_time(w, 1, FE_MEET, (uint64_t)n);
    if (waited != (n % 4 == 0 ? FE_ABORTED : FE_ARRIVED))
        complain(w, (uint64_t)n, waited == FE_LATE ? "slept through it" : "woke for another reason");
}

static void wake_once(walker *w, int64_t n) {
    static const uint64_t word[FE_CELL_WORDS];
    if (n % 4 == 0)
        fe_watch_abort(&heaps[w->rank]);
    else
        fe_link_signal(&heaps[w->rank], 0, FE_MEET, (int)(n & 1), word, (uint64_t)n);
}

static void *duel(void *argument) {
    walker *w = argument;
    for (int64_t n = 1; n <= 4 * rounds; n++) {
        if (w->rank == 0) atomic_store(&controls[0].aborted, 0);
        if (!meet_at_the_line(w, n)) break;
        dawdle(w);
        if (w->rank == 0)
            sleep_once(w, n);
        else
            wake_once(w, n);
    }
    return NULL;
}

static void rows_of(int lanes) {
    walker walkers[RANKS * LANES];
    for (int i = 0; i < RANKS * lanes; i++)
        walkers[i] = (walker){.rank = i % RANKS, .lane = i / RANKS, .random = (uint32_t)i * 7919 + 1};
    reset();
    run(walk, walkers, RANKS * lanes);
}

static void one_lane(void) {
    rows_of(1);
}

static void two_lanes(void) {
    rows_of(LANES);
}

static void duels(void) {
    walker walkers[2] = {{.rank = 0, .random = 1}, {.rank = 1, .random = 2}};
    reset();
    atomic_store(&at_the_line[0], 0);
    atomic_store(&at_the_line[1], 0);
    run(duel, walkers, 2);
}

int main(void) {
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {{"rows and words come before their epoch, and every epoch wakes its reader", one_lane},
                 {"the same with two sleepers a rank", two_lanes},
                 {"a note or an abort wakes who is just about to sleep", duels}};
    const char *text = getenv("FERRY_STRESS_ROUNDS");
    int count = (int)(sizeof tests / sizeof *tests), failed = 0;
    if (text) rounds = strtoll(text, NULL, 10);
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("1..%d\n", count);
    for (int i = 0; i < count; i++) {
        atomic_store(&wrong, 0);
        tests[i].run();
        printf("%sok %d - %s\n", atomic_load(&wrong) ? "not " : "", i + 1, tests[i].name);
        failed += atomic_load(&wrong);
    }
    return failed != 0;
}
