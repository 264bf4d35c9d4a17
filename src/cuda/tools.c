/* For programs that use GPUs without being linked to CUDA: Ferry's own tests and benchmarks find these by name in libferry_cuda.so. */
#include "cuda/device.h"

#include <stdio.h>

/* Pinned memory that the host and every GPU address alike; NULL: none. */
FERRY_API void *ferry_cuda_host_alloc(size_t bytes);
FERRY_API void ferry_cuda_host_free(void *memory);
/* Memory of the current GPU; NULL: none. */
FERRY_API void *ferry_cuda_device_alloc(size_t bytes);
FERRY_API void ferry_cuda_device_free(void *memory);
/* Between memory of any kind. 0, or a cudaError_t. */
FERRY_API int ferry_cuda_copy(void *to, const void *from, size_t bytes);
/* Makes one of the GPUs the calling thread's: ranks take turns over them. How many there are; 0: none. */
FERRY_API int ferry_cuda_use(int rank);
/* A number of the current GPU's own, whatever each process calls it; 0: there is none. */
FERRY_API uint64_t ferry_cuda_card(void);
/* How many GPUs there are and what the current one is, in words; or why there is none. */
FERRY_API void ferry_cuda_describe(char *text, size_t size);
/* Bytes read and written a second by the driver's own copy between two buffers of 1 GiB: the floor of everything that moves rows. 0: there
 * is no room for them. */
FERRY_API int ferry_cuda_copy_rate(double *bytes_per_second);

/* Bytes a second that every GPU sends to the next and receives from the one before, all at once: the slowest. 0: there is one GPU,
 * no room, or no way from GPU to GPU. */
FERRY_API int ferry_cuda_link_rate(double *bytes_per_second);

/* Graphs: what is put on the stream between begin and end is not run but kept, and replayed as a whole. 0, or a cudaError_t. */
FERRY_API int ferry_cuda_capture_begin(ferry_stream *stream);
FERRY_API int ferry_cuda_capture_end(ferry_stream *stream, void **graph);
FERRY_API int ferry_cuda_replay(ferry_stream *stream, void *graph);
FERRY_API void ferry_cuda_graph_free(void *graph);

void *ferry_cuda_host_alloc(size_t bytes) {
    void *memory = NULL;
    return cudaHostAlloc(&memory, bytes ? bytes : 1, cudaHostAllocPortable | cudaHostAllocMapped) == cudaSuccess
               ? memory
               : NULL;
}

void ferry_cuda_host_free(void *memory) {
    cudaFreeHost(memory);
}

void *ferry_cuda_device_alloc(size_t bytes) {
    void *memory = NULL;
    return cudaMalloc(&memory, bytes ? bytes : 1) == cudaSuccess ? memory : NULL;
}

void ferry_cuda_device_free(void *memory) {
    cudaFree(memory);
}

int ferry_cuda_copy(void *to, const void *from, size_t bytes) {
    return (int)cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
}

int ferry_cuda_use(int rank) {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count < 1) return 0;
    return cudaSetDevice(rank % count) == cudaSuccess ? count : 0;
}

uint64_t ferry_cuda_card(void) {
    struct cudaDeviceProp prop;
    int device = 0;
    uint64_t half[2];
    if (cudaGetDevice(&device) != cudaSuccess || cudaGetDeviceProperties(&prop, device) != cudaSuccess) return 0;
    memcpy(half, prop.uuid.bytes, sizeof half);
    return half[0] ^ half[1];
}

void ferry_cuda_describe(char *text, size_t size) {
    struct cudaDeviceProp prop;
    int device = 0, count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess) error = cudaGetDevice(&device);
    if (error == cudaSuccess) error = cudaGetDeviceProperties(&prop, device);
    if (error == cudaSuccess)
        snprintf(text, size, "%d GPU(s): %s, %d SMs, compute capability %d.%d", count, prop.name,
                 prop.multiProcessorCount, prop.major, prop.minor);
    else
        snprintf(text, size, "no GPU: %s", cudaGetErrorString(error));
}

/* The best of a few, in milliseconds. */
static cudaError_t time_copies(void *to, const void *from, size_t bytes, float *best) {
    cudaEvent_t begin, end;
    cudaError_t error = cudaEventCreate(&begin);
    if (error != cudaSuccess) return error;
    error = cudaEventCreate(&end);
    *best = 1e9f;
    for (int i = 0; error == cudaSuccess && i < 10; i++) {
        float ms = 0;
        cudaEventRecord(begin, 0);
        error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, 0);
        cudaEventRecord(end, 0);
        if (error == cudaSuccess) error = cudaEventSynchronize(end);
        if (error == cudaSuccess) error = cudaEventElapsedTime(&ms, begin, end);
        if (ms > 0 && ms < *best) *best = ms;
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return error;
}

/* What a machine cannot do has no rate, and is no failure. */
static int unless_missing(cudaError_t error) {
    cudaGetLastError();
    return error == cudaErrorMemoryAllocation || error == cudaErrorPeerAccessUnsupported ? 0 : (int)error;
}

