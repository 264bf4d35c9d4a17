/* The symmetric heap. Each rank has two pieces of memory that every near rank maps:
 *
 *   base    host memory, a memfd: the control block (identity, bell, state), and at FE_HEAP_RECORDER_AT what watch/recorder.h keeps
 *   space   what steps work on, where an offset means the same thing on every rank
 *             0           FE_KINDS x 2 x ranks cells of 64 bytes: cell [kind][half][source] is written by rank `source` alone
 *             scratch_at  2 x FE_SCRATCH bytes for all-gather and broadcast
 *             far_at      several hosts only: what the network writes for the protocol itself (link/room.h)
 *             body_at     what the layer above asked for (counts, boxes for other hosts, receive and combine buffers)
 *             user_at     ferry_heap_alloc's
 *
 * On the CPU the space is the rest of the same memfd; a device with memory of its own makes and maps it by fe_memory. Where such a device's
 * ranks are on several hosts, the space's beginning, up to space_at, lies in the memfd and is called the *post*: there the network writes. Of
 * it the boxes of rows, from boxes_at on, may be the device's all the same, where the network reaches that (GPUDirect). Everywhere else the
 * post is the space. A memfd has no name: when the last process that maps it is gone, by
 * whatever death, so is the memory. */
#ifndef FERRY_HEAP_HEAP_H
#define FERRY_HEAP_HEAP_H

#include "base/os.h"
#include "boot/boot.h"
#include "heap/cell.h"
#include "heap/council.h"
#include "heap/hosts.h"
#include "heap/mapping.h"
#include <stdbool.h>

#define FE_CACHE_LINE 64
#define FE_SCRATCH    65536

#define FE_HEAP_MAGIC       0x4645525259484541ull /* "FERRYHEA": a control block begins with it */
#define FE_HEAP_RECORDER_AT 4096                  /* in the memfd: the control block has the page before */

enum { FE_CALLS = 32 };

/* Why a rank waits no more: the group ended; it alone leaves; a rank asks for an agreement; the others go on without it. */
typedef enum fe_why { FE_GOES_ON, FE_GROUP_ABORTED, FE_GAVE_UP, FE_RECALLED, FE_MASKED } fe_why;

typedef struct fe_control {
    uint64_t magic;
    uint64_t nonce; /* the group's: a recycled process id cannot lend us a stranger's memory */
    int32_t rank, ranks, pid;
    _Alignas(FE_CACHE_LINE) _Atomic uint32_t bell; /* futex word: rung after a cell is written while somebody sleeps */
    _Atomic uint32_t sleepers;                     /* threads of this rank asleep on the bell */
    /* era << 32 | rank that recalls << 8 | fe_why. Kernels read the lower half alone: 0, it goes on. The era is compared with it, so that
     * who recalls too late, for an agreement that is over, changes nothing. */
    _Alignas(FE_CACHE_LINE) _Atomic uint64_t aborted;
    _Alignas(
        FE_CACHE_LINE) _Atomic uint32_t waiting; /* threads of this rank that wait for other ranks, past spinning */
    _Atomic uint32_t failed;         /* a wait of this rank has ended in an error: it is late for a reason */
    _Atomic uint32_t awaited;        /* rank + 1 of one that it waits for, or waited for in vain; 0: not known */
    _Atomic uint32_t lost;           /* rank + 1 of a far rank that this rank's network has given up */
    _Atomic uint64_t calls;          /* collective calls that this rank has made in this era ... */
    _Atomic uint64_t call[FE_CALLS]; /* ... and the last of them (watch/calls.h) */
    _Atomic int32_t holders;         /* others that map its space, where the space is not held by whoever maps it */
    _Alignas(FE_CACHE_LINE) fe_council council;
} fe_control;
_Static_assert(sizeof(fe_control) <= FE_HEAP_RECORDER_AT, "the control block is a page at most");

typedef struct fe_block { /* of the user's heap, in address order, tiling it */
    size_t offset, bytes;
    bool used;
} fe_block;

typedef struct fe_heap fe_heap;

/* What a rank tells others so that they can map its space. */
typedef struct fe_card {
    uint8_t bytes[112];
} fe_card;

