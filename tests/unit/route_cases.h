/* The ranks of a group on src/route/ alone, simulated in one thread: shapes drawn from a seed, and what every rank makes of them. */
#ifndef FERRY_TESTS_ROUTE_CASES_H
#define FERRY_TESTS_ROUTE_CASES_H

#include "route/route.h"

#include <stdbool.h>

#define ROUTE_RANKS_MOST 16
#define ROUTE_UNTOUCHED  0x5a5a5a5a

/* What was found wrong last; route_wrong writes it and returns false. */
extern char route_why[512];
bool route_wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Memory of exactly this size, full of rubbish, so that a sanitizer sees what is written past it or read too early. */
void *route_make(size_t count, size_t size);

/* ---- a plan: a shape and all ranks' choices ---- */

enum { CONTIGUOUS, COLUMN_MAJOR, PADDED, BACKWARD, STRIDE_KINDS };

typedef struct plan {
    uint64_t seed;
    int ranks, experts, topk, max_tokens, alignment, stride_kind;
    bool copies, wide; /* wide: int64 indices */
    ferry_order order;
    ferry_layout layout;
    ferry_mode mode;
    int64_t expert_capacity, rank_capacity;
    int32_t *expert_first, *expert_rank; /* NULL without copies */
    int tokens[ROUTE_RANKS_MOST];
    int64_t *idx[ROUTE_RANKS_MOST]; /* [tokens][topk] */
} plan;

/* How a failure prints it. */
const char *route_plan_text(const plan *p);
void route_draw(plan *p, uint64_t seed);
void route_free_plan(plan *p);

/* ---- the ranks ---- */

typedef struct member { /* what one rank holds */
    fe_shape shape;
    fe_table table;
    fe_scratch scratch;
    fe_blocks blocks;
    fe_totals totals;
    ferry_tensor idx;
    void *idx_memory;
} member;

typedef struct world {
    const plan *plan;
    fe_map map;
    member rank[ROUTE_RANKS_MOST];
    int32_t *all; /* [ranks][length] */
} world;

/* The indices as a tensor of the plan's dtype and strides, in m. */
void route_make_tensor(const plan *p, member *m, const int64_t *idx);
void route_make_member(world *w, int rank);
/* Counts on every rank, then blocks and slots on every rank; each sees the others' counts and nothing else. */
bool route_all(const plan *p, world *w);
void route_free_world(world *w);

#endif
