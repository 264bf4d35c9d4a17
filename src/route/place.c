#include "base/os.h"
#include "route/route.h"

static inline int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t not_negative(int64_t a) {
    return a > 0 ? a : 0;
}

int64_t fe_worst_rows(const fe_shape *shape, int rank) {
    int64_t all = (int64_t)shape->ranks * shape->max_tokens, local = fe_map_local(shape->map, rank);
    int64_t rows = all;
    if (shape->layout == FERRY_LAYOUT_SLOTS) return local * all;
    if (shape->layout == FERRY_LAYOUT_EXPERT)
        rows = fe_align(all * least(shape->topk, local) + local * (shape->alignment - 1), shape->alignment);
    return shape->rank_capacity > 0 ? least(rows, shape->rank_capacity) : rows;
}

/* The largest excess is the one reported; the same on all ranks. */
static void note_overflow(fe_totals *totals, int64_t asked, int64_t limit, int rank, int expert) {
    if (totals->overflow_rank >= 0 && asked - limit <= totals->fullest - totals->limit) return;
    totals->fullest = asked;
    totals->limit = limit;
    totals->overflow_rank = rank;
    totals->overflow_expert = expert;
}

typedef struct cursor {
    const fe_shape *shape;
    const int32_t *all; /* [ranks][length] */
    size_t length;
    fe_scratch *scratch;
    fe_blocks *blocks;
    fe_totals *totals;
    int64_t asked, asked_end; /* as if the rank's capacity were none: where the unit begins, where its last row ends */
} cursor;

static int64_t count_of(const cursor *c, int source, int unit) {
    const int32_t *row = c->all + (size_t)source * c->length + FE_COUNT_HEADER;
    return c->shape->layout == FERRY_LAYOUT_RANK ? row[unit] : row[c->shape->ranks + unit];
}

/* One unit: lays its sources one behind another from slot `begin` (or, with fixed slots, max_tokens apart) and cuts what is past a
 * capacity. Returns the slot after its last row. */
static int64_t lay_unit(cursor *c, int rank, int unit, int64_t begin) {
    const fe_shape *s = c->shape;
    bool per_expert = s->layout != FERRY_LAYOUT_RANK;
    int64_t expert_room = per_expert && s->expert_capacity > 0 ? s->expert_capacity : INT64_MAX;
    int64_t rank_room = s->layout != FERRY_LAYOUT_SLOTS && s->rank_capacity > 0 ? s->rank_capacity : INT64_MAX;
    int64_t kept_before = 0, asked = 0, asked_here = 0, end = begin;
    for (int source = 0; source < s->ranks; source++) {
        int64_t count = count_of(c, source, unit);
        int64_t start = fe_slots_fixed(s) ? begin + (int64_t)source * s->max_tokens : begin + kept_before;
        int64_t by_expert = least(count, not_negative(expert_room - asked_here));
        int64_t keep = least(by_expert, not_negative(rank_room - start));
        asked += count;
        int64_t asked_end = (fe_slots_fixed(s) ? start : c->asked + asked_here) + by_expert;
        asked_here += by_expert;
        if (by_expert > 0 && asked_end > c->asked_end) c->asked_end = asked_end;
        if (source == s->rank) {
            c->scratch->base[unit] = start;
            c->scratch->keep[unit] = (int32_t)keep;
        }
        if (rank == s->rank) {
            size_t at = (size_t)(unit - fe_first_unit(s, rank)) * (size_t)s->ranks + (size_t)source;
            c->blocks->counts[at] = (int32_t)keep;
            c->blocks->starts[at] = (int32_t)(s->layout == FERRY_LAYOUT_SLOTS ? start - begin : start);
            c->totals->received += keep;
        }
        kept_before += keep;
        if (keep > 0) end = start + keep;
    }
    if (asked > expert_room) note_overflow(c->totals, asked, expert_room, rank, s->map->home_expert[unit]);
    return end;
}

static void lay_rank(cursor *c, int rank) {
    const fe_shape *s = c->shape;
    int first = fe_first_unit(s, rank), units = s->layout == FERRY_LAYOUT_RANK ? 1 : fe_map_local(s->map, rank);
    int64_t end = 0;
    c->asked_end = 0;
    for (int u = 0; u < units; u++) {
        int64_t begin = 0;
        c->asked = fe_align(c->asked_end, s->layout == FERRY_LAYOUT_EXPERT ? s->alignment : 1);
        if (s->layout == FERRY_LAYOUT_SLOTS) begin = (int64_t)u * s->ranks * s->max_tokens;
        if (s->layout == FERRY_LAYOUT_EXPERT) begin = fe_align(end, s->alignment);
        int64_t after = lay_unit(c, rank, first + u, begin);
        end = s->layout == FERRY_LAYOUT_EXPERT ? (after > begin ? after : begin) : after;
    }
    if (s->layout != FERRY_LAYOUT_SLOTS && s->rank_capacity > 0 && c->asked_end > s->rank_capacity)
        note_overflow(c->totals, c->asked_end, s->rank_capacity, rank, -1);
    if (rank != s->rank) return;
    bool exact = s->mode == FERRY_THROUGHPUT && s->layout != FERRY_LAYOUT_SLOTS;
    int64_t rows = fe_align(end, s->layout == FERRY_LAYOUT_EXPERT ? s->alignment : 1);
    if (s->rank_capacity > 0) rows = least(rows, s->rank_capacity); /* padding counts, and is cut like rows are */
    c->totals->rows = exact ? rows : fe_worst_rows(s, rank);
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
    size_t length = fe_counts_length(shape->map);
    if (!fe_needs_exchange(shape)) {
        lay_fixed(shape, all + (size_t)shape->rank * length, scratch, totals);
        return;
    }
    cursor c = {.shape = shape, .all = all, .length = length, .scratch = scratch, .blocks = blocks, .totals = totals};
    for (int rank = 0; rank < shape->ranks; rank++) lay_rank(&c, rank);
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
