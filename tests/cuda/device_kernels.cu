/* One block a rank in each; see device_kernels.h. */
#define _Alignas(n) alignas(n)
#include "cuda/device_kernels.h"
#include "ferry/device.cuh"

static __device__ uint8_t pattern(int rank, int i) {
    return (uint8_t)(rank * 37 + i * 11 + (i >> 8));
}
static __device__ int before(const ferry_device_group &g) {
    return (g.rank + g.ranks - 1) % g.ranks;
}
static __device__ int after(const ferry_device_group &g) {
    return (g.rank + 1) % g.ranks;
}

static __device__ void expect(device_answer *answer, int bit, bool holds) {
    if (!holds) atomicOr(&answer->wrong, 1u << bit);
}

/* `shift` bytes into the span stand the bytes of `rank`; around them the guard. */
static __device__ void expect_span(device_answer *answer, int bit, const uint8_t *span, int shift, int rank) {
    for (int i = (int)threadIdx.x; i < DEVICE_SPAN; i += (int)blockDim.x) {
        bool inside = i >= shift && i < shift + DEVICE_BYTES;
        expect(answer, bit, span[i] == (inside ? pattern(rank, i - shift) : DEVICE_GUARD));
    }
}

static __global__ void fill(ferry_device_group g, device_area *area, uint8_t *own) {
    uint8_t *bytes = (uint8_t *)area;
    for (size_t i = threadIdx.x; i < sizeof *area; i += blockDim.x) bytes[i] = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < 6 * DEVICE_SPAN; i += (int)blockDim.x) area->in[0][i] = DEVICE_GUARD;
    for (int i = (int)threadIdx.x; i < DEVICE_BYTES; i += (int)blockDim.x) {
        own[i] = pattern(g.rank, i);
        area->out[i] = pattern(g.rank, i);
    }
}

static __global__ void puts_kernel(ferry_device_group g, device_area *area, uint8_t *own, device_answer *answer) {
    int next = after(g);
    if (threadIdx.x == 0) ferry_dev_put_thread(g, area->in[0], own, DEVICE_BYTES, next);
    if (threadIdx.x / 32 == 1) ferry_dev_put_warp(g, area->in[1] + 3, own, DEVICE_BYTES, next);
    ferry_dev_put_block(g, area->in[2] + 16, own, DEVICE_BYTES, next);
    ferry_dev_quiet();
    expect(answer, 0, ferry_dev_barrier(g));
    expect_span(answer, 1, area->in[0], 0, before(g));
    expect_span(answer, 2, area->in[1], 3, before(g));
    expect_span(answer, 3, area->in[2], 16, before(g));
    expect(answer, 4, ferry_dev_ptr(g, area, g.rank) == area);
}

static __global__ void gets_kernel(ferry_device_group g, device_area *area, uint8_t *own, device_answer *answer) {
    int next = after(g);
    for (int i = (int)threadIdx.x; i < 3 * DEVICE_SPAN; i += (int)blockDim.x) own[DEVICE_SPAN + i] = DEVICE_GUARD;
    __syncthreads();
    if (threadIdx.x == 0) ferry_dev_get_thread(g, own + DEVICE_SPAN, area->out, DEVICE_BYTES, next);
    if (threadIdx.x / 32 == 1) ferry_dev_get_warp(g, own + 2 * DEVICE_SPAN + 5, area->out, DEVICE_BYTES, next);
    ferry_dev_get_block(g, own + 3 * DEVICE_SPAN, area->out, DEVICE_BYTES, next);
    expect_span(answer, 0, own + DEVICE_SPAN, 0, next);
    expect_span(answer, 1, own + 2 * DEVICE_SPAN, 5, next);
    expect_span(answer, 2, own + 3 * DEVICE_SPAN, 0, next);
}

static __global__ void signals_kernel(ferry_device_group g, device_area *area, uint8_t *own, device_answer *answer) {
    int next = after(g);
    if (threadIdx.x == 0)
        ferry_dev_put_signal_thread(g, area->in[3], own, DEVICE_BYTES, &area->word[0], 7, FERRY_SIGNAL_SET, next);
    if (threadIdx.x / 32 == 1)
        ferry_dev_put_signal_warp(g, area->in[4], own, DEVICE_BYTES, &area->word[1], 5, FERRY_SIGNAL_ADD, next);
    ferry_dev_put_signal_block(g, area->in[5], own, DEVICE_BYTES, &area->word[1], 6, FERRY_SIGNAL_ADD, next);
    if (threadIdx.x == 0) {
        expect(answer, 0, ferry_dev_wait_until(g, &area->word[0], FERRY_EQ, 7, 0));
        expect(answer, 1, ferry_dev_wait_until(g, &area->word[1], FERRY_GE, 11, 0));
        expect(answer, 2, ferry_dev_wait_until(g, &area->word[1], FERRY_LE, 11, 0));
    }
    __syncthreads();
    for (int k = 3; k < 6; k++) expect_span(answer, k, area->in[k], 0, before(g));
}

