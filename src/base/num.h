/* The number formats, in plain C: what every kernel, on every device, must equal bit for bit.
 *
 *   f32    IEEE 754-2019 binary32
 *   bf16   the upper half of a binary32: 1 sign, 8 exponent (bias 127), 7 fraction bits
 *   fp16   IEEE 754-2019 binary16: 1, 5 (bias 15), 10
 *   e4m3   OCP 8-bit Floating Point Specification (OFP8) 1.0, E4M3: 1, 4 (bias 7), 3. No infinities; S.1111.111 is NaN;
 *          448 the largest, 2^-9 the smallest subnormal
 *   ue8m0  OCP Microscaling Formats (MX) 1.0, E8M0: 2^(byte - 127); 0xff is NaN; no zero, no sign
 *
 * Rounding is to nearest, ties to even, subnormals included; the sign of a zero is kept. Too large a value becomes an
 * infinity in bf16 and fp16, and +-448 in e4m3 (OFP8's saturating mode), infinities too.
 *
 * A NaN that Ferry computes is canonical, because processors differ in the payload and sign that they pass on:
 * f32 0x7fc00000, bf16 0x7fc0, fp16 0x7e00, e4m3 0x7f. Rows that are only carried keep their bits.
 *
 * These hold in the default floating-point environment (round to nearest, no flush of subnormals to zero), and for
 * code built without -ffast-math. A multiplication must not be fused with an addition unless it says fmaf; no
 * function here, nor any kernel, feeds one straight into the other, but build with -ffp-contract=off all the same. */
#ifndef FERRY_BASE_NUM_H
#define FERRY_BASE_NUM_H

#include <float.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__ /* kernels compute by the same functions where an instruction does not do it for them */
#define FE_NUM static __host__ __device__ inline
#else
#define FE_NUM static inline
#endif

#define FE_F32_NAN    0x7fc00000u
#define FE_BF16_NAN   0x7fc0u
#define FE_FP16_NAN   0x7e00u
#define FE_E4M3_NAN   0x7fu
#define FE_E4M3_MAX   448.0f
#define FE_CAST_AMAX  1e-4f /* a block's amax is taken as at least this: a block of zeros has a scale too */
#define FE_CAST_BLOCK 128   /* channels that share a scale */

FE_NUM uint32_t fe_f32_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

FE_NUM float fe_f32_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

FE_NUM bool fe_f32_is_nan(float value) {
    return (fe_f32_bits(value) & 0x7fffffffu) > 0x7f800000u;
}

FE_NUM float fe_f32_canonical(float value) {
    return fe_f32_is_nan(value) ? fe_f32_of_bits(FE_F32_NAN) : value;
}

/* Exact; a NaN keeps its payload. */
FE_NUM float fe_bf16_to_f32(uint16_t bits) {
    return fe_f32_of_bits((uint32_t)bits << 16);
}

