/* The meeting place of a group, without sockets: who is let in, what is answered, who is named when time runs out. And the texts
 * that say where to meet. */
#include "boot/meeting.h"
#include "boot/place.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
/* cmocka wants the four above first */
#include <cmocka.h>

enum { GUESTS = 16, ROOM = 4096 };

typedef struct heard { /* what the hub said to one connection */
    uint8_t bytes[ROOM];
    size_t n;
} heard;

static fe_meeting *m;
static heard said[GUESTS];
static int closed[GUESTS];

static bool hear(void *context, int guest, const void *bytes, size_t n) {
    (void)context;
    assert_true(guest < GUESTS && said[guest].n + n <= ROOM);
    memcpy(said[guest].bytes + said[guest].n, bytes, n);
    said[guest].n += n;
    return true;
}

static void note_close(void *context, int guest) {
    (void)context;
    closed[guest]++;
}

static int open_meeting(void **state) {
    (void)state;
    m = calloc(1, sizeof *m);
    if (!m) return -1;
    memset(said, 0, sizeof said);
    memset(closed, 0, sizeof closed);
    memcpy(m->secret, "sixteen secrets!", FE_WIRE_SECRET);
    m->send = hear;
    return 0;
}

static int close_meeting(void **state) {
    (void)state;
    fe_meeting_free(m);
    free(m);
    return 0;
}

static bool hello(int guest, int rank, int ranks, int library, const char *secret) {
    uint8_t message[FE_WIRE_HEADER + FE_WIRE_HELLO_BYTES];
    fe_hello h = {.rank = rank, .ranks = ranks, .library = library, .timeout_ms = 100};
    memcpy(h.secret, secret, FE_WIRE_SECRET);
    fe_wire_put_head(message, FE_HELLO, FE_WIRE_HELLO_BYTES);
    fe_wire_put_hello(message + FE_WIRE_HEADER, &h);
    return fe_meeting_hear(m, guest, message, sizeof message, 0);
}

static int come(int rank, int ranks) {
    int guest = fe_meeting_enter(m, 0);
    assert_true(hello(guest, rank, ranks, 100, "sixteen secrets!"));
    said[guest].n = 0;
    return guest;
}

/* In pieces of one byte, as a network may deliver it. */
static bool gather(int guest, const char *text, int64_t now) {
    uint8_t message[FE_WIRE_HEADER + 4 + 64];
    size_t n = strlen(text);
    fe_wire_put_head(message, FE_GATHER, (uint32_t)(4 + n));
    fe_wire_put_u32(message + FE_WIRE_HEADER, m->round);
    memcpy(message + FE_WIRE_HEADER + 4, text, n);
    for (size_t i = 0; i < FE_WIRE_HEADER + 4 + n; i++)
        if (!fe_meeting_hear(m, guest, message + i, 1, now)) return false;
    return true;
}

/* The guest was sent exactly one message of this type; its payload from `skip` on, as text. */
static const char *only(int guest, fe_wire_type type, size_t skip) {
    static char text[ROOM];
    fe_wire_head head;
    assert_true(said[guest].n >= FE_WIRE_HEADER);
    assert_true(fe_wire_get_head(said[guest].bytes, ROOM, &head));
    assert_int_equal(head.type, type);
    assert_int_equal(said[guest].n, FE_WIRE_HEADER + head.bytes);
    assert_true(head.bytes >= skip);
    memcpy(text, said[guest].bytes + FE_WIRE_HEADER + skip, head.bytes - skip);
    text[head.bytes - skip] = 0;
    said[guest].n = 0;
    return text;
}

static uint32_t error_of(int guest) {
    return fe_wire_get_u32(said[guest].bytes + FE_WIRE_HEADER);
}

