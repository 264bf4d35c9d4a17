#include "cuda/core.h"

#include <stdarg.h>
#include <stdio.h>

const fe_core *fe_cuda_core;

ferry_status fe_fail_(ferry_status status, const char *format, ...) {
    char sentence[FE_SENTENCE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    return fe_cuda_core->fail(status, sentence);
}

ferry_status fe_fail_again(ferry_status status, const char *sentence) {
    return fe_cuda_core->fail_again(status, sentence);
}

ferry_status fe_cuda_ok(cudaError_t error, int rank, const char *doing) {
    if (error == cudaSuccess) return FERRY_OK;
    cudaGetLastError(); /* it is told here, and is not to be found by an unrelated call */
    bool none = error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver;
    ferry_status status = error == cudaErrorMemoryAllocation ? FERRY_NOMEM : none ? FERRY_UNSUPPORTED : FERRY_SYSTEM;
    return fe_fail(status, "rank %d: %s: %s (%s)", rank, doing, cudaGetErrorString(error), cudaGetErrorName(error));
}
