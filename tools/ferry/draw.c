#include "draw.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* In (0, 1). */
static double uniform(uint64_t bits) {
    return ((double)(bits >> 12) + 0.5) * 0x1p-52;
}

/* How much each expert is wanted: Zipf's law over a shuffled order, so that the wanted ones do not all live on rank 0. */
static void fill_wanted(const fe_draw *draw, double *wanted) {
    for (int e = 0; e < draw->experts; e++) wanted[e] = pow(e + 1, -draw->skew);
    for (int e = draw->experts - 1; e > 0; e--) {
        int other = (int)(fe_mix(draw->seed * 31 + (uint64_t)e) % (uint64_t)(e + 1));
        double swap = wanted[e];
        wanted[e] = wanted[other];
        wanted[other] = swap;
    }
}

/* The topk least of -log(u)/wanted are a draw without replacement (Efraimidis and Spirakis 2006). */
static void draw_token(const fe_draw *draw, const double *wanted, uint64_t key, double *time, int64_t *ids) {
    int found = 0;
    for (int e = 0; e < draw->experts; e++) {
        double t = -log(uniform(fe_mix(key + (uint64_t)e))) / wanted[e];
        if (found == draw->topk && t >= time[found - 1]) continue;
        int at = found < draw->topk ? found++ : found - 1;
        for (; at > 0 && time[at - 1] > t; at--) {
            time[at] = time[at - 1];
            ids[at] = ids[at - 1];
        }
        time[at] = t;
        ids[at] = e;
    }
    for (; found < draw->topk; found++) ids[found] = -1;
}

int fe_draw_routes(const fe_draw *draw, int rank, int64_t *ids, float *weights) {
    double *wanted = malloc(sizeof *wanted * ((size_t)draw->experts + (size_t)draw->topk));
    if (!wanted) return -1;
    fill_wanted(draw, wanted);
    for (int t = 0; t < draw->tokens; t++) {
        uint64_t key = fe_mix(fe_mix(draw->seed) ^ ((uint64_t)rank << 32 | (uint64_t)t));
        int64_t first = (int64_t)t * draw->topk;
        draw_token(draw, wanted, key, wanted + draw->experts, ids + first);
        for (int k = 0; k < draw->topk; k++) weights[first + k] = (float)uniform(fe_mix(~key + (uint64_t)k));
    }
    free(wanted);
    return 0;
}

void fe_draw_pool_fill(fe_draw_pool *pool, uint64_t seed, int fp8) {
    pool->fp8 = fp8;
    pool->seed = seed;
    for (size_t i = 0; i < FE_DRAW_POOL + FE_DRAW_ROW_MAX; i++) {
        uint64_t bits = fe_mix(seed ^ 0x504f4f4c00000000u ^ i);
        uint16_t half = (uint16_t)((bits & 1) << 15 | (119 + (bits >> 1) % 16) << 7 | (bits >> 8 & 0x7f));
        if (fp8)
            pool->element[i] = (uint8_t)((bits & 0x80) | (bits >> 8 & 0x7f) % 0x7f); /* all but the NaN 0x7f */
        else
            memcpy(pool->element + 2 * i, &half, 2);
    }
}

void fe_draw_row(const fe_draw_pool *pool, int rank, int64_t index, size_t columns, void *row) {
    uint64_t name = (uint64_t)rank << 32 | (uint64_t)index;
    uint64_t window = fe_mix(pool->seed ^ fe_mix(name)) % FE_DRAW_POOL;
    uint8_t *bytes = row;
    if (pool->fp8)
        memcpy(row, pool->element + window, columns);
    else
        memcpy(row, pool->element + 2 * window, 2 * columns);
    for (int i = 0; i < 8;
         i++) { /* 3 bits of the name in each of 8 e4m3 from 1 to 1.875, or 7 in each of 8 bf16 from 1 to 2 */
        uint16_t half = (uint16_t)(0x3f80 | (name >> 6 * i & 0x7f));
        if (pool->fp8)
            bytes[i] = (uint8_t)(0x38 | ((name ^ name >> 16) >> 3 * i & 7));
        else
            memcpy(bytes + 2 * i, &half, 2);
    }
}
