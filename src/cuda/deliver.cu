/* What arrived, to where it is wanted: counts and starts, padding, copies out of the space where the caller's tensors lie elsewhere; and,
 * the other way, the combine's rows into it. A warp takes a row. */
#include "cuda/launch.cuh"
#include "cuda/rows.cuh"
#include "route/lay.h"

/* Calls each(slot) for every real row, a row to a warp of the grid. */
template <class Each> FE_DEVICE void walk_rows(const fe_cuda_args &a, Each each) {
    const fe_shape &s = a.route.shape;
    int64_t per_unit = s.layout == FERRY_LAYOUT_SLOTS ? (int64_t)s.ranks * s.max_tokens : 0;
    int64_t warp = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / FE_WARP;
    int64_t warps = (int64_t)gridDim.x * blockDim.x / FE_WARP, before = 0;
    int blocks = fe_units_here(a) * s.ranks;
    for (int b = 0; b < blocks; b++) {
        int64_t count = a.route.blocks.counts[b], start = b / s.ranks * per_unit + a.route.blocks.starts[b];
        /* The rows of all blocks are dealt to the warps in turn: short blocks keep all warps busy too. */
        int64_t first = (warp - before % warps + warps) % warps;
        for (int64_t i = first; i < count; i += warps) each(start + i);
        before += count;
    }
}

/* ---- dispatch ---- */

FE_DEVICE void deliver_row(const fe_cuda_args &a, int64_t slot) {
    const fe_deliver &d = a.pass.deliver;
    const fe_shape &s = a.route.shape;
    const char *space = a.world.space[s.rank];
    size_t each = 4 * (s.layout == FERRY_LAYOUT_RANK ? (size_t)s.topk : 1);
    if (d.rows_to)
        fe_copy_bytes(d.rows_to + slot * d.rows_to_stride, space + d.rows_at + slot * d.row_stride, d.row_bytes);
    int64_t scales_at = 0;
    if (d.scales_to) scales_at = slot / d.expert_slots * d.scale_to_expert + slot % d.expert_slots * d.scale_to_row;
    for (size_t w = fe_lane(); d.scales_to && w < d.scale_bytes / 4; w += FE_WARP) {
        const char *from = space + d.scales_at + slot * d.scale_stride + w * 4;
        char *to = d.scales_to + scales_at + (int64_t)w * d.scale_to_word;
        for (int i = 0; i < 4; i++) to[i] = from[i]; /* words of BYTES tensors may lie anywhere */
    }
    if (!d.topk) return;
    if (d.source_to) fe_copy_bytes(d.source_to + slot * 4, space + d.source_at + slot * 4, 4);
    if (d.ids_to && s.layout == FERRY_LAYOUT_RANK)
        fe_copy_bytes(d.ids_to + slot * each, space + d.ids_at + slot * each, each);
    if (d.weights_to && a.route.table.weights)
        fe_copy_bytes(d.weights_to + slot * each, space + d.weights_at + slot * each, each);
}

/* Slots [from, to) between blocks of EXPERT. */
FE_DEVICE void pad_rows(const fe_cuda_args &a, int64_t from, int64_t to) {
    const fe_deliver &d = a.pass.deliver;
    char *space = a.world.space[a.world.rank];
    int32_t *source = (int32_t *)(d.source_to ? d.source_to : space + d.source_at);
    float *weights = (float *)(d.weights_to ? d.weights_to : space + d.weights_at);
    char *rows = d.rows_to ? d.rows_to : space + d.rows_at;
    int64_t stride = d.rows_to ? d.rows_to_stride : d.row_stride;
    int64_t warp = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / FE_WARP;
    int64_t warps = (int64_t)gridDim.x * blockDim.x / FE_WARP;
    for (int64_t i = from + warp; i < to; i += warps) {
        if (d.topk && fe_lane() == 0) source[i] = -1;
        if (d.topk && a.route.table.weights && fe_lane() == 0) weights[i] = 0;
        for (size_t b = fe_lane(); d.zero_padding && b < d.row_bytes; b += FE_WARP) rows[i * stride + (int64_t)b] = 0;
    }
}

FE_DEVICE void pad(const fe_cuda_args &a) {
    const fe_shape &s = a.route.shape;
    const fe_blocks &blocks = a.route.blocks;
    if (s.layout != FERRY_LAYOUT_EXPERT || !(a.pass.deliver.topk || a.pass.deliver.zero_padding)) return;
    int64_t end = 0, rows = a.route.totals->rows;
    for (int u = 0; u < fe_units_here(a); u++) {
        int64_t start = blocks.starts[u * s.ranks];
        pad_rows(a, end, fe_least(start, rows));
        end = blocks.starts[u * s.ranks + s.ranks - 1] + blocks.counts[u * s.ranks + s.ranks - 1];
    }
    pad_rows(a, end, fe_least(fe_align_rows(end, s.alignment), rows));
}

