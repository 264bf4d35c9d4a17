/* The CPU device's table of verbs. */
#include "cpu/stream.h"

#include <stdlib.h>

#define CREW_BENCH(ranks) (256 + (size_t)(ranks)*64) /* scatter's and reduce's jobs: a line for each rank */

ferry_status fe_cpu_open_pool(const fe_engine *engine, fe_pool *pool) {
    size_t bench = CREW_BENCH(engine->heap.ranks);
    if (bench < engine->bench_bytes) bench = engine->bench_bytes;
    return fe_pool_open(pool, engine->threads, engine->watch.spin, bench);
}

static ferry_status open_device(fe_engine *engine) {
    fe_cpu *cpu = aligned_alloc(64, (size_t)fe_align(sizeof *cpu, 64));
    if (!cpu) return fe_fail(FERRY_NOMEM, "rank %d: no memory for the CPU device", engine->heap.rank);
    memset(cpu, 0, sizeof *cpu);
    ferry_status status = fe_rows_choose(&cpu->rows);
    if (status == FERRY_OK) status = fe_cpu_open_pool(engine, &cpu->pool);
    if (status != FERRY_OK) {
        free(cpu);
        return status;
    }
    pthread_mutex_init(&cpu->lock, NULL);
    engine->state = cpu;
    return FERRY_OK;
}

static void stop_device(fe_engine *engine) {
    fe_cpu *cpu = engine->state;
    while (cpu->streams) fe_cpu_stream_destroy((ferry_stream *)cpu->streams);
}

static void close_device(fe_engine *engine) {
    fe_cpu *cpu = engine->state;
    fe_pool_close(&cpu->pool);
    pthread_mutex_destroy(&cpu->lock);
    free(cpu);
    engine->state = NULL;
}

static void drain_device(fe_engine *engine) {
    fe_cpu *cpu = engine->state;
    for (fe_cpu_stream *s = cpu->streams; s; s = s->next) fe_cpu_stream_drain((ferry_stream *)s);
}

/* What other ranks, those that are gone too, have stored beside their last notes comes before what is stored here. */
static void hear_last_notes(const fe_heap *heap) {
    fe_cell *cells = fe_near(heap, heap->rank, 0);
    for (size_t i = 0; i < (size_t)FE_KINDS * 2 * (size_t)heap->ranks; i++) (void)atomic_load(&cells[i].epoch);
}

static ferry_status renew_device(fe_engine *engine, size_t body_bytes) {
    fe_cpu *cpu = engine->state;
    const fe_heap *heap = &engine->heap;
    hear_last_notes(heap);
    memset(fe_near(heap, heap->rank, 0), 0, heap->scratch_at);
    memset(fe_near(heap, heap->rank, heap->body_at), 0, body_bytes);
    for (fe_cpu_stream *s = cpu->streams; s; s = s->next) fe_cpu_stream_forgive(s);
    return FERRY_OK;
}

static ferry_status submit(fe_engine *engine, ferry_stream *stream, const fe_pass *pass) {
    fe_cpu *cpu = engine->state;
    fe_crew crew = {.engine = engine, .rows = cpu->rows, .pool = &cpu->pool};
    return stream ? fe_cpu_stream_pass(stream, pass) : fe_cpu_pass(&crew, pass);
}

static void *alloc(fe_engine *engine, size_t bytes) {
    (void)engine;
    return aligned_alloc(64, (size_t)fe_align((int64_t)bytes, 64));
}

static void release(fe_engine *engine, void *memory, size_t bytes) {
    (void)engine, (void)bytes;
    free(memory);
}

static ferry_status fetch(fe_engine *engine, ferry_stream *stream, void *host, const void *from, size_t bytes) {
    (void)engine;
    if (stream) fe_cpu_stream_drain(stream);
    memcpy(host, from, bytes);
    return FERRY_OK;
}

const fe_device fe_device_cpu = {
    .name = "cpu",
    .parts = FE_PARTS,
    .records = true,
    .open = open_device,
    .stop = stop_device,
    .close = close_device,
    .drain = drain_device,
    .renew = renew_device,
    .submit = submit,
    .alloc = alloc,
    .release = release,
    .fetch = fetch,
    .call = fe_cpu_stream_call,
    .stream_create = fe_cpu_stream_create,
    .stream_destroy = fe_cpu_stream_destroy,
    .stream_sync = fe_cpu_stream_sync,
    .stream_drain = fe_cpu_stream_drain,
    .stream_idle = fe_cpu_stream_idle,
    .event_create = fe_cpu_event_create,
    .event_destroy = fe_cpu_event_destroy,
    .event_record = fe_cpu_event_record,
    .event_await = fe_cpu_event_await,
    .event_sync = fe_cpu_event_sync,
    .event_done = fe_cpu_event_done,
};
