/* Combine over several hosts: this rank sums, for its column, the rows that the ranks here hold of its tokens, and sends one row for each
 * token; the owner adds those to its near rows (reduce.cuh). Blocks take consecutive tokens of one host, and order one write for them. */
#include "cuda/launch.cuh"
#include "cuda/record.cuh"
#include "cuda/reduce.cuh"

#define WARPS      12     /* 168 registers each; 128 were not enough */
#define PUSH_BYTES 262144 /* of sums for one host that a block makes at a time and hands to the network in one write */

typedef struct served { /* a host whose tokens are summed */
    int host, records;
    uint64_t wants, row_bytes;
} served;

FE_DEVICE uint64_t sums_out(const fe_cuda_args &a, int host) {
    return a.world.boxes.sums_out[a.pass.half] + (uint64_t)host * a.world.boxes.sum_bytes;
}
FE_DEVICE uint64_t sums_there(const fe_cuda_args &a) {
    return a.world.boxes.sums_in[a.pass.half] + (uint64_t)a.world.hosts.mine * a.world.boxes.sum_bytes;
}

FE_DEVICE served serve(const fe_cuda_args &a, const fe_board &b, int host) {
    const fe_reduce &r = a.pass.reduce;
    served s = {host, a.route.far.kept_count[host], b.note[fe_column(a.world, host)].word[FE_OFFER_WANTS], 0};
    s.row_bytes = r.columns * (r.in_type == FERRY_FP32 ? 4 : 2);
    return s;
}

/* ---- one record ---- */

/* The owner's weights: those that it sent with its offer, or those that came with the token. */
FE_DEVICE const float *weights_of(const fe_cuda_args &a, const served &s, int number, const fe_record *r) {
    const fe_cuda_world &w = a.world;
    int topk = a.route.shape.topk;
    if (!(s.wants & FE_WANTS_SENT)) return fe_record_weight(r, topk);
    const char *sent = w.boxed + w.boxes.weights_in[a.pass.half] + (uint64_t)s.host * w.boxes.weight_bytes;
    return (const float *)sent + (size_t)number * topk;
}

/* Lane i's is term number first + i of the record's sum here. Weighted: every choice in turn; else every distinct row, in order. */
FE_DEVICE fe_term term_of(const fe_cuda_args &a, const served &s, int number, const fe_record *r, int first) {
    int topk = a.route.shape.topk, i = first + fe_lane();
    bool weighted = s.wants & FE_WANTS_WEIGHTED;
    fe_term t = {{-1, -1}, 1.0f};
    if (i >= (weighted ? topk : r->fan)) return t;
    int k = weighted ? i : fe_record_order(r)[i];
    t.at.slot = fe_record_slot(r, topk)[k];
    if (t.at.slot < 0) return t;
    t.at.rank = a.world.map.home_rank[fe_record_home(r, topk)[k]];
    if (weighted) t.weight = weights_of(a, s, number, r)[k];
    return t;
}

/* A piece of the row, 16 bytes a load. */
template <int IN>
FE_DEVICE void sum_wide(const fe_cuda_args &a, const fe_board &b, const served &s, int number, int piece, char *out) {
    const fe_record *r = fe_record_kept(&a.route.far, a.route.shape.max_tokens, s.host, number);
    int at = piece * FE_SUM_PIECE + fe_lane() * 16, row_bytes = (int)s.row_bytes;
    float sum[FE_LOADS][FE_LANES(IN)] = {};
    for (int first = 0; first < a.route.shape.topk; first += FE_WARP) {
        fe_term t = term_of(a, s, number, r, first);
        const char *from = t.at.slot >= 0 ? fe_row_from(a, b, t.at) : NULL;
        fe_add_rows<IN>(sum, from, t.weight, __ballot_sync(FE_ALL, t.at.slot >= 0), at, row_bytes);
    }
#pragma unroll
    for (int i = 0; i < FE_LOADS; i++)
        if (at + i * FE_WARP * 16 < row_bytes)
            fe_finish<IN>(out + at + i * FE_WARP * 16, a.pass.reduce.in_type, sum[i]);
}

