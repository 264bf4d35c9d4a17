/* Dispatch to other hosts: a token's row crosses the network once for each host, to this rank's column there. */
#include "cpu/far.h"

#define STRAIGHT_LEAST 262144 /* bytes of rows: below, a write of headers more costs more than the copy that it saves */

static uint64_t outbox_of(const fe_pack *p, int host) {
    return p->far->boxes->outbox[p->pass->half] + (uint64_t)host * p->far->boxes->box_bytes;
}
static uint64_t landing_of(const fe_pack *p) {
    return fe_cpu_landing(p->far, p->pass->half, p->far->hosts->mine);
}

void fe_cpu_tail(const fe_route_data *route, int rank, int32_t *tail) {
    const fe_shape *shape = &route->shape;
    int first = fe_first_unit(shape, rank),
        units = shape->layout == FERRY_LAYOUT_RANK ? 1 : fe_map_local(shape->map, rank);
    for (int u = 0; u < units; u++) tail[u] = route->scratch.keep[first + u];
}

/* Large blocks do, and the landing gets only the headers. The receiver goes by what the note says. */
static bool goes_straight(const fe_pack *p, int host) {
    return fe_record_may_go_straight(p->far, &p->pass->route->shape) &&
           (size_t)p->far->records[host] * p->pass->scatter.row_bytes >= STRAIGHT_LEAST;
}

/* In the box then: all headers, all rows, all scales. */
static uint64_t straight_rows(const fe_pack *p, int host) {
    return p->far->boxes->tail_bytes +
           (uint64_t)fe_align((int64_t)((size_t)p->far->records[host] * p->far->header), 64);
}
static uint64_t straight_scales(const fe_pack *p, int host) {
    size_t rows = (size_t)p->far->records[host] * p->pass->scatter.row_bytes;
    return straight_rows(p, host) + (uint64_t)fe_align((int64_t)rows, 64);
}

void fe_cpu_pack_open(fe_pack *p, const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    const fe_shape *shape = &pass->route->shape;
    *p = (fe_pack){
        .far = &pass->route->far, .crew = crew, .pass = pass, .epoch = pass->signal.epoch, .part = pass->part};
    p->stride = fe_record_stride(p->far->header, pass->scatter.row_bytes, pass->scatter.scale_bytes);
    if (!fe_slots_fixed(shape)) return;
    size_t width = (size_t)shape->map->most_local;
    for (int h = 0; h < p->far->hosts->count; h++)
        for (int i = 0; h != p->far->hosts->mine && i < p->far->hosts->each; i++) {
            int32_t *tail = fe_near(heap, heap->rank, outbox_of(p, h));
            fe_cpu_tail(pass->route, fe_hosts_rank(p->far->hosts, h, i), tail + (size_t)i * width);
        }
}

void fe_cpu_pack(const fe_pack *p, int64_t token, const char *row, const char *scales) {
    const fe_heap *heap = &p->crew->engine->heap;
    const fe_route_data *route = p->pass->route;
    const fe_scatter *s = &p->pass->scatter;
    for (int h = 0; h < p->far->hosts->count; h++) {
        int32_t number = p->far->record[(size_t)h * (size_t)route->shape.tokens + (size_t)token];
        if (number < 0 || h == p->far->hosts->mine) continue;
        char *box = fe_near(heap, heap->rank, outbox_of(p, h)), *to = box + p->far->boxes->tail_bytes;
        bool straight = goes_straight(p, h);
        to += (size_t)number * (straight ? p->far->header : p->stride);
        char *row_to = straight ? box + straight_rows(p, h) + (size_t)number * s->row_bytes : to + p->far->header;
        char *scales_to =
            straight ? box + straight_scales(p, h) + (size_t)number * s->scale_bytes : row_to + s->row_bytes;
        fe_record_write(route->shape.map, p->far->hosts, &route->table, route->shape.topk, h, token,
                        (fe_record *)(void *)to, 0, 1);
        p->crew->rows->copy(row_to, row, s->row_bytes);
        if (scales) memcpy(scales_to, scales, s->scale_bytes);
    }
}

