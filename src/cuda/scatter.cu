/* Dispatch, sending side: rows as they are, through registers; and which kernel a launch takes. */
#include "cuda/launch.cuh"
#include "cuda/scatter.cuh"

#define WARPS 24 /* 80 registers each */

namespace ferry {
__global__ void __launch_bounds__(WARPS *FE_WARP) dispatch_plain(const __grid_constant__ fe_cuda_args a) {
    const fe_scatter &s = a.pass.scatter;
    uint64_t epoch;
    if (!fe_open(a, &epoch)) return;
    fe_board b = fe_board_of(a, FE_READY);
    int unit = fe_scatter_unit(a, b, fe_bits_of(s.rows, s.row_stride) | (unsigned)s.row_bytes, false);
    fe_send_plain(a, b, unit);
    fe_write_tails(a);
    fe_close(a, epoch);
}
} // namespace ferry

cudaError_t fe_cuda_launch_scatter(fe_cuda_args *args, cudaStream_t stream) {
    const fe_scatter *s = &args->pass.scatter;
    bool done = false;
    if (args->world.far) { /* what goes to other hosts goes first, and has said READY */
        fe_cuda_args pack = *args;
        cudaError_t packed = fe_cuda_launch_pack(&pack, stream);
        if (packed != cudaSuccess) return packed;
        args->pass.announce.used = false;
        args->begins = fe_begins(&args->pass);
    }
    if (s->cast != FERRY_CAST_NONE) return fe_cuda_scatter_cast(args, stream);
    cudaError_t error = fe_cuda_scatter_bulk(args, stream, &done);
    if (error != cudaSuccess || done) return error;
    int64_t pieces = ((int64_t)s->row_bytes + FE_SCATTER_PIECE - 1) / FE_SCATTER_PIECE;
    int threads = fe_share_out(args, args->route.shape.tokens * pieces, WARPS);
    return fe_launch_pass(args, (const void *)ferry::dispatch_plain, threads, 0, stream);
}

extern "C" cudaError_t fe_cuda_prepare_scatter(void) {
    cudaFuncAttributes its;
    cudaError_t error = cudaFuncGetAttributes(&its, (const void *)ferry::dispatch_plain);
    if (error == cudaSuccess) error = fe_cuda_scatter_bulk_prepare();
    return error == cudaSuccess ? fe_cuda_scatter_cast_prepare() : error;
}
