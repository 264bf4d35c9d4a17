/* A space is one physical allocation of the driver's (cuMemCreate), exported as a file descriptor; and where the driver offers it, as a
 * fabric handle, which serves where the kernel does not hand out descriptors of other processes. Whoever maps it holds it: a rank that
 * leaves takes nothing away from a late peer's store. Threads of one process import it as processes do. Where the driver does not export,
 * cudaMalloc with CUDA IPC serves, whose memory must not be freed before all have let go. */
#include "cuda/memory.h"

#include <cuda.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LET_GO_MS 1000 /* for the others to unmap memory that its owner is about to free */

typedef enum card_kind {
    CARD_EXPORT = 1,
    CARD_IPC,
    CARD_THREAD /* CARD_IPC's memory, of a thread of this process */
} card_kind;

typedef struct card { /* in an fe_card */
    int32_t kind, fd, device;
    uint8_t uuid[16];
    uint64_t pointer;
    bool has_fabric;
    union { /* 64 bytes each */
        cudaIpcMemHandle_t ipc;
        CUmemFabricHandle fabric;
    };
} card;
_Static_assert(sizeof(card) <= sizeof(fe_card), "what maps a GPU's memory must fit the introduction");

typedef struct state {
    int device, fd;
    int sharing, sharing_near; /* ranks on this GPU, this one included */
    card_kind kind;
    cudaStream_t stream;
    uint8_t uuid[16];
    size_t bytes;    /* rounded up to the driver's granularity */
    card_kind *how;  /* [ranks] in which each is mapped; 0: not */
    uint8_t *linked; /* [ranks] 1: on another GPU */
    /* for other hosts: made when first needed */
    pthread_mutex_t lock;
    cudaStream_t errands;
    uint64_t *old; /* pinned */
    void *boxes;
    bool flush; /* what the network writes to them */
} state;

/* Memory begins at space_at of the space. */
static void set_space(fe_heap *heap, int rank, char *memory) {
    heap->space[rank] = memory ? memory - heap->space_at : NULL;
}
static char *memory_of(const fe_heap *heap, int rank) {
    return heap->space[rank] ? heap->space[rank] + heap->space_at : NULL;
}

/* The driver, found through the runtime: this library does not need libcuda.so to be loaded. */
static struct driver {
    CUresult (*attribute)(int *, CUdevice_attribute, CUdevice);
    CUresult (*granularity)(size_t *, const CUmemAllocationProp *, CUmemAllocationGranularity_flags);
    CUresult (*create)(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long);
    CUresult (*release)(CUmemGenericAllocationHandle);
    CUresult (*export)(void *, CUmemGenericAllocationHandle, CUmemAllocationHandleType, unsigned long long);
    CUresult (*import)(CUmemGenericAllocationHandle *, void *, CUmemAllocationHandleType);
    CUresult (*reserve)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long);
    CUresult (*unreserve)(CUdeviceptr, size_t);
    CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long);
    CUresult (*unmap)(CUdeviceptr, size_t);
    CUresult (*access)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t);
} driver;

static bool find(const char *name, void *function) {
    void *symbol = NULL;
    enum cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion(name, &symbol, 12000, cudaEnableDefault, &result) != cudaSuccess || !symbol)
        return false;
    memcpy(function, &symbol, sizeof symbol);
    return true;
}

static bool find_driver(void) {
    return find("cuDeviceGetAttribute", &driver.attribute) &&
           find("cuMemGetAllocationGranularity", &driver.granularity) && find("cuMemCreate", &driver.create) &&
           find("cuMemRelease", &driver.release) && find("cuMemExportToShareableHandle", &driver.export) &&
           find("cuMemImportFromShareableHandle", &driver.import) && find("cuMemAddressReserve", &driver.reserve) &&
           find("cuMemAddressFree", &driver.unreserve) && find("cuMemMap", &driver.map) &&
           find("cuMemUnmap", &driver.unmap) && find("cuMemSetAccess", &driver.access);
}

