/* Where blocks lie: pure functions that every device compiles, so that all have the same arithmetic. A rank's layout depends on no
 * other rank's, so a device may lay ranks at once and merge their overflows in rank order. */
#ifndef FERRY_ROUTE_LAY_H
#define FERRY_ROUTE_LAY_H

#include "route/route.h"

FE_PURE int64_t fe_least(int64_t a, int64_t b) {
    return a < b ? a : b;
}
FE_PURE int64_t fe_not_negative(int64_t a) {
    return a > 0 ? a : 0;
}
FE_PURE int64_t fe_align_rows(int64_t rows, int64_t to) {
    return (rows + to - 1) / to * to;
}

/* Rows that `rank` must have room for, whatever the routing. local: its experts. */
FE_PURE int64_t fe_worst_of(const fe_shape *shape, int64_t local) {
    int64_t all = (int64_t)shape->ranks * shape->max_tokens, rows = all;
    if (shape->layout == FERRY_LAYOUT_SLOTS) return local * all;
    if (shape->layout == FERRY_LAYOUT_EXPERT)
        rows = fe_align_rows(all * fe_least(shape->topk, local) + local * (shape->alignment - 1), shape->alignment);
    return shape->rank_capacity > 0 ? fe_least(rows, shape->rank_capacity) : rows;
}

/* The largest excess is the one reported; of equals the first. The same on all ranks. */
FE_PURE void fe_note_overflow(fe_totals *totals, int64_t asked, int64_t limit, int rank, int expert) {
    if (totals->overflow_rank >= 0 && asked - limit <= totals->fullest - totals->limit) return;
    totals->fullest = asked;
    totals->limit = limit;
    totals->overflow_rank = rank;
    totals->overflow_expert = expert;
}

/* Laying one rank's units. */
typedef struct fe_cursor {
    const fe_shape *shape;
    const fe_map *map;  /* the device's copy of shape->map */
    const int32_t *all; /* [ranks][fe_counts_length] */
    fe_scratch *scratch;
    fe_blocks *blocks;
    fe_totals *totals;
    int64_t asked, asked_end; /* as if the rank's capacity were none: where the unit begins, where its last row ends */
} fe_cursor;

FE_PURE int64_t fe_count_of(const fe_cursor *c, int source, int unit) {
    const int32_t *row = c->all + (size_t)source * fe_counts_length(c->map) + FE_COUNT_HEADER;
    return c->shape->layout == FERRY_LAYOUT_RANK ? row[unit] : row[c->shape->ranks + unit];
}

/* One unit: lays its sources one behind another from slot `begin` (or, with fixed slots, max_tokens apart) and cuts what is past a
 * capacity. Returns the slot after its last row. */
FE_PURE int64_t fe_lay_unit(fe_cursor *c, int rank, int unit, int first_unit, int64_t begin) {
    const fe_shape *s = c->shape;
    bool per_expert = s->layout != FERRY_LAYOUT_RANK, fixed = fe_slots_fixed(s);
    int64_t expert_room = per_expert && s->expert_capacity > 0 ? s->expert_capacity : INT64_MAX;
    int64_t rank_room = s->layout != FERRY_LAYOUT_SLOTS && s->rank_capacity > 0 ? s->rank_capacity : INT64_MAX;
    int64_t kept_before = 0, asked = 0, asked_here = 0, end = begin;
    for (int source = 0; source < s->ranks; source++) {
        int64_t count = fe_count_of(c, source, unit);
        int64_t start = fixed ? begin + (int64_t)source * s->max_tokens : begin + kept_before;
        int64_t by_expert = fe_least(count, fe_not_negative(expert_room - asked_here));
        int64_t keep = fe_least(by_expert, fe_not_negative(rank_room - start));
        int64_t asked_end = (fixed ? start : c->asked + asked_here) + by_expert;
        asked += count;
        asked_here += by_expert;
        if (by_expert > 0 && asked_end > c->asked_end) c->asked_end = asked_end;
        if (source == s->rank) {
            c->scratch->base[unit] = start;
            c->scratch->keep[unit] = (int32_t)keep;
        }
        if (rank == s->rank) {
            size_t at = (size_t)(unit - first_unit) * (size_t)s->ranks + (size_t)source;
            c->blocks->counts[at] = (int32_t)keep;
            c->blocks->starts[at] = (int32_t)(s->layout == FERRY_LAYOUT_SLOTS ? start - begin : start);
            c->totals->received += keep;
        }
        kept_before += keep;
        if (keep > 0) end = start + keep;
    }
    if (asked > expert_room) fe_note_overflow(c->totals, asked, expert_room, rank, c->map->home_expert[unit]);
    return end;
}

/* One rank: writes base and keep of its units and, where it is this rank, blocks, received and rows; adds its overflow. */
FE_PURE void fe_lay_rank_with(fe_cursor *c, int rank) {
    const fe_shape *s = c->shape;
    bool by_rank = s->layout == FERRY_LAYOUT_RANK;
    int local = c->map->rank_first[rank + 1] - c->map->rank_first[rank];
    int first = by_rank ? rank : c->map->rank_first[rank], units = by_rank ? 1 : local;
    int64_t end = 0;
    c->asked_end = 0;
    for (int u = 0; u < units; u++) {
        int64_t begin = 0;
        c->asked = fe_align_rows(c->asked_end, s->layout == FERRY_LAYOUT_EXPERT ? s->alignment : 1);
        if (s->layout == FERRY_LAYOUT_SLOTS) begin = (int64_t)u * s->ranks * s->max_tokens;
        if (s->layout == FERRY_LAYOUT_EXPERT) begin = fe_align_rows(end, s->alignment);
        int64_t after = fe_lay_unit(c, rank, first + u, first, begin);
        end = s->layout == FERRY_LAYOUT_EXPERT ? (after > begin ? after : begin) : after;
    }
    if (s->layout != FERRY_LAYOUT_SLOTS && s->rank_capacity > 0 && c->asked_end > s->rank_capacity)
        fe_note_overflow(c->totals, c->asked_end, s->rank_capacity, rank, -1);
    if (rank != s->rank) return;
    bool exact = s->mode == FERRY_THROUGHPUT && s->layout != FERRY_LAYOUT_SLOTS;
    int64_t rows = fe_align_rows(end, s->layout == FERRY_LAYOUT_EXPERT ? s->alignment : 1);
    if (s->rank_capacity > 0) rows = fe_least(rows, s->rank_capacity); /* padding counts, and is cut like rows are */
    c->totals->rows = exact ? rows : fe_worst_of(s, local);
}

FE_PURE void fe_lay_rank(const fe_shape *shape, const int32_t *all, int rank, fe_scratch *scratch, fe_blocks *blocks,
                         fe_totals *totals) {
    fe_cursor c;
    memset(&c, 0, sizeof c);
    c.shape = shape;
    c.map = shape->map;
    c.all = all;
    c.scratch = scratch;
    c.blocks = blocks;
    c.totals = totals;
    fe_lay_rank_with(&c, rank);
}

#endif
