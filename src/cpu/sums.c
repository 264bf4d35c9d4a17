/* Combine over several hosts: each rank sums, for its column, the rows that the ranks here hold of its tokens, and sends one row for each
 * token. The owner adds those to its near rows (reduce.c). */
#include "cpu/far.h"

#define PUSH_BYTES 262144 /* of sums for one host that a worker makes at a time and hands to the network in one write */

typedef struct job {
    const fe_crew *crew;
    const fe_pass *pass;
    const fe_far_route *far;
    int host; /* whose tokens are summed now */
    uint64_t wants;
    size_t row_bytes;
    int64_t chunk, end; /* records a worker takes at a time, and up to which */
    fe_kind kind;       /* of the part's note */
    _Atomic int64_t next;
    _Atomic int failed;
    struct offer { /* [ranks] of near ranks */
        const char *rows;
        const float *weights;
        size_t stride;
    } offer[];
} job;

static uint64_t sums_out(const job *j) {
    return j->far->boxes->sums_out[j->pass->half] + (uint64_t)j->host * j->far->boxes->sum_bytes;
}
static uint64_t sums_there(const job *j) {
    return j->far->boxes->sums_in[j->pass->half] + (uint64_t)j->far->hosts->mine * j->far->boxes->sum_bytes;
}

static const struct offer *offer_of(const job *j, int32_t home) {
    return &j->offer[j->pass->route->shape.map->home_rank[home]];
}

/* The owner's weights: those that it sent with its offer, or those that came with the token. */
static const float *weights_of(const job *j, int64_t number, const fe_record *r) {
    const fe_heap *heap = &j->crew->engine->heap;
    int topk = j->pass->route->shape.topk;
    if (!(j->wants & FE_WANTS_SENT)) return fe_record_weight(r, topk);
    const float *sent = fe_near(
        heap, heap->rank, j->far->boxes->weights_in[j->pass->half] + (uint64_t)j->host * j->far->boxes->weight_bytes);
    return sent + number * topk;
}

static void sum_record(const job *j, int64_t number) {
    const fe_heap *heap = &j->crew->engine->heap;
    const fe_shape *shape = &j->pass->route->shape;
    const fe_record *r = fe_record_kept(j->far, shape->max_tokens, j->host, number);
    const int32_t *home = fe_record_home(r, shape->topk), *slot = fe_record_slot(r, shape->topk);
    bool weighted = j->wants & FE_WANTS_WEIGHTED;
    const void *rows[FERRY_MAX_TOPK];
    float weight[FERRY_MAX_TOPK];
    fe_sum sum = {.out = fe_near(heap, heap->rank, sums_out(j) + (uint64_t)number * j->row_bytes),
                  .out_type = j->pass->reduce.in_type,
                  .in_type = j->pass->reduce.in_type,
                  .columns = j->pass->reduce.columns,
                  .rows = rows,
                  .weights = weighted ? weight : NULL};
    int terms = weighted ? shape->topk : r->fan;
    for (int i = 0; i < terms; i++) {
        int k = weighted ? i : fe_record_order(r)[i];
        if (slot[k] < 0) continue;
        const struct offer *o = offer_of(j, home[k]);
        if (weighted) weight[sum.count] = weights_of(j, number, r)[k];
        rows[sum.count++] = o->rows + (size_t)slot[k] * o->stride;
    }
    j->crew->rows->sum(&sum);
    if (!(j->wants & FE_WANTS_WEIGHTS)) return;
    float *out = fe_near(heap, heap->rank, sums_out(j) + j->far->boxes->sum_weights_at);
    for (int k = 0; k < shape->topk; k++) {
        const float *from = slot[k] < 0 ? NULL : offer_of(j, home[k])->weights;
        bool by_rank = shape->layout == FERRY_LAYOUT_RANK;
        out[number * shape->topk + k] = !from ? 0 : by_rank ? from[(int64_t)slot[k] * shape->topk + k] : from[slot[k]];
    }
}

static void work(void *context, int worker, int workers) {
    (void)worker, (void)workers;
    job *j = context;
    for (;;) {
        int64_t from = atomic_fetch_add_explicit(&j->next, j->chunk, memory_order_relaxed);
        if (from >= j->end) return;
        int64_t to = from + j->chunk < j->end ? from + j->chunk : j->end;
        for (int64_t i = from; i < to; i++) sum_record(j, i);
        uint64_t begin = (uint64_t)from * j->row_bytes;
        ferry_status status = fe_far_push(j->crew->engine->far, j->host, j->kind, j->pass->half, sums_out(j) + begin,
                                          sums_there(j) + begin, (uint64_t)(to - from) * j->row_bytes);
        if (status == FERRY_OK) continue;
        atomic_store(&j->failed, (int)status);
        return;
    }
}

