/* Row kernels for aarch64's Advanced SIMD. */
#include "cpu/rows_scalar.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define FE_VECTOR_BYTES 16
#define FE_SUM_PAIRS    8

#define FE_DEINTERLEAVE_LOW  0, 4, 1, 5
#define FE_DEINTERLEAVE_HIGH 2, 6, 3, 7

typedef float fe_vf __attribute__((vector_size(16)));
typedef uint32_t fe_vu __attribute__((vector_size(16)));
typedef uint16_t fe_vh __attribute__((vector_size(8)));

static inline fe_vf vsplat(float value) {
    return (fe_vf)vdupq_n_f32(value);
}
static inline fe_vf vfma(fe_vf a, fe_vf b, fe_vf c) {
    return (fe_vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
static inline fe_vu vmax(fe_vu a, fe_vu b) {
    return (fe_vu)vmaxq_u32((uint32x4_t)a, (uint32x4_t)b);
}
static inline fe_vf vhalf_to_f32(fe_vh half) {
    return (fe_vf)vcvt_f32_f16((float16x4_t)half);
}
static inline fe_vh vf32_to_half(fe_vf v) {
    return (fe_vh)vcvt_f16_f32((float32x4_t)v);
}

static inline uint16_t block_top(const uint16_t *src) {
    uint16x8_t top = vdupq_n_u16(0);
    for (int i = 0; i < FE_CAST_BLOCK; i += 8) top = vmaxq_u16(top, vandq_u16(vld1q_u16(src + i), vdupq_n_u16(0x7fff)));
    return vmaxvq_u16(top);
}

/* stnp: the store that says the line will not be read again soon. No intrinsic has it in both compilers. */
static inline void stream_line(void *dst, const void *src) {
    const uint32_t *from = src;
    uint32x4_t a = vld1q_u32(from), b = vld1q_u32(from + 4), c = vld1q_u32(from + 8), d = vld1q_u32(from + 12);
    __asm__ volatile("stnp %q1, %q2, [%0]\n\tstnp %q3, %q4, [%0, #32]"
                     :
                     : "r"(dst), "w"(a), "w"(b), "w"(c), "w"(d)
                     : "memory");
}

#include "cpu/rows_vector.h"

/* stnp may become visible after later plain stores (Arm ARM, "Load/Store Non-temporal pair"). */
static void fence(void) {
    __asm__ volatile("dmb ishst" ::: "memory");
}

const fe_rows fe_rows_neon = {
    .name = "neon", .copy = copy_row, .stream = stream_row, .fence = fence, .cast = cast_row, .sum = sum_rows};
#else
typedef int fe_rows_neon_unused; /* ISO C wants a declaration in every file */
#endif
