/* The far path's parts that need no network: what an immediate says, the ring of orders, and what arrives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "link/immediate.h"
#include "link/pin.h"
#include "link/rails.h"
#include "link/ring.h"
#include "unit/far_cases.h"
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>

static void test_immediate(void **state) {
    (void)state;
    for (int what = FE_CHUNK; what <= FE_BYE; what++)
        for (int kind = 0; kind < 16; kind++)
            for (int source = 0; source < FERRY_MAX_RANKS; source += 341) {
                fe_immediate i;
                uint32_t said =
                    fe_immediate_tag(fe_immediate_pack((fe_arrival)what, kind, source & 1, source), 0xabcd1234);
                bool known = kind < FE_KINDS || kind == FE_OF_PUTS;
                assert_int_equal(fe_immediate_unpack(said, 0xabcd1234, &i), known);
                assert_int_equal(i.what, what);
                assert_int_equal(i.kind, kind);
                assert_int_equal(i.half, source & 1);
                assert_int_equal(i.source, source);
                assert_false(fe_immediate_unpack(said, 0xabcd1235, &i)); /* another group's tag */
            }
    fe_immediate i;
    assert_false(fe_immediate_unpack(0, 0, &i));
    assert_false(fe_immediate_unpack(7, 0, &i));
}

static void test_ring_in_one_thread(void **state) {
    (void)state;
    fe_ring ring;
    fe_order order = {.peer = 0};
    assert_true(fe_ring_open(&ring, 8));
    assert_false(fe_ring_take(&ring, &order));
    for (int round = 0; round < 1000; round++) {
        for (int i = 0; i < 8; i++) {
            order.peer = round * 8 + i;
            assert_true(fe_ring_put(&ring, &order));
        }
        assert_false(fe_ring_put(&ring, &order));
        for (int i = 0; i < 8; i++) {
            assert_true(fe_ring_take(&ring, &order));
            assert_int_equal(order.peer, round * 8 + i);
        }
        assert_false(fe_ring_take(&ring, &order));
    }
    fe_ring_close(&ring);
}

enum { WRITERS = 3, ORDERS = 20000 };

typedef struct writer {
    fe_ring *ring;
    int number;
} writer;

static void *write_orders(void *argument) {
    const writer *w = argument;
    for (int i = 0; i < ORDERS; i++) {
        fe_order order = {.peer = w->number, .bytes = (size_t)i};
        while (!fe_ring_put(w->ring, &order)) sched_yield();
    }
    return NULL;
}

/* Nothing is lost, nothing comes twice, and each writer's orders keep their order. */
static void test_ring_of_many_writers(void **state) {
    (void)state;
    fe_ring ring;
    pthread_t thread[WRITERS];
    writer writers[WRITERS];
    size_t next[WRITERS] = {0};
    assert_true(fe_ring_open(&ring, 64));
    for (int i = 0; i < WRITERS; i++) {
        writers[i] = (writer){&ring, i};
        assert_int_equal(pthread_create(&thread[i], NULL, write_orders, &writers[i]), 0);
    }
    for (int taken = 0; taken < WRITERS * ORDERS;) {
        fe_order order;
        if (!fe_ring_take(&ring, &order)) {
            sched_yield();
            continue;
        }
        assert_true(order.peer >= 0 && order.peer < WRITERS);
        assert_int_equal(order.bytes, next[order.peer]++);
        taken++;
    }
    for (int i = 0; i < WRITERS; i++) pthread_join(thread[i], NULL);
    fe_ring_close(&ring);
}

/* ---- arrivals: rank 1 of 4 ranks on 2 hosts hears from its column, rank 3 ---- */

static bool say(far_case *c, fe_arrival what, int kind, int half, int source) {
    int from;
    return fe_inbox_hear(&c->inbox, fe_immediate_tag(fe_immediate_pack(what, kind, half, source), FAR_TAG), &from);
}

static uint64_t seen(const far_case *c, int owner, fe_kind kind, int half, int source) {
    return atomic_load(&fe_heap_cell(&c->heap, owner, kind, half, source)->epoch);
}

