/* Dispatch to other hosts: a token's row crosses the network once for each host, as a record (route/record.h) that is written to this rank's
 * outbox. Blocks take consecutive tokens; when a block has written their records it orders one write for each host. */
#include "cuda/cast.cuh"
#include "cuda/launch.cuh"
#include "cuda/record.cuh"

#define WARPS    16
#define THREADS  (WARPS * FE_WARP) /* the most tokens that a block takes at a time: a thread looks at each */
#define NET_MOST 262144            /* bytes for one host that a block takes at a time, ... */
#define NET_LEAST \
    65536 /* ... and at least so many, where there are: smaller writes cost the network more than they carry */

/* ---- numbers of records ---- */

FE_DEVICE bool goes_to(const fe_cuda_args &a, int token, int host) {
    const fe_table &table = a.route.table;
    size_t first = (size_t)token * a.route.shape.topk;
    for (int i = 0; i < table.fan[token]; i++)
        if (fe_record_host(&a.world.map, &a.world.hosts, table.home[first + table.order[first + i]]) == host)
            return true;
    return false;
}

/* Whole block: how many of the threads before this one say so; *all: of all. */
FE_DEVICE int count_before(bool here, int *all) {
    __shared__ int of_warp[FE_WARP];
    uint32_t mask = __ballot_sync(FE_ALL, here);
    int warp = (int)threadIdx.x / FE_WARP, before = 0;
    if (fe_lane() == 0) of_warp[warp] = __popc(mask);
    __syncthreads();
    *all = 0;
    for (int w = 0; w < (int)blockDim.x / FE_WARP; w++) {
        if (w < warp) before += of_warp[w];
        *all += of_warp[w];
    }
    __syncthreads();
    return before + __popc(mask & ((1u << fe_lane()) - 1));
}

namespace ferry {
__global__ void __launch_bounds__(THREADS, 1) number(const __grid_constant__ fe_cuda_args a) {
    const fe_far_route &far = a.route.far;
    int tokens = a.route.shape.tokens;
    fe_after_stream();
    if (*(volatile uint32_t *)&a.world.own->broken) return; /* and there may be no slots */
    for (int h = 0; h < a.world.hosts.count; h++) {
        int count = 0, all = 0;
        for (int first = 0; first < tokens; first += THREADS) {
            int token = first + (int)threadIdx.x;
            bool goes = token < tokens && goes_to(a, token, h);
            int before = count_before(goes, &all);
            if (token < tokens) far.record[(size_t)h * tokens + token] = goes ? count + before : -1;
            count += all;
        }
        if (threadIdx.x != 0) continue;
        far.records[h] = count;
        far.kept_count[h] = -1; /* nothing has come yet */
    }
}
} // namespace ferry

cudaError_t fe_cuda_launch_number(fe_cuda_args *args, cudaStream_t stream) {
    args->blocks = 1;
    return fe_launch_pass(args, (const void *)ferry::number, THREADS, 0, stream);
}

/* ---- records ---- */

FE_DEVICE void write_header(const fe_cuda_args &a, int host, int token, char *bench, char *to) {
    int header = (int)a.route.far.header;
    for (int i = fe_lane(); i < header / 4; i += FE_WARP) ((uint32_t *)bench)[i] = 0;
    __syncwarp();
    fe_record_write(&a.world.map, &a.world.hosts, &a.route.table, a.route.shape.topk, host, token, (fe_record *)bench,
                    fe_lane(), FE_WARP);
    __syncwarp();
    fe_copy_bytes(to, bench, (size_t)header);
    __syncwarp();
}

/* The row as given, and its scales word by word. */
FE_DEVICE void write_row(const fe_scatter &s, int token, char *to) {
    fe_copy_bytes(to, s.rows + token * s.row_stride, s.row_bytes);
    if (!s.scales) return;
    const char *from = s.scales + token * s.scale_row;
    for (int i = fe_lane(); i < (int)(s.scale_bytes / 4); i += FE_WARP)
        ((uint32_t *)(to + s.row_bytes))[i] = fe_load_word(from + i * s.scale_word);
}

FE_DEVICE void write_cast(const fe_scatter &s, int token, char *to) {
    fe_share item = {token, 0, token + 1, ((int)s.columns + FE_CAST_PIECE - 1) / FE_CAST_PIECE, 0, 1};
    bool wide = fe_bits_of(s.rows, s.row_stride) % 16 == 0;
    int words = s.cast == FERRY_CAST_E4M3_UE8M0 ? FE_CAST_BLOCKS / 4 : FE_CAST_BLOCKS; /* of a piece */
    for (; item.piece < item.pieces; item.piece++) {
        fe_cast_in in;
        fe_cast_out out;
        fe_cast_fetch(s, item, wide, &in);
        fe_cast_piece(s, item.piece, &in, &out);
        int channel = item.piece * FE_CAST_PIECE + fe_lane() * 8, word = item.piece * words + fe_lane();
#pragma unroll
        for (int i = 0; i < FE_CAST_UNITS; i++, channel += 256)
            if (channel < (int)s.columns) fe_store8(to + channel, out.q[i], 8);
        if (fe_lane() < words && word < (int)(s.scale_bytes / 4)) ((uint32_t *)(to + s.row_bytes))[word] = out.word;
    }
}

FE_DEVICE void pack_token(const fe_cuda_args &a, int token, size_t stride, char *bench) {
    const fe_cuda_world &w = a.world;
    const fe_far_route &far = a.route.far;
    for (int h = 0; h < w.hosts.count; h++) {
        int number = far.record[(size_t)h * a.route.shape.tokens + token];
        if (number < 0 || h == w.hosts.mine) continue;
        char *to = w.boxed + fe_outbox(a, h) + w.boxes.tail_bytes + (size_t)number * stride;
        write_header(a, h, token, bench, to);
        if (a.pass.scatter.cast == FERRY_CAST_NONE)
            write_row(a.pass.scatter, token, to + far.header);
        else
            write_cast(a.pass.scatter, token, to + far.header);
    }
}

