/* A token on its way to another host: what the rank there needs to hand its row on, and to sum what comes back. Records of one rank for
 * one host are numbered by token, and lie `stride` bytes apart: header, row as it travels, scales. */
#ifndef FERRY_ROUTE_RECORD_H
#define FERRY_ROUTE_RECORD_H

#include "heap/hosts.h"
#include "route/route.h"

typedef struct
    fe_record { /* the header; then order[topk] bytes, and home, slot and (with weights) weight, [topk] words each */
    int32_t token, fan;
} fe_record;
#define FE_RECORD_MOST (sizeof(fe_record) + 13 * FERRY_MAX_TOPK + 16) /* bytes of a header */

/* What a route knows of other hosts; hosts NULL: there are none. Arrays [hosts] have an unused place for this rank's own. */
typedef struct fe_far_route {
    const fe_hosts *hosts;
    const struct fe_boxes *boxes; /* where records and sums lie in the heap (group/body.h) */
    int64_t most_rows;            /* slots of a receive buffer: no record may name a higher one */
    size_t header;                /* bytes */
    int32_t *record;              /* [hosts][tokens] number of the token's record for that host; -1: it has none */
    int32_t *records;             /* [hosts] */
    char *kept;          /* [hosts][max_tokens] headers that came from this rank's column: combine sums by them */
    int32_t *kept_count; /* [hosts]; -1: nothing was dispatched yet */
    int32_t *came;       /* [hosts] records of the dispatch that is being handed on: those of the parts so far */
} fe_far_route;

/* Where hosts have one rank each, the gateway is the receiver, and in RANK a rank's rows for it are one block: they may go there at once. */
FE_PURE bool fe_record_may_go_straight(const fe_far_route *far, const fe_shape *shape) {
    return far->hosts->each == 1 && shape->layout == FERRY_LAYOUT_RANK;
}
FE_PURE size_t fe_record_order_bytes(int topk) {
    return ((size_t)topk + 3) / 4 * 4;
}
/* Rows behind it stay aligned to 16 bytes. */
FE_PURE size_t fe_record_header(int topk, bool weights) {
    size_t bytes = sizeof(fe_record) + fe_record_order_bytes(topk) + (size_t)topk * (weights ? 12 : 8);
    return (bytes + 15) / 16 * 16;
}
FE_PURE size_t fe_record_stride(size_t header, size_t row_bytes, size_t scale_bytes) {
    return (header + row_bytes + scale_bytes + 15) / 16 * 16;
}
FE_PURE uint8_t *fe_record_order(const fe_record *r) {
    return (uint8_t *)(uintptr_t)(r + 1);
}
FE_PURE int32_t *fe_record_home(const fe_record *r, int topk) {
    return (int32_t *)(void *)(fe_record_order(r) + fe_record_order_bytes(topk));
}
FE_PURE int32_t *fe_record_slot(const fe_record *r, int topk) {
    return fe_record_home(r, topk) + topk;
}
FE_PURE float *fe_record_weight(const fe_record *r, int topk) {
    return (float *)(void *)(fe_record_slot(r, topk) + topk);
}
FE_PURE const fe_record *fe_record_kept(const fe_far_route *f, int max_tokens, int host, int64_t number) {
    return (const fe_record *)(const void *)(f->kept +
                                             ((size_t)host * (size_t)max_tokens + (size_t)number) * f->header);
}

/* Numbers the records, from slots that are placed. */
void fe_route_records(const fe_shape *shape, const fe_table *table, const fe_far_route *far);

FE_PURE int fe_record_host(const fe_map *map, const fe_hosts *hosts, int32_t home) {
    return hosts->host_of[map->home_rank[home]];
}

/* Writes a header, of the token's choices those on `host`: by `count` workers together, of which this is number `index`. map, hosts: the
 * device's. */
FE_PURE void fe_record_write(const fe_map *map, const fe_hosts *hosts, const fe_table *table, int topk, int host,
                             int64_t token, fe_record *r, int index, int count) {
    const int32_t *home = table->home + token * topk, *slot = table->slot + token * topk;
    const uint8_t *order = table->order + token * topk;
    int32_t *home_to = fe_record_home(r, topk), *slot_to = fe_record_slot(r, topk);
    if (index == 0) {
        r->token = (int32_t)token;
        r->fan = 0;
        for (int i = 0; i < table->fan[token]; i++)
            if (fe_record_host(map, hosts, home[order[i]]) == host) fe_record_order(r)[r->fan++] = order[i];
    }
    for (int k = index; k < topk; k += count) {
        bool there = slot[k] >= 0 && fe_record_host(map, hosts, home[k]) == host;
        home_to[k] = there ? home[k] : -1;
        slot_to[k] = there ? slot[k] : -1;
        if (table->weights) fe_record_weight(r, topk)[k] = table->weights[token * topk + k];
    }
}

/* Of a header from the network: choices are choices, homes are on this rank's host, slots are in their buffers. */
FE_PURE bool fe_record_sound(const fe_shape *shape, const fe_map *map, const fe_hosts *hosts, int64_t most_rows,
                             const fe_record *r) {
    int topk = shape->topk;
    const int32_t *home = fe_record_home(r, topk), *slot = fe_record_slot(r, topk);
    if (r->token < 0 || r->token >= shape->max_tokens || r->fan < 0 || r->fan > topk) return false;
    for (int k = 0; k < topk; k++) {
        if (slot[k] < 0 && home[k] < 0) continue;
        if (home[k] < 0 || home[k] >= map->homes || slot[k] < 0 || slot[k] >= most_rows) return false;
        if (fe_record_host(map, hosts, home[k]) != hosts->mine) return false;
    }
    for (int i = 0; i < r->fan; i++)
        if (fe_record_order(r)[i] >= topk || slot[fe_record_order(r)[i]] < 0) return false;
    return true;
}

#endif
