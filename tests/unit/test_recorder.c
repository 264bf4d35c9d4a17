/* The flight recorder: writers at once and a reader meanwhile, steps that last long, memory that lies. */
#include "watch/hang.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#define RANKS   3
#define WRITERS 3
#define ROUNDS  20000

static char *memory;
static size_t bytes;
static fe_heap heap;
static fe_recorder *recorder;

static int open_all(void **state) {
    (void)state;
    static char *base[RANKS], *space[RANKS];
    static int zeros[RANKS];
    bytes = (FE_HEAP_RECORDER_AT + fe_recorder_bytes(RANKS) + 4095) / 4096 * 4096;
    size_t lead = bytes, cells = (size_t)FE_KINDS * 2 * RANKS * sizeof(fe_cell);
    bytes += cells;
    memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    memset(memory, 0, bytes);
    base[1] = memory;
    space[1] = memory + lead;
    heap = (fe_heap){.rank = 1,
                     .ranks = RANKS,
                     .group = 0x1234,
                     .base = base,
                     .space = space,
                     .post = space,
                     .lead = lead,
                     .bytes = bytes};
    heap.hosts = (fe_hosts){.count = 1, .host_of = zeros, .index_of = zeros};
    fe_control *control = fe_heap_control(&heap, 1);
    control->magic = FE_HEAP_MAGIC;
    control->rank = 1;
    control->ranks = RANKS;
    control->pid = (int32_t)getpid();
    return fe_recorder_open(&heap, &recorder) == FERRY_OK && recorder ? 0 : -1;
}

static int close_all(void **state) {
    (void)state;
    free(memory);
    return 0;
}

static fe_snap take(void) {
    fe_snap snap;
    const char *why;
    if (!fe_snap_take(memory, bytes, &snap, &why)) fail_msg("%s", why);
    return snap;
}

/* All words of a step follow from one number, so that a mixture of two would show. */
static fe_step *begin(int lane, uint64_t number) {
    char text[FE_STEP_TEXT] = "";
    snprintf(text, sizeof text, "step %llu", (unsigned long long)number);
    fe_step_about about = {.text = text, .lane = lane, .half = (int)(number & 1), .kind = {FE_READY, FE_ROWS}};
    about.route = number;
    about.epoch[0] = number + 1;
    about.epoch[1] = number + 2;
    return fe_step_begin(recorder, &about);
}

static void check(const fe_snap_step *s) {
    char text[FE_STEP_TEXT];
    snprintf(text, sizeof text, "step %llu", (unsigned long long)s->route);
    assert_string_equal(s->text, text);
    assert_int_equal(s->half, s->route & 1);
    assert_int_equal(s->epoch[0], s->route + 1);
    assert_int_equal(s->epoch[1], s->route + 2);
    assert_int_equal(s->kind[0], FE_READY);
    assert_int_equal(s->kind[1], FE_ROWS);
    assert_true(s->at[FE_STEP_START] > 0);
    if (!s->live) assert_int_equal(s->bytes, s->route * 8);
    if (!s->live) assert_true(s->at[FE_STEP_END] >= s->at[FE_STEP_START]);
}

static _Atomic int running;

static void *write_many(void *argument) {
    int lane = (int)(intptr_t)argument;
    for (uint64_t i = 0; i < ROUNDS; i++) {
        uint64_t number = (uint64_t)lane << 32 | (i + 1);
        fe_step *step = begin(lane, number);
        if (!step) abort();
        fe_step_reach(recorder, step, FE_STEP_HEARD);
        fe_step_reach(recorder, step, FE_STEP_MOVED);
        fe_step_end(recorder, step, FERRY_OK, number * 8, true);
    }
    atomic_fetch_sub(&running, 1);
    return NULL;
}

static void test_writers_and_a_reader(void **state) {
    (void)state;
    pthread_t thread[WRITERS];
    fe_step *slow = begin(9, 77); /* goes on through it all, and is not overwritten */
    atomic_store(&running, WRITERS);
    for (int i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, write_many, (void *)(intptr_t)i), 0);
    int looks = 0;
    do {
        fe_snap snap = take();
        bool there = false;
        for (int i = 0; i < snap.steps; i++) {
            check(&snap.step[i]);
            if (i) assert_true(snap.step[i].number > snap.step[i - 1].number);
            there = there || (snap.step[i].lane == 9 && snap.step[i].live);
        }
        assert_true(there);
        fe_snap_free(&snap);
        looks++;
    } while (atomic_load(&running));
    for (int i = 0; i < WRITERS; i++) pthread_join(thread[i], NULL);
    fe_step_end(recorder, slow, FERRY_OK, 77 * 8, true);
    fe_snap snap = take();
    assert_int_equal(snap.steps, FE_STEPS); /* the last ones, none twice */
    for (int i = 0; i < snap.steps; i++) check(&snap.step[i]);
    fe_snap_free(&snap);
    print_message("%d looks\n", looks);
}

static fe_step *stuck; /* waits for ROWS of rank 2 */

