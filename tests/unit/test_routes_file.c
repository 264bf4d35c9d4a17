/* The parser of routing traces. */
#include "routes.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
/* cmocka wants the four above first */
#include <cmocka.h>

static fe_routes_line line;
static char why[FE_ROUTES_WHY];

static fe_routes_kind parse(const char *text) {
    return fe_routes_parse(text, strlen(text), &line, why);
}

static void test_route(void **state) {
    (void)state;
    assert_int_equal(parse("{\"type\": \"route\", \"req_id\": \"r0\", \"layer\": 3, \"topk_ids\": [7, -1, 2], "
                           "\"topk_weights\": [0.5, 0, 0.25]}\r\n"),
                     FE_ROUTES_ROUTE);
    assert_int_equal(line.layer, 3);
    assert_int_equal(line.topk, 3);
    assert_int_equal(line.ids[0], 7);
    assert_int_equal(line.ids[1], -1);
    assert_true(line.weights[2] == 0.25f);
    assert_int_equal(parse("{\"type\":\"route\",\"topk_ids\":[1,2,3,4]}"), FE_ROUTES_ROUTE);
    assert_true(line.weights[3] == 0.25f);
    assert_int_equal(parse("{\"type\": \"meta\", \"num_experts\": 64, \"top_k\": 8}"), FE_ROUTES_META);
    assert_int_equal(line.experts, 64);
    assert_int_equal(parse("  \n"), FE_ROUTES_OTHER);
    assert_int_equal(parse("{\"type\":\"note\"}"), FE_ROUTES_OTHER);
}

static void test_bad(void **state) {
    (void)state;
    static const char *const bad[] = {
        "{",
        "[]",
        "7",
        "{\"1\":1,",
        "{}",
        "{\"type\":4}",
        "{\"type\":\"route\"} x",
        "{\"type\":\"route\"}",
        "{\"type\":\"route\",\"topk_ids\":[]}",
        "{\"type\":\"route\",\"topk_ids\":[1.5]}",
        "{\"type\":\"route\",\"topk_ids\":[1e300]}",
        "{\"type\":\"route\",\"topk_ids\":[-2]}",
        "{\"type\":\"route\",\"topk_ids\":[\"a\"]}",
        "{\"type\":\"route\",\"layer\":-1,\"topk_ids\":[1]}",
        "{\"type\":\"route\",\"topk_ids\":[1],\"topk_weights\":[]}",
        "{\"type\":\"route\",\"topk_ids\":[1],\"topk_weights\":[1,2]}",
        "{\"type\":\"route\",\"topk_ids\":[1],\"topk_weights\":[1e200]}",
        "{\"type\":\"meta\",\"num_experts\":0}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (parse(bad[i]) != FE_ROUTES_BAD) fail_msg("was accepted: %s", bad[i]);
        assert_true(why[0]);
    }
    assert_int_equal(fe_routes_parse("{}\0{}", 5, &line, why), FE_ROUTES_BAD);
    char *longest = malloc(FE_ROUTES_LINE_MAX + 1);
    assert_non_null(longest);
    memset(longest, 'x', FE_ROUTES_LINE_MAX + 1);
    assert_int_equal(fe_routes_parse(longest, FE_ROUTES_LINE_MAX + 1, &line, why), FE_ROUTES_BAD);
    assert_non_null(strstr(why, "longer than"));
    free(longest);
}

static char path[] = "/tmp/ferry-trace-XXXXXX";

static void write_file(const char *text) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void test_file(void **state) {
    (void)state;
    fe_routes trace;
    write_file("{\"type\":\"meta\",\"num_experts\":9}\n"
               "{\"type\":\"route\",\"layer\":2,\"topk_ids\":[1,2]}\n"
               "{\"type\":\"route\",\"layer\":5,\"topk_ids\":[3]}\n\n"
               "{\"type\":\"route\",\"layer\":2,\"topk_ids\":[4,5,6]}");
    assert_true(fe_routes_read(path, -1, 100, &trace, why));
    assert_int_equal(trace.layer, 2);
    assert_int_equal(trace.tokens, 2);
    assert_int_equal(trace.topk, 3);
    assert_int_equal(trace.experts, 9);
    assert_int_equal(trace.ids[2], -1);
    assert_int_equal(trace.ids[5], 6);
    fe_routes_free(&trace);
    assert_true(fe_routes_read(path, 5, 100, &trace, why));
    assert_int_equal(trace.tokens, 1);
    fe_routes_free(&trace);
    assert_false(fe_routes_read(path, 7, 100, &trace, why));
    assert_true(fe_routes_read(path, -1, 1, &trace, why));
    assert_int_equal(trace.tokens, 1);
    fe_routes_free(&trace);
}

static void test_file_errors(void **state) {
    (void)state;
    fe_routes trace;
    write_file("\n{\"type\":\"route\",\"topk_ids\":[1]}\n{oops\n");
    assert_false(fe_routes_read(path, -1, 100, &trace, why));
    assert_non_null(strstr(why, ":3: "));
    write_file("{\"type\":\"meta\",\"num_experts\":2}\n{\"type\":\"route\",\"topk_ids\":[2]}\n");
    assert_false(fe_routes_read(path, -1, 100, &trace, why));
    assert_non_null(strstr(why, ":2: "));
    write_file("");
    assert_false(fe_routes_read(path, -1, 100, &trace, why));
    assert_false(fe_routes_read("/nowhere/at/all", -1, 100, &trace, why));
}

static int open_file(void **state) {
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_file(void **state) {
    (void)state;
    return unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_route), cmocka_unit_test(test_bad),
                                       cmocka_unit_test(test_file), cmocka_unit_test(test_file_errors)};
    return cmocka_run_group_tests(tests, open_file, remove_file);
}
