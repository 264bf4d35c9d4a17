/* Drawn cases of dispatch and combine without a test framework, for machines that are only emulated. Prints TAP.
 * FERRY_TEST_CASES=n: how many; the same seeds as test_exchange's. */
#include "ranks/case.h"
#include <stdio.h>
#include <stdlib.h>

#define DEFAULT_CASES 40
#define CASE_DEADLINE 60000 /* ms; an emulated machine is slow */

int main(void) {
    int64_t cases = ranks_env_number("FERRY_TEST_CASES", DEFAULT_CASES);
    int failed = 0;
    setenv("FERRY_TOUCH_MB", "1", 0);
    for (int64_t i = 0; i < cases; i++) {
        char why[RANKS_WHY] = "no memory for the case", text[CASE_TEXT];
        xcase c = case_draw((uint64_t)i + 1, false);
        case_data d;
        bool good =
            case_build(&c, NULL, &d) && ranks_run(RANKS_THREADS, (int)c.ranks, CASE_DEADLINE, exchange_rank, &d, why);
        case_free(&d);
        case_print(&c, text);
        printf("%sok %lld - %s\n", good ? "" : "not ", (long long)i + 1, text);
        if (!good) printf("# %s\n", why);
        failed += !good;
    }
    printf("1..%lld\n", (long long)cases);
    return failed != 0;
}
