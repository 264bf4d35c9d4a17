/* Random numbers for drawn cases: a seed gives the same case everywhere. */
#ifndef FERRY_TESTS_RANDOM_H
#define FERRY_TESTS_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

static inline uint64_t next(uint64_t *state) { /* splitmix64, Steele, Lea and Flood 2014 */
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline int64_t pick(uint64_t *state, int64_t low, int64_t high) {
    return low + (int64_t)(next(state) % (uint64_t)(high - low + 1));
}

static inline bool chance(uint64_t *state, int percent) {
    return pick(state, 1, 100) <= percent;
}

/* Small numbers often, large ones sometimes: a number of twice the size by each chance of `percent`. */
static inline int64_t pick_small(uint64_t *state, int64_t low, int64_t high, int percent) {
    int64_t top = low;
    while (top < high && chance(state, percent)) top = top * 2 + 1;
    return pick(state, low, top < high ? top : high);
}

#endif
