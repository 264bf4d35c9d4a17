/* All-gather and broadcast: bytes between the caller's memory and scratch. Where scratch is host memory they pass through the GPU's, since a
 * copy from host memory to host memory keeps no order with a stream. */
#include "cuda/device.h"

static char *scratch_of(const fe_cuda_args *args, int rank) {
    return fe_post(args->heap, rank, args->world.scratch_at + (size_t)args->pass.half * FE_CUDA_SCRATCH);
}

/* Where this rank reads what `rank` published: of a far one, in its gateway's mirror. */
static const char *published(const fe_cuda_args *args, int rank) {
    const fe_heap *heap = args->heap;
    if (fe_heap_near(heap, rank)) return scratch_of(args, rank);
    return fe_post(heap, fe_hosts_gateway(&heap->hosts, rank),
                   fe_room_mirror(heap, args->pass.half, heap->hosts.host_of[rank]));
}

static cudaError_t carry(const fe_cuda_args *args, void *to, const void *from, size_t bytes, cudaStream_t stream) {
    if (!args->stage) return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
    cudaError_t error = cudaMemcpyAsync(args->stage, from, bytes, cudaMemcpyDefault, stream);
    return error == cudaSuccess ? cudaMemcpyAsync(to, args->stage, bytes, cudaMemcpyDefault, stream) : error;
}

cudaError_t fe_cuda_launch_publish(fe_cuda_args *args, cudaStream_t stream) {
    const fe_publish *p = &args->pass.publish;
    cudaError_t error = carry(args, scratch_of(args, args->world.rank), p->from, p->bytes, stream);
    if (args->world.far) {
        args->push.bytes = p->bytes;
        args->push.local = args->world.scratch_at + (size_t)args->pass.half * FE_CUDA_SCRATCH;
        args->push.remote = fe_room_mirror(args->heap, args->pass.half, args->heap->hosts.mine);
    }
    return error == cudaSuccess ? fe_cuda_launch_nothing(args, stream) : error;
}

cudaError_t fe_cuda_launch_collect(fe_cuda_args *args, cudaStream_t stream) {
    const fe_collect *c = &args->pass.collect;
    cudaError_t error = cudaSuccess;
    for (int r = 0; error == cudaSuccess && r < args->world.ranks; r++)
        if ((c->root < 0 || c->root == r) && !fe_heap_masked(args->heap, r))
            error = carry(args, c->to + (size_t)(c->root < 0 ? r : 0) * c->apart, published(args, r), c->bytes, stream);
    return error;
}
