/* Routes: top-k to counts, counts to every rank, counts of all to slots. The layout's arithmetic is route/lay.h, the same as on the CPU;
 * what is done here is to find each row's index among the rows of its unit, in token order, with many threads.
 *
 * Warps take runs of consecutive tokens, a lane to a token, 32 at a time. Each warp counts its rows per bin in shared memory; sums
 * over the warps and blocks before it say where its rows begin. Inside 32 tokens, a mask of the lanes that send to a unit
 * says how many come before. Between count and place, go[i] = {rank, choice that stands for the place}. */
#include "cuda/launch.cuh"
#include "cuda/note.cuh"
#include "route/lay.h"

#define WARPS_MOST 8

typedef struct span { /* of tokens, of a warp */
    int from, to;
} span;

FE_DEVICE span span_of_warp(const fe_shape &s) {
    int warps = (int)(blockDim.x / FE_WARP), all = warps * (int)gridDim.x;
    int per = (s.tokens + all - 1) / all;
    per = (per + FE_WARP - 1) / FE_WARP * FE_WARP;
    int64_t from = ((int64_t)blockIdx.x * warps + threadIdx.x / FE_WARP) * per;
    span of = {(int)fe_least(from, s.tokens), (int)fe_least(from + per, s.tokens)};
    return of;
}

/* ---- count ---- */

FE_DEVICE int64_t index_at(const ferry_tensor &idx, int64_t token, int64_t k) {
    int64_t at = token * idx.strides[0] + k * idx.strides[1];
    return idx.dtype == FERRY_INT32 ? ((const int32_t *)idx.data)[at] : ((const int64_t *)idx.data)[at];
}

/* A place more for the token: with `ascending` ranks stay so (insertion: a token goes to few). */
FE_DEVICE void add_place(fe_cuda_place *go, int fan, int rank, int choice, bool ascending) {
    int at = fan;
    for (; ascending && at > 0 && go[at - 1].rank > rank; at--) go[at] = go[at - 1];
    go[at].rank = rank;
    go[at].slot = choice;
}

/* A rank is met again: its row is summed where this choice stands. */
FE_DEVICE void move_to_end(fe_cuda_place *go, int fan, int rank) {
    int i = 0;
    while (go[i].rank != rank) i++;
    fe_cuda_place place = go[i];
    for (; i + 1 < fan; i++) go[i] = go[i + 1];
    go[i] = place;
}

FE_DEVICE void count_token(const fe_cuda_args &a, int64_t token, int32_t *hist) {
    const fe_shape &s = a.route.shape;
    const fe_map &map = a.world.map;
    int32_t *home = a.route.table.home + token * s.topk;
    fe_cuda_place *at = a.extra.at + token * s.topk, *go = a.extra.go + token * s.topk;
    const ferry_tensor &w = a.route.topk_weights;
    bool by_rank = s.layout == FERRY_LAYOUT_RANK, ascending = by_rank && s.order == FERRY_ORDER_RANK;
    int fan = 0;
    for (int k = 0; k < s.topk; k++) {
        int64_t expert = index_at(a.route.topk_idx, token, k);
        bool wrong = expert < -1 || expert >= map.experts;
        if (wrong) atomicMin((unsigned long long *)a.extra.wrong, (unsigned long long)(token * FERRY_MAX_TOPK + k));
        int32_t h = expert < 0 || wrong ? -1 : fe_map_home(&map, expert, s.rank, token);
        int rank = h < 0 ? -1 : map.home_rank[h];
        bool new_rank = h >= 0, new_home = h >= 0;
        for (int j = 0; j < k && (new_rank || new_home); j++) {
            new_rank = new_rank && at[j].rank != rank;
            new_home = new_home && home[j] != h;
        }
        home[k] = h;
        at[k].rank = rank;
        at[k].slot = -1;
        if (a.route.table.weights)
            a.route.table.weights[token * s.topk + k] =
                ((const float *)w.data)[token * w.strides[0] + k * w.strides[1]];
        if (new_rank) atomicAdd(&hist[rank], 1);
        if (new_home) atomicAdd(&hist[s.ranks + h], 1);
        if (by_rank ? new_rank : new_home)
            add_place(go, fan++, rank, k, ascending);
        else if (by_rank && !ascending && h >= 0)
            move_to_end(go, fan, rank);
    }
    for (; fan < s.topk; fan++) go[fan].rank = go[fan].slot = -1;
    if (s.renormalise && a.route.table.weights)
        fe_renormalise(&s, &a.route.topk_idx, home, a.route.table.weights + token * s.topk, token);
}

