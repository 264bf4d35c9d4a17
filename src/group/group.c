#include "group/group.h"
#include "base/env.h"
#include "base/log.h"
#include "boot/place.h"
#include "device/core.h"
#include "group/calls.h"
#include "group/config.h"
#include "group/counters.h"

#include <stdlib.h>
#include <unistd.h>

#define DEFAULT_TIMEOUT_MS 30000
#define DEFAULT_TOUCH_MB   256

/* ---- making ---- */

/* Beyond this a step's rows do not stay in the cache, and writing past it saves reading the lines first. All ranks write two halves
 * by turns into the cache that they share: measured on a Zen 4 with 32 MiB and 2 ranks, stores past it are slower at 3.7 MB a rank and
 * twice as fast at 7.3 MB (bench/results). */
static ferry_status cache_limit(int ranks, int64_t *bytes) {
    return fe_env_number(FE_ENV_FERRY_NT_BYTES, fe_cache_bytes() / (3 * ranks), 0, INT64_MAX, bytes);
}

/* The row buffers, from their beginning, a quarter of FERRY_TOUCH_MB each. */
static ferry_status each_buffer(ferry_group *g, void (*touch)(const fe_heap *heap, size_t offset, size_t bytes)) {
    int64_t mb;
    FE_TRY(fe_env_number(FE_ENV_FERRY_TOUCH_MB, DEFAULT_TOUCH_MB, 0, 1 << 20, &mb));
    size_t quarter = (size_t)mb << 18, rows = (size_t)g->body.rows * g->body.row_bytes;
    if (quarter > rows) quarter = rows;
    for (int half = 0; half < 2; half++) {
        touch(&g->engine.heap, g->body.receive[half].rows, quarter);
        touch(&g->engine.heap, g->body.back[half].rows, quarter);
    }
    return FERRY_OK;
}

/* What crosses to other hosts, and comes from them, as far as the row buffers are touched. */
static ferry_status touch_boxes(ferry_group *g) {
    int64_t mb;
    const fe_boxes *b = &g->body.boxes;
    const fe_hosts *hosts = &g->engine.heap.hosts;
    FE_TRY(fe_env_number(FE_ENV_FERRY_TOUCH_MB, DEFAULT_TOUCH_MB, 0, 1 << 20, &mb));
    size_t share = ((size_t)mb << 17) / (size_t)(hosts->count - 1), box = share < b->box_bytes ? share : b->box_bytes,
           sum = share < b->sum_bytes ? share : b->sum_bytes;
    for (int h = 0; h < hosts->count; h++)
        for (int half = 0; half < 2 && h != hosts->mine; half++) {
            fe_heap_touch(&g->engine.heap, b->outbox[half] + (size_t)h * b->box_bytes, box);
            fe_heap_touch(&g->engine.heap, b->landing[half] + (size_t)h * b->box_bytes, box);
            fe_heap_touch(&g->engine.heap, b->sums_out[half] + (size_t)h * b->sum_bytes, sum);
            fe_heap_touch(&g->engine.heap, b->sums_in[half] + (size_t)h * b->sum_bytes, sum);
        }
    return FERRY_OK;
}

static ferry_status find_threads(ferry_group *g, int64_t *threads) {
    int64_t share = fe_cores() / g->engine.heap.near_ranks;
    *threads = g->config.threads;
    if (*threads) return FERRY_OK;
    return fe_env_number(FE_ENV_FERRY_THREADS, share > 1 ? share : 1, 1, 1024, threads);
}

/* What needs nobody else, once the heap is there. */
ferry_status fe_group_settle_in(ferry_group *g) {
    fe_engine *e = &g->engine;
    int64_t threads;
    FE_TRY(fe_watch_init(&e->watch, &e->heap, g->config.timeout_ms));
    if (!e->device->stream_captured) e->watch.describe = fe_call_describe;
    FE_TRY(find_threads(g, &threads));
    FE_TRY(cache_limit(e->heap.near_ranks, &g->stream_bytes));
    e->threads = (int)threads;
    e->sms = g->config.sms;
    e->bench_bytes = g->body.row_bytes + g->body.scale_bytes + 64;
    fe_heap_touch(&e->heap, 0, e->heap.body_at + g->body.small_bytes);
    FE_TRY(each_buffer(g, fe_heap_touch));
    return e->heap.hosts.count > 1 ? touch_boxes(g) : FERRY_OK;
}

