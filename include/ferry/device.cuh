/* device.cuh - the symmetric heap from inside kernels of the caller's: put, get, signal, wait. CUDA C++, header only.
 *
 * On the host, once:      ferry_device_group g = FERRY_DEVICE_GROUP_INIT;
 *                         ferry_group_device(group, &g);
 * In a kernel:            __global__ void ring(ferry_device_group g, float *inbox, uint64_t *arrived, const float *mine, size_t bytes) {
 *                             ferry_dev_put_signal_block(g, inbox, mine, bytes, arrived, 1, FERRY_SIGNAL_SET, (g.rank + 1) % g.ranks);
 *                             if (!ferry_dev_wait_until(g, arrived, FERRY_GE, 1, 0)) ...   // late, or aborted
 *                         }
 *
 * `symmetric` addresses are this rank's own addresses in the heap (ferry_heap_alloc, or a view of the library's buffers); an operation
 * works on the same offset of rank `rank`'s heap. They are not checked: a range that leaves the heap is an error of the
 * kernel's.
 *
 * _thread, _warp and _block say who calls: one thread; all 32 lanes of a warp, converged; all threads of a block, converged.
 * All participants pass the same arguments.
 *
 * Kernels that wait for other ranks must be resident together with theirs: where ranks share a GPU, keep blocks times ranks
 * within what fits on it. No wait is unbounded: each ends by the deadline or by ferry_group_abort. */
#ifndef FERRY_DEVICE_CUH
#define FERRY_DEVICE_CUH

#include "ferry/ferry.h"

#define FERRY_DEV static __device__ __forceinline__

/* ---- addresses ---- */

/* Where rank `rank`'s copy of a symmetric address is, for loads and stores of this GPU. */
FERRY_DEV void *ferry_dev_ptr(const ferry_device_group &g, const void *symmetric, int rank) {
    return g.space[rank] + ((const char *)symmetric - g.space[g.rank]);
}

/* ---- bytes ---- */

/* Bytes by `count` threads, of which this is number `index`; 16 at a time where both addresses allow. */
FERRY_DEV void ferry_dev_copy_(char *to, const char *from, size_t bytes, unsigned index, unsigned count) {
    size_t wide = (((uintptr_t)to | (uintptr_t)from) & 15) == 0 ? bytes / 16 : 0;
    for (size_t i = index; i < wide; i += count) ((uint4 *)to)[i] = ((const uint4 *)from)[i];
    for (size_t i = wide * 16 + index; i < bytes; i += count) to[i] = from[i];
}
FERRY_DEV unsigned ferry_dev_lane_(void) {
    return threadIdx.x & 31;
}

FERRY_DEV void ferry_dev_put_thread(const ferry_device_group &g, void *symmetric, const void *source, size_t bytes,
                                    int rank) {
    ferry_dev_copy_((char *)ferry_dev_ptr(g, symmetric, rank), (const char *)source, bytes, 0, 1);
}
FERRY_DEV void ferry_dev_put_warp(const ferry_device_group &g, void *symmetric, const void *source, size_t bytes,
                                  int rank) {
    ferry_dev_copy_((char *)ferry_dev_ptr(g, symmetric, rank), (const char *)source, bytes, ferry_dev_lane_(), 32);
    __syncwarp();
}
FERRY_DEV void ferry_dev_put_block(const ferry_device_group &g, void *symmetric, const void *source, size_t bytes,
                                   int rank) {
    ferry_dev_copy_((char *)ferry_dev_ptr(g, symmetric, rank), (const char *)source, bytes, threadIdx.x, blockDim.x);
    __syncthreads();
}
FERRY_DEV void ferry_dev_get_thread(const ferry_device_group &g, void *destination, const void *symmetric, size_t bytes,
                                    int rank) {
    ferry_dev_copy_((char *)destination, (const char *)ferry_dev_ptr(g, symmetric, rank), bytes, 0, 1);
}
FERRY_DEV void ferry_dev_get_warp(const ferry_device_group &g, void *destination, const void *symmetric, size_t bytes,
                                  int rank) {
    ferry_dev_copy_((char *)destination, (const char *)ferry_dev_ptr(g, symmetric, rank), bytes, ferry_dev_lane_(), 32);
    __syncwarp();
}
FERRY_DEV void ferry_dev_get_block(const ferry_device_group &g, void *destination, const void *symmetric, size_t bytes,
                                   int rank) {
    ferry_dev_copy_((char *)destination, (const char *)ferry_dev_ptr(g, symmetric, rank), bytes, threadIdx.x,
                    blockDim.x);
    __syncthreads();
}

/* ---- order ---- */

/* This thread's puts and signals so far, before its later ones, for every rank. */
FERRY_DEV void ferry_dev_fence(void) {
    __threadfence_system();
}
/* This thread's puts and signals so far are complete everywhere. */
FERRY_DEV void ferry_dev_quiet(void) {
    __threadfence_system();
}

/* ---- words ---- */

FERRY_DEV uint64_t ferry_dev_load_(const uint64_t *word) {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}

