/* Dispatch and combine against the oracle, bit by bit, over drawn cases and over named ones.
 *
 *   FERRY_TEST_CASES=n     drawn cases (default below; processes get a fifth)
 *   FERRY_TEST_TIMEOUT_MS  the group's deadline (5000), for tools under which everything is slow
 *   FERRY_TEST_SEED=s      only the case of this seed
 *   FERRY_TEST_CASE='...'  only this case, as a failure prints it
 *   FERRY_TEST_SHRINK_S    seconds for making a case that fails smaller (30)
 *   first argument         threads or processes: only those
 *   second argument        drawn: no named cases */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ranks/case.h"
#include <stdio.h>

#define DEFAULT_CASES  1000
#define GPU_CASES      300
#define FAR_CASES      16
#define SOAK_CASES     10000
#define FIRST_SEED     1
#define CASE_DEADLINE  15000 /* ms; the group's own is 5 s, so this is a hang */
#define SHRINK_SECONDS 30

static const char *only_how; /* "threads", "processes" or NULL */
static bool only_drawn;

static void unmake_data(void *arg) {
    case_free(arg);
    free(arg);
}

static void *make_data(const void *of) {
    case_data *d = malloc(sizeof *d);
    if (!d || case_build(of, NULL, d)) return d;
    unmake_data(d);
    return NULL;
}

static bool run_case(const xcase *c, char *why) {
    ranks_recipe recipe = {exchange_rank, make_data, unmake_data, c, sizeof *c};
    return ranks_run_kept(c->processes ? RANKS_PROCESSES : RANKS_THREADS, (int)c->ranks,
                          (int)ranks_env_number("FERRY_TEST_TIMEOUT_MS", 0) * 2 + CASE_DEADLINE, &recipe, why);
}

static bool case_fails(const xcase *c) {
    char why[RANKS_WHY];
    return !run_case(c, why);
}

static void check_case(const xcase *drawn) {
    char why[RANKS_WHY], text[CASE_TEXT];
    if (run_case(drawn, why)) return;
    case_print(drawn, text);
    fprintf(stderr, "seed %lld fails: %s\n  case: %s\n  shrinking...\n", (long long)drawn->seed, why, text);
    xcase least = *drawn;
    case_shrink(&least, case_fails, (int)ranks_env_number("FERRY_TEST_SHRINK_S", SHRINK_SECONDS));
    if (run_case(&least, why)) snprintf(why, sizeof why, "(it did not fail again: the failure depends on timing)");
    case_print(&least, text);
    fail_msg("smallest failing case: %s\n  %s\n  again: FERRY_TEST_SEED=%lld, or FERRY_TEST_CASE='%s'", text, why,
             (long long)drawn->seed, text);
}

static void drawn_cases(bool processes) {
    const char *line = getenv("FERRY_TEST_CASE");
    int64_t seed = ranks_env_number("FERRY_TEST_SEED", -1);
    int64_t cases = ranks_env_number("FERRY_TEST_CASES", ranks_device() == FERRY_CPU ? DEFAULT_CASES : GPU_CASES);
    if (ranks_hosts() > 1 && cases < SOAK_CASES && cases > FAR_CASES)
        cases = FAR_CASES; /* soaks have their own number */
    xcase c;
    if (only_how && (strcmp(only_how, "processes") == 0) != processes) skip();
    if (line) {
        if (!case_parse(line, &c)) fail_msg("FERRY_TEST_CASE has an unknown field: %s", line);
        if ((c.processes != 0) != processes) skip();
        check_case(&c);
        return;
    }
    int64_t last = processes ? cases / 5 : cases, start = ranks_now_ms();
    for (int64_t i = 0; i < last; i++) {
        c = case_draw((uint64_t)(seed >= 0 ? seed : FIRST_SEED + i), processes);
        check_case(&c);
        if (seed >= 0) return;
    }
    print_message("%lld drawn cases, ranks as %s, %lld ms\n", (long long)last, processes ? "processes" : "threads",
                  (long long)(ranks_now_ms() - start));
}

static void test_drawn_threads(void **state) {
    (void)state;
    drawn_cases(false);
}

static void test_drawn_processes(void **state) {
    (void)state;
    drawn_cases(true);
}

/* A named case, in each layout and mode, as threads and as processes. */
static void check_named(const char *text) {
    static const ferry_layout layouts[] = {FERRY_LAYOUT_RANK, FERRY_LAYOUT_EXPERT, FERRY_LAYOUT_SLOTS};
    static int turn;
    if (only_drawn) skip();
    turn++;
    for (int i = 0; i < 12; i++) {
        xcase c;
        if (ranks_hosts() > 1 && i != turn * 5 % 12) continue; /* one each, by turns: it takes time */
        if (only_how && (strcmp(only_how, "processes") == 0) != (i % 2 == 1)) continue;
        assert_true(case_parse(text, &c));
        c.processes = i % 2;
        c.mode = i / 2 % 2;
        c.layout = layouts[i / 4];
        c.seed = i;
        case_fix(&c);
        check_case(&c);
    }
}