static void test_a_letter_waits_for_its_chunks(void **state) {
    (void)state;
    far_case *c = far_case_new();
    assert_non_null(c);
    fe_letter *l = far_case_letter(c, FE_COUNTS, 1);
    *l = (fe_letter){.epoch = 1, .word = {7}, .chunks = 2, .relay_at = c->heap.body_at, .relay_bytes = 64};
    memset(fe_near(&c->heap, 1, c->heap.body_at), 0x5a, 64);
    assert_true(say(c, FE_CHUNK, FE_COUNTS, 1, 3));
    assert_true(say(c, FE_LETTER, FE_COUNTS, 1, 3));
    assert_int_equal(seen(c, 1, FE_COUNTS, 1, 3), 0);
    assert_true(say(c, FE_CHUNK, FE_COUNTS, 1, 3));
    for (int owner = 0; owner < 2; owner++) { /* both ranks of the host have the note, and what came with it */
        assert_int_equal(seen(c, owner, FE_COUNTS, 1, 3), 1);
        assert_int_equal(fe_heap_cell(&c->heap, owner, FE_COUNTS, 1, 3)->word[0], 7);
        assert_int_equal(*(char *)fe_near(&c->heap, owner, c->heap.body_at + 63), 0x5a);
    }
    *far_case_letter(c, FE_LANDED, 0) = (fe_letter){.epoch = 2};
    assert_true(say(c, FE_LETTER, FE_LANDED, 0, 3));
    assert_int_equal(seen(c, 1, FE_LANDED, 0, 3), 2);
    assert_int_equal(seen(c, 0, FE_LANDED, 0, 3), 0); /* the column's alone */
    far_case_free(c);
}

static void test_nonsense_is_refused(void **state) {
    (void)state;
    far_case *c = far_case_new();
    assert_non_null(c);
    assert_false(say(c, FE_LETTER, FE_READY, 1, 0));   /* a near rank's */
    assert_false(say(c, FE_LETTER, FE_READY, 1, 2));   /* another column's */
    assert_false(say(c, FE_LETTER, FE_READY, 1, 900)); /* nobody's */
    assert_false(say(c, FE_LETTER, FE_OF_PUTS, 0, 3)); /* no kind */
    *far_case_letter(c, FE_READY, 1) = (fe_letter){.epoch = 2};
    assert_false(say(c, FE_LETTER, FE_READY, 1, 3)); /* in the wrong half */
    *far_case_letter(c, FE_ROWS, 1) = (fe_letter){.epoch = 1};
    assert_false(say(c, FE_LETTER, FE_ROWS, 1, 3)); /* gateways say that */
    *far_case_letter(c, FE_READY, 1) = (fe_letter){.epoch = 3, .relay_at = c->heap.body_at, .relay_bytes = 8};
    assert_false(say(c, FE_LETTER, FE_READY, 1, 3)); /* brings nothing along */
    *far_case_letter(c, FE_COUNTS, 1) = (fe_letter){.epoch = 1, .relay_at = c->heap.user_at - 8, .relay_bytes = 16};
    assert_false(say(c, FE_LETTER, FE_COUNTS, 1, 3)); /* leaves the body */
    *far_case_letter(c, FE_COUNTS, 1) = (fe_letter){.epoch = 1, .relay_at = UINT64_MAX - 4, .relay_bytes = 16};
    assert_false(say(c, FE_LETTER, FE_COUNTS, 1, 3));
    *far_case_letter(c, FE_READY, 1) = (fe_letter){.epoch = 3};
    assert_true(say(c, FE_LETTER, FE_READY, 1, 3));
    assert_false(say(c, FE_LETTER, FE_READY, 1, 3)); /* the same once more */
    assert_int_equal(seen(c, 1, FE_READY, 1, 3), 3);
    far_case_free(c);
}

