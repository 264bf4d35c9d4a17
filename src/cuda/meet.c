/* All-gather and broadcast: bytes between the caller's memory and scratch. Where scratch is host memory kernels carry them: a copy from host
 * memory to host memory keeps no order with a stream, and copies of one process's streams share few queues, where ranks are its
 * threads: one rank's, before its kernel, would stand behind another's that waits for it. */
#include "cuda/device.h"

#include <stddef.h>

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

static bool ask(const void *memory, struct cudaPointerAttributes *its) {
    if (cudaPointerGetAttributes(its, memory) == cudaSuccess) return true;
    cudaGetLastError();
    return false;
}

/* The memory's address on this GPU; NULL: not all of it gets there. */
static char *reach(const void *memory, size_t bytes) {
    struct cudaPointerAttributes first, last;
    int device = -1;
    if (cudaGetDevice(&device) != cudaSuccess || !ask(memory, &first) || !ask((const char *)memory + bytes - 1, &last))
        return NULL;
    if (first.type == cudaMemoryTypeUnregistered || first.type != last.type) return NULL;
    if (first.type == cudaMemoryTypeDevice && (first.device != device || last.device != device)) return NULL;
    return (char *)last.devicePointer - (char *)first.devicePointer == (ptrdiff_t)bytes - 1 ? first.devicePointer
                                                                                            : NULL;
}

/* Memory that the GPU does not reach is copied, from and to the stage: one goes before a kernel that waits, the other after, each in a queue of
 * its direction; and none before the kernels of a round before have ended. */
static cudaError_t take_in(const fe_cuda_args *args, void *to, const void *from, size_t bytes, cudaStream_t stream) {
    if (!args->stage || bytes == 0) return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
    const char *there = reach(from, bytes);
    cudaError_t error = there || fe_cuda_captured(stream) ? cudaSuccess : cudaStreamSynchronize(stream);
    if (error == cudaSuccess && !there) error = cudaMemcpyAsync(args->stage, from, bytes, cudaMemcpyDefault, stream);
    if (error != cudaSuccess) return error;
    return fe_cuda_launch_bring(reach(to, bytes), there ? there : args->stage, bytes, stream);
}

static cudaError_t hand_out(const fe_cuda_args *args, void *to, const void *from, size_t bytes, cudaStream_t stream) {
    if (!args->stage || bytes == 0) return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
    char *there = reach(to, bytes);
    cudaError_t error = fe_cuda_launch_bring(there ? there : args->stage, reach(from, bytes), bytes, stream);
    if (error != cudaSuccess || there) return error;
    return cudaMemcpyAsync(to, args->stage, bytes, cudaMemcpyDefault, stream);
}

cudaError_t fe_cuda_launch_publish(fe_cuda_args *args, cudaStream_t stream) {
    const fe_publish *p = &args->pass.publish;
    cudaError_t error = take_in(args, scratch_of(args, args->world.rank), p->from, p->bytes, stream);
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
            error =
                hand_out(args, c->to + (size_t)(c->root < 0 ? r : 0) * c->apart, published(args, r), c->bytes, stream);
    return error;
}
