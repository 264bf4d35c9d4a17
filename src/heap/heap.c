#include "heap/heap.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>

#define PAGE ((size_t)4096)

/* What each rank tells the others about its memory. */
typedef struct introduction {
    uint64_t bytes, nonce, group; /* group: 0 before it has a name */
    int32_t pid, fd;
    fe_card card;
} introduction;

static size_t page_up(size_t bytes) {
    return (bytes + PAGE - 1) / PAGE * PAGE;
}

static void lay_out(fe_heap *heap, size_t body_bytes, size_t user_bytes) {
    heap->lead = page_up(FE_HEAP_RECORDER_AT + heap->recorder_bytes);
    heap->scratch_at = page_up((size_t)FE_KINDS * 2 * (size_t)heap->ranks * sizeof(fe_cell));
    heap->far_at = heap->scratch_at + 2 * FE_SCRATCH;
    heap->body_at = heap->far_at + page_up(heap->far_bytes);
    heap->user_at = page_up(heap->body_at + body_bytes);
    heap->user_bytes = page_up(user_bytes);
    heap->space_bytes = heap->user_at + heap->user_bytes;
    heap->space_at = heap->memory && heap->hosts.count > 1 ? page_up(heap->body_at + heap->body_post) : 0;
    heap->boxes_at = heap->space_at ? heap->body_at + page_up(heap->body_boxes) : 0;
    heap->post_bytes = heap->space_at ? heap->space_at : heap->space_bytes;
    heap->bytes = heap->lead + (!heap->memory ? heap->space_bytes : heap->space_at);
}

size_t fe_heap_bytes(int ranks, size_t recorder_bytes, size_t far_bytes, size_t body_bytes, size_t user_bytes) {
    fe_heap heap = {.ranks = ranks, .recorder_bytes = recorder_bytes, .far_bytes = far_bytes};
    lay_out(&heap, body_bytes, user_bytes);
    return heap.bytes;
}

/* What of the rank's space lies in its memfd. */
static void find_post(fe_heap *heap, int rank, const fe_mapping *mapping) {
    heap->base[rank] = mapping->base;
    if (!heap->memory || heap->space_at) heap->post[rank] = mapping->base + heap->lead;
    if (!heap->memory) heap->space[rank] = heap->post[rank];
}

/* Once the rank's space is made or mapped. */
static void find_rest(fe_heap *heap, int rank) {
    if (heap->memory && !heap->space_at) heap->post[rank] = heap->space[rank];
}

