#include "route_cases.h"
#include "random.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define WORK 60000 /* most choices x units of a drawn shape: the oracle is naive */

char route_why[512];

bool route_wrong(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(route_why, sizeof route_why, format, arguments);
    va_end(arguments);
    return false;
}

void *route_make(size_t count, size_t size) {
    size_t bytes = count ? count * size : 1;
    void *memory = malloc(bytes);
    if (!memory) abort();
    memset(memory, ROUTE_UNTOUCHED & 0xff, bytes);
    return memory;
}

/* ------------------------------------------------------------------------------------------------------------------
 * A plan: a shape and all ranks' choices
 * ---------------------------------------------------------------------------------------------------------------- */

const char *route_plan_text(const plan *p) {
    static char text[512];
    int used = snprintf(text, sizeof text,
                        "FERRY_TEST_SEED=%llu: layout=%d mode=%d ranks=%d experts=%d copies=%d topk=%d max_tokens=%d "
                        "alignment=%d expert_capacity=%lld rank_capacity=%lld strides=%d int%d order=%d tokens=",
                        (unsigned long long)p->seed, p->layout, p->mode, p->ranks, p->experts, p->copies, p->topk,
                        p->max_tokens, p->alignment, (long long)p->expert_capacity, (long long)p->rank_capacity,
                        p->stride_kind, p->wide ? 64 : 32, p->order);
    for (int r = 0; r < p->ranks; r++)
        used += snprintf(text + used, sizeof text - (size_t)used, "%s%d", r ? "," : "", p->tokens[r]);
    return text;
}

static int pick_log(uint64_t *state, int low, int high) {
    return (int)pick_small(state, low, high, 75);
}

/* Each expert on one to `ranks` ranks, none of them twice, in any order. */
static void draw_copies(plan *p, uint64_t *s) {
    p->expert_first = route_make((size_t)p->experts + 1, sizeof(int32_t));
    p->expert_first[0] = 0;
    for (int e = 0; e < p->experts; e++)
        p->expert_first[e + 1] = p->expert_first[e] + (chance(s, 60) ? 1 : pick(s, 1, p->ranks));
    p->expert_rank = route_make((size_t)p->expert_first[p->experts], sizeof(int32_t));
    for (int e = 0; e < p->experts; e++) {
        int32_t order[ROUTE_RANKS_MOST];
        for (int r = 0; r < p->ranks; r++) order[r] = r;
        for (int r = 0; r < p->expert_first[e + 1] - p->expert_first[e]; r++) {
            int other = pick(s, r, p->ranks - 1);
            int32_t swap = order[r];
            order[r] = order[other];
            order[other] = swap;
            p->expert_rank[p->expert_first[e] + r] = order[r];
        }
    }
}

static void draw_choices(plan *p, uint64_t *s) {
    int fill = pick(s, 0, 3), none = chance(s, 30) ? pick(s, 1, 100) : 0, spread = pick(s, 0, 3);
    int favourite = pick(s, 0, p->experts - 1);
    for (int r = 0; r < p->ranks; r++) {
        p->tokens[r] = fill == 0 ? p->max_tokens : fill == 1 && chance(s, 40) ? 0 : pick(s, 0, p->max_tokens);
        p->idx[r] = route_make((size_t)(p->tokens[r] * p->topk), sizeof(int64_t));
        for (int i = 0; i < p->tokens[r] * p->topk; i++) {
            int expert = pick(s, 0, p->experts - 1);              /* 0, 1: anything, repeats too */
            if (spread == 2 && chance(s, 80)) expert = favourite; /* nearly all on one */
            if (spread == 3) expert = (r + i / p->topk * p->topk + i % p->topk) % p->experts; /* in turn */
            p->idx[r][i] = chance(s, none) ? -1 : expert;
        }
    }
}

void route_draw(plan *p, uint64_t seed) {
    uint64_t state = seed, *s = &state;
    *p = (plan){.seed = seed, .alignment = 1};
    p->ranks = chance(s, 15) ? pick(s, 9, ROUTE_RANKS_MOST) : pick_log(s, 1, 8);
    p->experts = pick_log(s, 1, 40);
    p->topk = chance(s, 10) ? pick(s, 1, FERRY_MAX_TOPK) : pick_log(s, 1, 12);
    p->max_tokens = pick_log(s, 1, 60);
    p->copies = chance(s, 30);
    if (p->copies) draw_copies(p, s);
    int units = p->ranks + (p->copies ? p->expert_first[p->experts] : p->experts);
    while (p->max_tokens > 1 && p->ranks * p->max_tokens * p->topk * units > WORK) p->max_tokens /= 2;
    p->layout = (ferry_layout)(1 << pick(s, 0, 2));
    p->mode = (ferry_mode)pick(s, 0, 1);
    if (p->layout == FERRY_LAYOUT_EXPERT && chance(s, 60))
        p->alignment = chance(s, 50) ? 1 << pick(s, 0, 7) : pick(s, 1, 40);
    if (p->layout != FERRY_LAYOUT_RANK && chance(s, 30)) p->expert_capacity = pick_log(s, 1, 80);
    if (p->layout != FERRY_LAYOUT_SLOTS && chance(s, 30)) p->rank_capacity = pick_log(s, 1, 400);
    p->stride_kind = chance(s, 40) ? CONTIGUOUS : pick(s, 0, STRIDE_KINDS - 1);
    p->wide = chance(s, 50);
    p->order = p->layout == FERRY_LAYOUT_RANK && chance(s, 50) ? FERRY_ORDER_CHOICE : FERRY_ORDER_RANK;
    draw_choices(p, s);
}