static void test_everybody_hears_all(void **state) {
    (void)state;
    int a = come(2, 3), b = come(0, 3), c = come(1, 3);
    assert_true(gather(a, "two.", 0) && gather(b, "zero", 0));
    assert_int_equal(said[a].n + said[b].n, 0);
    assert_true(gather(c, "one.", 0));
    assert_string_equal(only(a, FE_ALL, 4), "zeroone.two.");
    assert_string_equal(only(b, FE_ALL, 4), "zeroone.two.");
    assert_string_equal(only(c, FE_ALL, 4), "zeroone.two.");
    for (int round = 0; round < 3; round++) {
        assert_true(gather(c, "", 0) && gather(a, "", 0) && gather(b, "", 0));
        assert_string_equal(only(b, FE_ALL, 4), "");
        said[a].n = said[c].n = 0;
    }
    fe_meeting_leave(m, a);
    fe_meeting_leave(m, b);
    assert_false(fe_meeting_over(m, 0));
    fe_meeting_leave(m, c);
    assert_true(fe_meeting_over(m, 0));
}

static void test_strangers(void **state) {
    (void)state;
    int good = come(0, 2), guest = fe_meeting_enter(m, 0);
    assert_false(hello(guest, 1, 2, 100, "sixteen secret!!"));
    assert_int_equal(error_of(guest), FERRY_REFUSED);
    only(guest, FE_ERROR, 4);
    fe_meeting_leave(m, guest);
    guest = fe_meeting_enter(m, 0);
    assert_false(fe_meeting_hear(m, guest, (const uint8_t *)"GET / HTTP/1.1\r\n\r\n", 18, 0));
    assert_int_equal(said[guest].n, 0);
    fe_meeting_leave(m, guest);
    guest = fe_meeting_enter(m, 0); /* gathers before it says who it is */
    assert_false(gather(guest, "data", 0));
    fe_meeting_leave(m, guest);
    guest = fe_meeting_enter(m, 0); /* says nothing */
    fe_meeting_tick(m, (int64_t)FE_HELLO_MS * 1000000 + 1, note_close);
    assert_int_equal(closed[guest], 1);
    assert_int_equal(closed[good], 0);
    uint8_t big[FE_WIRE_HEADER];
    fe_wire_put_head(big, FE_HELLO, FE_WIRE_HELLO_BYTES + 1);
    guest = fe_meeting_enter(m, 0);
    assert_false(fe_meeting_hear(m, guest, big, sizeof big, 0));
    fe_wire_put_head(big, FE_GATHER, FE_WIRE_GATHER_MAX + 1); /* a rank is bounded too */
    assert_false(fe_meeting_hear(m, good, big, sizeof big, 0));
}

static void refused(int rank, int ranks, int library, ferry_status status, const char *word) {
    int guest = fe_meeting_enter(m, 0);
    assert_false(hello(guest, rank, ranks, library, "sixteen secrets!"));
    assert_int_equal(error_of(guest), status);
    const char *text = only(guest, FE_ERROR, 4);
    if (!strstr(text, word)) fail_msg("\"%s\" is not in: %s", word, text);
    fe_meeting_leave(m, guest);
}

static void test_ranks_that_do_not_fit(void **state) {
    (void)state;
    come(1, 3);
    refused(1, 3, 100, FERRY_MISMATCH, "rank 1 is taken");
    refused(0, 4, 100, FERRY_MISMATCH, "ranks is 4 at rank 0, 3");
    refused(0, 3, 101, FERRY_MISMATCH, "library version is 101 at rank 0, 100");
    refused(3, 3, 100, FERRY_INVALID, "rank 3 of 3");
    refused(-1, 3, 100, FERRY_INVALID, "rank -1");
    refused(0, FERRY_MAX_RANKS + 1, 100, FERRY_INVALID, "1025");
    assert_int_equal(m->present, 1);
}

static void test_sizes_that_differ(void **state) {
    (void)state;
    int a = come(0, 2), b = come(1, 2);
    assert_true(gather(a, "four", 0) && gather(b, "seven..", 0));
    assert_int_equal(error_of(a), FERRY_MISMATCH);
    const char *text = only(a, FE_ERROR, 4);
    assert_non_null(strstr(text, "rank 1 gathers 7 bytes, rank 0 4"));
    only(b, FE_ERROR, 4);
}

