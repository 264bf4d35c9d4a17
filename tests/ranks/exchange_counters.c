/* The counters after an exchange test: what the oracle counts, times the rounds. */
#include "ranks/exchange.h"

static bool same(exchange *x, const char *name, int of, uint64_t got, int64_t wanted) {
    return got == (uint64_t)wanted ||
           X_FAIL(x, "counters: %s[%d] is %llu, not %lld", name, of, (unsigned long long)got, (long long)wanted);
}

/* After an overflow there are none. */
static int64_t rounds_of(const exchange *x) {
    return !x->c->drop && oracle_dropped(x->d->oracle[0]) > 0 ? 0 : x->c->rounds;
}

static bool check_peers(exchange *x, const ferry_counters *k) {
    const oracle *o = x->d->oracle[0];
    const int64_t rounds = rounds_of(x), row = (int64_t)(oracle_row_bytes(o) + oracle_scale_bytes(o));
    const int64_t back = (int64_t)case_back_bytes(x->c);
    int64_t dropped = 0;
    for (int r = 0; r < x->c->ranks; r++) {
        const ferry_peer_counters *p = &k->peers[r];
        int64_t sent = rounds * x->me->rank_rows[r], received = rounds * x->me->source_rows[r];
        if (!same(x, "rows_sent", r, p->rows_sent, sent) || !same(x, "bytes_sent", r, p->bytes_sent, sent * row) ||
            !same(x, "rows_received", r, p->rows_received, received) ||
            !same(x, "bytes_received", r, p->bytes_received, received * row) ||
            !same(x, "rows_returned", r, p->rows_returned, sent) ||
            !same(x, "bytes_returned", r, p->bytes_returned, sent * back))
            return false;
        if (p->wait_ns && !p->waits) return X_FAIL(x, "counters: waited for rank %d, but never", r);
        dropped += (int64_t)p->rows_dropped;
    }
    return ranks_device() != FERRY_CPU || same(x, "rows_dropped, all", 0, (uint64_t)dropped, rounds * x->me->dropped);
}

static bool check_experts(exchange *x, const ferry_counters *k) {
    bool by_rank = x->c->layout == FERRY_LAYOUT_RANK, told = false;
    if (by_rank && oracle_dropped(x->d->oracle[0]) > 0) return true; /* those that were left out count there */
    for (int e = 0; e < k->local_experts; e++) told = told || k->expert_rows[e];
    if (!told && by_rank && x->c->mode == FERRY_LATENCY) return true; /* no counts were exchanged */
    for (int e = 0; e < k->local_experts; e++)
        if (!same(x, "expert_rows", e, k->expert_rows[e], rounds_of(x) * x->me->expert_rows[e])) return false;
    return true;
}

bool exchange_check_counters(exchange *x) {
    ferry_counters k = FERRY_COUNTERS_INIT;
    X_OK(x, ferry_group_counters(x->group, &k));
    bool good = same(x, "ranks", 0, (uint64_t)k.ranks, x->c->ranks) && same(x, "routes", 0, k.routes, 1) &&
                same(x, "local_experts", 0, (uint64_t)k.local_experts, x->me->local_experts) &&
                same(x, "dispatches", 0, k.dispatches, rounds_of(x)) &&
                same(x, "combines", 0, k.combines, rounds_of(x));
    if (!good) return false;
    if (ranks_device() != FERRY_CPU && x->c->mode == FERRY_LATENCY) return true; /* its counts are the GPU's */
    return check_peers(x, &k) && check_experts(x, &k);
}
