/* What is only there with several hosts: bytes on the wire, and the rate of bare writes. */
#include "base/os.h"
#include "bench.h"
#include "group/group.h"

enum { PIECE = 1 << 20, PIECES = 64, ROUNDS = 5 };

static double bytes_sent(const fe_lane *lane) {
    const fe_engine *e = &lane->group->engine;
    double bytes = 0;
    for (int r = 0; r < e->heap.ranks; r++)
        if (!fe_heap_near(&e->heap, r)) bytes += (double)fe_far_bytes(e->far, r);
    return bytes;
}

static bool count_bytes(fe_lane *lane) {
    ferry_dispatch_out out;
    if (!fe_rank_barrier(lane->self)) return false;
    double before = bytes_sent(lane);
    if (!fe_lane_dispatch(lane, &out, lane->bench->o.deliver_topk) || !fe_lane_sync(lane)) return false;
    if (!fe_rank_barrier(lane->self)) return false;
    lane->bench->shared->wire_bytes[lane->self->rank] = bytes_sent(lane) - before;
    return fe_rank_barrier(lane->self);
}

/* Out of the outbox into the landing of the partner on the next host: where a dispatch's rows go. All of it has arrived when the
 * partner has answered for it. */
static bool write_once(fe_lane *lane) {
    fe_engine *e = &lane->group->engine;
    const fe_hosts *hosts = &e->heap.hosts;
    const fe_boxes *boxes = &lane->group->body.boxes;
    int host = (hosts->mine + 1) % hosts->count, rank = fe_hosts_rank(hosts, host, hosts->index);
    uint64_t from = boxes->outbox[0] + (uint64_t)host * boxes->box_bytes;
    uint64_t to = boxes->landing[0] + (uint64_t)hosts->mine * boxes->box_bytes;
    size_t room = boxes->box_bytes / PIECE;
    if (!fe_rank_barrier(lane->self)) return false;
    int64_t start = fe_now_ns();
    for (size_t i = 0; i < PIECES; i++)
        FE_RANK_OK(lane->self, fe_far_put_own(e->far, rank, to + i % room * PIECE, from + i % room * PIECE, PIECE));
    FE_RANK_OK(lane->self, fe_far_quiet(e->far));
    lane->bench->shared->wire_us[lane->self->rank] = (double)(fe_now_ns() - start) / 1e3;
    return fe_rank_barrier(lane->self);
}

/* As of a step: the slowest rank's. */
static double slowest(const fe_lane *lane) {
    double most = 0;
    for (int r = 0; r < lane->group->engine.heap.ranks; r++)
        if (lane->bench->shared->wire_us[r] > most) most = lane->bench->shared->wire_us[r];
    return most;
}

bool fe_far_measure(fe_lane *lane) {
    fe_bench_shared *s = lane->bench->shared;
    double us[ROUNDS];
    if (!count_bytes(lane)) return false;
    if (lane->group->body.boxes.box_bytes < PIECE) return true; /* a landing too small to write so much to: no rate */
    for (int i = 0; i < ROUNDS; i++) {
        if (!write_once(lane)) return false;
        us[i] = slowest(lane);
    }
    if (lane->self->rank == 0) s->wire_rate = (double)PIECE * PIECES / fe_bench_quantile(us, ROUNDS, 0.5) * 1e6;
    return fe_rank_barrier(lane->self);
}