static void test_the_missing_are_named(void **state) {
    (void)state;
    int a = come(0, 4), c = come(2, 4), d = come(3, 4); /* rank 3 is here, but says nothing */
    assert_true(gather(a, "x", 0) && gather(c, "x", 50000000));
    assert_int_equal(fe_meeting_tick(m, 1, note_close), 100000000);
    assert_int_equal(said[a].n + said[c].n, 0);
    fe_meeting_tick(m, 100000001,
                    note_close); /* the first one's time is up: there will be no group, and both are told */
    for (int i = 0; i < 2; i++) {
        int guest = i ? c : a;
        assert_int_equal(error_of(guest), FERRY_TIMEOUT);
        const char *text = only(guest, FE_ERROR, 4);
        assert_non_null(strstr(text, "without rank 1 rank 3"));
    }
    assert_int_equal(error_of(d), FERRY_TIMEOUT); /* should it come yet; but nobody waits for it */
    assert_non_null(strstr(only(d, FE_ERROR, 4), "without rank 1 rank 3"));
    fe_meeting_tick(m, 200000001, note_close);
    assert_int_equal(said[a].n + said[c].n + said[d].n, 0); /* told once */
    assert_false(fe_meeting_over(m, 200000001));
    fe_meeting_leave(m, a);
    fe_meeting_leave(m, c);
    assert_true(fe_meeting_over(m, 200000001)); /* rank 1 never came, and is too late by now */
}

static void test_a_rank_that_goes_away(void **state) {
    (void)state;
    int a = come(0, 2), b = come(1, 2);
    assert_true(gather(a, "x", 0));
    fe_meeting_leave(m, b);
    assert_int_equal(error_of(a), FERRY_TIMEOUT);
    assert_non_null(strstr(only(a, FE_ERROR, 4), "rank 1 went away"));
}

/* Who was busy elsewhere meanwhile hears of it when it comes, and does not wait for those whom that has sent home. */
static void test_a_rank_that_went_away(void **state) {
    (void)state;
    int a = come(0, 3), b = come(1, 3), c = come(2, 3);
    assert_true(gather(a, "x", 0));
    fe_meeting_leave(m, b);
    assert_int_equal(error_of(a), FERRY_TIMEOUT);
    said[a].n = 0;
    fe_meeting_leave(m, a);
    assert_true(gather(c, "x", 0));
    assert_int_equal(error_of(c), FERRY_TIMEOUT);
    assert_non_null(strstr(only(c, FE_ERROR, 4), "rank 1 went away"));
}

/* Who comes only then, too: the meeting goes on until all have come once, or the time is up that they would have been waited for. */
static void test_late_for_a_dead_rank(void **state) {
    (void)state;
    int a = come(0, 4), b = come(1, 4);
    assert_true(gather(a, "x", 0));
    fe_meeting_leave(m, b);
    fe_meeting_leave(m, a);
    assert_true(fe_meeting_over(m, 0)); /* where the port is wanted again */
    m->lingers = true;
    assert_false(fe_meeting_over(m, 99999999));
    int c = come(3, 4);
    assert_true(gather(c, "x", 50000000));
    assert_non_null(strstr(only(c, FE_ERROR, 4), "rank 1 went away"));
    fe_meeting_leave(m, c);
    assert_false(fe_meeting_over(m, 99999999));
    assert_int_equal(fe_meeting_tick(m, 99999999, note_close), 100000000);
    assert_true(fe_meeting_over(m, 100000000));
    int d = come(2, 4);
    fe_meeting_leave(m, d);
    assert_true(fe_meeting_over(m, 50000000)); /* all have come */
}

/* All is said, the first goes; one that does not go (it is stopped) has what was said, and is not kept a place for. */
static void test_one_that_does_not_go(void **state) {
    (void)state;
    int a = come(0, 2), b = come(1, 2);
    assert_true(gather(a, "x", 0) && gather(b, "y", 0));
    assert_int_equal(fe_meeting_tick(m, 300000000, note_close), INT64_MAX); /* between rounds all may take their time */
    fe_meeting_leave(m, a);
    assert_int_equal(fe_meeting_tick(m, 300000000, note_close), 400000000);
    assert_string_equal(only(b, FE_ALL, 4), "xy");
    assert_false(fe_meeting_over(m, 300000000));
    fe_meeting_tick(m, 400000001, note_close);
    assert_int_equal(closed[b], 1);
    assert_true(fe_meeting_over(m, 400000001));
}