void route_free_plan(plan *p) {
    free(p->expert_first);
    free(p->expert_rank);
    for (int r = 0; r < p->ranks; r++) free(p->idx[r]);
}

/* ------------------------------------------------------------------------------------------------------------------
 * The ranks, simulated
 * ---------------------------------------------------------------------------------------------------------------- */

/* The same indices, as a tensor of the plan's dtype and strides. */
void route_make_tensor(const plan *p, member *m, const int64_t *idx) {
    int64_t tokens = m->shape.tokens, topk = p->topk, row = topk, choice = 1, first = 0;
    size_t room = (size_t)(tokens * topk);
    if (p->stride_kind == COLUMN_MAJOR) {
        row = 1;
        choice = tokens;
    } else if (p->stride_kind == PADDED) {
        choice = 3;
        row = 3 * topk + 2;
        room = (size_t)(tokens * row);
    } else if (p->stride_kind == BACKWARD && tokens > 0) {
        row = -topk;
        first = (tokens - 1) * topk;
    }
    size_t bytes = p->wide ? 8 : 4;
    m->idx_memory = route_make(room, bytes);
    char *data = (char *)m->idx_memory + (size_t)first * bytes;
    m->idx = ferry_tensor_2d(data, p->wide ? FERRY_INT64 : FERRY_INT32, tokens, topk);
    m->idx.strides[0] = row;
    m->idx.strides[1] = choice;
    for (int64_t i = 0; i < tokens * topk; i++) {
        int32_t narrow = (int32_t)idx[i];
        char *at = data + (i / topk * row + i % topk * choice) * (int64_t)bytes;
        memcpy(at, p->wide ? (const void *)&idx[i] : &narrow, bytes);
    }
}

void route_make_member(world *w, int rank) {
    const plan *p = w->plan;
    member *m = &w->rank[rank];
    m->shape = (fe_shape){.map = &w->map,
                          .rank = rank,
                          .ranks = p->ranks,
                          .tokens = p->tokens[rank],
                          .topk = p->topk,
                          .max_tokens = p->max_tokens,
                          .layout = p->layout,
                          .mode = p->mode,
                          .alignment = p->alignment,
                          .expert_capacity = p->expert_capacity,
                          .rank_capacity = p->rank_capacity,
                          .overflow = FERRY_OVERFLOW_DROP,
                          .order = p->order};
    size_t tokens = (size_t)p->tokens[rank], choices = tokens * (size_t)p->topk, units = (size_t)fe_units(&m->shape);
    size_t blocks = (size_t)fe_local_units(&m->shape) * (size_t)p->ranks;
    m->table = (fe_table){.home = route_make(choices, sizeof(int32_t)),
                          .slot = route_make(choices, sizeof(int32_t)),
                          .order = route_make(choices, 1),
                          .fan = route_make(tokens, 1)};
    m->scratch = (fe_scratch){.stamp = route_make((size_t)(p->ranks + w->map.homes), sizeof(int64_t)),
                              .next = route_make(units, sizeof(int32_t)),
                              .base = route_make(units, sizeof(int64_t)),
                              .keep = route_make(units, sizeof(int32_t))};
    m->blocks =
        (fe_blocks){.counts = route_make(blocks, sizeof(int32_t)), .starts = route_make(blocks, sizeof(int32_t))};
    route_make_tensor(p, m, p->idx[rank]);
}

void route_free_world(world *w) {
    for (int r = 0; r < w->plan->ranks; r++) {
        member *m = &w->rank[r];
        free(m->table.home);
        free(m->table.slot);
        free(m->table.order);
        free(m->table.fan);
        free(m->scratch.stamp);
        free(m->scratch.next);
        free(m->scratch.base);
        free(m->scratch.keep);
        free(m->blocks.counts);
        free(m->blocks.starts);
        free(m->idx_memory);
    }
    free(w->all);
    fe_map_destroy(&w->map);
}

/* Counts on every rank, then blocks and slots on every rank; each sees the others' counts and nothing else. */
bool route_all(const plan *p, world *w) {
    *w = (world){.plan = p};
    if (fe_map_create(p->experts, p->ranks, p->expert_first, p->expert_rank, &w->map) != FERRY_OK)
        return route_wrong("fe_map_create: %s", ferry_last_error());
    size_t length = fe_counts_length(&w->map);
    w->all = route_make((size_t)p->ranks * length, sizeof(int32_t));
    for (int r = 0; r < p->ranks; r++) route_make_member(w, r);
    for (int r = 0; r < p->ranks; r++) {
        member *m = &w->rank[r];
        if (fe_route_count(&m->shape, &m->idx, &m->table, &m->scratch, w->all + (size_t)r * length) != FERRY_OK)
            return route_wrong("fe_route_count: %s", ferry_last_error());
    }
    for (int r = 0; r < p->ranks; r++) {
        member *m = &w->rank[r];
        fe_route_blocks(&m->shape, w->all, &m->scratch, &m->blocks, &m->totals);
        fe_route_place(&m->shape, &m->table, &m->scratch, &m->totals);
    }
    return true;
}