/* Space that is not in the memfd. */
typedef struct fe_memory {
    /* All of the space from heap->space_at on, for this rank: sets heap->space[heap->rank], and fills the card. */
    ferry_status (*make)(fe_heap *heap, fe_card *card);
    /* Every peer, near or far, before it is mapped. */
    void (*meet)(fe_heap *heap, int peer, const fe_card *card);
    /* Sets heap->space[peer]. pid: the peer's; its memory is in this very process when that is ours. */
    ferry_status (*map)(fe_heap *heap, int peer, int pid, const fe_card *card);
    /* Lets go of heap->space[peer]. */
    void (*unmap)(fe_heap *heap, int peer);
    void (*drop)(fe_heap *heap);
    /* Any thread, at once, for other hosts' sake. Bytes between memory of any kind. */
    ferry_status (*copy)(const fe_heap *heap, void *to, const void *from, size_t bytes);
    /* FE_ADD, FE_SWAP or FE_SET of a word of this rank's space; *old: what it held. */
    ferry_status (*word)(const fe_heap *heap, fe_errand errand, uint64_t at, uint64_t value, uint64_t expected,
                         uint64_t *old);
    /* GPUDirect: the boxes (heap->boxes_at up to post_bytes) in the device's own memory, for a network that reaches it. They are made when the
     * group is, and then stay. boxes: NULL, there are none; *gpu: where, as the network's library counts. */
    ferry_status (*make_boxes)(const fe_heap *heap);
    void *(*boxes)(const fe_heap *heap, int *gpu);
    void (*drop_boxes)(const fe_heap *heap); /* the network does not take them; before the device is opened */
    /* The calling thread is the network's, whose library may use the device by itself. */
    ferry_status (*attend)(const fe_heap *heap);
    /* That thread: what the network has written there is seen by every kernel that hears of it from now on. */
    ferry_status (*settle)(const fe_heap *heap);
} fe_memory;

struct fe_heap {
    int rank, ranks;
    fe_hosts hosts;
    int near_ranks;              /* ranks on this machine, this one included */
    uint64_t nonce, group;       /* this heap's number, and the group's: that of rank 0's heap */
    size_t bytes;                /* of the memfd */
    size_t recorder_bytes, lead; /* what is in the memfd before the space */
    size_t scratch_at, far_at, far_bytes, body_at, user_at, user_bytes, space_bytes;
    size_t body_post;        /* bytes of the body's beginning that belong to the post */
    size_t body_boxes;       /* where in them the boxes for other hosts begin */
    size_t space_at;         /* where the space begins that is the device's: 0, unless there is a post of its own */
    size_t boxes_at;         /* of the post's last part: it is this rank's and the network's alone. 0 as space_at */
    size_t post_bytes;       /* from offset 0 on */
    char **base;             /* [ranks] where each near rank's memfd is mapped here; far: NULL */
    char **space;            /* [ranks] where its space is, in the device's addresses; far: NULL */
    char **post;             /* [ranks] the same of its post, in this process's addresses */
    fe_mapping **mapping;    /* [ranks] */
    const fe_memory *memory; /* NULL: the space is in the memfd */
    void *memory_state;
    int fd;
    fe_card card; /* of the space */
    fe_block *block;
    size_t blocks, block_room;
    fe_story story;          /* of what was allocated and freed */
    uint64_t era;            /* agreements so far */
    _Atomic uint8_t *masked; /* [ranks] 1: the group goes on without it; NULL: nobody is. Any thread may look */
};

/* [collective over boot] Makes this rank's memory and maps the others'. Set before: rank, ranks, hosts, recorder_bytes, far_bytes, body_post,
 * body_boxes, memory, memory_state; fd -1. */
ferry_status fe_heap_create(fe_boot *boot, size_t body_bytes, size_t user_bytes, fe_heap *heap);
/* The same, where a group meets again. fe_heap_make: the part of a newcomer that needs nobody else, with the same lengths as the others
 * have. fe_heap_admit: [collective over boot] of the ranks that came (`who`): maps newcomers (`fresh`), who map all. before: what has
 * failed on this rank already, of which the others hear. */
ferry_status fe_heap_make(size_t body_bytes, size_t user_bytes, fe_heap *heap);
ferry_status fe_heap_admit(fe_boot *boot, fe_heap *heap, const uint8_t *who, const uint8_t *fresh, ferry_status before);
/* [collective over boot] The list of blocks of rank `from`, which has `blocks` of them, to the newcomers. */
ferry_status fe_heap_tell_blocks(fe_boot *boot, fe_heap *heap, int from, size_t blocks, bool mine_too);
/* Touches this rank's pages of the space from `offset` on; and, when all ranks have done so, enters the others' into this process's page
 * table. Of memory that is not the host's nothing is to be touched. */