static void test_mail(void **state) {
    (void)state;
    far_case *c = far_case_new();
    assert_non_null(c);
    uint64_t *word = fe_near(&c->heap, 1, c->heap.user_at + 16);
    *word = 40;
    *far_case_mail(c, 2) = (fe_mail){.number = 5, .puts = 1, .errand = FE_ADD, .at = c->heap.user_at + 16, .value = 2};
    assert_true(say(c, FE_MAIL, 0, 0, 2)); /* any far rank's */
    assert_int_equal(c->replies, 0);       /* its put comes first */
    assert_true(say(c, FE_CHUNK, FE_OF_PUTS, 0, 2));
    assert_int_equal(c->replies, 1);
    assert_int_equal(c->reply.number, 5);
    assert_int_equal(c->reply.old, 40);
    assert_int_equal(*word, 42);
    assert_true(say(c, FE_MAIL, 0, 0, 2)); /* the same once more */
    assert_int_equal(c->replies, 1);
    assert_int_equal(*word, 42);
    *far_case_mail(c, 2) =
        (fe_mail){.number = 6, .errand = FE_SWAP, .at = c->heap.user_at + 16, .value = 1, .expected = 42};
    assert_true(say(c, FE_MAIL, 0, 0, 2));
    assert_int_equal(*word, 1);
    const uint64_t wrong[] = {0, c->heap.body_at - 8, c->heap.user_at + 4, c->heap.space_bytes, UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        *far_case_mail(c, 2) = (fe_mail){.number = 7 + i, .errand = FE_SET, .at = wrong[i], .value = 9};
        assert_false(say(c, FE_MAIL, 0, 0, 2));
        assert_int_equal(c->reply.refused, 1);
        assert_int_equal(c->reply.number, 7 + i);
    }
    *far_case_mail(c, 2) = (fe_mail){.number = 20, .errand = 17, .at = c->heap.user_at};
    assert_false(say(c, FE_MAIL, 0, 0, 2));
    far_case_free(c);
}

/* ---- a space that the device alone reaches ---- */

static int errands;

static ferry_status copy_bytes(const fe_heap *heap, void *to, const void *from, size_t bytes) {
    (void)heap;
    memcpy(to, from, bytes);
    return FERRY_OK;
}

static ferry_status on_word(const fe_heap *heap, fe_errand errand, uint64_t at, uint64_t value, uint64_t expected,
                            uint64_t *old) {
    uint64_t *word = fe_near(heap, heap->rank, at);
    (void)expected;
    errands++;
    *old = *word;
    *word = errand == FE_ADD ? *word + value : value;
    return FERRY_OK;
}

static const fe_memory device_memory = {.copy = copy_bytes, .word = on_word};

static bool ask(far_case *c, uint64_t number, fe_errand errand, uint64_t at, uint64_t value) {
    *far_case_mail(c, 2) = (fe_mail){.number = number, .errand = errand, .at = at, .value = value};
    return say(c, FE_MAIL, 0, 0, 2);
}

static void test_mail_for_a_device(void **state) {
    (void)state;
    far_case *c = far_case_staged(&device_memory);
    assert_non_null(c);
    const fe_heap *heap = &c->heap;
    uint64_t at = heap->user_at + 64;
    memcpy(fe_post(heap, 1, fe_room_parcel(heap, false, 2)), "from afar", 10);
    assert_true(ask(c, 1, FE_STOW, at, 10));
    assert_memory_equal(fe_near(heap, 1, at), "from afar", 10);
    assert_true(ask(c, 2, FE_FETCH, at + 5, 5));
    assert_memory_equal(fe_post(heap, 1, fe_room_parcel(heap, true, 2)), "afar", 5);
    errands = 0;
    assert_true(ask(c, 3, FE_ADD, at + 64, 7));
    assert_true(ask(c, 4, FE_SET, at + 64, 9));
    assert_int_equal(errands, 2);
    assert_int_equal(c->reply.old, 7);
    const struct {
        uint64_t at, bytes;
    } wrong[] = {
        {heap->space_at - 8, 8}, {heap->body_at, 8}, {heap->space_bytes - 4, 8}, {at, FE_PARCEL + 1}, {at, UINT64_MAX}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_false(ask(c, 10 + i, FE_STOW, wrong[i].at, wrong[i].bytes));
        assert_int_equal(c->reply.refused, 1);
    }
    far_case_free(c);
    c = far_case_new(); /* where the network reaches the space, ranges are none of its owner's business */
    assert_non_null(c);
    assert_false(ask(c, 1, FE_STOW, c->heap.user_at, 8));
    far_case_free(c);
}

/* A slot's turn says whose it is, round after round, from memory that began as zeros. */
static void test_turns_of_kernel_orders(void **state) {
    (void)state;
    for (uint64_t at = 0; at < 5 * FE_KERNEL_ORDERS; at += FE_KERNEL_ORDERS - 1) {
        uint32_t writers = fe_kernel_turn(at), readers = writers + 1;
        assert_int_equal(fe_kernel_turn(at + FE_KERNEL_ORDERS), readers + 1);
        assert_int_equal(fe_kernel_turn(at % FE_KERNEL_ORDERS), 0);
    }
}

