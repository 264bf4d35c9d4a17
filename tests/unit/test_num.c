/* The number formats against arithmetic in double, which holds all of them exactly. */
#include "base/num.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

/* A format, by its parameters. */
typedef struct format {
    int fraction_bits, least_exponent; /* of normal numbers */
    double most;
    bool saturates;
} format;

static const format bf16 = {7, -126, 0x1.fep127, false};
static const format fp16 = {10, -14, 65504.0, false};
static const format e4m3 = {3, -6, 448.0, true};

/* What a nonnegative pattern means. */
static double value_of(const format *f, uint32_t bits) {
    int exponent = (int)(bits >> f->fraction_bits), fraction = (int)(bits & ((1u << f->fraction_bits) - 1));
    if (exponent == 0) return ldexp(fraction, f->least_exponent - f->fraction_bits);
    return ldexp(fraction + (1 << f->fraction_bits), exponent - 1 + f->least_exponent - f->fraction_bits);
}

/* The nearest number of the format, ties to even; nearbyint rounds so by default. */
static double nearest(const format *f, float value) {
    if (value == 0 || isinf(value)) return f->saturates && value != 0 ? copysign(f->most, value) : (double)value;
    int exponent = ilogbf(value) < f->least_exponent ? f->least_exponent : ilogbf(value);
    double rounded = ldexp(nearbyint(ldexp(value, f->fraction_bits - exponent)), exponent - f->fraction_bits);
    if (fabs(rounded) <= f->most) return rounded;
    return copysign(f->saturates ? f->most : (double)INFINITY, value);
}

static bool same(double a, double b) {
    return a == b && !signbit(a) == !signbit(b);
}

/* Calls `each` for float32s with every upper half, and with lower halves on both sides of every rounding boundary. */
static void for_floats(void (*each)(float value)) {
    static const uint16_t low[] = {0x0000, 0x0001, 0x7fff, 0x8000, 0x8001, 0xffff,
                                   0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001};
    for (uint32_t high = 0; high < 0x10000; high++)
        for (size_t i = 0; i < sizeof low / sizeof *low; i++) each(fe_f32_of_bits(high << 16 | low[i]));
}

static void narrow_bf16(float v) {
    if (isnan(v))
        assert_int_equal(fe_bf16_from_f32(v), 0x7fc0);
    else if (!same(fe_bf16_to_f32(fe_bf16_from_f32(v)), nearest(&bf16, v)))
        fail_msg("bf16 of %a is %a, not %a", v, fe_bf16_to_f32(fe_bf16_from_f32(v)), nearest(&bf16, v));
}

static void narrow_fp16(float v) {
    if (isnan(v))
        assert_int_equal(fe_fp16_from_f32(v), 0x7e00);
    else if (!same(fe_fp16_to_f32(fe_fp16_from_f32(v)), nearest(&fp16, v)))
        fail_msg("fp16 of %a is %a, not %a", v, fe_fp16_to_f32(fe_fp16_from_f32(v)), nearest(&fp16, v));
}

static void narrow_e4m3(float v) {
    if (isnan(v))
        assert_int_equal(fe_e4m3_from_f32(v), 0x7f);
    else if (!same(fe_e4m3_to_f32(fe_e4m3_from_f32(v)), nearest(&e4m3, v)))
        fail_msg("e4m3 of %a is %a, not %a", v, fe_e4m3_to_f32(fe_e4m3_from_f32(v)), nearest(&e4m3, v));
}

static void test_narrowing(void **state) {
    (void)state;
    for_floats(narrow_bf16);
    for_floats(narrow_fp16);
    for_floats(narrow_e4m3);
}

static void test_widening(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 0x7f80; i++) {
        assert_true(same(fe_bf16_to_f32((uint16_t)i), value_of(&bf16, i)));
        assert_true(same(fe_bf16_to_f32((uint16_t)(i | 0x8000)), -value_of(&bf16, i)));
    }
    for (uint32_t i = 0; i < 0x7c00; i++) {
        assert_true(same(fe_fp16_to_f32((uint16_t)i), value_of(&fp16, i)));
        assert_true(same(fe_fp16_to_f32((uint16_t)(i | 0x8000)), -value_of(&fp16, i)));
    }
    for (uint32_t i = 0; i < 0x7f; i++) {
        assert_true(same(fe_e4m3_to_f32((uint8_t)i), value_of(&e4m3, i)));
        assert_true(same(fe_e4m3_to_f32((uint8_t)(i | 0x80)), -value_of(&e4m3, i)));
    }
}

