/* The CUDA device, inside. C (device.c, memory.c, stream.c, report.c) and CUDA C++ (the kernels).
 *
 * A pass is one kernel of at most `blocks` blocks; a rank's kernels never use more SMs than that. Epochs live in device memory and are
 * counted per half (fe_cuda_own), so that a captured graph goes on where the last replay stopped. */
#ifndef FERRY_CUDA_CUDA_H
#define FERRY_CUDA_CUDA_H

#include "device/pass.h"
#include "group/body.h"
#include "link/kernel_order.h"

#include <cuda_runtime_api.h>

#define FE_CUDA_TICKETS \
    4096 /* passes without notes of a rank that may be under way at once; one of a graph keeps its ticket */
#define FE_CUDA_SCRATCH 65536 /* FE_SCRATCH of heap.h, which is C */
#define FE_CUDA_TIDES \
    4 /* kinds of notes in pairs: COUNTS and COUNTED, READY and ROWS (with LANDED), OFFER and PULLED (with RETURNED), MEET */

typedef struct fe_cuda_own { /* device memory of this rank alone */
    uint32_t broken;         /* a pass has failed for good: later ones do nothing */
    uint64_t era;            /* of the group: a graph that was captured in another is not run */
    /* Blocks of a launch that are through with their move; the last one clears it. Passes of a tide and half come one after another
     * (fe_flight), so the first words are theirs; other passes take turns with the rest. */
    uint32_t done[FE_CUDA_TIDES * 2 + FE_CUDA_TICKETS];
    uint64_t kernel_barriers;         /* ferry_dev_barrier's */
    uint64_t epoch[FE_CUDA_TIDES][2]; /* of the last step of the tide and half */
    unsigned long long orders;        /* that kernels have given to the proxy */
} fe_cuda_own;

/* What is wrong with a step, and not with the group. */
typedef struct fe_cuda_soft {
    uint32_t
        status; /* FERRY_INVALID or FERRY_OVERFLOW of a route, MISMATCH or TIMEOUT of a lenient pass; written last */
    int32_t choice;  /* INVALID */
    uint64_t launch; /* which says it */
    int64_t token, index;
    fe_totals totals; /* OVERFLOW */
    uint64_t word;    /* TIMEOUT: what a wait for a word saw */
} fe_cuda_soft;

/* What a kernel has to say to the host: pinned memory, mapped. */
typedef struct fe_cuda_report {
    uint32_t fatal; /* ferry_status, written last; FERRY_OK: nothing */
    int32_t other;  /* MISMATCH: with whom. SYSTEM: who sent nonsense; -1: the proxy takes no order */
    char step[40];
    uint64_t epoch, ours[FE_CELL_WORDS], theirs[FE_CELL_WORDS];
    fe_explain_fn explain;
    uint64_t seen[FERRY_MAX_RANKS]; /* TIMEOUT: how far each rank had come */
    uint64_t word;                  /* TIMEOUT without an epoch: what was seen of the word that was waited for */
    uint64_t old;                   /* of an atomic */
    fe_cuda_soft soft[2];           /* [1]: of passes that their caller waits for, which tell him alone */
} fe_cuda_report;

/* A group as kernels see it. What every pass looks at comes first, in 64 bytes: each line of a kernel's argument is fetched when it is first
 * asked for. */
typedef struct fe_cuda_world {
    int rank, ranks;
    bool far;   /* several hosts: notes are in host memory, and go to the proxy as well */
    bool plain; /* not far, and no rank is masked: nobody need be looked up */
    fe_cuda_own *own;
    char *here;         /* this rank's post */
    char *const *post;  /* [ranks] where notes and counts are: the space (and then the same table), or host memory */
    char *const *space; /* [ranks] device memory; far: NULL */
    uint64_t era, timeout_ns;
    uint32_t *waiting;
    const uint32_t *aborted; /* of this rank's control block in host memory; NULL where that cannot be mapped */
    fe_map map;              /* with arrays in device memory */
    uint32_t masked[FERRY_MAX_RANKS /
                    32];   /* a bit a rank. Here, where all lanes read a word at once, a look costs no load */
    fe_hosts hosts;        /* with arrays in device memory; count 1: what follows is not there */
    const uint8_t *linked; /* [ranks] 1: on another GPU. Device memory */
    int sharing;           /* near ranks on this GPU, this one included */
    fe_boxes boxes;
    char *boxed; /* what their offsets are added to: this rank's post, or GPU memory that the network reads itself */
    fe_kernel_order *orders; /* the ring in this rank's post */
    fe_cell *board;          /* device memory for copies of notes: [2 * FE_CUDA_TIDES][board_blocks][ranks] */
    int board_blocks, near_ranks;
    uint64_t space_bytes;
    fe_cuda_report *report;
    uint64_t scratch_at;
    const uint8_t *mask; /* [ranks] the same for kernels of the caller's. Device memory */
} fe_cuda_world;

