/* What arrived, to where it is wanted: counts and starts, padding, and copies out of the heap where the caller's tensors lie
 * elsewhere. Its mirror image too: the combine's rows into the heap. */
#include "cpu/cpu.h"

#define CHUNK 64 /* rows a worker takes at a time */

/* Calls `each` for runs of real rows [from, from + count), shared out between workers by turns. */
typedef void (*run_fn)(const void *context, int64_t from, int64_t count);

static void walk_rows(const fe_route_data *route, int worker, int workers, run_fn each, const void *context) {
    const fe_shape *shape = &route->shape;
    int64_t per_unit = shape->layout == FERRY_LAYOUT_SLOTS ? (int64_t)shape->ranks * shape->max_tokens : 0, turn = 0;
    for (int u = 0; u < fe_local_units(shape); u++) {
        for (int source = 0; source < shape->ranks; source++) {
            size_t block = (size_t)u * (size_t)shape->ranks + (size_t)source;
            int64_t start = u * per_unit + route->blocks.starts[block], count = route->blocks.counts[block];
            for (int64_t done = 0; done < count; done += CHUNK, turn++)
                if (turn % workers == worker) each(context, start + done, count - done < CHUNK ? count - done : CHUNK);
        }
    }
}

/* About how many runs there are to share out. */
static int64_t parts_of(const fe_route_data *route) {
    int64_t rows = 0, blocks = (int64_t)fe_local_units(&route->shape) * route->shape.ranks;
    for (int64_t b = 0; b < blocks; b++) rows += route->blocks.counts[b];
    return (rows + CHUNK - 1) / CHUNK;
}

/* ---- dispatch ---- */

typedef struct delivery {
    const fe_crew *crew;
    const fe_route_data *route;
    const fe_deliver *d;
    const char *rows, *scales, *source, *ids, *weights; /* where they landed */
} delivery;

static void copy_row_block(const fe_rows *rows, char *to, int64_t to_stride, const char *from, int64_t from_stride,
                           size_t bytes, int64_t count) {
    for (int64_t i = 0; i < count; i++) rows->copy(to + i * to_stride, from + i * from_stride, bytes);
}

static void copy_scales(const fe_deliver *d, const char *landed, int64_t from, int64_t count) {
    for (int64_t i = from; i < from + count; i++) {
        char *to = d->scales_to + i / d->expert_slots * d->scale_to_expert + i % d->expert_slots * d->scale_to_row;
        const char *row = landed + i * d->scale_stride;
        for (size_t w = 0; w * 4 < d->scale_bytes; w++) memcpy(to + (int64_t)w * d->scale_to_word, row + w * 4, 4);
    }
}

static void deliver_run(const void *context, int64_t from, int64_t count) {
    const delivery *j = context;
    const fe_deliver *d = j->d;
    if (d->rows_to)
        copy_row_block(j->crew->rows, d->rows_to + from * d->rows_to_stride, d->rows_to_stride,
                       j->rows + from * d->row_stride, d->row_stride, d->row_bytes, count);
    if (d->scales_to) copy_scales(d, j->scales, from, count);
    if (!d->topk) return;
    bool by_rank = j->route->shape.layout == FERRY_LAYOUT_RANK;
    size_t per_row = 4 * (by_rank ? (size_t)j->route->shape.topk : 1);
    if (d->source_to) memcpy(d->source_to + from * 4, j->source + from * 4, (size_t)count * 4);
    if (d->ids_to && by_rank)
        memcpy(d->ids_to + (size_t)from * per_row, j->ids + (size_t)from * per_row, (size_t)count * per_row);
    if (d->weights_to && j->route->table.weights)
        memcpy(d->weights_to + (size_t)from * per_row, j->weights + (size_t)from * per_row, (size_t)count * per_row);
}

static void deliver_work(void *context, int worker, int workers) {
    const delivery *j = context;
    walk_rows(j->route, worker, workers, deliver_run, j);
}

/* Fixed slots: the counts came with the rows. */
static void read_tails(const fe_heap *heap, const fe_pass *pass) {
    fe_route_data *route = pass->route;
    const fe_shape *shape = &route->shape;
    const int32_t *tails = fe_near(heap, heap->rank, pass->deliver.tails_at);
    size_t width = (size_t)shape->map->most_local, ranks = (size_t)shape->ranks;
    for (int u = 0; u < fe_local_units(shape); u++) {
        for (size_t source = 0; source < ranks; source++) {
            size_t at = (size_t)u * ranks + source;
            int32_t count = tails[((size_t)pass->half * ranks + source) * width + (size_t)u];
            int32_t start = (int32_t)source * shape->max_tokens;
            /* The same at every dispatch of the route, and the caller may be reading the table: it is written once. */
            if (route->blocks.counts[at] != count) route->blocks.counts[at] = count;
            if (route->blocks.starts[at] != start) route->blocks.starts[at] = start;
        }
    }
}

