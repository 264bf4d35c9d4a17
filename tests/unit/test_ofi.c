/* The network itself, over the loopback: what is written arrives, by all rails; and what somebody writes who has not been told the key does
 * not. One thread plays everybody. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/os.h"
#include "link/immediate.h"
#include "link/ofi.h"
#include <stdio.h>
#include <string.h>

/* What libfabric 1.17 keeps of a connection that a refusal has broken (docs/verification.md). */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libfabric.so";
}

enum { BYTES = 65536, PIECE = 1024, MOST = 4 };

typedef struct end {
    fe_ofi *ofi;
    fe_ofi_card card;
    char *memory, *above; /* above: of a range that is split, the rest */
    int sent, failed, arrived;
    uint32_t said[64];
    uint64_t context[64][FE_OFI_CONTEXT / 8];
    int contexts;
} end;

static end ends[MOST];
static int count;

static char *new_memory(void) {
    char *memory = aligned_alloc(4096, BYTES);
    assert_non_null(memory);
    memset(memory, 0, BYTES);
    return memory;
}

static void free_end(end *e) {
    free(e->memory);
    free(e->above);
}

static end *new_end(void) {
    end *e = &ends[count];
    memset(e, 0, sizeof *e);
    e->memory = new_memory();
    e->above = new_memory();
    return e;
}

static bool opens(end *e, const fe_ofi_wish *wish) {
    if (fe_ofi_open(wish, &e->ofi, &e->card) != FERRY_OK) {
        free_end(e);
        return false;
    }
    count++;
    return true;
}

static bool open_end(int rank, const char *addresses, bool flags) {
    end *e = new_end();
    return opens(e, &(fe_ofi_wish){.rank = rank,
                                   .each = 1,
                                   .provider = "tcp;ofi_rxm",
                                   .addresses = addresses,
                                   .addresses_given = true,
                                   .flags = flags,
                                   .memory = e->memory,
                                   .bytes = BYTES});
}

enum { SPLIT = 16 * PIECE };

static ferry_status make_above(const void *context, void **memory, int *gpu) {
    *gpu = -1; /* host memory, in the place of a GPU's */
    *memory = ((const end *)context)->above;
    return FERRY_OK;
}

static fe_ofi_wish split_wish(end *e, int rank, fe_direct direct) {
    return (fe_ofi_wish){.rank = rank,
                         .each = 1,
                         .provider = "shm",
                         .memory = e->memory,
                         .bytes = BYTES,
                         .split = SPLIT,
                         .direct = direct,
                         .above = make_above,
                         .context = e};
}

/* As where rows are a GPU's: with a provider that takes such memory. */
static bool open_split(int rank, fe_direct direct) {
    end *e = new_end();
    fe_ofi_wish wish = split_wish(e, rank, direct);
    return opens(e, &wish);
}

static int close_all(void **state) {
    (void)state;
    for (; count > 0; count--) {
        fe_ofi_close(ends[count - 1].ofi);
        free_end(&ends[count - 1]);
    }
    return 0;
}

static void look(end *e) {
    fe_ofi_sent sent[8];
    int n = fe_ofi_poll_sent(e->ofi, sent, 8);
    assert_true(n >= 0);
    for (int i = 0; i < n; i++) {
        if (sent[i].error) e->failed++;
        e->sent++;
    }
    n = fe_ofi_poll_arrived(e->ofi, e->said + e->arrived, 8);
    assert_true(n >= 0);
    e->arrived += n;
    assert_true(e->arrived < 56);
}

/* Until the count is reached, or for so long. */
static bool until(const int *reaches, int wanted, int ms) {
    int64_t deadline = fe_now_ns() + (int64_t)ms * 1000000;
    while (*reaches < wanted && fe_now_ns() < deadline)
        for (int i = 0; i < count; i++) look(&ends[i]);
    return *reaches >= wanted;
}

static bool write_piece(end *e, int peer, size_t at, uint32_t immediate) {
    int64_t deadline = fe_now_ns() + 5000000000;
    int result = 1;
    while (result > 0 && fe_now_ns() < deadline) {
        result = fe_ofi_write(e->ofi, peer, at, at, PIECE, immediate, e->context[e->contexts]);
        for (int i = 0; result > 0 && i < count; i++) look(&ends[i]);
    }
    e->contexts++;
    return result == 0;
}

static const uint32_t chunk = 1 | 15u << 3 | 1u << 8; /* FE_CHUNK of puts, of rank 1 */