void fe_group_plan_heap(ferry_group *g) {
    fe_heap *heap = &g->engine.heap;
    heap->rank = g->rank;
    heap->ranks = g->ranks;
    heap->memory = g->engine.device->memory;
    heap->recorder_bytes = fe_recorder_bytes(g->ranks);
    heap->far_bytes = fe_room_bytes(heap);
    heap->body_post = g->body.post_bytes;
    heap->body_boxes = g->body.boxes_at;
}

static ferry_status open_engine(ferry_group *g, fe_boot *boot) {
    fe_engine *e = &g->engine;
    fe_group_plan_heap(g);
    FE_TRY(fe_heap_create(boot, g->body.bytes, (size_t)g->config.heap_bytes, &e->heap));
    fe_body_move(&g->body, e->heap.body_at);
    ferry_status status = fe_group_settle_in(g);
    if (e->heap.hosts.count > 1) { /* the others meet here, whatever went wrong on this rank */
        FE_TRY(fe_far_open(boot, &e->heap, &e->watch, status, &e->far));
        e->watch.trouble = fe_far_trouble;
        e->watch.far = e->far;
    }
    return status == FERRY_OK ? e->device->open(e) : status;
}

static ferry_status find_device(ferry_device device, const fe_device **table) {
    if (device == FERRY_CPU) {
        *table = &fe_device_cpu;
        return FERRY_OK;
    }
    return fe_device_load_cuda(table);
}

/* The same verdict on all ranks: every rank sees the same places. */
static ferry_status find_hosts(ferry_group *g, fe_boot *boot) {
    fe_engine *e = &g->engine;
    FE_TRY(fe_hosts_find(boot, g->rank, g->ranks, &e->heap.hosts));
    if (e->heap.hosts.count > 1 && !e->device->parts)
        return fe_fail(FERRY_UNSUPPORTED, "rank %d: the %d ranks are on %d hosts, and the %s device works on one only",
                       g->rank, g->ranks, e->heap.hosts.count, e->device->name);
    return fe_body_lay_out(&g->config, &g->map, e->heap.hosts.count, &g->body);
}

ferry_status fe_group_last_word(fe_boot *boot, ferry_status status) {
    return fe_boot_agree(boot, status, "finish making the group");
}

static ferry_status build(ferry_group *g, fe_boot *boot, const ferry_group_config *cfg) {
    FE_TRY(fe_config_agree(cfg, boot, g->rank, g->ranks, NULL));
    FE_TRY(find_hosts(g, boot));
    ferry_status status = open_engine(g, boot);
    FE_TRY(fe_group_last_word(boot, status));
    fe_heap_reach(&g->engine.heap, 0, g->engine.heap.body_at + g->body.small_bytes);
    return each_buffer(g, fe_heap_reach);
}

/* Everything that can be found wrong without the others. */
ferry_status fe_group_prepare(const ferry_group_config *cfg, int rank, int ranks, ferry_group **group) {
    FE_TRY(fe_config_check(cfg));
    if (!group) return fe_fail(FERRY_INVALID, "group is NULL");
    if (ranks < 1 || ranks > FERRY_MAX_RANKS)
        return fe_fail(FERRY_INVALID, "ranks is %d, allowed are 1 to %d", ranks, FERRY_MAX_RANKS);
    if (rank < 0 || rank >= ranks)
        return fe_fail(FERRY_INVALID, "rank is %d, of %d ranks allowed are 0 to %d", rank, ranks, ranks - 1);
    if ((int64_t)ranks * cfg->max_tokens > INT32_MAX)
        return fe_fail(FERRY_INVALID, "%d ranks of max_tokens %d: together more than %d", ranks, cfg->max_tokens,
                       INT32_MAX);
    const fe_device *device;
    FE_TRY(find_device(cfg->device, &device));
    ferry_group *g = aligned_alloc(64, (size_t)fe_align(sizeof *g, 64));
    if (!g) return fe_fail(FERRY_NOMEM, "rank %d: no memory for a group", rank);
    memset(g, 0, sizeof *g);
    g->rank = rank;
    g->ranks = ranks;
    g->config = *cfg;
    g->config.expert_first = g->config.expert_rank = NULL;
    if (g->config.dtype == FERRY_BYTES) g->config.dtype = FERRY_BF16;
    g->engine.device = device;
    g->engine.map = &g->map;
    g->engine.heap.fd = -1;
    fe_fault_open(&g->engine.fault);
    int64_t timeout;
    ferry_status status = fe_env_number(FE_ENV_FERRY_TIMEOUT_MS, DEFAULT_TIMEOUT_MS, 1, 1 << 30, &timeout);
    if (status == FERRY_OK && !cfg->timeout_ms) g->config.timeout_ms = (int)timeout;
    if (status == FERRY_OK) status = fe_map_create(cfg->experts, ranks, cfg->expert_first, cfg->expert_rank, &g->map);
    if (status == FERRY_OK) status = fe_body_lay_out(&g->config, &g->map, 1, &g->body);
    g->room.homes = g->engine.homes_most = g->map.homes;
    g->room.most_local = g->map.most_local;
    if (status == FERRY_OK) status = fe_counters_open(g);
    if (status != FERRY_OK) {
        ferry_group_destroy(g);
        return status;
    }
    *group = g;
    return FERRY_OK;
}

