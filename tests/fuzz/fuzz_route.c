/* libFuzzer target: any bytes as a map, a shape and the choices of one to four ranks. What is refused must be wrong;
 * what is accepted must give every row a slot of its own inside the receiver's rows, and lose none in silence. */
#include "route/route.h"
#include <stdlib.h>

#define RANKS   4
#define EXPERTS 20
#define TOKENS  6
#define COPIES  (EXPERTS * RANKS)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool good) {
    if (!good) abort();
}

/* ---- what the bytes say ---- */

typedef struct bytes {
    const uint8_t *at;
    size_t left;
} bytes;

static uint8_t take(bytes *b) {
    if (b->left == 0) return 0;
    b->left--;
    return *b->at++;
}

/* low..high, as far as a byte reaches. */
static int take_in(bytes *b, int low, int high) {
    return low + take(b) % (high - low + 1);
}

/* Memory of exactly this size, so that the sanitizer sees one step too far. */
static void *make(size_t count, size_t size) {
    void *memory = malloc(count ? count * size : 1);
    require(memory != NULL);
    return memory;
}

typedef struct member {
    fe_shape shape;
    fe_table table;
    fe_scratch scratch;
    fe_blocks blocks;
    fe_totals totals;
    ferry_tensor idx;
} member;

typedef struct world {
    fe_map map;
    fe_shape shape; /* what all ranks have in common */
    member rank[RANKS];
    int32_t *all;    /* [ranks][length] */
    uint8_t *unused; /* [slots] of one rank */
} world;

/* Now and then the lists of copies are any numbers at all; else they rise, and may still name a rank twice. */
static int32_t *take_first(bytes *b, int experts, bool any) {
    int32_t *first = make((size_t)experts + 1, sizeof *first);
    first[0] = any ? take(b) % 8 == 7 : 0;
    for (int e = 0; e < experts; e++) {
        int step = any ? (int8_t)take(b) / 16 : take_in(b, 1, RANKS);
        first[e + 1] = first[e] + step;
    }
    return first;
}

static bool take_map(bytes *b, int experts, int ranks, fe_map *map) {
    int kind = take_in(b, 0, 7);
    if (kind < 4) return fe_map_create(experts, ranks, NULL, NULL, map) == FERRY_OK;
    int32_t *first = take_first(b, experts, kind == 7);
    int32_t copies = first[experts] > 0 ? first[experts] : 0;
    int32_t *rank = make((size_t)copies, sizeof *rank);
    for (int32_t i = 0; i < copies; i++)
        rank[i] = kind == 4 ? i % ranks : take_in(b, -(kind == 7), ranks - (kind != 7));
    ferry_status status = fe_map_create(experts, ranks, first, rank, map);
    require(status == FERRY_OK || (status == FERRY_INVALID && ferry_last_error()[0]));
    free(first);
    free(rank);
    return status == FERRY_OK;
}

static int64_t take_capacity(bytes *b) {
    int kind = take(b);
    return kind < 160 ? 0 : kind < 250 ? 1 + kind % 30 : kind < 254 ? INT64_MAX : INT32_MAX;
}

static void take_shape(bytes *b, int ranks, world *w) {
    w->shape = (fe_shape){.map = &w->map, .ranks = ranks};
    w->shape.topk = take(b) < 8 ? FERRY_MAX_TOPK : take_in(b, 1, 8);
    w->shape.max_tokens = take_in(b, 1, TOKENS);
    w->shape.layout = (ferry_layout)(1 << take_in(b, 0, 2));
    w->shape.mode = (ferry_mode)take_in(b, 0, 1);
    w->shape.alignment = take_in(b, 1, 24);
    w->shape.expert_capacity = take_capacity(b);
    w->shape.rank_capacity = take_capacity(b);
    w->shape.overflow = FERRY_OVERFLOW_DROP;
}

/* Choices as the caller's tensor has them, row-major or column-major. Returns whether each is an expert or none. */
static bool take_choices(bytes *b, member *m) {
    int64_t tokens = m->shape.tokens, topk = m->shape.topk, experts = m->shape.map->experts;
    bool wide = take(b) & 1, columns = take(b) & 1, good = true;
    void *memory = make((size_t)(tokens * topk), wide ? 8 : 4);
    m->idx = ferry_tensor_2d(memory, wide ? FERRY_INT64 : FERRY_INT32, tokens, topk);
    m->idx.strides[0] = columns ? 1 : topk;
    m->idx.strides[1] = columns ? tokens : 1;
    for (int64_t i = 0; i < tokens * topk; i++) {
        uint8_t byte = take(b);
        int64_t value = byte == 255   ? (int8_t)take(b)
                        : byte == 254 ? (wide ? INT64_MIN : INT32_MIN)
                                      : byte % (experts + 1) - 1;
        good = good && value >= -1 && value < experts;
        if (wide)
            ((int64_t *)memory)[i] = value;
        else
            ((int32_t *)memory)[i] = (int32_t)value;
    }
    return good;
}

