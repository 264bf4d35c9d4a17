/* Combine, owner's side: through shared memory, where there are few blocks and rows are long. A block's warps form teams that share
 * nothing. The last warp of a team asks for rows by bulk copies, into a ring of stages; the others add them up in the order in which
 * they were asked for. Both walk the same lists, so a stage carries nothing but bytes. */
#include "cuda/reduce.cuh"

/* Measured on an H100, rows of 14336 bytes: at 4 SMs three teams of 8 warps with 5 stages each take 1.12 ms where the plain kernel takes
 * 1.70; at 8 SMs more than 9 such stages in a block are slower again. */
#define WARPS     24 /* 80 registers each */
#define ADDERS    7  /* the most in a team */
#define LOADS     4  /* of 16 bytes, that a lane makes of a stage */
#define PIECE     (ADDERS * LOADS * FE_WARP * 16)
#define STAGES    16 /* the most in a ring */
#define FEW       4  /* blocks */
#define LEAST_ROW 2048

typedef struct shape {
    int pieces, piece_bytes, teams, stages;
} shape;

#if FE_BULK
typedef struct ring { /* of a team */
    char *stage;
    uint64_t *full, *empty;
    int adders, member, first, step, items;
} ring;

FE_DEVICE ring open_ring(const fe_cuda_args &a, const shape &sh, char *shared) {
    int warp = (int)threadIdx.x / FE_WARP, team_warps = (int)blockDim.x / FE_WARP / sh.teams, team = warp / team_warps;
    size_t ring_bytes = (size_t)sh.stages * sh.piece_bytes;
    ring r;
    r.stage = shared + team * ring_bytes;
    r.full = (uint64_t *)(shared + sh.teams * ring_bytes) + team * 2 * sh.stages;
    r.empty = r.full + sh.stages;
    r.adders = team_warps - 1;
    r.member = warp - team * team_warps;
    r.first = (int)blockIdx.x + team * (int)gridDim.x;
    r.step = (int)gridDim.x * sh.teams;
    r.items = a.route.shape.tokens * sh.pieces;
    if (r.member == 0 && fe_lane() == 0) {
        for (int s = 0; s < sh.stages; s++) {
            fe_bar_init(&r.full[s], 1);
#ifdef FE_RACECHECK /* which does not see that __syncwarp carries the other lanes' reads to lane 0's arrival */
            fe_bar_init(&r.empty[s], (uint32_t)(r.adders * FE_WARP));
#else
            fe_bar_init(&r.empty[s], (uint32_t)r.adders);
#endif
        }
        fe_bar_init_done();
    }
    return r;
}

FE_DEVICE void leave_stage(const ring &r, int s) {
#ifdef FE_RACECHECK
    fe_bar_arrive(&r.empty[s]);
#else
    __syncwarp();
    if (fe_lane() == 0) fe_bar_arrive(&r.empty[s]);
#endif
}

FE_DEVICE int bytes_of(const shape &sh, int row_bytes, int piece) {
    return min(sh.piece_bytes, row_bytes - piece * sh.piece_bytes);
}

/* The asking warp. */
FE_DEVICE void ask_all(const fe_cuda_args &a, const fe_board &b, const shape &sh, const ring &r, fe_term next,
                       int row_bytes) {
    int topk = a.route.shape.topk, s = 0;
    uint32_t parity = 0;
    fe_proxy_fence(); /* what the notes let us see, before the copies of it */
    for (int item = r.first; item < r.items; item += r.step) {
        int token = item / sh.pieces, piece = item % sh.pieces, bytes = bytes_of(sh, row_bytes, piece);
        fe_term t = next;
        if (item + r.step < r.items) next = fe_term_of(a, (item + r.step) / sh.pieces, 0);
        for (int first = 0; first < topk; first += FE_WARP) {
            if (first) t = fe_term_of(a, token, first);
            const char *from = t.at.slot >= 0 ? fe_row_from(b, t.at) + (size_t)piece * sh.piece_bytes : NULL;
            for (uint32_t left = __ballot_sync(FE_ALL, t.at.slot >= 0); left; left &= left - 1) {
                const char *row = fe_of_lane(from, __ffs((int)left) - 1);
                if (fe_lane() == 0) {
                    fe_bar_wait(&r.empty[s], parity ^ 1);
                    fe_bar_expect(&r.full[s], (uint32_t)bytes);
                    fe_bulk_load(r.stage + (size_t)s * sh.piece_bytes, row, (uint32_t)bytes, &r.full[s]);
                }
                if (++s == sh.stages) {
                    s = 0;
                    parity ^= 1;
                }
            }
        }
    }
}

/* The other warps: a lane's 16 bytes number i of a stage are at `at` + i * apart. */
template <int IN>
FE_DEVICE void add_stage(float (*sum)[FE_LANES(IN)], const char *stage, float weight, int at, int apart, int bytes) {
#pragma unroll
    for (int i = 0; i < LOADS; i++)
        if (at + i * apart < bytes) fe_add<IN>(sum[i], *(const uint4 *)(stage + at + i * apart), weight);
}

