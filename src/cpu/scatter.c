/* Dispatch, sending side: each row is read once and written once to each of its places, straight into the receivers' heaps. */
#include "base/num.h"
#include "cpu/cpu.h"

#define CHUNK 16 /* most tokens a worker takes at a time: small enough to even out unequal fans */

/* Where one receiver wants things. */
typedef struct target {
    char *rows, *scales;
    int32_t *source, *ids;
    float *weights;
    size_t row_stride, scale_stride;
} target;

typedef struct job {
    const fe_crew *crew;
    const fe_route_data *route;
    const fe_scatter *s;
    bool past_cache;
    int64_t chunk;
    _Atomic int64_t next;
    target target[]; /* [ranks] */
} job;

static target read_target(const fe_heap *heap, int half, int rank) {
    const uint64_t *word = fe_link_words(heap, FE_READY, half, rank);
    return (target){.rows = fe_near(heap, rank, word[FE_AT_ROWS]),
                    .scales = fe_near(heap, rank, word[FE_AT_SCALES]),
                    .source = fe_near(heap, rank, word[FE_AT_SOURCE]),
                    .ids = fe_near(heap, rank, word[FE_AT_IDS]),
                    .weights = fe_near(heap, rank, word[FE_AT_WEIGHTS]),
                    .row_stride = (size_t)(word[FE_AT_STRIDES] >> 32),
                    .scale_stride = (size_t)(word[FE_AT_STRIDES] & 0xffffffffu)};
}

/* What a receiver learns of a row: where it came from, and for which of its experts with what weight. */
static void write_topk(const fe_route_data *route, const target *to, int64_t token, int choice) {
    const fe_shape *shape = &route->shape;
    const int32_t *home = route->table.home + token * shape->topk, *slot = route->table.slot + token * shape->topk;
    const float *weight = route->table.weights ? route->table.weights + token * shape->topk : NULL;
    int64_t at = slot[choice];
    to->source[at] = (int32_t)(shape->rank * (int64_t)shape->max_tokens + token);
    if (shape->layout != FERRY_LAYOUT_RANK) {
        float sum = 0;
        for (int k = choice; weight && k < shape->topk; k++)
            if (home[k] == home[choice]) sum += weight[k];
        if (weight) to->weights[at] = fe_f32_canonical(sum);
        return;
    }
    int rank = shape->map->home_rank[home[choice]], first = shape->map->rank_first[rank];
    for (int k = 0; k < shape->topk; k++) {
        bool here = slot[k] >= 0 && shape->map->home_rank[home[k]] == rank;
        to->ids[at * shape->topk + k] = here ? home[k] - first : -1;
        if (weight) to->weights[at * shape->topk + k] = here ? weight[k] : 0;
    }
}

/* Scales as given, word by word for any strides; `packed` is on the workbench when a copy is needed. */
static const char *pack_scales(const fe_scatter *s, int64_t token, char *packed) {
    const char *from = s->scales + token * s->scale_row;
    if (s->scale_word == 4) return from;
    for (size_t i = 0; i * 4 < s->scale_bytes; i++) memcpy(packed + i * 4, from + (int64_t)i * s->scale_word, 4);
    return packed;
}

static void send_token(job *j, int64_t token, char *bench) {
    const fe_scatter *s = j->s;
    const fe_rows *rows = j->crew->rows;
    const fe_table *table = &j->route->table;
    int topk = j->route->shape.topk, fan = table->fan[token];
    if (fan == 0) return;
    const char *row = s->rows + token * s->row_stride, *scales = NULL, *next = row + s->row_stride;
    char *scale_bench = bench + s->row_bytes;
    if (s->cast != FERRY_CAST_NONE) { /* once per token, however many places it goes to */
        rows->cast((uint8_t *)bench, scale_bench, (const uint16_t *)(const void *)row, s->columns, s->cast);
        row = bench;
        scales = scale_bench;
        next = NULL;
    } else if (s->scales) {
        scales = pack_scales(s, token, scale_bench);
    }
    if (token + 1 >= j->route->shape.tokens) next = NULL;
    for (int i = 0; i < fan; i++) {
        int choice = table->order[token * topk + i];
        int32_t home = table->home[token * topk + choice];
        const target *to = &j->target[j->route->shape.map->home_rank[home]];
        size_t at = (size_t)table->slot[token * topk + choice];
        if (j->past_cache)
            rows->stream(to->rows + at * to->row_stride, row, s->row_bytes, i == 0 ? next : NULL);
        else
            rows->copy(to->rows + at * to->row_stride, row, s->row_bytes);
        if (scales) memcpy(to->scales + at * to->scale_stride, scales, s->scale_bytes);
        if (s->topk) write_topk(j->route, to, token, choice);
    }
}

static void work(void *context, int worker, int workers) {
    (void)workers;
    job *j = context;
    int64_t tokens = j->route->shape.tokens;
    char *bench = fe_pool_bench(j->crew->pool, worker);
    for (;;) {
        int64_t from = atomic_fetch_add_explicit(&j->next, j->chunk, memory_order_relaxed);
        if (from >= tokens) break;
        int64_t to = from + j->chunk < tokens ? from + j->chunk : tokens;
        for (int64_t t = from; t < to; t++) send_token(j, t, bench);
    }
    if (j->past_cache) j->crew->rows->fence(); /* non-temporal stores, before the pool's join and the signal */
}

/* Fixed slots: how many rows each of the receiver's units gets from us, beside the rows. */
static void write_tails(const fe_heap *heap, const fe_pass *pass) {
    const fe_route_data *route = pass->route;
    const fe_shape *shape = &route->shape;
    size_t width = (size_t)shape->map->most_local;
    for (int r = 0; r < shape->ranks; r++) {
        int32_t *tail = fe_near(heap, r, pass->scatter.tails_at);
        tail += ((size_t)pass->half * (size_t)shape->ranks + (size_t)shape->rank) * width;
        int first = fe_first_unit(shape, r),
            units = shape->layout == FERRY_LAYOUT_RANK ? 1 : fe_map_local(shape->map, r);
        for (int u = 0; u < units; u++) tail[u] = route->scratch.keep[first + u];
    }
}

void fe_cpu_scatter(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    const fe_route_data *route = pass->route;
    job *j = fe_pool_own_bench(crew->pool);
    *j = (job){.crew = crew, .route = route, .s = &pass->scatter};
    j->past_cache = route->totals->sent * (int64_t)pass->scatter.row_bytes > pass->scatter.stream_bytes;
    for (int r = 0; r < heap->ranks; r++) j->target[r] = read_target(heap, pass->half, r);
    j->chunk = fe_chunk_of(crew->pool, route->shape.tokens, CHUNK);
    fe_pool_run(crew->pool, work, j, (route->shape.tokens + j->chunk - 1) / j->chunk);
    if (fe_slots_fixed(&route->shape)) write_tails(heap, pass);
}