namespace ferry {
__global__ void __launch_bounds__(WARPS_MOST *FE_WARP, 1) count(const __grid_constant__ fe_cuda_args a) {
    extern __shared__ int32_t shared[]; /* [warps][bins] */
    const fe_shape &s = a.route.shape;
    int bins = s.ranks + a.world.map.homes, warps = (int)(blockDim.x / FE_WARP);
    uint64_t epoch;
    if (!fe_open(a, &epoch)) return;
    for (int i = (int)threadIdx.x; i < warps * bins; i += (int)blockDim.x) shared[i] = 0;
    __syncthreads();
    span of = span_of_warp(s);
    for (int token = of.from + fe_lane(); token < of.to; token += FE_WARP)
        count_token(a, token, shared + (threadIdx.x / FE_WARP) * bins);
    __syncthreads();
    for (int u = (int)threadIdx.x; u < bins; u += (int)blockDim.x) {
        int32_t sum = 0;
        for (int v = 0; v < warps; v++) sum += shared[v * bins + u];
        a.extra.block_total[(size_t)blockIdx.x * bins + u] = sum;
    }
    if (!fe_close(a, epoch)) return;
    uint64_t wrong = *(volatile uint64_t *)a.extra.wrong;
    if (wrong == ~(uint64_t)0) return;
    fe_cuda_soft *soft = fe_soft(a);
    soft->token = (int64_t)(wrong / FERRY_MAX_TOPK);
    soft->choice = (int32_t)(wrong % FERRY_MAX_TOPK);
    soft->index = index_at(a.route.topk_idx, soft->token, soft->choice);
    fe_tell_soft(a, FERRY_INVALID);
}
} // namespace ferry

/* ---- spread ---- */

FE_DEVICE int32_t total_of(const fe_cuda_args &a, int bin, int blocks) {
    int bins = a.route.shape.ranks + a.world.map.homes;
    int32_t sum = 0;
    for (int b = 0; b < blocks; b++) sum += a.extra.block_total[(size_t)b * bins + bin];
    return *(volatile uint64_t *)a.extra.wrong == ~(uint64_t)0 ? sum : 0;
}

FE_DEVICE char *counts_of(const fe_cuda_args &a, int owner, int source) {
    size_t length = fe_counts_length(&a.world.map);
    return a.world.post[owner] + a.route.counts_at +
           ((size_t)a.pass.half * a.world.ranks + source) * length * sizeof(int32_t);
}

namespace ferry {
__global__ void __launch_bounds__(256, 1) spread(const __grid_constant__ fe_cuda_args a, int count_blocks) {
    const fe_shape &s = a.route.shape;
    int length = (int)fe_counts_length(&a.world.map);
    uint64_t epoch;
    if (!fe_open(a, &epoch)) return;
    for (int i = (int)threadIdx.x; i < length; i += (int)blockDim.x) {
        int32_t value = i == FE_COUNT_TOKENS ? s.tokens : 0;
        if (i >= FE_COUNT_HEADER) value = total_of(a, i - FE_COUNT_HEADER, count_blocks);
        for (int r = (int)blockIdx.x; r < s.ranks; r += (int)gridDim.x)
            if (fe_reaches(a.world, r)) ((int32_t *)counts_of(a, r, s.rank))[i] = value;
    }
    fe_close(a, epoch);
}
} // namespace ferry

/* ---- place ---- */

typedef struct verdict { /* of a block on the route; the same in every block */
    fe_totals totals;
    int empty; /* nothing is sent: a wrong index here, or an overflow everywhere */
} verdict;