/* Takes over g and boot, whatever comes of them. */
static ferry_status finish(ferry_group *g, fe_boot *boot, const ferry_group_config *cfg, ferry_group **group) {
    ferry_status status = build(g, boot, cfg);
    fe_boot_leave(boot);
    if (status != FERRY_OK) {
        ferry_group_destroy(g);
        return status;
    }
    fe_log(FE_INFO, FE_INIT, "rank %d of %d: group made, %d experts here, %d threads, %s device", g->rank, g->ranks,
           fe_map_local(&g->map, g->rank), g->engine.threads, g->engine.device->name);
    *group = g;
    return FERRY_OK;
}

ferry_status ferry_group_create(const ferry_unique_id *id, int rank, int ranks, const ferry_group_config *cfg,
                                ferry_group **group) {
    ferry_group *g;
    fe_boot *boot;
    if (!id) return fe_fail(FERRY_INVALID, "the unique id is NULL");
    if (!group) return fe_fail(FERRY_INVALID, "group is NULL");
    FE_TRY(fe_group_prepare(cfg, rank, ranks, &g));
    ferry_status status = fe_boot_join(id, rank, ranks, g->config.timeout_ms, &boot);
    if (status == FERRY_OK) return finish(g, boot, cfg, group);
    ferry_group_destroy(g);
    return status;
}

ferry_status ferry_group_create_with(ferry_allgather_fn allgather, void *context, int rank, int ranks,
                                     const ferry_group_config *cfg, ferry_group **group) {
    ferry_group *g;
    fe_boot *boot;
    if (!allgather) return fe_fail(FERRY_INVALID, "allgather is NULL");
    if (!group) return fe_fail(FERRY_INVALID, "group is NULL");
    FE_TRY(fe_group_prepare(cfg, rank, ranks, &g));
    ferry_status status = fe_boot_callback(allgather, context, rank, ranks, &boot);
    if (status == FERRY_OK) return finish(g, boot, cfg, group);
    ferry_group_destroy(g);
    return status;
}

ferry_status ferry_group_create_env(const ferry_group_config *cfg, ferry_group **group) {
    ferry_group *g;
    fe_boot *boot;
    fe_launch launch;
    if (!group) return fe_fail(FERRY_INVALID, "group is NULL");
    FE_TRY(fe_config_check(cfg));
    FE_TRY(fe_launch_read(&launch));
    FE_TRY(fe_group_prepare(cfg, launch.rank, launch.ranks, &g));
    ferry_status status = fe_boot_environment(&launch, g->config.timeout_ms, &boot);
    if (status == FERRY_OK) return finish(g, boot, cfg, group);
    ferry_group_destroy(g);
    return status;
}

ferry_status ferry_group_bytes(const ferry_group_config *cfg, int ranks, int64_t *bytes) {
    ferry_group *g;
    if (!bytes) return fe_fail(FERRY_INVALID, "bytes is NULL");
    FE_TRY(fe_group_prepare(cfg, 0, ranks, &g));
    *bytes = (int64_t)fe_heap_bytes(ranks, fe_recorder_bytes(ranks), fe_room_bytes(&g->engine.heap), g->body.bytes,
                                    (size_t)cfg->heap_bytes);
    ferry_group_destroy(g);
    return FERRY_OK;
}

/* ---- leaving ---- */

