/* Launching a pass's kernel. Host code. */
#ifndef FERRY_CUDA_LAUNCH_CUH
#define FERRY_CUDA_LAUNCH_CUH

#include "cuda/cuda.h"

/* On sm_90 and newer a kernel may be set up while the one before it on the stream ends (programmatic stream serialization); it begins with
 * fe_after_stream, which waits for that one. None lets its successor start early: blocks that only wait would sit on SMs that another
 * rank's kernel may need to go on. */
static inline cudaError_t fe_launch(const fe_cuda_args *args, const void *kernel, int threads, size_t shared,
                                    cudaStream_t stream, void **arguments) {
    cudaLaunchAttribute early;
    cudaLaunchConfig_t config = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3((unsigned)args->blocks);
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = args->early ? 1 : 0;
    return cudaLaunchKernelExC(&config, kernel, arguments);
}

static inline cudaError_t fe_launch_pass(fe_cuda_args *args, const void *kernel, int threads, size_t shared,
                                         cudaStream_t stream) {
    void *arguments[] = {args};
    return fe_launch(args, kernel, threads, shared, stream, arguments);
}

#endif
