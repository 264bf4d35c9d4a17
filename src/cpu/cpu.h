/* The CPU device, inside. */
#ifndef FERRY_CPU_CPU_H
#define FERRY_CPU_CPU_H

#include "cpu/pool.h"
#include "cpu/rows.h"
#include "device/device.h"

typedef struct fe_cpu {
    const fe_rows *rows;
    _Atomic int lanes;    /* streams so far */
    fe_pool pool;         /* for calls with a NULL stream */
    pthread_mutex_t lock; /* of the list */
    struct fe_cpu_stream *streams;
} fe_cpu;

/* What runs a pass: a pool, on behalf of an engine. */
typedef struct fe_crew {
    fe_engine *engine;
    const fe_rows *rows;
    fe_pool *pool;
    int lane; /* of its steps' records: 0 for calls with a NULL stream, then the streams as they were made */
} fe_crew;

/* The moves. */
ferry_status fe_cpu_count(const fe_crew *crew, const fe_pass *pass);
ferry_status fe_cpu_spread(const fe_crew *crew, const fe_pass *pass);
ferry_status fe_cpu_place(const fe_crew *crew, const fe_pass *pass);
ferry_status fe_cpu_scatter(const fe_crew *crew, const fe_pass *pass);
void fe_cpu_deliver(const fe_crew *crew, const fe_pass *pass);
void fe_cpu_gather(const fe_crew *crew, const fe_pass *pass);
void fe_cpu_reduce(const fe_crew *crew, const fe_pass *pass);
ferry_status fe_cpu_publish(const fe_crew *crew, const fe_pass *pass);
void fe_cpu_collect(const fe_crew *crew, const fe_pass *pass);
ferry_status fe_cpu_transfer(const fe_crew *crew, const fe_pass *pass);
ferry_status fe_cpu_until(const fe_crew *crew, const fe_pass *pass);
ferry_status fe_cpu_atomic(const fe_crew *crew, const fe_pass *pass);

/* Over several hosts. */
ferry_status fe_cpu_fanout(const fe_crew *crew, const fe_pass *pass);
ferry_status fe_cpu_sums(const fe_crew *crew, const fe_pass *pass);
ferry_status fe_cpu_send_weights(const fe_crew *crew, const fe_pass *pass);

/* Where a rank's row of counts lies in every space. */
void fe_cpu_counts_place(const fe_pass *pass, int rank, uint64_t *at, size_t *bytes);

/* Runs one pass unless the group has failed, and breaks it when the pass fails for good. */
ferry_status fe_cpu_pass(const fe_crew *crew, const fe_pass *pass);
/* Workers for one crew. */
ferry_status fe_cpu_open_pool(const fe_engine *engine, fe_pool *pool);

/* stream.c, event.c: verbs of fe_device_cpu. */
ferry_status fe_cpu_stream_create(fe_engine *engine, ferry_stream **stream);
void fe_cpu_stream_destroy(ferry_stream *stream);
ferry_status fe_cpu_stream_sync(ferry_stream *stream);
void fe_cpu_stream_drain(ferry_stream *stream);
int fe_cpu_stream_idle(ferry_stream *stream);
ferry_status fe_cpu_stream_pass(ferry_stream *stream, const fe_pass *pass);
ferry_status fe_cpu_stream_call(ferry_stream *stream, void (*function)(void *), void *argument);
ferry_status fe_cpu_event_create(fe_engine *engine, ferry_event **event);
void fe_cpu_event_destroy(ferry_event *event);
ferry_status fe_cpu_event_record(ferry_event *event, ferry_stream *stream);
ferry_status fe_cpu_event_await(ferry_stream *stream, ferry_event *event);
ferry_status fe_cpu_event_sync(ferry_event *event);
int fe_cpu_event_done(ferry_event *event);

#endif