/* Maps an allocation into this process, for this rank's GPU. The mapping holds it: the handle goes. */
static char *map_handle(const state *s, CUmemGenericAllocationHandle handle, size_t bytes) {
    CUdeviceptr at = 0;
    CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = s->device},
                              .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    if (driver.reserve(&at, bytes, 0, 0, 0) != CUDA_SUCCESS) at = 0;
    if (at && driver.map(at, bytes, 0, handle, 0) != CUDA_SUCCESS) {
        driver.unreserve(at, bytes);
        at = 0;
    }
    if (at && driver.access(at, bytes, &access, 1) != CUDA_SUCCESS) {
        driver.unmap(at, bytes);
        driver.unreserve(at, bytes);
        at = 0;
    }
    driver.release(handle);
    return (char *)(uintptr_t)at;
}

/* A driver that knows fabric handles may still refuse them, where no channel for them is open to this process. */
static CUresult create(state *s, size_t bytes, card *c, CUmemGenericAllocationHandle *handle) {
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = s->device}};
    size_t grain = 0;
    CUresult result = driver.granularity(&grain, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    if (result != CUDA_SUCCESS) return result;
    s->bytes = (bytes + grain - 1) / grain * grain;
    int fabric = 0;
    driver.attribute(&fabric, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED, s->device);
    if (fabric) {
        prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_FABRIC;
        if (driver.create(handle, s->bytes, &prop, 0) == CUDA_SUCCESS) {
            c->has_fabric = driver.export(&c->fabric, *handle, CU_MEM_HANDLE_TYPE_FABRIC, 0) == CUDA_SUCCESS;
            return CUDA_SUCCESS;
        }
        prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    }
    return driver.create(handle, s->bytes, &prop, 0);
}

static char *make_exported(state *s, size_t bytes, card *c) {
    CUmemGenericAllocationHandle handle;
    if (create(s, bytes, c, &handle) != CUDA_SUCCESS) return NULL;
    if (driver.export(&s->fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0) == CUDA_SUCCESS)
        return map_handle(s, handle, s->bytes);
    s->fd = -1;
    driver.release(handle);
    return NULL;
}

/* Another process's descriptor in this one: the kernel lets in who may trace that process, as for the heap's memfd. */
static int borrow_fd(int pid, int fd) {
    int process = (int)syscall(SYS_pidfd_open, pid, 0);
    if (process < 0) return -1;
    int mine = (int)syscall(SYS_pidfd_getfd, process, fd, 0), error = errno;
    close(process);
    errno = error;
    return mine;
}

static ferry_status map_exported(fe_heap *heap, int peer, int pid, const card *c) {
    state *s = heap->memory_state;
    CUmemGenericAllocationHandle handle;
    CUresult result;
    int fd = pid == getpid() ? dup(c->fd) : borrow_fd(pid, c->fd);
    if (fd < 0 && !c->has_fabric)
        return fe_fail(FERRY_SYSTEM, "rank %d: the GPU memory of rank %d (descriptor %d of process %d): %s", heap->rank,
                       peer, c->fd, pid, strerror(errno));
    if (fd >= 0) {
        result = driver.import(&handle, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
        close(fd);
    } else {
        CUmemFabricHandle fabric = c->fabric;
        result = driver.import(&handle, &fabric, CU_MEM_HANDLE_TYPE_FABRIC);
    }
    set_space(heap, peer, result == CUDA_SUCCESS ? map_handle(s, handle, s->bytes) : NULL);
    if (!heap->space[peer])
        return fe_fail(FERRY_SYSTEM, "rank %d: the GPU memory of rank %d could not be mapped (CUresult %d)", heap->rank,
                       peer, (int)result);
    s->how[peer] = CARD_EXPORT;
    return FERRY_OK;
}

static ferry_status map_ipc(fe_heap *heap, int peer, int pid, const card *c) {
    state *s = heap->memory_state;
    bool thread = pid == getpid(); /* its address is as good here */
    void *at = (void *)(uintptr_t)c->pointer;
    if (!thread)
        FE_CUDA_TRY(cudaIpcOpenMemHandle(&at, c->ipc, cudaIpcMemLazyEnablePeerAccess), heap->rank,
                    "mapping another process's GPU memory");
    if (thread && c->device != s->device) {
        cudaError_t error = cudaDeviceEnablePeerAccess(c->device, 0);
        cudaGetLastError();
        if (error != cudaErrorPeerAccessAlreadyEnabled)
            FE_CUDA_TRY(error, heap->rank, "access to another GPU's memory");
    }
    set_space(heap, peer, at);
    s->how[peer] = thread ? CARD_THREAD : CARD_IPC;
    atomic_fetch_add(&fe_heap_control(heap, peer)->holders, 1);
    return FERRY_OK;
}

static void log_kind(const fe_heap *heap, const struct cudaDeviceProp *prop, card_kind kind) {
    char line[256];
    snprintf(line, sizeof line, "rank %d: %zu bytes of GPU %.100s, shared by %s", heap->rank,
             heap->space_bytes - heap->space_at, prop->name, kind == CARD_EXPORT ? "file descriptor" : "CUDA IPC");
    fe_cuda_core->log(FE_INFO, FE_HEAP, line);
}

/* Cells begin at epoch 0. On the group's stream: other ranks of this process may have kernels that wait for this rank, and
 * waiting for the whole GPU would wait for them. */
static ferry_status clear_cells(const fe_heap *heap, char *space) {
    state *s = heap->memory_state;
    FE_CUDA_TRY(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking), heap->rank, "making a stream");
    if (fe_heap_staged(heap)) return FERRY_OK; /* they are in the memfd */
    FE_CUDA_TRY(cudaMemsetAsync(space, 0, heap->body_at, s->stream), heap->rank, "clearing the cells");
    return fe_cuda_ok(cudaStreamSynchronize(s->stream), heap->rank, "clearing the cells");
}

