/* The CUDA device's table of verbs: opening and closing, memory, what kernels see of a group. */
#include "cuda/device.h"
#include "cuda/memory.h"

#include <stddef.h>
#include <stdlib.h>

#define SMS_MOST    24   /* a rank alone on its GPU: about what DeepEP takes there by default */
#define SHARED_REST 4096 /* shared memory that kernels declare beside the dynamic part */

ferry_status fe_cuda_enter(const fe_engine *engine) {
    int now = -1, device = fe_cuda_of(engine)->device;
    if (cudaGetDevice(&now) == cudaSuccess && now == device) return FERRY_OK;
    return fe_cuda_ok(cudaSetDevice(device), engine->heap.rank, "choosing the GPU");
}

/* ---- opening ---- */

/* Blocks of all ranks that share a GPU must be resident at once, since they wait for each other. */
static ferry_status choose_blocks(fe_engine *engine, const struct cudaDeviceProp *prop) {
    fe_cuda *cuda = fe_cuda_of(engine);
    int sharing = fe_cuda_memory_sharing(&engine->heap, false), all = prop->multiProcessorCount;
    int share = all / sharing > SMS_MOST ? SMS_MOST : all / sharing;
    int64_t sms = engine->sms;
    if (!sms) FE_TRY(fe_cuda_core->env_number(FE_ENV_FERRY_SMS, share, 1, 4096, &sms));
    if (sms < 1 || sms * sharing > all)
        return fe_fail(FERRY_INVALID, "rank %d: %d ranks share this GPU with %lld SMs each, and it has %d: lower sms",
                       engine->heap.rank, sharing, (long long)sms, all);
    cuda->blocks = (int)sms;
    size_t most = prop->sharedMemPerBlockOptin - SHARED_REST;
    int bins = engine->heap.ranks + engine->homes_most;
    cuda->route_warps = fe_cuda_route_warps(bins, most, &cuda->route_shared);
    if (cuda->route_warps) return FERRY_OK;
    return fe_fail(FERRY_UNSUPPORTED, "rank %d: %d experts and their copies are more than a GPU's shared memory counts",
                   engine->heap.rank, engine->map->homes);
}

/* One table in device memory: addresses of all spaces and posts, then the arrays of the map and of the hosts, and what is known of each rank.
 * Kernels of the caller's have been told its address: it stays where it is. */
