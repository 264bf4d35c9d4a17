#include "unit/rows_cases.h"
#include "base/num.h"
#include <stdio.h>
#include <stdlib.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define GUARD        ((size_t)64) /* bytes before and behind every output, which must not change */

static char sentence[256];

/* splitmix64 */
static uint64_t draw(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t below(uint64_t *state, size_t limit) {
    return (size_t)(draw(state) % limit);
}

static void *need(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (!memory) abort();
    return memory;
}

/* "" or where two outputs differ; `what` says of which call. */
static const char *compare(const void *expected, const void *got, size_t bytes, const char *what) {
    const uint8_t *a = expected, *b = got;
    sentence[0] = 0;
    if (memcmp(a, b, bytes) == 0) return sentence;
    size_t at = 0;
    while (a[at] == b[at]) at++;
    snprintf(sentence, sizeof sentence, "%s: byte %zu of %zu is 0x%02x, not 0x%02x", what, at, bytes, b[at], a[at]);
    return sentence;
}

/* ---- values ---- */

/* Kinds of float32 that go wrong in different ways. */
static uint32_t draw_bits(uint64_t *state, bool wild) {
    static const uint32_t special[] = {0x00000000, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001,
                                       0x7f800001, 0x00000001, 0x807fffff, 0x00800000, 0x7f7fffff, 0xff7fffff,
                                       0x33800000, 0x38800000, 0x387fffff, 0x477fefff, 0x477ff000, 0x43e00000,
                                       0x43e80000, 0x3c800000, 0x3b000000};
    uint64_t r = draw(state);
    uint32_t bits = (uint32_t)r;
    if (wild && r >> 60 == 0) return special[(bits >> 4) % COUNT(special)];
    if (wild && r >> 60 == 1) return bits; /* any pattern at all */
    if (r >> 60 == 4 && bits >> 29 == 0) return 0x80000000u;
    if (r >> 60 == 2) return (bits & 0x807fffffu) | 0x3f800000u; /* near one: sums cancel, ties are common below */
    if (r >> 60 == 3) return bits & 0xffff8000u;
    return (bits & 0x807fffffu) | (110u + bits % 29u) << 23;
}

static void draw_rows(uint64_t *state, void *rows, size_t count, ferry_dtype type, bool wild) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = draw_bits(state, wild);
        if (type == FERRY_FP32)
            ((uint32_t *)rows)[i] = bits;
        else if (type == FERRY_BF16)
            ((uint16_t *)rows)[i] = (uint16_t)(bits >> 16);
        else
            ((uint16_t *)rows)[i] = wild ? (uint16_t)(bits >> 12) : fe_fp16_from_f32(fe_f32_of_bits(bits));
    }
}

/* ---- copy and stream ---- */

static const char *check_copy(const fe_rows *t, uint64_t seed, size_t bytes, bool stream) {
    char what[80];
    size_t unit = bytes % 16 ? 1 : 16; /* rows of whole 16 bytes lie at multiples of 16, others anywhere */
    size_t to_at = GUARD + unit * below(&seed, 64 / unit), from_at = unit * below(&seed, 64 / unit),
           whole = bytes + 4 * GUARD;
    uint8_t *from = need(whole), *to = need(whole), *expected = need(whole);
    for (size_t i = 0; i < whole; i++) from[i] = (uint8_t)draw(&seed);
    memset(to, 0xa5, whole);
    memset(expected, 0xa5, whole);
    memcpy(expected + to_at, from + from_at, bytes);
    if (stream)
        t->stream(to + to_at, from + from_at, bytes, below(&seed, 2) ? from : NULL);
    else
        t->copy(to + to_at, from + from_at, bytes);
    t->fence();
    snprintf(what, sizeof what, "%s of %zu bytes, %zu -> %zu", stream ? "stream" : "copy", bytes, from_at, to_at);
    compare(expected, to, whole, what);
    free(from);
    free(to);
    free(expected);
    return sentence;
}

static const char *copies(const fe_rows *t, uint64_t seed) {
    for (size_t bytes = 0; bytes <= 1536; bytes += bytes < 400 ? 1 : 16)
        for (int i = 0; i < 8; i++)
            if (*check_copy(t, draw(&seed), bytes, i & 1)) return sentence;
    for (int i = 0; i < 64; i++)
        if (*check_copy(t, draw(&seed), 16 * below(&seed, 4096), i & 1)) return sentence;
    return sentence;
}

/* ---- cast ---- */

