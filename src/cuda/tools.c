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
/* How many GPUs there are and what the current one is, in words; or why there is none. */
FERRY_API void ferry_cuda_describe(char *text, size_t size);
/* Bytes read and written a second by the driver's own copy between two buffers of 1 GiB: the floor of everything that moves rows. */
FERRY_API int ferry_cuda_copy_rate(double *bytes_per_second);

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

int ferry_cuda_copy_rate(double *bytes_per_second) {
    const size_t bytes = (size_t)1 << 30;
    void *from = ferry_cuda_device_alloc(bytes), *to = ferry_cuda_device_alloc(bytes);
    float ms = 0;
    cudaError_t error = from && to ? time_copies(to, from, bytes, &ms) : cudaErrorMemoryAllocation;
    cudaFree(from);
    cudaFree(to);
    *bytes_per_second = ms > 0 ? 2e3 * (double)bytes / (double)ms : 0;
    return (int)error;
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