/* Fixed slots: this rank's rows of a unit begin at a place of their own, whatever the others do. */
FE_DEVICE void lay_fixed_units(const fe_cuda_args &a, int blocks) {
    const fe_shape &s = a.route.shape;
    const fe_map &map = a.world.map;
    bool by_rank = s.layout == FERRY_LAYOUT_RANK;
    int units = by_rank ? s.ranks : map.homes;
    for (int u = (int)threadIdx.x; u < units; u += (int)blockDim.x) {
        int local = by_rank ? 0 : u - map.rank_first[map.home_rank[u]];
        a.route.scratch.base[u] = ((int64_t)local * s.ranks + s.rank) * s.max_tokens;
        a.route.scratch.keep[u] = total_of(a, by_rank ? u : s.ranks + u, blocks);
    }
}

/* A thread to a rank. All blocks find, and write, the same. */
FE_DEVICE void lay_ranks(const fe_cuda_args &a, const int32_t *all, fe_totals *of_rank) {
    for (int r = (int)threadIdx.x; r < a.world.ranks; r += (int)blockDim.x) {
        fe_scratch scratch = a.route.scratch;
        fe_blocks blocks = a.route.blocks;
        fe_totals totals = {};
        totals.overflow_rank = totals.overflow_expert = -1;
        fe_cursor c = {};
        c.shape = &a.route.shape;
        c.map = &a.world.map;
        c.all = all;
        c.scratch = &scratch;
        c.blocks = &blocks;
        c.totals = &totals;
        fe_lay_rank_with(&c, r);
        of_rank[r] = totals;
    }
}

FE_DEVICE void merge_totals(const fe_cuda_args &a, const fe_totals *of_rank, verdict *v) {
    const fe_shape &s = a.route.shape;
    v->totals = of_rank[s.rank];
    v->totals.fullest = v->totals.limit = 0;
    v->totals.overflow_rank = v->totals.overflow_expert = -1;
    for (int r = 0; r < s.ranks; r++)
        if (of_rank[r].overflow_rank >= 0)
            fe_note_overflow(&v->totals, of_rank[r].fullest, of_rank[r].limit, r, of_rank[r].overflow_expert);
}

FE_DEVICE void judge(const fe_cuda_args &a, bool exchanged, const fe_totals *of_rank, verdict *v) {
    const fe_shape &s = a.route.shape;
    bool wrong = *(volatile uint64_t *)a.extra.wrong != ~(uint64_t)0;
    if (exchanged) {
        merge_totals(a, of_rank, v);
    } else {
        v->totals.rows = fe_worst_of(&s, fe_map_local(&a.world.map, s.rank));
        v->totals.received = -1;
        v->totals.fullest = v->totals.limit = 0;
        v->totals.overflow_rank = v->totals.overflow_expert = -1;
    }
    bool overflow = v->totals.overflow_rank >= 0 && s.overflow == FERRY_OVERFLOW_ERROR;
    v->empty = wrong || overflow;
    if (overflow) v->totals.received = 0;
}

/* What only one block writes: totals and demand. sent and dropped are added to by all. */
FE_DEVICE void write_results(const fe_cuda_args &a, const verdict *v, bool exchanged, const int32_t *all) {
    const fe_shape &s = a.route.shape;
    const fe_map &map = a.world.map;
    int local = fe_map_local(&map, s.rank);
    size_t length = fe_counts_length(&map);
    if (threadIdx.x == 0) {
        fe_totals *t = a.route.totals;
        t->rows = v->totals.rows;
        t->received = v->totals.received;
        t->fullest = v->totals.fullest;
        t->limit = v->totals.limit;
        t->overflow_rank = v->totals.overflow_rank;
        t->overflow_expert = v->totals.overflow_expert;
    }
    for (int i = (int)threadIdx.x; exchanged && i < local; i += (int)blockDim.x) {
        int32_t sum = 0;
        for (int source = 0; source < s.ranks; source++)
            sum += all[(size_t)source * length + FE_COUNT_HEADER + s.ranks + map.rank_first[s.rank] + i];
        a.route.demand[i] = sum;
    }
}