/* say, unit: a letter for each rank: w(ait), o(ut), a(way), b(ack); ranks of one letter come together. */
static bool muster(int guest, const char *say, const char *unit, const char *text, int64_t now) {
    static const char says[] = {[FE_SAY_WAIT] = 'w', [FE_SAY_OUT] = 'o', [FE_SAY_AWAY] = 'a', [FE_SAY_BACK] = 'b'};
    uint8_t message[FE_WIRE_HEADER + 4 + 64] = {0}, *at = message + FE_WIRE_HEADER + 4;
    size_t ranks = strlen(say), n = 3 * ranks + strlen(text);
    fe_wire_put_head(message, FE_MUSTER, (uint32_t)(4 + n));
    for (size_t r = 0; r < ranks; r++) {
        at[r] = (uint8_t)((const char *)memchr(says, say[r], sizeof says) - says);
        at[ranks + 2 * r + 1] = (uint8_t)unit[r];
    }
    memcpy(at + 3 * ranks, text, strlen(text));
    return fe_meeting_hear(m, guest, message, FE_WIRE_HEADER + 4 + n, now);
}

static const char *roll(int guest, size_t ranks, uint8_t *who) {
    memcpy(who, said[guest].bytes + FE_WIRE_HEADER + 4, ranks);
    return only(guest, FE_ROLL, 4 + ranks);
}

#define ASSERT_ROLL(guest, wanted, text, bytes)                                                            \
    do {                                                                                                   \
        uint8_t who_[8];                                                                                   \
        const char *all_ = roll(guest, sizeof wanted - 1, who_);                                           \
        for (size_t i_ = 0; i_ + 1 < sizeof wanted; i_++) assert_int_equal(who_[i_], (wanted)[i_] == '1'); \
        assert_memory_equal(all_, text, bytes);                                                            \
    } while (0)

static void test_not_all_need_come(void **state) {
    (void)state;
    int a = come(0, 4), c = come(2, 4), d = come(3, 4);
    assert_true(muster(a, "wwww", "abcd", "zero", 0)); /* waits for all ... */
    assert_true(muster(c, "wowb", "abcd", "two.", 0)); /* ... but 1 is out */
    assert_int_equal(said[a].n, 0);
    assert_true(muster(d, "wwwa", "abcd", "thre", 0)); /* 3 was away, and comes back */
    ASSERT_ROLL(a, "1011", "zero\0\0\0\0two.thre", 16);
    ASSERT_ROLL(d, "1011", "zero\0\0\0\0two.thre", 16);
    said[c].n = 0;
    int late = fe_meeting_enter(m, 0);
    assert_false(hello(late, 1, 4, 100, "sixteen secrets!"));
    assert_int_equal(error_of(late), FERRY_REFUSED);
    assert_true(gather(a, "A", 0) && gather(d, "D", 0) && gather(c, "C", 0)); /* and so on, among them */
    assert_memory_equal(only(a, FE_ALL, 4), "A\0CD", 4);
    said[c].n = said[d].n = 0;
    assert_true(gather(c, "x", 0));
    fe_meeting_leave(m, d); /* from here on all are needed */
    assert_int_equal(error_of(c), FERRY_TIMEOUT);
}

static void test_who_is_late_is_left_out(void **state) {
    (void)state;
    int a = come(0, 3), b = come(1, 3), c = come(2, 3); /* rank 1 says hello, and no more in time */
    assert_true(muster(a, "www", "abc", "x", 0) && muster(c, "www", "abc", "z", 50000000));
    assert_int_equal(fe_meeting_tick(m, 1, note_close), 100000000);
    fe_meeting_tick(m, 100000001, note_close);
    ASSERT_ROLL(a, "101", "x\0z", 3);
    ASSERT_ROLL(c, "101", "x\0z", 3);
    assert_int_equal(error_of(b), FERRY_REFUSED);
    assert_false(muster(b, "www", "abc", "y", 100000002));
}

static void test_who_is_out_or_away_stays_out(void **state) {
    (void)state;
    int a = come(0, 3), b = come(1, 3), c = come(2, 3);
    assert_true(muster(b, "www", "abc", "y", 0));
    assert_true(muster(c, "wwa", "abc", "z", 0)); /* away, and nobody calls it back */
    assert_int_equal(said[b].n + said[c].n, 0);
    assert_true(muster(a, "woa", "abc", "x", 0));
    ASSERT_ROLL(a, "100", "x\0\0", 3);
    assert_int_equal(error_of(b), FERRY_REFUSED);
    assert_int_equal(error_of(c), FERRY_REFUSED);
}

