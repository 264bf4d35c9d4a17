/* Dispatch, sending side: what its kernels share. A warp takes a piece of a token's row, reads it once, and writes it to each of the
 * token's places in the receivers' heaps. */
#ifndef FERRY_CUDA_SCATTER_CUH
#define FERRY_CUDA_SCATTER_CUH

#include "cuda/rows.cuh"

#define FE_SCATTER_PIECE 2048 /* bytes of a row that a warp of the plain kernel takes: four 16-byte loads a lane */

/* ---- where it goes ---- */

FE_DEVICE char *fe_row_to(const fe_board &b, fe_cuda_place to) {
    return fe_board_at(b, to.rank, FE_AT_ROWS) + (size_t)to.slot * (b.note[to.rank].word[FE_AT_STRIDES] >> 32);
}
FE_DEVICE char *fe_scales_to(const fe_board &b, fe_cuda_place to) {
    return fe_board_at(b, to.rank, FE_AT_SCALES) +
           (size_t)to.slot * (b.note[to.rank].word[FE_AT_STRIDES] & 0xffffffffu);
}

/* Whole block, after fe_open: the unit by which rows can be stored at every receiver. bits: of what else it must divide.
 * scales: their places count too. */
FE_DEVICE int fe_scatter_unit(const fe_cuda_args &a, const fe_board &b, unsigned bits, bool scales) {
    for (int r = (int)threadIdx.x; r < a.world.ranks; r += (int)blockDim.x) {
        if (!fe_reaches(a.world, r)) continue;
        uint64_t strides = b.note[r].word[FE_AT_STRIDES];
        bits |= fe_bits_of(fe_board_at(b, r, FE_AT_ROWS), (int64_t)(strides >> 32));
        if (scales) bits |= fe_bits_of(fe_board_at(b, r, FE_AT_SCALES), (int64_t)strides);
    }
    return fe_unit_of(bits);
}

/* ---- what goes beside a row; whole warp, lane i: the token's place number first + i ---- */

/* RANK: for which of the receiver's experts, with what weight. A lane is a choice, of as many places at once as there are lanes for. */
FE_DEVICE void fe_write_ids(const fe_cuda_args &a, const fe_board &b, int token, fe_cuda_place to, uint32_t places) {
    int topk = a.route.shape.topk, together = topk <= FE_WARP ? FE_WARP / topk : 1, count = __popc(places);
    int sub = topk <= FE_WARP ? fe_lane() / topk : 0;
    const float *weight = a.route.table.weights;
    char *ids = NULL, *weights = NULL;
    if (to.slot >= 0) {
        ids = fe_board_at(b, to.rank, FE_AT_IDS) + (size_t)to.slot * topk * sizeof(int32_t);
        weights = fe_board_at(b, to.rank, FE_AT_WEIGHTS) + (size_t)to.slot * topk * sizeof(float);
    }
    for (int k = fe_lane() - sub * topk; __any_sync(FE_ALL, k < topk); k += FE_WARP) {
        bool mine = sub < together && k < topk;
        size_t choice = (size_t)token * topk + k;
        fe_cuda_place at = {-1, -1};
        if (mine) at = a.extra.at[choice];
        int32_t id = at.slot >= 0 ? a.route.table.home[choice] - a.world.map.rank_first[at.rank] : -1;
        float w = at.slot >= 0 && weight ? weight[choice] : 0;
        for (int first = 0; first < count; first += together) {
            int place = (first + sub) % FE_WARP, rank = __shfl_sync(FE_ALL, to.rank, place);
            int32_t *id_to = (int32_t *)fe_of_lane(ids, place);
            float *weight_to = (float *)fe_of_lane(weights, place);
            bool here = at.slot >= 0 && at.rank == rank;
            if (!mine || first + sub >= count) continue;
            id_to[k] = here ? id : -1;
            if (weight) weight_to[k] = here ? w : 0;
        }
    }
}

/* EXPERT, SLOTS: the sum, in choice order, of the token's weights for the place's expert. Choices of one home have one place. */
FE_DEVICE void fe_write_weight(const fe_cuda_args &a, const fe_board &b, int token, fe_cuda_place to) {
    int topk = a.route.shape.topk;
    if (!a.route.table.weights || to.slot < 0) return;
    const fe_cuda_place *at = a.extra.at + (size_t)token * topk;
    const float *weight = a.route.table.weights + (size_t)token * topk;
    float sum = 0;
#pragma unroll 4
    for (int k = 0; k < topk; k++) {
        fe_cuda_place its = at[k];
        float w = weight[k];
        if (its.slot == to.slot && its.rank == to.rank) sum = __fadd_rn(sum, w);
    }
    ((float *)fe_board_at(b, to.rank, FE_AT_WEIGHTS))[to.slot] = fe_f32_canonical(sum);
}

FE_DEVICE void fe_write_topk(const fe_cuda_args &a, const fe_board &b, int token, fe_cuda_place to, uint32_t places) {
    const fe_shape &shape = a.route.shape;
    if (to.slot >= 0)
        ((int32_t *)(b.space[to.rank] + a.pass.scatter.source_at))[to.slot] =
            (int32_t)(shape.rank * (int64_t)shape.max_tokens + token);
    if (shape.layout == FERRY_LAYOUT_RANK)
        fe_write_ids(a, b, token, to, places);
    else
        fe_write_weight(a, b, token, to);
}