/* The same element by element. */
template <int IN>
FE_DEVICE void sum_narrow(const fe_cuda_args &a, const fe_board &b, const served &s, int number, int piece, char *out) {
    const fe_record *r = fe_record_kept(&a.route.far, a.route.shape.max_tokens, s.host, number);
    const int columns = FE_SUM_PIECE / (16 / FE_LANES(IN));
    int end = min((piece + 1) * columns, (int)a.pass.reduce.columns);
    for (int begin = piece * columns; begin < end; begin += FE_WARP) {
        int column = begin + fe_lane();
        float sum = 0;
        for (int first = 0; first < a.route.shape.topk; first += FE_WARP) {
            fe_term t = term_of(a, s, number, r, first);
            const char *from = t.at.slot >= 0 ? fe_row_from(a, b, t.at) : NULL;
            fe_add_columns<IN>(from, t.weight, __ballot_sync(FE_ALL, t.at.slot >= 0), column < end, column, &sum);
        }
        if (column < end) fe_put_element(out, column, a.pass.reduce.in_type, sum);
    }
}

FE_DEVICE void bring_weights(const fe_cuda_args &a, const fe_board &b, const served &s, int number) {
    const fe_record *r = fe_record_kept(&a.route.far, a.route.shape.max_tokens, s.host, number);
    int topk = a.route.shape.topk;
    bool by_rank = a.route.shape.layout == FERRY_LAYOUT_RANK;
    float *out = (float *)(a.world.boxed + sums_out(a, s.host) + a.world.boxes.sum_weights_at);
    for (int k = fe_lane(); k < topk; k += FE_WARP) {
        int slot = fe_record_slot(r, topk)[k];
        float weight = 0;
        if (slot >= 0) {
            int rank = a.world.map.home_rank[fe_record_home(r, topk)[k]];
            const float *from = (const float *)fe_board_at(b, rank, FE_OFFER_WEIGHTS);
            weight = by_rank ? from[(size_t)slot * topk + k] : from[slot];
        }
        out[(size_t)number * topk + k] = weight;
    }
}

/* ---- all of them ---- */

/* Whole block: records [from, to) of the host, summed and ordered to be sent. */
template <int IN>
FE_DEVICE void sum_chunk(const fe_cuda_args &a, const fe_board &b, const served &s, int from, int to, bool wide) {
    int pieces = ((int)s.row_bytes + FE_SUM_PIECE - 1) / FE_SUM_PIECE, warps = (int)(blockDim.x / FE_WARP);
    char *rows = a.world.boxed + sums_out(a, s.host);
    for (int i = (int)threadIdx.x / FE_WARP; i < (to - from) * pieces; i += warps) {
        int number = from + i / pieces, piece = i % pieces;
        char *out = rows + (size_t)number * s.row_bytes;
        if (wide)
            sum_wide<IN>(a, b, s, number, piece, out);
        else
            sum_narrow<IN>(a, b, s, number, piece, out);
        if (piece == 0 && (s.wants & FE_WANTS_WEIGHTS)) bring_weights(a, b, s, number);
    }
    __syncthreads();
    uint64_t begin = (uint64_t)from * s.row_bytes;
    if (threadIdx.x == 0)
        fe_push(a, s.host, FE_RETURNED, sums_out(a, s.host) + begin, sums_there(a) + begin,
                (uint64_t)(to - from) * s.row_bytes);
}

/* One thread, when all rows have been ordered. */
FE_DEVICE void tell_returned(const fe_cuda_args &a, const fe_board &b, uint64_t epoch) {
    for (int i = 1; i < a.world.hosts.count; i++) {
        int host = (a.world.hosts.mine + i) % a.world.hosts.count;
        if (fe_host_masked(a.world, host)) continue;
        served s = serve(a, b, host);
        uint64_t word[FE_CELL_WORDS] = {0}, at = a.world.boxes.sum_weights_at;
        if (s.wants & FE_WANTS_WEIGHTS)
            fe_push(a, s.host, FE_RETURNED, sums_out(a, s.host) + at, sums_there(a) + at,
                    (uint64_t)s.records * a.route.shape.topk * sizeof(float));
        word[FE_LANDED_RECORDS] = (uint64_t)s.records;
        fe_tell_far(a, s.host, FE_RETURNED, word, epoch);
    }
}

