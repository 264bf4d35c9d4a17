/* Where experts live. A *home* is one copy of one expert on one rank. Homes are numbered by rank, then by expert: rank r's are
 * rank_first[r] .. rank_first[r+1]-1, and local expert i of rank r is home rank_first[r] + i. Without copies and with an
 * even split, home == expert. */
#ifndef FERRY_ROUTE_MAP_H
#define FERRY_ROUTE_MAP_H

#include "base/pure.h"
#include "base/status.h"
#include <stdbool.h>

typedef struct fe_map {
    int experts, ranks, homes;
    int most_local;      /* the most homes on one rank */
    int32_t *copy_first; /* [experts + 1] copies of expert e are copy[copy_first[e]] .. copy[copy_first[e+1]-1] ... */
    int32_t *copy;       /* [homes] ... their homes, in the caller's order. Those of masked ranks are left out, */
    int32_t *all_first, *all; /* and are here. Host memory */
    int32_t *rank_first;      /* [ranks + 1] */
    int32_t *home_rank;       /* [homes] */
    int32_t *home_expert;     /* [homes] */
} fe_map;

/* FERRY_INVALID names the entry that is wrong. */
ferry_status fe_map_create(int experts, int ranks, const int32_t *expert_first, const int32_t *expert_rank,
                           fe_map *map);
void fe_map_destroy(fe_map *map);
/* Of the map as it was made, whoever is masked: two maps that serve a token differently have, most likely, two. */
uint64_t fe_map_hash(const fe_map *map);
/* Of each expert the copies on these ranks are left out. Homes keep their numbers: what follows from the map keeps its size and place. */
void fe_map_mask(fe_map *map, bool (*masked)(const void *context, int rank), const void *context);

/* The home that serves this expert for this token: copies take turns by (source rank + token). -1: all its copies are masked. */
FE_PURE int32_t fe_map_home(const fe_map *map, int64_t expert, int source, int64_t token) {
    int32_t first = map->copy_first[expert], copies = map->copy_first[expert + 1] - first;
    if (copies == 1) return map->copy[first];
    return copies ? map->copy[first + (int32_t)((source + token) % copies)] : -1;
}

FE_PURE int fe_map_local(const fe_map *map, int rank) {
    return map->rank_first[rank + 1] - map->rank_first[rank];
}

#endif