FE_NUM uint16_t fe_bf16_from_f32(float value) {
    uint32_t bits = fe_f32_bits(value);
    if (fe_f32_is_nan(value)) return FE_BF16_NAN;
    /* Just under half a unit, and the rest of it when the kept part is odd. A carry into the exponent is right: it
     * gives the next power of two, and past the largest value an infinity. */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

/* Exact; NaN becomes canonical. */
FE_NUM float fe_fp16_to_f32(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    if (magnitude > 0x7c00u) return fe_f32_of_bits(FE_F32_NAN);
    if (magnitude == 0x7c00u) return fe_f32_of_bits(sign | 0x7f800000u);
    if (magnitude >= 0x0400u) return fe_f32_of_bits(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
    float subnormal = (float)magnitude * 0x1p-24f;
    return fe_f32_of_bits(sign | fe_f32_bits(subnormal));
}

FE_NUM uint16_t fe_fp16_from_f32(float value) {
    uint32_t bits = fe_f32_bits(value), magnitude = bits & 0x7fffffffu;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (fe_f32_is_nan(value)) return FE_FP16_NAN;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u; /* 65520: halfway from 65504 to 2^16, and tied to even */
    if (magnitude >= 0x38800000u)                        /* 2^-14, the smallest normal */
        return sign | (uint16_t)((magnitude - ((127u - 15u) << 23) + 0xfffu + (magnitude >> 13 & 1)) >> 13);
    /* A unit in the last place of 0.5 is 2^-24, fp16's smallest subnormal: the addition rounds. */
    return sign | (uint16_t)(fe_f32_bits(fe_f32_of_bits(magnitude) + 0.5f) - fe_f32_bits(0.5f));
}

/* Exact; NaN becomes canonical. */
FE_NUM float fe_e4m3_to_f32(uint8_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x80u) << 24, magnitude = bits & 0x7fu;
    if (magnitude == FE_E4M3_NAN) return fe_f32_of_bits(FE_F32_NAN);
    if (magnitude >= 0x08u) return fe_f32_of_bits(sign | ((magnitude << 20) + ((127u - 7u) << 23)));
    float subnormal = (float)magnitude * 0x1p-9f;
    return fe_f32_of_bits(sign | fe_f32_bits(subnormal));
}

FE_NUM uint8_t fe_e4m3_from_f32(float value) {
    uint32_t bits = fe_f32_bits(value), magnitude = bits & 0x7fffffffu;
    uint8_t sign = (uint8_t)(bits >> 24 & 0x80u);
    if (fe_f32_is_nan(value)) return FE_E4M3_NAN;
    if (magnitude >= fe_f32_bits(FE_E4M3_MAX)) return sign | 0x7eu;
    if (magnitude >= 0x3c800000u) /* 2^-6, the smallest normal */
        return sign | (uint8_t)((magnitude - ((127u - 7u) << 23) + 0x7ffffu + (magnitude >> 20 & 1)) >> 20);
    /* A unit in the last place of 2^14 is 2^-9, e4m3's smallest subnormal: the addition rounds. */
    return sign | (uint8_t)(fe_f32_bits(fe_f32_of_bits(magnitude) + 0x1p14f) - fe_f32_bits(0x1p14f));
}

/* The smallest power of two that is at least `value`, which is a normal number from 2^-126 to 2^127. */
FE_NUM float fe_pow2_ceil(float value) {
    return fe_f32_of_bits((fe_f32_bits(value) + 0x007fffffu) & 0x7f800000u);
}

/* Of a power of two from 2^-126 to 2^127. */
FE_NUM uint8_t fe_ue8m0_from_f32(float power) {
    return (uint8_t)(fe_f32_bits(power) >> 23);
}

FE_NUM float fe_ue8m0_to_f32(uint8_t bits) {
    if (bits == 0xff) return fe_f32_of_bits(FE_F32_NAN);
    if (bits == 0) return 0x1p-127f; /* subnormal in f32 */
    return fe_f32_of_bits((uint32_t)bits << 23);
}

/* How a block is cast: q = fe_e4m3_from_f32(x * factor), and x is about q * scale. `amax` is the largest |x| of the
 * block that is no NaN, or 0; an infinity counts as FLT_MAX. Two divisions, since 1 / (amax / 448) would round twice;
 * for a power of two the factor is its exact inverse. */
typedef struct fe_block_scale {
    float scale, factor;
} fe_block_scale;

FE_NUM fe_block_scale fe_block_scale_of(float amax, bool pow2) {
    if (amax < FE_CAST_AMAX) amax = FE_CAST_AMAX;
    if (amax > FLT_MAX) amax = FLT_MAX;
    float scale = amax / FE_E4M3_MAX;
    fe_block_scale block;
    block.scale = pow2 ? fe_pow2_ceil(scale) : scale;
    block.factor = pow2 ? fe_f32_of_bits((254u << 23) - fe_f32_bits(block.scale)) : FE_E4M3_MAX / amax;
    return block;
}

#endif
