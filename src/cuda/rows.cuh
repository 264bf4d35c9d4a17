/* What the kernels that move rows share: loads and stores, number formats, bulk copies, and where the other ranks have their rows.
 *
 * Bulk copies (sm_90 and later) go from and to shared memory beside the warps; `FE_BULK` says whether the code that is being
 * compiled may use them. They are accesses by another proxy than ordinary loads and stores, hence the fences. */
#ifndef FERRY_CUDA_ROWS_CUH
#define FERRY_CUDA_ROWS_CUH

#include "base/num.h"
#include "cuda/note.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define FE_BULK 1
#else
#define FE_BULK 0
#endif

/* ---- places ---- */

/* The notes of all ranks of one kind and half, and where their spaces are. Read through the L1 cache: a note does not change
 * while the pass that heard it runs, and fe_open's acquire has dropped what the cache held before. */
typedef struct fe_board {
    const fe_cell *note; /* [ranks] */
    char *const *space;
} fe_board;

/* Whole block. Notes in host memory are copied first, into the block's own place. */
FE_DEVICE fe_board fe_board_of(const fe_cuda_args &a, int kind) {
    const fe_cuda_world &w = a.world;
    fe_board b = {fe_cells_here(w, kind, a.pass.half), w.space};
    if (!w.far) return b;
    const int words = (int)(sizeof(fe_cell) / sizeof(uint64_t));
    fe_cell *mine = w.board + ((size_t)a.ticket * w.board_blocks + blockIdx.x) * w.ranks;
    const volatile uint64_t *from = (const volatile uint64_t *)b.note;
    for (int i = (int)threadIdx.x; i < w.ranks * words; i += (int)blockDim.x) ((uint64_t *)mine)[i] = from[i];
    __syncthreads();
    b.note = mine;
    return b;
}
FE_DEVICE char *fe_board_at(const fe_board &b, int rank, int word) {
    return b.space[rank] + b.note[rank].word[word];
}

/* Lane i's is entry first + i of a token's list; slot -1 past its end. */
FE_DEVICE fe_cuda_place fe_listed(const fe_cuda_place *list, int token, int topk, int first) {
    fe_cuda_place none = {-1, -1};
    int k = first + fe_lane();
    return k < topk ? list[(size_t)token * topk + k] : none;
}

FE_DEVICE char *fe_of_lane(char *mine, int lane) {
    return (char *)__shfl_sync(FE_ALL, (unsigned long long)mine, lane);
}
FE_DEVICE const char *fe_of_lane(const char *mine, int lane) {
    return (const char *)__shfl_sync(FE_ALL, (unsigned long long)mine, lane);
}

/* Whole block: the largest unit, of at most 16 bytes, that divides everything whose bits the threads bring. */
FE_DEVICE int fe_unit_of(unsigned bits) {
    int unit = 16;
    while (unit > 1 && __syncthreads_or((int)(bits & (unsigned)(unit - 1)))) unit /= 2;
    return unit;
}
FE_DEVICE unsigned fe_bits_of(const void *address, int64_t stride) {
    return (unsigned)(uintptr_t)address | (unsigned)stride;
}

/* ---- who does what: items are pieces of tokens' rows, token by token ---- */

/* Where somebody is who takes every step-th item. Kept so that going on needs no division. */
typedef struct fe_share {
    int token, piece, tokens, pieces; /* at the end when token >= tokens */
    int token_step, piece_step;
} fe_share;

FE_DEVICE fe_share fe_share_of(int first, int step, int tokens, int pieces) {
    fe_share s = {first / pieces, first % pieces, tokens, pieces, step / pieces, step % pieces};
    return s;
}
/* Of a warp of block number `block` of `blocks`. */
FE_DEVICE fe_share fe_warps_share_of(int block, int blocks, int tokens, int pieces) {
    int warps = (int)blockDim.x / FE_WARP;
    return fe_share_of(block * warps + (int)threadIdx.x / FE_WARP, blocks * warps, tokens, pieces);
}
/* Of a warp of the grid. */
FE_DEVICE fe_share fe_warps_share(int tokens, int pieces) {
    return fe_warps_share_of((int)blockIdx.x, (int)gridDim.x, tokens, pieces);
}
FE_DEVICE bool fe_more(const fe_share &s) {
    return s.token < s.tokens;
}
FE_DEVICE fe_share fe_after(fe_share s) {
    s.token += s.token_step;
    s.piece += s.piece_step;
    if (s.piece >= s.pieces) {
        s.piece -= s.pieces;
        s.token++;
    }
    return s;
}
/* Does this item see to what goes beside its token's row? Not always the first piece: a warp may get the same piece every time. */
FE_DEVICE bool fe_sees_to_token(const fe_share &s) {
    return s.pieces == 1 || s.token % s.pieces == s.piece;
}