void fe_heap_touch(const fe_heap *heap, size_t offset, size_t bytes);
void fe_heap_reach(const fe_heap *heap, size_t offset, size_t bytes);
void fe_heap_destroy(fe_heap *heap);
size_t fe_heap_bytes(int ranks, size_t recorder_bytes, size_t far_bytes, size_t body_bytes, size_t user_bytes);
/* Is this descriptor a heap's memfd of this user's, which nobody can cut under a mapping? *bytes: its size. Whatever else a process may have
 * left there is not to be mapped. */
bool fe_heap_is(int fd, size_t *bytes);

/* Offset of an address inside this rank's space; -1 when the range is not wholly inside. */
int64_t fe_heap_offset(const fe_heap *heap, const void *pointer, size_t bytes);

/* Deterministic first fit: the same calls give the same offsets on every rank. -1 when there is no room / no such block. */
int64_t fe_heap_take(fe_heap *heap, size_t bytes);
/* Once the list of blocks is made. */
void fe_heap_begin(fe_heap *heap);
/* Room for one block more in this rank's list, so that fe_heap_take cannot fail here and succeed elsewhere. */
ferry_status fe_heap_reserve(fe_heap *heap);
ferry_status fe_heap_give(fe_heap *heap, int64_t offset);
bool fe_heap_taken(const fe_heap *heap, int64_t offset); /* an allocation begins there */
size_t fe_heap_largest(const fe_heap *heap);
/* A call may have ended well on one rank and, since another died, not on the next: who is one call behind the story makes it up. */
ferry_status fe_heap_follow(fe_heap *heap, const fe_story *story);

/* The space is not host memory, and what other hosts send has to be brought there. */
static inline bool fe_heap_staged(const fe_heap *heap) {
    return heap->space_at != 0;
}
/* The first offset that is neither a note's nor the network's. */
static inline size_t fe_heap_open_at(const fe_heap *heap) {
    return fe_heap_staged(heap) ? heap->space_at : heap->body_at;
}
static inline ferry_status fe_heap_copy(const fe_heap *heap, void *to, const void *from, size_t bytes) {
    if (heap->memory) return heap->memory->copy(heap, to, from, bytes);
    memcpy(to, from, bytes);
    return FERRY_OK;
}

static inline fe_control *fe_heap_control(const fe_heap *heap, int rank) {
    return (fe_control *)(void *)heap->base[rank];
}

/* Ranks that this process can load from and store to. */
static inline bool fe_heap_near(const fe_heap *heap, int rank) {
    return heap->base[rank] != NULL;
}

static inline fe_why fe_heap_why(const fe_heap *heap, int rank) {
    return (fe_why)(atomic_load(&fe_heap_control(heap, rank)->aborted) & 0xff);
}

/* Is the group going on without it? It is not heard, nothing is said to it, and its memory is left alone. */
static inline bool fe_heap_masked(const fe_heap *heap, int rank) {
    return heap->masked && atomic_load_explicit(&heap->masked[rank], memory_order_relaxed);
}

/* Of several hosts one goes as a whole: its ranks are each other's gateways. */
static inline bool fe_heap_host_masked(const fe_heap *heap, int host) {
    return fe_heap_masked(heap, fe_hosts_rank(&heap->hosts, host, 0));
}

/* Ranks whose memory steps read and write. */
static inline bool fe_heap_reaches(const fe_heap *heap, int rank) {
    return fe_heap_near(heap, rank) && !fe_heap_masked(heap, rank);
}

/* Does a note of this kind from `source` come to this rank? */
static inline bool fe_heap_hears(const fe_heap *heap, fe_kind kind, int source) {
    return !fe_heap_masked(heap, source) && fe_hosts_hear(&heap->hosts, kind, source);
}
static inline bool fe_heap_reads(const fe_heap *heap, fe_kind kind, int source) {
    return fe_hosts_read(&heap->hosts, kind, source);
}

/* The cell in `owner`'s post that `source` writes. */
static inline fe_cell *fe_heap_cell(const fe_heap *heap, int owner, fe_kind kind, int half, int source) {
    fe_cell *cells = (fe_cell *)(void *)heap->post[owner];
    return &cells[((size_t)kind * 2 + (size_t)half) * (size_t)heap->ranks + (size_t)source];
}

#endif
