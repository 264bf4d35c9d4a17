/* One rank of a bench: makes the group, takes its part in every measurement, leaves. */
#include "base/os.h"
#include "bench.h"
#include <stdlib.h>

static void fill_rank(fe_bench *b, int rank) {
    const oracle_tokens *of = &b->tokens[rank];
    uint8_t *rows = (uint8_t *)of->rows;
    float *scales = (float *)(void *)of->scales;
    for (int t = 0; t < of->tokens; t++)
        fe_draw_row(b->in_pool, rank, t, (size_t)b->o.hidden, rows + (size_t)t * b->in_bytes);
    for (size_t i = 0; i < (size_t)of->tokens * b->in_scale_bytes / 4; i++)
        scales[i] = (float)(fe_mix(i) % 1000 + 1) / 1000.0f;
}

/* Its own; those of other processes that share no memory with this one only to check with. */
static void fill_inputs(fe_lane *lane) {
    fe_bench *b = lane->bench;
    for (int r = 0; r < b->o.ranks; r++)
        if (r == lane->self->rank || (b->launched && b->o.check)) fill_rank(b, r);
}

static void describe_inputs(fe_lane *lane) {
    fe_bench *b = lane->bench;
    const oracle_tokens *mine = &b->tokens[lane->self->rank];
    ferry_dtype dtype = b->fp8 && !b->o.cast ? FERRY_E4M3 : FERRY_BF16;
    lane->topk_idx = mine->topk_idx;
    lane->topk_weights = mine->topk_weights;
    lane->in = FERRY_DISPATCH_IN_INIT;
    lane->in.rows = ferry_tensor_2d((void *)mine->rows, dtype, mine->tokens, b->o.hidden);
    if (b->in_scale_bytes)
        lane->in.scales =
            ferry_tensor_2d((void *)mine->scales, FERRY_FP32, mine->tokens, (int64_t)b->in_scale_bytes / 4);
    lane->result = FERRY_COMBINE_OUT_INIT;
    lane->result.rows = ferry_tensor_2d(lane->result_rows, FERRY_BF16, mine->tokens, b->o.hidden);
}

bool fe_lane_new_route(fe_lane *lane, ferry_route **route) {
    fe_bench *b = lane->bench;
    const oracle_tokens *mine = &b->tokens[lane->self->rank];
    ferry_route_config cfg = FERRY_ROUTE_CONFIG_INIT;
    cfg.topk_idx = ferry_tensor_2d((void *)lane->topk_idx, FERRY_INT64, mine->tokens, b->o.topk);
    cfg.topk_weights = ferry_tensor_2d((void *)lane->topk_weights, FERRY_FP32, mine->tokens, b->o.topk);
    cfg.layout = b->layout;
    cfg.mode = b->mode;
    FE_RANK_OK(lane->self, ferry_route_create(lane->group, &cfg, route, lane->stream));
    return true;
}

bool fe_lane_dispatch(fe_lane *lane, ferry_dispatch_out *out, bool topk) {
    ferry_dispatch_options options = FERRY_DISPATCH_OPTIONS_INIT;
    options.cast = lane->bench->o.cast ? FERRY_CAST_E4M3 : FERRY_CAST_NONE;
    options.skip_topk = !topk;
    *out = lane->out;
    FE_RANK_OK(lane->self, ferry_dispatch(lane->route, &lane->in, out, &options, lane->stream));
    return true;
}

void fe_lane_draw_back(const fe_lane *lane, int64_t slot, void *row) {
    fe_draw_row(lane->bench->back_pool, lane->self->rank, slot, (size_t)lane->bench->o.hidden, row);
}

bool fe_lane_sync(fe_lane *lane) {
    if (lane->stream) FE_RANK_OK(lane->self, ferry_stream_sync(lane->stream));
    return true;
}

bool fe_lane_back(fe_lane *lane, ferry_combine_in *in) {
    fe_bench *b = lane->bench;
    int rank = lane->self->rank, i = 0;
    *in = FERRY_COMBINE_IN_INIT;
    FE_RANK_OK(lane->self, ferry_combine_buffer(lane->route, FERRY_BF16, b->o.hidden, &in->rows, NULL));
    if (!b->zero_copy) in->rows.data = lane->own_back;
    while (i < 4 && lane->filled[i] && lane->filled[i] != in->rows.data) i++;
    if (i == 4) return fe_rank_fail(lane->self, "ferry_combine_buffer gave a fifth buffer");
    if (lane->filled[i]) return true;
    lane->filled[i] = in->rows.data;
    if (b->gpu) return fe_gpu_fill_back(lane, &in->rows);
    const oracle_rank *mine = oracle_rank_of(b->plan, rank);
    for (int64_t n = 0; n < mine->received; n++) {
        int64_t slot = mine->row[n].slot;
        fe_lane_draw_back(lane, slot, (char *)in->rows.data + (size_t)slot * b->back_bytes);
    }
    return true;
}

