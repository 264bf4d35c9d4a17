/* Random routing and rows, made from numbers alone: `ferry bench` and its peers in bench/ draw the very same ones. */
#ifndef FERRY_TOOL_DRAW_H
#define FERRY_TOOL_DRAW_H

#include <stddef.h>
#include <stdint.h>

typedef struct fe_draw {
    uint64_t seed;
    int ranks, experts, topk, tokens; /* tokens of each rank */
    double skew; /* Zipf's exponent: the i-th most wanted expert is wanted (i + 1)^-skew as often; 0: all alike */
} fe_draw;

/* The choices of all tokens of one rank, [tokens, topk]: distinct experts (-1 past the number of experts), drawn without
 * replacement, and weights from 0 to 1. Returns 0, or -1 without memory. */
int fe_draw_routes(const fe_draw *draw, int rank, int64_t *ids, float *weights);

/* The output function of splitmix64. */
static inline uint64_t fe_mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Rows are windows of a pool of random elements, stamped with who they are: quick to make, and not to be taken for another. */
enum { FE_DRAW_POOL = 1 << 17, FE_DRAW_ROW_MAX = 1 << 16 };

typedef struct fe_draw_pool {
    int fp8; /* 1: e4m3 bytes; 0: bf16, finite, of either sign and 2^-8..2^7 */
    uint64_t seed;
    uint8_t element[2 * (FE_DRAW_POOL + FE_DRAW_ROW_MAX)];
} fe_draw_pool;

void fe_draw_pool_fill(fe_draw_pool *pool, uint64_t seed, int fp8);
/* Row `index` of `rank`, columns elements (8..FE_DRAW_ROW_MAX). */
void fe_draw_row(const fe_draw_pool *pool, int rank, int64_t index, size_t columns, void *row);

#endif
