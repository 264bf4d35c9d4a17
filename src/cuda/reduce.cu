/* Combine, owner's side: through registers. A warp takes a piece of a token and asks for up to eight of its rows at once; and which
 * kernel a launch takes. */
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

#define WARPS 16 /* 128 registers each */

/* t: the token's first terms. */
template <int IN>
FE_DEVICE void sum_piece(const fe_cuda_args &a, const fe_board &b, int token, int piece, fe_term t, int row_bytes) {
    const fe_reduce &r = a.pass.reduce;
    int at = piece * FE_SUM_PIECE + fe_lane() * 16, out_bytes = fe_out_bytes<IN>(r);
    float sum[FE_LOADS][FE_LANES(IN)];
#pragma unroll
    for (int i = 0; i < FE_LOADS; i++) {
#pragma unroll
        for (int c = 0; c < FE_LANES(IN); c++) sum[i][c] = 0;
        if (at + i * FE_WARP * 16 < row_bytes) fe_start<IN>(r, token, (size_t)(at + i * FE_WARP * 16), sum[i]);
    }
    for (int first = 0;;) {
        const char *from = t.at.slot >= 0 ? fe_row_from(a, b, t.at) : NULL;
        fe_add_rows<IN>(sum, from, t.weight, __ballot_sync(FE_ALL, t.at.slot >= 0), at, row_bytes);
        first += FE_WARP;
        if (first >= fe_terms_most(a)) break;
        t = fe_term_of(a, token, first);
    }
    char *out = r.out + token * r.out_stride + (size_t)(at / 16) * out_bytes;
#pragma unroll
    for (int i = 0; i < FE_LOADS; i++)
        if (at + i * FE_WARP * 16 < row_bytes) fe_finish<IN>(out + i * FE_WARP * out_bytes, r.out_type, sum[i]);
}

namespace ferry {
template <int IN>
__global__ void __launch_bounds__(WARPS *FE_WARP) combine_plain(const __grid_constant__ fe_cuda_args a) {
    const fe_reduce &r = a.pass.reduce;
    int row_bytes = (int)r.columns * (16 / FE_LANES(IN));
    fe_share item = fe_warps_share(a.route.shape.tokens, (row_bytes + FE_SUM_PIECE - 1) / FE_SUM_PIECE);
    uint64_t epoch;
    fe_term next = {{-1, -1}, 0};
    fe_after_stream();
    if (fe_more(item)) next = fe_term_of(a, item.token, 0); /* ours: before the others are heard */
    if (!fe_open(a, &epoch)) return;
    fe_board b = fe_board_of(a, FE_OFFER);
    if (fe_reduce_wide(a, b)) {
        while (fe_more(item)) {
            fe_share coming = fe_after(item);
            fe_term now = next;
            if (fe_more(coming)) next = fe_term_of(a, coming.token, 0);
            sum_piece<IN>(a, b, item.token, item.piece, now, row_bytes);
            if (r.weights_out && fe_sees_to_token(item)) fe_return_weights(a, b, item.token);
            item = coming;
        }
    } else {
        fe_sum_narrow<IN>(a, b);
    }
    fe_close(a, epoch);
}
} // namespace ferry

static const void *kernel_of(ferry_dtype in) {
    return in == FERRY_BF16   ? (const void *)ferry::combine_plain<FERRY_BF16>
           : in == FERRY_FP16 ? (const void *)ferry::combine_plain<FERRY_FP16>
                              : (const void *)ferry::combine_plain<FERRY_FP32>;
}

cudaError_t fe_cuda_launch_reduce(fe_cuda_args *args, cudaStream_t stream) {
    const fe_reduce *r = &args->pass.reduce;
    bool done = false;
    cudaError_t error = cudaSuccess;
    if (!args->world.far) error = fe_cuda_reduce_bulk(args, stream, &done); /* which sums this host's rows alone */
    if (error != cudaSuccess || done) return error;
    int64_t pieces = ((int64_t)r->columns * (16 / FE_LANES(r->in_type)) + FE_SUM_PIECE - 1) / FE_SUM_PIECE;
    int threads = fe_share_out(args, args->route.shape.tokens * pieces, WARPS);
    return fe_launch_pass(args, kernel_of(r->in_type), threads, 0, stream);
}

extern "C" cudaError_t fe_cuda_prepare_reduce(void) {
    static const ferry_dtype types[] = {FERRY_BF16, FERRY_FP16, FERRY_FP32};
    cudaError_t error = fe_cuda_reduce_bulk_prepare();
    for (int i = 0; i < 3 && error == cudaSuccess; i++) {
        cudaFuncAttributes its;
        error = cudaFuncGetAttributes(&its, kernel_of(types[i]));
    }
    return error;
}
