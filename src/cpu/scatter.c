/* Dispatch, sending side: each row is read once and written once to each of its places, straight into the receivers' heaps. */
#include "cpu/far.h"

#define CHUNK 16 /* most tokens a worker takes at a time: small enough to even out unequal fans */
#define NET_MOST \
    262144 /* bytes for one host that a worker takes at a time: a write over the network that is still in its cache, ... */
#define NET_LEAST \
    65536 /* ... and at least so many, where there are: smaller writes cost the network more than they carry */

typedef struct job {
    const fe_crew *crew;
    const fe_route_data *route;
    const fe_scatter *s;
    bool past_cache;
    int64_t chunk, end; /* tokens a worker takes at a time, and up to which */
    fe_pack pack;       /* what goes to other hosts */
    _Atomic int64_t next;
    _Atomic int failed; /* a ferry_status, of a push */
    fe_target target[]; /* [ranks]; of far ones unused */
} job;

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
    const fe_choices choices = {.source = j->route->shape.rank,
                                .token = token,
                                .home = table->home + token * topk,
                                .slot = table->slot + token * topk,
                                .weight = table->weights ? table->weights + token * topk : NULL};
    if (j->pack.far) fe_cpu_pack(&j->pack, token, row, scales);
    for (int i = 0; i < fan; i++) {
        int choice = table->order[token * topk + i];
        int rank = j->route->shape.map->home_rank[table->home[token * topk + choice]];
        const fe_target *to = &j->target[rank];
        if (j->pack.far && !fe_heap_near(&j->crew->engine->heap, rank)) continue;
        size_t at = (size_t)table->slot[token * topk + choice];
        if (j->past_cache)
            rows->stream(to->rows + at * to->row_stride, row, s->row_bytes, i == 0 ? next : NULL);
        else
            rows->copy(to->rows + at * to->row_stride, row, s->row_bytes);
        if (scales) memcpy(to->scales + at * to->scale_stride, scales, s->scale_bytes);
        if (s->topk) fe_target_tell(&j->route->shape, to, &choices, choice);
    }
}

/* A rank that was stopped, and finds that the others go on without it, writes no more than it has begun. */
static bool is_masked(const job *j) {
    const fe_heap *heap = &j->crew->engine->heap;
    return fe_heap_why(heap, heap->rank) == FE_MASKED;
}

static void work(void *context, int worker, int workers) {
    (void)workers;
    job *j = context;
    char *bench = fe_pool_bench(j->crew->pool, worker);
    for (;;) {
        int64_t from = atomic_fetch_add_explicit(&j->next, j->chunk, memory_order_relaxed);
        if (from >= j->end || is_masked(j)) break;
        int64_t to = from + j->chunk < j->end ? from + j->chunk : j->end;
        for (int64_t t = from; t < to; t++) send_token(j, t, bench);
        ferry_status status = j->pack.far ? fe_cpu_push_records(&j->pack, from, to) : FERRY_OK;
        if (status == FERRY_OK) continue;
        atomic_store(&j->failed, (int)status);
        break;
    }
    if (j->past_cache) j->crew->rows->fence(); /* non-temporal stores, before the pool's join and the signal */
}

/* Fixed slots: how many rows each of the receiver's units gets from us, beside the rows. */
static void write_tails(const fe_heap *heap, const fe_pass *pass) {
    const fe_shape *shape = &pass->route->shape;
    size_t width = (size_t)shape->map->most_local;
    for (int r = 0; r < shape->ranks; r++) {
        if (!fe_heap_reaches(heap, r)) continue;
        int32_t *tail = fe_near(heap, r, pass->scatter.tails_at);
        fe_cpu_tail(pass->route, r, tail + ((size_t)pass->half * (size_t)shape->ranks + (size_t)shape->rank) * width);
    }
}

static int64_t tokens_at_a_time(const job *j, int64_t tokens) {
    if (!j->pack.far) return fe_chunk_of(j->crew->pool, tokens, CHUNK);
    int64_t most = NET_MOST / (int64_t)j->pack.stride, least = NET_LEAST / (int64_t)j->pack.stride;
    int64_t chunk = fe_chunk_of(j->crew->pool, tokens, most > 1 ? most : 1);
    return chunk < least ? least : chunk;
}

static ferry_status send_part(job *j, const fe_pass *pass, fe_part part) {
    int64_t tokens = j->route->shape.tokens, from = fe_part_from(part, tokens);
    j->end = fe_part_to(part, tokens);
    j->chunk = tokens_at_a_time(j, j->end - from);
    j->pack.part = part;
    atomic_store(&j->next, from);
    fe_pool_run(j->crew->pool, work, j, (j->end - from + j->chunk - 1) / j->chunk);
    if (!j->pack.far) return FERRY_OK;
    ferry_status failed = (ferry_status)atomic_load(&j->failed);
    if (failed != FERRY_OK)
        return fe_fail(failed, "rank %d: %s could not hand its rows to the network", j->crew->engine->heap.rank,
                       pass->step);
    return fe_cpu_pack_close(&j->pack);
}

ferry_status fe_cpu_scatter(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    const fe_route_data *route = pass->route;
    job *j = fe_pool_own_bench(crew->pool);
    *j = (job){.crew = crew, .route = route, .s = &pass->scatter};
    j->past_cache = route->totals->sent * (int64_t)pass->scatter.row_bytes > pass->scatter.stream_bytes;
    for (int r = 0; r < heap->ranks; r++)
        if (fe_heap_reaches(heap, r)) j->target[r] = fe_target_read(heap, pass, r);
    if (crew->engine->far) fe_cpu_pack_open(&j->pack, crew, pass);
    if (fe_slots_fixed(&route->shape)) write_tails(heap, pass);
    for (fe_part part = pass->part; part.index < fe_part_count(part); part.index++) FE_TRY(send_part(j, pass, part));
    return FERRY_OK;
}