/* ---- arrivals by flags ---- */

static void test_flags_say_what_immediates_say(void **state) {
    (void)state;
    bool taken[FE_FLAGS] = {false};
    assert_int_equal(fe_flag_of(fe_immediate_pack(FE_CHUNK, FE_READY, 1, 3)), -1);
    for (int what = FE_LETTER; what <= FE_BYE; what++)
        for (int kind = 0; kind < (what == FE_LETTER ? FE_KINDS : 1); kind++)
            for (int half = 0; half < (what == FE_LETTER ? 2 : 1); half++) {
                uint32_t said = fe_immediate_pack((fe_arrival)what, kind, half, 3);
                int flag = fe_flag_of(said);
                assert_in_range(flag, 0, FE_FLAGS - 1);
                assert_false(taken[flag]); /* each sort has its own */
                taken[flag] = true;
                assert_int_equal(fe_flag_says(flag, 3), said);
            }
    for (int flag = 0; flag < FE_FLAGS; flag++) assert_true(taken[flag]);
}

static void raise_flag(far_case *c, int source, uint32_t said, uint32_t tag, uint32_t number) {
    uint64_t word = (uint64_t)tag << 32 | number;
    memcpy(fe_post(&c->heap, 1, fe_room_flag(&c->heap, true, source, fe_flag_of(said))), &word, sizeof word);
}

static void test_arrivals_by_flags(void **state) {
    (void)state;
    far_case *c = far_case_new();
    uint32_t heard[FE_LOOK], letter = fe_immediate_pack(FE_LETTER, FE_COUNTS, 1, 3),
                             mail = fe_immediate_pack(FE_MAIL, 0, 0, 2);
    int source;
    assert_non_null(c);
    c->inbox.ordered = true;
    assert_int_equal(fe_inbox_look(&c->inbox, heard), 0);
    *far_case_letter(c, FE_COUNTS, 1) = (fe_letter){.epoch = 1, .chunks = 2}; /* they came before the flag, unheard */
    raise_flag(c, 3, letter, FAR_TAG, 1);
    assert_int_equal(fe_inbox_look(&c->inbox, heard), 1);
    assert_true(fe_inbox_hear(&c->inbox, heard[0], &source));
    assert_int_equal(source, 3);
    assert_int_equal(seen(c, 1, FE_COUNTS, 1, 3), 1);
    assert_int_equal(fe_inbox_look(&c->inbox, heard), 0); /* once */
    raise_flag(c, 2, letter, FAR_TAG, 1); /* another column's notes are not even looked for; its mail is */
    assert_int_equal(fe_inbox_look(&c->inbox, heard), 0);
    *far_case_mail(c, 2) = (fe_mail){.number = 1, .puts = 5, .errand = FE_ADD, .at = c->heap.user_at, .value = 3};
    raise_flag(c, 2, mail, FAR_TAG, 1);
    assert_int_equal(fe_inbox_look(&c->inbox, heard), 1);
    assert_true(fe_inbox_hear(&c->inbox, heard[0], &source));
    assert_int_equal(c->replies, 1);
    assert_int_equal(*(uint64_t *)fe_near(&c->heap, 1, c->heap.user_at), 3);
    raise_flag(c, 3, letter, FAR_TAG + 0x10000, 2); /* the lower half of the tag is right */
    raise_flag(c, 2, mail, FAR_TAG, 3);             /* not the next one */
    assert_int_equal(fe_inbox_look(&c->inbox, heard), 0);
    fe_inbox_close(&c->inbox); /* the network is opened anew: what was raised before is no news, */
    c->inbox.tag = FAR_TAG + 1;
    assert_true(fe_inbox_open(&c->inbox));
    raise_flag(c, 3, letter, FAR_TAG, 1);
    assert_int_equal(fe_inbox_look(&c->inbox, heard), 0);
    raise_flag(c, 2, mail, FAR_TAG + 1, 1); /* and numbers begin again */
    assert_int_equal(fe_inbox_look(&c->inbox, heard), 1);
    for (int kind = 0; kind < FE_KINDS; kind++)
        raise_flag(c, 3, fe_immediate_pack(FE_LETTER, kind, 0, 3), FAR_TAG + 1, 1);
    raise_flag(c, 3, fe_immediate_pack(FE_BYE, 0, 0, 3), FAR_TAG + 1, 1);
    raise_flag(c, 3, fe_immediate_pack(FE_REPLY, 0, 0, 3), FAR_TAG + 1, 1);
    int found = fe_inbox_look(&c->inbox, heard);
    assert_int_equal(found, FE_KINDS + 2);
    assert_int_equal(heard[found - 2] & 7, FE_REPLY); /* a good-bye comes last */
    assert_int_equal(heard[found - 1] & 7, FE_BYE);
    far_case_free(c);
}