/* An overflow that is an error sends nothing. One thread, when all blocks, which write the same counts, are through. */
FE_DEVICE void send_nothing(const fe_cuda_args &a) {
    const fe_shape &s = a.route.shape;
    int local = fe_map_local(&a.world.map, s.rank), units = s.layout == FERRY_LAYOUT_RANK ? s.ranks : a.world.map.homes;
    int blocks = (s.layout == FERRY_LAYOUT_RANK ? 1 : local) * s.ranks;
    for (int i = 0; i < blocks; i++) a.route.blocks.counts[i] = 0;
    for (int i = 0; i < units; i++) a.route.scratch.keep[i] = 0;
}

FE_DEVICE int unit_of(const fe_cuda_args &a, int64_t token, fe_cuda_place place) {
    const fe_shape &s = a.route.shape;
    return s.layout == FERRY_LAYOUT_RANK ? place.rank : a.route.table.home[token * s.topk + place.slot];
}

/* Choices that do not stand for their place go where the one before them that does goes. Then go is made what the moves read: places on
 * this host. Over several, records are made of the table. */
FE_DEVICE int finish_token(const fe_cuda_args &a, int64_t token, int *fan) {
    const fe_shape &s = a.route.shape;
    const int32_t *home = a.route.table.home + token * s.topk;
    fe_cuda_place *at = a.extra.at + token * s.topk, *go = a.extra.go + token * s.topk;
    bool by_rank = s.layout == FERRY_LAYOUT_RANK, far = a.world.far;
    int kept = 0, near = 0;
    for (*fan = 0; *fan < s.topk && go[*fan].slot >= 0; ++*fan) {
        int choice = go[*fan].slot;
        fe_cuda_place place = at[choice];
        if (place.slot < 0) continue;
        if (far) a.route.table.order[token * s.topk + kept] = (uint8_t)choice;
        kept++;
        if (fe_near(a.world, place.rank)) go[near++] = place;
    }
    for (int i = near; i < s.topk; i++) go[i].rank = go[i].slot = -1;
    for (int k = 0; k < s.topk; k++) {
        for (int j = 0; j < k && at[k].rank >= 0 && at[k].slot < 0; j++)
            if (at[j].slot >= 0 && (by_rank ? at[j].rank == at[k].rank : home[j] == home[k])) at[k].slot = at[j].slot;
        if (at[k].slot < 0) at[k].rank = -1;
        if (far) a.route.table.slot[token * s.topk + k] = at[k].slot;
    }
    if (far) a.route.table.fan[token] = (uint8_t)kept;
    return kept;
}

/* 32 tokens. run: rows of each unit so far, in this warp's part of the order; mask: which lanes send to it. */
FE_DEVICE void place_tokens(const fe_cuda_args &a, int64_t token, bool here, int32_t *run, uint32_t *mask,
                            int64_t *sent, int64_t *dropped) {
    const fe_shape &s = a.route.shape;
    fe_cuda_place *at = a.extra.at + token * s.topk;
    const fe_cuda_place *go = a.extra.go + token * s.topk;
    uint32_t bit = 1u << fe_lane();
    for (int i = 0; here && i < s.topk && go[i].slot >= 0; i++) atomicOr(&mask[unit_of(a, token, go[i])], bit);
    __syncwarp();
    for (int i = 0; here && i < s.topk && go[i].slot >= 0; i++) {
        int unit = unit_of(a, token, go[i]), index = run[unit] + __popc(mask[unit] & (bit - 1));
        if (index < a.route.scratch.keep[unit]) at[go[i].slot].slot = (int32_t)(a.route.scratch.base[unit] + index);
    }
    __syncwarp();
    for (int i = 0; here && i < s.topk && go[i].slot >= 0; i++) { /* the last of the unit's lanes moves it on */
        int unit = unit_of(a, token, go[i]);
        if (mask[unit] >> fe_lane() == 1) run[unit] += __popc(mask[unit]);
    }
    __syncwarp();
    for (int i = 0; here && i < s.topk && go[i].slot >= 0; i++) atomicAnd(&mask[unit_of(a, token, go[i])], ~bit);
    __syncwarp();
    int fan = 0, kept = here ? finish_token(a, token, &fan) : 0;
    *sent += kept;
    *dropped += fan - kept;
}

