/* Combine, owner's side, of one host: through shared memory, where there are few blocks and rows are long. A block's warps form teams that share
 * nothing. The last warp of a team asks for rows by bulk copies, into a ring of stages; the others add them up in the order in which
 * they were asked for. Both walk the same lists, so a stage carries nothing but bytes. */
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

/* Measured on an H100, rows of 14336 bytes: at 4 SMs three teams of 8 warps with 5 stages each take 1.12 ms where the plain kernel takes
 * 1.70; at 8 SMs more than 9 such stages in a block are slower again. */
#define WARPS     24 /* 80 registers each */
#define ADDERS    7  /* the most in a team */
#define LOADS     4  /* of 16 bytes, that a lane makes of a stage */
#define PIECE     (ADDERS * LOADS * FE_WARP * 16)
#define STAGES    16 /* the most in a ring */
#define FEW       4  /* blocks; where there are more, SHALLOW stages of PIECE bytes are enough */
#define SHALLOW   9
#define LEAST_ROW 2048

typedef struct team_shape {
    int pieces, piece_bytes, teams, stages;
    int adders; /* warps of a team beside the last one, which asks */
} team_shape;

#if FE_BULK
typedef struct ring {    /* of a team: where somebody of it is */
    uint32_t stage, bar; /* bar: of the full stage; 8 bytes on, of the empty one */
    int to_end;          /* stages, this one included */
    uint32_t parity;
} ring;

FE_DEVICE ring open_ring(const team_shape &sh, const char *shared, int team, int member) {
    int ring_bytes = sh.stages * sh.piece_bytes, arrivals = sh.adders;
    ring r;
    r.stage = fe_shared_at(shared) + team * ring_bytes;
    r.bar = fe_shared_at(shared) + sh.teams * ring_bytes + team * sh.stages * 16;
    r.to_end = sh.stages;
    r.parity = 0;
#ifdef FE_RACECHECK /* which does not see that __syncwarp carries the other lanes' reads to lane 0's arrival */
    arrivals *= FE_WARP;
#endif
    if (member == 0 && fe_lane() == 0) {
        for (int s = 0; s < sh.stages; s++) {
            fe_bar_init(r.bar + 16 * s, 1);
            fe_bar_init(r.bar + 16 * s + 8, (uint32_t)arrivals);
        }
        fe_bar_init_done();
    }
    return r;
}

FE_DEVICE void go_on(const team_shape &sh, ring *r) {
    r->bar += 16;
    r->stage += (uint32_t)sh.piece_bytes;
    if (--r->to_end) return;
    r->bar -= 16 * sh.stages;
    r->stage -= (uint32_t)(sh.piece_bytes * sh.stages);
    r->to_end = sh.stages;
    r->parity ^= 1;
}

FE_DEVICE void leave_stage(const ring &r) {
#ifdef FE_RACECHECK
    fe_bar_arrive(r.bar + 8);
#else
    __syncwarp();
    if (fe_lane() == 0) fe_bar_arrive(r.bar + 8);
#endif
}

FE_DEVICE int bytes_of(const team_shape &sh, int row_bytes, int piece) {
    return min(sh.piece_bytes, row_bytes - piece * sh.piece_bytes);
}

/* The first terms of the item after this one: read ahead. */
FE_DEVICE fe_term coming_term(const fe_cuda_args &a, const fe_share &item) {
    fe_share coming = fe_after(item);
    fe_term none = {{-1, -1}, 0};
    return fe_more(coming) ? fe_near_term(a, coming.token, 0) : none;
}

/* The asking warp. */
FE_DEVICE void ask_all(const fe_cuda_args &a, const fe_board &b, const team_shape &sh, ring r, fe_share item,
                       fe_term next, int row_bytes) {
    int topk = a.route.shape.topk;
    fe_proxy_fence(); /* what the notes let us see, before the copies of it */
    for (; fe_more(item); item = fe_after(item)) {
        fe_term t = next;
        uint32_t bytes = (uint32_t)bytes_of(sh, row_bytes, item.piece);
        next = coming_term(a, item);
        for (int first = 0; first < topk; first += FE_WARP) {
            if (first) t = fe_near_term(a, item.token, first);
            const char *from = t.at.slot >= 0 ? fe_near_row(b, t.at) + (size_t)item.piece * sh.piece_bytes : NULL;
            for (uint32_t left = __ballot_sync(FE_ALL, t.at.slot >= 0); left; left &= left - 1) {
                const char *row = fe_of_lane(from, __ffs((int)left) - 1);
                if (fe_lane() == 0) {
                    fe_bar_wait(r.bar + 8, r.parity ^ 1);
                    fe_bar_expect(r.bar, bytes);
                    fe_bulk_load(r.stage, row, bytes, r.bar);
                }
                go_on(sh, &r);
            }
        }
    }
}