static ferry_status make(fe_heap *heap, fe_card *out) {
    struct cudaDeviceProp prop;
    state *s = calloc(1, sizeof *s);
    heap->memory_state = s;
    size_t bytes = heap->space_bytes - heap->space_at;
    if (s) pthread_mutex_init(&s->lock, NULL);
    if (s) s->how = calloc((size_t)heap->ranks, sizeof *s->how);
    if (s) s->linked = calloc((size_t)heap->ranks, sizeof *s->linked);
    if (!s || !s->how || !s->linked)
        return fe_fail(FERRY_NOMEM, "rank %d: no memory for the GPU memory's tables", heap->rank);
    s->fd = -1;
    s->sharing = s->sharing_near = 1;
    FE_CUDA_TRY(cudaGetDevice(&s->device), heap->rank, "looking for a GPU");
    FE_CUDA_TRY(cudaGetDeviceProperties(&prop, s->device), heap->rank, "looking at the GPU");
    FE_CUDA_TRY(cudaFree(NULL), heap->rank, "starting CUDA");
    memcpy(s->uuid, &prop.uuid, sizeof s->uuid);
    card c = {.device = s->device, .fd = -1};
    memcpy(c.uuid, s->uuid, sizeof c.uuid);
    char *space = find_driver() ? make_exported(s, bytes, &c) : NULL;
    s->kind = space ? CARD_EXPORT : CARD_IPC;
    if (!space) {
        void *at = NULL;
        FE_CUDA_TRY(cudaMalloc(&at, bytes), heap->rank, "taking GPU memory for the space");
        space = at;
    }
    set_space(heap, heap->rank, space);
    s->how[heap->rank] = s->kind;
    if (s->kind == CARD_IPC) FE_CUDA_TRY(cudaIpcGetMemHandle(&c.ipc, space), heap->rank, "exporting GPU memory");
    c.kind = (int32_t)s->kind;
    c.fd = s->fd;
    c.pointer = (uintptr_t)space;
    memcpy(out->bytes, &c, sizeof c);
    log_kind(heap, &prop, s->kind);
    return clear_cells(heap, space);
}

static void meet(fe_heap *heap, int peer, const fe_card *in) {
    state *s = heap->memory_state;
    card c;
    memcpy(&c, in->bytes, sizeof c);
    s->linked[peer] = memcmp(c.uuid, s->uuid, sizeof c.uuid) != 0;
    s->sharing += !s->linked[peer];
    s->sharing_near += !s->linked[peer] && fe_hosts_near(&heap->hosts, peer);
}

static ferry_status map(fe_heap *heap, int peer, int pid, const fe_card *in) {
    card c;
    memcpy(&c, in->bytes, sizeof c);
    return c.kind == CARD_EXPORT ? map_exported(heap, peer, pid, &c) : map_ipc(heap, peer, pid, &c);
}