static void test_where_a_step_is(void **state) {
    (void)state;
    fe_step *step = stuck = begin(0, 4);
    fe_snap snap = take();
    assert_int_equal(fe_snap_where(&snap.step[snap.steps - 1]), FE_WAITS_BEFORE);
    fe_snap_free(&snap);
    fe_step_reach(recorder, step, FE_STEP_HEARD);
    snap = take();
    assert_int_equal(fe_snap_where(&snap.step[snap.steps - 1]), FE_MOVES);
    fe_snap_free(&snap);
    fe_step_reach(recorder, step, FE_STEP_MOVED);
    fe_recorder_waited(recorder, step, 2, fe_recorder_now(recorder) - 1000);
    atomic_store(&fe_heap_cell(&heap, 1, FE_ROWS, 0, 0)->epoch, 6);
    atomic_store(&fe_heap_cell(&heap, 1, FE_ROWS, 0, 1)->epoch, 6);
    atomic_store(&fe_heap_cell(&heap, 1, FE_ROWS, 0, 2)->epoch, 4);
    snap = take();
    const fe_snap_step *last = &snap.step[snap.steps - 1];
    assert_int_equal(fe_snap_where(last), FE_WAITS_AFTER);
    assert_int_equal(last->late_rank, 2);
    assert_int_equal(snap.peer[2].waits, 1);
    assert_int_equal(fe_snap_cell(&snap, FE_ROWS, 0, 2), 4);
    char *text = NULL;
    size_t length;
    FILE *file = open_memstream(&text, &length);
    fe_hang_print(file, &snap, 1);
    fclose(file);
    assert_non_null(strstr(text, "step 4, route 4: waits since "));
    assert_non_null(strstr(text, " for ROWS 6 of rank 2 (has said 4)\n"));
    assert_non_null(strstr(text, "=> all wait for rank 2 (not seen here"));
    free(text);
    fe_snap_free(&snap);
    _Atomic uint8_t masked[RANKS] = {0, 0, 1}; /* the group goes on without rank 2: nobody waits for it any more */
    heap.masked = masked;
    fe_recorder_renew(recorder, &heap);
    snap = take();
    assert_false(fe_snap_hears(&snap, FE_ROWS, 2));
    assert_true(fe_snap_hears(&snap, FE_ROWS, 0));
    fe_snap_free(&snap);
    heap.masked = NULL;
    fe_recorder_renew(recorder, &heap);
}

static void test_a_verdict(void **state) {
    (void)state;
    const uint64_t seen[RANKS] = {6, 6, 4};
    fe_step_end(recorder, stuck, FERRY_TIMEOUT, 0, true);
    fe_recorder_verdict(recorder, "step 4", 6, seen, RANKS);
    fe_snap snap = take();
    assert_true(snap.verdict);
    assert_string_equal(snap.failed_step, "step 4");
    assert_int_equal(snap.peer[2].seen, 4);
    assert_int_equal(snap.step[snap.steps - 1].status, FERRY_TIMEOUT);
    fe_snap_free(&snap);
}

/* Words that a hostile process may write: every one is refused, or comes out in range. */
static void test_memory_that_lies(void **state) {
    (void)state;
    fe_control *control = fe_heap_control(&heap, 1);
    fe_snap snap;
    const char *why;
    assert_false(fe_snap_take(memory, 100, &snap, &why));
    assert_false(fe_snap_take(memory, FE_HEAP_RECORDER_AT + 100, &snap, &why));
    const int32_t bad[] = {0, -1, FERRY_MAX_RANKS, FERRY_MAX_RANKS + 1, INT32_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        control->ranks = bad[i];
        assert_false(fe_snap_take(memory, bytes, &snap, &why));
        control->ranks = RANKS;
        control->rank = bad[i] ? bad[i] : RANKS;
        assert_false(fe_snap_take(memory, bytes, &snap, &why));
        control->rank = 1;
    }
    uint64_t cells = recorder->cells_at;
    const uint64_t places[] = {1, cells + 64, UINT64_MAX, UINT64_MAX - 63, bytes};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        recorder->cells_at = places[i];
        assert_false(fe_snap_take(memory, bytes, &snap, &why));
    }
    recorder->cells_at = cells;
    for (int i = 0; i < FE_STEPS; i++) { /* steps whose every word is all ones, or an escape sequence */
        memset(&recorder->step[i], i % 2 ? 0xff : 0x1b, sizeof recorder->step[i]);
        atomic_store(&recorder->step[i].state, (uint64_t)(i + 1) * FE_STEP_STATES + FE_STEP_LIVE + (unsigned)i % 2);
    }
    assert_true(fe_snap_take(memory, bytes, &snap, &why));
    assert_int_equal(snap.steps, FE_STEPS);
    for (int i = 0; i < snap.steps; i++) {
        const fe_snap_step *s = &snap.step[i];
        assert_true(s->kind[0] >= -1 && s->kind[0] < FE_KINDS && s->kind[1] >= -1 && s->kind[1] < FE_KINDS);
        assert_true(s->late_rank >= -1 && s->late_rank < RANKS);
        for (const char *c = s->text; *c; c++) assert_int_equal(*c, '?');
    }
    fe_snap_free(&snap);
    recorder->magic++;
    assert_false(fe_snap_take(memory, bytes, &snap, &why));
    control->magic++;
    assert_false(fe_snap_take(memory, bytes, &snap, &why));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_writers_and_a_reader),
                                       cmocka_unit_test(test_where_a_step_is), cmocka_unit_test(test_a_verdict),
                                       cmocka_unit_test(test_memory_that_lies)};
    return cmocka_run_group_tests(tests, open_all, close_all);
}
