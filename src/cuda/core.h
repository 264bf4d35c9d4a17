/* The core's services, under their own names, in this library. */
#ifndef FERRY_CUDA_CORE_H
#define FERRY_CUDA_CORE_H

#include "cuda/cuda.h"
#include "device/core.h"

extern const fe_core *fe_cuda_core;

/* FERRY_OK, or the status of a CUDA error with a sentence: what was done, CUDA's name and text. */
ferry_status fe_cuda_ok(cudaError_t error, int rank, const char *doing);

#define FE_CUDA_TRY(call, rank, doing) FE_TRY(fe_cuda_ok((call), (rank), (doing)))

#endif
