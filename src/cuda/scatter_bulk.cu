/* Dispatch, sending side: rows as they are, through shared memory by bulk copies. Each warp has a ring of stages; a stage holds a piece
 * of a row (and, with its first piece, the row's scales) on its way in or out. */
#include "cuda/launch.cuh"
#include "cuda/scatter.cuh"

/* Measured on an H100 (16 and 4 SMs, rows of 14336 and 7168 bytes): from two stages on the ring's shape hardly matters; whole rows are
 * best, and four warps are enough for them. */
#define WARPS      8
#define STAGES     3
#define PIECE      14336
#define RING_BYTES (176 * 1024)
#define LEAST_ROW  2048 /* below, a warp's own loads and stores are no slower */
#define OUTGOING   1    /* groups of stores that may still be under way when the next piece is asked for */

/* Between GPUs an SM that stores both to its own memory and over a link keeps the link waiting: its bulk copies go out one after another, and
 * 8 SMs fill a link that do nothing else (bench/link.cu). Two H100s, 16 SMs, EXPERT, 4096 tokens: 830 us where every SM does both, 709
 * where half of them do each. Below SPLIT_FROM blocks neither side has SMs enough. */
#define SPLIT_FROM 12

typedef struct ring_shape {
    int pieces, piece_bytes;
    int scale_bytes; /* that travel through the ring; 0: none, or word by word */
    int past_cache;
    int near_blocks; /* the first so many send to ranks on this GPU alone, the rest to the others; 0: all to all */
} ring_shape;

#if FE_BULK
typedef struct ring { /* of a warp */
    uint32_t stage, full;
    int stage_bytes;
} ring;

FE_DEVICE ring open_ring(const ring_shape &sh, const char *shared) {
    uint32_t warp = threadIdx.x / FE_WARP, warps = blockDim.x / FE_WARP;
    ring r;
    r.stage_bytes = sh.piece_bytes + sh.scale_bytes;
    r.stage = fe_shared_at(shared) + warp * STAGES * r.stage_bytes;
    r.full = fe_shared_at(shared) + warps * STAGES * r.stage_bytes + warp * STAGES * 8;
    if (fe_lane() == 0) {
        for (int s = 0; s < STAGES; s++) fe_bar_init(r.full + 8 * s, 1);
        fe_bar_init_done();
    }
    __syncwarp();
    return r;
}

FE_DEVICE uint32_t bytes_of(const fe_cuda_args &a, const ring_shape &sh, int piece) {
    return (uint32_t)min(sh.piece_bytes, (int)a.pass.scatter.row_bytes - piece * sh.piece_bytes);
}

/* Lane 0. */
FE_DEVICE void ask(const fe_cuda_args &a, const ring_shape &sh, const ring &r, const fe_share &item, int s) {
    const fe_scatter &in = a.pass.scatter;
    uint32_t bytes = bytes_of(a, sh, item.piece), scales = item.piece == 0 ? (uint32_t)sh.scale_bytes : 0;
    uint32_t to = r.stage + s * r.stage_bytes, full = r.full + 8 * s;
    fe_bar_expect(full, bytes + scales);
    fe_bulk_load(to, in.rows + item.token * in.row_stride + (size_t)item.piece * sh.piece_bytes, bytes, full);
    if (scales) fe_bulk_load(to + sh.piece_bytes, in.scales + item.token * in.scale_row, scales, full);
}

/* The first loads, before the receivers' notes are there: rows to send are ours, and ready. Returns what to ask for next. */
FE_DEVICE fe_share ask_first(const fe_cuda_args &a, const ring_shape &sh, const ring &r, fe_share item) {
    for (int s = 0; s < STAGES - OUTGOING; s++, item = fe_after(item))
        if (fe_more(item) && fe_lane() == 0) ask(a, sh, r, item, s);
    return item;
}
/* A block does not end, nor are its stages used otherwise, while they are under way. */
FE_DEVICE void await_first(const ring &r, fe_share item) {
    for (int s = 0; s < STAGES - OUTGOING; s++, item = fe_after(item))
        if (fe_more(item)) fe_bar_wait(r.full + 8 * s, 0);
}