static void meet(end *e, const fe_ofi_card *a, const fe_ofi_card *b) {
    fe_ofi_card cards[2] = {*a, *b};
    assert_int_equal(fe_ofi_meet(e->ofi, cards, 2), FERRY_OK);
}

static bool begin(const char *addresses, bool flags) {
    if (!open_end(0, addresses, flags) || !open_end(1, addresses, flags)) {
        print_message("SKIP no network: %s\n", ferry_last_error());
        return false;
    }
    meet(&ends[0], &ends[0].card, &ends[1].card);
    meet(&ends[1], &ends[0].card, &ends[1].card);
    return true;
}

static void pieces_arrive(void) {
    end *to = &ends[0], *from = &ends[1];
    for (int i = 0; i < 32; i++) memset(from->memory + i * PIECE, 'a' + i, PIECE);
    for (int i = 0; i < 32; i++) assert_true(write_piece(from, 0, (size_t)i * PIECE, chunk));
    assert_true(until(&from->sent, 32, 5000));
    assert_int_equal(from->failed, 0);
    assert_memory_equal(to->memory, from->memory, 32 * PIECE);
}

static void test_writes(void **state) {
    (void)state;
    fe_immediate i;
    if (!begin("127.0.0.1", false)) return;
    pieces_arrive();
    assert_true(until(&ends[0].arrived, 32, 5000));
    for (int n = 0; n < 32; n++) {
        assert_true(fe_immediate_unpack(ends[0].said[n], ends[0].card.tag, &i));
        assert_int_equal(i.source, 1);
    }
}

/* What is above the split goes to the other memory of a rank that has one, and to the same of one that has not; nothing crosses the split. */
static void writes_about_a_split(bool to_split, bool from_split) {
    if (!open_split(0, to_split ? FE_DIRECT_ALWAYS : FE_DIRECT_NEVER) ||
        !open_split(1, from_split ? FE_DIRECT_ALWAYS : FE_DIRECT_NEVER)) {
        print_message("SKIP no shm of libfabric's: %s\n", ferry_last_error());
        return;
    }
    end *to = &ends[0], *from = &ends[1];
    meet(to, &to->card, &from->card);
    meet(from, &to->card, &from->card);
    assert_int_equal(fe_ofi_direct(to->ofi), to_split);
    assert_int_equal(fe_ofi_direct(from->ofi), from_split);
    for (int i = 0; i < 32; i++) {
        char *at = from_split && i >= 16 ? from->above - SPLIT : from->memory;
        memset(at + i * PIECE, 'a' + i, PIECE);
    }
    for (int i = 0; i < 32; i++) assert_true(write_piece(from, 0, (size_t)i * PIECE, chunk));
    assert_true(until(&from->sent, 32, 5000));
    assert_true(until(&to->arrived, 32, 5000));
    assert_int_equal(from->failed, 0);
    for (int i = 0; i < 32 * PIECE; i++) {
        const char *at = to_split && i >= SPLIT ? to->above - SPLIT : to->memory;
        assert_int_equal((uint8_t)at[i], 'a' + i / PIECE);
    }
    for (int i = 0; to_split && i < 16 * PIECE; i++) assert_int_equal(to->memory[SPLIT + i], 0);
    if (from_split) assert_false(write_piece(from, 0, SPLIT - PIECE / 2, chunk));
    assert_false(write_piece(from, 0, BYTES - PIECE / 2, chunk));
}

static void test_split(void **state) {
    for (int i = 0; i < 4; i++) {
        writes_about_a_split(i & 1, i & 2);
        close_all(state);
    }
}

static ferry_status make_nothing(const void *context, void **memory, int *gpu) {
    (void)context, (void)memory, (void)gpu;
    return fe_fail(FERRY_NOMEM, "no memory of that kind");
}

/* The provider would take such memory, and there is none: rails that were opened for it are closed, and others serve. */
static void test_split_without_memory(void **state) {
    (void)state;
    end *e = new_end();
    fe_ofi_wish wish = split_wish(e, 0, FE_DIRECT_ALWAYS);
    wish.above = make_nothing;
    ferry_status status = fe_ofi_open(&wish, &e->ofi, &e->card);
    if (status != FERRY_NOMEM) {
        free_end(e);
        print_message("SKIP no shm of libfabric's: %s\n", ferry_last_error());
        return;
    }
    wish.direct = FE_DIRECT_MAYBE;
    assert_int_equal(fe_ofi_open(&wish, &e->ofi, &e->card), FERRY_OK);
    assert_false(fe_ofi_direct(e->ofi));
    count = 1;
    assert_true(open_split(1, FE_DIRECT_ALWAYS));
    meet(&ends[0], &ends[0].card, &ends[1].card);
    meet(&ends[1], &ends[0].card, &ends[1].card);
    assert_true(write_piece(&ends[1], 0, SPLIT, chunk));
    assert_true(until(&ends[0].arrived, 1, 5000));
}

