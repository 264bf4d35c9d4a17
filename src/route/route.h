/* Pure arithmetic: top-k -> counts -> blocks -> slots. No I/O, no threads, no allocation.
 *
 * A *unit* is what a layout packs rows into: a rank (RANK) or a home (EXPERT, SLOTS). Rows of one unit are ordered by source rank, then by
 * token; the rows of one source in one unit are a *block*, with a first slot and a length. All ranks derive the same blocks
 * from the same counts, so nothing is ever said about single rows. */
#ifndef FERRY_ROUTE_ROUTE_H
#define FERRY_ROUTE_ROUTE_H

#include "base/num.h"
#include "route/map.h"
#include <stdbool.h>

/* What a route is about; equal on all ranks but for rank and tokens. */
typedef struct fe_shape {
    const fe_map *map;
    int rank, ranks, tokens, topk, max_tokens;
    ferry_layout layout;
    ferry_mode mode;
    int alignment;
    int64_t expert_capacity, rank_capacity; /* 0: none */
    ferry_overflow overflow;
    bool packed;      /* LATENCY: as in THROUGHPUT */
    bool renormalise; /* weights of choices that a mask sends nowhere are spread over the token's others */
    ferry_order order;
} fe_shape;

/* One rank's row of counts, as it travels: header, rows per rank (a token once), rows per home. int32 each. */
enum { FE_COUNT_TOKENS, FE_COUNT_STATUS, FE_COUNT_HEADER = 4 };
FE_PURE size_t fe_counts_length(const fe_map *map) {
    return (size_t)FE_COUNT_HEADER + (size_t)map->ranks + (size_t)map->homes;
}
FE_PURE int32_t *fe_counts_rank(int32_t *counts) {
    return counts + FE_COUNT_HEADER;
}
FE_PURE int32_t *fe_counts_home(int32_t *counts, const fe_map *map) {
    return counts + FE_COUNT_HEADER + map->ranks;
}

/* Per choice [tokens * topk]. A token's row goes out once per unit: `order` lists, for each token, the fan[t] choices that stand for
 * their unit, in the order of summation (RANK: the shape's order; EXPERT, SLOTS: choice order). */
typedef struct fe_table {
    int32_t *home;  /* -1: none */
    int32_t *slot;  /* row slot at the home's rank; -1: none, or dropped */
    uint8_t *order; /* [tokens][topk] */
    uint8_t *fan;   /* [tokens] */
    float *weights; /* NULL when the route has none */
} fe_table;

/* Working memory of one rank: `stamp` holds, per unit, token * FERRY_MAX_TOPK + choice of the last row seen there. */
typedef struct fe_scratch {
    int64_t *stamp; /* [ranks + homes] */
    int32_t *next;  /* [units] rows placed so far */
    int64_t *base;  /* [units] slot of this rank's first row */
    int32_t *keep;  /* [units] how many of them have room */
} fe_scratch;

/* What a receiver knows of its rows. U: its local units (1 for RANK, local experts otherwise). */
typedef struct fe_blocks {
    int32_t *counts; /* [U][ranks] */
    int32_t *starts; /* [U][ranks] SLOTS: inside the expert */
} fe_blocks;

typedef struct fe_totals {
    int64_t rows;        /* that an output must hold */
    int64_t received;    /* real ones */
    int64_t sent;        /* by this rank */
    int64_t dropped;     /* of this rank's */
    int64_t fullest;     /* rows asked of the rank that overflows most; see overflow_rank */
    int64_t limit;       /* the capacity it met */
    int overflow_rank;   /* -1: everything fits */
    int overflow_expert; /* logical expert whose capacity was met; -1: the rank's */
} fe_totals;

FE_PURE int fe_units(const fe_shape *s) {
    return s->layout == FERRY_LAYOUT_RANK ? s->ranks : s->map->homes;
}
FE_PURE int fe_local_units(const fe_shape *s) {
    return s->layout == FERRY_LAYOUT_RANK ? 1 : fe_map_local(s->map, s->rank);
}
FE_PURE int fe_first_unit(const fe_shape *s, int rank) {
    return s->layout == FERRY_LAYOUT_RANK ? rank : s->map->rank_first[rank];
}
FE_PURE int fe_unit_of(const fe_shape *s, int32_t home) {
    return s->layout == FERRY_LAYOUT_RANK ? s->map->home_rank[home] : home;
}
/* Fixed slots per source: the place of a row follows from this rank's own counts. */
FE_PURE bool fe_slots_fixed(const fe_shape *s) {
    return s->mode == FERRY_LATENCY && s->layout != FERRY_LAYOUT_EXPERT && !s->packed;
}
/* Must counts be exchanged before rows can be placed? */
FE_PURE bool fe_needs_exchange(const fe_shape *s) {
    return !fe_slots_fixed(s) || s->expert_capacity > 0 || s->rank_capacity > 0;
}

/* Rows a rank must have room for, whatever the routing. */
int64_t fe_worst_rows(const fe_shape *shape, int rank);

/* Reads one index of a [tokens, topk] tensor of int32 or int64. */
FE_PURE int64_t fe_topk_at(const ferry_tensor *idx, int64_t token, int64_t choice) {
    int64_t at = token * idx->strides[0] + choice * idx->strides[1];
    return idx->dtype == FERRY_INT32 ? ((const int32_t *)idx->data)[at] : ((const int64_t *)idx->data)[at];
}

/* One token's weights, once its homes are found: what belongs to choices that are nowhere for a mask is spread over the others, by
 * w * (sum of all / sum of those left), sums in choice order. Other tokens keep their bits. */
FE_PURE void fe_renormalise(const fe_shape *s, const ferry_tensor *idx, const int32_t *home, float *weight,
                            int64_t token) {
    float all = 0, left = 0;
    bool missing = false;
    for (int k = 0; k < s->topk; k++) {
        if (fe_topk_at(idx, token, k) < 0) continue;
        all += weight[k];
        if (home[k] >= 0)
            left += weight[k];
        else
            missing = true;
    }
    float scale = left != 0 ? all / left : 0;
    for (int k = 0; missing && k < s->topk; k++) weight[k] = home[k] < 0 ? 0 : fe_f32_canonical(weight[k] * scale);
}

/* Fills home, order, fan and counts. FERRY_INVALID names the index that is no expert; idx has explicit strides. */
ferry_status fe_route_count(const fe_shape *shape, const ferry_tensor *idx, const fe_table *table, fe_scratch *scratch,
                            int32_t *counts);

/* Blocks from the counts of all ranks: all[ranks][fe_counts_length] for routes that exchange; for the others only row
 * `rank` is read, and `blocks` is left alone. */
void fe_route_blocks(const fe_shape *shape, const int32_t *all, fe_scratch *scratch, fe_blocks *blocks,
                     fe_totals *totals);

/* Tokens that chose each of this rank's experts, whatever the capacities: rows[local experts] from the counts of all ranks. */
void fe_route_demand(const fe_shape *shape, const int32_t *all, int32_t *rows);

/* No token chooses anything: what a route becomes when its own input turns out to be wrong after others have begun to count on it. */
void fe_route_empty(const fe_shape *shape, const fe_table *table, int32_t *counts);

/* The sentences of FERRY_INVALID and FERRY_OVERFLOW. */
ferry_status fe_route_tell_index(const fe_shape *shape, int64_t token, int choice, int64_t index);
ferry_status fe_route_tell_overflow(const fe_shape *shape, const fe_totals *totals);

/* Gives every choice its slot. */
void fe_route_place(const fe_shape *shape, const fe_table *table, fe_scratch *scratch, fe_totals *totals);

#endif