/* Beside fe_table, for kernels: where each row goes, ready to use. */
typedef struct fe_cuda_place {
    int32_t rank, slot; /* slot -1: nowhere */
} fe_cuda_place;

typedef struct fe_cuda_extra { /* of a route; device memory */
    fe_cuda_place *go;         /* [tokens][topk] distinct places in order of summation, then slot -1 */
    fe_cuda_place *at;         /* [tokens][topk] of each choice */
    int32_t *block_total;      /* [blocks][ranks + homes] rows that each block's tokens send */
    fe_totals *of_rank;        /* [blocks][ranks] scratch of place */
    uint64_t *wrong;           /* the first choice that is no expert: token * FERRY_MAX_TOPK + choice; ~0: none */
} fe_cuda_extra;

/* A kernel's argument. */
typedef struct fe_cuda_args {
    int blocks, ticket;
    int tide, begins; /* of the pass, as found by fe_pass_tide and fe_begins */
    fe_cuda_world world;
    fe_pass pass;
    fe_route_data route; /* a copy of *pass.route */
    fe_cuda_extra extra;
    uint64_t number; /* of the launch, from 1; one of a graph keeps it */
    int awaited;     /* 1: the caller waits for the pass, and is told what is wrong with it */
    int early;       /* kernels are of code that has fe_after_stream: they may be set up ahead */
    int route_warps; /* of a block of count and place, and its shared memory */
    size_t route_shared;
    struct {
        uint64_t local, remote, bytes; /* 0: nothing */
        int relay;                     /* and from there to every rank */
    } push;                            /* to the column on each other host, with the pass's signal */
    void *stage;                       /* several hosts: FE_CUDA_SCRATCH bytes of device memory, for meetings */
    const struct fe_heap *heap;        /* the host's */
} fe_cuda_args;

FE_PURE int fe_tide(fe_kind kind) {
    return kind == FE_MEET       ? FE_CUDA_TIDES - 1
           : kind == FE_LANDED   ? (int)FE_READY / 2
           : kind == FE_RETURNED ? (int)FE_OFFER / 2
                                 : (int)kind / 2;
}
FE_PURE bool fe_has_notes(const fe_pass *p) {
    return p->announce.used || p->await.used || p->signal.used || p->settle.used;
}
/* Of the pass's notes; they are all of one. */
FE_PURE int fe_pass_tide(const fe_pass *p) {
    return fe_tide(p->announce.used ? p->announce.kind
                   : p->signal.used ? p->signal.kind
                   : p->await.used  ? p->await.kind
                                    : p->settle.kind);
}

/* Does the pass begin a step of its tide (and count it), or go on with one? */
FE_PURE bool fe_begins(const fe_pass *p) {
    return p->announce.used ||
           (p->signal.used && (p->signal.kind == FE_COUNTS || p->signal.kind == FE_OFFER || p->signal.kind == FE_MEET));
}

#ifdef __cplusplus
extern "C" {
#endif
/* One for each move; `blocks` of args is what may be used, and is set to what is used. */
cudaError_t fe_cuda_launch_nothing(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_count(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_spread(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_place(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_scatter(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_deliver(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_gather(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_reduce(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_publish(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_collect(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_transfer(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_fanout(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_sums(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_until(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_atomic(fe_cuda_args *args, cudaStream_t stream);
/* Parts of a scatter and of a place, over several hosts. */
cudaError_t fe_cuda_launch_pack(fe_cuda_args *args, cudaStream_t stream);
cudaError_t fe_cuda_launch_number(fe_cuda_args *args, cudaStream_t stream);
/* Bytes between memories that the GPU reaches. */
cudaError_t fe_cuda_launch_bring(void *to, const void *from, size_t bytes, cudaStream_t stream);
/* A word of the space, for another host. old: pinned. */
cudaError_t fe_cuda_launch_errand(fe_errand errand, uint64_t *word, uint64_t value, uint64_t expected, uint64_t *old,
                                  cudaStream_t stream);
/* Loads the kernels, and allows them the shared memory that they take: a kernel that is loaded at its first launch may have to wait for one
 * that waits for it. */
cudaError_t fe_cuda_prepare_space(int *early);
cudaError_t fe_cuda_prepare_route(size_t shared);
cudaError_t fe_cuda_prepare_deliver(void);
cudaError_t fe_cuda_prepare_scatter(void);
cudaError_t fe_cuda_prepare_reduce(void);
cudaError_t fe_cuda_prepare_far(void);
/* Shared memory that a route of this many units needs; the most warps that fit a block (0: too many units). */
int fe_cuda_route_warps(int bins, size_t shared_most, size_t *shared);
#ifdef __cplusplus
}
#endif

#endif
