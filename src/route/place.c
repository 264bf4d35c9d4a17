#include "route/lay.h"

int64_t fe_worst_rows(const fe_shape *shape, int rank) {
    return fe_worst_of(shape, fe_map_local(shape->map, rank));
}

/* Fixed slots: nothing to learn from the others, everything this rank sends has a place. */
static void lay_fixed(const fe_shape *s, const int32_t *mine, fe_scratch *scratch, fe_totals *totals) {
    const int32_t *count = mine + FE_COUNT_HEADER + (s->layout == FERRY_LAYOUT_RANK ? 0 : s->ranks);
    for (int rank = 0; rank < s->ranks; rank++) {
        int first = fe_first_unit(s, rank), units = s->layout == FERRY_LAYOUT_RANK ? 1 : fe_map_local(s->map, rank);
        for (int u = 0; u < units; u++) {
            scratch->base[first + u] = ((int64_t)u * s->ranks + s->rank) * s->max_tokens;
            scratch->keep[first + u] = count[first + u];
        }
    }
    totals->rows = fe_worst_rows(s, s->rank);
    totals->received = -1;
}

void fe_route_blocks(const fe_shape *shape, const int32_t *all, fe_scratch *scratch, fe_blocks *blocks,
                     fe_totals *totals) {
    *totals = (fe_totals){.overflow_rank = -1, .overflow_expert = -1};
    if (!fe_needs_exchange(shape)) {
        lay_fixed(shape, all + (size_t)shape->rank * fe_counts_length(shape->map), scratch, totals);
        return;
    }
    for (int rank = 0; rank < shape->ranks; rank++) fe_lay_rank(shape, all, rank, scratch, blocks, totals);
}

void fe_route_place(const fe_shape *shape, const fe_table *table, fe_scratch *scratch, fe_totals *totals) {
    const fe_map *map = shape->map;
    int units = fe_units(shape);
    bool by_rank = shape->layout == FERRY_LAYOUT_RANK;
    int64_t *stamp = scratch->stamp; /* here: the slot of the token's row in the unit, valid while marked */
    int32_t *next = scratch->next;
    memset(next, 0, (size_t)units * sizeof *next);
    for (int64_t t = 0; t < shape->tokens; t++) {
        const int32_t *home = table->home + t * shape->topk;
        int32_t *slot = table->slot + t * shape->topk;
        uint8_t *order = table->order + t * shape->topk;
        for (int i = 0; i < table->fan[t]; i++) {
            int unit = fe_unit_of(shape, home[order[i]]);
            int32_t index = next[unit]++;
            stamp[unit] = index < scratch->keep[unit] ? scratch->base[unit] + index : -1;
        }
        for (int k = 0; k < shape->topk; k++)
            slot[k] = home[k] < 0 ? -1 : (int32_t)stamp[by_rank ? map->home_rank[home[k]] : home[k]];
        int kept = 0;
        for (int i = 0; i < table->fan[t]; i++)
            if (slot[order[i]] >= 0) order[kept++] = order[i];
        totals->sent += kept;
        totals->dropped += table->fan[t] - kept;
        table->fan[t] = (uint8_t)kept;
    }
}

void fe_route_demand(const fe_shape *shape, const int32_t *all, int32_t *rows) {
    int first = shape->map->rank_first[shape->rank], local = fe_map_local(shape->map, shape->rank);
    size_t length = fe_counts_length(shape->map);
    memset(rows, 0, (size_t)local * sizeof *rows);
    for (int source = 0; source < shape->ranks; source++) {
        const int32_t *home = all + (size_t)source * length + FE_COUNT_HEADER + shape->ranks + first;
        for (int i = 0; i < local; i++) rows[i] += home[i];
    }
}

ferry_status fe_route_tell_overflow(const fe_shape *shape, const fe_totals *totals) {
    if (totals->overflow_expert >= 0)
        return fe_fail(FERRY_OVERFLOW, "rank %d: expert %d on rank %d would get %lld rows, expert_capacity is %lld",
                       shape->rank, totals->overflow_expert, totals->overflow_rank, (long long)totals->fullest,
                       (long long)totals->limit);
    return fe_fail(FERRY_OVERFLOW, "rank %d: rank %d would need %lld row slots, its capacity is %lld", shape->rank,
                   totals->overflow_rank, (long long)totals->fullest, (long long)totals->limit);
}