static ferry_status upload_tables(fe_engine *engine) {
    fe_cuda *cuda = fe_cuda_of(engine);
    const fe_map *map = engine->map;
    const fe_heap *heap = &engine->heap;
    const fe_hosts *hosts = &heap->hosts;
    const size_t word = sizeof(int32_t), ranks = (size_t)heap->ranks, homes = (size_t)map->homes,
                 room = (size_t)engine->homes_most * word;
    const struct {
        const void *from;
        size_t bytes, room;
    } parts[] = {{heap->space, ranks * sizeof *heap->space, ranks * sizeof *heap->space},
                 {map->copy_first, ((size_t)map->experts + 1) * word, ((size_t)map->experts + 1) * word},
                 {map->copy, homes * word, room},
                 {map->rank_first, (ranks + 1) * word, (ranks + 1) * word},
                 {map->home_rank, homes * word, room},
                 {map->home_expert, homes * word, room},
                 {fe_cuda_memory_linked(heap), ranks, ranks},
                 {cuda->posts, ranks * sizeof *cuda->posts, ranks * sizeof *cuda->posts},
                 {hosts->host_of, ranks * sizeof(int), ranks * sizeof(int)},
                 {hosts->index_of, ranks * sizeof(int), ranks * sizeof(int)},
                 {hosts->rank_at, ranks * sizeof(int), ranks * sizeof(int)},
                 {(const void *)heap->masked, ranks, ranks}};
    enum { PARTS = sizeof parts / sizeof *parts };
    size_t at[PARTS + 1] = {0};
    for (int i = 0; i < PARTS; i++) at[i + 1] = at[i] + (parts[i].room + 15) / 16 * 16;
    if (!cuda->tables) FE_CUDA_TRY(cudaMalloc(&cuda->tables, at[PARTS]), heap->rank, "taking GPU memory for tables");
    for (int i = 0; i < PARTS; i++)
        FE_CUDA_TRY(cudaMemcpyAsync((char *)cuda->tables + at[i], parts[i].from, parts[i].bytes, cudaMemcpyHostToDevice,
                                    cuda->stream),
                    heap->rank, "copying tables to the GPU");
    char *base = cuda->tables;
    cuda->world.space = (char *const *)(void *)base;
    cuda->world.map = *map;
    cuda->world.map.copy_first = (int32_t *)(void *)(base + at[1]);
    cuda->world.map.copy = (int32_t *)(void *)(base + at[2]);
    cuda->world.map.rank_first = (int32_t *)(void *)(base + at[3]);
    cuda->world.map.home_rank = (int32_t *)(void *)(base + at[4]);
    cuda->world.map.home_expert = (int32_t *)(void *)(base + at[5]);
    cuda->world.linked = (const uint8_t *)(base + at[6]);
    cuda->world.sharing = fe_cuda_memory_sharing(heap, true);
    cuda->world.post = fe_heap_staged(heap) ? (char *const *)(void *)(base + at[7]) : cuda->world.space;
    cuda->world.here = cuda->posts[heap->rank];
    cuda->world.hosts = *hosts;
    cuda->world.hosts.host_of = (int *)(void *)(base + at[8]);
    cuda->world.hosts.index_of = (int *)(void *)(base + at[9]);
    cuda->world.hosts.rank_at = (int *)(void *)(base + at[10]);
    cuda->world.near_ranks = hosts->each;
    cuda->world.mask = (const uint8_t *)(base + at[11]);
    return FERRY_OK;
}

/* Number i of those whose memfds this rank's kernels use: itself, then the others of its host. */
static int pinned_rank(const fe_heap *heap, int i) {
    return fe_hosts_rank(&heap->hosts, heap->hosts.mine, (heap->hosts.index + i) % heap->hosts.each);
}

static char *boxes_in_memfd(const fe_heap *heap) {
    return heap->base[heap->rank] + heap->lead + heap->boxes_at;
}

/* Rows for other hosts and from them: in GPU memory where the network has taken that (GPUDirect), else in the post. */
static ferry_status map_boxes(fe_engine *engine) {
    fe_cuda *cuda = fe_cuda_of(engine);
    const fe_heap *heap = &engine->heap;
    int gpu;
    char *boxes = heap->memory->boxes(heap, &gpu);
    if (!boxes) {
        FE_CUDA_TRY(fe_cuda_pin(boxes_in_memfd(heap), heap->post_bytes - heap->boxes_at, &boxes), heap->rank,
                    "mapping boxes for other hosts for the GPU");
        cuda->boxes_pinned = true;
    }
    cuda->world.boxed = boxes - heap->boxes_at;
    return FERRY_OK;
}

/* The control block lies in host memory that other processes write: the GPU reads `aborted` there, and writes `waiting`. Over several hosts
 * the post lies behind it, and kernels use those of all near ranks. */
static ferry_status map_posts(fe_engine *engine) {
    fe_cuda *cuda = fe_cuda_of(engine);
    const fe_heap *heap = &engine->heap;
    int count = fe_heap_staged(heap) ? heap->hosts.each : 1;
    size_t bytes = fe_heap_staged(heap) ? heap->lead + heap->boxes_at : heap->bytes;
    cuda->posts = calloc((size_t)heap->ranks, sizeof *cuda->posts);
    if (!cuda->posts) return fe_fail(FERRY_NOMEM, "rank %d: no memory for tables", heap->rank);
    for (int r = 0; r < heap->ranks; r++) cuda->posts[r] = heap->post[r];
    for (; cuda->pinned < count; cuda->pinned++) {
        int r = pinned_rank(heap, cuda->pinned);
        char *there;
        FE_CUDA_TRY(fe_cuda_pin(heap->base[r], bytes, &there), heap->rank,
                    "mapping the heap's host memory for the GPU");
        if (fe_heap_staged(heap)) cuda->posts[r] = there + (heap->post[r] - heap->base[r]);
        if (r != heap->rank) continue;
        cuda->world.aborted = (const uint32_t *)(void *)(there + offsetof(fe_control, aborted));
        cuda->world.waiting = (uint32_t *)(void *)(there + offsetof(fe_control, waiting));
    }
    return FERRY_OK;
}