static void test_units_come_as_a_whole(void **state) {
    (void)state;
    int a = come(0, 4), b = come(1, 4), c = come(2, 4);
    assert_true(muster(a, "wwww", "aabb", "0", 0) && muster(c, "wwww", "aabb", "2", 0) &&
                muster(b, "wwwo", "aabb", "1", 0)); /* 3 is out, and with it 2 */
    ASSERT_ROLL(a, "1100", "01\0\0", 4);
    ASSERT_ROLL(b, "1100", "01\0\0", 4);
    assert_int_equal(error_of(c), FERRY_REFUSED);
}

static void test_a_full_house(void **state) {
    (void)state;
    for (int i = 0; i < FE_GUESTS; i++) assert_int_equal(fe_meeting_enter(m, 0), i);
    assert_int_equal(fe_meeting_enter(m, 0), -1);
    fe_meeting_leave(m, 7);
    assert_int_equal(fe_meeting_enter(m, 0), 7);
}

static void test_places(void **state) {
    (void)state;
    fe_place p;
    assert_int_equal(fe_place_parse("node7:1234", "it", &p), FERRY_OK);
    assert_string_equal(p.host, "node7");
    assert_int_equal(p.port, 1234);
    assert_int_equal(fe_place_parse("[::1]:65535", "it", &p), FERRY_OK);
    assert_string_equal(p.host, "::1");
    static const char *const bad[] = {"", ":", "a", "a:", ":5", "a:0", "a:65536", "a:1x", "a:-4", "[]:5"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (fe_place_parse(bad[i], "the word", &p) != FERRY_INVALID) fail_msg("was accepted: \"%s\"", bad[i]);
        assert_non_null(strstr(ferry_last_error(), "the word"));
    }
}