#define NUMBERS "dtype=1 in_type=1 out_type=1 threads=1 rounds=2 "

static void test_zero_tokens_everywhere(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=4 experts=8 tokens=5 fill=3 topk=2 columns=64 weights=1 weighted=1 bias=1");
}

static void test_zero_tokens_on_some_ranks(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=5 experts=7 tokens=9 fill=2 topk=3 columns=64 weights=1 weighted=1 back=1");
}

static void test_all_tokens_to_one_expert(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=4 experts=8 tokens=40 spread=2 topk=4 columns=64 weights=1 weighted=1 align=16");
}

static void test_no_choice_at_all(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=3 experts=8 tokens=11 none=100 topk=4 columns=64 weights=1 weighted=1 bias=2 grad=1");
}

static void test_hidden_of_16_bytes(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=3 experts=6 tokens=33 topk=2 columns=8 cast=1 back=1");
}

static void test_hidden_16384(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=2 experts=4 tokens=8 topk=2 columns=16384 threads=2 cast=3 back=1");
}

static void test_topk_64(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=3 experts=100 tokens=6 topk=64 columns=40 weights=1 weighted=1 grad=1 spread=1 align=8");
}

static void test_16_ranks(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=16 experts=40 tokens=6 topk=8 columns=72 weights=1 weighted=1 back=1");
}

static void test_fewer_experts_than_ranks(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=7 experts=3 tokens=13 topk=2 columns=32 weights=1 back=2 out=1");
}

static void test_experts_nobody_chose(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=2 experts=300 tokens=3 topk=1 columns=64 align=8 zero_pad=1 weights=1");
}

static void test_one_rank(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=1 experts=4 tokens=20 topk=2 columns=128 weights=1 weighted=1 stream=1 split=1");
}

static void test_copies_of_experts(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=6 experts=9 copies=1 tokens=25 topk=3 columns=48 weights=1 weighted=2 spread=3");
}

static void test_capacity_drops(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=3 experts=6 tokens=25 topk=3 columns=48 weights=1 weighted=1 drop=1 expert_cap=7 "
                        "rank_cap=30 grad=1");
}

static void test_capacity_errors(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=3 experts=6 tokens=25 topk=3 columns=48 expert_cap=7 rank_cap=30");
}

/* Enough for the writes over a network to be several, and (RANK, a rank for each host) to go straight to their slots. */
static void test_large_rows(void **state) {
    (void)state;
    check_named(
        "dtype=1 in_type=1 out_type=1 threads=2 rounds=2 ranks=2 experts=4 tokens=180 topk=3 columns=2048 cast=2 "
        "weights=1 weighted=1 grad=1 none=20 back=1");
    check_named(NUMBERS "ranks=2 experts=4 tokens=180 topk=3 columns=2048 scales=5 weights=1 weighted=2 out=2 back=3 "
                        "drop=1 rank_cap=240 stream=1 split=1");
}

static void test_lost_ranks(void **state) {
    (void)state;
    check_named(NUMBERS "ranks=5 experts=11 tokens=25 topk=3 columns=48 weights=1 weighted=1 grad=1 lost=2 renorm=1");
    check_named(NUMBERS "ranks=4 experts=6 copies=1 tokens=25 topk=4 columns=32 weights=1 weighted=1 lost=1 alive=1 "
                        "stream=1 align=4");
    check_named(NUMBERS "ranks=6 experts=6 tokens=20 topk=6 columns=32 weights=1 weighted=2 lost=5 bias=1");
}

static void test_two_in_flight_on_a_stream(void **state) {
    (void)state;
    check_named("dtype=1 in_type=1 out_type=3 threads=2 rounds=3 ranks=3 experts=8 tokens=30 topk=4 columns=256 "
                "stream=1 split=1 weights=1 weighted=1");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_zero_tokens_everywhere),
        cmocka_unit_test(test_zero_tokens_on_some_ranks),
        cmocka_unit_test(test_all_tokens_to_one_expert),
        cmocka_unit_test(test_no_choice_at_all),
        cmocka_unit_test(test_hidden_of_16_bytes),
        cmocka_unit_test(test_hidden_16384),
        cmocka_unit_test(test_topk_64),
        cmocka_unit_test(test_16_ranks),
        cmocka_unit_test(test_fewer_experts_than_ranks),
        cmocka_unit_test(test_experts_nobody_chose),
        cmocka_unit_test(test_one_rank),
        cmocka_unit_test(test_copies_of_experts),
        cmocka_unit_test(test_capacity_drops),
        cmocka_unit_test(test_capacity_errors),
        cmocka_unit_test(test_lost_ranks),
        cmocka_unit_test(test_large_rows),
        cmocka_unit_test(test_two_in_flight_on_a_stream),
        cmocka_unit_test(test_drawn_threads),
        cmocka_unit_test(test_drawn_processes),
    };
    only_how = argc > 1 ? argv[1] : NULL;
    only_drawn = argc > 2 && strcmp(argv[2], "drawn") == 0;
    setenv("FERRY_TOUCH_MB", "1", 0); /* thousands of groups: touching their memory would be most of the time */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
