#include "cpu/stream.h"

#include <stdlib.h>

#define YIELD_NS 50000
#define SLEEP_NS 10000000 /* bounds how late an abort is noticed */

static fe_cpu_event *own(ferry_event *event) {
    return (fe_cpu_event *)event;
}

void fe_cpu_event_release(fe_cpu_event *e) {
    if (atomic_fetch_sub(&e->holders, 1) == 1) free(e);
}

/* Records of one event on two streams may be reached out of order: the highest counts. */
void fe_cpu_event_reach(fe_cpu_event *e, uint32_t number) {
    uint32_t now = atomic_load(&e->happened);
    while ((int32_t)(number - now) > 0 && !atomic_compare_exchange_weak(&e->happened, &now, number)) {
    }
    fe_futex_wake(&e->happened);
}

static bool reached(fe_cpu_event *e, uint32_t number) {
    return (int32_t)(atomic_load(&e->happened) - number) >= 0;
}

/* While another stream of this rank waits for a rank, the event's most likely, and has not been late for as long, it is left to that one to say
 * who is late: it began later, and each of its waits is bounded. `last`: when one was last seen to wait; it says so soon after. */
static bool gives_up(const fe_engine *engine, int64_t now, int64_t deadline, int64_t *last) {
    if (atomic_load(&fe_heap_control(&engine->heap, engine->heap.rank)->waiting)) *last = now;
    return now >= deadline && (now - *last > 2 * SLEEP_NS || now >= deadline + engine->watch.timeout_ns);
}

ferry_status fe_cpu_event_wait(fe_cpu_event *e, uint32_t number, const char *who) {
    const fe_engine *engine = e->base.engine;
    int64_t now = fe_now_ns(), sleep_from = now + YIELD_NS, deadline = now + engine->watch.timeout_ns, last = 0;
    for (int i = 0; i < engine->watch.spin && !reached(e, number); i++) fe_pause();
    for (; !reached(e, number); now = fe_now_ns()) {
        FE_TRY(fe_watch_aborted(&engine->heap));
        if (gives_up(engine, now, deadline, &last))
            return fe_fail(FERRY_TIMEOUT, "rank %d: %s waited %lld ms for an event that did not happen",
                           engine->heap.rank, who, (long long)(engine->watch.timeout_ns / 1000000));
        uint32_t seen = atomic_load(&e->happened);
        if (now < sleep_from)
            sched_yield();
        else if (!reached(e, number))
            fe_futex_wait(&e->happened, seen, SLEEP_NS);
    }
    return FERRY_OK;
}

ferry_status fe_cpu_event_create(fe_engine *engine, ferry_event **event) {
    fe_cpu_event *e = calloc(1, sizeof *e);
    if (!e) return fe_fail(FERRY_NOMEM, "rank %d: no memory for an event", engine->heap.rank);
    e->base.engine = engine;
    atomic_init(&e->holders, 1);
    *event = &e->base;
    return FERRY_OK;
}

void fe_cpu_event_destroy(ferry_event *event) {
    fe_cpu_event_release(own(event));
}

static ferry_status mark(fe_cpu_event *e, ferry_stream *stream, int kind, uint32_t number) {
    fe_command *command = malloc(sizeof *command);
    if (!command) return fe_fail(FERRY_NOMEM, "no memory to queue an event");
    command->kind = kind;
    command->mark.event = e;
    command->mark.number = number;
    atomic_fetch_add(&e->holders, 1);
    fe_cpu_enqueue((fe_cpu_stream *)stream, command);
    return FERRY_OK;
}

ferry_status fe_cpu_event_record(ferry_event *event, ferry_stream *stream) {
    fe_cpu_event *e = own(event);
    uint32_t number = atomic_fetch_add(&e->recorded, 1) + 1;
    if (stream) return mark(e, stream, FE_RUN_RECORD, number);
    fe_cpu_event_reach(e, number);
    return FERRY_OK;
}

ferry_status fe_cpu_event_await(ferry_stream *stream, ferry_event *event) {
    fe_cpu_event *e = own(event);
    uint32_t number = atomic_load(&e->recorded);
    return reached(e, number) ? FERRY_OK : mark(e, stream, FE_RUN_AWAIT, number);
}

ferry_status fe_cpu_event_sync(ferry_event *event) {
    fe_cpu_event *e = own(event);
    return fe_cpu_event_wait(e, atomic_load(&e->recorded), "the host");
}

int fe_cpu_event_done(ferry_event *event) {
    fe_cpu_event *e = own(event);
    return reached(e, atomic_load(&e->recorded));
}
