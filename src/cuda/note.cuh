/* Words with an order, notes, bounded waits: the acts of a pass around its move. The protocol is docs/protocol.md's; what is written
 * sequentially consistent there for the sake of sleepers is a release and an acquire here, since a kernel never sleeps. */
#ifndef FERRY_CUDA_NOTE_CUH
#define FERRY_CUDA_NOTE_CUH

#include "cuda/cuda.h"

#define FE_DEVICE static __device__ __forceinline__
#define FE_COLD \
    static inline __device__ __noinline__ /* what most passes have no use for: not among their instructions */
#define FE_WARP 32
#define FE_ALL  0xffffffffu

/* ---- words ---- */

FE_DEVICE uint64_t fe_acquire(const uint64_t *word) {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}
FE_DEVICE void fe_release(uint64_t *word, uint64_t value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}
FE_DEVICE uint32_t fe_acquire32(const uint32_t *word) {
    uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}
FE_DEVICE void fe_release32(uint32_t *word, uint32_t value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
/* By blocks of one GPU; the value before. */
FE_DEVICE uint32_t fe_add_acq_rel(uint32_t *word, uint32_t add) {
    uint32_t before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(word), "r"(add) : "memory");
    return before;
}
/* Nanoseconds of a clock that all blocks share; its steps are about a microsecond. */
FE_DEVICE uint64_t fe_device_ns(void) {
    uint64_t now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}
FE_DEVICE int fe_lane(void) {
    return (int)(threadIdx.x % FE_WARP);
}

/* First of all in a kernel: what comes before on the stream is done, and seen. */
FE_DEVICE void fe_after_stream(void) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* ---- reports ---- */

/* One thread: whoever broke the rank may still be writing why, and the host, which may be waiting for this launch, is to find it. */
FE_COLD void fe_await_told(const fe_cuda_args &a) {
    const volatile uint32_t *fatal = &a.world.report->fatal;
    for (uint64_t start = fe_device_ns(); !*fatal && fe_device_ns() - start < 1000000000;) {
    }
}

/* The first failure of the rank is told, and stops its later passes. True in the one thread that may tell. Whoever comes second goes on when
 * that is told: its kernel's end is what the host looks for the report at. */
FE_DEVICE bool fe_break(const fe_cuda_args &a) {
    if (fe_lane() != __ffs((int)__activemask()) - 1) return false; /* of one warp's, which would wait for each other */
    if (atomicExch(&a.world.own->broken, 1u) == 0) return true;
    fe_await_told(a);
    return false;
}

/* Kernels count the steps of a half; a sentence names them as the host counts, both halves together, from 1. */
FE_DEVICE uint64_t fe_whole_epoch(const fe_cuda_args &a, uint64_t epoch) {
    return epoch ? 2 * epoch - (uint64_t)a.pass.half : 0;
}

FE_COLD void fe_tell_fatal(const fe_cuda_args &a, ferry_status status, uint64_t epoch) {
    fe_cuda_report *r = a.world.report;
#pragma unroll 1
    for (int i = 0; i < (int)sizeof r->step; i++) r->step[i] = a.pass.step[i];
    r->epoch = fe_whole_epoch(a, epoch);
    r->explain = a.pass.explain;
    __threadfence_system();
    *(volatile uint32_t *)&r->fatal = (uint32_t)status;
    __threadfence_system();
}

/* One thread; what the status wants said is there already. */
FE_DEVICE fe_cuda_soft *fe_soft(const fe_cuda_args &a) {
    return &a.world.report->soft[a.awaited];
}
FE_DEVICE void fe_tell_soft(const fe_cuda_args &a, ferry_status status) {
    fe_cuda_soft *soft = fe_soft(a);
    soft->launch = a.number;
    __threadfence_system();
    *(volatile uint32_t *)&soft->status = (uint32_t)status;
    __threadfence_system();
}

/* One thread: what a rank of another host says makes no sense. */
FE_DEVICE void fe_refuse(const fe_cuda_args &a, int rank) {
    if (!fe_break(a)) return;
    a.world.report->other = rank;
    fe_tell_fatal(a, FERRY_SYSTEM, 0);
}

