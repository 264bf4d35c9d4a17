/* Host memory that kernels read and write: mapped for the GPU once in a process, however many of its ranks use it. */
#include "cuda/device.h"

#include <stdlib.h>

typedef struct pin {
    struct pin *next;
    void *base;
    int users;
} pin;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pin *pins;

static pin **find(const void *base) {
    pin **at = &pins;
    while (*at && (*at)->base != base) at = &(*at)->next;
    return at;
}

static cudaError_t add(void *base, size_t bytes) {
    pin *p = calloc(1, sizeof *p);
    if (!p) return cudaErrorMemoryAllocation;
    cudaError_t error = cudaHostRegister(base, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable);
    if (error != cudaSuccess) {
        free(p);
        return error;
    }
    *p = (pin){.next = pins, .base = base};
    pins = p;
    return cudaSuccess;
}

cudaError_t fe_cuda_pin(void *base, size_t bytes, char **there) {
    void *device = NULL;
    pthread_mutex_lock(&lock);
    cudaError_t error = *find(base) ? cudaSuccess : add(base, bytes);
    if (error == cudaSuccess) {
        (*find(base))->users++;
        error = cudaHostGetDevicePointer(&device, base, 0);
    }
    pthread_mutex_unlock(&lock);
    *there = device;
    return error;
}

void fe_cuda_unpin(void *base) {
    pthread_mutex_lock(&lock);
    pin **at = find(base), *p = *at;
    if (p && --p->users == 0) {
        cudaHostUnregister(base);
        *at = p->next;
        free(p);
    }
    pthread_mutex_unlock(&lock);
}
