/* FNV-1a of 64 bits (Fowler, Noll and Vo; RFC 9923), by bytes or by words: tells apart what ranks agree on, and hides nothing. */
#ifndef FERRY_BASE_HASH_H
#define FERRY_BASE_HASH_H

#include <stdint.h>

#define FE_HASH_BEGIN 0xcbf29ce484222325u

static inline uint64_t fe_hash_add(uint64_t hash, uint64_t word) {
    return (hash ^ word) * 0x100000001b3u;
}

static inline uint64_t fe_hash_words(uint64_t hash, const int32_t *words, int64_t n) {
    for (int64_t i = 0; i < n; i++) hash = fe_hash_add(hash, (uint32_t)words[i]);
    return hash;
}

#endif
