/* The floors: the same bytes, from the same rows to the same (rank, slot), by plain copies and sums without any exchange, on as
 * many threads. Buffers are touched beforehand; copies and sums alternate between two halves, as the library's buffers do. */
#include "base/os.h"
#include "bench.h"
#include <stdlib.h>

#define CHUNK 16 /* tokens a worker takes at a time */

typedef struct place {
    int rank;
    float weight;
    int64_t slot;
} place;

typedef struct places { /* of each token: list[first[t]] .. list[first[t + 1]] */
    int64_t *first;
    place *list;
} places;

struct fe_floor {
    fe_pool pool;
    fe_lane *lane;
    places copies, terms; /* distinct rows; what combine sums */
    int half;
    fe_measure measure;
    _Atomic int64_t next;
};

static bool listed(const places *p, int64_t from, int64_t to, int rank, int64_t slot) {
    for (int64_t i = from; i < to; i++)
        if (p->list[i].rank == rank && p->list[i].slot == slot) return true;
    return false;
}

static bool list_places(places *p, const fe_bench *b, int self, bool distinct) {
    const oracle_tokens *mine = &b->tokens[self];
    int64_t n = 0;
    p->first = malloc(sizeof *p->first * ((size_t)mine->tokens + 1));
    p->list = calloc((size_t)mine->tokens * (size_t)b->o.topk + 1, sizeof *p->list);
    if (!p->first || !p->list) return false;
    for (int t = 0; t < mine->tokens; t++) {
        p->first[t] = n;
        for (int k = 0; k < b->o.topk; k++) {
            int64_t slot = 0;
            int rank = oracle_place(b->plan, self, t, k, &slot);
            if (rank < 0 || slot < 0 || (distinct && listed(p, p->first[t], n, rank, slot))) continue;
            p->list[n++] = (place){rank, mine->topk_weights[(int64_t)t * b->o.topk + k], slot};
        }
    }
    p->first[mine->tokens] = n;
    return true;
}

static char *landing_row(const fe_bench *b, int half, const place *p) {
    return b->landing[half] + (size_t)(p->rank * b->slots + p->slot) * b->row_bytes;
}

static char *landing_scales(const fe_bench *b, int half, const place *p) {
    char *all = b->landing[half] + (size_t)(b->slots * b->o.ranks) * b->row_bytes;
    return all + (size_t)(p->rank * b->slots + p->slot) * b->scale_bytes;
}

static void copy_token(fe_floor *f, int64_t token, char *bench) {
    const fe_bench *b = f->lane->bench;
    const oracle_tokens *mine = &b->tokens[f->lane->self->rank];
    const uint8_t *row = mine->rows + (size_t)token * b->in_bytes, *next = row + b->in_bytes;
    const void *scales = mine->scales ? mine->scales + (size_t)token * b->scale_bytes : NULL;
    if (b->o.cast) {
        scales = bench + b->row_bytes;
        b->kernels->cast((uint8_t *)bench, bench + b->row_bytes, (const uint16_t *)(const void *)row,
                         (size_t)b->o.hidden, FERRY_CAST_E4M3);
        row = (const uint8_t *)bench;
    }
    if (b->o.cast || token + 1 == mine->tokens) next = NULL;
    for (int64_t i = f->copies.first[token]; i < f->copies.first[token + 1]; i++) {
        const place *p = &f->copies.list[i];
        char *to = landing_row(b, f->half, p);
        if (f->measure == FE_M_FLOOR_MEMCPY)
            memcpy(to, row, b->row_bytes);
        else if (f->measure == FE_M_FLOOR_COPY)
            b->kernels->copy(to, row, b->row_bytes);
        else
            b->kernels->stream(to, row, b->row_bytes, i == f->copies.first[token] ? next : NULL);
        if (scales) memcpy(landing_scales(b, f->half, p), scales, b->scale_bytes);
    }
}

static int list_rows(const fe_floor *f, int64_t token, const void **rows, float *weights) {
    const fe_bench *b = f->lane->bench;
    int n = 0;
    if (token >= b->tokens[f->lane->self->rank].tokens) return 0;
    for (int64_t i = f->terms.first[token]; i < f->terms.first[token + 1]; i++, n++) {
        const place *p = &f->terms.list[i];
        rows[n] = b->returning[f->half] + (size_t)(p->rank * b->slots + p->slot) * b->back_bytes;
        weights[n] = p->weight;
    }
    return n;
}

