/* The exchange as NCCL does it: grouped ncclSend and ncclRecv between the GPUs of one host, one rank a GPU. The routing is what
 * `ferry bench` draws from the same seed, a row for each (token, rank). Rows lie packed by destination before the clock starts,
 * and nothing is unpacked or summed: what a caller of NCCL's would still have to do is not counted against it.
 *
 *     nvcc -O2 -I include -I tools/ferry -o nccl_alltoall bench/nccl_alltoall.cu tools/ferry/draw.c -lnccl
 *     nccl_alltoall [TOKENS HIDDEN_BYTES TOPK EXPERTS]        (4096 14336 8 256)        */
#include <nccl.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>
extern "C" {
#include "draw.h"
}

enum { GPUS = 16, STEPS = 20, SAMPLES = 10 };

#define CUDA_OK(call)                                                                      \
    do {                                                                                   \
        cudaError_t error_ = (call);                                                       \
        if (error_ != cudaSuccess) {                                                       \
            fprintf(stderr, "nccl_alltoall: %s: %s\n", #call, cudaGetErrorString(error_)); \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)
#define NCCL_OK(call)                                                                      \
    do {                                                                                   \
        ncclResult_t error_ = (call);                                                      \
        if (error_ != ncclSuccess) {                                                       \
            fprintf(stderr, "nccl_alltoall: %s: %s\n", #call, ncclGetErrorString(error_)); \
            exit(1);                                                                       \
        }                                                                                  \
    } while (0)

static int gpus;
static size_t row_bytes;
static size_t rows[GPUS][GPUS]; /* from, to */
static char *sent[GPUS], *received[GPUS];
static cudaStream_t stream[GPUS];
static ncclComm_t comm[GPUS];

static void count_rows(int rank, const fe_draw *draw) {
    std::vector<int64_t> ids((size_t)draw->tokens * draw->topk);
    std::vector<float> weights(ids.size());
    if (fe_draw_routes(draw, rank, ids.data(), weights.data()) != 0) exit(1);
    for (int t = 0; t < draw->tokens; t++) {
        bool goes[GPUS] = {};
        for (int k = 0; k < draw->topk; k++) {
            int64_t id = ids[(size_t)t * draw->topk + k];
            for (int r = 0; id >= 0 && r < gpus; r++) /* as in ferry.h: r * E / R <= e < (r + 1) * E / R */
                if (id >= (int64_t)r * draw->experts / gpus && id < (int64_t)(r + 1) * draw->experts / gpus)
                    goes[r] = true;
        }
        for (int r = 0; r < gpus; r++) rows[rank][r] += goes[r];
    }
}

/* Bytes from a to b, and, the other way round, back: one row for each. */
static size_t bytes(int from, int to, bool back) {
    return (back ? rows[to][from] : rows[from][to]) * row_bytes;
}

static void exchange(bool back) {
    NCCL_OK(ncclGroupStart());
    for (int g = 0; g < gpus; g++) {
        size_t out = 0, in = 0;
        for (int p = 0; p < gpus; p++) {
            NCCL_OK(ncclSend(sent[g] + out, bytes(g, p, back), ncclChar, p, comm[g], stream[g]));
            NCCL_OK(ncclRecv(received[g] + in, bytes(p, g, back), ncclChar, p, comm[g], stream[g]));
            out += bytes(g, p, back);
            in += bytes(p, g, back);
        }
    }
    NCCL_OK(ncclGroupEnd());
}

/* Microseconds of a step, of the slowest GPU: STEPS of them between two events. */
static double sample(bool back) {
    cudaEvent_t begin[GPUS], end[GPUS];
    double slowest = 0;
    for (int g = 0; g < gpus; g++) {
        CUDA_OK(cudaSetDevice(g));
        CUDA_OK(cudaStreamSynchronize(stream[g]));
        CUDA_OK(cudaEventCreate(&begin[g]));
        CUDA_OK(cudaEventCreate(&end[g]));
        CUDA_OK(cudaEventRecord(begin[g], stream[g]));
    }
    for (int i = 0; i < STEPS; i++) exchange(back);
    for (int g = 0; g < gpus; g++) {
        float ms;
        CUDA_OK(cudaSetDevice(g));
        CUDA_OK(cudaEventRecord(end[g], stream[g]));
        CUDA_OK(cudaEventSynchronize(end[g]));
        CUDA_OK(cudaEventElapsedTime(&ms, begin[g], end[g]));
        slowest = std::max(slowest, ms * 1e3 / STEPS);
        cudaEventDestroy(begin[g]);
        cudaEventDestroy(end[g]);
    }
    return slowest;
}

static void open_gpus(const fe_draw *draw) {
    size_t room = (size_t)draw->tokens * gpus * row_bytes;
    for (int g = 0; g < gpus; g++) count_rows(g, draw);
    for (int g = 0; g < gpus; g++) {
        CUDA_OK(cudaSetDevice(g));
        CUDA_OK(cudaMalloc(&sent[g], room));
        CUDA_OK(cudaMalloc(&received[g], room));
        CUDA_OK(cudaMemset(sent[g], g + 1, room));
        CUDA_OK(cudaStreamCreateWithFlags(&stream[g], cudaStreamNonBlocking));
    }
    NCCL_OK(ncclCommInitAll(comm, gpus, NULL));
}

/* Each block that arrived is its sender's. */
static bool check(bool back) {
    for (int g = 0; g < gpus; g++) {
        size_t at = 0;
        for (int p = 0; p < gpus; p++) {
            std::vector<char> block(bytes(p, g, back));
            CUDA_OK(cudaMemcpy(block.data(), received[g] + at, block.size(), cudaMemcpyDeviceToHost));
            for (char c : block)
                if (c != p + 1) return false;
            at += block.size();
        }
    }
    return true;
}

int main(int argc, char **argv) {
    fe_draw draw = {0, 0, 256, 8, 4096, 0};
    int version = 0;
    row_bytes = argc > 2 ? (size_t)atoi(argv[2]) : 14336;
    if (argc > 1) draw.tokens = atoi(argv[1]);
    if (argc > 3) draw.topk = atoi(argv[3]);
    if (argc > 4) draw.experts = atoi(argv[4]);
    CUDA_OK(cudaGetDeviceCount(&gpus));
    gpus = gpus > GPUS ? (int)GPUS : gpus;
    draw.ranks = gpus;
    open_gpus(&draw);
    NCCL_OK(ncclGetVersion(&version));
    printf("NCCL %d.%d.%d, %d GPUs, one rank each; %d tokens a rank, rows of %zu bytes, top-%d of %d experts\n",
           version / 10000, version / 100 % 100, version % 100, gpus, draw.tokens, row_bytes, draw.topk, draw.experts);
    for (int back = 0; back < 2; back++) {
        double us[SAMPLES], total = 0;
        for (int i = 0; i < 3; i++) sample(back);
        for (double &u : us) u = sample(back);
        std::sort(us, us + SAMPLES);
        for (int g = 0; g < gpus; g++)
            for (int p = 0; p < gpus; p++) total += (double)bytes(p, g, back) / gpus;
        printf("%-8s median %8.1f us  min %8.1f us  %8.2f GB/s/rank\n", back ? "back" : "there", us[SAMPLES / 2], us[0],
               total / us[SAMPLES / 2] / 1e3);
        if (check(back)) continue;
        fprintf(stderr, "nccl_alltoall: what arrived differs\n");
        return 1;
    }
    return 0;
}
