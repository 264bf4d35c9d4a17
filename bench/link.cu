/* What a kernel's bulk copies reach over the links between two GPUs, both ways at once, by the number of SMs: the floor of what
 * moves rows by SMs, beside the rate of the copy engines that `ferry bench` prints.
 *
 *     nvcc -O3 -arch=sm_90 -o link bench/link.cu && ./link            (two GPUs with peer access)
 *
 *   store        shared memory to the other GPU
 *   store both   the same bytes to the other GPU and to the own, by every SM
 *   store split  the same, half of the SMs (at least one) for each
 *   forward      rows read from the own memory, written to both
 *   load         the other GPU to shared memory */
#include <cstdint>
#include <cstdio>
#include <cstdlib>

enum { STORE, STORE_BOTH, STORE_SPLIT, FORWARD, LOAD, KINDS };
enum { PIECE = 14336, STAGES = 8, REPEATS = 4, ROUNDS = 6 };
static const size_t BYTES = (size_t)PIECE * 4608;

#define OK(call)                                                                  \
    do {                                                                          \
        cudaError_t error_ = (call);                                              \
        if (error_ != cudaSuccess) {                                              \
            fprintf(stderr, "link: %s: %s\n", #call, cudaGetErrorString(error_)); \
            exit(1);                                                              \
        }                                                                         \
    } while (0)

static __device__ unsigned shared_at(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}
static __device__ void store(char *to, unsigned from) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(PIECE)
                 : "memory");
}
static __device__ void commit(void) {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int N> static __device__ void read_but(void) {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
static __device__ void load(unsigned to, const char *from, unsigned bar) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(PIECE) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(PIECE), "r"(bar)
                 : "memory");
}
static __device__ void await(unsigned bar, unsigned parity) {
    unsigned done = 0;
    while (!done)
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(bar), "r"(parity)
                     : "memory");
}

/* One thread a block issues everything. */
static __global__ void copy(int kind, char *remote, char *local) {
    extern __shared__ __align__(128) char ring[];
    __shared__ uint64_t bars[STAGES];
    size_t pieces = BYTES / PIECE, block = blockIdx.x, blocks = gridDim.x;
    bool split = kind == STORE_SPLIT, far = !split || block % 2 == 0, loads = kind == LOAD || kind == FORWARD;
    unsigned stage = shared_at(ring), bar = shared_at(bars);
    if (split) {
        block /= 2;
        blocks = far ? (blocks + 1) / 2 : blocks / 2;
    }
    for (int s = 0; s < STAGES; s++) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar + 8 * s));
    asm volatile("fence.mbarrier_init.release.cluster;");
    size_t mine = (pieces - block + blocks - 1) / blocks, lead = loads ? STAGES - 1 : 0;
    for (size_t i = 0; i < mine + lead; i++) {
        if (loads && i < mine) {
            if (kind == FORWARD && i >= STAGES) read_but<0>();
            load(stage + i % STAGES * PIECE, (kind == LOAD ? remote : local) + (block + i * blocks) * PIECE,
                 bar + 8 * (i % STAGES));
        }
        if (i < lead) continue;
        size_t j = i - lead, at = (block + j * blocks) * PIECE;
        if (loads) await(bar + 8 * (j % STAGES), j / STAGES & 1);
        if (kind == LOAD) continue;
        if (far) store(remote + at, stage + j % STAGES * PIECE);
        if (!far || kind == STORE_BOTH || kind == FORWARD) store(local + BYTES + at, stage + j % STAGES * PIECE);
        commit();
        if (!loads) read_but<STAGES - 1>();
    }
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

static char *memory[2];
static cudaStream_t stream[2];
static cudaEvent_t begin[2], end[2];

/* GB/s out of each GPU, the slower one's, the best of a few. */
static double measure(int kind, int sms) {
    float best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        float slowest = 0;
        for (int repeat = -1; repeat < REPEATS; repeat++) {
            for (int g = 0; g < 2; g++) {
                OK(cudaSetDevice(g));
                if (repeat == 0) OK(cudaEventRecord(begin[g], stream[g]));
                copy<<<sms, 1, STAGES * PIECE, stream[g]>>>(kind, memory[1 - g], memory[g]);
                if (repeat == REPEATS - 1) OK(cudaEventRecord(end[g], stream[g]));
            }
        }
        for (int g = 0; g < 2; g++) {
            float ms;
            OK(cudaSetDevice(g));
            OK(cudaStreamSynchronize(stream[g]));
            OK(cudaEventElapsedTime(&ms, begin[g], end[g]));
            slowest = ms > slowest ? ms : slowest;
        }
        if (best == 0 || slowest < best) best = slowest;
    }
    return (double)BYTES * REPEATS / best / 1e6;
}

int main() {
    static const char *const name[KINDS] = {"store", "store both", "store split", "forward", "load"};
    static const int sms[] = {4, 8, 12, 16, 24, 32, 64, 132};
    for (int g = 0; g < 2; g++) {
        OK(cudaSetDevice(g));
        OK(cudaMalloc(&memory[g], 2 * BYTES));
        OK(cudaStreamCreateWithFlags(&stream[g], cudaStreamNonBlocking));
        OK(cudaEventCreate(&begin[g]));
        OK(cudaEventCreate(&end[g]));
        OK(cudaDeviceEnablePeerAccess(1 - g, 0));
        OK(cudaFuncSetAttribute(copy, cudaFuncAttributeMaxDynamicSharedMemorySize, STAGES * PIECE));
    }
    printf("GB/s out of each of two GPUs, both at once, rows of %d bytes\n%-12s", PIECE, "SMs");
    for (int s : sms) printf(" %5d", s);
    for (int kind = 0; kind < KINDS; kind++) {
        printf("\n%-12s", name[kind]);
        for (int s : sms) printf(" %5.0f", measure(kind, s));
    }
    printf("\n");
    return 0;
}
