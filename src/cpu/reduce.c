/* Combine, owner's side: pulls each token's rows from its experts' heaps and sums them in the contract's order. */
#include "cpu/cpu.h"

#define CHUNK 16 /* most tokens a worker takes at a time */

typedef struct job {
    const fe_crew *crew;
    const fe_pass *pass;
    int64_t chunk;
    _Atomic int64_t next;
    struct source { /* [ranks] where each rank offers its rows */
        const char *rows;
        const float *weights;
        size_t stride;
    } source[];
} job;

typedef struct terms { /* of one token's sum */
    int count;
    const void *row[FERRY_MAX_TOPK];
    float weight[FERRY_MAX_TOPK];
} terms;

static const void *row_of(const job *j, int64_t choice) {
    const fe_table *table = &j->pass->route->table;
    const struct source *from = &j->source[j->pass->route->shape.map->home_rank[table->home[choice]]];
    return from->rows + (size_t)table->slot[choice] * from->stride;
}

static float weight_of(const job *j, int64_t token, int k) {
    const fe_reduce *r = &j->pass->reduce;
    return r->weights ? r->weights[token * r->weight_row + k * r->weight_choice]
                      : j->pass->route->table.weights[token * j->pass->route->shape.topk + k];
}

/* Weighted: every choice in turn. Unweighted: every distinct row, in the order that fe_route_count wrote down. */
static void list_terms(const job *j, int64_t token, terms *t) {
    const fe_route_data *route = j->pass->route;
    int topk = route->shape.topk;
    t->count = 0;
    if (!j->pass->reduce.weighted) {
        for (int i = 0; i < route->table.fan[token]; i++)
            t->row[t->count++] = row_of(j, token * topk + route->table.order[token * topk + i]);
        return;
    }
    for (int k = 0; k < topk; k++) {
        if (route->table.slot[token * topk + k] < 0) continue;
        t->weight[t->count] = weight_of(j, token, k);
        t->row[t->count++] = row_of(j, token * topk + k);
    }
}

static void return_weights(const job *j, int64_t token) {
    const fe_route_data *route = j->pass->route;
    int topk = route->shape.topk;
    float *out = j->pass->reduce.weights_out + token * topk;
    for (int k = 0; k < topk; k++) {
        int64_t choice = token * topk + k, slot = route->table.slot[choice];
        out[k] = 0;
        if (slot < 0) continue;
        const float *from = j->source[route->shape.map->home_rank[route->table.home[choice]]].weights;
        out[k] = route->shape.layout == FERRY_LAYOUT_RANK ? from[slot * topk + k] : from[slot];
    }
}

static void sum_tokens(const job *j, int64_t from, int64_t to) {
    const fe_reduce *r = &j->pass->reduce;
    terms list[2]; /* this token's and the next one's, which is prefetched meanwhile */
    list_terms(j, from, &list[0]);
    for (int64_t t = from; t < to; t++) {
        terms *now = &list[(t - from) & 1], *next = &list[(t - from + 1) & 1];
        next->count = 0;
        if (t + 1 < to) list_terms(j, t + 1, next);
        fe_sum sum = {.out = r->out + t * r->out_stride,
                      .out_type = r->out_type,
                      .in_type = r->in_type,
                      .columns = r->columns,
                      .count = now->count,
                      .rows = now->row,
                      .weights = r->weighted ? now->weight : NULL,
                      .next = next->row,
                      .next_count = next->count};
        for (int b = 0; b < 2; b++) sum.bias[b] = r->bias[b] ? r->bias[b] + t * r->bias_stride[b] : NULL;
        j->crew->rows->sum(&sum);
        if (r->weights_out) return_weights(j, t);
    }
}

static void work(void *context, int worker, int workers) {
    (void)worker, (void)workers;
    job *j = context;
    int64_t tokens = j->pass->route->shape.tokens;
    for (;;) {
        int64_t from = atomic_fetch_add_explicit(&j->next, j->chunk, memory_order_relaxed);
        if (from >= tokens) return;
        sum_tokens(j, from, from + j->chunk < tokens ? from + j->chunk : tokens);
    }
}

void fe_cpu_reduce(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    job *j = fe_pool_own_bench(crew->pool);
    *j = (job){.crew = crew, .pass = pass};
    for (int r = 0; r < heap->ranks; r++) {
        const uint64_t *word = fe_link_words(heap, FE_OFFER, pass->half, r);
        j->source[r] = (struct source){.rows = fe_near(heap, r, word[FE_OFFER_ROWS]),
                                       .weights = fe_near(heap, r, word[FE_OFFER_WEIGHTS]),
                                       .stride = (size_t)word[FE_OFFER_STRIDE]};
    }
    j->chunk = fe_chunk_of(crew->pool, pass->route->shape.tokens, CHUNK);
    fe_pool_run(crew->pool, work, j, (pass->route->shape.tokens + j->chunk - 1) / j->chunk);
}