static ferry_status serve_part(job *j, fe_part part) {
    fe_far *net = j->crew->engine->far;
    int64_t records = j->far->kept_count[j->host], from = fe_part_from(part, records);
    uint64_t word[FE_CELL_WORDS] = {0}, weights = (uint64_t)j->pass->route->shape.topk * sizeof(float);
    int64_t most = PUSH_BYTES / (int64_t)j->row_bytes;
    j->end = fe_part_to(part, records);
    j->chunk = fe_chunk_of(j->crew->pool, j->end - from, most > 1 ? most : 1);
    j->kind = (fe_kind)(FE_RETURNED + part.index);
    atomic_store(&j->next, from);
    fe_pool_run(j->crew->pool, work, j, (j->end - from + j->chunk - 1) / j->chunk);
    ferry_status failed = (ferry_status)atomic_load(&j->failed);
    if (failed != FERRY_OK)
        return fe_fail(failed, "rank %d: %s could not hand its sums to the network", j->crew->engine->heap.rank,
                       j->pass->step);
    uint64_t at = j->far->boxes->sum_weights_at + (uint64_t)from * weights;
    if (j->end > from && (j->wants & FE_WANTS_WEIGHTS))
        FE_TRY(fe_far_push(net, j->host, j->kind, j->pass->half, sums_out(j) + at, sums_there(j) + at,
                           (uint64_t)(j->end - from) * weights));
    word[FE_LANDED_RECORDS] = (uint64_t)(j->end - from);
    return fe_far_tell(net, j->host, j->kind, j->pass->half, j->pass->await.epoch, word, 0, 0);
}

/* One host's tokens. */
static ferry_status serve(job *j, int host) {
    const fe_heap *heap = &j->crew->engine->heap;
    int owner = fe_hosts_rank(&heap->hosts, host, heap->hosts.index);
    j->host = host;
    j->wants = fe_link_words(heap, FE_OFFER, j->pass->half, owner)[FE_OFFER_WANTS];
    if ((j->wants & FE_WANTS_WEIGHTED) && !(j->wants & FE_WANTS_SENT) && !j->pass->route->table.weights)
        return fe_fail(FERRY_MISMATCH, "rank %d: %s: rank %d sums with its route's weights, which are none here",
                       heap->rank, j->pass->step, owner);
    for (fe_part part = j->pass->part; part.index < fe_part_count(part); part.index++) FE_TRY(serve_part(j, part));
    return FERRY_OK;
}

ferry_status fe_cpu_sums(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    job *j = fe_pool_own_bench(crew->pool);
    *j = (job){.crew = crew, .pass = pass, .far = &pass->route->far};
    j->row_bytes = pass->reduce.columns * ferry_dtype_bytes(pass->reduce.in_type);
    for (int i = 0; i < heap->hosts.each; i++) {
        int r = fe_hosts_rank(&heap->hosts, heap->hosts.mine, i);
        const uint64_t *word = fe_link_words(heap, FE_OFFER, pass->half, r);
        j->offer[r] = (struct offer){.rows = fe_near(heap, r, word[FE_OFFER_ROWS]),
                                     .weights = fe_near(heap, r, word[FE_OFFER_WEIGHTS]),
                                     .stride = (size_t)word[FE_OFFER_STRIDE]};
    }
    for (int i = 1; i < heap->hosts.count; i++) {
        int host = (heap->hosts.mine + i) % heap->hosts.count;
        if (!fe_heap_host_masked(heap, host)) FE_TRY(serve(j, host));
    }
    return FERRY_OK;
}

/* Weights of the caller's for this combine, to those who sum with them. */
ferry_status fe_cpu_send_weights(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    const fe_far_route *far = &pass->route->far;
    const fe_gather *g = &pass->gather;
    int64_t tokens = pass->route->shape.tokens;
    int topk = pass->route->shape.topk;
    for (int h = 0; g->far_weights && h < heap->hosts.count; h++) {
        if (h == heap->hosts.mine || !far->records[h]) continue;
        uint64_t out = far->boxes->weights_out[pass->half] + (uint64_t)h * far->boxes->weight_bytes;
        uint64_t in = far->boxes->weights_in[pass->half] + (uint64_t)heap->hosts.mine * far->boxes->weight_bytes;
        float *to = fe_near(heap, heap->rank, out);
        for (int64_t t = 0; t < tokens; t++) {
            int64_t number = far->record[h * tokens + t];
            for (int k = 0; number >= 0 && k < topk; k++)
                to[number * topk + k] = g->far_weights[t * g->far_weight_row + k * g->far_weight_choice];
        }
        FE_TRY(fe_far_push(crew->engine->far, h, FE_OFFER, pass->half, out, in,
                           (uint64_t)far->records[h] * (uint64_t)topk * sizeof(float)));
    }
    return FERRY_OK;
}