/* What kernels need where ranks are on several hosts. */
static ferry_status fill_far(fe_engine *engine) {
    fe_cuda *cuda = fe_cuda_of(engine);
    fe_cuda_world *w = &cuda->world;
    const fe_heap *heap = &engine->heap;
    void *board = NULL;
    size_t bytes = 2 * FE_CUDA_TIDES * (size_t)cuda->blocks * (size_t)heap->ranks * sizeof(fe_cell);
    if (!fe_heap_staged(heap)) return FERRY_OK;
    FE_TRY(map_boxes(engine));
    FE_CUDA_TRY(cudaMalloc(&board, bytes), heap->rank, "taking GPU memory for notes");
    w->board = board;
    FE_CUDA_TRY(cudaMalloc(&cuda->stage, FE_CUDA_SCRATCH), heap->rank, "taking GPU memory for meetings");
    w->board_blocks = cuda->blocks;
    w->space_bytes = heap->space_bytes;
    w->orders = (fe_kernel_order *)(void *)(cuda->posts[heap->rank] + fe_room_orders(heap));
    return FERRY_OK;
}

static ferry_status fill_world(fe_engine *engine) {
    fe_cuda *cuda = fe_cuda_of(engine);
    int rank = engine->heap.rank;
    void *own = NULL, *report = NULL;
    FE_CUDA_TRY(cudaMalloc(&own, sizeof(fe_cuda_own)), rank, "taking GPU memory");
    cuda->world.own = own;
    FE_CUDA_TRY(cudaMemsetAsync(own, 0, sizeof(fe_cuda_own), cuda->stream), rank, "clearing GPU memory");
    FE_CUDA_TRY(cudaHostAlloc(&report, sizeof(fe_cuda_report), cudaHostAllocMapped | cudaHostAllocPortable), rank,
                "taking pinned memory");
    memset(report, 0, sizeof(fe_cuda_report));
    cuda->world.report = report;
    cuda->world.rank = rank;
    cuda->world.ranks = engine->heap.ranks;
    cuda->world.far = engine->heap.hosts.count > 1;
    cuda->world.plain = !cuda->world.far;
    cuda->world.scratch_at = engine->heap.scratch_at;
    cuda->world.timeout_ns = (uint64_t)engine->watch.timeout_ns;
    FE_TRY(map_posts(engine));
    FE_TRY(upload_tables(engine));
    FE_TRY(fill_far(engine));
    return fe_cuda_ok(cudaStreamSynchronize(cuda->stream), rank, "preparing the GPU");
}

static ferry_status prepare_kernels(const fe_engine *engine) {
    cudaError_t error = fe_cuda_prepare_space(&fe_cuda_of(engine)->early);
    if (error == cudaSuccess) error = fe_cuda_prepare_route(fe_cuda_of(engine)->route_shared);
    if (error == cudaSuccess) error = fe_cuda_prepare_deliver();
    if (error == cudaSuccess) error = fe_cuda_prepare_scatter();
    if (error == cudaSuccess) error = fe_cuda_prepare_reduce();
    if (error == cudaSuccess && engine->heap.hosts.count > 1) error = fe_cuda_prepare_far();
    return fe_cuda_ok(error, engine->heap.rank, "loading the kernels");
}

static void close_device(fe_engine *engine);

