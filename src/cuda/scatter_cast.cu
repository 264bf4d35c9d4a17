/* Dispatch, sending side: bf16 rows become e4m3 and scales on the way. */
#include "cuda/cast.cuh"
#include "cuda/launch.cuh"
#include "cuda/scatter.cuh"

#define WARPS      (FE_BULK ? MOST_WARPS : FEW_WARPS)
#define MOST_WARPS 28 /* 72 registers each; 128 tokens of 7168 channels are two rounds of 16 such blocks */
#define FEW_WARPS  16 /* where e4m3 is made by num.h's functions, and nothing waits on a bench */

/* To up to 32 places, one a lane: they come first in a list. */
FE_DEVICE void store_scales(const fe_scatter &s, char *scales_to, int count, int piece, uint32_t word) {
    int most = s.cast == FERRY_CAST_E4M3_UE8M0 ? FE_CAST_BLOCKS / 4 : FE_CAST_BLOCKS, at = fe_lane() % FE_CAST_BLOCKS,
        sub = fe_lane() / FE_CAST_BLOCKS;
    bool mine = at < most && piece * most + at < (int)(s.scale_bytes / 4);
    for (int first = 0; first < count; first += FE_WARP / FE_CAST_BLOCKS) {
        uint32_t *scales = (uint32_t *)fe_of_lane(scales_to, first + sub);
        if (mine && first + sub < count) scales[piece * most + at] = word;
    }
}

/* The same. unit 16: by bulk copies from the bench, each lane to its own place. */
FE_DEVICE void store_piece(const fe_scatter &s, const fe_board &b, fe_cuda_place to, int piece, const fe_cast_out *out,
                           uint32_t bench, int unit) {
    uint32_t places = __ballot_sync(FE_ALL, to.slot >= 0);
    int left_over = (int)s.columns - piece * FE_CAST_PIECE;
    char *row_to = NULL, *scales_to = NULL;
    if (to.slot >= 0) {
        row_to = fe_row_to(b, to) + (size_t)piece * FE_CAST_PIECE;
        scales_to = fe_scales_to(b, to);
    }
    if (unit == 16) {
#if FE_BULK
        if (to.slot >= 0) fe_bulk_store(row_to, bench, (uint32_t)min(FE_CAST_PIECE, left_over));
#endif
    } else {
        for (uint32_t left = places; left; left &= left - 1) {
            char *row = fe_of_lane(row_to, __ffs((int)left) - 1) + fe_lane() * 8;
#pragma unroll
            for (int i = 0; i < FE_CAST_UNITS; i++)
                if (i * 256 + fe_lane() * 8 < left_over) fe_store8(row + i * 256, out->q[i], unit);
        }
    }
    store_scales(s, scales_to, __popc(places), piece, out->word);
}

/* Onto the warp's bench, once the copies from it are through. */
FE_DEVICE void lay_out(const fe_cast_out *out, uint32_t bench) {
#if FE_BULK
    fe_bulk_read_but<0>();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < FE_CAST_UNITS; i++) fe_shared_store8(bench + i * 256 + fe_lane() * 8, out->q[i]);
    fe_proxy_fence_shared();
    __syncwarp();
#endif
}

FE_DEVICE void cast_all(const fe_cuda_args &a, const fe_board &b, fe_share item, fe_cast_in *in, fe_cuda_place next,
                        bool wide, uint32_t bench, int unit) {
    const fe_scatter &s = a.pass.scatter;
    int topk = a.route.shape.topk;
    while (fe_more(item)) {
        fe_share coming = fe_after(item);
        fe_cuda_place to = next;
        fe_cast_out out;
        fe_cast_piece(s, item.piece, in, &out);
        if (unit == 16) lay_out(&out, bench);
        if (fe_more(coming)) {
            fe_cast_fetch(s, coming, wide, in);
            next = fe_listed(a.extra.go, coming.token, topk, 0);
        }
        store_piece(s, b, to, item.piece, &out, bench, unit);
        for (int first = FE_WARP; first < topk; first += FE_WARP)
            store_piece(s, b, fe_listed(a.extra.go, item.token, topk, first), item.piece, &out, bench, unit);
#if FE_BULK
        fe_bulk_commit();
#endif
        if (s.topk && fe_sees_to_token(item)) fe_write_beside(a, b, item.token, to, false);
        item = coming;
    }
#if FE_BULK
    fe_bulk_stored();
#endif
}

namespace ferry {
__global__ void __launch_bounds__(WARPS *FE_WARP) dispatch_cast(const __grid_constant__ fe_cuda_args a) {
    const fe_scatter &s = a.pass.scatter;
    fe_share item = fe_warps_share(a.route.shape.tokens, ((int)s.columns + FE_CAST_PIECE - 1) / FE_CAST_PIECE);
    bool wide = fe_bits_of(s.rows, s.row_stride) % 16 == 0;
    uint32_t bench = 0;
    uint64_t epoch;
    fe_cast_in in;
    fe_cuda_place next = {-1, -1};
#if FE_BULK
    __shared__ __align__(128) char benches[WARPS * FE_CAST_PIECE];
    bench = fe_shared_at(benches) + threadIdx.x / FE_WARP * FE_CAST_PIECE;
#endif
    fe_after_stream();
    if (fe_more(item)) { /* ours: before the others are heard */
        fe_cast_fetch(s, item, wide, &in);
        next = fe_listed(a.extra.go, item.token, a.route.shape.topk, 0);
    }
    if (!fe_open(a, &epoch)) return;
    fe_board b = fe_board_of(a, FE_READY);
    int unit = min(fe_scatter_unit(a, b, (unsigned)s.columns, false), FE_BULK ? 16 : 8);
    cast_all(a, b, item, &in, next, wide, bench, unit);
    fe_write_tails(a);
    fe_close(a, epoch);
}
} // namespace ferry

static int known[FE_CUDA_CARDS];

cudaError_t fe_cuda_scatter_cast(fe_cuda_args *args, cudaStream_t stream) {
    int64_t pieces = ((int64_t)args->pass.scatter.columns + FE_CAST_PIECE - 1) / FE_CAST_PIECE;
    int room = 0;
    cudaError_t error = fe_kernel_room((const void *)ferry::dispatch_cast, known, &room);
    if (error != cudaSuccess) return error;
    int threads = fe_share_out(args, args->route.shape.tokens * pieces, room ? MOST_WARPS : FEW_WARPS);
    return fe_launch_pass(args, (const void *)ferry::dispatch_cast, threads, 0, stream);
}

cudaError_t fe_cuda_scatter_cast_prepare(void) {
    int room;
    return fe_kernel_room((const void *)ferry::dispatch_cast, known, &room);
}