template <int IN>
FE_DEVICE void sum_all(const fe_cuda_args &a, const fe_board &b, const shape &sh, const ring &r, fe_term next,
                       int row_bytes) {
    int topk = a.route.shape.topk, s = 0, at = (r.member * FE_WARP + fe_lane()) * 16, apart = r.adders * FE_WARP * 16;
    uint32_t parity = 0;
    for (int item = r.first; item < r.items; item += r.step) {
        int token = item / sh.pieces, piece = item % sh.pieces, bytes = bytes_of(sh, row_bytes, piece);
        size_t begin = (size_t)piece * sh.piece_bytes + at;
        fe_term t = next;
        float sum[LOADS][FE_LANES(IN)];
        if (item + r.step < r.items) next = fe_term_of(a, (item + r.step) / sh.pieces, 0);
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            if (at + i * apart < bytes) fe_start<IN>(a.pass.reduce, token, begin + (size_t)(i * apart), sum[i]);
        for (int first = 0; first < topk; first += FE_WARP) {
            if (first) t = fe_term_of(a, token, first);
            for (uint32_t left = __ballot_sync(FE_ALL, t.at.slot >= 0); left; left &= left - 1) {
                float weight = __shfl_sync(FE_ALL, t.weight, __ffs((int)left) - 1);
                fe_bar_wait(&r.full[s], parity);
                add_stage<IN>(sum, r.stage + (size_t)s * sh.piece_bytes, weight, at, apart, bytes);
                leave_stage(r, s);
                if (++s == sh.stages) {
                    s = 0;
                    parity ^= 1;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            if (at + i * apart < bytes)
                fe_finish<IN>(a.pass.reduce, token, (begin + (size_t)(i * apart)) / 16 * FE_LANES(IN), sum[i]);
        if (piece == 0 && r.member == 0 && a.pass.reduce.weights_out) fe_return_weights(a, b, token);
    }
}
#endif

template <int IN>
static __global__ void __launch_bounds__(WARPS *FE_WARP)
    fe_reduce_teams(const __grid_constant__ fe_cuda_args a, const __grid_constant__ shape sh) {
    uint64_t epoch;
#if FE_BULK
    extern __shared__ __align__(128) char shared[];
    ring r = open_ring(a, sh, shared); /* known to the team by fe_open's barrier */
    int row_bytes = (int)a.pass.reduce.columns * (16 / FE_LANES(IN));
    fe_term first = {{-1, -1}, 0};
    if (r.first < r.items) first = fe_term_of(a, r.first / sh.pieces, 0);
    if (!fe_open(a, &epoch)) return;
    fe_board b = fe_board_of(a, FE_OFFER);
    if (!fe_reduce_wide(a, b))
        fe_sum_narrow<IN>(a, b);
    else if (r.member == r.adders)
        ask_all(a, b, sh, r, first, row_bytes);
    else
        sum_all<IN>(a, b, sh, r, first, row_bytes);
    fe_close(a, epoch);
#else
    (void)epoch, (void)sh; /* never launched */
#endif
}

static int known[3][FE_CUDA_CARDS];

static const void *kernel_of(int which) {
    return which == 0   ? (const void *)fe_reduce_teams<FERRY_BF16>
           : which == 1 ? (const void *)fe_reduce_teams<FERRY_FP16>
                        : (const void *)fe_reduce_teams<FERRY_FP32>;
}
static int which_of(ferry_dtype in) {
    return in == FERRY_BF16 ? 0 : in == FERRY_FP16 ? 1 : 2;
}

/* Threads, or 0: the plain kernel is better. */
static int shape_of(const fe_cuda_args *args, int row_bytes, int most, shape *sh) {
    const int least_bytes = LOADS * FE_WARP * 16;
    sh->pieces = (row_bytes + PIECE - 1) / PIECE;
    sh->piece_bytes = ((row_bytes + sh->pieces - 1) / sh->pieces + 15) / 16 * 16;
    int adders = (sh->piece_bytes + least_bytes - 1) / least_bytes, stage_bytes = sh->piece_bytes + 16;
    int room = args->blocks <= FEW ? most : most < 9 * (PIECE + 16) ? most : 9 * (PIECE + 16);
    sh->teams = WARPS / (adders + 1);
    if (sh->teams > room / stage_bytes / 2) sh->teams = room / stage_bytes / 2;
    if (sh->teams < 1) return 0;
    sh->stages = room / stage_bytes / sh->teams;
    if (sh->stages > STAGES) sh->stages = STAGES;
    return sh->teams * (adders + 1) * FE_WARP;
}

cudaError_t fe_cuda_reduce_bulk(fe_cuda_args *args, cudaStream_t stream, bool *done) {
    const fe_reduce *r = &args->pass.reduce;
    int row_bytes = (int)r->columns * (16 / FE_LANES(r->in_type)), which = which_of(r->in_type), most = 0;
    if (row_bytes < LEAST_ROW || row_bytes % 16 != 0) return cudaSuccess;
    cudaError_t error = fe_kernel_room(kernel_of(which), known[which], &most);
    if (error != cudaSuccess) return error;
    shape sh;
    int threads = shape_of(args, row_bytes, most, &sh);
    int64_t items = (int64_t)args->route.shape.tokens * sh.pieces, rounds = items / args->blocks;
    if (threads == 0 || rounds < 2 * sh.teams || (args->blocks > 8 && rounds < 64)) return cudaSuccess;
    void *arguments[] = {args, &sh};
    *done = true;
    return cudaLaunchKernel(kernel_of(which), dim3((unsigned)args->blocks), dim3((unsigned)threads), arguments,
                            (size_t)sh.teams * sh.stages * (sh.piece_bytes + 16), stream);
}

cudaError_t fe_cuda_reduce_bulk_prepare(void) {
    cudaError_t error = cudaSuccess;
    for (int i = 0, most; i < 3 && error == cudaSuccess; i++) error = fe_kernel_room(kernel_of(i), known[i], &most);
    return error;
}