static const char *check_cast(const fe_rows *t, const uint16_t *src, size_t n, ferry_cast cast) {
    char what[80];
    size_t blocks = (n + FE_CAST_BLOCK - 1) / FE_CAST_BLOCK, scale_bytes = blocks * 4,
           whole = n + 2 * GUARD + scale_bytes;
    if (cast == FERRY_CAST_E4M3_UE8M0) scale_bytes = (blocks + 3) / 4 * 4;
    uint8_t *got = need(whole + GUARD), *expected = need(whole + GUARD);
    memset(got, 0xa5, whole);
    memset(expected, 0xa5, whole);
    /* the scales lie before the bytes, a guard between them */
    t->cast(got + scale_bytes + GUARD, got, src, n, cast);
    fe_rows_scalar.cast(expected + scale_bytes + GUARD, expected, src, n, cast);
    snprintf(what, sizeof what, "cast %d of %zu channels (the first %zu bytes are scales)", (int)cast, n, scale_bytes);
    compare(expected, got, whole, what);
    free(got);
    free(expected);
    return sentence;
}

static const ferry_cast casts[] = {FERRY_CAST_E4M3, FERRY_CAST_E4M3_POW2, FERRY_CAST_E4M3_UE8M0};

static const char *cast_lengths(const fe_rows *t, uint64_t seed) {
    uint16_t *src = need(8192 * sizeof *src);
    sentence[0] = 0;
    for (size_t n = 1; n <= 1400 && !*sentence; n += n < 300 ? 1 : 8 - n % 8)
        for (size_t c = 0; c < COUNT(casts) && !*sentence; c++) {
            draw_rows(&seed, src, n, FERRY_BF16, n % 3 == 0);
            check_cast(t, src, n, casts[c]);
        }
    for (int i = 0; i < 60 && !*sentence; i++) {
        draw_rows(&seed, src, 7168, FERRY_BF16, i % 2);
        check_cast(t, src, 7168, casts[i % 3]);
    }
    free(src);
    return sentence;
}

/* Every bf16 pattern, in blocks whose greatest is nearly always one of a few: those that make the factor exact, or just
 * above or below a power of two, subnormal, infinite, NaN. */
static const char *cast_patterns(const fe_rows *t, uint64_t seed) {
    static const uint16_t tops[] = {0x0000, 0x0001, 0x38d1, 0x3f80, 0x43df, 0x43e0, 0x43e1,
                                    0x4640, 0x7e7f, 0x7f7f, 0x7f80, 0xff80, 0x7fc0, 0xff81};
    uint16_t *src = need(65536 * sizeof *src);
    sentence[0] = 0;
    for (size_t turn = 0; turn < 3 * COUNT(tops) && !*sentence; turn++) {
        uint16_t top = tops[turn / 3];
        for (uint32_t i = 0; i < 65536; i++) src[i] = (uint16_t)i; /* neighbours of a size */
        for (size_t i = 0; i < 65536; i += FE_CAST_BLOCK) src[i + below(&seed, FE_CAST_BLOCK)] = top;
        if (*check_cast(t, src, 65536, casts[turn % 3])) break;
        for (uint32_t i = 0; i < 65536; i++) { /* no greater than top, and of all sizes */
            uint16_t bits = (uint16_t)(i << 9 | i >> 7);
            src[i] = (bits & 0x7fff) > (top & 0x7fff) ? top : bits;
        }
        check_cast(t, src, 65536, casts[turn % 3]);
    }
    free(src);
    return sentence;
}

/* Full products: a million of them, since a factor fused into the rounding shows in about one of 2^20. */
static const char *cast_products(const fe_rows *t, uint64_t seed) {
    enum { n = 7168 };
    uint16_t *src = need(n * sizeof *src);
    sentence[0] = 0;
    for (int i = 0; i < 160 && !*sentence; i++) {
        for (size_t c = 0; c < n; c++) src[c] = (uint16_t)((draw(&seed) & 0x81ff) | 0x3e00); /* 2^-3 to 2 */
        check_cast(t, src, n, FERRY_CAST_E4M3);
    }
    free(src);
    return sentence;
}

/* ---- sum ---- */

static const ferry_dtype types[] = {FERRY_BF16, FERRY_FP16, FERRY_FP32};

typedef struct shape {
    ferry_dtype in, out;
    size_t columns;
    int count, biases;
    bool weighted, wild;
} shape;

static size_t bytes_of(ferry_dtype type) {
    return type == FERRY_FP32 ? 4 : 2;
}

static const char *compare_sums(const fe_rows *t, fe_sum *sum, const shape *s) {
    char what[120];
    size_t bytes = s->columns * bytes_of(s->out), whole = bytes + 2 * GUARD;
    uint8_t *got = need(whole), *expected = need(whole);
    memset(got, 0xa5, whole);
    memset(expected, 0xa5, whole);
    sum->out = got + GUARD;
    t->sum(sum);
    sum->out = expected + GUARD;
    fe_rows_scalar.sum(sum);
    snprintf(what, sizeof what, "sum of %d rows of %zu columns, dtype %d to %d, %d biases, %sweighted", s->count,
             s->columns, (int)s->in, (int)s->out, s->biases, s->weighted ? "" : "un");
    compare(expected, got, whole, what);
    free(got);
    free(expected);
    return sentence;
}