/* Records of tokens [from, to) for the host; the first one's number in *first. */
static int64_t count_records(const fe_pack *p, int host, int64_t from, int64_t to, int64_t *first) {
    const int32_t *record = p->far->record + (size_t)host * (size_t)p->pass->route->shape.tokens;
    int64_t count = 0;
    for (int64_t t = from; t < to; t++) {
        if (record[t] < 0) continue;
        if (count++ == 0) *first = record[t];
    }
    return count;
}

static fe_kind landed(const fe_pack *p) {
    return (fe_kind)(FE_LANDED + p->part.index);
}

static ferry_status push_straight(const fe_pack *p, int host, int64_t first, int64_t count) {
    const fe_heap *heap = &p->crew->engine->heap;
    const fe_scatter *s = &p->pass->scatter;
    fe_far *net = p->crew->engine->far;
    int rank = fe_hosts_rank(p->far->hosts, host, 0);
    const uint64_t *ready = fe_link_words(heap, FE_READY, p->pass->half, rank);
    uint64_t slot = (uint64_t)p->pass->route->scratch.base[rank] + (uint64_t)first, n = (uint64_t)count;
    FE_TRY(fe_far_push(net, host, FE_LANDED, p->pass->half,
                       outbox_of(p, host) + straight_rows(p, host) + (uint64_t)first * s->row_bytes,
                       ready[FE_AT_ROWS] + slot * s->row_bytes, n * s->row_bytes));
    if (!s->scale_bytes) return FERRY_OK;
    return fe_far_push(net, host, FE_LANDED, p->pass->half,
                       outbox_of(p, host) + straight_scales(p, host) + (uint64_t)first * s->scale_bytes,
                       ready[FE_AT_SCALES] + slot * s->scale_bytes, n * s->scale_bytes);
}

ferry_status fe_cpu_push_records(const fe_pack *p, int64_t from, int64_t to) {
    bool tails = fe_slots_fixed(&p->pass->route->shape);
    for (int i = 1; i < p->far->hosts->count; i++) {
        int h = (p->far->hosts->mine + i) % p->far->hosts->count;
        int64_t first = 0, count = count_records(p, h, from, to, &first);
        if (!count) continue;
        if (goes_straight(p, h)) {
            FE_TRY(push_straight(p, h, first, count));
            continue;
        }
        uint64_t begin = p->far->boxes->tail_bytes + (uint64_t)first * p->stride,
                 end = begin + (uint64_t)count * p->stride;
        if (tails && first == 0) begin = 0; /* the counts come with the first records */
        FE_TRY(fe_far_push(p->crew->engine->far, h, landed(p), p->pass->half, outbox_of(p, h) + begin,
                           landing_of(p) + begin, end - begin));
    }
    return FERRY_OK;
}

ferry_status fe_cpu_pack_close(const fe_pack *p) {
    bool tails = fe_slots_fixed(&p->pass->route->shape);
    int64_t tokens = p->pass->route->shape.tokens, first = 0;
    for (int h = 0; h < p->far->hosts->count; h++) {
        if (h == p->far->hosts->mine) continue;
        int64_t records = count_records(p, h, fe_part_from(p->part, tokens), fe_part_to(p->part, tokens), &first);
        uint64_t word[FE_CELL_WORDS] = {[FE_LANDED_RECORDS] = (uint64_t)records,
                                        [FE_LANDED_STRIDE] = p->stride,
                                        [FE_LANDED_HEADER] = p->far->header,
                                        [FE_LANDED_STRAIGHT] = goes_straight(p, h)};
        if (goes_straight(p, h))
            FE_TRY(fe_far_push(p->crew->engine->far, h, FE_LANDED, p->pass->half, outbox_of(p, h), landing_of(p),
                               straight_rows(p, h)));
        if (tails && !p->far->records[h] && fe_part_last(p->part))
            FE_TRY(fe_far_push(p->crew->engine->far, h, landed(p), p->pass->half, outbox_of(p, h), landing_of(p),
                               p->far->boxes->tail_bytes));
        FE_TRY(fe_far_tell(p->crew->engine->far, h, landed(p), p->pass->half, p->epoch, word, 0, 0));
    }
    return FERRY_OK;
}
