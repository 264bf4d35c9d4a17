/* Dispatch, sending side: bf16 rows become e4m3 and scales on the way. A warp takes pieces of 1024 channels, so no block of 128 channels
 * is shared with another warp; a half-warp's 16 lanes hold one block, 8 channels each. */
#include "cuda/launch.cuh"
#include "cuda/scatter.cuh"

#define WARPS      (FE_BULK ? MOST_WARPS : FEW_WARPS)
#define MOST_WARPS 28 /* 72 registers each; 128 tokens of 7168 channels are two rounds of 16 such blocks */
#define FEW_WARPS  16 /* where e4m3 is made by num.h's functions, and nothing waits on a bench */
#define UNITS      4  /* of 256 channels: 512 bytes in, 256 out, two blocks */
#define PIECE      (UNITS * 256)
#define BLOCKS     (PIECE / FE_CAST_BLOCK)

typedef struct input { /* of a lane */
    uint4 v[UNITS];
} input;

typedef struct output {
    uint2 q[UNITS];
    uint32_t word; /* of scales; lane i has the piece's word i % BLOCKS, where there is one */
} output;

/* wide: rows are aligned to 16 bytes; otherwise to their elements. */
FE_DEVICE void fetch(const fe_scatter &s, const fe_share &item, bool wide, input *in) {
    int channel = item.piece * PIECE + fe_lane() * 8;
    const char *from = s.rows + item.token * s.row_stride + (size_t)channel * 2;
#pragma unroll
    for (int i = 0; i < UNITS; i++, channel += 256, from += 512) {
        in->v[i] = make_uint4(0, 0, 0, 0);
        if (channel >= (int)s.columns) continue; /* columns are a multiple of 8 */
        if (wide) {
            in->v[i] = fe_load16(from);
        } else {
            const uint16_t *x = (const uint16_t *)from;
            in->v[i] = make_uint4(x[0] | (uint32_t)x[1] << 16, x[2] | (uint32_t)x[3] << 16, x[4] | (uint32_t)x[5] << 16,
                                  x[6] | (uint32_t)x[7] << 16);
        }
    }
}

/* Largest magnitudes, NaN left out, of this lane's channels of two units: a pair of bf16. */
FE_DEVICE uint32_t lane_max(uint4 first, uint4 second) {
    const uint32_t positive = 0x7fff7fffu;
    uint32_t m = fe_bf16x2_max(fe_bf16x2_max(first.x & positive, first.y & positive),
                               fe_bf16x2_max(first.z & positive, first.w & positive));
    uint32_t n = fe_bf16x2_max(fe_bf16x2_max(second.x & positive, second.y & positive),
                               fe_bf16x2_max(second.z & positive, second.w & positive));
    return fe_bf16x2_max(__byte_perm(m, n, 0x5410), __byte_perm(m, n, 0x7632));
}

/* Lane i learns how block i % BLOCKS is cast; that block is in half i % 2 of unit i % BLOCKS / 2. */
FE_DEVICE fe_block_scale block_of(const input *in, bool pow2) {
    uint32_t pair[UNITS / 2];
    int lane = fe_lane(), unit = lane % BLOCKS / 2;
#pragma unroll
    for (int i = 0; i < UNITS / 2; i++) {
        pair[i] = lane_max(in->v[2 * i], in->v[2 * i + 1]);
#pragma unroll
        for (int apart = 8; apart; apart /= 2)
            pair[i] = fe_bf16x2_max(pair[i], __shfl_xor_sync(FE_ALL, pair[i], apart));
        pair[i] = __shfl_sync(FE_ALL, pair[i], lane % 2 * 16);
    }
    uint32_t mine = unit / 2 ? pair[1] : pair[0];
    float amax = unit % 2 ? fe_high(mine) : fe_low(mine);
    return fe_block_scale_of(fmaxf(amax, 0.0f), pow2); /* all NaN: none counts */
}

FE_DEVICE uint2 cast_lane(uint4 v, float f) {
    return make_uint2(fe_e4m3x4(fe_low(v.x) * f, fe_high(v.x) * f, fe_low(v.y) * f, fe_high(v.y) * f),
                      fe_e4m3x4(fe_low(v.z) * f, fe_high(v.z) * f, fe_low(v.w) * f, fe_high(v.w) * f));
}

