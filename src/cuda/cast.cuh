/* bf16 to e4m3 and scales. A warp takes pieces of 1024 channels, so no block of 128 channels is shared with another warp; a half-warp's
 * 16 lanes hold one block, 8 channels each. */
#ifndef FERRY_CUDA_CAST_CUH
#define FERRY_CUDA_CAST_CUH

#include "cuda/rows.cuh"

#define FE_CAST_UNITS  4 /* of 256 channels: 512 bytes in, 256 out, two blocks */
#define FE_CAST_PIECE  (FE_CAST_UNITS * 256)
#define FE_CAST_BLOCKS (FE_CAST_PIECE / FE_CAST_BLOCK)

typedef struct fe_cast_in { /* of a lane */
    uint4 v[FE_CAST_UNITS];
} fe_cast_in;

typedef struct fe_cast_out {
    uint2 q[FE_CAST_UNITS];
    uint32_t word; /* of scales; lane i has the piece's word i % FE_CAST_BLOCKS, where there is one */
} fe_cast_out;

/* wide: rows are aligned to 16 bytes; otherwise to their elements. */
FE_DEVICE void fe_cast_fetch(const fe_scatter &s, const fe_share &item, bool wide, fe_cast_in *in) {
    int channel = item.piece * FE_CAST_PIECE + fe_lane() * 8;
    const char *from = s.rows + item.token * s.row_stride + (size_t)channel * 2;
#pragma unroll
    for (int i = 0; i < FE_CAST_UNITS; i++, channel += 256, from += 512) {
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
FE_DEVICE uint32_t fe_lane_max(uint4 first, uint4 second) {
    const uint32_t positive = 0x7fff7fffu;
    uint32_t m = fe_bf16x2_max(fe_bf16x2_max(first.x & positive, first.y & positive),
                               fe_bf16x2_max(first.z & positive, first.w & positive));
    uint32_t n = fe_bf16x2_max(fe_bf16x2_max(second.x & positive, second.y & positive),
                               fe_bf16x2_max(second.z & positive, second.w & positive));
    return fe_bf16x2_max(__byte_perm(m, n, 0x5410), __byte_perm(m, n, 0x7632));
}

/* Lane i learns how block i % FE_CAST_BLOCKS is cast; that block is in half i % 2 of unit i % FE_CAST_BLOCKS / 2. */
FE_DEVICE fe_block_scale fe_block_of(const fe_cast_in *in, bool pow2) {
    uint32_t pair[FE_CAST_UNITS / 2];
    int lane = fe_lane(), unit = lane % FE_CAST_BLOCKS / 2;
#pragma unroll
    for (int i = 0; i < FE_CAST_UNITS / 2; i++) {
        pair[i] = fe_lane_max(in->v[2 * i], in->v[2 * i + 1]);
#pragma unroll
        for (int apart = 8; apart; apart /= 2)
            pair[i] = fe_bf16x2_max(pair[i], __shfl_xor_sync(FE_ALL, pair[i], apart));
        pair[i] = __shfl_sync(FE_ALL, pair[i], lane % 2 * 16);
    }
    uint32_t mine = unit / 2 ? pair[1] : pair[0];
    float amax = unit % 2 ? fe_high(mine) : fe_low(mine);
    return fe_block_scale_of(fmaxf(amax, 0.0f), pow2); /* all NaN: none counts */
}

FE_DEVICE uint2 fe_cast_lane(uint4 v, float f) {
    return make_uint2(fe_e4m3x4(fe_low(v.x) * f, fe_high(v.x) * f, fe_low(v.y) * f, fe_high(v.y) * f),
                      fe_e4m3x4(fe_low(v.z) * f, fe_high(v.z) * f, fe_low(v.w) * f, fe_high(v.w) * f));
}

FE_DEVICE void fe_cast_piece(const fe_scatter &s, int piece, const fe_cast_in *in, fe_cast_out *out) {
    int lane = fe_lane(), block = lane % FE_CAST_BLOCKS;
    fe_block_scale its = fe_block_of(in, s.cast != FERRY_CAST_E4M3);
#pragma unroll
    for (int i = 0; i < FE_CAST_UNITS; i++)
        out->q[i] = fe_cast_lane(in->v[i], __shfl_sync(FE_ALL, its.factor, 2 * i + lane / 16));
    out->word = __float_as_uint(its.scale);
    if (s.cast != FERRY_CAST_E4M3_UE8M0) return;
    bool real = (piece * FE_CAST_BLOCKS + block) * FE_CAST_BLOCK < (int)s.columns;
    uint32_t byte = real ? fe_ue8m0_from_f32(its.scale) : 0;
    out->word = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) out->word |= __shfl_sync(FE_ALL, byte, (block * 4 + i) % FE_CAST_BLOCKS) << 8 * i;
}

#endif
