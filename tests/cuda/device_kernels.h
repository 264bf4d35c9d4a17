/* Kernels of test_device.c: what they check of ferry/device.cuh, and where they leave the answer. */
#ifndef FERRY_TESTS_CUDA_DEVICE_KERNELS_H
#define FERRY_TESTS_CUDA_DEVICE_KERNELS_H

#include "ferry/ferry.h"
#include <cuda_runtime_api.h>

enum {
    DEVICE_BYTES = 1003, /* no multiple of 16 */
    DEVICE_SPAN = 1088,
    DEVICE_GUARD = 0xee,
    DEVICE_THREADS = 128,
    DEVICE_ROUNDS = 100,
    DEVICE_SHORT_NS = 3000000
};

/* Where a put of each kind lands: one 16-byte-aligned, one not, one shifted alike on both sides. */
typedef struct device_area { /* in the symmetric heap */
    _Alignas(16) uint8_t in[6][DEVICE_SPAN];
    _Alignas(16) uint8_t out[DEVICE_SPAN];
    uint64_t word[8];
    uint64_t round[FERRY_MAX_RANKS];
    uint32_t seen[8 * DEVICE_THREADS];
} device_area;

typedef struct device_answer { /* pinned */
    uint32_t wrong;            /* bit i: check i did not hold */
    uint64_t waited_ns;
} device_answer;

#ifdef __cplusplus
extern "C" {
#endif
typedef cudaError_t device_kernel(const ferry_device_group *g, device_area *area, uint8_t *own, device_answer *answer,
                                  cudaStream_t stream);
device_kernel device_fill, device_puts, device_gets, device_signals, device_atomics, device_barriers, device_short_wait,
    device_long_wait;
#ifdef __cplusplus
}
#endif

#endif