/* Whole block: the records of tokens [from, to), at most as many as threads, to each host in one write. */
FE_DEVICE void push_records(const fe_cuda_args &a, int from, int to, size_t stride) {
    __shared__ int first;
    const fe_cuda_world &w = a.world;
    for (int i = 1; i < w.hosts.count; i++) {
        int h = (w.hosts.mine + i) % w.hosts.count, token = from + (int)threadIdx.x, number = -1;
        if (threadIdx.x == 0) first = INT32_MAX;
        __syncthreads();
        if (token < to) number = a.route.far.record[(size_t)h * a.route.shape.tokens + token];
        if (number >= 0) atomicMin(&first, number);
        int count = __syncthreads_count(number >= 0);
        uint64_t begin = w.boxes.tail_bytes + (uint64_t)first * stride;
        if (threadIdx.x == 0 && count)
            fe_push(a, h, FE_LANDED, fe_outbox(a, h) + begin, fe_landing(a, w.hosts.mine) + begin, count * stride);
        __syncthreads();
    }
}

/* One block. Fixed slots: how many rows each unit of a host's ranks gets from us, before the first record. */
FE_DEVICE void push_tails(const fe_cuda_args &a) {
    const fe_cuda_world &w = a.world;
    const fe_shape &s = a.route.shape;
    bool by_rank = s.layout == FERRY_LAYOUT_RANK;
    int width = w.map.most_local, all = w.hosts.each * width;
    for (int i = (int)threadIdx.x; i < w.hosts.count * all; i += (int)blockDim.x) {
        int host = i / all, at = i % all, r = fe_hosts_rank(&w.hosts, host, at / width), u = at % width;
        if (host == w.hosts.mine) continue;
        bool there = u < (by_rank ? 1 : fe_map_local(&w.map, r));
        ((int32_t *)(w.boxed + fe_outbox(a, host)))[at] =
            there ? a.route.scratch.keep[(by_rank ? r : w.map.rank_first[r]) + u] : 0;
    }
    __syncthreads();
    for (int h = 0; h < w.hosts.count && threadIdx.x == 0; h++)
        if (h != w.hosts.mine)
            fe_push(a, h, FE_LANDED, fe_outbox(a, h), fe_landing(a, w.hosts.mine), w.boxes.tail_bytes);
}

/* One thread, when all that is for other hosts has been ordered. */
FE_DEVICE void tell_landed(const fe_cuda_args &a, size_t stride, uint64_t epoch) {
    for (int h = 0; h < a.world.hosts.count; h++) {
        if (h == a.world.hosts.mine) continue;
        uint64_t word[FE_CELL_WORDS] = {0};
        word[FE_LANDED_RECORDS] = (uint64_t)a.route.far.records[h];
        word[FE_LANDED_STRIDE] = stride;
        word[FE_LANDED_HEADER] = a.route.far.header;
        fe_tell_far(a, h, FE_LANDED, word, epoch);
    }
}

namespace ferry {
__global__ void __launch_bounds__(THREADS, 1) pack(const __grid_constant__ fe_cuda_args a, int chunk) {
    __shared__ __align__(16) char bench[WARPS][FE_RECORD_BENCH];
    size_t stride = fe_record_stride(a.route.far.header, a.pass.scatter.row_bytes, a.pass.scatter.scale_bytes);
    int tokens = a.route.shape.tokens, warp = (int)threadIdx.x / FE_WARP;
    uint64_t epoch;
    if (!fe_open(a, &epoch)) return;
    if (blockIdx.x == 0 && fe_slots_fixed(&a.route.shape)) push_tails(a);
    for (int from = (int)blockIdx.x * chunk; from < tokens; from += (int)gridDim.x * chunk) {
        int to = min(from + chunk, tokens);
        for (int token = from + warp; token < to; token += WARPS) pack_token(a, token, stride, bench[warp]);
        __syncthreads();
        push_records(a, from, to, stride);
    }
    if (fe_close(a, epoch)) tell_landed(a, stride, epoch);
}
} // namespace ferry

/* The pass up to its move's first half: it announces, and signals nothing. */
cudaError_t fe_cuda_launch_pack(fe_cuda_args *args, cudaStream_t stream) {
    const fe_scatter *s = &args->pass.scatter;
    int64_t stride = (int64_t)fe_record_stride(args->route.far.header, s->row_bytes, s->scale_bytes);
    int64_t most = NET_MOST / stride, least = NET_LEAST / stride, tokens = args->route.shape.tokens;
    int64_t chunk = (tokens + args->blocks - 1) / args->blocks;
    chunk = chunk > most ? most : chunk;
    chunk = chunk < least ? least : chunk;
    int each = chunk < 1 ? 1 : chunk > THREADS ? THREADS : (int)chunk;
    int64_t chunks = (tokens + each - 1) / each;
    if (args->blocks > chunks) args->blocks = chunks > 0 ? (int)chunks : 1;
    args->pass.signal.used = false;
    void *arguments[] = {args, &each};
    return fe_launch(args, (const void *)ferry::pack, THREADS, 0, stream, arguments);
}

cudaError_t fe_cuda_prepare_pack(void) {
    struct cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, (const void *)ferry::number);
    return error == cudaSuccess ? cudaFuncGetAttributes(&attributes, (const void *)ferry::pack) : error;
}
