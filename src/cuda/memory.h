/* The space of a rank in GPU memory, and the others' mapped. */
#ifndef FERRY_CUDA_MEMORY_H
#define FERRY_CUDA_MEMORY_H

#include "cuda/core.h"

extern const fe_memory fe_cuda_memory;

/* After all are mapped. */
int fe_cuda_memory_device(const fe_heap *heap);             /* the GPU's ordinal */
cudaStream_t fe_cuda_memory_stream(const fe_heap *heap);    /* the group's own; its end is the memory's */
int fe_cuda_memory_sharing(const fe_heap *heap, bool near); /* ranks (of this host) on this GPU, this one included */
const uint8_t *fe_cuda_memory_linked(const fe_heap *heap);  /* [ranks] 1: on another GPU */

#endif