/* The block's part of the rows. */
FE_DEVICE fe_share share_of(const fe_cuda_args &a, const ring_shape &sh) {
    int block = (int)blockIdx.x, near = sh.near_blocks, blocks = (int)gridDim.x;
    int first = block < near ? 0 : near, count = block < near ? near : blocks - near;
    return fe_warps_share_of(block - first, count, a.route.shape.tokens, sh.pieces);
}

/* A lane's place among those that the block serves; they stand in the first lanes, as in the list. */
FE_DEVICE fe_cuda_place listed(const fe_cuda_args &a, const ring_shape &sh, int token, int first) {
    fe_cuda_place to = fe_listed(a.extra.go, token, a.route.shape.topk, first), mine = {-1, -1};
    if (!sh.near_blocks) return to;
    bool serves = to.slot >= 0 && a.world.linked[to.rank] == ((int)blockIdx.x >= sh.near_blocks);
    uint32_t left = __ballot_sync(FE_ALL, serves);
    for (int i = 0; left; left &= left - 1, i++) {
        int from = __ffs((int)left) - 1;
        int rank = __shfl_sync(FE_ALL, to.rank, from), slot = __shfl_sync(FE_ALL, to.slot, from);
        if (fe_lane() == i) mine = {rank, slot};
    }
    return mine;
}

/* To up to 32 places: each lane stores to its own. */
FE_DEVICE void store_piece(const fe_board &b, const ring_shape &sh, fe_cuda_place to, int piece, uint32_t stage,
                           uint32_t bytes, uint64_t policy) {
    if (to.slot < 0) return;
    char *row = fe_row_to(b, to) + (size_t)piece * sh.piece_bytes;
    if (sh.past_cache)
        fe_bulk_store_past(row, stage, bytes, policy);
    else
        fe_bulk_store(row, stage, bytes);
    if (piece == 0 && sh.scale_bytes)
        fe_bulk_store(fe_scales_to(b, to), stage + sh.piece_bytes, (uint32_t)sh.scale_bytes);
}

FE_DEVICE void send_all(const fe_cuda_args &a, const fe_board &b, const ring_shape &sh, const ring &r, fe_share item,
                        fe_share asked) {
    int topk = a.route.shape.topk, s = 0;
    bool words = a.pass.scatter.scales && !sh.scale_bytes, beside = words || a.pass.scatter.topk;
    uint32_t parity = 0;
    uint64_t policy = fe_evict_first();
    fe_cuda_place next = {-1, -1};
    if (fe_more(item)) next = listed(a, sh, item.token, 0);
    for (; fe_more(item); asked = fe_after(asked)) {
        fe_cuda_place to = next;
        fe_share coming = fe_after(item);
        uint32_t stage = r.stage + s * r.stage_bytes, bytes = bytes_of(a, sh, item.piece);
        if (fe_more(coming)) next = listed(a, sh, coming.token, 0);
        fe_bar_wait(r.full + 8 * s, parity);
        store_piece(b, sh, to, item.piece, stage, bytes, policy);
        for (int first = FE_WARP; first < topk; first += FE_WARP)
            store_piece(b, sh, listed(a, sh, item.token, first), item.piece, stage, bytes, policy);
        fe_bulk_commit();
        /* While the copies before are still on their way out: after the wait for them this one alone would be. */
        if (beside && fe_sees_to_token(item)) fe_write_beside(a, b, item.token, to, words);
        fe_bulk_read_but<OUTGOING>();
        __syncwarp(); /* the stage before this one is free */
        if (fe_more(asked) && fe_lane() == 0)
            ask(a, sh, r, asked, s >= OUTGOING ? s - OUTGOING : s + STAGES - OUTGOING);
        item = coming;
        if (++s == STAGES) {
            s = 0;
            parity ^= 1;
        }
    }
    fe_bulk_stored();
}
#endif

