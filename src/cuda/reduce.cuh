/* Combine, owner's side: what its kernels share. Each token's rows are pulled from the experts' heaps and summed in the contract's order
 * (cpu/rows.h): every sum is one lane's, in float32, rounded once.
 *
 * A term without a weight has the weight 1: fma(1, x, acc) rounds x + acc once, as an addition does. */
#ifndef FERRY_CUDA_REDUCE_CUH
#define FERRY_CUDA_REDUCE_CUH

#include "cuda/rows.cuh"

/* Elements of a dtype in 16 bytes, which is what a lane loads of a row at once. */
#define FE_LANES(dtype) ((dtype) == FERRY_FP32 ? 4 : 8)

/* ---- terms ---- */

/* One of a token's terms, in lane i the one number first + i; slot -1: none. Over several hosts its rows on this host come first, then
 * one row of each other host h, ascending, in which its weights are: rank FE_SUMS_OF - h, and slot the token's record. */
typedef struct fe_term {
    fe_cuda_place at;
    float weight;
} fe_term;

#define FE_SUMS_OF (-2)

FE_DEVICE int fe_terms_most(const fe_cuda_args &a) {
    return a.route.shape.topk + (a.world.far ? a.world.hosts.count : 0);
}

FE_DEVICE fe_term fe_far_term(const fe_cuda_args &a, int token, int host) {
    const fe_hosts &hosts = a.world.hosts;
    fe_term t = {{-1, -1}, 1.0f};
    if (host >= hosts.count || host == hosts.mine) return t;
    t.at.rank = FE_SUMS_OF - host;
    t.at.slot = a.route.far.record[(size_t)host * a.route.shape.tokens + token];
    return t;
}

/* Where the host's sums of this rank's tokens are. */
FE_DEVICE const char *fe_sums_from(const fe_cuda_args &a, int host) {
    return a.world.boxed + a.world.boxes.sums_in[a.pass.half] + (uint64_t)host * a.world.boxes.sum_bytes;
}

/* Where all ranks are near. Unweighted: distinct rows in the order of summation. Weighted: every choice in turn. */
FE_DEVICE fe_term fe_near_term(const fe_cuda_args &a, int token, int first) {
    const fe_reduce &r = a.pass.reduce;
    int topk = a.route.shape.topk, k = first + fe_lane();
    fe_term t = {fe_listed(r.weighted ? a.extra.at : a.extra.go, token, topk, first), 1.0f};
    if (r.weighted && t.at.slot >= 0)
        t.weight = r.weights ? r.weights[token * r.weight_row + k * r.weight_choice]
                             : a.route.table.weights[(size_t)token * topk + k];
    return t;
}

/* Over several hosts: of the near rows, and then the other hosts' sums. */
FE_DEVICE fe_term fe_term_of(const fe_cuda_args &a, int token, int first) {
    int topk = a.route.shape.topk, k = first + fe_lane();
    if (a.world.far && k >= topk) return fe_far_term(a, token, k - topk);
    fe_term t = fe_near_term(a, token, first);
    if (a.pass.reduce.weighted && t.at.slot >= 0 && !fe_near(a.world, t.at.rank)) t.at.slot = -1;
    return t;
}

FE_DEVICE const char *fe_near_row(const fe_board &b, fe_cuda_place at) {
    return fe_board_at(b, at.rank, FE_OFFER_ROWS) + (size_t)at.slot * b.note[at.rank].word[FE_OFFER_STRIDE];
}
FE_DEVICE const char *fe_row_from(const fe_cuda_args &a, const fe_board &b, fe_cuda_place at) {
    const fe_reduce &r = a.pass.reduce;
    if (at.rank <= FE_SUMS_OF)
        return fe_sums_from(a, FE_SUMS_OF - at.rank) + (size_t)at.slot * r.columns * (r.in_type == FERRY_FP32 ? 4 : 2);
    return fe_near_row(b, at);
}

/* Of the places of near ranks' rows. */
FE_DEVICE unsigned fe_offer_bits(const fe_cuda_args &a, const fe_board &b) {
    unsigned bits = 0;
    for (int i = (int)threadIdx.x; i < a.world.ranks; i += (int)blockDim.x)
        if (fe_reaches(a.world, i))
            bits |= fe_bits_of(fe_board_at(b, i, FE_OFFER_ROWS), (int64_t)b.note[i].word[FE_OFFER_STRIDE]);
    return bits;
}

