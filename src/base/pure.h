/* Arithmetic that kernels use too. */
#ifndef FERRY_BASE_PURE_H
#define FERRY_BASE_PURE_H

#ifdef __CUDACC__
#define FE_PURE static __host__ __device__ inline
#else
#define FE_PURE static inline
#endif

#endif