/* ---- notes ---- */

FE_DEVICE bool fe_near(const fe_cuda_world &w, int rank) {
    return !w.far || fe_hosts_near(&w.hosts, rank);
}
/* [ranks] of a post. */
FE_DEVICE fe_cell *fe_cells_in(const fe_cuda_world &w, char *post, int kind, int half) {
    return (fe_cell *)post + (kind * 2 + half) * w.ranks;
}
/* This rank's own; without a look at a table. */
FE_DEVICE fe_cell *fe_cells_here(const fe_cuda_world &w, int kind, int half) {
    return fe_cells_in(w, w.here, kind, half);
}
/* Where this rank is heard by another, or, on another host's behalf, `source` is. */
FE_DEVICE fe_cell *fe_cell_of(const fe_cuda_world &w, int owner, int kind, int half, int source) {
    return fe_cells_in(w, w.post[owner], kind, half) + source;
}

FE_DEVICE bool fe_masked(const fe_cuda_world &w, int rank) {
    return w.masked[rank / 32] >> rank % 32 & 1;
}
/* Does its note come to this rank? */
FE_COLD bool fe_hears_of(const fe_cuda_world &w, fe_kind kind, int source) {
    return !fe_masked(w, source) && fe_hosts_hear(&w.hosts, kind, source);
}
FE_DEVICE bool fe_hears(const fe_cuda_world &w, fe_kind kind, int source) {
    return w.plain || fe_hears_of(w, kind, source);
}
/* Ranks whose memory steps read and write. */
FE_DEVICE bool fe_reaches(const fe_cuda_world &w, int rank) {
    return w.plain || (!fe_masked(w, rank) && fe_near(w, rank));
}

/* One thread, now and then in a wait: is it over, and why? *start, 0 at first: when the wait was first asked about. */
FE_COLD bool fe_give_up(const fe_cuda_args &a, uint64_t *start, ferry_status *why, uint64_t timeout_ns) {
    uint64_t now = fe_device_ns();
    if (*start == 0) {
        *start = now;
        *(volatile uint32_t *)a.world.waiting = 1; /* who waits is not to blame for being late */
    }
    *why = FERRY_TIMEOUT;
    if (now - *start > timeout_ns) return true;
    *why = FERRY_ABORTED;
    return a.world.aborted && *(const volatile uint32_t *)a.world.aborted;
}

/* ---- to other hosts ---- */

/* One thread: an order for the proxy. What it speaks of was stored, and counted, before. Blocks of a rank take turns by a counter in the
 * GPU's memory; where the ring is full they wait, bounded like every wait. */
FE_COLD void fe_give_order(const fe_cuda_args &a, const fe_kernel_order &order) {
    unsigned long long at = atomicAdd(&a.world.own->orders, 1ull);
    fe_kernel_order *slot = &a.world.orders[at % FE_KERNEL_ORDERS];
    uint32_t turn = fe_kernel_turn(at);
    uint64_t start = 0;
    ferry_status why = FERRY_OK;
    for (uint32_t look = 1; fe_acquire32(&slot->turn) != turn; look++) {
        if (look % 64 != 0 || !fe_give_up(a, &start, &why, a.world.timeout_ns)) continue;
        if (why != FERRY_ABORTED)
            fe_refuse(a, -1);
        else if (fe_break(a))
            fe_tell_fatal(a, why, 0);
        return;
    }
    if (start) *(volatile uint32_t *)a.world.waiting = 0;
    slot->host = order.host;
    slot->kind = order.kind;
    slot->half = order.half;
    slot->bytes = order.bytes;
    slot->local = order.local;
    slot->remote = order.remote;
    slot->epoch = order.epoch;
    for (int i = 0; i < FE_CELL_WORDS; i++) slot->word[i] = order.word[i];
    slot->relay_bytes = order.relay_bytes;
    __threadfence_system(); /* and what other threads of the block stored, which this one has met */
    fe_release32(&slot->turn, turn + 1);
}