/* Whole block, after fe_open: do all rows, biases and outputs lie so that 16 bytes, or what comes out of them, go at once? */
FE_DEVICE bool fe_reduce_wide(const fe_cuda_args &a, const fe_board &b) {
    const fe_reduce &r = a.pass.reduce;
    int lanes = FE_LANES(r.in_type), out_bytes = lanes * (r.out_type == FERRY_FP32 ? 4 : 2);
    unsigned bits = fe_bits_of(r.out, r.out_stride) & (unsigned)(min(out_bytes, 16) - 1);
    for (int i = 0; i < 2; i++)
        if (r.bias[i]) bits |= fe_bits_of(r.bias[i], r.bias_stride[i]);
    if ((int)r.columns % lanes != 0) bits = 1;
    bits |= fe_offer_bits(a, b);
    return __syncthreads_or((int)(bits % 16)) == 0;
}

/* ---- 16 bytes of a row: FE_LANES(IN) columns ---- */

template <int IN> FE_DEVICE void fe_widen(uint4 v, float *x) {
    const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (IN == FERRY_FP32) {
            x[i] = __uint_as_float(word[i]);
        } else if (IN == FERRY_BF16) {
            x[2 * i] = fe_low(word[i]);
            x[2 * i + 1] = fe_high(word[i]);
        } else {
            x[2 * i] = fe_fp16_widen((uint16_t)word[i]);
            x[2 * i + 1] = fe_fp16_widen((uint16_t)(word[i] >> 16));
        }
    }
}

template <int IN> FE_DEVICE void fe_add(float *sum, uint4 v, float weight) {
    float x[FE_LANES(IN)];
    fe_widen<IN>(v, x);
#pragma unroll
    for (int c = 0; c < FE_LANES(IN); c++) sum[c] = fmaf(weight, x[c], sum[c]);
}

/* bytes: where in the row. */
template <int IN> FE_DEVICE void fe_start(const fe_reduce &r, int token, size_t bytes, float *sum) {
    if (r.bias[0]) fe_widen<IN>(fe_load16(r.bias[0] + token * r.bias_stride[0] + bytes), sum);
    if (r.bias[1]) fe_add<IN>(sum, fe_load16(r.bias[1] + token * r.bias_stride[1] + bytes), 1.0f);
}

/* Bytes of the output that 16 of the input become. */
template <int IN> FE_DEVICE int fe_out_bytes(const fe_reduce &r) {
    return FE_LANES(IN) * (r.out_type == FERRY_FP32 ? 4 : 2);
}

template <int IN> FE_DEVICE void fe_finish(char *to, ferry_dtype type, const float *sum) {
    uint32_t word[FE_LANES(IN)];
    if (type == FERRY_FP32) {
#pragma unroll
        for (int c = 0; c < FE_LANES(IN); c++) word[c] = fe_f32_bits(fe_f32_canonical(sum[c]));
#pragma unroll
        for (int c = 0; c < FE_LANES(IN); c += 4)
            fe_store16(to + c * 4, make_uint4(word[c], word[c + 1], word[c + 2], word[c + 3]));
        return;
    }
#pragma unroll
    for (int i = 0; i < FE_LANES(IN) / 2; i++)
        word[i] = type == FERRY_BF16 ? fe_bf16x2(sum[2 * i], sum[2 * i + 1]) : fe_fp16x2(sum[2 * i], sum[2 * i + 1]);
    if (FE_LANES(IN) == 8)
        fe_store16(to, make_uint4(word[0], word[1], word[2], word[3]));
    else
        *(uint2 *)to = make_uint2(word[0], word[1]);
}

/* ---- rows through registers: a warp takes a piece ---- */

#define FE_LOADS        2 /* of 16 bytes, that a lane makes of a row */
#define FE_ROWS_AT_ONCE 8 /* asked for */
#define FE_SUM_PIECE    (FE_LOADS * FE_WARP * 16)

/* Adds the rows of up to 32 terms, one a lane, in order. at: the lane's first byte of the piece. */
template <int IN>
FE_DEVICE void fe_add_rows(float (*sum)[FE_LANES(IN)], const char *from, float weight, uint32_t left, int at, int end) {
    while (left) {
        uint4 v[FE_ROWS_AT_ONCE][FE_LOADS];
        float w[FE_ROWS_AT_ONCE];
        uint32_t have = 0;
#pragma unroll
        for (int r = 0; r < FE_ROWS_AT_ONCE; r++) {
            if (!left) continue;
            int term = __ffs((int)left) - 1;
            left &= left - 1;
            have |= 1u << r;
            const char *row = fe_of_lane(from, term) + at;
            w[r] = __shfl_sync(FE_ALL, weight, term);
#pragma unroll
            for (int i = 0; i < FE_LOADS; i++)
                if (at + i * FE_WARP * 16 < end) v[r][i] = fe_load16(row + i * FE_WARP * 16);
        }
#pragma unroll
        for (int r = 0; r < FE_ROWS_AT_ONCE; r++) {
            if (!(have >> r & 1)) continue;
#pragma unroll
            for (int i = 0; i < FE_LOADS; i++) fe_add<IN>(sum[i], v[r][i], w[r]);
        }
    }
}