static void clear(void) {
    static const char *const names[] = {"FERRY_RANK",
                                        "FERRY_RANKS",
                                        "FERRY_BOOT",
                                        "RANK",
                                        "WORLD_SIZE",
                                        "PMI_RANK",
                                        "PMI_SIZE",
                                        "MPI_LOCALNRANKS",
                                        "OMPI_COMM_WORLD_RANK",
                                        "OMPI_COMM_WORLD_SIZE",
                                        "OMPI_COMM_WORLD_LOCAL_SIZE",
                                        "PMIX_RANK",
                                        "PMIX_SIZE",
                                        "SLURM_PROCID",
                                        "SLURM_NTASKS",
                                        "SLURM_NPROCS",
                                        "SLURM_NNODES",
                                        "SLURM_JOB_NODELIST",
                                        "SLURM_STEP_ID",
                                        "SLURM_STEP_NUM_NODES",
                                        "SLURM_STEP_NODELIST"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unsetenv(names[i]);
}

/* "NAME=VALUE NAME=VALUE": what a launcher would set. */
static ferry_status launched(const char *variables, fe_launch *launch) {
    char text[512], *save;
    clear();
    snprintf(text, sizeof text, "%s", variables);
    for (char *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        char *value = strchr(word, '=');
        *value = 0;
        setenv(word, value + 1, 1);
    }
    return fe_launch_read(launch);
}

static void test_slurm_hosts(void **state) {
    (void)state;
    static const struct {
        const char *list, *host;
    } cases[] = {{"n1,n2", "n1"},
                 {"gpu[03-07,9]", "gpu03"},
                 {"gpu[3,5],cpu1", "gpu3"},
                 {"rack[1-2]-ib,x", "rack1-ib"},
                 {"[1-2]", "1"},
                 {"a[1", NULL},
                 {"a[]", NULL},
                 {",b", NULL},
                 {"a[1-2]b[3-4]", NULL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fe_launch l;
        char text[256];
        snprintf(text, sizeof text, "SLURM_PROCID=1 SLURM_NTASKS=4 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST=%s",
                 cases[i].list);
        assert_int_equal(launched(text, &l), cases[i].host ? FERRY_OK : FERRY_INVALID);
        if (cases[i].host)
            assert_string_equal(l.place.host, cases[i].host);
        else
            assert_non_null(strstr(ferry_last_error(), cases[i].list));
    }
    fe_launch l;
    assert_int_equal(launched("PMIX_RANK=0 SLURM_NTASKS=2 SLURM_NNODES=2 SLURM_JOB_NODELIST=a[7-8]", &l), FERRY_OK);
    assert_string_equal(l.place.host, "a7");
    assert_int_equal(launched("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1 SLURM_STEP_NODELIST=a", &l),
                     FERRY_OK);
    assert_string_equal(l.place.host, "127.0.0.1");
    assert_int_equal(
        launched("SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_NNODES=2 SLURM_JOB_NODELIST=a,b FERRY_BOOT=c:77", &l), FERRY_OK);
    assert_string_equal(l.place.host, "c");
    clear();
}

/* Ranks that are elsewhere, and nothing that says where rank 0 is. */
static void test_unknown_hosts(void **state) {
    (void)state;
    fe_launch l;
    assert_int_equal(launched("PMI_RANK=0 PMI_SIZE=4 MPI_LOCALNRANKS=2", &l), FERRY_INVALID);
    assert_non_null(strstr(ferry_last_error(), "MPI_LOCALNRANKS=2 of 4 ranks"));
    assert_non_null(strstr(ferry_last_error(), "FERRY_BOOT"));
    static const char open_mpi[] = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=1 "
                                   "SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST=of-its-daemons,b";
    assert_int_equal(launched(open_mpi, &l), FERRY_INVALID);
    assert_int_equal(launched("OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2", &l),
                     FERRY_OK);
    assert_int_equal(launched("PMI_RANK=0 PMI_SIZE=4 MPI_LOCALNRANKS=2 FERRY_BOOT=b:9", &l), FERRY_OK);
    assert_int_equal(l.place.port, 9);
    clear();
}

static void test_launched_or_not(void **state) {
    (void)state;
    fe_launch l;
    clear();
    assert_false(fe_launch_found());
    assert_int_equal(launched("SLURM_PROCID=0 SLURM_NTASKS=4", &l), FERRY_OK);
    assert_false(fe_launch_found()); /* a job's script */
    assert_int_equal(launched("SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_STEP_ID=4294967291", &l), FERRY_OK);
    assert_false(fe_launch_found());
    assert_int_equal(launched("SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_STEP_ID=0", &l), FERRY_OK);
    assert_true(fe_launch_found());
    assert_int_equal(launched("FERRY_RANK=0 FERRY_RANKS=1", &l), FERRY_OK);
    assert_true(fe_launch_found());
    clear();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_everybody_hears_all, open_meeting, close_meeting),
        cmocka_unit_test_setup_teardown(test_strangers, open_meeting, close_meeting),
        cmocka_unit_test_setup_teardown(test_ranks_that_do_not_fit, open_meeting, close_meeting),
        cmocka_unit_test_setup_teardown(test_sizes_that_differ, open_meeting, close_meeting),
        cmocka_unit_test_setup_teardown(test_the_missing_are_named, open_meeting, close_meeting),
        cmocka_unit_test_setup_teardown(test_a_rank_that_goes_away, open_meeting, close_meeting),
        cmocka_unit_test_setup_teardown(test_a_rank_that_went_away, open_meeting, close_meeting),
        cmocka_unit_test_setup_teardown(test_late_for_a_dead_rank, open_meeting, close_meeting),
        cmocka_unit_test_setup_teardown(test_one_that_does_not_go, open_meeting, close_meeting),
        cmocka_unit_test_setup_teardown(test_not_all_need_come, open_meeting, close_meeting),
        cmocka_unit_test_setup_teardown(test_who_is_late_is_left_out, open_meeting, close_meeting),
        cmocka_unit_test_setup_teardown(test_who_is_out_or_away_stays_out, open_meeting, close_meeting),
        cmocka_unit_test_setup_teardown(test_units_come_as_a_whole, open_meeting, close_meeting),
        cmocka_unit_test_setup_teardown(test_a_full_house, open_meeting, close_meeting),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_slurm_hosts),
        cmocka_unit_test(test_unknown_hosts),
        cmocka_unit_test(test_launched_or_not),
    };
    return cmocka_run_group_tests_name("boot", tests, NULL, NULL);
}