/* A late store into freed memory would be the end of its rank's context: who still holds after a while keeps it. */
static void free_own(fe_heap *heap) {
    int64_t until = fe_now_ns() + (int64_t)LET_GO_MS * 1000000;
    _Atomic int32_t *holders = &fe_heap_control(heap, heap->rank)->holders;
    while (atomic_load(holders) > 0 && fe_now_ns() < until) sched_yield();
    if (atomic_load(holders) == 0)
        cudaFree(memory_of(heap, heap->rank));
    else
        fe_cuda_core->log(FE_WARN, FE_HEAP, "GPU memory that another rank still maps is not freed");
}

static void unmap(fe_heap *heap, int r) {
    state *s = heap->memory_state;
    CUdeviceptr at = (CUdeviceptr)(uintptr_t)memory_of(heap, r);
    if (s->how[r] == CARD_EXPORT) {
        driver.unmap(at, s->bytes);
        driver.unreserve(at, s->bytes);
    } else if (s->how[r] && r != heap->rank) {
        if (s->how[r] == CARD_IPC) cudaIpcCloseMemHandle(memory_of(heap, r));
        atomic_fetch_sub(&fe_heap_control(heap, r)->holders, 1);
    }
}

/* Another process takes its place. */
static void unmap_peer(fe_heap *heap, int peer) {
    state *s = heap->memory_state;
    if (!s->how[peer]) return;
    unmap(heap, peer);
    s->sharing -= !s->linked[peer];
    s->how[peer] = 0;
}

static void drop(fe_heap *heap) {
    state *s = heap->memory_state;
    for (int r = 0; s && s->how && r < heap->ranks; r++) unmap(heap, r);
    if (s && s->how && s->how[heap->rank] == CARD_IPC) free_own(heap);
    if (s && s->stream) cudaStreamDestroy(s->stream);
    if (s && s->errands) cudaStreamDestroy(s->errands);
    if (s) cudaFreeHost(s->old);
    if (s) cudaFree(s->boxes);
    if (s) pthread_mutex_destroy(&s->lock);
    if (s && s->fd >= 0) close(s->fd);
    if (s) free(s->how);
    if (s) free(s->linked);
    free(s);
    heap->memory_state = NULL;
}

/* ---- on behalf of other hosts ---- */

/* On a stream of its own: the others' may hold kernels that wait for just this. Under the lock. */
static ferry_status open_errands(const fe_heap *heap) {
    state *s = heap->memory_state;
    FE_CUDA_TRY(cudaSetDevice(s->device), heap->rank, "choosing the GPU");
    if (!s->errands)
        FE_CUDA_TRY(cudaStreamCreateWithFlags(&s->errands, cudaStreamNonBlocking), heap->rank, "making a stream");
    if (s->old) return FERRY_OK;
    void *old = NULL;
    FE_CUDA_TRY(cudaHostAlloc(&old, sizeof *s->old, cudaHostAllocMapped | cudaHostAllocPortable), heap->rank,
                "taking pinned memory");
    s->old = old;
    return FERRY_OK;
}

static ferry_status copy_now(const fe_heap *heap, void *to, const void *from, size_t bytes) {
    state *s = heap->memory_state;
    FE_TRY(open_errands(heap));
    FE_CUDA_TRY(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, s->errands), heap->rank,
                "copying for another host");
    return fe_cuda_ok(cudaStreamSynchronize(s->errands), heap->rank, "copying for another host");
}

static ferry_status copy(const fe_heap *heap, void *to, const void *from, size_t bytes) {
    state *s = heap->memory_state;
    pthread_mutex_lock(&s->lock);
    ferry_status status = copy_now(heap, to, from, bytes);
    pthread_mutex_unlock(&s->lock);
    return status;
}

static ferry_status word_now(const fe_heap *heap, fe_errand errand, uint64_t at, uint64_t value, uint64_t expected) {
    state *s = heap->memory_state;
    uint64_t *word = (uint64_t *)(void *)(heap->space[heap->rank] + at);
    FE_TRY(open_errands(heap));
    FE_CUDA_TRY(fe_cuda_launch_errand(errand, word, value, expected, s->old, s->errands), heap->rank,
                "a word for another host");
    return fe_cuda_ok(cudaStreamSynchronize(s->errands), heap->rank, "a word for another host");
}

