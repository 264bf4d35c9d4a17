/* The proxy, over a network that is played here: it takes what it likes, when it likes, and says so later. This program's fe_ofi_... stand in
 * for those of src/link/ofi.c, which the linker then leaves out. Rank 1 of 4, on two hosts; its column is rank 3. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "link/far.h"
#include "link/ofi.h"
#include "random.h"
#include "unit/far_cases.h"
#include <stdio.h>

enum { MOST = 4096, ROUNDS = 50, CHUNKS = 5, PIECE = 64 };

typedef struct written {
    int peer;
    uint64_t remote;
    uint32_t immediate;
    uint64_t word; /* the first of what was written */
} written;

static struct network {
    bool flags;
    int refuses;    /* so many of a hundred writes are not taken at once */
    int fails_from; /* writes from this one on fail; 0: none */
    char *memory;
    uint64_t dice;
    written log[MOST];
    void *under_way[MOST];
    int count, told;
    _Atomic int
        taken; /* count, for who asks meanwhile: released, so that what was read of the memory was read before */
} net;

/* ---- the network ---- */

ferry_status fe_ofi_open(const fe_ofi_wish *wish, fe_ofi **ofi, fe_ofi_card *card) {
    net.memory = wish->memory;
    *ofi = (fe_ofi *)(void *)&net;
    *card = (fe_ofi_card){.provider = "played", .tag = FAR_TAG, .rails = 1, .flags = net.flags};
    return FERRY_OK;
}
ferry_status fe_ofi_meet(fe_ofi *ofi, const fe_ofi_card *cards, int ranks) {
    (void)ofi, (void)cards, (void)ranks;
    return FERRY_OK;
}
void fe_ofi_close(fe_ofi *ofi) {
    (void)ofi;
}
void fe_ofi_pin(const fe_ofi *ofi) {
    (void)ofi;
}
uint32_t fe_ofi_tag(const fe_ofi *ofi, int peer) {
    (void)ofi, (void)peer;
    return FAR_TAG;
}
bool fe_ofi_by_flags(const fe_ofi *ofi) {
    (void)ofi;
    return net.flags;
}
bool fe_ofi_direct(const fe_ofi *o) {
    (void)o;
    return false;
}
int fe_ofi_write(fe_ofi *ofi, int peer, uint64_t local, uint64_t remote, size_t bytes, uint32_t immediate,
                 void *context) {
    (void)ofi, (void)bytes;
    if (net.fails_from && net.count + 1 >= net.fails_from) return -113;
    if (net.count == MOST || (net.refuses && chance(&net.dice, net.refuses))) return 1;
    written *w = &net.log[net.count];
    *w = (written){.peer = peer, .remote = remote, .immediate = immediate};
    memcpy(&w->word, net.memory + local, sizeof w->word);
    net.under_way[net.count++] = context;
    atomic_store(&net.taken, net.count);
    return 0;
}
int fe_ofi_read(fe_ofi *ofi, int peer, uint64_t local, uint64_t remote, size_t bytes, void *context) {
    return fe_ofi_write(ofi, peer, local, remote, bytes, 0, context);
}
int fe_ofi_poll_sent(fe_ofi *ofi, fe_ofi_sent *sent, int most) {
    (void)ofi;
    int n = 0;
    while (n < most && net.told < net.count && chance(&net.dice, 66))
        sent[n++] = (fe_ofi_sent){.context = net.under_way[net.told++]};
    return n;
}
int fe_ofi_poll_arrived(fe_ofi *ofi, uint32_t *immediate, int most) {
    (void)ofi, (void)immediate, (void)most;
    return 0;
}
const char *fe_ofi_trouble(const fe_ofi *ofi) {
    (void)ofi;
    return "";
}
const char *fe_ofi_text(const fe_ofi *ofi, int error) {
    (void)ofi;
    return error == -113 ? "no route to host" : "?";
}

/* ---- the group ---- */

static far_case *c;
static fe_watch watch;

static int everybody_like_me(void *context, const void *mine, void *all, size_t bytes) {
    (void)context;
    for (int r = 0; r < 4; r++) memcpy((char *)all + (size_t)r * bytes, mine, bytes);
    return 0;
}

static fe_far *open_far(bool flags, int refuses, int fails_from) {
    fe_boot *boot;
    fe_far *far;
    net = (struct network){.flags = flags, .refuses = refuses, .fails_from = fails_from, .dice = 7};
    c = far_case_new();
    assert_non_null(c);
    watch = (fe_watch){.heap = &c->heap, .timeout_ns = 5000000000};
    assert_int_equal(fe_boot_callback(everybody_like_me, NULL, 1, 4, &boot), FERRY_OK);
    assert_int_equal(fe_far_open(boot, &c->heap, &watch, FERRY_OK, &far), FERRY_OK);
    fe_boot_leave(boot);
    return far;
}