static ferry_status open_device(fe_engine *engine) {
    fe_cuda *cuda = calloc(1, sizeof *cuda);
    struct cudaDeviceProp prop;
    if (!cuda) return fe_fail(FERRY_NOMEM, "rank %d: no memory for the CUDA device", engine->heap.rank);
    engine->state = cuda;
    pthread_mutex_init(&cuda->lock, NULL);
    pthread_mutex_init(&cuda->word, NULL);
    cuda->device = fe_cuda_memory_device(&engine->heap);
    cuda->stream = fe_cuda_memory_stream(&engine->heap);
    ferry_status status = fe_cuda_enter(engine);
    if (status == FERRY_OK)
        status = fe_cuda_ok(cudaGetDeviceProperties(&prop, cuda->device), engine->heap.rank, "looking at the GPU");
    if (status == FERRY_OK) status = choose_blocks(engine, &prop);
    if (status == FERRY_OK) status = prepare_kernels(engine);
    if (status == FERRY_OK) status = fill_world(engine);
    if (status != FERRY_OK) close_device(engine);
    return status;
}

/* ---- agreements ---- */

static void drain_device(fe_engine *engine) {
    fe_cuda *cuda = fe_cuda_of(engine);
    for (fe_cuda_stream *s = cuda->streams; s; s = s->next) fe_cuda_stream_drain((ferry_stream *)s);
    cudaStreamSynchronize(cuda->stream);
    if (cuda->waits) cudaStreamSynchronize(cuda->waits);
}

static void write_mask(fe_engine *engine) {
    fe_cuda_world *world = &fe_cuda_of(engine)->world;
    memset(world->masked, 0, sizeof world->masked);
    world->plain = !world->far;
    for (int r = 0; r < world->ranks; r++) {
        if (!fe_heap_masked(&engine->heap, r)) continue;
        world->masked[r / 32] |= 1u << r % 32;
        world->plain = false;
    }
    world->era = engine->heap.era;
}

/* For kernels of a rank that was held up: they begin, and find that the others have gone on. Not where a newcomer never met it, nor where its memory
 * goes with it; and who holds an agreement for so long that the rank is in a later era by now says nothing. */
static ferry_status tell_masked(fe_engine *engine) {
    const fe_heap *heap = &engine->heap;
    const uint64_t yes = 1;
    for (int r = 0; !fe_heap_staged(heap) && r < heap->ranks; r++) {
        if (!fe_heap_masked(heap, r) || !fe_heap_near(heap, r)) continue;
        const fe_control *control = fe_heap_control(heap, r);
        if (atomic_load(&control->holders) || atomic_load(&control->aborted) >> 32 >= heap->era) continue;
        fe_cell *cell = (fe_cell *)(void *)heap->post[r] + fe_outside_cell(heap->ranks, r);
        FE_CUDA_TRY(
            cudaMemcpyAsync((void *)&cell->epoch, &yes, sizeof yes, cudaMemcpyHostToDevice, fe_cuda_of(engine)->stream),
            heap->rank, "telling a rank that it is masked");
    }
    return FERRY_OK;
}

/* The device's own words begin as they did when the group was made. */
static ferry_status begin_own(fe_engine *engine) {
    fe_cuda *cuda = fe_cuda_of(engine);
    int rank = engine->heap.rank;
    FE_CUDA_TRY(cudaMemsetAsync(cuda->world.own, 0, sizeof(fe_cuda_own), cuda->stream), rank, "clearing GPU memory");
    FE_CUDA_TRY(cudaMemcpyAsync(&cuda->world.own->era, &cuda->world.era, sizeof cuda->world.era, cudaMemcpyHostToDevice,
                                cuda->stream),
                rank, "telling the GPU the era");
    memset(cuda->world.report, 0, sizeof(fe_cuda_report));
    atomic_store(&fe_heap_control(&engine->heap, rank)->waiting, 0);
    cuda->told = false;
    cuda->untold.status = FERRY_OK;
    return FERRY_OK;
}

