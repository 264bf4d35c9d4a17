/* The row kernels in plain C: the definition that every vector table equals. */
#include "cpu/rows_scalar.h"
#include <math.h>

static void copy_row(void *dst, const void *src, size_t bytes) {
    memcpy(dst, src, bytes);
}

/* memcpy goes past the cache when it sees fit, and then fences by itself. */
static void stream_row(void *dst, const void *src, size_t bytes, const void *next) {
    (void)next;
    memcpy(dst, src, bytes);
}

static void fence(void) {}

/* ---- cast ---- */

float fe_cast_block_scalar(uint8_t *dst, const uint16_t *src, size_t n, bool pow2) {
    float amax = 0;
    for (size_t i = 0; i < n; i++) {
        float magnitude = fe_bf16_to_f32(src[i] & 0x7fffu);
        if (magnitude > amax) amax = magnitude; /* false for NaN */
    }
    fe_block_scale block = fe_block_scale_of(amax, pow2);
    for (size_t i = 0; i < n; i++) dst[i] = fe_e4m3_from_f32(fe_bf16_to_f32(src[i]) * block.factor);
    return block.scale;
}

static void cast_row(uint8_t *dst, void *scales, const uint16_t *src, size_t n, ferry_cast cast) {
    size_t block = 0;
    for (size_t at = 0; at < n; at += FE_CAST_BLOCK, block++) {
        size_t count = n - at < FE_CAST_BLOCK ? n - at : FE_CAST_BLOCK;
        float scale = fe_cast_block_scalar(dst + at, src + at, count, cast != FERRY_CAST_E4M3);
        fe_put_scale(scales, block, scale, cast);
    }
    fe_pad_scales(scales, block, cast);
}

/* ---- sum ---- */

static float get(const void *row, size_t column, ferry_dtype type) {
    if (type == FERRY_BF16) return fe_bf16_to_f32(((const uint16_t *)row)[column]);
    if (type == FERRY_FP16) return fe_fp16_to_f32(((const uint16_t *)row)[column]);
    return ((const float *)row)[column];
}

static void put(void *row, size_t column, ferry_dtype type, float value) {
    if (type == FERRY_BF16)
        ((uint16_t *)row)[column] = fe_bf16_from_f32(value);
    else if (type == FERRY_FP16)
        ((uint16_t *)row)[column] = fe_fp16_from_f32(value);
    else
        ((float *)row)[column] = fe_f32_canonical(value);
}

static void sum_rows(const fe_sum *s) {
    for (size_t c = 0; c < s->columns; c++) {
        float acc = s->bias[0] ? get(s->bias[0], c, s->in_type) : 0.0f;
        if (s->bias[1]) acc += get(s->bias[1], c, s->in_type);
        for (int i = 0; i < s->count; i++) {
            float x = get(s->rows[i], c, s->in_type);
            acc = s->weights ? fmaf(s->weights[i], x, acc) : acc + x;
        }
        put(s->out, c, s->out_type, acc);
    }
}

const fe_rows fe_rows_scalar = {
    .name = "scalar", .copy = copy_row, .stream = stream_row, .fence = fence, .cast = cast_row, .sum = sum_rows};