/* ---- devices ---- */

static void shares(int devices, int index, int each, int wanted, int count, int first) {
    int chosen[FE_RAILS];
    assert_int_equal(fe_rails_share(devices, index, each, wanted, chosen), count);
    for (int i = 0; i < count; i++) assert_int_equal(chosen[i], (first + i) % devices);
}

static void test_rails(void **state) {
    (void)state;
    shares(1, 0, 1, 0, 1, 0);
    for (int i = 0; i < 8; i++) {
        shares(8, i, 8, 0, 1, i);     /* one each */
        shares(2, i, 8, 0, 1, i / 4); /* four ranks on one */
        shares(1, i, 8, 0, 1, 0);
        shares(8, i, 8, 2, 2, i); /* the next one too, where it is asked for */
    }
    for (int i = 0; i < 4; i++) shares(8, i, 4, 0, 2, 2 * i);
    for (int i = 0; i < 3; i++) shares(8, i, 3, 0, i ? 3 : 2, i * 8 / 3); /* 0 1, 2 3 4, 5 6 7 */
    shares(3, 1, 2, 0, 2, 1);
    shares(8, 0, 1, 0, FE_RAILS, 0);
    shares(3, 0, 1, 0, 3, 0);
    shares(2, 1, 2, 4, 2, 1); /* no more than there are */
}

/* A machine of two packages, of one processor each, with an RDMA device at the second. */
static void test_near_a_device(void **state) {
    (void)state;
    const fe_pin_device known[] = {{.name = "mlx5_1"}, {.name = "?", .pci = true, .bus = 0x81, .function = 1}};
    const fe_pin_device unknown[] = {{.name = "mlx5_0"}, {.name = "?", .pci = true, .bus = 0x81}, {.name = NULL}};
    cpu_set_t near, before, after;
    setenv("HWLOC_XMLFILE", FERRY_SOURCE_DIR "/tests/unit/topology.xml", 1);
    if (!FERRY_HAVE_HWLOC || !dlopen("libhwloc.so.15", RTLD_NOW)) {
        print_message("SKIP there is no hwloc here, or was none when this was built\n");
        assert_false(fe_pin_find(&known[0], &near));
        unsetenv("HWLOC_XMLFILE");
        return;
    }
    for (size_t i = 0; i < 2; i++) {
        CPU_ZERO(&near);
        assert_true(fe_pin_find(&known[i], &near));
        assert_int_equal(CPU_COUNT(&near), 1);
        assert_true(CPU_ISSET(1, &near));
    }
    for (size_t i = 0; i < 3; i++) assert_false(fe_pin_find(&unknown[i], &near));
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    fe_pin_near(0, &known[1]);
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    if (CPU_ISSET(1, &before)) { /* moved there */
        assert_int_equal(CPU_COUNT(&after), 1);
        assert_true(CPU_ISSET(1, &after));
    } else { /* not out of its mask */
        assert_true(CPU_EQUAL(&before, &after));
    }
    sched_setaffinity(0, sizeof before, &before);
    unsetenv("HWLOC_XMLFILE");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_immediate),
        cmocka_unit_test(test_ring_in_one_thread),
        cmocka_unit_test(test_ring_of_many_writers),
        cmocka_unit_test(test_a_letter_waits_for_its_chunks),
        cmocka_unit_test(test_nonsense_is_refused),
        cmocka_unit_test(test_mail),
        cmocka_unit_test(test_mail_for_a_device),
        cmocka_unit_test(test_turns_of_kernel_orders),
        cmocka_unit_test(test_flags_say_what_immediates_say),
        cmocka_unit_test(test_arrivals_by_flags),
        cmocka_unit_test(test_rails),
        cmocka_unit_test(test_near_a_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
