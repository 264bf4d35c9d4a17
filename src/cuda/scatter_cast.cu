/* Dispatch, sending side: bf16 rows become e4m3 and scales on the way. A warp takes pieces of 1024 channels, so no block of 128 channels
 * is shared with another warp; a half-warp's 16 lanes hold one block, 8 channels each. */
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
    uint32_t word; /* of scales; lane i has the piece's word i, where it is one */
} output;

/* wide: rows are aligned to 16 bytes; otherwise to their elements. */
FE_DEVICE void fetch(const fe_cuda_args &a, int token, int piece, bool wide, input *in) {
    const fe_scatter &s = a.pass.scatter;
    int channel = piece * PIECE + fe_lane() * 8;
    const char *from = s.rows + token * s.row_stride + (size_t)channel * 2;
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

/* One unit; every lane of a half-warp learns its block's scale. */
FE_DEVICE uint2 cast_unit(uint4 v, bool pow2, float *scale) {
    float x[8] = {fe_low(v.x), fe_high(v.x), fe_low(v.y), fe_high(v.y),
                  fe_low(v.z), fe_high(v.z), fe_low(v.w), fe_high(v.w)};
    float amax = 0;
#pragma unroll
    for (int c = 0; c < 8; c++) amax = fmaxf(amax, fabsf(x[c])); /* leaves NaN out */
#pragma unroll
    for (int apart = 8; apart; apart /= 2) amax = fmaxf(amax, __shfl_xor_sync(FE_ALL, amax, apart));
    fe_block_scale block = fe_block_scale_of(amax, pow2);
    float f = block.factor;
    *scale = block.scale;
    return make_uint2(fe_e4m3x4(x[0] * f, x[1] * f, x[2] * f, x[3] * f),
                      fe_e4m3x4(x[4] * f, x[5] * f, x[6] * f, x[7] * f));
}

/* Words of scales that the piece has, for lane to be below. */
FE_DEVICE int words_of(const fe_scatter &s, int piece) {
    bool bytes = s.cast == FERRY_CAST_E4M3_UE8M0;
    return min(bytes ? BLOCKS / 4 : BLOCKS, (int)(s.scale_bytes / 4) - piece * (bytes ? BLOCKS / 4 : BLOCKS));
}

FE_DEVICE void cast_piece(const fe_scatter &s, int piece, const input *in, output *out) {
    bool bytes = s.cast == FERRY_CAST_E4M3_UE8M0;
    int lane = fe_lane();
    float mine = 0; /* lane i: of block i, which is in half i % 2 of unit i / 2 */
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
        float scale;
        out->q[i] = cast_unit(in->v[i], s.cast != FERRY_CAST_E4M3, &scale);
        scale = __shfl_sync(FE_ALL, scale, lane % 2 * 16);
        if (lane / 2 == i) mine = scale;
    }
    out->word = __float_as_uint(mine);
    if (!bytes) return;
    bool real = (piece * BLOCKS + lane) * FE_CAST_BLOCK < (int)s.columns;
    uint32_t byte = real ? fe_ue8m0_from_f32(mine) : 0;
    out->word = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) out->word |= __shfl_sync(FE_ALL, byte, (lane * 4 + i) % FE_WARP) << 8 * i;
}

/* To up to 32 places, one a lane. unit 16: by bulk copies from the bench. */
FE_DEVICE void store_piece(const fe_cuda_args &a, const fe_board &b, fe_cuda_place to, int piece, const output *out,
                           const char *bench, int unit) {
    const fe_scatter &s = a.pass.scatter;
    int lane = fe_lane(), words = words_of(s, piece), left_over = (int)s.columns - piece * PIECE;
    char *row_to = NULL, *scales_to = NULL;
    if (to.slot >= 0) {
        row_to = fe_row_to(b, to) + (size_t)piece * PIECE;
        scales_to = fe_scales_to(b, to) + (size_t)piece * (s.cast == FERRY_CAST_E4M3_UE8M0 ? BLOCKS : BLOCKS * 4);
    }
    for (uint32_t left = __ballot_sync(FE_ALL, to.slot >= 0); left; left &= left - 1) {
        char *row = fe_of_lane(row_to, __ffs((int)left) - 1), *scales = fe_of_lane(scales_to, __ffs((int)left) - 1);
        if (unit == 16) {
#if FE_BULK
            if (lane == 0) fe_bulk_store(row, bench, (uint32_t)min(PIECE, left_over));
#endif
        } else {
#pragma unroll
            for (int i = 0; i < UNITS; i++)
                if (i * 256 + lane * 8 < left_over) fe_store8(row + i * 256 + lane * 8, out->q[i], unit);
        }
        if (lane < words) ((uint32_t *)scales)[lane] = out->word;
    }
    (void)bench;
}