bool fe_lane_combine(fe_lane *lane, const ferry_combine_in *in) {
    ferry_combine_options options = FERRY_COMBINE_OPTIONS_INIT;
    options.weighted = lane->bench->weighted;
    ferry_combine_out out = lane->result;
    FE_RANK_OK(lane->self, ferry_combine(lane->route, in, &out, &options, lane->stream));
    return true;
}

/* On a GPU a round's combine takes the buffer that was there before: to ask for the next one is to wait for one under way. */
bool fe_lane_step(fe_lane *lane, fe_measure m, ferry_combine_in *in, ferry_route **made) {
    ferry_dispatch_out out;
    bool topk = lane->bench->o.deliver_topk;
    switch (m) {
    case FE_M_ROUTE: return fe_lane_new_route(lane, made);
    case FE_M_DISPATCH: return fe_lane_dispatch(lane, &out, topk);
    case FE_M_COMBINE: return fe_lane_combine(lane, in);
    case FE_M_ROUND:
        return fe_lane_dispatch(lane, &out, topk) && (lane->bench->gpu || fe_lane_back(lane, in)) &&
               fe_lane_combine(lane, in);
    case FE_M_BARRIER: return fe_rank_ok(lane->self, ferry_barrier(lane->group, lane->stream), "ferry_barrier");
    default: fe_floor_run(lane->floor, m); return true;
    }
}

/* One step after a barrier; its time in this rank goes to *us. */
static bool timed(fe_lane *lane, fe_measure m, double *us) {
    ferry_combine_in in;
    ferry_route *made = NULL;
    if (lane->bench->gpu) return fe_gpu_timed(lane, m, us);
    if (m == FE_M_COMBINE && !fe_lane_back(lane, &in)) return false;
    if (!fe_rank_barrier(lane->self)) return false;
    int64_t start = fe_now_ns();
    bool good = fe_lane_step(lane, m, &in, &made);
    *us = (double)(fe_now_ns() - start) / 1000;
    ferry_route_destroy(made);
    return good;
}

/* Measurements take turns in blocks, so that a noisy moment of the machine falls on Ferry and on its floors alike. The first
 * step of a block is not counted: it finds the caches full of the block before. */
static bool measure_all(fe_lane *lane) {
    fe_bench *b = lane->bench;
    int iters = b->o.iters, done = 0, measures = b->gpu ? FE_M_FLOOR_MEMCPY : FE_M_COUNT;
    double dropped;
    for (int block = 0; block < FE_BENCH_BLOCKS; block++) {
        int from = iters * block / FE_BENCH_BLOCKS, to = iters * (block + 1) / FE_BENCH_BLOCKS;
        for (int m = 0; m < measures; m++, done++) {
            double *us = b->shared->us + ((size_t)m * (size_t)b->o.ranks + (size_t)lane->self->rank) * (size_t)iters;
            int warm = from == 0 ? b->o.warmup : 1;
            for (int i = from < to ? from - warm : to; i < to; i++)
                if (!timed(lane, (fe_measure)m, i < from ? &dropped : &us[i])) return false;
            fe_rank_progress(lane->self, done + 1, FE_BENCH_BLOCKS * measures);
        }
    }
    return true;
}

/* The time that a word takes from rank 0 to rank 1 and back through shared memory: what no exchange can do without. */
static bool measure_flag(fe_lane *lane) {
    fe_bench_shared *s = lane->bench->shared;
    enum { TRIPS = 100, SAMPLES = 50 };
    double sample[SAMPLES];
    if (lane->self->ranks < 2 || lane->self->launched) return true;
    if (!fe_rank_barrier(lane->self)) return false;
    for (uint32_t n = 1; lane->self->rank < 2 && n <= TRIPS * SAMPLES;) {
        int64_t start = fe_now_ns();
        for (int i = 0; i < TRIPS; i++, n++) {
            _Atomic uint32_t *mine = lane->self->rank == 0 ? &s->pong : &s->ping;
            if (lane->self->rank == 0) atomic_store_explicit(&s->ping, n, memory_order_release);
            for (int turn = 0; atomic_load_explicit(mine, memory_order_acquire) != n; turn++)
                if (!fe_rank_still(lane->self, turn)) return false;
            if (lane->self->rank == 1) atomic_store_explicit(&s->pong, n, memory_order_release);
        }
        sample[n / TRIPS - 1] = (double)(fe_now_ns() - start) / 1000 / TRIPS;
    }
    if (lane->self->rank == 0) s->flag_rtt_us = fe_bench_quantile(sample, SAMPLES, 0.5);
    return fe_rank_barrier(lane->self);
}