static void pad_rows(const delivery *j, int64_t from, int64_t to) {
    const fe_deliver *d = j->d;
    int32_t *source = (int32_t *)(uintptr_t)(d->source_to ? d->source_to : j->source);
    float *weights = (float *)(uintptr_t)(d->weights_to ? d->weights_to : j->weights);
    char *rows = d->rows_to ? d->rows_to : (char *)(uintptr_t)j->rows;
    int64_t stride = d->rows_to ? d->rows_to_stride : d->row_stride;
    for (int64_t i = from; i < to; i++) {
        if (d->topk) source[i] = -1;
        if (d->topk && j->route->table.weights) weights[i] = 0;
        if (d->zero_padding) memset(rows + i * stride, 0, d->row_bytes);
    }
}

/* EXPERT: the rows between one expert's last and the next one's first, and after the last. */
static void pad(const delivery *j) {
    const fe_shape *shape = &j->route->shape;
    if (shape->layout != FERRY_LAYOUT_EXPERT || !(j->d->topk || j->d->zero_padding)) return;
    const fe_blocks *blocks = &j->route->blocks;
    int64_t end = 0, rows = j->route->totals->rows;
    size_t ranks = (size_t)shape->ranks;
    for (size_t u = 0; u < (size_t)fe_local_units(shape); u++) {
        int64_t start = blocks->starts[u * ranks]; /* past a capacity there is nothing to pad */
        pad_rows(j, end, start < rows ? start : rows);
        end = blocks->starts[u * ranks + ranks - 1] + blocks->counts[u * ranks + ranks - 1];
    }
    int64_t last = fe_align(end, shape->alignment); /* in LATENCY mode `rows` is the worst case */
    pad_rows(j, end, last < rows ? last : rows);
}

void fe_cpu_deliver(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    const fe_deliver *d = &pass->deliver;
    const fe_route_data *route = pass->route;
    if (fe_slots_fixed(&route->shape)) read_tails(heap, pass);
    delivery j = {.crew = crew, .route = route, .d = d};
    j.rows = fe_near(heap, heap->rank, d->rows_at);
    j.scales = fe_near(heap, heap->rank, d->scales_at);
    j.source = fe_near(heap, heap->rank, d->source_at);
    j.ids = fe_near(heap, heap->rank, d->ids_at);
    j.weights = fe_near(heap, heap->rank, d->weights_at);
    if (d->rows_to || d->scales_to || d->source_to || d->ids_to || d->weights_to)
        fe_pool_run(crew->pool, deliver_work, &j, parts_of(route));
    pad(&j);
    size_t bytes = (size_t)fe_local_units(&route->shape) * (size_t)route->shape.ranks * sizeof(int32_t);
    if (d->counts_to) memcpy(d->counts_to, route->blocks.counts, bytes);
    if (d->starts_to) memcpy(d->starts_to, route->blocks.starts, bytes);
}

/* ---- combine ---- */

typedef struct gathering {
    const fe_crew *crew;
    const fe_route_data *route;
    const fe_gather *g;
    char *rows, *weights;
} gathering;

static void gather_run(const void *context, int64_t from, int64_t count) {
    const gathering *j = context;
    const fe_gather *g = j->g;
    if (g->rows_to)
        copy_row_block(j->crew->rows, j->rows + (size_t)from * g->row_bytes, (int64_t)g->row_bytes,
                       g->rows + from * g->row_stride, g->row_stride, g->row_bytes, count);
    if (g->weights_to)
        memcpy(j->weights + (size_t)from * g->weight_bytes, g->weights + (size_t)from * g->weight_bytes,
               (size_t)count * g->weight_bytes);
}

static void gather_work(void *context, int worker, int workers) {
    const gathering *j = context;
    walk_rows(j->route, worker, workers, gather_run, j);
}

void fe_cpu_gather(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    const fe_gather *g = &pass->gather;
    if (!g->rows_to && !g->weights_to) return;
    gathering j = {.crew = crew, .route = pass->route, .g = g};
    j.rows = fe_near(heap, heap->rank, g->rows_to);
    j.weights = fe_near(heap, heap->rank, g->weights_to);
    fe_pool_run(crew->pool, gather_work, &j, parts_of(pass->route));
}
