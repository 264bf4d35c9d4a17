/* Dispatch, sending side: rows as they are, through shared memory by bulk copies. Each warp has a ring of stages; a stage holds a piece
 * of a row (and, with its first piece, the row's scales) on its way in or out. */
#include "cuda/scatter.cuh"

/* Measured on an H100 (16 and 4 SMs, rows of 14336 and 7168 bytes): from two stages on the ring's shape hardly matters; whole rows are
 * best, and four warps are enough for them. */
#define WARPS      8
#define STAGES     3
#define PIECE      14336
#define RING_BYTES (176 * 1024)
#define LEAST_ROW  2048 /* below, a warp's own loads and stores are no slower */
#define OUTGOING   1    /* groups of stores that may still be under way when the next piece is asked for */

typedef struct shape {
    int pieces, piece_bytes;
    int scale_bytes; /* that travel through the ring; 0: none, or word by word */
    int past_cache;
} shape;

#if FE_BULK
typedef struct ring { /* of a warp */
    char *stage;
    uint64_t *full;
    int stage_bytes;
    int first, step, items; /* the warp's share */
} ring;

FE_DEVICE ring open_ring(const fe_cuda_args &a, const shape &sh, char *shared) {
    int warp = (int)threadIdx.x / FE_WARP, warps = (int)blockDim.x / FE_WARP;
    ring r;
    r.stage_bytes = sh.piece_bytes + sh.scale_bytes;
    r.stage = shared + (size_t)warp * STAGES * r.stage_bytes;
    r.full = (uint64_t *)(shared + (size_t)warps * STAGES * r.stage_bytes) + warp * STAGES;
    r.first = (int)blockIdx.x * warps + warp;
    r.step = (int)gridDim.x * warps;
    r.items = a.route.shape.tokens * sh.pieces;
    if (fe_lane() == 0) {
        for (int s = 0; s < STAGES; s++) fe_bar_init(&r.full[s], 1);
        fe_bar_init_done();
    }
    __syncwarp();
    return r;
}

FE_DEVICE int bytes_of(const fe_cuda_args &a, const shape &sh, int piece) {
    return min(sh.piece_bytes, (int)a.pass.scatter.row_bytes - piece * sh.piece_bytes);
}

/* Lane 0. */
FE_DEVICE void ask(const fe_cuda_args &a, const shape &sh, const ring &r, int item, int s) {
    const fe_scatter &in = a.pass.scatter;
    int token = item / sh.pieces, piece = item - token * sh.pieces, bytes = bytes_of(a, sh, piece);
    int scales = piece == 0 ? sh.scale_bytes : 0;
    char *to = r.stage + s * r.stage_bytes;
    fe_bar_expect(&r.full[s], (uint32_t)(bytes + scales));
    fe_bulk_load(to, in.rows + token * in.row_stride + (size_t)piece * sh.piece_bytes, (uint32_t)bytes, &r.full[s]);
    if (scales) fe_bulk_load(to + sh.piece_bytes, in.scales + token * in.scale_row, (uint32_t)scales, &r.full[s]);
}

/* The first loads, before the receivers' notes are there: rows to send are ours, and ready. */
FE_DEVICE void ask_first(const fe_cuda_args &a, const shape &sh, const ring &r) {
    for (int s = 0; s < STAGES - OUTGOING; s++)
        if (r.first + s * r.step < r.items) ask(a, sh, r, r.first + s * r.step, s);
}
/* A block does not end, nor are its stages used otherwise, while they are under way. */
FE_DEVICE void await_first(const ring &r) {
    for (int s = 0; s < STAGES - OUTGOING; s++)
        if (r.first + s * r.step < r.items) fe_bar_wait(&r.full[s], 0);
}

/* To up to 32 places, one a lane; lane 0 does it all. */
FE_DEVICE void store_piece(const fe_board &b, const shape &sh, fe_cuda_place to, int piece, const char *stage,
                           int bytes, uint64_t policy) {
    bool scales = piece == 0 && sh.scale_bytes;
    char *row_to = to.slot >= 0 ? fe_row_to(b, to) + (size_t)piece * sh.piece_bytes : NULL;
    char *scales_to = scales && to.slot >= 0 ? fe_scales_to(b, to) : NULL;
    for (uint32_t left = __ballot_sync(FE_ALL, to.slot >= 0); left; left &= left - 1) {
        int place = __ffs((int)left) - 1;
        char *row = fe_of_lane(row_to, place), *scale_row = scales ? fe_of_lane(scales_to, place) : NULL;
        if (fe_lane() != 0) continue;
        if (sh.past_cache)
            fe_bulk_store_past(row, stage, (uint32_t)bytes, policy);
        else
            fe_bulk_store(row, stage, (uint32_t)bytes);
        if (scales) fe_bulk_store(scale_row, stage + sh.piece_bytes, (uint32_t)sh.scale_bytes);
    }
}