/* ---- weights that rows bring back; one warp a token ---- */

FE_DEVICE void fe_return_weights(const fe_cuda_args &a, const fe_board &b, int token) {
    int topk = a.route.shape.topk;
    bool by_rank = a.route.shape.layout == FERRY_LAYOUT_RANK;
    for (int first = 0; first < topk; first += FE_WARP) {
        int k = first + fe_lane();
        fe_cuda_place at = fe_listed(a.extra.at, token, topk, first);
        float weight = 0;
        if (at.slot >= 0 && !fe_near(a.world, at.rank)) {
            int host = a.world.hosts.host_of[at.rank];
            int64_t number = a.route.far.record[(size_t)host * a.route.shape.tokens + token];
            weight = ((const float *)(fe_sums_from(a, host) + a.world.boxes.sum_weights_at))[number * topk + k];
        } else if (at.slot >= 0) {
            const float *from = (const float *)fe_board_at(b, at.rank, FE_OFFER_WEIGHTS);
            weight = by_rank ? from[(size_t)at.slot * topk + k] : from[at.slot];
        }
        if (k < topk) a.pass.reduce.weights_out[(size_t)token * topk + k] = weight;
    }
}

/* ---- element by element, for what is not aligned ---- */

template <int IN> FE_DEVICE float fe_element(const char *row, int column) {
    if (IN == FERRY_FP32) return ((const float *)row)[column];
    uint16_t bits = ((const uint16_t *)row)[column];
    return IN == FERRY_BF16 ? fe_bf16_to_f32(bits) : fe_fp16_widen(bits);
}

FE_DEVICE void fe_put_element(char *row, int column, ferry_dtype type, float value) {
    if (type == FERRY_FP32)
        ((float *)row)[column] = fe_f32_canonical(value);
    else
        ((uint16_t *)row)[column] = type == FERRY_BF16 ? fe_bf16_from_f32(value) : fe_fp16_from_f32(value);
}

/* One warp: 32 columns of up to 32 terms, one a lane, in order. */
template <int IN>
FE_DEVICE void fe_add_columns(const char *from, float weight, uint32_t left, bool mine, int column, float *sum) {
    for (; left; left &= left - 1) {
        int term = __ffs((int)left) - 1;
        const char *row = fe_of_lane(from, term);
        float w = __shfl_sync(FE_ALL, weight, term);
        if (mine) *sum = fmaf(w, fe_element<IN>(row, column), *sum);
    }
}

/* One warp: 32 columns of a token. */
template <int IN> FE_DEVICE void fe_sum_columns(const fe_cuda_args &a, const fe_board &b, int token, int column) {
    const fe_reduce &r = a.pass.reduce;
    bool mine = column < (int)r.columns;
    float sum = 0;
    if (mine && r.bias[0]) sum = fe_element<IN>(r.bias[0] + token * r.bias_stride[0], column);
    if (mine && r.bias[1]) sum = __fadd_rn(sum, fe_element<IN>(r.bias[1] + token * r.bias_stride[1], column));
    for (int first = 0; first < fe_terms_most(a); first += FE_WARP) {
        fe_term t = fe_term_of(a, token, first);
        const char *from = t.at.slot >= 0 ? fe_row_from(a, b, t.at) : NULL;
        fe_add_columns<IN>(from, t.weight, __ballot_sync(FE_ALL, t.at.slot >= 0), mine, column, &sum);
    }
    if (mine) fe_put_element(r.out + token * r.out_stride, column, r.out_type, sum);
}

#define FE_NARROW_PIECE 512 /* columns that a warp takes */

template <int IN> FE_DEVICE void fe_sum_narrow(const fe_cuda_args &a, const fe_board &b) {
    const fe_reduce &r = a.pass.reduce;
    int pieces = ((int)r.columns + FE_NARROW_PIECE - 1) / FE_NARROW_PIECE;
    for (fe_share i = fe_warps_share(a.route.shape.tokens, pieces); fe_more(i); i = fe_after(i)) {
        int begin = i.piece * FE_NARROW_PIECE, end = min(begin + FE_NARROW_PIECE, (int)r.columns);
        for (int first = begin; first < end; first += FE_WARP) fe_sum_columns<IN>(a, b, i.token, first + fe_lane());
        if (r.weights_out && fe_sees_to_token(i)) fe_return_weights(a, b, i.token);
    }
}

/* ---- the launch of the other kernel ---- */

/* *done: it could be launched, and is thought faster; otherwise the plain kernel must do. */
cudaError_t fe_cuda_reduce_bulk(fe_cuda_args *args, cudaStream_t stream, bool *done);
cudaError_t fe_cuda_reduce_bulk_prepare(void);

#endif