/* A lane's 16 bytes number i of a stage are at `at` + i * apart. WHOLE: all of them are there. Two at a time: more want registers. */
template <int IN, bool WHOLE>
FE_DEVICE void add_stage(float (*sum)[FE_LANES(IN)], uint32_t from, float weight, int at, int apart, int bytes) {
#pragma unroll
    for (int i = 0; i < LOADS; i += 2) {
        uint4 v, w;
        if (WHOLE || at + i * apart < bytes) v = fe_shared_load16(from + i * apart);
        if (WHOLE || at + (i + 1) * apart < bytes) w = fe_shared_load16(from + (i + 1) * apart);
        if (WHOLE || at + i * apart < bytes) fe_add<IN>(sum[i], v, weight);
        if (WHOLE || at + (i + 1) * apart < bytes) fe_add<IN>(sum[i + 1], w, weight);
    }
}

/* A token's piece, by one of the adding warps. t: the token's first terms. at: the lane's. */
template <int IN>
FE_DEVICE void sum_piece(const fe_cuda_args &a, const team_shape &sh, ring *r, const fe_share &item, fe_term t, int at,
                         int bytes) {
    const fe_reduce &m = a.pass.reduce;
    int topk = a.route.shape.topk, apart = sh.adders * FE_WARP * 16;
    size_t begin = (size_t)item.piece * sh.piece_bytes + at;
    bool whole = bytes == LOADS * apart;
    float sum[LOADS][FE_LANES(IN)];
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
#pragma unroll
        for (int c = 0; c < FE_LANES(IN); c++) sum[i][c] = 0;
        if ((m.bias[0] || m.bias[1]) && at + i * apart < bytes)
            fe_start<IN>(m, item.token, begin + (size_t)(i * apart), sum[i]);
    }
    for (int first = 0; first < topk; first += FE_WARP) {
        if (first) t = fe_near_term(a, item.token, first);
        for (uint32_t left = __ballot_sync(FE_ALL, t.at.slot >= 0); left; left &= left - 1) {
            float weight = __shfl_sync(FE_ALL, t.weight, __ffs((int)left) - 1);
            fe_bar_wait(r->bar, r->parity);
            if (whole)
                add_stage<IN, true>(sum, r->stage + at, weight, at, apart, bytes);
            else
                add_stage<IN, false>(sum, r->stage + at, weight, at, apart, bytes);
            leave_stage(*r);
            go_on(sh, r);
        }
    }
    int out_bytes = fe_out_bytes<IN>(m);
    char *out = m.out + item.token * m.out_stride + begin / 16 * out_bytes;
#pragma unroll
    for (int i = 0; i < LOADS; i++)
        if (at + i * apart < bytes) fe_finish<IN>(out + i * apart / 16 * out_bytes, m.out_type, sum[i]);
}

/* The other warps. */
template <int IN>
FE_DEVICE void sum_all(const fe_cuda_args &a, const fe_board &b, const team_shape &sh, ring r, fe_share item,
                       fe_term next, int row_bytes, int member) {
    int at = (member * FE_WARP + fe_lane()) * 16;
    for (; fe_more(item); item = fe_after(item)) {
        fe_term t = next;
        next = coming_term(a, item);
        sum_piece<IN>(a, sh, &r, item, t, at, bytes_of(sh, row_bytes, item.piece));
        if (item.piece == 0 && member == 0 && a.pass.reduce.weights_out) fe_return_weights(a, b, item.token);
    }
}
#endif