/* Scales as given, word by word for any strides. */
FE_DEVICE void fe_write_scales(const fe_cuda_args &a, const fe_board &b, int token, fe_cuda_place to, uint32_t places) {
    const fe_scatter &s = a.pass.scatter;
    int words = (int)(s.scale_bytes / 4);
    const char *from = s.scales + token * s.scale_row;
    char *scales_to = to.slot >= 0 ? fe_scales_to(b, to) : NULL;
    for (int first = 0; first < words; first += FE_WARP) {
        int i = first + fe_lane();
        uint32_t word = i < words ? fe_load_word(from + i * s.scale_word) : 0;
        for (uint32_t left = places; left; left &= left - 1) {
            uint32_t *dst = (uint32_t *)fe_of_lane(scales_to, __ffs((int)left) - 1);
            if (i < words) dst[i] = word;
        }
    }
}

/* All of a token's; `to` is of its first places, further ones are read here. */
FE_DEVICE void fe_write_beside(const fe_cuda_args &a, const fe_board &b, int token, fe_cuda_place to, bool scales) {
    int topk = a.route.shape.topk;
    for (int first = 0;;) {
        uint32_t places = __ballot_sync(FE_ALL, to.slot >= 0);
        if (scales) fe_write_scales(a, b, token, to, places);
        if (a.pass.scatter.topk) fe_write_topk(a, b, token, to, places);
        first += FE_WARP;
        if (first >= topk) return;
        to = fe_listed(a.extra.go, token, topk, first);
    }
}

/* ---- rows through registers ---- */

template <typename T> FE_DEVICE void fe_copy_piece(char *to, uint32_t places, const char *from, int begin, int end) {
    const int wide = FE_WARP * (int)sizeof(T);
    for (; begin < end; begin += 4 * wide) {
        T v[4];
        int at = begin + fe_lane() * (int)sizeof(T);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (at + i * wide < end) v[i] = fe_load<T>(from + at + i * wide);
        for (uint32_t left = places; left; left &= left - 1) {
            char *dst = fe_of_lane(to, __ffs((int)left) - 1) + at;
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (at + i * wide < end) fe_store<T>(dst + i * wide, v[i]);
        }
    }
}

/* The same by the unit that fe_scatter_unit found. */
FE_DEVICE void fe_copy_by(int unit, char *to, uint32_t places, const char *from, int begin, int end) {
    switch (unit) {
    case 16: fe_copy_piece<uint4>(to, places, from, begin, end); break;
    case 8: fe_copy_piece<uint2>(to, places, from, begin, end); break;
    case 4: fe_copy_piece<uint32_t>(to, places, from, begin, end); break;
    case 2: fe_copy_piece<uint16_t>(to, places, from, begin, end); break;
    default: fe_copy_piece<uint8_t>(to, places, from, begin, end); break;
    }
}

FE_DEVICE void fe_send_piece(const fe_cuda_args &a, const fe_board &b, int unit, const fe_share &item) {
    const fe_scatter &s = a.pass.scatter;
    int topk = a.route.shape.topk, begin = item.piece * FE_SCATTER_PIECE;
    int end = min(begin + FE_SCATTER_PIECE, (int)s.row_bytes);
    const char *from = s.rows + item.token * s.row_stride;
    fe_cuda_place head = fe_listed(a.extra.go, item.token, topk, 0), to = head;
    for (int first = 0; first < topk; first += FE_WARP) {
        if (first) to = fe_listed(a.extra.go, item.token, topk, first);
        uint32_t places = __ballot_sync(FE_ALL, to.slot >= 0);
        if (!places) break;
        fe_copy_by(unit, to.slot >= 0 ? fe_row_to(b, to) : NULL, places, from, begin, end);
    }
    if (fe_sees_to_token(item)) fe_write_beside(a, b, item.token, head, s.scales != NULL);
}

FE_DEVICE void fe_send_plain(const fe_cuda_args &a, const fe_board &b, int unit) {
    int pieces = ((int)a.pass.scatter.row_bytes + FE_SCATTER_PIECE - 1) / FE_SCATTER_PIECE;
    for (fe_share i = fe_warps_share(a.route.shape.tokens, pieces); fe_more(i); i = fe_after(i))
        fe_send_piece(a, b, unit, i);
}

/* ---- one block: how many rows each of the receivers' units gets, where that is told beside the rows ---- */

FE_DEVICE void fe_write_tails(const fe_cuda_args &a) {
    const fe_cuda_world &w = a.world;
    const fe_shape &shape = a.route.shape;
    if (blockIdx.x != 0 || !fe_slots_fixed(&shape)) return;
    int width = w.map.most_local;
    bool by_rank = shape.layout == FERRY_LAYOUT_RANK;
    for (int i = (int)threadIdx.x; i < w.ranks * width; i += (int)blockDim.x) {
        int r = i / width, u = i - r * width, first = by_rank ? r : w.map.rank_first[r];
        if (u >= (by_rank ? 1 : fe_map_local(&w.map, r)) || !fe_reaches(w, r)) continue;
        int32_t *tails = (int32_t *)(w.post[r] + a.pass.scatter.tails_at);
        tails[((size_t)a.pass.half * w.ranks + w.rank) * width + u] = a.route.scratch.keep[first + u];
    }
}

/* ---- the launches of the other kernels ---- */

cudaError_t fe_cuda_scatter_cast(fe_cuda_args *args, cudaStream_t stream);
/* *done: it could be launched; otherwise the plain kernel must do. */
cudaError_t fe_cuda_scatter_bulk(fe_cuda_args *args, cudaStream_t stream, bool *done);
cudaError_t fe_cuda_scatter_cast_prepare(void);
cudaError_t fe_cuda_scatter_bulk_prepare(void);

#endif
