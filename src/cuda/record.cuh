/* What the kernels for other hosts share: where boxes are, and records. */
#ifndef FERRY_CUDA_RECORD_CUH
#define FERRY_CUDA_RECORD_CUH

#include "cuda/rows.cuh"

#define FE_RECORD_BENCH ((FE_RECORD_MOST + 15) / 16 * 16) /* shared memory of a warp for a header */

/* Offsets in this rank's post (to be added to world.boxed), and in its column's. */
FE_DEVICE uint64_t fe_outbox(const fe_cuda_args &a, int host) {
    return a.world.boxes.outbox[a.pass.half] + (uint64_t)host * a.world.boxes.box_bytes;
}
FE_DEVICE uint64_t fe_landing(const fe_cuda_args &a, int host) {
    return a.world.boxes.landing[a.pass.half] + (uint64_t)host * a.world.boxes.box_bytes;
}
/* Of several hosts one goes as a whole. */
FE_DEVICE bool fe_host_masked(const fe_cuda_world &w, int host) {
    return fe_masked(w, fe_hosts_rank(&w.hosts, host, 0));
}
FE_DEVICE int fe_column(const fe_cuda_world &w, int host) {
    return fe_hosts_rank(&w.hosts, host, w.hosts.index);
}

cudaError_t fe_cuda_prepare_pack(void);
cudaError_t fe_cuda_prepare_fanout(void);

#endif
