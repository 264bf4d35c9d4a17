/* The option parser of the command. */
#include "options.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
/* cmocka wants these first */
#include <cmocka.h>

static bool flag;
static int number, word;
static double real;
static const char *text;

static const fe_option table[] = {
    {"flag", FE_OPTION_FLAG, &flag, NULL, 0, 0, "a flag", NULL},
    {"number", FE_OPTION_INT, &number, "N", -2, 9, "a number", NULL},
    {"real", FE_OPTION_REAL, &real, "X", 0, 1, "a real number", NULL},
    {"word", FE_OPTION_CHOICE, &word, "red|green|blue", 0, 0, "a word", NULL},
    {"text", FE_OPTION_TEXT, &text, "FILE", 0, 0, "a text", NULL},
};
static const fe_usage usage = {"test", "A test.", NULL};

static fe_parsed parse(char *a, char *b) {
    char name[] = "test", *argv[] = {name, a, b, NULL};
    flag = false;
    number = word = 0;
    real = 0;
    text = NULL;
    return fe_options_parse(&usage, table, sizeof table / sizeof *table, 1 + (a != NULL) + (b != NULL), argv);
}

#define PARSE(a, b)  parse((char[]){a}, (char[]){b})
#define PARSE_ONE(a) parse((char[]){a}, NULL)

static void test_good(void **state) {
    (void)state;
    assert_int_equal(parse(NULL, NULL), FE_PARSED_RUN);
    assert_int_equal(PARSE("--flag", "--number=-2"), FE_PARSED_RUN);
    assert_true(flag);
    assert_int_equal(number, -2);
    assert_int_equal(PARSE("--number", "9"), FE_PARSED_RUN);
    assert_int_equal(number, 9);
    assert_int_equal(PARSE("--real=0.5", "--word=blue"), FE_PARSED_RUN);
    assert_true(real == 0.5);
    assert_int_equal(word, 2);
    char value[] = "--text=-";
    assert_int_equal(parse(value, NULL), FE_PARSED_RUN);
    assert_string_equal(text, "-");
}

static void test_bad(void **state) {
    (void)state;
    assert_int_equal(PARSE_ONE("--nothing"), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("word"), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("-x"), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("--num=1"), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("--number"), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("--number="), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("--number=10"), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("--number=1.5"), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("--number=99999999999999999999"), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("--real=nan"), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("--real=1.01"), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("--word=re"), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("--word="), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("--text="), FE_PARSED_BAD);
    assert_int_equal(PARSE_ONE("--flag=1"), FE_PARSED_BAD);
}

static void test_front(void **state) {
    (void)state;
    static const fe_option letters[] = {{"n", FE_OPTION_INT, &number, "N", 0, 9, "a number", NULL}};
    static const struct {
        const char *words[5];
        fe_parsed parsed;
        int used, number;
    } cases[] = {{{"test", "-n", "3", "ls", "-l"}, FE_PARSED_RUN, 3, 3},
                 {{"test", "-n=4", "--", "-n", "5"}, FE_PARSED_RUN, 3, 4},
                 {{"test", "ls", "-n", "5", "--help"}, FE_PARSED_RUN, 1, 0},
                 {{"test", "-", "-n", "5", "x"}, FE_PARSED_RUN, 1, 0},
                 {{"test", "--", "--help", "5", "x"}, FE_PARSED_RUN, 2, 0},
                 {{"test", "--n", "5", "x", "y"}, FE_PARSED_BAD, 0, 0},
                 {{"test", "-number", "5", "x", "y"}, FE_PARSED_BAD, 0, 0},
                 {{"test", "-n", "x", "x", "y"}, FE_PARSED_BAD, 0, 0},
                 {{"test", "-n", "1", "-h", "y"}, FE_PARSED_HELP, 0, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int used = 0;
        number = 0;
        assert_int_equal(fe_options_parse_front(&usage, letters, 1, 5, (char **)(uintptr_t)cases[i].words, &used),
                         cases[i].parsed);
        assert_int_equal(used, cases[i].used);
        assert_int_equal(number, cases[i].number);
    }
}

static void test_help(void **state) {
    (void)state;
    assert_int_equal(PARSE("--flag", "--help"), FE_PARSED_HELP);
    assert_int_equal(PARSE_ONE("-h"), FE_PARSED_HELP);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_good), cmocka_unit_test(test_bad),
                                       cmocka_unit_test(test_front), cmocka_unit_test(test_help)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
