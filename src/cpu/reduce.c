/* Combine, owner's side: pulls each token's rows from its experts' heaps and sums them in the contract's order. */
#include "cpu/cpu.h"
#include "group/body.h"

#define CHUNK 16 /* most tokens a worker takes at a time */

typedef struct job {
    const fe_crew *crew;
    const fe_pass *pass;
    int64_t chunk, end;
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

static bool is_near(const job *j, int64_t choice) {
    const fe_route_data *route = j->pass->route;
    return !route->far.hosts || fe_hosts_near(route->far.hosts, route->shape.map->home_rank[route->table.home[choice]]);
}

/* Where the host's sums of this rank's tokens are. */
static const char *sums_of(const job *j, int host) {
    const fe_heap *heap = &j->crew->engine->heap;
    const fe_boxes *boxes = j->pass->route->far.boxes;
    return fe_near(heap, heap->rank, boxes->sums_in[j->pass->half] + (uint64_t)host * boxes->sum_bytes);
}

/* After the near rows one row of each other host, ascending: its weights are in it. */
static void list_far_terms(const job *j, int64_t token, terms *t) {
    const fe_far_route *far = &j->pass->route->far;
    size_t row_bytes = j->pass->reduce.columns * ferry_dtype_bytes(j->pass->reduce.in_type);
    for (int h = 0; h < far->hosts->count; h++) {
        int32_t number = far->record[h * (int64_t)j->pass->route->shape.tokens + token];
        if (number < 0 || h == far->hosts->mine) continue;
        t->weight[t->count] = 1;
        t->row[t->count++] = sums_of(j, h) + (size_t)number * row_bytes;
    }
}

/* Weighted: every choice in turn. Unweighted: every distinct row, in the order that fe_route_count wrote down. */
static void list_terms(const job *j, int64_t token, terms *t) {
    const fe_route_data *route = j->pass->route;
    int topk = route->shape.topk;
    t->count = 0;
    for (int i = 0; !j->pass->reduce.weighted && i < route->table.fan[token]; i++) {
        int64_t choice = token * topk + route->table.order[token * topk + i];
        if (is_near(j, choice)) t->row[t->count++] = row_of(j, choice);
    }
    for (int k = 0; j->pass->reduce.weighted && k < topk; k++) {
        if (route->table.slot[token * topk + k] < 0 || !is_near(j, token * topk + k)) continue;
        t->weight[t->count] = weight_of(j, token, k);
        t->row[t->count++] = row_of(j, token * topk + k);
    }
    if (route->far.hosts) list_far_terms(j, token, t);
}

static float far_weight(const job *j, int64_t token, int k) {
    const fe_route_data *route = j->pass->route;
    int host = route->far.hosts->host_of[route->shape.map->home_rank[route->table.home[token * route->shape.topk + k]]];
    int64_t number = route->far.record[host * (int64_t)route->shape.tokens + token];
    const float *weights = (const float *)(const void *)(sums_of(j, host) + route->far.boxes->sum_weights_at);
    return weights[number * route->shape.topk + k];
}

static void return_weights(const job *j, int64_t token) {
    const fe_route_data *route = j->pass->route;
    int topk = route->shape.topk;
    float *out = j->pass->reduce.weights_out + token * topk;
    for (int k = 0; k < topk; k++) {
        int64_t choice = token * topk + k, slot = route->table.slot[choice];
        out[k] = 0;
        if (slot < 0) continue;
        if (!is_near(j, choice)) {
            out[k] = far_weight(j, token, k);
            continue;
        }
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
    for (;;) {
        int64_t from = atomic_fetch_add_explicit(&j->next, j->chunk, memory_order_relaxed);
        if (from >= j->end) return;
        sum_tokens(j, from, from + j->chunk < j->end ? from + j->chunk : j->end);
    }
}

/* How many tokens, from the first on, have all their far rows when the part has come from every host. Hosts number a token's row for
 * themselves, ascending, and count parts by these numbers (sums.c). */
static int64_t tokens_to(const fe_route_data *route, fe_part part) {
    const fe_far_route *far = &route->far;
    int64_t tokens = route->shape.tokens, to = 0;
    if (fe_part_last(part)) return tokens;
    for (; to < tokens; to++)
        for (int h = 0; h < far->hosts->count; h++)
            if (h != far->hosts->mine && far->record[h * tokens + to] >= fe_part_to(part, far->records[h])) return to;
    return to;
}

void fe_cpu_reduce(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    job *j = fe_pool_own_bench(crew->pool);
    *j = (job){.crew = crew, .pass = pass};
    for (int r = 0; r < heap->ranks; r++) {
        if (!fe_heap_reaches(heap, r)) continue;
        const uint64_t *word = fe_link_words(heap, FE_OFFER, pass->half, r);
        j->source[r] = (struct source){.rows = fe_near(heap, r, word[FE_OFFER_ROWS]),
                                       .weights = fe_near(heap, r, word[FE_OFFER_WEIGHTS]),
                                       .stride = (size_t)word[FE_OFFER_STRIDE]};
    }
    fe_part before = {pass->part.index - 1, pass->part.count};
    int64_t from = pass->part.index ? tokens_to(pass->route, before) : 0;
    j->end = tokens_to(pass->route, pass->part);
    atomic_store(&j->next, from);
    j->chunk = fe_chunk_of(crew->pool, j->end - from, CHUNK);
    fe_pool_run(crew->pool, work, j, (j->end - from + j->chunk - 1) / j->chunk);
}