/* Steps: chunks of a note, which say their number, and the note; each half has its turn. */
static void step_on(fe_far *far, bool flags) {
    for (uint64_t epoch = 1; epoch <= ROUNDS; epoch++) {
        int half = (int)(epoch & 1);
        uint64_t word[FE_CELL_WORDS] = {epoch};
        for (uint64_t i = 0; i < CHUNKS; i++) {
            uint64_t at = c->heap.body_at + ((size_t)half * CHUNKS + i) * PIECE;
            uint64_t *piece = fe_near(&c->heap, 1, at);
            *piece = epoch * CHUNKS + i;
            assert_int_equal(fe_far_push(far, 1, FE_LANDED, half, at, at, PIECE), FERRY_OK);
        }
        assert_int_equal(fe_far_tell(far, 1, FE_LANDED, half, epoch, word, 0, 0), FERRY_OK);
        /* As the protocol has it, the next note of this half is said when this one has been answered: so all of it has left. */
        while (atomic_load(&net.taken) < (int)epoch * (CHUNKS + 1 + flags)) sched_yield();
    }
}

static bool is_letter(const written *w) {
    return w->remote == fe_room_letter(&c->heap, true, FE_LANDED, 0, 0) ||
           w->remote == fe_room_letter(&c->heap, true, FE_LANDED, 1, 0);
}

static bool is_flag(const written *w) {
    return w->remote >= fe_room_flag(&c->heap, true, 1, 0) && w->remote < fe_room_flag(&c->heap, true, 2, 0);
}

/* What the other side would find: a flag only when the letter is there, a letter only when its chunks are. */
static void check_order(void) {
    uint64_t chunks = 0, letters = 0, flags[2] = {0};
    for (int i = 0; i < net.count; i++) {
        const written *w = &net.log[i];
        assert_int_equal(w->peer, 3);
        if (is_letter(w)) {
            assert_int_equal(w->word, ++letters); /* its epoch */
            assert_true(chunks >= letters * CHUNKS);
        } else if (is_flag(w)) {
            uint64_t flag = (w->remote - fe_room_flag(&c->heap, true, 1, 0)) / 8;
            if (flag >= FE_KINDS * 2) continue; /* the good-bye's */
            int half = (int)(flag & 1);
            assert_int_equal(w->word, fe_flag_word((uint32_t)++flags[half], FAR_TAG));
            assert_true(letters >= flags[half] * 2 - (half ? 1 : 0)); /* the n-th of its half */
        } else if (w->remote >= c->heap.body_at) {
            chunks++;
        }
    }
    assert_int_equal(chunks, ROUNDS * CHUNKS);
    assert_int_equal(letters, ROUNDS);
    assert_int_equal(flags[0] + flags[1], ROUNDS);
}

static void test_flags_come_last(void **state) {
    (void)state;
    for (int refuses = 0; refuses <= 90; refuses += 45) {
        fe_far *far = open_far(true, refuses, 0);
        step_on(far, true);
        fe_far_close(far);
        check_order();
        far_case_free(c);
    }
}

/* Counted, order is nobody's concern; but all is said, once, with its immediate, the good-bye last. */
static void test_all_is_said(void **state) {
    (void)state;
    fe_far *far = open_far(false, 60, 0);
    step_on(far, false);
    fe_far_close(far);
    int said[8] = {0};
    for (int i = 0; i < net.count; i++) said[net.log[i].immediate & 7]++;
    assert_int_equal(said[FE_CHUNK], ROUNDS * CHUNKS);
    assert_int_equal(said[FE_LETTER], ROUNDS);
    assert_int_equal(said[FE_BYE], 1);
    assert_int_equal(net.log[net.count - 1].immediate & 7, FE_BYE);
    assert_int_equal(said[0], 0); /* no flags */
    far_case_free(c);
}

static void test_a_connection_that_fails(void **state) {
    (void)state;
    fe_far *far = open_far(true, 0, 9);
    uint64_t word[FE_CELL_WORDS] = {1};
    for (int i = 0; i < 20; i++) fe_far_push(far, 1, FE_LANDED, 1, c->heap.body_at, c->heap.body_at, PIECE);
    fe_far_tell(far, 1, FE_LANDED, 1, 1, word, 0, 0);
    int64_t deadline = fe_now_ns() + 5000000000;
    while (fe_far_check(far) == FERRY_OK && fe_now_ns() < deadline) sched_yield();
    assert_int_equal(fe_far_check(far), FERRY_SYSTEM);
    assert_non_null(strstr(ferry_last_error(), "the connection to rank 3: no route to host"));
    assert_string_equal(fe_far_trouble(far, 3), "no route to host");
    fe_far_close(far);
    assert_int_equal(net.count, 8); /* nothing is said of what was not written, nor any more */
    far_case_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flags_come_last),
        cmocka_unit_test(test_all_is_said),
        cmocka_unit_test(test_a_connection_that_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
