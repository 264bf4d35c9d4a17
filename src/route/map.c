#include "route/map.h"
#include "base/hash.h"

#include <stdlib.h>

/* expert_first as a whole comes first: only then is it known how far expert_rank may be read. */
static ferry_status check_first(int experts, const int32_t *first) {
    if (first[0] != 0) return fe_fail(FERRY_INVALID, "expert_first[0] is %d, not 0", first[0]);
    for (int e = 0; e < experts; e++)
        if (first[e + 1] <= first[e])
            return fe_fail(FERRY_INVALID, "expert %d has no copy: expert_first[%d] is %d and expert_first[%d] is %d", e,
                           e, first[e], e + 1, first[e + 1]);
    return FERRY_OK;
}

static ferry_status check_ranks(int experts, int ranks, const int32_t *first, const int32_t *rank) {
    for (int e = 0; e < experts; e++) {
        for (int i = first[e]; i < first[e + 1]; i++) {
            if (rank[i] < 0 || rank[i] >= ranks)
                return fe_fail(FERRY_INVALID, "expert_rank[%d] is %d (expert %d), ranks are 0..%d", i, rank[i], e,
                               ranks - 1);
            for (int j = first[e]; j < i; j++)
                if (rank[j] == rank[i]) return fe_fail(FERRY_INVALID, "expert %d is twice on rank %d", e, rank[i]);
        }
    }
    return FERRY_OK;
}

/* The map without copies: expert e on the rank r with r*E/R <= e < (r+1)*E/R. */
static void fill_blocks(int experts, int ranks, int32_t *first, int32_t *rank) {
    for (int e = 0; e <= experts; e++) first[e] = e;
    for (int r = 0; r < ranks; r++)
        for (int64_t e = (int64_t)r * experts / ranks; e < (int64_t)(r + 1) * experts / ranks; e++) rank[e] = r;
}

/* Numbers the homes: counting sort of copies by rank, experts ascending inside a rank. */
static void number_homes(fe_map *map, const int32_t *rank) {
    for (int i = 0; i < map->homes; i++) map->rank_first[rank[i] + 1]++;
    for (int r = 0; r < map->ranks; r++) {
        if (map->rank_first[r + 1] > map->most_local) map->most_local = map->rank_first[r + 1];
        map->rank_first[r + 1] += map->rank_first[r];
    }
    for (int e = 0; e < map->experts; e++) {
        for (int i = map->copy_first[e]; i < map->copy_first[e + 1]; i++) {
            int32_t home = map->rank_first[rank[i]]++; /* rank_first runs ahead here, and is put back below */
            map->copy[i] = home;
            map->home_rank[home] = rank[i];
            map->home_expert[home] = e;
        }
    }
    for (int r = map->ranks; r > 0; r--) map->rank_first[r] = map->rank_first[r - 1];
    map->rank_first[0] = 0;
}

ferry_status fe_map_create(int experts, int ranks, const int32_t *expert_first, const int32_t *expert_rank,
                           fe_map *map) {
    *map = (fe_map){0};
    if (expert_first) {
        FE_TRY(check_first(experts, expert_first));
        FE_TRY(check_ranks(experts, ranks, expert_first, expert_rank));
    }
    *map = (fe_map){.experts = experts, .ranks = ranks, .homes = expert_first ? expert_first[experts] : experts};
    map->copy_first = calloc((size_t)experts + 1, sizeof(int32_t));
    map->copy = calloc((size_t)map->homes, sizeof(int32_t));
    map->all_first = calloc((size_t)experts + 1, sizeof(int32_t));
    map->all = calloc((size_t)map->homes, sizeof(int32_t));
    map->rank_first = calloc((size_t)ranks + 1, sizeof(int32_t));
    map->home_rank = calloc((size_t)map->homes, sizeof(int32_t));
    map->home_expert = calloc((size_t)map->homes, sizeof(int32_t));
    int32_t *rank = calloc((size_t)map->homes, sizeof(int32_t));
    if (!map->copy_first || !map->copy || !map->all_first || !map->all || !map->rank_first || !map->home_rank ||
        !map->home_expert || !rank) {
        free(rank);
        fe_map_destroy(map);
        return fe_fail(FERRY_NOMEM, "no memory for a map of %d experts on %d ranks", experts, ranks);
    }
    if (expert_first) {
        memcpy(map->copy_first, expert_first, ((size_t)experts + 1) * sizeof(int32_t));
        memcpy(rank, expert_rank, (size_t)map->homes * sizeof(int32_t));
    } else {
        fill_blocks(experts, ranks, map->copy_first, rank);
    }
    number_homes(map, rank);
    free(rank);
    memcpy(map->all_first, map->copy_first, ((size_t)experts + 1) * sizeof(int32_t));
    memcpy(map->all, map->copy, (size_t)map->homes * sizeof(int32_t));
    return FERRY_OK;
}

uint64_t fe_map_hash(const fe_map *map) {
    uint64_t hash = fe_hash_words(FE_HASH_BEGIN, map->all_first, map->experts + 1);
    hash = fe_hash_words(hash, map->all, map->homes);
    return fe_hash_words(hash, map->home_rank, map->homes);
}

void fe_map_mask(fe_map *map, bool (*masked)(const void *context, int rank), const void *context) {
    int32_t n = 0;
    for (int e = 0; e < map->experts; e++) {
        map->copy_first[e] = n;
        for (int i = map->all_first[e]; i < map->all_first[e + 1]; i++)
            if (!masked(context, map->home_rank[map->all[i]])) map->copy[n++] = map->all[i];
    }
    map->copy_first[map->experts] = n;
}

void fe_map_destroy(fe_map *map) {
    free(map->copy_first);
    free(map->copy);
    free(map->all_first);
    free(map->all);
    free(map->rank_first);
    free(map->home_rank);
    free(map->home_expert);
    *map = (fe_map){0};
}