/* Of this rank's heap, in the post or behind it. */
static ferry_status clear(fe_engine *engine, size_t offset, size_t bytes) {
    const fe_heap *heap = &engine->heap;
    size_t posted = 0;
    if (fe_heap_staged(heap) && offset < heap->post_bytes)
        posted = bytes < heap->post_bytes - offset ? bytes : heap->post_bytes - offset;
    memset(heap->post[heap->rank] + offset, 0, posted);
    if (posted == bytes) return FERRY_OK;
    char *rest = heap->space[heap->rank] + offset + posted;
    return fe_cuda_ok(cudaMemsetAsync(rest, 0, bytes - posted, fe_cuda_of(engine)->stream), heap->rank,
                      "clearing the heap for a new era");
}

static ferry_status renew_device(fe_engine *engine, size_t body_bytes) {
    fe_cuda *cuda = fe_cuda_of(engine);
    const fe_heap *heap = &engine->heap;
    FE_TRY(fe_cuda_enter(engine));
    write_mask(engine);
    for (int r = 0; r < heap->ranks && !fe_heap_staged(heap); r++) cuda->posts[r] = heap->post[r]; /* of newcomers */
    FE_TRY(tell_masked(engine));
    FE_TRY(begin_own(engine));
    FE_TRY(upload_tables(engine));
    FE_TRY(clear(engine, 0, heap->scratch_at));
    FE_TRY(clear(engine, heap->body_at, body_bytes));
    if (fe_heap_staged(heap)) /* the proxy is a new one, and counts orders from 0 as kernels do */
        FE_TRY(clear(engine, fe_room_orders(heap), FE_KERNEL_ORDERS * sizeof(fe_kernel_order)));
    return fe_cuda_ok(cudaStreamSynchronize(cuda->stream), heap->rank, "beginning anew after an agreement");
}

/* ---- closing ---- */

static void stop_device(fe_engine *engine) {
    fe_cuda *cuda = fe_cuda_of(engine);
    while (cuda->streams) fe_cuda_stream_destroy((ferry_stream *)cuda->streams);
    drain_device(engine);
}

static void close_device(fe_engine *engine) {
    fe_cuda *cuda = fe_cuda_of(engine);
    fe_cuda_enter(engine);
    for (int i = 0; i < FE_CUDA_SPARES; i++) cudaFree(cuda->spare[i].memory);
    if (cuda->waits) cudaStreamDestroy(cuda->waits);
    if (cuda->boxes_pinned) fe_cuda_unpin(boxes_in_memfd(&engine->heap));
    while (cuda->pinned > 0) fe_cuda_unpin(engine->heap.base[pinned_rank(&engine->heap, --cuda->pinned)]);
    cudaFree(cuda->world.board);
    cudaFree(cuda->stage);
    free(cuda->posts);
    cudaFree(cuda->tables);
    cudaFree(cuda->world.own);
    cudaFreeHost(cuda->world.report);
    cudaGetLastError();
    pthread_mutex_destroy(&cuda->lock);
    pthread_mutex_destroy(&cuda->word);
    free(cuda);
    engine->state = NULL;
}

/* ---- route memory ---- */

static void *take_spare(fe_cuda *cuda, size_t bytes) {
    void *memory = NULL;
    pthread_mutex_lock(&cuda->lock);
    for (int i = 0; i < FE_CUDA_SPARES && !memory; i++) {
        if (!cuda->spare[i].memory || cuda->spare[i].bytes != bytes) continue;
        memory = cuda->spare[i].memory;
        cuda->spare[i].memory = NULL;
    }
    pthread_mutex_unlock(&cuda->lock);
    return memory;
}

/* A route may be made, and another destroyed, while a stream is being captured: memory is no part of the graph, and is taken and given
 * only by a thread that says so. */
static void *alloc(fe_engine *engine, size_t bytes) {
    void *memory = take_spare(fe_cuda_of(engine), bytes);
    if (memory || fe_cuda_enter(engine) != FERRY_OK) return memory;
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    if (cudaMalloc(&memory, bytes) != cudaSuccess) memory = NULL;
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaGetLastError();
    return memory;
}