/* The host's memory serves where the provider does not take a GPU's, unless that is asked for. */
static void test_split_refused(void **state) {
    (void)state;
    end *e = new_end();
    fe_ofi_wish wish = split_wish(e, 0, FE_DIRECT_ALWAYS);
    wish.provider = "tcp;ofi_rxm";
    wish.addresses = "127.0.0.1";
    assert_int_equal(fe_ofi_open(&wish, &e->ofi, &e->card), FERRY_UNSUPPORTED);
    assert_non_null(strstr(ferry_last_error(), "does not reach a GPU's memory"));
    wish.direct = FE_DIRECT_MAYBE;
    assert_int_equal(fe_ofi_open(&wish, &e->ofi, &e->card), FERRY_OK);
    assert_false(fe_ofi_direct(e->ofi));
    count = 1;
}

/* Bytes that each rail's socket has sent cannot be asked for here: that both carry is seen in tests/hosts. */
static void test_two_rails(void **state) {
    (void)state;
    if (!begin("127.0.0.1,127.0.0.2", false)) return;
    assert_int_equal(ends[0].card.rails, 2);
    pieces_arrive();
    assert_true(until(&ends[0].arrived, 32, 5000));
}

static void test_rails_that_differ(void **state) {
    (void)state;
    if (!begin("127.0.0.1,127.0.0.2", false)) return;
    assert_true(open_end(1, "127.0.0.1", false));
    meet(&ends[2], &ends[0].card, &ends[2].card); /* a rank of one rail writes to one of two */
    for (int i = 0; i < 8; i++) assert_true(write_piece(&ends[2], 0, (size_t)i * PIECE, chunk));
    assert_true(until(&ends[0].arrived, 8, 5000));
}

static void test_by_flags(void **state) {
    (void)state;
    if (!begin("127.0.0.1,127.0.0.2", true)) return;
    assert_true(fe_ofi_by_flags(ends[0].ofi));
    pieces_arrive();
    assert_false(until(&ends[0].arrived, 1, 100)); /* nothing comes along */
}

static void test_groups_that_differ(void **state) {
    (void)state;
    if (!begin("127.0.0.1", false)) return;
    fe_ofi_card other = ends[1].card;
    other.flags = 1;
    fe_ofi_card cards[2] = {ends[0].card, other};
    assert_true(open_end(0, "127.0.0.1", false));
    assert_int_equal(fe_ofi_meet(ends[2].ofi, cards, 2), FERRY_MISMATCH);
    assert_non_null(strstr(ferry_last_error(), "FERRY_FABRIC_FLAGS is 1 on rank 1, 0 on rank 0"));
}

/* It knows the address, but not the key, which only ranks are told that have the group's secret. */
static void test_a_stranger(void **state) {
    (void)state;
    if (!begin("127.0.0.1", false)) return;
    fe_ofi_card guessed = ends[0].card;
    guessed.rail[0].key[0] ^= 1;
    guessed.rail[0].key[1] ^= 1;
    assert_true(open_end(1, "127.0.0.1", false));
    end *stranger = &ends[2];
    meet(stranger, &guessed, &stranger->card);
    memset(stranger->memory, 'x', BYTES);
    write_piece(stranger, 0, 0, chunk); /* whether it is told of the refusal is the provider's business: tcp's is not */
    until(&stranger->failed, 1, 500);
    for (int i = 0; i < BYTES; i++) assert_int_equal(ends[0].memory[i], 0);
    assert_int_equal(ends[0].arrived, 0);
    pieces_arrive(); /* and those of the group are not disturbed */
    assert_true(until(&ends[0].arrived, 32, 5000));
}

int main(void) {
    setenv("FI_OFI_RXM_BUFFER_SIZE", "512", 0); /* docs/far.md: else 70 MB for each end */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_writes, close_all),
        cmocka_unit_test_teardown(test_split, close_all),
        cmocka_unit_test_teardown(test_split_without_memory, close_all),
        cmocka_unit_test_teardown(test_split_refused, close_all),
        cmocka_unit_test_teardown(test_two_rails, close_all),
        cmocka_unit_test_teardown(test_rails_that_differ, close_all),
        cmocka_unit_test_teardown(test_by_flags, close_all),
        cmocka_unit_test_teardown(test_groups_that_differ, close_all),
        cmocka_unit_test_teardown(test_a_stranger, close_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
