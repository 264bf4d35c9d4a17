/* Kernels that speak to other ranks by themselves (ferry/device.cuh): four ranks, threads of one process that share the current GPU, pass
 * blocks of numbers around a ring, and every rank ends with the sum over all.
 *
 *     nvcc -std=c++17 kernel.cu -lferry -lpthread */
#include <ferry/device.cuh>

#include <cstdio>
#include <pthread.h>

enum { RANKS = 4, N = 1 << 16 };

/* Each step sends on what came last; after ranks - 1 steps everybody has seen everything. */
__global__ void ring(ferry_device_group g, float *inbox, uint64_t *arrived, uint64_t *taken, float *sum, float *carry,
                     int *ok) {
    int next = (g.rank + 1) % g.ranks, before = (g.rank + g.ranks - 1) % g.ranks;
    __shared__ int good;
    if (threadIdx.x == 0) good = 1;
    for (int i = threadIdx.x; i < N; i += blockDim.x) sum[i] = carry[i];
    __syncthreads();
    for (int step = 1; step < g.ranks; step++) {
        ferry_dev_put_signal_block(g, inbox, carry, N * sizeof *carry, arrived, step, FERRY_SIGNAL_SET, next);
        if (threadIdx.x == 0 && !ferry_dev_wait_until(g, arrived, FERRY_GE, step, 0)) good = 0;
        __syncthreads();
        if (!good) break;
        for (int i = threadIdx.x; i < N; i += blockDim.x) {
            carry[i] = inbox[i];
            sum[i] += carry[i];
        }
        __syncthreads();
        if (threadIdx.x == 0) { /* the one before may overwrite the inbox; and so may I the next one's */
            ferry_dev_signal(g, taken, step, FERRY_SIGNAL_SET, before);
            if (!ferry_dev_wait_until(g, taken, FERRY_GE, step, 0)) good = 0;
        }
        __syncthreads();
        if (!good) break;
    }
    bool all = ferry_dev_barrier(g);
    if (threadIdx.x == 0) *ok = good && all;
}

struct rank {
    ferry_unique_id *id;
    int number;
    bool good;
};

static bool check(ferry_status status, const char *doing) {
    if (status != FERRY_OK) fprintf(stderr, "%s: %s\n", doing, ferry_last_error());
    return status == FERRY_OK;
}

static bool run(ferry_group *group, int rank) {
    float *inbox, *own, *host = new float[N];
    uint64_t *words;
    int *ok, fine = 0;
    ferry_device_group g = FERRY_DEVICE_GROUP_INIT;
    if (!check(ferry_heap_alloc(group, N * sizeof *inbox, (void **)&inbox), "ferry_heap_alloc") ||
        !check(ferry_heap_alloc(group, 2 * sizeof *words, (void **)&words), "ferry_heap_alloc") ||
        !check(ferry_group_device(group, &g), "ferry_group_device"))
        return false;
    for (int i = 0; i < N; i++) host[i] = (float)(rank * 1000 + i % 97);
    cudaMalloc(&own, 2 * N * sizeof *own);
    cudaMalloc(&ok, sizeof *ok);
    cudaMemset(words, 0, 2 * sizeof *words);
    cudaMemcpy(own, host, N * sizeof *own, cudaMemcpyHostToDevice);
    if (!check(ferry_barrier(group, NULL), "ferry_barrier")) return false; /* all words are zero */
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    ring<<<1, 512, 0, stream>>>(g, inbox, words, words + 1, own + N, own, ok);
    cudaStreamSynchronize(stream);
    cudaMemcpy(&fine, ok, sizeof fine, cudaMemcpyDeviceToHost);
    cudaMemcpy(host, own + N, N * sizeof *host, cudaMemcpyDeviceToHost);
    for (int i = 0; fine && i < N; i++) fine = host[i] == 1000.0f * (RANKS * (RANKS - 1) / 2) + RANKS * (float)(i % 97);
    if (cudaGetLastError() != cudaSuccess) fine = 0;
    cudaStreamDestroy(stream);
    cudaFree(own);
    cudaFree(ok);
    delete[] host;
    return fine;
}

static void *rank_main(void *argument) {
    rank *me = (rank *)argument;
    ferry_group_config cfg = FERRY_GROUP_CONFIG_INIT;
    ferry_group *group;
    cfg.device = FERRY_CUDA;
    cfg.experts = RANKS;
    cfg.hidden = 64;
    cfg.max_tokens = 16;
    cfg.max_topk = 1;
    cfg.heap_bytes = 1 << 20;
    if (!check(ferry_group_create(me->id, me->number, RANKS, &cfg, &group), "ferry_group_create")) return NULL;
    me->good = run(group, me->number);
    ferry_group_destroy(group);
    return NULL;
}

int main() {
    ferry_unique_id id;
    pthread_t thread[RANKS];
    rank ranks[RANKS];
    bool good = true;
    if (!check(ferry_unique_id_create(&id), "ferry_unique_id_create")) return 1;
    for (int r = 0; r < RANKS; r++) {
        ranks[r] = {&id, r, false};
        pthread_create(&thread[r], NULL, rank_main, &ranks[r]);
    }
    for (int r = 0; r < RANKS; r++) {
        pthread_join(thread[r], NULL);
        good = good && ranks[r].good;
    }
    printf("%d ranks passed %d numbers around a ring: %s\n", RANKS, N, good ? "every sum is right" : "WRONG");
    return good ? 0 : 1;
}
