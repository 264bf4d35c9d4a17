/* Where one near receiver wants its rows, and what it learns of each. */
#ifndef FERRY_CPU_TARGET_H
#define FERRY_CPU_TARGET_H

#include "base/num.h"
#include "cpu/cpu.h"

typedef struct fe_target {
    char *rows, *scales;
    int32_t *source, *ids;
    float *weights;
    size_t row_stride, scale_stride;
    int64_t room; /* of fan-out: slots that there are */
} fe_target;

static inline fe_target fe_target_read(const fe_heap *heap, const fe_pass *pass, int rank) {
    const uint64_t *word = fe_link_words(heap, FE_READY, pass->half, rank);
    return (fe_target){.rows = fe_near(heap, rank, word[FE_AT_ROWS]),
                       .scales = fe_near(heap, rank, word[FE_AT_SCALES]),
                       .source = fe_near(heap, rank, pass->scatter.source_at),
                       .ids = fe_near(heap, rank, word[FE_AT_IDS]),
                       .weights = fe_near(heap, rank, word[FE_AT_WEIGHTS]),
                       .row_stride = (size_t)(word[FE_AT_STRIDES] >> 32),
                       .scale_stride = (size_t)(word[FE_AT_STRIDES] & 0xffffffffu)};
}

/* One token's choices, wherever they come from: this rank's table, or a record of another host's. */
typedef struct fe_choices {
    int source; /* rank */
    int64_t token;
    const int32_t *home, *slot;
    const float *weight; /* NULL: the route has none */
} fe_choices;

/* What a receiver learns of a row: where it came from, and for which of its experts with what weight. */
static inline void fe_target_tell(const fe_shape *shape, const fe_target *to, const fe_choices *c, int choice) {
    int64_t at = c->slot[choice];
    to->source[at] = (int32_t)(c->source * (int64_t)shape->max_tokens + c->token);
    if (shape->layout != FERRY_LAYOUT_RANK) {
        float sum = 0;
        for (int k = choice; c->weight && k < shape->topk; k++)
            if (c->home[k] == c->home[choice]) sum += c->weight[k];
        if (c->weight) to->weights[at] = fe_f32_canonical(sum);
        return;
    }
    int rank = shape->map->home_rank[c->home[choice]], first = shape->map->rank_first[rank];
    for (int k = 0; k < shape->topk; k++) {
        bool here = c->slot[k] >= 0 && shape->map->home_rank[c->home[k]] == rank;
        to->ids[at * shape->topk + k] = here ? c->home[k] - first : -1;
        if (c->weight) to->weights[at * shape->topk + k] = here ? c->weight[k] : 0;
    }
}

#endif
