/* What lies in the heap's body: where counts, received rows and returned rows have their place. The same on every rank. Of everything
 * that two steps in flight would share there are two halves. */
#ifndef FERRY_GROUP_BODY_H
#define FERRY_GROUP_BODY_H

#include "route/map.h"

/* Offsets from the beginning of the heap, once fe_body_move has added the body's. */
/* What crosses to and from other hosts: for each of them a box, in this order of hosts (this rank's own is unused and never touched). */
typedef struct fe_boxes {
    size_t outbox[2],
        landing[2]; /* tail counts, then records (route/record.h): from this rank, for this rank to hand on */
    size_t sums_out[2], sums_in[2];       /* combine: summed rows, then the weights that they bring back */
    size_t weights_out[2], weights_in[2]; /* combine: an owner's weights */
    size_t tail_bytes, box_bytes, sum_weights_at, sum_bytes, weight_bytes;
} fe_boxes;

typedef struct fe_body {
    size_t counts; /* [2][ranks][fe_counts_length] int32 */
    size_t tails;  /* [2][ranks][most_local] int32: row counts that come with the rows, where slots are fixed */
    struct fe_receive {
        size_t rows, scales, source, ids, weights;
    } receive[2];
    struct fe_return {
        size_t rows, weights;
    } back[2];
    fe_boxes boxes;     /* several hosts */
    size_t bytes;       /* of the body */
    size_t small_bytes; /* of what comes first: touched whole */
    size_t boxes_at;    /* then, from a page's beginning, boxes */
    size_t post_bytes;  /* with them: what other hosts write, or hear of */
    size_t row_bytes;   /* the widest row */
    size_t scale_bytes; /* the most scales of a row */
    int64_t rows;       /* that each half holds */
} fe_body;

/* From a config that fe_config_check has accepted. FERRY_INVALID when it needs more than an address space. */
ferry_status fe_body_lay_out(const ferry_group_config *cfg, const fe_map *map, int hosts, fe_body *body);
void fe_body_move(fe_body *body, size_t by);

#endif
