/* Dispatch to other hosts: a token's row crosses the network once for each host, to this rank's column there. */
#include "cpu/far.h"

static uint64_t outbox_of(const fe_pack *p, int host) {
    return p->far->boxes->outbox[p->pass->half] + (uint64_t)host * p->far->boxes->box_bytes;
}
static uint64_t landing_of(const fe_pack *p) {
    return p->far->boxes->landing[p->pass->half] + (uint64_t)p->far->hosts->mine * p->far->boxes->box_bytes;
}

void fe_cpu_tail(const fe_route_data *route, int rank, int32_t *tail) {
    const fe_shape *shape = &route->shape;
    int first = fe_first_unit(shape, rank),
        units = shape->layout == FERRY_LAYOUT_RANK ? 1 : fe_map_local(shape->map, rank);
    for (int u = 0; u < units; u++) tail[u] = route->scratch.keep[first + u];
}

void fe_cpu_pack_open(fe_pack *p, const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    const fe_shape *shape = &pass->route->shape;
    *p = (fe_pack){.far = &pass->route->far, .crew = crew, .pass = pass, .epoch = pass->signal.epoch};
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
        char *to =
            fe_near(heap, heap->rank, outbox_of(p, h) + p->far->boxes->tail_bytes + (uint64_t)number * p->stride);
        fe_record_write(&route->shape, &route->table, p->far, h, token, (fe_record *)(void *)to);
        p->crew->rows->copy(to + p->far->header, row, s->row_bytes);
        if (scales) memcpy(to + p->far->header + s->row_bytes, scales, s->scale_bytes);
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

ferry_status fe_cpu_push_records(const fe_pack *p, int64_t from, int64_t to) {
    bool tails = fe_slots_fixed(&p->pass->route->shape);
    for (int i = 1; i < p->far->hosts->count; i++) {
        int h = (p->far->hosts->mine + i) % p->far->hosts->count;
        int64_t first = 0, count = count_records(p, h, from, to, &first);
        if (!count) continue;
        uint64_t begin = p->far->boxes->tail_bytes + (uint64_t)first * p->stride,
                 end = begin + (uint64_t)count * p->stride;
        if (tails && first == 0) begin = 0; /* the counts come with the first records */
        FE_TRY(fe_far_push(p->crew->engine->far, h, FE_LANDED, p->pass->half, outbox_of(p, h) + begin,
                           landing_of(p) + begin, end - begin));
    }
    return FERRY_OK;
}

ferry_status fe_cpu_pack_close(const fe_pack *p) {
    bool tails = fe_slots_fixed(&p->pass->route->shape);
    for (int h = 0; h < p->far->hosts->count; h++) {
        if (h == p->far->hosts->mine) continue;
        uint64_t word[FE_CELL_WORDS] = {[FE_LANDED_RECORDS] = (uint64_t)p->far->records[h],
                                        [FE_LANDED_STRIDE] = p->stride,
                                        [FE_LANDED_HEADER] = p->far->header};
        if (tails && !p->far->records[h])
            FE_TRY(fe_far_push(p->crew->engine->far, h, FE_LANDED, p->pass->half, outbox_of(p, h), landing_of(p),
                               p->far->boxes->tail_bytes));
        FE_TRY(fe_far_tell(p->crew->engine->far, h, FE_LANDED, p->pass->half, p->epoch, word, 0, 0));
    }
    return FERRY_OK;
}
