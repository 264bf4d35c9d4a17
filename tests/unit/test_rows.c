/* The row kernels: every table that this machine can run against the scalar one, the scalar one against base/num.h by hand,
 * and the choice between them. */
#include "base/num.h"
#include "unit/rows_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static void test_tables(void **state) {
    (void)state;
    for (const fe_rows *const *t = fe_rows_available(); *t; t++)
        for (int i = 0; i < rows_case_count; i++) {
            uint64_t seed = (uint64_t)i + 1;
            const char *wrong = rows_cases[i].run(*t, seed);
            if (*wrong)
                fail_msg("%s, %s, seed %llu: %s", (*t)->name, rows_cases[i].name, (unsigned long long)seed, wrong);
        }
}

/* Order, signs of zeros, and where the rounding happens: sums that come out differently any other way. */
static void test_sum_by_hand(void **state) {
    (void)state;
    float big[4] = {0x1p25f, -0.0f, 1.0f + 0x1p-23f, INFINITY}, one[4] = {1.0f, -0.0f, 1.0f + 0x1p-23f, -INFINITY};
    float less[4] = {-0x1p25f, -0.0f, 0.0f, 0.0f}, out[4], weights[3] = {1.0f, 1.0f - 0x1p-24f, 1.0f};
    const void *rows[3] = {big, one, less};
    fe_sum sum = {.out = out, .out_type = FERRY_FP32, .in_type = FERRY_FP32, .columns = 4, .count = 3, .rows = rows};
    fe_rows_scalar.sum(&sum);
    assert_true(out[0] == 0.0f);   /* 2^25 + 1 rounds to 2^25 */
    assert_false(signbit(out[1])); /* +0 + -0 */
    assert_int_equal(fe_f32_bits(out[3]), FE_F32_NAN);
    sum.bias[0] = less;
    fe_rows_scalar.sum(&sum);
    assert_true(signbit(out[1])); /* starts from the bias, not from 0 plus it */
    assert_true(out[0] == -0x1p25f);
    sum.bias[0] = NULL;
    sum.weights = weights;
    fe_rows_scalar.sum(&sum);
    /* 1 + 2^-24 - 2^-47 is not rounded (to 1) before 1 + 2^-23 is added: not 2, but the next number */
    assert_true(out[2] == 0x1.000002p1f);
}

static void test_choice(void **state) {
    (void)state;
    const fe_rows *table = NULL;
    const fe_rows *const *all = fe_rows_available();
    assert_int_equal(unsetenv("FERRY_CPU_KERNELS"), 0);
    assert_int_equal(fe_rows_choose(&table), FERRY_OK);
    assert_ptr_equal(table, all[0]);
    assert_int_equal(setenv("FERRY_CPU_KERNELS", "best", 1), 0);
    assert_int_equal(fe_rows_choose(&table), FERRY_OK);
    assert_ptr_equal(table, all[0]);
    const fe_rows *last = NULL;
    for (; *all; all++) {
        last = *all;
        assert_int_equal(setenv("FERRY_CPU_KERNELS", last->name, 1), 0);
        assert_int_equal(fe_rows_choose(&table), FERRY_OK);
        assert_ptr_equal(table, last);
    }
    assert_ptr_equal(last, &fe_rows_scalar);
    assert_int_equal(setenv("FERRY_CPU_KERNELS", "altivec", 1), 0);
    assert_int_equal(fe_rows_choose(&table), FERRY_INVALID);
    assert_non_null(strstr(ferry_last_error(), "altivec"));
    assert_non_null(strstr(ferry_last_error(), "scalar"));
    assert_int_equal(unsetenv("FERRY_CPU_KERNELS"), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tables), cmocka_unit_test(test_sum_by_hand),
                                       cmocka_unit_test(test_choice)};
    return cmocka_run_group_tests_name("rows", tests, NULL, NULL);
}