void ferry_group_destroy(ferry_group *g) {
    if (!g) return;
    fe_engine *e = &g->engine;
    bool there = e->heap.base && e->heap.base[g->rank], hurt = atomic_load(&e->fault.broken);
    if (there) fe_watch_give_up(&e->heap); /* what still waits on a stream waits no more */
    if (e->state) e->device->stop(e);
    if (there) fe_watch_leave(&e->heap, hurt);
    fe_counters_report(g);
    for (int half = 0; half < 2; half++) {
        if (g->dispatch[half].done) e->device->event_destroy(g->dispatch[half].done);
        if (g->combine[half].done) e->device->event_destroy(g->combine[half].done);
    }
    if (g->meeting.done) e->device->event_destroy(g->meeting.done);
    if (g->exchange.done) e->device->event_destroy(g->exchange.done);
    while (g->made) ferry_route_destroy(g->made);
    if (e->state) e->device->close(e);
    fe_far_close(e->far);
    fe_heap_destroy(&e->heap);
    fe_counters_close(g);
    fe_map_destroy(&g->map);
    fe_fault_close(&e->fault);
    free(g);
}

ferry_status ferry_group_abort(ferry_group *g) {
    FE_TRY(fe_group_check(g, "ferry_group_abort"));
    fe_watch_abort(&g->engine.heap);
    return FERRY_OK;
}

/* ---- asking ---- */

ferry_status fe_group_check(const ferry_group *g, const char *call) {
    return g ? FERRY_OK : fe_fail(FERRY_INVALID, "%s: group is NULL", call);
}

/* What went wrong beside the calls. A lost connection is fatal: the ranks no longer all hear each other. */
void fe_group_look(ferry_group *g) {
    fe_engine *e = &g->engine;
    if (e->device->look) e->device->look(e);
    if (!e->far || atomic_load(&e->fault.broken)) return;
    ferry_status status = fe_far_check(e->far);
    if (status != FERRY_OK) fe_fault_note(&e->fault, status, true);
}

ferry_status fe_group_ready(ferry_group *g, const char *step) {
    fe_group_look(g);
    return fe_fault_check(&g->engine.fault, &g->engine.heap, step);
}

ferry_status fe_group_reaches(const ferry_group *g, const char *call, const char *what, int rank) {
    if (rank < 0 || rank >= g->ranks)
        return fe_fail(FERRY_INVALID, "%s: %s is %d, ranks are 0 to %d", call, what, rank, g->ranks - 1);
    if (!fe_heap_masked(&g->engine.heap, rank)) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "%s: rank %d is masked", call, rank);
}

ferry_status fe_group_own(const ferry_group *g, const ferry_stream *stream, const char *call) {
    if (!stream || stream->engine == &g->engine) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "%s: the stream is another group's", call);
}

ferry_status ferry_group_error(ferry_group *g) {
    FE_TRY(fe_group_check(g, "ferry_group_error"));
    fe_group_look(g);
    FE_TRY(fe_fault_first(&g->engine.fault));
    return fe_watch_aborted(&g->engine.heap);
}

int ferry_group_rank(const ferry_group *g) {
    return g ? g->rank : -1;
}

int ferry_group_ranks(const ferry_group *g) {
    return g ? g->ranks : -1;
}

int ferry_group_local_experts(const ferry_group *g, int rank, const int32_t **experts) {
    if (!g || rank < 0 || rank >= g->ranks) return -1;
    if (experts) *experts = g->map.home_expert + g->map.rank_first[rank];
    return fe_map_local(&g->map, rank);
}

/* ---- two in flight ---- */

ferry_status fe_flight_await(ferry_group *g, fe_flight *flight, ferry_stream *stream) {
    const fe_device *device = g->engine.device;
    if (!flight->done_on || flight->done_on == stream) return FERRY_OK;
    return stream ? device->event_await(stream, flight->done) : device->event_sync(flight->done);
}

ferry_status fe_flight_mark(ferry_group *g, fe_flight *flight, ferry_stream *stream) {
    const fe_device *device = g->engine.device;
    flight->done_on = NULL;
    if (!stream) return FERRY_OK;
    if (!flight->done) FE_TRY(device->event_create(&g->engine, &flight->done));
    FE_TRY(device->event_record(flight->done, stream));
    flight->done_on = stream;
    return FERRY_OK;
}