static void make_member(world *w, int rank, int tokens) {
    member *m = &w->rank[rank];
    m->shape = w->shape;
    m->shape.rank = rank;
    m->shape.tokens = tokens;
    size_t choices = (size_t)tokens * (size_t)w->shape.topk, units = (size_t)fe_units(&m->shape);
    size_t blocks = (size_t)fe_local_units(&m->shape) * (size_t)w->shape.ranks;
    m->table = (fe_table){.home = make(choices, sizeof(int32_t)),
                          .slot = make(choices, sizeof(int32_t)),
                          .order = make(choices, 1),
                          .fan = make((size_t)tokens, 1)};
    m->scratch = (fe_scratch){.stamp = make((size_t)(w->shape.ranks + w->map.homes), sizeof(int64_t)),
                              .next = make(units, sizeof(int32_t)),
                              .base = make(units, sizeof(int64_t)),
                              .keep = make(units, sizeof(int32_t))};
    m->blocks = (fe_blocks){.counts = make(blocks, sizeof(int32_t)), .starts = make(blocks, sizeof(int32_t))};
}

static void free_member(member *m) {
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
    free(m->idx.data);
}

/* ---- what must hold ---- */

/* Units that a token's choices name, whatever became of them. */
static int distinct_units(const member *m, int token) {
    const int32_t *home = m->table.home + token * m->shape.topk;
    int units = 0;
    for (int k = 0; k < m->shape.topk; k++) {
        bool seen = home[k] < 0;
        for (int i = 0; i < k && !seen; i++)
            seen = home[i] >= 0 && fe_unit_of(&m->shape, home[i]) == fe_unit_of(&m->shape, home[k]);
        units += !seen;
    }
    return units;
}

/* Choices of one unit share a slot, and others of the token's do not; `order` has one of each that was kept. */
static void check_token(const member *m, int token) {
    const fe_map *map = m->shape.map;
    const int32_t *home = m->table.home + token * m->shape.topk, *slot = m->table.slot + token * m->shape.topk;
    const uint8_t *order = m->table.order + token * m->shape.topk;
    require(m->table.fan[token] <= m->shape.topk);
    for (int k = 0; k < m->shape.topk; k++) {
        require(home[k] >= -1 && home[k] < map->homes && slot[k] >= -1 && (home[k] >= 0 || slot[k] == -1));
        int listed = 0;
        for (int i = 0; i < m->table.fan[token]; i++) {
            require(order[i] < m->shape.topk && slot[order[i]] >= 0);
            listed += home[k] >= 0 && fe_unit_of(&m->shape, home[order[i]]) == fe_unit_of(&m->shape, home[k]);
        }
        require(listed == (slot[k] >= 0));
        for (int i = 0; i < k; i++) {
            if (home[i] < 0 || home[k] < 0 || map->home_rank[home[i]] != map->home_rank[home[k]]) continue;
            bool same = fe_unit_of(&m->shape, home[i]) == fe_unit_of(&m->shape, home[k]);
            require(slot[i] < 0 || (slot[i] == slot[k]) == same);
        }
    }
}

/* Every row that `source` sends to `rank`: inside its rows, on a slot of its own, in the block that it knows of. */
static int64_t check_rows(const world *w, const member *source, int rank) {
    const member *to = &w->rank[rank];
    int64_t rows = 0;
    for (int t = 0; t < source->shape.tokens; t++)
        for (int i = 0; i < source->table.fan[t]; i++) {
            int at = t * w->shape.topk + source->table.order[t * w->shape.topk + i];
            int32_t home = source->table.home[at], slot = source->table.slot[at];
            if (w->map.home_rank[home] != rank) continue;
            require(slot >= 0 && slot < to->totals.rows && w->unused[slot]);
            w->unused[slot] = 0;
            rows++;
            if (!fe_needs_exchange(&w->shape)) continue;
            int local = fe_unit_of(&w->shape, home) - fe_first_unit(&w->shape, rank);
            int block = local * w->shape.ranks + source->shape.rank;
            int64_t expert =
                w->shape.layout == FERRY_LAYOUT_SLOTS ? (int64_t)local * w->shape.ranks * w->shape.max_tokens : 0;
            int64_t inside = slot - expert - to->blocks.starts[block];
            require(inside >= 0 && inside < to->blocks.counts[block]);
        }
    return rows;
}

