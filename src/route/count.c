#include "route/route.h"

/* FERRY_ORDER_RANK: insertion sort, stable, of at most 64 choices. */
static void sort_by_rank(const fe_map *map, const int32_t *home, uint8_t *order, int fan) {
    for (int i = 1; i < fan; i++) {
        uint8_t choice = order[i];
        int rank = map->home_rank[home[choice]], j = i;
        for (; j > 0 && map->home_rank[home[order[j - 1]]] > rank; j--) order[j] = order[j - 1];
        order[j] = choice;
    }
}

/* A rank is met again: its row is summed where this choice stands. */
static void move_to_end(const fe_map *map, const int32_t *home, uint8_t *order, int fan, int rank) {
    int i = 0;
    while (map->home_rank[home[order[i]]] != rank) i++;
    uint8_t choice = order[i];
    for (; i + 1 < fan; i++) order[i] = order[i + 1];
    order[i] = choice;
}

/* One token. Returns -1, or the choice that is no expert. */
static int count_token(const fe_shape *shape, const ferry_tensor *idx, const fe_table *table, fe_scratch *scratch,
                       int32_t *counts, int64_t token) {
    const fe_map *map = shape->map;
    int32_t *to_rank = fe_counts_rank(counts), *to_home = fe_counts_home(counts, map);
    int32_t *home = table->home + token * shape->topk;
    uint8_t *order = table->order + token * shape->topk;
    int64_t mark = token * FERRY_MAX_TOPK;
    bool by_rank = shape->layout == FERRY_LAYOUT_RANK, ascending = shape->order == FERRY_ORDER_RANK;
    int fan = 0;
    for (int k = 0; k < shape->topk; k++) {
        int64_t expert = fe_topk_at(idx, token, k);
        home[k] = -1;
        if (expert == -1) continue;
        if (expert < 0 || expert >= map->experts) return k;
        int32_t h = home[k] = fe_map_home(map, expert, shape->rank, token);
        if (h < 0) continue;
        int rank = map->home_rank[h];
        bool new_rank = scratch->stamp[rank] < mark, new_home = scratch->stamp[map->ranks + h] < mark;
        if (new_rank) {
            scratch->stamp[rank] = mark + k;
            to_rank[rank]++;
        }
        if (new_home) {
            scratch->stamp[map->ranks + h] = mark + k;
            to_home[h]++;
        }
        if (by_rank ? new_rank : new_home)
            order[fan++] = (uint8_t)k;
        else if (by_rank && !ascending)
            move_to_end(map, home, order, fan, rank);
    }
    if (by_rank && ascending) sort_by_rank(map, home, order, fan);
    table->fan[token] = (uint8_t)fan;
    return -1;
}

ferry_status fe_route_tell_index(const fe_shape *shape, int64_t token, int choice, int64_t index) {
    return fe_fail(FERRY_INVALID, "rank %d: topk_idx[%lld][%d] is %lld; experts are 0..%d, -1 is none", shape->rank,
                   (long long)token, choice, (long long)index, shape->map->experts - 1);
}

ferry_status fe_route_count(const fe_shape *shape, const ferry_tensor *idx, const fe_table *table, fe_scratch *scratch,
                            int32_t *counts) {
    const fe_map *map = shape->map;
    memset(counts, 0, fe_counts_length(map) * sizeof *counts);
    counts[FE_COUNT_TOKENS] = shape->tokens;
    for (int i = 0; i < map->ranks + map->homes; i++) scratch->stamp[i] = -1;
    for (int64_t t = 0; t < shape->tokens; t++) {
        int wrong = count_token(shape, idx, table, scratch, counts, t);
        if (wrong >= 0) return fe_route_tell_index(shape, t, wrong, fe_topk_at(idx, t, wrong));
    }
    return FERRY_OK;
}

void fe_route_empty(const fe_shape *shape, const fe_table *table, int32_t *counts) {
    size_t choices = (size_t)shape->tokens * (size_t)shape->topk;
    memset(table->home, 0xff, choices * sizeof *table->home); /* -1 */
    memset(table->slot, 0xff, choices * sizeof *table->slot);
    memset(table->fan, 0, (size_t)shape->tokens);
    memset(counts, 0, fe_counts_length(shape->map) * sizeof *counts);
    counts[FE_COUNT_TOKENS] = shape->tokens;
}
