/* The vector tables' common part: one algorithm, written with the compilers' vector extension (gcc and clang), and
 * compiled once for each instruction set. The including file, inside its target region, has defined
 *
 *   FE_VECTOR_BYTES   of a vector: 16, 32 or 64
 *   FE_SUM_PAIRS      pairs of accumulators that fit its registers
 *   FE_DEINTERLEAVE_LOW, FE_DEINTERLEAVE_HIGH   shuffle indices that bring (even, odd) lanes back into order
 *   fe_vf, fe_vu, fe_vh   vectors of FE_LANES float, uint32_t, uint16_t
 *   vfma(a, b, c)     fma in each lane
 *   vsplat(value)     value in each lane
 *   vmax(a, b)        of unsigned lanes
 *   vhalf_to_f32, vf32_to_half   fp16 <-> f32, RNE, as base/num.h for all but NaN
 *   block_top(src)    the greatest (bits & 0x7fff) among FE_CAST_BLOCK bf16 channels
 *   merge, canonical  and FE_OWN_MERGE, FE_OWN_CANONICAL, where it has better ones than those below
 *   stream_line(dst, src)    64 bytes past the cache; dst is 64-byte aligned, src need not be
 *
 * No product here feeds a sum directly, so nothing can be fused behind our back whatever -ffp-contract says. */

typedef fe_vf fe_vf_any __attribute__((aligned(1), may_alias));
typedef fe_vu fe_vu_any __attribute__((aligned(1), may_alias));
typedef fe_vh fe_vh_any __attribute__((aligned(1), may_alias));

#define FE_LANES  (FE_VECTOR_BYTES / 4)
#define FE_PAIR   (2 * FE_LANES) /* columns of a pair of vectors, the smallest step */
#define FE_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define FE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FE_UNROLL _Pragma("GCC unroll 16")
#endif

/* ------------------------------------------------------------------------------------------------------------------
 * Copy
 * ---------------------------------------------------------------------------------------------------------------- */

typedef uint32_t fe_v16 __attribute__((vector_size(16), aligned(1), may_alias));

#define FE_COPY_STEP ((size_t)4 * FE_VECTOR_BYTES)
#define FE_LINE      64

/* What is too short for the loops below. Rows are mostly of whole 16 bytes; e4m3 rows may end in 8. */
FE_INLINE void copy_short(char *to, const char *from, size_t bytes) {
    for (; bytes >= 16; bytes -= 16, to += 16, from += 16) *(fe_v16 *)to = *(const fe_v16 *)from;
    for (; bytes; bytes--) *to++ = *from++;
}

static void copy_row(void *dst, const void *src, size_t bytes) {
    char *to = dst;
    const char *from = src;
    for (; bytes >= FE_COPY_STEP; bytes -= FE_COPY_STEP, to += FE_COPY_STEP, from += FE_COPY_STEP) {
        const fe_vu_any *f = (const fe_vu_any *)from;
        fe_vu a = f[0], b = f[1], c = f[2], d = f[3];
        fe_vu_any *t = (fe_vu_any *)to;
        t[0] = a, t[1] = b, t[2] = c, t[3] = d;
    }
    copy_short(to, from, bytes);
}

/* Whole lines go past the cache; what lies before the first and behind the last is stored plainly, since another rank
 * may be writing the other part of that line. The next row is asked for, into the second level, at the pace at which this one
 * leaves: on a Zen 4 that gives 12.5 GB/s between random rows, where asking for the first level gives 10.2 and not asking 9.5. */
