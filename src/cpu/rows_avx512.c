/* Row kernels for AVX-512 (F, BW, VL, DQ). Not avx512_bf16: its conversions take subnormals for zero. */
#include "cpu/rows_scalar.h"

#if defined(__x86_64__)
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,f16c,fma")
#endif

#define FE_VECTOR_BYTES 64
#define FE_SUM_PAIRS    4

#define FE_DEINTERLEAVE_LOW  0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define FE_DEINTERLEAVE_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31

typedef float fe_vf __attribute__((vector_size(64)));
typedef uint32_t fe_vu __attribute__((vector_size(64)));
typedef uint16_t fe_vh __attribute__((vector_size(32)));

static inline fe_vf vsplat(float value) {
    return (fe_vf)_mm512_set1_ps(value);
}
static inline fe_vf vfma(fe_vf a, fe_vf b, fe_vf c) {
    return (fe_vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
static inline fe_vu vmax(fe_vu a, fe_vu b) {
    return (fe_vu)_mm512_max_epu32((__m512i)a, (__m512i)b);
}
static inline fe_vf vhalf_to_f32(fe_vh half) {
    return (fe_vf)_mm512_cvtph_ps((__m256i)half);
}
static inline fe_vh vf32_to_half(fe_vf v) {
    return (fe_vh)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
}

static inline uint16_t block_top(const uint16_t *src) {
    /* shifted left by one: the sign is gone */
    __m512i a = _mm512_max_epu16(_mm512_slli_epi16(_mm512_loadu_si512(src), 1),
                                 _mm512_slli_epi16(_mm512_loadu_si512(src + 32), 1));
    __m512i b = _mm512_max_epu16(_mm512_slli_epi16(_mm512_loadu_si512(src + 64), 1),
                                 _mm512_slli_epi16(_mm512_loadu_si512(src + 96), 1));
    __m512i c = _mm512_max_epu16(a, b);
    __m256i d = _mm256_max_epu16(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
    __m128i e = _mm_max_epu16(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
    /* phminposuw finds the least of eight: look for the least complement. */
    __m128i least = _mm_minpos_epu16(_mm_xor_si128(e, _mm_set1_epi16(-1)));
    return (uint16_t)((_mm_cvtsi128_si32(least) & 0xffff) ^ 0xffff) >> 1;
}

#define FE_OWN_CANONICAL
static inline fe_vf canonical(fe_vf v) {
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    return (fe_vf)_mm512_mask_mov_epi32((__m512i)v, nan, _mm512_set1_epi32(FE_F32_NAN));
}

#define FE_OWN_MERGE
static inline fe_vh merge(fe_vu even, fe_vu odd, fe_vu both) {
    const __m512i low = _mm512_set1_epi32(0xff);
    __m512i bytes =
        _mm512_ternarylogic_epi32(low, (__m512i)even, _mm512_slli_epi32((__m512i)odd, 8), 0xca); /* low ? even : odd */
    __m256i packed = _mm512_cvtepi32_epi16(bytes);
    /* a channel's sign as one mask bit, which is where its byte's is wanted */
    return (fe_vh)_mm256_mask_add_epi8(packed, _mm512_movepi16_mask((__m512i)both), packed, _mm256_set1_epi8(-128));
}

static inline void stream_line(void *dst, const void *src) {
    _mm512_stream_si512(dst, _mm512_loadu_si512(src));
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

const fe_rows fe_rows_avx512 = {
    .name = "avx512", .copy = copy_row, .stream = stream_row, .fence = fence, .cast = cast_row, .sum = sum_rows};
#else
typedef int fe_rows_avx512_unused; /* ISO C wants a declaration in every file */
#endif