namespace ferry {
template <int IN>
__global__ void __launch_bounds__(WARPS *FE_WARP)
    combine_teams(const __grid_constant__ fe_cuda_args a, const __grid_constant__ team_shape sh) {
    uint64_t epoch;
#if FE_BULK
    fe_after_stream();
    extern __shared__ __align__(128) char shared[];
    int row_bytes = (int)a.pass.reduce.columns * (16 / FE_LANES(IN)), grid = (int)gridDim.x;
    int warp = (int)threadIdx.x / FE_WARP, team = warp / (sh.adders + 1), member = warp % (sh.adders + 1);
    ring r = open_ring(sh, shared, team, member); /* known to the team by fe_open's barrier */
    fe_share item = fe_share_of((int)blockIdx.x + team * grid, grid * sh.teams, a.route.shape.tokens, sh.pieces);
    fe_term first = {{-1, -1}, 0};
    if (fe_more(item)) first = fe_near_term(a, item.token, 0);
    if (!fe_open(a, &epoch)) return;
    fe_board b = fe_board_of(a, FE_OFFER);
    if (!fe_reduce_wide(a, b))
        fe_sum_narrow<IN>(a, b);
    else if (member == sh.adders)
        ask_all(a, b, sh, r, item, first, row_bytes);
    else
        sum_all<IN>(a, b, sh, r, item, first, row_bytes, member);
    fe_close(a, epoch);
#else
    (void)epoch, (void)sh; /* never launched */
#endif
}
} // namespace ferry

static int known[3][FE_CUDA_CARDS];

static const void *kernel_of(int which) {
    return which == 0   ? (const void *)ferry::combine_teams<FERRY_BF16>
           : which == 1 ? (const void *)ferry::combine_teams<FERRY_FP16>
                        : (const void *)ferry::combine_teams<FERRY_FP32>;
}
static int which_of(ferry_dtype in) {
    return in == FERRY_BF16 ? 0 : in == FERRY_FP16 ? 1 : 2;
}

/* Threads, or 0: the plain kernel is better. */
static int shape_of(const fe_cuda_args *args, int row_bytes, int most, team_shape *sh) {
    const int least_bytes = LOADS * FE_WARP * 16, bars = 2 * (int)sizeof(uint64_t);
    sh->pieces = (row_bytes + PIECE - 1) / PIECE;
    sh->piece_bytes = ((row_bytes + sh->pieces - 1) / sh->pieces + 15) / 16 * 16;
    sh->adders = (sh->piece_bytes + least_bytes - 1) / least_bytes;
    int deep = args->blocks <= FEW ? INT32_MAX : SHALLOW * (PIECE + bars);
    int fit = (most < deep ? most : deep) / (sh->piece_bytes + bars);
    sh->teams = WARPS / (sh->adders + 1);
    if (sh->teams > fit / 2) sh->teams = fit / 2;
    if (sh->teams < 1) return 0;
    sh->stages = fit / sh->teams < STAGES ? fit / sh->teams : STAGES;
    return sh->teams * (sh->adders + 1) * FE_WARP;
}

cudaError_t fe_cuda_reduce_bulk(fe_cuda_args *args, cudaStream_t stream, bool *done) {
    const fe_reduce *r = &args->pass.reduce;
    int row_bytes = (int)r->columns * (16 / FE_LANES(r->in_type)), which = which_of(r->in_type), most = 0;
    if (row_bytes < LEAST_ROW || row_bytes % 16 != 0) return cudaSuccess;
    if (args->world.far) return cudaSuccess; /* other hosts' sums want registers that there are none of */
    cudaError_t error = fe_kernel_room(kernel_of(which), known[which], &most);
    if (error != cudaSuccess) return error;
    team_shape sh;
    int threads = shape_of(args, row_bytes, most, &sh);
    int64_t items = (int64_t)args->route.shape.tokens * sh.pieces, rounds = items / args->blocks;
    if (threads == 0 || rounds < 2 * sh.teams || (args->blocks > 8 && rounds < 64)) return cudaSuccess;
    void *arguments[] = {args, &sh};
    *done = true;
    return fe_launch(args, kernel_of(which), threads, (size_t)sh.teams * sh.stages * (sh.piece_bytes + 16), stream,
                     arguments);
}

cudaError_t fe_cuda_reduce_bulk_prepare(void) {
    cudaError_t error = cudaSuccess;
    for (int i = 0, most; i < 3 && error == cudaSuccess; i++) error = fe_kernel_room(kernel_of(i), known[i], &most);
    return error;
}