static void stream_row(void *dst, const void *src, size_t bytes, const void *next) {
    size_t head = (FE_LINE - (uintptr_t)dst % FE_LINE) % FE_LINE;
    if (head > bytes) head = bytes;
    copy_short(dst, src, head);
    bytes -= head;
    char *to = (char *)dst + head;
    const char *from = (const char *)src + head, *ahead = next ? next : src;
    const size_t stride = next ? FE_LINE : 0;
    for (; bytes >= FE_LINE; bytes -= FE_LINE, to += FE_LINE, from += FE_LINE, ahead += stride) {
        __builtin_prefetch(ahead, 0, 2);
        stream_line(to, from);
    }
    copy_short(to, from, bytes);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Cast
 * ---------------------------------------------------------------------------------------------------------------- */

/* |y| as e4m3 in the low byte of each lane, for |y| < 464. Adding 2^(e+20), with e the exponent of y, at least -6 (that
 * of subnormals), puts the unit in the last place at 2^(e-3): the addition rounds y to n of them, 0 <= n <= 16, and e4m3 is
 * 8 * (e + 6) + n. The 0x38 makes up for what the biased exponent is too large, modulo 256; it is even, so ties fall as
 * they would without it. */
FE_INLINE fe_vu quantize(fe_vf y) {
    fe_vu magnitude = (fe_vu)y & 0x7fffffffu;
    fe_vu power = vmax(magnitude, (fe_vu)vsplat(0x1p-6f)) & 0x7f800000u;
    fe_vu magic = power + ((20u << 23) + 0x38u);
    return (fe_vu)((fe_vf)magnitude + (fe_vf)magic) + (power >> 20);
}

#ifndef FE_OWN_MERGE
/* The low bytes of even and odd, side by side, with the signs of the bf16 channels that they came from. */
FE_INLINE fe_vh merge(fe_vu even, fe_vu odd, fe_vu both) {
    fe_vu sign = ((both >> 8) & 0x0080u) | ((both >> 16) & 0x8000u);
    return __builtin_convertvector((even & 0x7fu) | ((odd << 8) & 0x7f00u) | sign, fe_vh);
}
#endif

/* A lane holds two channels, the even one below, and gets two bytes. */
FE_INLINE fe_vh quantize_pair(const uint16_t *src, fe_vf factor) {
    fe_vu both = *(const fe_vu_any *)src;
    fe_vu even = quantize((fe_vf)(both << 16) * factor), odd = quantize((fe_vf)(both & 0xffff0000u) * factor);
    return merge(even, odd, both);
}

/* fe_block_scale_of for FE_LANES blocks at once; of no use for one with an infinity or NaN, which goes the scalar way. */
FE_INLINE void scale_blocks(float scale[], float factor[], const uint32_t amax_bits[], bool pow2) {
    const fe_vf most = vsplat(FE_E4M3_MAX);
    fe_vf amax = (fe_vf)vmax(*(const fe_vu_any *)amax_bits, (fe_vu)vsplat(FE_CAST_AMAX));
    fe_vf quotient = amax / most, inverse = most / amax;
    if (pow2) {
        fe_vu power = ((fe_vu)quotient + 0x007fffffu) & 0x7f800000u;
        quotient = (fe_vf)power;
        inverse = (fe_vf)((254u << 23) - power);
    }
    *(fe_vf_any *)scale = quotient;
    *(fe_vf_any *)factor = inverse;
}

/* Up to FE_LANES blocks: first all their scales, then all their bytes, so that no block waits for its division. */
static inline void cast_blocks(uint8_t *dst, float scale[], const uint16_t *src, size_t blocks, bool pow2) {
    uint32_t amax[FE_LANES] = {0};
    float factor[FE_LANES];
    for (size_t b = 0; b < blocks; b++) amax[b] = (uint32_t)block_top(src + b * FE_CAST_BLOCK) << 16;
    scale_blocks(scale, factor, amax, pow2);
    for (size_t b = 0; b < blocks; b++, src += FE_CAST_BLOCK, dst += FE_CAST_BLOCK) {
        if (amax[b] >= 0x7f800000u) { /* NaN or infinity: as rare as it is slow */
            scale[b] = fe_cast_block_scalar(dst, src, FE_CAST_BLOCK, pow2);
            continue;
        }
        const fe_vf by = vsplat(factor[b]);
        FE_UNROLL
        for (int i = 0; i < FE_CAST_BLOCK; i += FE_PAIR) *(fe_vh_any *)(dst + i) = quantize_pair(src + i, by);
    }
}

static void cast_row(uint8_t *dst, void *scales, const uint16_t *src, size_t n, ferry_cast cast) {
    const bool pow2 = cast != FERRY_CAST_E4M3;
    const size_t whole = n / FE_CAST_BLOCK, rest = n % FE_CAST_BLOCK;
    float scale[FE_LANES];
    for (size_t at = 0; at < whole; at += FE_LANES) {
        size_t blocks = whole - at < FE_LANES ? whole - at : FE_LANES;
        cast_blocks(dst + at * FE_CAST_BLOCK, scale, src + at * FE_CAST_BLOCK, blocks, pow2);
        for (size_t b = 0; b < blocks; b++) fe_put_scale(scales, at + b, scale[b], cast);
    }
    if (rest) { /* zeros behind the last channel change nothing */
        uint16_t in[FE_CAST_BLOCK] = {0};
        uint8_t out[FE_CAST_BLOCK];
        memcpy(in, src + whole * FE_CAST_BLOCK, rest * sizeof *in);
        cast_blocks(out, scale, in, 1, pow2);
        memcpy(dst + whole * FE_CAST_BLOCK, out, rest);
        fe_put_scale(scales, whole, scale[0], cast);
    }
    fe_pad_scales(scales, whole + (rest != 0), cast);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Sum
 *
 * bf16 is read two channels to a lane: even ones are the lane shifted left by 16, odd ones its upper half, so widening
 * costs one instruction and the lanes are put back in order, if at all, once for the whole sum. Other types are read in order.
 * ---------------------------------------------------------------------------------------------------------------- */

FE_INLINE const char *column_of(const void *row, size_t column, ferry_dtype type) {
    return (const char *)row + column * (type == FERRY_FP32 ? 4 : 2);
}

FE_INLINE void load_pair(fe_vf v[2], const void *from, ferry_dtype type) {
    if (type == FERRY_BF16) {
        fe_vu both = *(const fe_vu_any *)from;
        v[0] = (fe_vf)(both << 16);
        v[1] = (fe_vf)(both & 0xffff0000u);
    } else if (type == FERRY_FP16) {
        const fe_vh_any *half = from;
        v[0] = vhalf_to_f32(half[0]);
        v[1] = vhalf_to_f32(half[1]);
    } else {
        const fe_vf_any *full = from;
        v[0] = full[0];
        v[1] = full[1];
    }
}

#ifndef FE_OWN_CANONICAL
FE_INLINE fe_vf canonical(fe_vf v) {
    fe_vu nan = (fe_vu)(v != v); /* NOLINT(misc-redundant-expression): only a NaN differs from itself */
    return (fe_vf)(((fe_vu)v & ~nan) | (nan & FE_F32_NAN));
}
#endif

/* The upper half of each lane is the bf16. FE_F32_NAN becomes FE_BF16_NAN. */
FE_INLINE fe_vu round_bf16(fe_vf v) {
    fe_vu bits = (fe_vu)canonical(v);
    return bits + 0x7fffu + ((bits >> 16) & 1u);
}

FE_INLINE void store_pair(void *to, const fe_vf v[2], ferry_dtype type, ferry_dtype in_type) {
    if (type == FERRY_BF16 && in_type == FERRY_BF16) {
        *(fe_vu_any *)to = (round_bf16(v[0]) >> 16) | (round_bf16(v[1]) & 0xffff0000u);
        return;
    }
    fe_vf low = v[0], high = v[1];
    if (in_type == FERRY_BF16) {
        low = __builtin_shufflevector(v[0], v[1], FE_DEINTERLEAVE_LOW);
        high = __builtin_shufflevector(v[0], v[1], FE_DEINTERLEAVE_HIGH);
    }
    if (type == FERRY_BF16) {
        ((fe_vh_any *)to)[0] = __builtin_convertvector(round_bf16(low) >> 16, fe_vh);
        ((fe_vh_any *)to)[1] = __builtin_convertvector(round_bf16(high) >> 16, fe_vh);
    } else if (type == FERRY_FP16) {
        ((fe_vh_any *)to)[0] = vf32_to_half(canonical(low));
        ((fe_vh_any *)to)[1] = vf32_to_half(canonical(high));
    } else {
        ((fe_vf_any *)to)[0] = canonical(low);
        ((fe_vf_any *)to)[1] = canonical(high);
    }
}

/* Adds a row's `pairs` pairs of vectors, from `from` on. The counts are constants where this is inlined, and the accumulators
 * registers. */
FE_INLINE void add_pairs(fe_vf acc[], const char *from, int pairs, ferry_dtype type) {
    FE_UNROLL
    for (int p = 0; p < pairs; p++) {
        fe_vf x[2];
        load_pair(x, column_of(from, (size_t)p * FE_PAIR, type), type);
        acc[2 * p] += x[0];
        acc[2 * p + 1] += x[1];
    }
}

FE_INLINE void add_pairs_weighted(fe_vf acc[], const char *from, int pairs, ferry_dtype type, fe_vf weight) {
    FE_UNROLL
    for (int p = 0; p < pairs; p++) {
        fe_vf x[2];
        load_pair(x, column_of(from, (size_t)p * FE_PAIR, type), type);
        acc[2 * p] = vfma(weight, x[0], acc[2 * p]);
        acc[2 * p + 1] = vfma(weight, x[1], acc[2 * p + 1]);
    }
}

FE_INLINE void prefetch_pairs(const char *from, int pairs, ferry_dtype type) {
    for (int at = 0; at < pairs * FE_PAIR * (type == FERRY_FP32 ? 4 : 2); at += FE_LINE)
        __builtin_prefetch(from + at, 0, 2);
}

FE_INLINE void sum_columns(const fe_sum *s, size_t column, int pairs, ferry_dtype type, bool weighted) {
    fe_vf acc[2 * FE_SUM_PAIRS];
    FE_UNROLL
    for (int p = 0; p < pairs; p++) {
        const fe_vf none = {0};
        acc[2 * p] = acc[2 * p + 1] = none;
        if (s->bias[0]) load_pair(&acc[2 * p], column_of(s->bias[0], column + (size_t)p * FE_PAIR, type), type);
    }
    if (s->bias[1]) add_pairs(acc, column_of(s->bias[1], column, type), pairs, type);
    int ahead = pairs == FE_SUM_PAIRS ? s->next_count : 0;
    for (int i = 0; i < s->count; i++) {
        if (i < ahead) prefetch_pairs(column_of(s->next[i], column, type), pairs, type);
        if (weighted)
            add_pairs_weighted(acc, column_of(s->rows[i], column, type), pairs, type, vsplat(s->weights[i]));
        else
            add_pairs(acc, column_of(s->rows[i], column, type), pairs, type);
    }
    for (int i = s->count; i < ahead; i++) prefetch_pairs(column_of(s->next[i], column, type), pairs, type);
    FE_UNROLL
    for (int p = 0; p < pairs; p++)
        store_pair((char *)s->out + (column + (size_t)p * FE_PAIR) * (s->out_type == FERRY_FP32 ? 4 : 2), &acc[2 * p],
                   s->out_type, type);
}

/* The last columns, fewer than a pair holds: from copies with room behind them. */
static void sum_rest(const fe_sum *s, size_t column, void (*sum)(const fe_sum *)) {
    char room[FERRY_MAX_TOPK + 3][FE_PAIR * 4];
    const void *rows[FERRY_MAX_TOPK];
    const size_t count = s->columns - column, bytes = count * (s->in_type == FERRY_FP32 ? 4 : 2);
    fe_sum rest = *s;
    memset(room, 0, sizeof room[0] * (size_t)(s->count + 3));
    for (int i = 0; i < s->count; i++) rows[i] = memcpy(room[i], column_of(s->rows[i], column, s->in_type), bytes);
    for (int b = 0; b < 2; b++)
        if (s->bias[b]) rest.bias[b] = memcpy(room[s->count + b], column_of(s->bias[b], column, s->in_type), bytes);
    rest.rows = rows;
    rest.columns = FE_PAIR;
    rest.out = room[s->count + 2];
    rest.next_count = 0;
    sum(&rest);
    memcpy((void *)(uintptr_t)column_of(s->out, column, s->out_type), rest.out,
           count * (s->out_type == FERRY_FP32 ? 4 : 2));
}

FE_INLINE void sum_typed(const fe_sum *sum, ferry_dtype type, bool weighted, void (*self)(const fe_sum *)) {
    const fe_sum s = *sum; /* a copy that the stores to the output cannot touch */
    const size_t step = (size_t)FE_SUM_PAIRS * FE_PAIR;
    size_t column = 0;
    for (; s.columns - column >= step; column += step) sum_columns(&s, column, FE_SUM_PAIRS, type, weighted);
    for (; s.columns - column >= FE_PAIR; column += FE_PAIR) sum_columns(&s, column, 1, type, weighted);
    if (column < s.columns) sum_rest(sum, column, self);
}

static void sum_bf16(const fe_sum *s) {
    sum_typed(s, FERRY_BF16, false, sum_bf16);
}
static void sum_bf16_weighted(const fe_sum *s) {
    sum_typed(s, FERRY_BF16, true, sum_bf16_weighted);
}
static void sum_fp16(const fe_sum *s) {
    sum_typed(s, FERRY_FP16, false, sum_fp16);
}
static void sum_fp16_weighted(const fe_sum *s) {
    sum_typed(s, FERRY_FP16, true, sum_fp16_weighted);
}
static void sum_fp32(const fe_sum *s) {
    sum_typed(s, FERRY_FP32, false, sum_fp32);
}
static void sum_fp32_weighted(const fe_sum *s) {
    sum_typed(s, FERRY_FP32, true, sum_fp32_weighted);
}

static void sum_rows(const fe_sum *s) {
    if (s->in_type == FERRY_BF16)
        (s->weights ? sum_bf16_weighted : sum_bf16)(s);
    else if (s->in_type == FERRY_FP16)
        (s->weights ? sum_fp16_weighted : sum_fp16)(s);
    else
        (s->weights ? sum_fp32_weighted : sum_fp32)(s);
}