static ferry_status word(const fe_heap *heap, fe_errand errand, uint64_t at, uint64_t value, uint64_t expected,
                         uint64_t *old) {
    state *s = heap->memory_state;
    pthread_mutex_lock(&s->lock);
    ferry_status status = word_now(heap, errand, at, value, expected);
    if (status == FERRY_OK) *old = *s->old;
    pthread_mutex_unlock(&s->lock);
    return status;
}

/* ---- boxes that the network reaches ---- */

/* Of what a network device has written to GPU memory a kernel may see the news first, unless the platform keeps such writes in order or
 * they are flushed (CUDA's "GPUDirect RDMA" guide, memory ordering). */
static ferry_status find_order(state *s, int rank) {
    int ordering = 0, flushes = 0;
    FE_CUDA_TRY(cudaDeviceGetAttribute(&ordering, cudaDevAttrGPUDirectRDMAWritesOrdering, s->device), rank,
                "asking the GPU for the order of a network's writes");
    FE_CUDA_TRY(cudaDeviceGetAttribute(&flushes, cudaDevAttrGPUDirectRDMAFlushWritesOptions, s->device), rank,
                "asking the GPU how a network's writes are flushed");
    s->flush = ordering < cudaGPUDirectRDMAWritesOrderingOwner;
    if (!s->flush || flushes & cudaFlushGPUDirectRDMAWritesOptionHost) return FERRY_OK;
    return fe_fail(FERRY_UNSUPPORTED, "rank %d: this GPU neither orders a network's writes nor flushes them", rank);
}

static ferry_status make_boxes(const fe_heap *heap) {
    state *s = heap->memory_state;
    FE_TRY(find_order(s, heap->rank));
    return fe_cuda_ok(cudaMalloc(&s->boxes, heap->post_bytes - heap->boxes_at), heap->rank,
                      "taking GPU memory for rows of other hosts");
}

static void *boxes(const fe_heap *heap, int *gpu) {
    const state *s = heap->memory_state;
    *gpu = s->device;
    return s->boxes;
}

static void drop_boxes(const fe_heap *heap) {
    state *s = heap->memory_state;
    cudaFree(s->boxes);
    s->boxes = NULL;
}

/* What the network's library asks of CUDA is no part of a graph that another thread may be capturing. */
static ferry_status attend(const fe_heap *heap) {
    const state *s = heap->memory_state;
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    FE_CUDA_TRY(cudaSetDevice(s->device), heap->rank, "choosing the GPU");
    return fe_cuda_ok(cudaThreadExchangeStreamCaptureMode(&mode), heap->rank, "preparing the network's thread");
}

static ferry_status settle(const fe_heap *heap) {
    const state *s = heap->memory_state;
    if (!s->flush) return FERRY_OK;
    return fe_cuda_ok(cudaDeviceFlushGPUDirectRDMAWrites(cudaFlushGPUDirectRDMAWritesTargetCurrentDevice,
                                                         cudaFlushGPUDirectRDMAWritesToOwner),
                      heap->rank, "flushing what the network has written");
}

const fe_memory fe_cuda_memory = {.make = make,
                                  .meet = meet,
                                  .map = map,
                                  .unmap = unmap_peer,
                                  .drop = drop,
                                  .copy = copy,
                                  .word = word,
                                  .make_boxes = make_boxes,
                                  .boxes = boxes,
                                  .drop_boxes = drop_boxes,
                                  .attend = attend,
                                  .settle = settle};

int fe_cuda_memory_device(const fe_heap *heap) {
    return ((const state *)heap->memory_state)->device;
}

cudaStream_t fe_cuda_memory_stream(const fe_heap *heap) {
    return ((const state *)heap->memory_state)->stream;
}

int fe_cuda_memory_sharing(const fe_heap *heap, bool near) {
    const state *s = heap->memory_state;
    return near ? s->sharing_near : s->sharing;
}

const uint8_t *fe_cuda_memory_linked(const fe_heap *heap) {
    return ((const state *)heap->memory_state)->linked;
}