namespace ferry {
__global__ void __launch_bounds__(256, 1) deliver(const __grid_constant__ fe_cuda_args a) {
    const fe_deliver &d = a.pass.deliver;
    uint64_t epoch;
    if (!fe_open(a, &epoch)) return;
    if (fe_slots_fixed(&a.route.shape)) {
        fe_read_tails(a, (int)threadIdx.x, (int)blockDim.x); /* every block the same: they need the table below */
        __syncthreads();
    }
    if (d.rows_to || d.scales_to || d.source_to || d.ids_to || d.weights_to)
        walk_rows(a, [&](int64_t slot) { deliver_row(a, slot); });
    pad(a);
    if (blockIdx.x == 0) fe_write_counts(a, (int)threadIdx.x, (int)blockDim.x);
    fe_close(a, epoch);
}
} // namespace ferry

cudaError_t fe_cuda_launch_deliver(fe_cuda_args *args, cudaStream_t stream) {
    const fe_deliver *d = &args->pass.deliver;
    bool copies = d->rows_to || d->scales_to || d->source_to || d->ids_to || d->weights_to;
    bool pads = args->route.shape.layout == FERRY_LAYOUT_EXPERT && (d->topk || d->zero_padding);
    if (!copies && !pads) args->blocks = 1;
    return fe_launch_pass(args, (const void *)ferry::deliver, 256, 0, stream);
}

/* ---- combine ---- */

/* Weights of the caller's for this combine, to those on other hosts who sum with them. */
FE_DEVICE uint64_t far_weights_at(const fe_cuda_args &a, const size_t *box, int host) {
    return box[a.pass.half] + (uint64_t)host * a.world.boxes.weight_bytes;
}

FE_DEVICE void write_far_weights(const fe_cuda_args &a) {
    const fe_gather &g = a.pass.gather;
    const fe_hosts &hosts = a.world.hosts;
    int64_t tokens = a.route.shape.tokens, threads = (int64_t)gridDim.x * blockDim.x;
    int topk = a.route.shape.topk;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < hosts.count * tokens; i += threads) {
        int64_t token = i % tokens, number = a.route.far.record[i];
        if (number < 0 || i / tokens == hosts.mine) continue;
        float *to = (float *)(a.world.boxed + far_weights_at(a, a.world.boxes.weights_out, (int)(i / tokens)));
        for (int k = 0; k < topk; k++)
            to[number * topk + k] = g.far_weights[token * g.far_weight_row + k * g.far_weight_choice];
    }
}

FE_DEVICE void push_far_weights(const fe_cuda_args &a) {
    const fe_cuda_world &w = a.world;
    for (int h = 0; h < w.hosts.count; h++)
        if (h != w.hosts.mine)
            fe_push(a, h, FE_OFFER, far_weights_at(a, w.boxes.weights_out, h),
                    far_weights_at(a, w.boxes.weights_in, w.hosts.mine),
                    (uint64_t)a.route.far.records[h] * a.route.shape.topk * sizeof(float));
}

namespace ferry {
__global__ void __launch_bounds__(256, 1) gather(const __grid_constant__ fe_cuda_args a) {
    const fe_gather &g = a.pass.gather;
    char *space = a.world.space[a.world.rank];
    uint64_t epoch;
    if (!fe_open(a, &epoch)) return;
    if (g.rows_to || g.weights_to)
        walk_rows(a, [&](int64_t slot) {
            if (g.rows_to)
                fe_copy_bytes(space + g.rows_to + slot * (int64_t)g.row_bytes, g.rows + slot * g.row_stride,
                              g.row_bytes);
            if (g.weights_to)
                fe_copy_bytes(space + g.weights_to + slot * (int64_t)g.weight_bytes,
                              g.weights + slot * (int64_t)g.weight_bytes, g.weight_bytes);
        });
    if (g.far_weights) write_far_weights(a);
    if (!fe_last(a)) return;
    if (g.far_weights && fe_lane() == 0) push_far_weights(a);
    fe_settle(a, epoch);
}
} // namespace ferry

cudaError_t fe_cuda_launch_gather(fe_cuda_args *args, cudaStream_t stream) {
    const fe_gather *g = &args->pass.gather;
    if (!g->rows_to && !g->weights_to && !g->far_weights) return fe_cuda_launch_nothing(args, stream);
    return fe_launch_pass(args, (const void *)ferry::gather, 256, 0, stream);
}

cudaError_t fe_cuda_prepare_deliver(void) {
    struct cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, (const void *)ferry::deliver);
    return error == cudaSuccess ? cudaFuncGetAttributes(&attributes, (const void *)ferry::gather) : error;
}