/* ---- loads and stores ---- */

/* Rows pass once: they leave the L1 cache to the lists. */
FE_DEVICE uint4 fe_load16(const void *from) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}
FE_DEVICE void fe_store16(void *to, uint4 v) {
    asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}
template <typename T> FE_DEVICE T fe_load(const void *from) {
    return *(const T *)from;
}
template <> __device__ __forceinline__ uint4 fe_load<uint4>(const void *from) {
    return fe_load16(from);
}
template <typename T> FE_DEVICE void fe_store(void *to, T v) {
    *(T *)to = v;
}
template <> __device__ __forceinline__ void fe_store<uint4>(void *to, uint4 v) {
    fe_store16(to, v);
}

/* One whole warp: bytes from anywhere to anywhere; both addresses and the length decide how wide they go. */
FE_DEVICE void fe_copy_bytes(char *to, const char *from, size_t bytes) {
    uintptr_t all = (uintptr_t)to | (uintptr_t)from | bytes;
    int lane = fe_lane();
    if (all % 16 == 0)
        for (size_t i = lane; i < bytes / 16; i += FE_WARP) ((uint4 *)to)[i] = ((const uint4 *)from)[i];
    else if (all % 4 == 0)
        for (size_t i = lane; i < bytes / 4; i += FE_WARP) ((uint32_t *)to)[i] = ((const uint32_t *)from)[i];
    else
        for (size_t i = lane; i < bytes; i += FE_WARP) to[i] = from[i];
}

/* Four bytes at any address. */
FE_DEVICE uint32_t fe_load_word(const char *from) {
    if (((uintptr_t)from & 3) == 0) return *(const uint32_t *)from;
    const uint8_t *byte = (const uint8_t *)from;
    return byte[0] | (uint32_t)byte[1] << 8 | (uint32_t)byte[2] << 16 | (uint32_t)byte[3] << 24;
}
/* Eight bytes, by units that the address allows. */
FE_DEVICE void fe_store8(char *to, uint2 v, int unit) {
    if (unit >= 8) {
        *(uint2 *)to = v;
    } else if (unit == 4) {
        ((uint32_t *)to)[0] = v.x;
        ((uint32_t *)to)[1] = v.y;
    } else {
        for (int i = 0; i < 4; i++) to[i] = (char)(v.x >> 8 * i);
        for (int i = 0; i < 4; i++) to[4 + i] = (char)(v.y >> 8 * i);
    }
}

/* ---- number formats: the bits of base/num.h ---- */

FE_DEVICE float fe_low(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
FE_DEVICE float fe_high(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}
/* The instructions' NaN is 0x7fff in both formats, which no number becomes. */
FE_DEVICE uint32_t fe_bf16x2(float first, float second) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair ^ (__vcmpeq2(pair, 0x7fff7fffu) & (0x7fff7fffu ^ (FE_BF16_NAN * 0x10001u)));
}
FE_DEVICE uint32_t fe_fp16x2(float first, float second) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair ^ (__vcmpeq2(pair, 0x7fff7fffu) & (0x7fff7fffu ^ (FE_FP16_NAN * 0x10001u)));
}
FE_DEVICE float fe_fp16_widen(uint16_t bits) { /* a NaN's payload does not matter: what is stored is canonical */
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
/* The larger of each pair; of a number and a NaN the number. */
FE_DEVICE uint32_t fe_bf16x2_max(uint32_t a, uint32_t b) {
    uint32_t pair;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
    return pair;
}
FE_DEVICE uint32_t fe_e4m3x4(float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint16_t low, high;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
    return (uint32_t)high << 16 | low;
#else
    return fe_e4m3_from_f32(a) | (uint32_t)fe_e4m3_from_f32(b) << 8 | (uint32_t)fe_e4m3_from_f32(c) << 16 |
           (uint32_t)fe_e4m3_from_f32(d) << 24;
#endif
}

/* ---- shared memory by its own addresses, which are 32 bits; bulk copies: addresses and sizes are multiples of 16 ---- */

#if FE_BULK
FE_DEVICE uint32_t fe_shared_at(const void *address) {
    return (uint32_t)__cvta_generic_to_shared(address);
}
FE_DEVICE uint4 fe_shared_load16(uint32_t from) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(from)
                 : "memory");
    return v;
}
FE_DEVICE void fe_shared_store8(uint32_t to, uint2 v) {
    asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(to), "r"(v.x), "r"(v.y) : "memory");
}