FE_DEVICE void cast_piece(const fe_scatter &s, int piece, const input *in, output *out) {
    int lane = fe_lane(), block = lane % BLOCKS;
    fe_block_scale its = block_of(in, s.cast != FERRY_CAST_E4M3);
#pragma unroll
    for (int i = 0; i < UNITS; i++) out->q[i] = cast_lane(in->v[i], __shfl_sync(FE_ALL, its.factor, 2 * i + lane / 16));
    out->word = __float_as_uint(its.scale);
    if (s.cast != FERRY_CAST_E4M3_UE8M0) return;
    bool real = (piece * BLOCKS + block) * FE_CAST_BLOCK < (int)s.columns;
    uint32_t byte = real ? fe_ue8m0_from_f32(its.scale) : 0;
    out->word = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) out->word |= __shfl_sync(FE_ALL, byte, (block * 4 + i) % BLOCKS) << 8 * i;
}

/* To up to 32 places, one a lane: they come first in a list. */
FE_DEVICE void store_scales(const fe_scatter &s, char *scales_to, int count, int piece, uint32_t word) {
    int most = s.cast == FERRY_CAST_E4M3_UE8M0 ? BLOCKS / 4 : BLOCKS, at = fe_lane() % BLOCKS, sub = fe_lane() / BLOCKS;
    bool mine = at < most && piece * most + at < (int)(s.scale_bytes / 4);
    for (int first = 0; first < count; first += FE_WARP / BLOCKS) {
        uint32_t *scales = (uint32_t *)fe_of_lane(scales_to, first + sub);
        if (mine && first + sub < count) scales[piece * most + at] = word;
    }
}

/* The same. unit 16: by bulk copies from the bench, each lane to its own place. */
FE_DEVICE void store_piece(const fe_scatter &s, const fe_board &b, fe_cuda_place to, int piece, const output *out,
                           uint32_t bench, int unit) {
    uint32_t places = __ballot_sync(FE_ALL, to.slot >= 0);
    int left_over = (int)s.columns - piece * PIECE;
    char *row_to = NULL, *scales_to = NULL;
    if (to.slot >= 0) {
        row_to = fe_row_to(b, to) + (size_t)piece * PIECE;
        scales_to = fe_scales_to(b, to);
    }
    if (unit == 16) {
#if FE_BULK
        if (to.slot >= 0) fe_bulk_store(row_to, bench, (uint32_t)min(PIECE, left_over));
#endif
    } else {
        for (uint32_t left = places; left; left &= left - 1) {
            char *row = fe_of_lane(row_to, __ffs((int)left) - 1) + fe_lane() * 8;
#pragma unroll
            for (int i = 0; i < UNITS; i++)
                if (i * 256 + fe_lane() * 8 < left_over) fe_store8(row + i * 256, out->q[i], unit);
        }
    }
    store_scales(s, scales_to, __popc(places), piece, out->word);
}

/* Onto the warp's bench, once the copies from it are through. */
FE_DEVICE void lay_out(const output *out, uint32_t bench) {
#if FE_BULK
    fe_bulk_read_but<0>();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < UNITS; i++) fe_shared_store8(bench + i * 256 + fe_lane() * 8, out->q[i]);
    fe_proxy_fence_shared();
    __syncwarp();
#endif
}

FE_DEVICE void cast_all(const fe_cuda_args &a, const fe_board &b, fe_share item, input *in, fe_cuda_place next,
                        bool wide, uint32_t bench, int unit) {
    const fe_scatter &s = a.pass.scatter;
    int topk = a.route.shape.topk;
    while (fe_more(item)) {
        fe_share coming = fe_after(item);
        fe_cuda_place to = next;
        output out;
        cast_piece(s, item.piece, in, &out);
        if (unit == 16) lay_out(&out, bench);
        if (fe_more(coming)) {
            fetch(s, coming, wide, in);
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
    fe_share item = fe_warps_share(a.route.shape.tokens, ((int)s.columns + PIECE - 1) / PIECE);
    bool wide = fe_bits_of(s.rows, s.row_stride) % 16 == 0;
    uint32_t bench = 0;
    uint64_t epoch;
    input in;
    fe_cuda_place next = {-1, -1};
#if FE_BULK
    __shared__ __align__(128) char benches[WARPS * PIECE];
    bench = fe_shared_at(benches) + threadIdx.x / FE_WARP * PIECE;
#endif
    fe_after_stream();
    if (fe_more(item)) { /* ours: before the others are heard */
        fetch(s, item, wide, &in);
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
    int64_t pieces = ((int64_t)args->pass.scatter.columns + PIECE - 1) / PIECE;
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