/* One thread. Set or add at a symmetric, 8-byte-aligned word; whoever sees it sees what this thread stored before. */
FERRY_DEV void ferry_dev_signal(const ferry_device_group &g, uint64_t *symmetric, uint64_t value, ferry_signal_op op,
                                int rank) {
    uint64_t *word = (uint64_t *)ferry_dev_ptr(g, symmetric, rank);
    if (op == FERRY_SIGNAL_SET) {
        asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
    } else {
        __threadfence_system();
        atomicAdd_system((unsigned long long *)word, (unsigned long long)value);
    }
}
/* One thread. What the word held before. */
FERRY_DEV uint64_t ferry_dev_fetch_add(const ferry_device_group &g, uint64_t *symmetric, uint64_t value, int rank) {
    __threadfence_system();
    uint64_t old = atomicAdd_system((unsigned long long *)ferry_dev_ptr(g, symmetric, rank), (unsigned long long)value);
    __threadfence_system();
    return old;
}
FERRY_DEV uint64_t ferry_dev_compare_swap(const ferry_device_group &g, uint64_t *symmetric, uint64_t expected,
                                          uint64_t desired, int rank) {
    __threadfence_system();
    uint64_t old = atomicCAS_system((unsigned long long *)ferry_dev_ptr(g, symmetric, rank),
                                    (unsigned long long)expected, (unsigned long long)desired);
    __threadfence_system();
    return old;
}

/* put, then a signal: whoever sees the signal sees all of the data. */
FERRY_DEV void ferry_dev_put_signal_thread(const ferry_device_group &g, void *symmetric, const void *source,
                                           size_t bytes, uint64_t *signal, uint64_t value, ferry_signal_op op,
                                           int rank) {
    ferry_dev_put_thread(g, symmetric, source, bytes, rank);
    ferry_dev_signal(g, signal, value, op, rank);
}
FERRY_DEV void ferry_dev_put_signal_warp(const ferry_device_group &g, void *symmetric, const void *source, size_t bytes,
                                         uint64_t *signal, uint64_t value, ferry_signal_op op, int rank) {
    ferry_dev_put_warp(g, symmetric, source, bytes,
                       rank); /* ends in a __syncwarp: lane 0's release covers all lanes' stores */
    if (ferry_dev_lane_() == 0) ferry_dev_signal(g, signal, value, op, rank);
    __syncwarp();
}
FERRY_DEV void ferry_dev_put_signal_block(const ferry_device_group &g, void *symmetric, const void *source,
                                          size_t bytes, uint64_t *signal, uint64_t value, ferry_signal_op op,
                                          int rank) {
    ferry_dev_put_block(g, symmetric, source, bytes, rank); /* ends in a __syncthreads, likewise */
    if (threadIdx.x == 0) ferry_dev_signal(g, signal, value, op, rank);
    __syncthreads();
}

/* ---- waiting ---- */

FERRY_DEV bool ferry_dev_holds_(uint64_t seen, ferry_compare compare, uint64_t value) {
    return compare == FERRY_EQ   ? seen == value
           : compare == FERRY_NE ? seen != value
           : compare == FERRY_GT ? seen > value
           : compare == FERRY_GE ? seen >= value
           : compare == FERRY_LT ? seen < value
                                 : seen <= value;
}

/* One thread. Until this rank's own word compares true; acquires what was put before the signal. false: timeout_ns (0: the group's) have
 * passed, or the group was aborted. */
FERRY_DEV bool ferry_dev_wait_until(const ferry_device_group &g, const uint64_t *signal, ferry_compare compare,
                                    uint64_t value, uint64_t timeout_ns) {
    uint64_t begun = 0, now;
    for (unsigned turn = 1; !ferry_dev_holds_(ferry_dev_load_(signal), compare, value); turn++) {
        if (turn % 256 != 0) continue; /* the clock, and the host's word, cost more than a look at a word */
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
        if (begun == 0) begun = now;
        if (now - begun > (timeout_ns ? timeout_ns : g.timeout_ns)) return false;
        if (g.aborted && *(const volatile uint32_t *)g.aborted) return false;
    }
    return true;
}

/* [collective] By one block of each rank, one barrier of a group at a time; all its threads, converged. Everything that the block stored
 * before is visible to all blocks that come out. false: a rank did not come. */
FERRY_DEV bool ferry_dev_barrier(const ferry_device_group &g) {
    __shared__ uint64_t epoch;
    bool here = true;
    __syncthreads();
    if (threadIdx.x == 0) {
        epoch = *g.barrier_epoch + 1;
        *g.barrier_epoch = epoch;
    }
    __syncthreads();
    uint64_t half_at = g.barrier_at + (epoch & 1) * g.ranks * 64;
    for (int r = (int)threadIdx.x; r < g.ranks; r += (int)blockDim.x)
        if (!g.masked[r])
            asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(g.space[r] + half_at + (size_t)g.rank * 64),
                         "l"(epoch)
                         : "memory");
    for (int r = (int)threadIdx.x; r < g.ranks; r += (int)blockDim.x)
        if (!g.masked[r])
            here = here && ferry_dev_wait_until(g, (const uint64_t *)(g.space[g.rank] + half_at + (size_t)r * 64),
                                                FERRY_GE, epoch, 0);
    return __syncthreads_and(here);
}

#endif