/* Onto the warp's bench, once the copies from it are through. */
FE_DEVICE void lay_out(const output *out, char *bench) {
#if FE_BULK
    if (fe_lane() == 0) fe_bulk_read_but<0>();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < UNITS; i++) *(uint2 *)(bench + i * 256 + fe_lane() * 8) = out->q[i];
    fe_proxy_fence_shared();
    __syncwarp();
#else
    (void)out, (void)bench;
#endif
}

static __global__ void __launch_bounds__(WARPS *FE_WARP) fe_scatter_cast(const __grid_constant__ fe_cuda_args a) {
    __shared__ __align__(128) char benches[FE_BULK ? WARPS * PIECE : 16];
    const fe_scatter &s = a.pass.scatter;
    int warp = (int)threadIdx.x / FE_WARP, warps = (int)blockDim.x / FE_WARP, topk = a.route.shape.topk;
    int pieces = ((int)s.columns + PIECE - 1) / PIECE, items = a.route.shape.tokens * pieces;
    int item = (int)blockIdx.x * warps + warp, step = (int)gridDim.x * warps;
    bool wide = fe_bits_of(s.rows, s.row_stride) % 16 == 0;
    char *bench = benches + (FE_BULK ? warp * PIECE : 0);
    uint64_t epoch;
    input in;
    fe_cuda_place next = {-1, -1};
    if (item < items) { /* ours: before the others are heard */
        fetch(a, item / pieces, item % pieces, wide, &in);
        next = fe_listed(a.extra.go, item / pieces, topk, 0);
    }
    if (!fe_open(a, &epoch)) return;
    fe_board b = fe_board_of(a, FE_READY);
    int unit = min(fe_scatter_unit(a, b, (unsigned)s.columns, false), FE_BULK ? 16 : 8);
    for (; item < items; item += step) {
        int token = item / pieces, piece = item % pieces, coming = item + step;
        fe_cuda_place to = next;
        output out;
        cast_piece(s, piece, &in, &out);
        if (unit == 16) lay_out(&out, bench);
        if (coming < items) {
            fetch(a, coming / pieces, coming % pieces, wide, &in);
            next = fe_listed(a.extra.go, coming / pieces, topk, 0);
        }
        store_piece(a, b, to, piece, &out, bench, unit);
        for (int first = FE_WARP; first < topk; first += FE_WARP)
            store_piece(a, b, fe_listed(a.extra.go, token, topk, first), piece, &out, bench, unit);
#if FE_BULK
        if (fe_lane() == 0) fe_bulk_commit();
#endif
        if (piece == 0 && s.topk) fe_write_beside(a, b, token, to, false);
    }
#if FE_BULK
    if (fe_lane() == 0) fe_bulk_stored();
#endif
    fe_write_tails(a);
    fe_close(a, epoch);
}

static int known[FE_CUDA_CARDS];

cudaError_t fe_cuda_scatter_cast(fe_cuda_args *args, cudaStream_t stream) {
    int64_t pieces = ((int64_t)args->pass.scatter.columns + PIECE - 1) / PIECE;
    int room = 0;
    cudaError_t error = fe_kernel_room((const void *)fe_scatter_cast, known, &room);
    if (error != cudaSuccess) return error;
    int threads = fe_share_out(args, args->route.shape.tokens * pieces, room ? MOST_WARPS : FEW_WARPS);
    fe_scatter_cast<<<args->blocks, threads, 0, stream>>>(*args);
    return cudaGetLastError();
}

cudaError_t fe_cuda_scatter_cast_prepare(void) {
    int room;
    return fe_kernel_room((const void *)fe_scatter_cast, known, &room);
}