static void check_receiver(world *w, int rank) {
    const member *m = &w->rank[rank];
    int64_t worst = fe_worst_rows(&m->shape, rank), rows = 0, counted = 0;
    require(m->totals.rows >= 0 && m->totals.rows <= worst);
    require(m->totals.rows == worst || (w->shape.mode == FERRY_THROUGHPUT && w->shape.layout != FERRY_LAYOUT_SLOTS));
    w->unused = make((size_t)m->totals.rows, 1);
    memset(w->unused, 1, (size_t)m->totals.rows);
    for (int s = 0; s < w->shape.ranks; s++) rows += check_rows(w, &w->rank[s], rank);
    free(w->unused);
    if (!fe_needs_exchange(&w->shape)) {
        require(m->totals.received == -1);
        return;
    }
    for (int i = 0; i < fe_local_units(&m->shape) * w->shape.ranks; i++) {
        require(m->blocks.counts[i] >= 0);
        counted += m->blocks.counts[i];
    }
    require(m->totals.received == rows && counted == rows);
}

static void check_sender(const world *w, int rank) {
    const member *m = &w->rank[rank];
    int32_t *counts = w->all + (size_t)rank * fe_counts_length(&w->map);
    const int32_t *units =
        w->shape.layout == FERRY_LAYOUT_RANK ? fe_counts_rank(counts) : fe_counts_home(counts, &w->map);
    int64_t wanted = 0, counted = 0, kept = 0;
    for (int t = 0; t < m->shape.tokens; t++) {
        check_token(m, t);
        wanted += distinct_units(m, t);
    }
    for (int u = 0; u < fe_units(&m->shape); u++) {
        require(m->scratch.keep[u] >= 0 && m->scratch.keep[u] <= units[u]);
        counted += units[u];
        kept += m->scratch.keep[u];
    }
    require(counts[FE_COUNT_TOKENS] == m->shape.tokens && counted == wanted);
    require(m->totals.sent == kept && m->totals.sent + m->totals.dropped == wanted);
}

static void check_world(world *w) {
    int64_t dropped = 0;
    for (int r = 0; r < w->shape.ranks; r++) {
        check_sender(w, r);
        check_receiver(w, r);
        dropped += w->rank[r].totals.dropped;
    }
    for (int r = 0; r < w->shape.ranks; r++) {
        const fe_totals *t = &w->rank[r].totals, *first = &w->rank[0].totals;
        require((t->overflow_rank >= 0) == (dropped > 0) && t->overflow_rank < w->shape.ranks);
        require(t->overflow_rank == first->overflow_rank && t->overflow_expert == first->overflow_expert);
        require(t->fullest == first->fullest && t->limit == first->limit);
        require(t->overflow_rank < 0 || t->fullest > t->limit);
    }
}

static bool count_all(bytes *b, world *w) {
    bool good = true;
    for (int r = 0; r < w->shape.ranks; r++) {
        member *m = &w->rank[r];
        make_member(w, r, take_in(b, 0, w->shape.max_tokens));
        bool valid = take_choices(b, m);
        int32_t *counts = w->all + (size_t)r * fe_counts_length(&w->map);
        ferry_status status = fe_route_count(&m->shape, &m->idx, &m->table, &m->scratch, counts);
        require(status == (valid ? FERRY_OK : FERRY_INVALID));
        if (status != FERRY_OK && take(b) % 2)
            fe_route_empty(&m->shape, &m->table, counts);
        else
            good = good && valid;
    }
    return good;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bytes b = {data, size};
    world w = {.all = NULL};
    int ranks = take_in(&b, 1, RANKS);
    if (take_map(&b, take_in(&b, 1, EXPERTS), ranks, &w.map)) {
        require(w.map.homes >= w.map.experts && w.map.homes <= COPIES);
        take_shape(&b, ranks, &w);
        w.all = make((size_t)ranks * fe_counts_length(&w.map), sizeof(int32_t));
        bool good = count_all(&b, &w);
        for (int r = 0; good && r < ranks; r++) {
            member *m = &w.rank[r];
            fe_route_blocks(&m->shape, w.all, &m->scratch, &m->blocks, &m->totals);
            fe_route_place(&m->shape, &m->table, &m->scratch, &m->totals);
        }
        if (good) check_world(&w);
        for (int r = 0; r < ranks; r++) free_member(&w.rank[r]);
        free(w.all);
    }
    fe_map_destroy(&w.map);
    return 0;
}