static ferry_status make_own(fe_heap *heap) {
    if (getrandom(&heap->nonce, sizeof heap->nonce, 0) != (ssize_t)sizeof heap->nonce)
        return fe_fail_errno("rank %d: drawing the number of its heap", heap->rank);
    heap->fd = memfd_create("ferry-heap", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (heap->fd < 0) return fe_fail_errno("rank %d: memfd_create of the symmetric heap", heap->rank);
    if (fchmod(heap->fd, S_IRUSR | S_IWUSR) != 0)
        return fe_fail_errno("rank %d: closing the symmetric heap to other users", heap->rank);
    errno = fe_file_resize(heap->fd, (int64_t)heap->bytes);
    if (errno) return fe_fail_errno("rank %d: sizing the symmetric heap to %zu bytes", heap->rank, heap->bytes);
    /* Nobody may cut the file under a mapping: that would turn a peer's store into SIGBUS. */
    if (fcntl(heap->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        return fe_fail_errno("rank %d: sealing the symmetric heap", heap->rank);
    fe_mapping *mapping = fe_mapping_make(heap->nonce, heap->fd, heap->bytes);
    if (!mapping) return fe_fail_errno("rank %d: mapping %zu bytes", heap->rank, heap->bytes);
    heap->mapping[heap->rank] = mapping;
    find_post(heap, heap->rank, mapping);
    fe_control *control = fe_heap_control(heap, heap->rank);
    control->nonce = heap->nonce;
    control->rank = heap->rank;
    control->ranks = heap->ranks;
    control->pid = (int32_t)getpid();
    control->magic = FE_HEAP_MAGIC;
    return FERRY_OK;
}

/* First touch of a page costs microseconds (the host may fault it in too), so it is paid here and not in the first steps. */
static void populate(char *from, size_t bytes) {
#ifdef MADV_POPULATE_WRITE
    size_t lead = (size_t)((uintptr_t)from % PAGE);
    if (madvise(from - lead, bytes + lead, MADV_POPULATE_WRITE) == 0) return;
#endif
    for (size_t i = 0; i < bytes; i += PAGE) { /* what is there stays */
        volatile char *at = from + i;
        char there = *at;
        *at = there;
    }
}

void fe_heap_touch(const fe_heap *heap, size_t offset, size_t bytes) {
    if (!heap->memory) populate(heap->space[heap->rank] + offset, bytes);
}

void fe_heap_reach(const fe_heap *heap, size_t offset, size_t bytes) {
#ifdef MADV_POPULATE_WRITE /* else the first steps do it: touching bytes that their owner may write already would lose his */
    int32_t pid = fe_heap_control(heap, heap->rank)->pid;
    for (int r = 0; r < heap->ranks; r++) {
        if (heap->memory || !fe_heap_near(heap, r) || fe_heap_control(heap, r)->pid == pid)
            continue; /* a thread's heap is mapped here once for all */
        char *from = heap->space[r] + offset;
        size_t lead = (size_t)((uintptr_t)from % PAGE);
        if (madvise(from - lead, bytes + lead, MADV_POPULATE_WRITE) != 0) return;
    }
#else
    (void)heap, (void)offset, (void)bytes;
#endif
}

bool fe_heap_is(int fd, size_t *bytes) {
    struct stat about;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &about) != 0) return false;
    *bytes = (size_t)about.st_size;
    return about.st_uid == geteuid() && (about.st_mode & (S_IRWXG | S_IRWXO)) == 0;
}

/* Another process's memfd, by way of /proc: the kernel lets in who could also trace that process (same user), and nothing
 * has a name that a crash could leave behind. O_NONBLOCK: whatever the path leads to, opening it does not wait. */
static ferry_status map_process(fe_heap *heap, int peer, const introduction *theirs, fe_mapping **mapping) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", theirs->pid, theirs->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 && errno == ENOENT && access("/proc/self/fd", F_OK) == 0) /* it had one, and dies or has given up */
        return fe_fail(FERRY_TIMEOUT, "rank %d went away while the group was made", peer);
    if (fd < 0) return fe_fail_errno("rank %d: opening the heap of rank %d at %s", heap->rank, peer, path);
    ferry_status status = FERRY_OK;
    size_t bytes;
    if (!fe_heap_is(fd, &bytes) || bytes != heap->bytes)
        status = fe_fail(FERRY_SYSTEM,
                         "rank %d: what rank %d shares at %s is not a sealed heap of this user's, of %zu bytes",
                         heap->rank, peer, path, heap->bytes);
    else if (!(*mapping = fe_mapping_make(theirs->nonce, fd, heap->bytes)))
        status = fe_fail_errno("rank %d: mapping the heap of rank %d", heap->rank, peer);
    close(fd);
    return status;
}

/* Of whoever had the place before. */
static void unmap_peer(fe_heap *heap, int peer) {
    if (heap->memory && heap->space[peer]) heap->memory->unmap(heap, peer);
    fe_mapping_drop(heap->mapping[peer]);
    heap->mapping[peer] = NULL;
    heap->base[peer] = heap->space[peer] = NULL;
}

static ferry_status map_peer(fe_heap *heap, int peer, const introduction *theirs) {
    unmap_peer(heap, peer);
    if (theirs->bytes != heap->bytes)
        return fe_fail(FERRY_MISMATCH, "rank %d has a heap of %llu bytes, rank %d one of %zu", peer,
                       (unsigned long long)theirs->bytes, heap->rank, heap->bytes);
    if (heap->memory) heap->memory->meet(heap, peer, &theirs->card);
    if (!fe_hosts_near(&heap->hosts, peer)) return FERRY_OK;
    fe_mapping *mapping = fe_mapping_find(theirs->nonce);
    if (!mapping) FE_TRY(map_process(heap, peer, theirs, &mapping));
    heap->mapping[peer] = mapping;
    find_post(heap, peer, mapping);
    const fe_control *control = fe_heap_control(heap, peer);
    if (control->magic != FE_HEAP_MAGIC || control->nonce != theirs->nonce || control->rank != peer)
        return fe_fail(FERRY_SYSTEM, "rank %d: what process %d shares is not the heap of rank %d", heap->rank,
                       theirs->pid, peer);
    if (heap->memory) FE_TRY(heap->memory->map(heap, peer, theirs->pid, &theirs->card));
    find_rest(heap, peer);
    return FERRY_OK;
}