/* One thread: bytes for the column on a host. */
FE_COLD void fe_push(const fe_cuda_args &a, int host, fe_kind kind, uint64_t local, uint64_t remote, uint64_t bytes) {
    fe_kernel_order order = {};
    order.host = host;
    order.kind = kind;
    order.half = a.pass.half;
    order.local = local;
    order.remote = remote;
    order.bytes = bytes;
    if (bytes) fe_give_order(a, order);
}

/* One thread: a note for the column on a host, -1: on all others; with what the pass pushes. */
FE_COLD void fe_tell_far(const fe_cuda_args &a, int host, fe_kind kind, const uint64_t *word, uint64_t epoch) {
    fe_kernel_order order = {};
    order.host = host;
    order.kind = kind;
    order.half = a.pass.half;
    order.epoch = fe_whole_epoch(a, epoch);
    for (int i = 0; i < FE_CELL_WORDS; i++) order.word[i] = word[i];
    if (kind == FE_COUNTS || kind == FE_MEET) {
        order.bytes = a.push.bytes;
        order.local = a.push.local;
        order.remote = a.push.remote;
        order.relay_bytes = a.push.relay ? a.push.bytes : 0;
    }
    fe_give_order(a, order);
}

/* ---- saying and hearing ---- */

/* One whole warp: to every rank, other hosts first, since that takes longest. What was stored before, and counted, is visible to who
 * hears. Cells hold the epoch as the host counts, both halves together. */
FE_DEVICE void fe_say(const fe_cuda_args &a, const fe_note &note, uint64_t epoch) {
    const fe_cuda_world &w = a.world;
    if (w.far && fe_reach_of(note.kind) != FE_REACH_NEAR && fe_lane() == 0)
        fe_tell_far(a, -1, note.kind, note.word, epoch);
#pragma unroll 1
    for (int i = fe_lane(); i < w.ranks; i += FE_WARP) { /* starting behind oneself spreads the stores over owners */
        int owner = w.rank + 1 + i - (w.rank + 1 + i < w.ranks ? 0 : w.ranks);
        if (!fe_reaches(w, owner)) continue;
        fe_cell *cell = fe_cell_of(w, owner, note.kind, note.half, w.rank);
        for (int k = 0; k < FE_CELL_WORDS; k++) cell->word[k] = note.word[k];
        fe_release(&cell->epoch, fe_whole_epoch(a, epoch));
    }
    __syncwarp();
}

/* One thread: who had come how far when the wait was given up. */
FE_COLD void fe_tell_late(const fe_cuda_args &a, const fe_await &await, ferry_status why, uint64_t epoch) {
    const fe_cuda_world &w = a.world;
    if (!fe_break(a)) return;
#pragma unroll 1
    for (int r = 0; r < w.ranks; r++)
        w.report->seen[r] =
            fe_hears(w, await.kind, r) ? fe_acquire(&fe_cells_here(w, await.kind, await.half)[r].epoch) : ~(uint64_t)0;
    fe_tell_fatal(a, why, epoch);
}

/* One whole warp: until every rank's cell has reached the epoch. False: it was not, and the host has been told. */
FE_DEVICE bool fe_hear(const fe_cuda_args &a, const fe_await &await, uint64_t epoch) {
    const fe_cuda_world &w = a.world;
    const fe_cell *cell = fe_cells_here(w, await.kind, await.half);
    uint64_t start = 0, whole = fe_whole_epoch(a, epoch);
    for (uint32_t turn = 1;; turn++) {
        bool here = true;
#pragma unroll 1
        for (int r = fe_lane(); r < w.ranks; r += FE_WARP)
            if (fe_hears(w, await.kind, r)) here = here && fe_acquire(&cell[r].epoch) >= whole;
        if (__all_sync(FE_ALL, here)) break;
        if (turn % 256 != 0) continue; /* the clock, and even more the host's word, cost more than a look at a cell */
        ferry_status why = FERRY_OK;
        int stop = fe_lane() == 0 && fe_give_up(a, &start, &why, w.timeout_ns);
        if (!__shfl_sync(FE_ALL, stop, 0)) continue;
        if (fe_lane() == 0) fe_tell_late(a, await, why, epoch);
        return false;
    }
    if (start) *(volatile uint32_t *)w.waiting = 0;
    __syncwarp(); /* what lane r acquired, all lanes may read */
    return true;
}