FE_DEVICE void send_all(const fe_cuda_args &a, const fe_board &b, const shape &sh, const ring &r) {
    int topk = a.route.shape.topk, s = 0, ahead = STAGES - OUTGOING;
    bool words = a.pass.scatter.scales && !sh.scale_bytes;
    uint32_t parity = 0;
    uint64_t policy = fe_evict_first();
    fe_cuda_place next = {-1, -1};
    if (r.first < r.items) next = fe_listed(a.extra.go, r.first / sh.pieces, topk, 0);
    for (int item = r.first; item < r.items; item += r.step) {
        int token = item / sh.pieces, piece = item - token * sh.pieces, bytes = bytes_of(a, sh, piece);
        const char *stage = r.stage + s * r.stage_bytes;
        fe_cuda_place to = next;
        if (item + r.step < r.items) next = fe_listed(a.extra.go, (item + r.step) / sh.pieces, topk, 0);
        fe_bar_wait(&r.full[s], parity);
        store_piece(b, sh, to, piece, stage, bytes, policy);
        for (int first = FE_WARP; first < topk; first += FE_WARP)
            store_piece(b, sh, fe_listed(a.extra.go, token, topk, first), piece, stage, bytes, policy);
        if (fe_lane() == 0) {
            fe_bulk_commit();
            fe_bulk_read_but<OUTGOING>();
            int coming = item + ahead * r.step;
            if (coming < r.items) ask(a, sh, r, coming, s >= OUTGOING ? s - OUTGOING : s + ahead);
        }
        __syncwarp();
        if (piece == 0 && (words || a.pass.scatter.topk)) fe_write_beside(a, b, token, to, words);
        if (++s == STAGES) {
            s = 0;
            parity ^= 1;
        }
    }
    if (fe_lane() == 0) fe_bulk_stored();
}
#endif

static __global__ void __launch_bounds__(WARPS *FE_WARP)
    fe_scatter_rings(const __grid_constant__ fe_cuda_args a, const __grid_constant__ shape sh) {
    uint64_t epoch;
#if FE_BULK
    extern __shared__ __align__(128) char shared[];
    ring r = open_ring(a, sh, shared);
    if (fe_lane() == 0) ask_first(a, sh, r);
    if (!fe_open(a, &epoch)) {
        await_first(r);
        return;
    }
    fe_board b = fe_board_of(a, FE_READY);
    int unit = fe_scatter_unit(a, b, 0, sh.scale_bytes != 0);
    if (unit == 16) {
        send_all(a, b, sh, r);
    } else {
        await_first(r);
        fe_send_plain(a, b, unit);
    }
    fe_write_tails(a);
    fe_close(a, epoch);
#else
    (void)epoch, (void)sh; /* never launched */
#endif
}

static int known[FE_CUDA_CARDS];

static shape shape_of(const fe_cuda_args *args) {
    const fe_scatter *s = &args->pass.scatter;
    const fe_shape *route = &args->route.shape;
    int row_bytes = (int)s->row_bytes, spread = route->layout == FERRY_LAYOUT_RANK ? route->ranks : route->topk;
    int64_t most_sent = (int64_t)route->tokens * (spread < route->topk ? spread : route->topk) * row_bytes;
    uintptr_t scale_bits = (uintptr_t)s->scales | (uintptr_t)s->scale_row | s->scale_bytes;
    shape sh;
    sh.pieces = (row_bytes + PIECE - 1) / PIECE;
    sh.piece_bytes = ((row_bytes + sh.pieces - 1) / sh.pieces + 15) / 16 * 16;
    sh.scale_bytes = s->scales && s->scale_word == 4 && scale_bits % 16 == 0 ? (int)s->scale_bytes : 0;
    sh.past_cache = most_sent > s->stream_bytes;
    return sh;
}

cudaError_t fe_cuda_scatter_bulk(fe_cuda_args *args, cudaStream_t stream, bool *done) {
    const fe_scatter *s = &args->pass.scatter;
    uintptr_t bits = (uintptr_t)s->rows | (uintptr_t)s->row_stride | s->row_bytes;
    int most = 0;
    if (bits % 16 != 0 || s->row_bytes < LEAST_ROW) return cudaSuccess;
    cudaError_t error = fe_kernel_room((const void *)fe_scatter_rings, known, &most);
    if (error != cudaSuccess) return error;
    shape sh = shape_of(args);
    int ring_bytes = STAGES * (sh.piece_bytes + sh.scale_bytes + (int)sizeof(uint64_t));
    int warps = (most < RING_BYTES ? most : RING_BYTES) / ring_bytes;
    int64_t items = (int64_t)args->route.shape.tokens * sh.pieces;
    if (warps > WARPS) warps = WARPS;
    if (warps < 2 || items < (int64_t)args->blocks * warps)
        return cudaSuccess; /* few tokens: smaller pieces are better */
    fe_scatter_rings<<<args->blocks, warps * FE_WARP, (size_t)warps * ring_bytes, stream>>>(*args, sh);
    *done = true;
    return cudaGetLastError();
}

cudaError_t fe_cuda_scatter_bulk_prepare(void) {
    int most;
    return fe_kernel_room((const void *)fe_scatter_rings, known, &most);
}