/* Whole block: can every owner's wish be met? */
FE_DEVICE bool wishes_good(const fe_cuda_args &a, const fe_board &b) {
    int other = -1;
    for (int h = (int)threadIdx.x; h < a.world.hosts.count; h += (int)blockDim.x) {
        if (h == a.world.hosts.mine || fe_host_masked(a.world, h)) continue;
        uint64_t wants = serve(a, b, h).wants;
        if ((wants & FE_WANTS_WEIGHTED) && !(wants & FE_WANTS_SENT) && !a.route.table.weights)
            other = fe_column(a.world, h);
    }
    if (other >= 0 && fe_break(a)) {
        a.world.report->other = other;
        fe_tell_fatal(a, FERRY_MISMATCH, 0);
    }
    return !__syncthreads_or(other >= 0);
}

namespace ferry {
template <int IN>
__global__ void __launch_bounds__(WARPS *FE_WARP, 1) combine_sums(const __grid_constant__ fe_cuda_args a, int chunk) {
    uint64_t epoch;
    if (!fe_open(a, &epoch)) return;
    fe_board b = fe_board_of(a, FE_OFFER);
    if (!wishes_good(a, b)) return;
    bool wide = __syncthreads_or((int)(fe_offer_bits(a, b) % 16)) == 0; /* rows are multiples of 16 bytes */
    int turn = 0;
    for (int i = 1; i < a.world.hosts.count; i++) {
        served s = serve(a, b, (a.world.hosts.mine + i) % a.world.hosts.count);
        for (int from = 0; from < s.records; from += chunk)
            if (turn++ % (int)gridDim.x == (int)blockIdx.x)
                sum_chunk<IN>(a, b, s, from, min(from + chunk, s.records), wide);
    }
    if (fe_close(a, epoch)) tell_returned(a, b, epoch);
}
} // namespace ferry

static const void *kernel_of(ferry_dtype in) {
    return in == FERRY_BF16   ? (const void *)ferry::combine_sums<FERRY_BF16>
           : in == FERRY_FP16 ? (const void *)ferry::combine_sums<FERRY_FP16>
                              : (const void *)ferry::combine_sums<FERRY_FP32>;
}

cudaError_t fe_cuda_launch_sums(fe_cuda_args *args, cudaStream_t stream) {
    const fe_reduce *r = &args->pass.reduce;
    int64_t row_bytes = (int64_t)r->columns * (r->in_type == FERRY_FP32 ? 4 : 2), most = PUSH_BYTES / row_bytes;
    int64_t all = (int64_t)args->route.shape.max_tokens * (args->world.hosts.count - 1);
    int64_t chunk = (all + args->blocks - 1) / args->blocks;
    chunk = chunk > most ? most : chunk;
    int each = chunk < 1 ? 1 : (int)chunk;
    if (args->blocks > (all + each - 1) / each) args->blocks = (int)((all + each - 1) / each);
    void *arguments[] = {args, &each};
    return fe_launch(args, kernel_of(r->in_type), WARPS * FE_WARP, 0, stream, arguments);
}

static cudaError_t prepare_sums(void) {
    static const ferry_dtype types[] = {FERRY_BF16, FERRY_FP16, FERRY_FP32};
    struct cudaFuncAttributes attributes;
    cudaError_t error = cudaSuccess;
    for (int i = 0; i < 3 && error == cudaSuccess; i++) error = cudaFuncGetAttributes(&attributes, kernel_of(types[i]));
    return error;
}

cudaError_t fe_cuda_prepare_far(void) {
    cudaError_t error = fe_cuda_prepare_pack();
    if (error == cudaSuccess) error = fe_cuda_prepare_fanout();
    return error == cudaSuccess ? prepare_sums() : error;
}