static bool open_group(fe_lane *lane) {
    fe_bench *b = lane->bench;
    ferry_group_config cfg = FERRY_GROUP_CONFIG_INIT;
    cfg.device = b->gpu ? FERRY_CUDA : FERRY_CPU;
    cfg.sms = b->o.sms;
    /* A GPU's memory is taken when the group is made; eight worst cases of EXPERT would not fit. */
    if (b->gpu && b->mode == FERRY_THROUGHPUT) cfg.max_recv_rows = b->slots > 0 ? b->slots : 1;
    cfg.experts = b->o.experts;
    cfg.hidden = b->o.hidden;
    cfg.max_tokens = b->max_tokens;
    cfg.max_topk = b->o.topk;
    cfg.dtype = FERRY_BF16;
    cfg.layouts = b->layout;
    cfg.timeout_ms = b->o.timeout_s * 1000;
    cfg.threads = b->threads;
    return fe_rank_group(lane->self, &cfg, &lane->group);
}

/* The caller's own tensors, outside the heap; mapped rather than allocated, as SLOTS takes its worst case. */
static bool open_own(fe_lane *lane) {
    fe_bench *b = lane->bench;
    ferry_route_info info = FERRY_ROUTE_INFO_INIT;
    lane->out = FERRY_DISPATCH_OUT_INIT;
    if (b->zero_copy) return true;
    FE_RANK_OK(lane->self, ferry_route_get_info(lane->route, &info));
    lane->own_rows_bytes = (size_t)info.rows * b->row_bytes + 1;
    lane->own_back_bytes = (size_t)info.rows * b->back_bytes + 1;
    lane->own_rows = b->gpu ? fe_gpu_new(lane, lane->own_rows_bytes) : fe_shared_new(lane->own_rows_bytes);
    lane->own_back = b->gpu ? fe_gpu_new(lane, lane->own_back_bytes) : fe_shared_new(lane->own_back_bytes);
    if (!lane->own_rows || !lane->own_back)
        return fe_rank_fail(lane->self, "no room to map %lld rows", (long long)info.rows);
    ferry_dtype dtype = b->fp8 ? FERRY_E4M3 : FERRY_BF16;
    lane->out.rows = ferry_tensor_2d(lane->own_rows, dtype, info.rows, b->o.hidden);
    if (b->layout != FERRY_LAYOUT_SLOTS) return true;
    lane->out.rows.ndim = 3;
    lane->out.rows.shape[0] = info.local_experts;
    lane->out.rows.shape[1] = info.local_experts ? info.rows / info.local_experts : 0;
    lane->out.rows.shape[2] = b->o.hidden;
    return true;
}

static bool run(fe_lane *lane) {
    fe_bench *b = lane->bench;
    lane->result_rows = fe_shared_new((size_t)b->max_tokens * b->back_bytes);
    if (!lane->result_rows) return fe_rank_fail(lane->self, "no room to map the result");
    fill_inputs(lane);
    describe_inputs(lane);
    if (!open_group(lane) || (b->gpu && !fe_gpu_open(lane))) return false;
    if (!fe_lane_new_route(lane, &lane->route) || !open_own(lane)) return false;
    if (!b->gpu) lane->floor = fe_floor_new(lane);
    if (!b->gpu && !lane->floor) return fe_rank_fail(lane->self, "no memory for the floors");
    ferry_dispatch_out out;
    if (!fe_lane_dispatch(lane, &out, false) || !fe_lane_sync(lane))
        return false;                               /* combine wants one before it in LATENCY mode */
    if (!fe_rank_barrier(lane->self)) return false; /* from here on all inputs are filled */
    if (b->o.check && !fe_bench_check(lane)) return false;
    if (b->hosts > 1 && !fe_far_measure(lane)) return false;
    if (!(b->gpu ? fe_gpu_measure_copy(lane) : measure_flag(lane)) || !measure_all(lane)) return false;
    return !b->o.check || fe_bench_check(lane);
}

/* What each rank measured and found, to all: whoever prints shares no memory with the others. */
static bool share(fe_lane *lane) {
    fe_bench *b = lane->bench;
    size_t row = sizeof(double) * (size_t)b->o.iters;
    bool good = fe_bench_count(lane) && fe_rank_gather(lane->self, b->shared->check, sizeof b->shared->check[0]) &&
                fe_rank_gather(lane->self, b->shared->counted, sizeof b->shared->counted[0]);
    for (int m = 0; good && m < FE_M_COUNT; m++)
        good = fe_rank_gather(lane->self, b->shared->us + (size_t)m * (size_t)b->o.ranks * (size_t)b->o.iters, row);
    return good;
}

bool fe_bench_lane(fe_rank *self) {
    fe_lane lane = {.bench = self->arg, .self = self};
    bool good = run(&lane) && share(&lane);
    if (!good && lane.group) ferry_group_abort(lane.group); /* the others need not wait for the deadline */
    fe_floor_free(lane.floor);
    ferry_route_destroy(lane.route);
    ferry_group_destroy(lane.group);
    if (lane.bench->gpu) fe_gpu_close(&lane);
    if (!lane.bench->gpu) fe_shared_free(lane.own_rows, lane.own_rows_bytes);
    if (!lane.bench->gpu) fe_shared_free(lane.own_back, lane.own_back_bytes);
    fe_shared_free(lane.result_rows, (size_t)lane.bench->max_tokens * lane.bench->back_bytes);
    return good;
}
