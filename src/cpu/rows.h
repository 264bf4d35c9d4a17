/* Row kernels: the inner loops of the CPU device, one table per instruction set, all with the same bits.
 *
 * Number formats are defined in base/num.h and docs/numerics.md. `scalar` is the definition in plain C; a vector table must
 * equal it bit for bit for every input, NaN and infinities included (a NaN result is canonical, see base/num.h).
 * All tables want the default floating-point environment: round to nearest, subnormals neither flushed nor taken for zero. */
#ifndef FERRY_CPU_ROWS_H
#define FERRY_CPU_ROWS_H

#include "ferry/ferry.h"
#include <stdbool.h>

/* One token's sum. rows[i] are columns elements of in_type each.
 *   acc = bias[0], or +0 without it; acc = acc + bias[1] where there is one (bias elements have in_type)
 *   weights == NULL: acc = acc + rows[i]           in order of i
 *   otherwise:       acc = fma(weights[i], rows[i], acc)
 *   out = acc rounded once to out_type (round to nearest, ties to even). All in float32.
 * Since acc starts from +0, a sum of negative zeros without a bias is +0. */
typedef struct fe_sum {
    void *out;                     /* overlaps no input */
    ferry_dtype out_type, in_type; /* BF16, FP16 or FP32 */
    size_t columns;          /* any number; those past the last 32 (AVX-512; 16 AVX2, 8 NEON) go by a slower way */
    int count;               /* 0..FERRY_MAX_TOPK */
    const void *const *rows; /* aligned to their elements; 64 bytes is fastest */
    const float *weights;
    const void *bias[2];
    const void *const *next; /* rows of the next token, `next_count` of them, to be prefetched; may be NULL */
    int next_count;
} fe_sum;

typedef struct fe_rows {
    const char *name; /* "scalar", "avx2", "avx512", "neon" */
    /* Any number of bytes at any alignment, no overlap; made for rows of many lines, 16-byte aligned or better. */
    void (*copy)(void *dst, const void *src, size_t bytes);
    /* The same past the cache: non-temporal stores, and a prefetch of `next` (bytes long; may be NULL). Ordered with later
     * stores only after fence(). */
    void (*stream)(void *dst, const void *src, size_t bytes, const void *next);
    void (*fence)(void);
    /* n bf16 channels -> n e4m3 bytes and ceil(n/128) scales (fe_block_scale_of in base/num.h): float32, or for
     * FERRY_CAST_E4M3_UE8M0 one exponent byte each, lowest byte first, in int32 words whose unused bytes are zero.
     * src is aligned to its elements; dst and scales may lie anywhere. */
    void (*cast)(uint8_t *dst, void *scales, const uint16_t *src, size_t n, ferry_cast cast);
    void (*sum)(const fe_sum *sum);
} fe_rows;

extern const fe_rows fe_rows_scalar;
#if defined(__x86_64__)
extern const fe_rows fe_rows_avx2;   /* needs AVX2, FMA, F16C */
extern const fe_rows fe_rows_avx512; /* needs AVX-512 F, BW, VL, DQ */
#elif defined(__aarch64__)
extern const fe_rows fe_rows_neon;
#endif

/* All tables that this machine can run, best first, scalar last; NULL ends the list. */
const fe_rows *const *fe_rows_available(void);
/* The table to use: FERRY_CPU_KERNELS, or the first. FERRY_INVALID when the variable names one that cannot run here. */
ferry_status fe_rows_choose(const fe_rows **table);

#endif