/* who, fresh: see fe_heap_admit; NULL: all are there, and new. */
static ferry_status map_all(fe_heap *heap, fe_boot *boot, const uint8_t *who, const uint8_t *fresh) {
    introduction mine = {.bytes = heap->bytes,
                         .nonce = heap->nonce,
                         .pid = (int32_t)getpid(),
                         .fd = heap->fd,
                         .group = heap->group,
                         .card = heap->card};
    introduction *all = calloc((size_t)heap->ranks, sizeof *all);
    if (!all) return fe_fail(FERRY_NOMEM, "rank %d: no memory to meet %d ranks", heap->rank, heap->ranks);
    ferry_status status = fe_boot_allgather(boot, &mine, all, sizeof mine);
    for (int peer = 0; status == FERRY_OK && peer < heap->ranks; peer++)
        if (peer != heap->rank && (!who || (who[peer] && (fresh[peer] || fresh[heap->rank]))))
            status = map_peer(heap, peer, &all[peer]);
    heap->near_ranks = heap->hosts.on_machine;
    for (int r = heap->ranks - 1; r >= 0; r--) /* the name that the group has, or gets */
        if (!who || (who[r] && !fresh[r])) heap->group = who ? all[r].group : all[r].nonce;
    free(all);
    return status;
}

static ferry_status agree(const fe_heap *heap, fe_boot *boot, ferry_status mine) {
    char doing[80];
    snprintf(doing, sizeof doing, "make or map a symmetric heap of %zu bytes", heap->bytes);
    return fe_boot_agree(boot, mine, doing);
}

/* This rank's own part: tables, the memfd, the space. */
static ferry_status make_all(fe_heap *heap) {
    heap->base = calloc((size_t)heap->ranks, sizeof *heap->base);
    heap->space = calloc((size_t)heap->ranks, sizeof *heap->space);
    heap->post = calloc((size_t)heap->ranks, sizeof *heap->post);
    heap->mapping = calloc((size_t)heap->ranks, sizeof *heap->mapping);
    heap->masked = calloc((size_t)heap->ranks, sizeof *heap->masked);
    heap->block_room = 16;
    heap->block = calloc(heap->block_room, sizeof *heap->block);
    if (!heap->base || !heap->space || !heap->post || !heap->mapping || !heap->masked || !heap->block)
        return fe_fail(FERRY_NOMEM, "rank %d: no memory for the tables of %d ranks", heap->rank, heap->ranks);
    heap->blocks = heap->user_bytes ? 1 : 0;
    heap->block[0] = (fe_block){.offset = heap->user_at, .bytes = heap->user_bytes};
    fe_heap_begin(heap);
    FE_TRY(make_own(heap));
    if (heap->memory) FE_TRY(heap->memory->make(heap, &heap->card));
    find_rest(heap, heap->rank);
    return FERRY_OK;
}

ferry_status fe_heap_create(fe_boot *boot, size_t body_bytes, size_t user_bytes, fe_heap *heap) {
    lay_out(heap, body_bytes, user_bytes);
    FE_TRY(agree(heap, boot, make_all(heap)));
    FE_TRY(agree(heap, boot, map_all(heap, boot, NULL, NULL)));
    fe_log(FE_INFO, FE_HEAP, "rank %d: space of %zu bytes, %zu for the user, host %d of %d", heap->rank,
           heap->space_bytes, heap->user_bytes, heap->hosts.mine, heap->hosts.count);
    return FERRY_OK;
}

ferry_status fe_heap_make(size_t body_bytes, size_t user_bytes, fe_heap *heap) {
    lay_out(heap, body_bytes, user_bytes);
    return make_all(heap);
}

ferry_status fe_heap_admit(fe_boot *boot, fe_heap *heap, const uint8_t *who, const uint8_t *fresh,
                           ferry_status before) {
    FE_TRY(agree(heap, boot, before));
    return agree(heap, boot, map_all(heap, boot, who, fresh));
}

void fe_heap_destroy(fe_heap *heap) {
    if (heap->memory && heap->space) heap->memory->drop(heap);
    for (int r = 0; heap->mapping && r < heap->ranks; r++) fe_mapping_drop(heap->mapping[r]);
    if (heap->fd >= 0) close(heap->fd);
    fe_hosts_free(&heap->hosts);
    free(heap->base);
    free(heap->space);
    free(heap->post);
    free(heap->mapping);
    free((void *)heap->masked);
    free(heap->block);
    *heap = (fe_heap){.fd = -1};
}

int64_t fe_heap_offset(const fe_heap *heap, const void *pointer, size_t bytes) {
    uintptr_t base = (uintptr_t)heap->space[heap->rank], at = (uintptr_t)pointer;
    if (at < base + heap->space_at || at - base > heap->space_bytes || bytes > heap->space_bytes - (at - base))
        return -1;
    return (int64_t)(at - base);
}