static void give_back(fe_engine *engine, void *memory) {
    if (fe_cuda_enter(engine) != FERRY_OK) return;
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaFree(memory);
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaGetLastError();
}

static void release(fe_engine *engine, void *memory, size_t bytes) {
    fe_cuda *cuda = fe_cuda_of(engine);
    pthread_mutex_lock(&cuda->lock);
    for (int i = 0; i < FE_CUDA_SPARES && memory; i++) {
        if (cuda->spare[i].memory) continue;
        cuda->spare[i].memory = memory;
        cuda->spare[i].bytes = bytes;
        memory = NULL;
    }
    pthread_mutex_unlock(&cuda->lock);
    if (memory) give_back(engine, memory);
}

static ferry_status fetch(fe_engine *engine, ferry_stream *stream, void *host, const void *from, size_t bytes) {
    cudaStream_t native = stream ? ((fe_cuda_stream *)stream)->native : fe_cuda_of(engine)->stream;
    FE_TRY(fe_cuda_enter(engine));
    FE_CUDA_TRY(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, native), engine->heap.rank,
                "reading counts");
    return fe_cuda_ok(cudaStreamSynchronize(native), engine->heap.rank, "reading counts");
}

static ferry_status fill_handle(fe_engine *engine, ferry_device_group *handle) {
    const fe_cuda_world *world = &fe_cuda_of(engine)->world;
    if (world->far)
        return fe_fail(FERRY_UNSUPPORTED, "rank %d: kernels of the caller's reach one host, and the group has %d",
                       world->rank, world->hosts.count);
    handle->rank = world->rank;
    handle->ranks = world->ranks;
    handle->space = world->space;
    handle->space_bytes = engine->heap.space_bytes;
    handle->barrier_at = (uint64_t)FE_KERNEL * 2 * (uint64_t)world->ranks * sizeof(fe_cell);
    handle->barrier_epoch = &world->own->kernel_barriers;
    handle->aborted = world->aborted;
    handle->timeout_ns = world->timeout_ns;
    handle->masked = world->mask;
    return FERRY_OK;
}

static const fe_device device = {
    .name = "cuda",
    .memory = &fe_cuda_memory,
    .parts = 1, /* what is near takes a GPU little of the time that the network takes */
    .open = open_device,
    .stop = stop_device,
    .close = close_device,
    .drain = drain_device,
    .renew = renew_device,
    .submit = fe_cuda_submit,
    .extra = fe_cuda_extra_bytes,
    .alloc = alloc,
    .release = release,
    .fetch = fetch,
    .look = fe_cuda_look,
    .handle = fill_handle,
    .call = fe_cuda_call,
    .stream_create = fe_cuda_stream_create,
    .stream_wrap = fe_cuda_stream_wrap,
    .stream_destroy = fe_cuda_stream_destroy,
    .stream_sync = fe_cuda_stream_sync,
    .stream_drain = fe_cuda_stream_drain,
    .stream_idle = fe_cuda_stream_idle,
    .stream_captured = fe_cuda_stream_captured,
    .event_create = fe_cuda_event_create,
    .event_destroy = fe_cuda_event_destroy,
    .event_record = fe_cuda_event_record,
    .event_await = fe_cuda_event_await,
    .event_sync = fe_cuda_event_sync,
    .event_done = fe_cuda_event_done,
};

/* The door of libferry_cuda.so. */
FERRY_API const fe_device *fe_cuda_entry(const fe_core *core);
const fe_device *fe_cuda_entry(const fe_core *core) {
    int version = FERRY_VERSION_MAJOR * 10000 + FERRY_VERSION_MINOR * 100 + FERRY_VERSION_PATCH;
    if (core->size != sizeof *core || core->engine_bytes != sizeof(fe_engine) || core->pass_bytes != sizeof(fe_pass) ||
        core->version != version)
        return NULL;
    fe_cuda_core = core;
    return &device;
}