/* Where this block's, and then each warp's, rows of each unit begin among all of this rank's. */
FE_DEVICE void find_runs(const fe_cuda_args &a, span of, int32_t *run, int units, int first_bin) {
    const fe_shape &s = a.route.shape;
    int warps = (int)(blockDim.x / FE_WARP), bins = s.ranks + a.world.map.homes;
    int32_t *mine = run + (threadIdx.x / FE_WARP) * units;
    for (int64_t token = of.from + fe_lane(); token < of.to; token += FE_WARP) {
        const fe_cuda_place *go = a.extra.go + token * s.topk;
        for (int i = 0; i < s.topk && go[i].slot >= 0; i++) atomicAdd(&mine[unit_of(a, token, go[i])], 1);
    }
    __syncthreads();
    for (int u = (int)threadIdx.x; u < units; u += (int)blockDim.x) {
        int32_t sum = 0;
        for (int b = 0; b < (int)blockIdx.x; b++) sum += a.extra.block_total[(size_t)b * bins + first_bin + u];
        for (int v = 0; v < warps; v++) {
            int32_t own = run[v * units + u];
            run[v * units + u] = sum;
            sum += own;
        }
    }
    __syncthreads();
}

FE_DEVICE void clear_tokens(const fe_cuda_args &a, span of) {
    int64_t from = (int64_t)of.from * a.route.shape.topk, to = (int64_t)of.to * a.route.shape.topk;
    for (int64_t i = from + fe_lane(); i < to; i += FE_WARP) {
        a.extra.go[i].rank = a.extra.go[i].slot = a.extra.at[i].rank = a.extra.at[i].slot = -1;
        a.route.table.home[i] = -1;
        if (a.world.far) a.route.table.slot[i] = -1;
    }
    for (int i = of.from + fe_lane(); a.world.far && i < of.to; i += FE_WARP) a.route.table.fan[i] = 0;
}

/* Whole block. Rows of counts from other hosts: slots follow from them, so none may be more than a rank can send. */
FE_DEVICE bool counts_sound(const fe_cuda_args &a, const int32_t *all) {
    const fe_shape &s = a.route.shape;
    int length = (int)fe_counts_length(&a.world.map), liar = -1;
    for (int r = 0; r < s.ranks; r++) {
        if (fe_near(a.world, r)) continue;
        for (int i = FE_COUNT_HEADER + (int)threadIdx.x; i < length; i += (int)blockDim.x)
            if (all[(size_t)r * length + i] < 0 || all[(size_t)r * length + i] > s.max_tokens) liar = r;
    }
    if (liar >= 0) fe_refuse(a, liar);
    return !__syncthreads_or(liar >= 0);
}

namespace ferry {
__global__ void __launch_bounds__(WARPS_MOST *FE_WARP, 1) place(const __grid_constant__ fe_cuda_args a) {
    extern __shared__ int32_t shared[]; /* run[warps][units], mask[warps][units] */
    __shared__ verdict v;
    const fe_shape &s = a.route.shape;
    bool by_rank = s.layout == FERRY_LAYOUT_RANK, exchanged = fe_needs_exchange(&s);
    int units = by_rank ? s.ranks : a.world.map.homes, warps = (int)(blockDim.x / FE_WARP);
    const int32_t *all = (const int32_t *)counts_of(a, s.rank, 0);
    uint64_t epoch;
    if (!fe_open(a, &epoch)) return;
    if (a.world.far && exchanged && !counts_sound(a, all)) return;
    for (int i = (int)threadIdx.x; i < 2 * warps * units; i += (int)blockDim.x) shared[i] = 0;
    if (exchanged)
        lay_ranks(a, all, a.extra.of_rank + (size_t)blockIdx.x * s.ranks);
    else
        lay_fixed_units(a, (int)gridDim.x);
    __syncthreads();
    if (threadIdx.x == 0) judge(a, exchanged, a.extra.of_rank + (size_t)blockIdx.x * s.ranks, &v);
    __syncthreads();
    span of = span_of_warp(s);
    int64_t sent = 0, dropped = 0;
    if (v.empty) {
        clear_tokens(a, of);
    } else {
        find_runs(a, of, shared, units, by_rank ? 0 : s.ranks);
        int32_t *run = shared + (threadIdx.x / FE_WARP) * units;
        uint32_t *mask = (uint32_t *)shared + (warps + threadIdx.x / FE_WARP) * units;
        for (int first = of.from; first < of.to; first += FE_WARP)
            place_tokens(a, first + fe_lane(), first + fe_lane() < of.to, run, mask, &sent, &dropped);
    }
    if (sent) atomicAdd((unsigned long long *)&a.route.totals->sent, (unsigned long long)sent);
    if (dropped) atomicAdd((unsigned long long *)&a.route.totals->dropped, (unsigned long long)dropped);
    if (blockIdx.x == 0) write_results(a, &v, exchanged, all);
    if (!fe_close(a, epoch)) return;
    if (v.totals.overflow_rank < 0 || s.overflow != FERRY_OVERFLOW_ERROR) return;
    send_nothing(a);
    fe_soft(a)->totals = v.totals;
    fe_tell_soft(a, FERRY_OVERFLOW);
}
} // namespace ferry