/* One thread: whose words, and which. */
FE_COLD void fe_tell_unlike(const fe_cuda_args &a, const fe_await &await, int other, uint64_t epoch) {
    const fe_cuda_world &w = a.world;
    if (!a.pass.lenient && !fe_break(a)) return;
    w.report->other = other;
    for (int k = 0; k < FE_CELL_WORDS; k++) {
        w.report->ours[k] = await.word[k];
        w.report->theirs[k] = fe_cells_here(w, await.kind, await.half)[other].word[k];
    }
    if (a.pass.lenient)
        fe_tell_soft(a, FERRY_MISMATCH);
    else
        fe_tell_fatal(a, FERRY_MISMATCH, epoch);
}

/* One whole warp, after fe_hear: do the words that must be equal agree? False: they do not, and the host has been told. */
FE_DEVICE bool fe_agree(const fe_cuda_args &a, const fe_await &await, uint64_t epoch) {
    const fe_cuda_world &w = a.world;
    int other = w.ranks;
#pragma unroll 1
    for (int r = fe_lane(); await.same && r < w.ranks; r += FE_WARP) {
        if (!fe_hears(w, await.kind, r) || (w.far && !fe_hosts_read(&w.hosts, await.kind, r))) continue;
        const fe_cell *cell = fe_cells_here(w, await.kind, await.half) + r;
        for (int k = 0; k < FE_CELL_WORDS; k++)
            if ((await.same >> k & 1) && cell->word[k] != await.word[k] && r < other) other = r;
    }
    other = __reduce_min_sync(FE_ALL, other);
    if (other == w.ranks) return true;
    if (fe_lane() == 0) fe_tell_unlike(a, await, other, epoch);
    return false;
}

/* ---- what came with the rows ---- */

FE_DEVICE int fe_units_here(const fe_cuda_args &a) {
    return a.route.shape.layout == FERRY_LAYOUT_RANK ? 1 : fe_map_local(&a.world.map, a.route.shape.rank);
}

/* By `count` threads, of which this is number `index`. Fixed slots: the counts came with the rows, the same at every dispatch of the
 * route. */
FE_DEVICE void fe_read_tails(const fe_cuda_args &a, int index, int count) {
    const fe_shape &s = a.route.shape;
    const int32_t *tails = (const int32_t *)(a.world.here + a.pass.deliver.tails_at);
    int width = a.world.map.most_local, blocks = fe_units_here(a) * s.ranks;
#pragma unroll 1
    for (int i = index; i < blocks; i += count) {
        int unit = i / s.ranks, source = i % s.ranks;
        a.route.blocks.counts[i] = tails[((size_t)a.pass.half * s.ranks + source) * width + unit];
        a.route.blocks.starts[i] = source * s.max_tokens;
    }
}

/* Each thread what it has read itself. */
FE_DEVICE void fe_write_counts(const fe_cuda_args &a, int index, int count) {
    const fe_deliver &d = a.pass.deliver;
    int blocks = fe_units_here(a) * a.route.shape.ranks;
#pragma unroll 1
    for (int i = index; i < blocks; i += count) {
        if (d.counts_to) d.counts_to[i] = a.route.blocks.counts[i];
        if (d.starts_to) d.starts_to[i] = a.route.blocks.starts[i];
    }
}

/* ---- the acts ---- */

/* Whole warp: the pass was put on its stream before the group last agreed on who is of it, as a graph may be. That breaks the rank. */
FE_COLD void fe_outlived(const fe_cuda_args &a) {
    if (fe_lane() == 0 && fe_break(a)) fe_tell_fatal(a, FERRY_INVALID, 0);
    __syncwarp();
}