static const char *check_sum(const fe_rows *t, uint64_t seed, const shape *s) {
    const void *rows[FERRY_MAX_TOPK + 2];
    float weights[FERRY_MAX_TOPK];
    size_t row = s->columns * bytes_of(s->in) + 16 * below(&seed, 4); /* 16-byte aligned, and no better */
    row = (row + 15) / 16 * 16;
    char *pool = need(row * (size_t)(s->count + 2) + 16);
    for (int i = 0; i < s->count + 2; i++) {
        char *at = pool + row * (size_t)i + 16;
        draw_rows(&seed, at, s->columns, s->in, s->wild);
        rows[i] = at;
    }
    for (int i = 0; i < s->count; i++) {
        uint32_t bits = draw_bits(&seed, s->wild && below(&seed, 4) == 0);
        if (below(&seed, 16) == 0) bits = 0x80000000u; /* a negative zero is no zero: -0 * 1 + -0 is -0 */
        memcpy(&weights[i], &bits, sizeof bits);
    }
    fe_sum sum = {.out_type = s->out,
                  .in_type = s->in,
                  .columns = s->columns,
                  .count = s->count,
                  .rows = rows,
                  .weights = s->weighted ? weights : NULL,
                  .bias = {s->biases & 1 ? rows[s->count] : NULL, s->biases & 2 ? rows[s->count + 1] : NULL},
                  .next = rows,
                  .next_count = (int)below(&seed, (size_t)s->count + 1)};
    compare_sums(t, &sum, s);
    free(pool);
    return sentence;
}

static const char *sum_shapes(const fe_rows *t, uint64_t seed) {
    static const int counts[] = {0, 1, 2, 3, 8, FERRY_MAX_TOPK};
    size_t turn = 0;
    for (int kind = 0; kind < 36; kind++) {
        shape s = {.in = types[kind % 3], .out = types[kind / 3 % 3], .weighted = kind / 9 % 2, .wild = kind / 18 % 2};
        for (size_t n = 1; n <= 400; n += n < 80 ? 1 : 4 - n % 4) {
            s.columns = n;
            s.count = counts[turn % COUNT(counts)];
            s.biases = (int)(turn / COUNT(counts) % 4);
            turn++;
            if (*check_sum(t, draw(&seed), &s)) return sentence;
        }
    }
    return sentence;
}

static const char *sum_random(const fe_rows *t, uint64_t seed) {
    for (int i = 0; i < 150; i++) {
        shape s = {.in = types[below(&seed, 3)],
                   .out = types[below(&seed, 3)],
                   .columns = 8 * (1 + below(&seed, 1024)),
                   .count = (int)below(&seed, 10),
                   .biases = (int)below(&seed, 4),
                   .weighted = below(&seed, 2),
                   .wild = below(&seed, 2)};
        if (*check_sum(t, draw(&seed), &s)) return sentence;
    }
    return sentence;
}

/* Every 16-bit pattern through the widening, and every upper half of a float32, with lower halves around each rounding
 * boundary, through the narrowing. */
static const char *conversions(const fe_rows *t, uint64_t seed) {
    static const uint16_t low[] = {0x0000, 0x0001, 0x7fff, 0x8000, 0x8001, 0xffff,
                                   0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001};
    const size_t n = 65536;
    uint32_t *in = need(n * 4);
    const void *row = in;
    sentence[0] = 0;
    for (size_t kind = 0; kind < 6 + 3 * COUNT(low) && !*sentence; kind++) {
        shape s = {.in = kind < 6 ? types[kind % 2] : FERRY_FP32, .columns = n, .count = 1, .wild = true};
        s.out = types[kind < 6 ? kind / 2 : kind % 3];
        for (size_t i = 0; i < n; i++) {
            if (kind < 6)
                ((uint16_t *)(void *)in)[i] = (uint16_t)i;
            else
                in[i] = (uint32_t)i << 16 | low[(kind - 6) / 3];
        }
        /* as the bias, the row comes through with the sign of its zeros; as a row it is added to +0 */
        s.biases = (int)below(&seed, 2);
        s.count = 1 - s.biases;
        fe_sum sum = {.out_type = s.out, .in_type = s.in, .columns = n, .count = s.count, .rows = &row};
        if (s.biases) sum.bias[0] = row;
        compare_sums(t, &sum, &s);
    }
    free(in);
    return sentence;
}

const rows_case rows_cases[] = {{"copy and stream", copies},       {"cast, lengths", cast_lengths},
                                {"cast, patterns", cast_patterns}, {"cast, products", cast_products},
                                {"conversions", conversions},      {"sum, shapes", sum_shapes},
                                {"sum, random", sum_random}};
const int rows_case_count = COUNT(rows_cases);
