/* Passes without rows: notes alone, and the words of the address space. Bytes travel by cudaMemcpyAsync (meet.c), which takes memory of any
 * kind. */
#include "cuda/launch.cuh"
#include "cuda/note.cuh"

namespace ferry {
__global__ void __launch_bounds__(FE_WARP) notes(const __grid_constant__ fe_cuda_args a) {
    uint64_t epoch;
    if (fe_open(a, &epoch)) fe_close(a, epoch);
}
} // namespace ferry

cudaError_t fe_cuda_launch_nothing(fe_cuda_args *args, cudaStream_t stream) {
    args->blocks = 1;
    return fe_launch_pass(args, (const void *)ferry::notes, FE_WARP, 0, stream);
}

/* ---- bytes ---- */

namespace ferry {
/* To where other ranks, or the proxy, may read. */
__global__ void __launch_bounds__(256) bring(char *to, const char *from, size_t bytes) {
    size_t words = ((uintptr_t)to | (uintptr_t)from) % 16 ? 0 : bytes / 16;
    for (size_t i = threadIdx.x; i < words; i += blockDim.x) ((uint4 *)to)[i] = ((const uint4 *)from)[i];
    for (size_t i = words * 16 + threadIdx.x; i < bytes; i += blockDim.x) to[i] = from[i];
    __threadfence_system();
}
} // namespace ferry

cudaError_t fe_cuda_launch_bring(void *to, const void *from, size_t bytes, cudaStream_t stream) {
    ferry::bring<<<1, 256, 0, stream>>>((char *)to, (const char *)from, bytes);
    return cudaGetLastError();
}

/* ---- words ---- */

namespace ferry {
__global__ void signal(const __grid_constant__ fe_cuda_args a) {
    const fe_transfer &t = a.pass.transfer;
    uint64_t *word = (uint64_t *)(a.world.space[t.owner] + t.signal_at);
    __threadfence_system(); /* the bytes, copied before on the stream, are seen by whoever acquires the word */
    if (t.op == FERRY_SIGNAL_SET)
        fe_release(word, t.value);
    else
        atomicAdd_system((unsigned long long *)word, (unsigned long long)t.value);
}
} // namespace ferry

cudaError_t fe_cuda_launch_transfer(fe_cuda_args *args, cudaStream_t stream) {
    const fe_transfer *t = &args->pass.transfer;
    cudaError_t error = t->bytes ? cudaMemcpyAsync(t->to, t->from, t->bytes, cudaMemcpyDefault, stream) : cudaSuccess;
    if (error != cudaSuccess || t->owner < 0) return error;
    ferry::signal<<<1, 1, 0, stream>>>(*args);
    return cudaGetLastError();
}

namespace ferry {
__global__ void atomic(const __grid_constant__ fe_cuda_args a) {
    const fe_atomic &t = a.pass.atomic;
    unsigned long long *word = (unsigned long long *)(a.world.space[t.owner] + t.at);
    __threadfence_system();
    a.world.report->old = t.swap ? atomicCAS_system(word, (unsigned long long)t.expected, (unsigned long long)t.desired)
                                 : atomicAdd_system(word, (unsigned long long)t.add);
    __threadfence_system();
}
} // namespace ferry

cudaError_t fe_cuda_launch_atomic(fe_cuda_args *args, cudaStream_t stream) {
    ferry::atomic<<<1, 1, 0, stream>>>(*args);
    return cudaGetLastError();
}

namespace ferry {
/* For a rank of another host: what it has put is here already. */
__global__ void errand(fe_errand what, unsigned long long *word, uint64_t value, uint64_t expected, uint64_t *old) {
    __threadfence_system();
    *old = what == FE_ADD    ? atomicAdd_system(word, (unsigned long long)value)
           : what == FE_SWAP ? atomicCAS_system(word, (unsigned long long)expected, (unsigned long long)value)
                             : atomicExch_system(word, (unsigned long long)value);
    __threadfence_system();
}
} // namespace ferry

cudaError_t fe_cuda_launch_errand(fe_errand errand, uint64_t *word, uint64_t value, uint64_t expected, uint64_t *old,
                                  cudaStream_t stream) {
    ferry::errand<<<1, 1, 0, stream>>>(errand, (unsigned long long *)word, value, expected, old);
    return cudaGetLastError();
}

/* ---- wait until ---- */

FE_DEVICE bool holds(uint64_t seen, ferry_compare compare, uint64_t value) {
    switch (compare) {
    case FERRY_EQ: return seen == value;
    case FERRY_NE: return seen != value;
    case FERRY_GT: return seen > value;
    case FERRY_GE: return seen >= value;
    case FERRY_LT: return seen < value;
    case FERRY_LE: return seen <= value;
    }
    return false;
}

namespace ferry {
__global__ void until(const __grid_constant__ fe_cuda_args a) {
    const fe_until &u = a.pass.until;
    const uint64_t *word = (const uint64_t *)(a.world.space[a.world.rank] + u.at);
    uint64_t start = 0, seen;
    ferry_status why = FERRY_OK;
    if (*(volatile uint32_t *)&a.world.own->broken) return;
    for (uint32_t turn = 1; !holds(seen = fe_acquire(word), u.compare, u.value); turn++) {
        if (turn % 256 != 0 || !fe_give_up(a, &start, &why, (uint64_t)u.timeout_ns)) continue;
        fe_soft(a)->word = a.world.report->word = seen;
        if (why == FERRY_TIMEOUT && a.pass.lenient)
            fe_tell_soft(a, FERRY_TIMEOUT);
        else if (fe_break(a))
            fe_tell_fatal(a, why, 0);
        return;
    }
    if (start) *(volatile uint32_t *)a.world.waiting = 0;
}
} // namespace ferry

cudaError_t fe_cuda_launch_until(fe_cuda_args *args, cudaStream_t stream) {
    ferry::until<<<1, 1, 0, stream>>>(*args);
    return cudaGetLastError();
}

cudaError_t fe_cuda_prepare_space(int *early) {
    const void *kernels[] = {(const void *)ferry::notes,  (const void *)ferry::bring, (const void *)ferry::signal,
                             (const void *)ferry::atomic, (const void *)ferry::until, (const void *)ferry::errand};
    struct cudaFuncAttributes attributes;
    cudaError_t error = cudaSuccess;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels && error == cudaSuccess; i++)
        error = cudaFuncGetAttributes(&attributes, kernels[i]);
    *early = error == cudaSuccess && attributes.ptxVersion >= 90;
    return error;
}