/* Whole warp: the others go on without this rank, which was held up. What it would read, and the places that it would write to, may be in
 * use for something else. */
FE_COLD void fe_stand_back(const fe_cuda_args &a) {
    if (fe_lane() == 0 && fe_break(a)) fe_tell_fatal(a, FERRY_ABORTED, 0);
    __syncwarp();
}

/* Whole block, first of all. False: the block has nothing to do and returns at once. *epoch is the step's. */
FE_DEVICE bool fe_open(const fe_cuda_args &a, uint64_t *epoch) {
    __shared__ int go;
    const fe_pass &p = a.pass;
    fe_after_stream();
    const fe_cuda_own *own = a.world.own; /* all four are asked for before one is looked at */
    const fe_cell *told = (const fe_cell *)a.world.here + fe_outside_cell(a.world.ranks, a.world.rank);
    uint64_t outside = a.world.far ? 0 : *(const volatile uint64_t *)&told->epoch; /* far: in host memory, and slow */
    uint64_t before = *(const volatile uint64_t *)&own->epoch[a.tide][p.half],
             era = *(const volatile uint64_t *)&own->era;
    uint32_t broken = *(const volatile uint32_t *)&own->broken;
    *epoch = before + (uint64_t)a.begins;
    if (threadIdx.x < FE_WARP) {
        bool good = !broken && era == a.world.era && !outside;
        if (!broken && outside)
            fe_stand_back(a);
        else if (!broken && !good)
            fe_outlived(a);
        if (broken && threadIdx.x == 0) fe_await_told(a);
        if (good && p.announce.used && blockIdx.x == 0) fe_say(a, p.announce, *epoch);
        if (good && p.await.used) {
            uint64_t until = p.await.kind == FE_COUNTED ? *epoch - 1 : *epoch;
            good = fe_hear(a, p.await, until);
            good = good && fe_agree(a, p.await, until); /* every block: none moves a row that is not understood alike */
        }
        if (threadIdx.x == 0) go = good;
    }
    __syncthreads();
    return go;
}

/* Whole block, when it is through with the move. True in the first warp of the block that comes last: what all have stored may be told.
 * Each block's one thread releases what the block's threads stored, which it has met at the barrier, and acquires what the blocks before
 * released; that goes with whatever a lane of the last one releases to other ranks. */
FE_DEVICE bool fe_last(const fe_cuda_args &a) {
    __syncthreads();
    if (threadIdx.x >= FE_WARP) return false;
    uint32_t before = 0;
    if (fe_lane() == 0) {
        if (a.world.far) __threadfence_system(); /* stores to host memory, before another block tells of them */
        if (gridDim.x > 1) before = fe_add_acq_rel(&a.world.own->done[a.ticket], 1);
    }
    if (__shfl_sync(FE_ALL, before, 0) + 1 != gridDim.x) return false;
    __syncwarp(); /* what lane 0 has acquired comes before what any lane says */
    return true;
}

/* That warp: signals and settles; the other blocks are gone by then. True in one thread, for what is to be told after. */
FE_DEVICE bool fe_settle(const fe_cuda_args &a, uint64_t epoch) {
    const fe_pass &p = a.pass;
    fe_cuda_own *own = a.world.own;
    if (p.signal.used) fe_say(a, p.signal, epoch);
    bool good = !p.settle.used || (fe_hear(a, p.settle, epoch) && fe_agree(a, p.settle, epoch));
    if (good && p.counts_last) {
        if (fe_slots_fixed(&a.route.shape)) fe_read_tails(a, fe_lane(), FE_WARP);
        fe_write_counts(a, fe_lane(), FE_WARP);
    }
    if (fe_lane() != 0) return false;
    if (gridDim.x > 1) own->done[a.ticket] = 0;
    if (a.begins && (good || p.lenient)) own->epoch[a.tide][p.half] = epoch;
    return true;
}

/* Whole block, last of all. */
FE_DEVICE bool fe_close(const fe_cuda_args &a, uint64_t epoch) {
    return fe_last(a) && fe_settle(a, epoch);
}

#endif
