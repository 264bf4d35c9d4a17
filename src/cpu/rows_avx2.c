/* Row kernels for AVX2 with FMA and F16C. */
#include "cpu/rows_scalar.h"

#if defined(__x86_64__)
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define FE_VECTOR_BYTES 32
#define FE_SUM_PAIRS    4

#define FE_DEINTERLEAVE_LOW  0, 8, 1, 9, 2, 10, 3, 11
#define FE_DEINTERLEAVE_HIGH 4, 12, 5, 13, 6, 14, 7, 15

typedef float fe_vf __attribute__((vector_size(32)));
typedef uint32_t fe_vu __attribute__((vector_size(32)));
typedef uint16_t fe_vh __attribute__((vector_size(16)));

static inline fe_vf vsplat(float value) {
    return (fe_vf)_mm256_set1_ps(value);
}
static inline fe_vf vfma(fe_vf a, fe_vf b, fe_vf c) {
    return (fe_vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
static inline fe_vu vmax(fe_vu a, fe_vu b) {
    return (fe_vu)_mm256_max_epu32((__m256i)a, (__m256i)b);
}
static inline fe_vf vhalf_to_f32(fe_vh half) {
    return (fe_vf)_mm256_cvtph_ps((__m128i)half);
}
static inline fe_vh vf32_to_half(fe_vf v) {
    return (fe_vh)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
}

static inline uint16_t block_top(const uint16_t *src) {
    __m256i top = _mm256_setzero_si256();
    for (int i = 0; i < FE_CAST_BLOCK; i += 16) /* shifted left by one: the sign is gone */
        top = _mm256_max_epu16(top, _mm256_slli_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(src + i)), 1));
    __m128i half = _mm_max_epu16(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    /* phminposuw finds the least of eight: look for the least complement. */
    __m128i least = _mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)));
    return (uint16_t)((_mm_cvtsi128_si32(least) & 0xffff) ^ 0xffff) >> 1;
}

static inline void stream_line(void *dst, const void *src) {
    __m256i low = _mm256_loadu_si256(src), high = _mm256_loadu_si256((const __m256i *)src + 1);
    _mm256_stream_si256(dst, low);
    _mm256_stream_si256((__m256i *)dst + 1, high);
}

#include "cpu/rows_vector.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static void fence(void) {
    _mm_sfence();
}

const fe_rows fe_rows_avx2 = {
    .name = "avx2", .copy = copy_row, .stream = stream_row, .fence = fence, .cast = cast_row, .sum = sum_rows};
#else
typedef int fe_rows_avx2_unused; /* ISO C wants a declaration in every file */
#endif