/* What is no number: infinities and NaNs, each with its exact bits. */
static void test_specials(void **state) {
    (void)state;
    assert_true(same(fe_bf16_to_f32(0x7f80), INFINITY) && same(fe_bf16_to_f32(0xff80), -INFINITY));
    assert_true(same(fe_fp16_to_f32(0x7c00), INFINITY) && same(fe_fp16_to_f32(0xfc00), -INFINITY));
    for (uint32_t sign = 0; sign <= 0x8000; sign += 0x8000) {
        for (uint32_t i = 0x7f81; i < 0x8000; i++) assert_true(isnan(fe_bf16_to_f32((uint16_t)(sign | i))));
        for (uint32_t i = 0x7c01; i < 0x8000; i++)
            assert_int_equal(fe_f32_bits(fe_fp16_to_f32((uint16_t)(sign | i))), 0x7fc00000);
    }
    assert_int_equal(fe_f32_bits(fe_e4m3_to_f32(0x7f)), 0x7fc00000);
    assert_int_equal(fe_f32_bits(fe_e4m3_to_f32(0xff)), 0x7fc00000);
    assert_int_equal(fe_f32_bits(fe_f32_canonical(fe_f32_of_bits(0xff800001u))), 0x7fc00000);
    assert_int_equal(fe_f32_bits(fe_f32_canonical(-INFINITY)), 0xff800000u);
    assert_int_equal(fe_f32_bits(fe_f32_canonical(-0.0f)), 0x80000000u);
}

/* A few by hand, so that the reference above is not the only witness. */
static void test_by_hand(void **state) {
    (void)state;
    assert_int_equal(fe_bf16_from_f32(1.0f), 0x3f80);
    assert_int_equal(fe_bf16_from_f32(FLT_MAX), 0x7f80);
    assert_int_equal(fe_fp16_from_f32(1.0f), 0x3c00);
    assert_int_equal(fe_fp16_from_f32(65519.996f), 0x7bff);
    assert_int_equal(fe_fp16_from_f32(65520.0f), 0x7c00);
    assert_int_equal(fe_e4m3_from_f32(1.0f), 0x38);
    assert_int_equal(fe_e4m3_from_f32(-448.0f), 0xfe);
    assert_int_equal(fe_e4m3_from_f32(1e9f), 0x7e);
    assert_int_equal(fe_e4m3_from_f32(-INFINITY), 0xfe);
    assert_int_equal(fe_e4m3_from_f32(0x1p-9f), 0x01);
    assert_int_equal(fe_e4m3_from_f32(0x1p-10f), 0x00);  /* tie: to even, down */
    assert_int_equal(fe_e4m3_from_f32(0x1.8p-9f), 0x02); /* tie: to even, up */
    assert_int_equal(fe_e4m3_from_f32(-0x1p-12f), 0x80);
    assert_int_equal(fe_e4m3_from_f32(0x1.1p0f), 0x38); /* 1.0625 lies between 1 and 1.125 */
    assert_int_equal(fe_e4m3_from_f32(0x1.3p0f), 0x3a);
}

static void test_powers(void **state) {
    (void)state;
    for (int e = -126; e < 127; e++) {
        float power = ldexpf(1, e);
        assert_true(fe_pow2_ceil(power) == power);
        assert_true(fe_pow2_ceil(nextafterf(power, INFINITY)) == 2 * power);
        assert_true(fe_pow2_ceil(1.5f * power) == 2 * power);
        assert_int_equal(fe_ue8m0_from_f32(power), e + 127);
        assert_true(fe_ue8m0_to_f32((uint8_t)(e + 127)) == power);
    }
    assert_true(fe_ue8m0_to_f32(0) == 0x1p-127f);
    assert_int_equal(fe_f32_bits(fe_ue8m0_to_f32(0xff)), 0x7fc00000);
}

static void test_block_scales(void **state) {
    (void)state;
    fe_block_scale least = fe_block_scale_of(1e-4f, false), most = fe_block_scale_of(FLT_MAX, false);
    assert_true(least.scale == 1e-4f / 448.0f && least.factor == 448.0f / 1e-4f);
    assert_true(most.scale == FLT_MAX / 448.0f && most.factor == 448.0f / FLT_MAX);
    fe_block_scale zero = fe_block_scale_of(0, false), infinite = fe_block_scale_of(INFINITY, false);
    assert_memory_equal(&zero, &least, sizeof zero);
    assert_memory_equal(&infinite, &most, sizeof infinite);
    for (uint32_t bits = 0; bits <= 0x7f80; bits++) { /* every amax that a bf16 row can have */
        float amax = fe_bf16_to_f32((uint16_t)bits);
        fe_block_scale plain = fe_block_scale_of(amax, false), pow2 = fe_block_scale_of(amax, true);
        int exponent;
        assert_true(frexpf(pow2.scale, &exponent) == 0.5f && pow2.scale * pow2.factor == 1.0f);
        assert_true(pow2.scale >= plain.scale && pow2.scale < 2 * plain.scale);
        assert_true(plain.scale >= FLT_MIN && plain.factor >= FLT_MIN);
        assert_true(fminf(amax, FLT_MAX) * pow2.factor <= 448.0f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_narrowing), cmocka_unit_test(test_widening),
                                       cmocka_unit_test(test_specials),  cmocka_unit_test(test_by_hand),
                                       cmocka_unit_test(test_powers),    cmocka_unit_test(test_block_scales)};
    return cmocka_run_group_tests_name("num", tests, NULL, NULL);
}