int ferry_cuda_copy_rate(double *bytes_per_second) {
    const size_t bytes = (size_t)1 << 30;
    void *from = ferry_cuda_device_alloc(bytes), *to = ferry_cuda_device_alloc(bytes);
    float ms = 0;
    cudaError_t error = from && to ? time_copies(to, from, bytes, &ms) : cudaErrorMemoryAllocation;
    cudaFree(from);
    cudaFree(to);
    *bytes_per_second = ms > 0 ? 2e3 * (double)bytes / (double)ms : 0;
    return unless_missing(error);
}

/* ---- between GPUs ---- */

enum { GPUS_MOST = 64, LINK_BYTES = 1 << 29, LINK_ROUNDS = 10 };

typedef struct link_end { /* of one GPU */
    void *from, *to;
    cudaStream_t stream;
    cudaEvent_t begin, end;
} link_end;

static cudaError_t open_end(int gpu, int gpus, link_end *e) {
    int reach = 0;
    cudaError_t error = cudaSetDevice(gpu);
    if (error == cudaSuccess) error = cudaDeviceCanAccessPeer(&reach, gpu, (gpu + 1) % gpus);
    if (error == cudaSuccess && !reach) error = cudaErrorPeerAccessUnsupported;
    if (error == cudaSuccess) error = cudaMalloc(&e->from, LINK_BYTES);
    if (error == cudaSuccess) error = cudaMalloc(&e->to, LINK_BYTES);
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&e->stream, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = cudaEventCreate(&e->begin);
    if (error == cudaSuccess) error = cudaEventCreate(&e->end);
    if (error != cudaSuccess) return error;
    error = cudaDeviceEnablePeerAccess((gpu + 1) % gpus, 0);
    cudaGetLastError();
    return error == cudaErrorPeerAccessAlreadyEnabled ? cudaSuccess : error;
}

static void close_end(int gpu, link_end *e) {
    cudaSetDevice(gpu);
    if (e->stream) cudaStreamDestroy(e->stream);
    if (e->begin) cudaEventDestroy(e->begin);
    if (e->end) cudaEventDestroy(e->end);
    cudaFree(e->from);
    cudaFree(e->to);
}

/* All at once; the slowest, in milliseconds. Two copies each, of which the first lets the others begin too. */
static cudaError_t send_round(link_end *end, int gpus, float *slowest) {
    cudaError_t error = cudaSuccess;
    *slowest = 0;
    for (int copy = 0; copy < 2; copy++) {
        for (int i = 0; i < gpus && error == cudaSuccess; i++) {
            if (copy) error = cudaEventRecord(end[i].begin, end[i].stream);
            if (error == cudaSuccess)
                error = cudaMemcpyPeerAsync(end[(i + 1) % gpus].to, (i + 1) % gpus, end[i].from, i, LINK_BYTES,
                                            end[i].stream);
            if (copy && error == cudaSuccess) error = cudaEventRecord(end[i].end, end[i].stream);
        }
    }
    for (int i = 0; i < gpus && error == cudaSuccess; i++) {
        float ms = 0;
        error = cudaEventSynchronize(end[i].end);
        if (error == cudaSuccess) error = cudaEventElapsedTime(&ms, end[i].begin, end[i].end);
        if (ms > *slowest) *slowest = ms;
    }
    return error;
}

int ferry_cuda_link_rate(double *bytes_per_second) {
    link_end end[GPUS_MOST] = {{0}};
    int gpus = 0, mine = 0;
    float ms = 0, best = 0;
    cudaError_t error = cudaGetDevice(&mine);
    *bytes_per_second = 0;
    if (error == cudaSuccess) error = cudaGetDeviceCount(&gpus);
    if (error != cudaSuccess || gpus < 2) return (int)error;
    gpus = gpus > GPUS_MOST ? GPUS_MOST : gpus;
    for (int i = 0; i < gpus && error == cudaSuccess; i++) error = open_end(i, gpus, &end[i]);
    for (int round = 0; round < LINK_ROUNDS && error == cudaSuccess; round++) {
        error = send_round(end, gpus, &ms);
        if (best == 0 || ms < best) best = ms;
    }
    for (int i = 0; i < gpus; i++) close_end(i, &end[i]);
    cudaSetDevice(mine);
    if (error == cudaSuccess && best > 0) *bytes_per_second = 1e3 * (double)LINK_BYTES / (double)best;
    return unless_missing(error);
}

static cudaStream_t native_of(ferry_stream *stream) {
    return ((fe_cuda_stream *)stream)->native;
}

int ferry_cuda_capture_begin(ferry_stream *stream) {
    return (int)cudaStreamBeginCapture(native_of(stream), cudaStreamCaptureModeThreadLocal);
}

int ferry_cuda_capture_end(ferry_stream *stream, void **graph) {
    cudaGraph_t captured = NULL;
    cudaGraphExec_t ready = NULL;
    cudaError_t error = cudaStreamEndCapture(native_of(stream), &captured);
    if (error == cudaSuccess) error = cudaGraphInstantiate(&ready, captured, 0);
    if (error == cudaSuccess) error = cudaGraphUpload(ready, native_of(stream));
    if (captured) cudaGraphDestroy(captured);
    *graph = ready;
    return (int)error;
}

int ferry_cuda_replay(ferry_stream *stream, void *graph) {
    return (int)cudaGraphLaunch(graph, native_of(stream));
}

void ferry_cuda_graph_free(void *graph) {
    if (graph) cudaGraphExecDestroy(graph);
}