FE_DEVICE void fe_bar_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
FE_DEVICE void fe_bar_init_done(void) { /* for the copies' proxy; other threads want a barrier besides */
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
FE_DEVICE void fe_bar_expect(uint32_t bar, uint32_t bytes) { /* arrives, too */
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
FE_DEVICE void fe_bar_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
/* Ends: what is waited for here is a copy under way, or a warp that itself waits for nothing but copies. */
FE_DEVICE void fe_bar_wait(uint32_t bar, uint32_t parity) {
    uint32_t done = 0;
    while (!done)
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(bar), "r"(parity)
                     : "memory");
}

FE_DEVICE void fe_bulk_load(uint32_t to, const void *from, uint32_t bytes, uint32_t bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(bar)
                 : "memory");
}
FE_DEVICE void fe_bulk_store(void *to, uint32_t from, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
                 : "memory");
}
FE_DEVICE uint64_t fe_evict_first(void) {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
FE_DEVICE void fe_bulk_store_past(void *to, uint32_t from, uint32_t bytes, uint64_t policy) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;" ::"l"(to), "r"(from),
                 "r"(bytes), "l"(policy)
                 : "memory");
}
/* A thread's stores since the last commit are a group; groups are waited for by the thread that made them. */
FE_DEVICE void fe_bulk_commit(void) {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/* All but the last `N` groups have read their shared memory. */
template <int N> FE_DEVICE void fe_bulk_read_but(void) {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
FE_DEVICE void fe_bulk_stored(void) { /* all, and visible to this thread, so to whom it tells */
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
/* Ordinary accesses before, bulk copies after. */
FE_DEVICE void fe_proxy_fence(void) {
    asm volatile("fence.proxy.async;" ::: "memory");
}
FE_DEVICE void fe_proxy_fence_shared(void) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
#endif

/* ---- host: launching ---- */

#define FE_CUDA_CARDS 64

/* Once for each kernel and card: lets the kernel have all the shared memory that there is. *most: how much of it a launch may ask for;
 * 0 where the code that the card would run was built without bulk copies. */
static inline cudaError_t fe_kernel_room(const void *kernel, int known[FE_CUDA_CARDS], int *most) {
    int card = 0, room = 0;
    cudaFuncAttributes its;
    cudaError_t error = cudaGetDevice(&card);
    if (error != cudaSuccess) return error;
    if (card < FE_CUDA_CARDS) room = __atomic_load_n(&known[card], __ATOMIC_RELAXED);
    if (room == 0) {
        error = cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, card);
        if (error == cudaSuccess) error = cudaFuncGetAttributes(&its, kernel); /* loads the kernel, too */
        if (error != cudaSuccess) return error;
        room = its.ptxVersion >= 90 ? room - (int)its.sharedSizeBytes : -1;
        if (room > 0) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, room);
        if (error != cudaSuccess) return error;
        if (card < FE_CUDA_CARDS) __atomic_store_n(&known[card], room, __ATOMIC_RELAXED);
    }
    *most = room > 0 ? room : 0;
    return cudaSuccess;
}

/* Blocks, and threads of each, for items of which a warp takes one at a time: spread over blocks before warps, since an SM's share
 * of the bandwidth is what a block brings. */
static inline int fe_share_out(fe_cuda_args *args, int64_t items, int most_warps) {
    if (items < 1) items = 1;
    if (args->blocks > items) args->blocks = (int)items;
    int64_t each = (items + args->blocks - 1) / args->blocks;
    return FE_WARP * (int)(each < most_warps ? each : most_warps);
}

#endif
