#include "route/tally.h"

void fe_tally_lay_out(fe_tally *t, int64_t *words, int ranks) {
    t->sent = words;
    t->dropped = words + ranks;
    t->received = words + 2 * (size_t)ranks;
    t->experts = words + 3 * (size_t)ranks;
}

void fe_tally_place(fe_tally *t, const fe_shape *s, const int32_t *keep, const int32_t *counts) {
    bool by_rank = s->layout == FERRY_LAYOUT_RANK;
    const int32_t *asked = counts ? counts + FE_COUNT_HEADER + (by_rank ? 0 : s->ranks) : NULL;
    memset(t->sent, 0, (size_t)s->ranks * sizeof *t->sent);
    memset(t->dropped, 0, (size_t)s->ranks * sizeof *t->dropped);
    for (int unit = 0; unit < fe_units(s); unit++) {
        int rank = by_rank ? unit : s->map->home_rank[unit];
        t->sent[rank] += keep[unit];
        t->dropped[rank] += asked ? asked[unit] - keep[unit] : 0;
    }
    t->placed = true;
}

void fe_tally_arrive(fe_tally *t, const fe_shape *s, const fe_blocks *blocks, const int32_t *demand) {
    bool by_rank = s->layout == FERRY_LAYOUT_RANK;
    memset(t->received, 0, (size_t)s->ranks * sizeof *t->received);
    for (int unit = 0; unit < fe_local_units(s); unit++)
        for (int source = 0; source < s->ranks; source++) {
            int32_t count = blocks->counts[(size_t)unit * (size_t)s->ranks + (size_t)source];
            t->received[source] += count;
            if (!by_rank) t->experts[unit] = (source ? t->experts[unit] : 0) + count;
        }
    for (int e = 0; by_rank && fe_needs_exchange(s) && e < fe_map_local(s->map, s->rank); e++)
        t->experts[e] = demand[e];
    t->heard = true;
}