namespace ferry {
__global__ void __launch_bounds__(WARPS *FE_WARP, 1)
    dispatch_rings(const __grid_constant__ fe_cuda_args a, const __grid_constant__ ring_shape sh) {
    uint64_t epoch;
#if FE_BULK
    extern __shared__ __align__(128) char shared[];
    fe_after_stream();
    ring r = open_ring(sh, shared);
    fe_share first = share_of(a, sh), asked = ask_first(a, sh, r, first);
    if (!fe_open(a, &epoch)) {
        await_first(r, first);
        return;
    }
    fe_board b = fe_board_of(a, FE_READY);
    int unit = fe_scatter_unit(a, b, 0, sh.scale_bytes != 0);
    if (unit == 16) {
        send_all(a, b, sh, r, first, asked);
    } else {
        await_first(r, first);
        fe_send_plain(a, b, unit);
    }
    fe_write_tails(a);
    fe_close(a, epoch);
#else
    (void)epoch, (void)sh; /* never launched */
#endif
}
} // namespace ferry

static int known[FE_CUDA_CARDS];

static ring_shape shape_of(const fe_cuda_args *args) {
    const fe_scatter *s = &args->pass.scatter;
    const fe_shape *route = &args->route.shape;
    int row_bytes = (int)s->row_bytes, spread = route->layout == FERRY_LAYOUT_RANK ? route->ranks : route->topk;
    int64_t most_sent = (int64_t)route->tokens * (spread < route->topk ? spread : route->topk) * row_bytes;
    uintptr_t scale_bits = (uintptr_t)s->scales | (uintptr_t)s->scale_row | s->scale_bytes;
    ring_shape sh;
    sh.pieces = (row_bytes + PIECE - 1) / PIECE;
    sh.piece_bytes = ((row_bytes + sh.pieces - 1) / sh.pieces + 15) / 16 * 16;
    sh.scale_bytes = s->scales && s->scale_word == 4 && scale_bits % 16 == 0 ? (int)s->scale_bytes : 0;
    sh.past_cache = most_sent > s->stream_bytes;
    int ranks = args->world.near_ranks, linked = ranks - args->world.sharing;
    int near = args->blocks * args->world.sharing / ranks;
    bool split = linked && args->blocks >= SPLIT_FROM &&
                 route->topk <= FE_WARP; /* what goes beside is told by the first 32 places */
    sh.near_blocks = !split ? 0 : near > 0 ? near : 1;
    return sh;
}

cudaError_t fe_cuda_scatter_bulk(fe_cuda_args *args, cudaStream_t stream, bool *done) {
    const fe_scatter *s = &args->pass.scatter;
    uintptr_t bits = (uintptr_t)s->rows | (uintptr_t)s->row_stride | s->row_bytes;
    int most = 0;
    if (bits % 16 != 0 || s->row_bytes < LEAST_ROW) return cudaSuccess;
    cudaError_t error = fe_kernel_room((const void *)ferry::dispatch_rings, known, &most);
    if (error != cudaSuccess) return error;
    ring_shape sh = shape_of(args);
    int ring_bytes = STAGES * (sh.piece_bytes + sh.scale_bytes + (int)sizeof(uint64_t));
    int warps = (most < RING_BYTES ? most : RING_BYTES) / ring_bytes;
    int64_t items = (int64_t)args->route.shape.tokens * sh.pieces;
    if (warps > WARPS) warps = WARPS;
    if (warps < 2 || items < (int64_t)args->blocks * warps)
        return cudaSuccess; /* few tokens: smaller pieces are better */
    void *arguments[] = {args, &sh};
    *done = true;
    return fe_launch(args, (const void *)ferry::dispatch_rings, warps * FE_WARP, (size_t)warps * ring_bytes, stream,
                     arguments);
}

cudaError_t fe_cuda_scatter_bulk_prepare(void) {
    int most;
    return fe_kernel_room((const void *)ferry::dispatch_rings, known, &most);
}
