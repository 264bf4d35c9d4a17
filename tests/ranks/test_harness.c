/* The harness itself: what happens to ranks becomes a sentence, whatever it is; and cases survive printing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ranks/case.h"
#include <signal.h>
#include <unistd.h>

typedef enum deed { PASS, FAIL, HANG, CRASH, EXIT, STOP_ON_PURPOSE } deed;

static bool deed_rank(rank_env *env) {
    deed d = *(deed *)env->arg;
    ranks_step(env, "deed %d", (int)d);
    if (!ranks_meet(env)) return false;
    if (env->rank != 1) return true;
    if (d == FAIL) return ranks_fail(env, "the answer is %d", 42);
    if (d == HANG) sleep(100);
    if (d == CRASH) raise(SIGKILL);
    if (d == EXIT) _exit(7);
    if (d == STOP_ON_PURPOSE) {
        ranks_doom(env);
        kill(getpid(), SIGSTOP);
    }
    return true;
}

static void check_deed(ranks_how how, deed d, const char *a, const char *b) {
    char why[RANKS_WHY];
    bool good = ranks_run(how, 3, 700, deed_rank, &d, why);
    if (good != (a == NULL)) fail_msg("deed %d gave %d: %s", (int)d, good, why);
    if (a && (!strstr(why, a) || !strstr(why, b))) fail_msg("deed %d: no \"%s\" and \"%s\" in: %s", (int)d, a, b, why);
}

static void test_deeds(void **state) {
    (void)state;
    for (ranks_how how = RANKS_THREADS; how <= RANKS_PROCESSES; how++) {
        check_deed(how, PASS, NULL, NULL);
        check_deed(how, FAIL, "rank 1 of 3: the answer is 42", "deed 1");
        check_deed(how, HANG, "hang: after 700 ms", "rank 1 is still in: deed 2");
        check_deed(how, CRASH, "signal 9", "rank 1 in: deed 3");
        check_deed(how, EXIT, "exit status 7", "rank 1 in: deed 4");
    }
    check_deed(RANKS_PROCESSES, STOP_ON_PURPOSE, NULL, NULL);
}

static void test_cases_survive_printing(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 2000; seed++) {
        char text[CASE_TEXT];
        xcase drawn = case_draw(seed, seed % 2), read;
        case_print(&drawn, text);
        assert_true(case_parse(text, &read));
        assert_memory_equal(&drawn, &read, sizeof read);
    }
    xcase c;
    assert_false(case_parse("ranks=2 nonsense=3", &c));
}

static bool has_seven_tokens(const xcase *c) {
    return c->tokens >= 7 && c->layout == FERRY_LAYOUT_EXPERT;
}

static void test_shrinking_finds_the_smallest(void **state) {
    (void)state;
    xcase c = case_draw(1, false);
    c.tokens = 100;
    c.layout = FERRY_LAYOUT_EXPERT;
    case_shrink(&c, has_seven_tokens, 5);
    assert_true(has_seven_tokens(&c));
    assert_true(c.tokens < 14 && c.ranks == 1 && c.topk == 1 && c.experts == 1 && c.columns == 16 && c.stream == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deeds),
        cmocka_unit_test(test_cases_survive_printing),
        cmocka_unit_test(test_shrinking_finds_the_smallest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