/* ---- launches ---- */

/* Count and place cut the tokens alike. */
static int blocks_of(const fe_cuda_args *args, int warps) {
    int wanted = (args->route.shape.tokens + warps * FE_WARP - 1) / (warps * FE_WARP);
    return wanted < 1 ? 1 : wanted < args->blocks ? wanted : args->blocks;
}

int fe_cuda_route_warps(int bins, size_t shared_most, size_t *shared) {
    for (int warps = WARPS_MOST; warps > 0; warps /= 2) {
        *shared = 2 * (size_t)warps * (size_t)bins * sizeof(int32_t);
        if (*shared <= shared_most) return warps;
    }
    return 0;
}

cudaError_t fe_cuda_prepare_route(size_t shared) {
    const void *kernels[] = {(const void *)ferry::count, (const void *)ferry::place, (const void *)ferry::spread};
    struct cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, kernels[2]);
    for (int i = 0; i < 2 && error == cudaSuccess; i++)
        error = cudaFuncSetAttribute(kernels[i], cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    return error;
}

cudaError_t fe_cuda_launch_count(fe_cuda_args *args, cudaStream_t stream) {
    args->blocks = blocks_of(args, args->route_warps);
    cudaError_t error = cudaMemsetAsync(args->extra.wrong, 0xff, sizeof *args->extra.wrong, stream);
    if (error != cudaSuccess) return error;
    return fe_launch_pass(args, (const void *)ferry::count, args->route_warps * FE_WARP, args->route_shared, stream);
}

cudaError_t fe_cuda_launch_spread(fe_cuda_args *args, cudaStream_t stream) {
    int counted = blocks_of(args, args->route_warps), ranks = args->world.ranks;
    if (args->blocks > ranks) args->blocks = ranks;
    if (args->world.far) { /* to other hosts from this rank's own row, and there on from its column's */
        args->push.bytes = fe_counts_length(&args->world.map) * sizeof(int32_t);
        args->push.local = args->push.remote =
            args->route.counts_at + ((uint64_t)args->pass.half * ranks + args->world.rank) * args->push.bytes;
        args->push.relay = 1;
    }
    void *arguments[] = {args, &counted};
    return fe_launch(args, (const void *)ferry::spread, 256, 0, stream, arguments);
}

cudaError_t fe_cuda_launch_place(fe_cuda_args *args, cudaStream_t stream) {
    args->blocks = blocks_of(args, args->route_warps);
    cudaError_t error = cudaMemsetAsync(args->route.totals, 0, sizeof *args->route.totals, stream);
    if (error != cudaSuccess) return error;
    error = fe_launch_pass(args, (const void *)ferry::place, args->route_warps * FE_WARP, args->route_shared, stream);
    return error == cudaSuccess && args->world.far ? fe_cuda_launch_number(args, stream) : error;
}