/* All threads of all ranks draw numbers from rank 0; one rank takes a lock there. */
static __global__ void atomics_kernel(ferry_device_group g, device_area *area, device_answer *answer) {
    unsigned all = (unsigned)g.ranks * blockDim.x;
    uint64_t drawn = ferry_dev_fetch_add(g, &area->word[4], 1, 0);
    expect(answer, 0, drawn < all);
    if (drawn < all) atomicAdd_system((uint32_t *)ferry_dev_ptr(g, &area->seen[drawn], 0), 1u);
    if (threadIdx.x == 0 && ferry_dev_compare_swap(g, &area->word[5], 0, (uint64_t)g.rank + 1, 0) == 0)
        ferry_dev_fetch_add(g, &area->word[6], 1, 0);
    ferry_dev_fence();
    expect(answer, 1, ferry_dev_barrier(g));
    if (g.rank != 0) return;
    expect(answer, 2, area->word[4] == all);
    for (unsigned i = threadIdx.x; i < all; i += blockDim.x) expect(answer, 3, area->seen[i] == 1);
    expect(answer, 4, area->word[5] >= 1 && area->word[5] <= (uint64_t)g.ranks);
    expect(answer, 5, area->word[6] == 1); /* the lock was taken once */
}

/* What was stored before a barrier is seen after it; who is through may be one round further. */
static __global__ void barriers_kernel(ferry_device_group g, device_area *area, device_answer *answer) {
    for (uint64_t round = 1; round <= DEVICE_ROUNDS; round++) {
        for (int r = (int)threadIdx.x; r < g.ranks; r += (int)blockDim.x)
            *(volatile uint64_t *)ferry_dev_ptr(g, &area->round[g.rank], r) = round;
        expect(answer, 0, ferry_dev_barrier(g));
        for (int r = (int)threadIdx.x; r < g.ranks; r += (int)blockDim.x) {
            uint64_t there = *(volatile uint64_t *)&area->round[r];
            expect(answer, 1, there == round || there == round + 1);
        }
        __syncthreads();
    }
}

static __global__ void wait_kernel(ferry_device_group g, device_area *area, device_answer *answer, uint64_t ns) {
    uint64_t begun, end;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begun));
    expect(answer, 0, !ferry_dev_wait_until(g, &area->word[7], FERRY_EQ, 1, ns));
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(end));
    answer->waited_ns = end - begun;
}

cudaError_t device_fill(const ferry_device_group *g, device_area *area, uint8_t *own, device_answer *answer,
                        cudaStream_t stream) {
    answer->wrong = 0;
    fill<<<1, DEVICE_THREADS, 0, stream>>>(*g, area, own);
    return cudaGetLastError();
}
cudaError_t device_puts(const ferry_device_group *g, device_area *area, uint8_t *own, device_answer *answer,
                        cudaStream_t stream) {
    puts_kernel<<<1, DEVICE_THREADS, 0, stream>>>(*g, area, own, answer);
    return cudaGetLastError();
}
cudaError_t device_gets(const ferry_device_group *g, device_area *area, uint8_t *own, device_answer *answer,
                        cudaStream_t stream) {
    gets_kernel<<<1, DEVICE_THREADS, 0, stream>>>(*g, area, own, answer);
    return cudaGetLastError();
}
cudaError_t device_signals(const ferry_device_group *g, device_area *area, uint8_t *own, device_answer *answer,
                           cudaStream_t stream) {
    signals_kernel<<<1, DEVICE_THREADS, 0, stream>>>(*g, area, own, answer);
    return cudaGetLastError();
}
cudaError_t device_atomics(const ferry_device_group *g, device_area *area, uint8_t *own, device_answer *answer,
                           cudaStream_t stream) {
    (void)own;
    atomics_kernel<<<1, DEVICE_THREADS, 0, stream>>>(*g, area, answer);
    return cudaGetLastError();
}
cudaError_t device_barriers(const ferry_device_group *g, device_area *area, uint8_t *own, device_answer *answer,
                            cudaStream_t stream) {
    (void)own;
    barriers_kernel<<<1, DEVICE_THREADS, 0, stream>>>(*g, area, answer);
    return cudaGetLastError();
}
cudaError_t device_short_wait(const ferry_device_group *g, device_area *area, uint8_t *own, device_answer *answer,
                              cudaStream_t stream) {
    (void)own;
    wait_kernel<<<1, 1, 0, stream>>>(*g, area, answer, DEVICE_SHORT_NS);
    return cudaGetLastError();
}
cudaError_t device_long_wait(const ferry_device_group *g, device_area *area, uint8_t *own, device_answer *answer,
                             cudaStream_t stream) {
    (void)own;
    wait_kernel<<<1, 1, 0, stream>>>(*g, area, answer, 0);
    return cudaGetLastError();
}