static void sum_token(fe_floor *f, int64_t token) {
    const fe_bench *b = f->lane->bench;
    const void *rows[FERRY_MAX_TOPK], *next[FERRY_MAX_TOPK];
    float weights[FERRY_MAX_TOPK], unused[FERRY_MAX_TOPK];
    fe_sum sum = {.out = f->lane->result_rows + (size_t)token * b->back_bytes,
                  .out_type = FERRY_BF16,
                  .in_type = FERRY_BF16,
                  .columns = (size_t)b->o.hidden,
                  .rows = rows,
                  .next = next};
    sum.count = list_rows(f, token, rows, weights);
    sum.next_count = list_rows(f, token + 1, next, unused);
    if (b->weighted) sum.weights = weights;
    b->kernels->sum(&sum);
}

static void work(void *context, int worker, int workers) {
    (void)workers;
    fe_floor *f = context;
    int64_t tokens = f->lane->bench->tokens[f->lane->self->rank].tokens;
    char *bench = fe_pool_bench(&f->pool, worker);
    for (;;) {
        int64_t from = atomic_fetch_add_explicit(&f->next, CHUNK, memory_order_relaxed);
        if (from >= tokens) break;
        for (int64_t t = from; t < tokens && t < from + CHUNK; t++) {
            if (f->measure == FE_M_FLOOR_SUM)
                sum_token(f, t);
            else
                copy_token(f, t, bench);
        }
    }
    if (f->measure == FE_M_FLOOR_STREAM) f->lane->bench->kernels->fence();
}

void fe_floor_run(fe_floor *f, fe_measure measure) {
    f->measure = measure;
    f->half = !f->half;
    atomic_store_explicit(&f->next, 0, memory_order_relaxed);
    int64_t tokens = f->lane->bench->tokens[f->lane->self->rank].tokens;
    fe_pool_run(&f->pool, work, f, (tokens + CHUNK - 1) / CHUNK);
}

static void touch_place(const fe_bench *b, const place *p) {
    for (int half = 0; half < 2; half++) {
        memset(landing_row(b, half, p), 0, b->row_bytes);
        memset(landing_scales(b, half, p), 0, b->scale_bytes);
    }
    for (int half = 0; half < 2; half++)
        fe_draw_row(b->back_pool, p->rank, p->slot, (size_t)b->o.hidden,
                    b->returning[half] + (size_t)(p->rank * b->slots + p->slot) * b->back_bytes);
}

/* Every page that a floor will touch is touched here: by the rank at which the rows arrive, or, where ranks share no memory, by the
 * one that will write and read them in its own. */
static void touch(const fe_floor *f, const fe_lane *lane) {
    const fe_bench *b = lane->bench;
    int self = lane->self->rank;
    const oracle_rank *mine = oracle_rank_of(b->plan, self);
    for (int64_t i = 0; !b->launched && i < mine->received; i++) {
        place p = {self, 0, mine->row[i].slot};
        touch_place(b, &p);
    }
    for (int64_t i = 0; b->launched && i < f->terms.first[b->tokens[self].tokens]; i++) /* copies are among the terms */
        touch_place(b, &f->terms.list[i]);
    memset(lane->result_rows, 0, (size_t)b->tokens[self].tokens * b->back_bytes);
}

fe_floor *fe_floor_new(fe_lane *lane) {
    const fe_bench *b = lane->bench;
    fe_floor *f = aligned_alloc(64, (size_t)fe_align(sizeof *f, 64));
    if (!f) return NULL;
    memset(f, 0, sizeof *f);
    f->lane = lane;
    size_t bench_bytes = (size_t)fe_align((int64_t)(b->row_bytes + b->scale_bytes), 64);
    int spin = b->o.ranks * b->threads <= fe_cores() ? 100 : 0;
    if (fe_pool_open(&f->pool, b->threads, spin, bench_bytes) != FERRY_OK) {
        free(f);
        return NULL;
    }
    if (!list_places(&f->copies, b, lane->self->rank, true) ||
        !list_places(&f->terms, b, lane->self->rank, !b->weighted)) {
        fe_floor_free(f);
        return NULL;
    }
    touch(f, lane);
    return f;
}

void fe_floor_free(fe_floor *f) {
    if (!f) return;
    fe_pool_close(&f->pool);
    free(f->copies.first);
    free(f->copies.list);
    free(f->terms.first);
    free(f->terms.list);
    free(f);
}
