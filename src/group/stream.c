/* Streams and events: the public calls, handed to the group's device. */
#include "group/group.h"

static const fe_device *device_of(const fe_engine *engine) {
    return engine->device;
}

static ferry_status refuse_null(const void *pointer, const char *call, const char *what) {
    return pointer ? FERRY_OK : fe_fail(FERRY_INVALID, "%s: %s is NULL", call, what);
}

ferry_status ferry_stream_create(ferry_group *g, ferry_stream **stream) {
    FE_TRY(fe_group_check(g, "ferry_stream_create"));
    FE_TRY(refuse_null(stream, "ferry_stream_create", "stream"));
    return g->engine.device->stream_create(&g->engine, stream);
}

ferry_status ferry_stream_wrap(ferry_group *g, void *native, ferry_stream **stream) {
    FE_TRY(fe_group_check(g, "ferry_stream_wrap"));
    FE_TRY(refuse_null(stream, "ferry_stream_wrap", "stream"));
    if (!g->engine.device->stream_wrap)
        return fe_fail(FERRY_UNSUPPORTED, "ferry_stream_wrap: the %s device has no streams but Ferry's",
                       g->engine.device->name);
    return g->engine.device->stream_wrap(&g->engine, native, stream);
}

/* Flights must not remember a stream that is gone: what it did is done. */
static void forget_stream(fe_flight *flights, int count, const ferry_stream *stream) {
    for (int i = 0; i < count; i++)
        if (flights[i].done_on == stream) flights[i].done_on = NULL;
}

void ferry_stream_destroy(ferry_stream *stream) {
    if (!stream) return;
    fe_engine *engine = stream->engine;
    ferry_group *g = (ferry_group *)engine; /* the engine is the group's first member */
    device_of(engine)->stream_destroy(stream);
    forget_stream(g->dispatch, 2, stream);
    forget_stream(g->combine, 2, stream);
    forget_stream(&g->meeting, 1, stream);
    forget_stream(&g->exchange, 1, stream);
}
_Static_assert(offsetof(struct ferry_group, engine) == 0, "a stream's engine leads to its group");

ferry_status ferry_stream_sync(ferry_stream *stream) {
    FE_TRY(refuse_null(stream, "ferry_stream_sync", "stream"));
    return device_of(stream->engine)->stream_sync(stream);
}

int ferry_stream_idle(ferry_stream *stream) {
    return stream ? device_of(stream->engine)->stream_idle(stream) : 1;
}

ferry_status ferry_stream_call(ferry_stream *stream, void (*function)(void *), void *argument) {
    FE_TRY(refuse_null(stream, "ferry_stream_call", "stream"));
    if (!function) return fe_fail(FERRY_INVALID, "ferry_stream_call: function is NULL");
    return device_of(stream->engine)->call(stream, function, argument);
}

ferry_status ferry_event_create(ferry_group *g, ferry_event **event) {
    FE_TRY(fe_group_check(g, "ferry_event_create"));
    FE_TRY(refuse_null(event, "ferry_event_create", "event"));
    return g->engine.device->event_create(&g->engine, event);
}

void ferry_event_destroy(ferry_event *event) {
    if (event) device_of(event->engine)->event_destroy(event);
}

static ferry_status same_group(const ferry_event *event, const ferry_stream *stream, const char *call) {
    if (!stream || stream->engine == event->engine) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "%s: the event and the stream are of different groups", call);
}

ferry_status ferry_event_record(ferry_event *event, ferry_stream *stream) {
    FE_TRY(refuse_null(event, "ferry_event_record", "event"));
    FE_TRY(same_group(event, stream, "ferry_event_record"));
    return device_of(event->engine)->event_record(event, stream);
}

ferry_status ferry_stream_wait_event(ferry_stream *stream, ferry_event *event) {
    FE_TRY(refuse_null(stream, "ferry_stream_wait_event", "stream"));
    FE_TRY(refuse_null(event, "ferry_stream_wait_event", "event"));
    FE_TRY(same_group(event, stream, "ferry_stream_wait_event"));
    return device_of(event->engine)->event_await(stream, event);
}

ferry_status ferry_event_sync(ferry_event *event) {
    FE_TRY(refuse_null(event, "ferry_event_sync", "event"));
    return device_of(event->engine)->event_sync(event);
}

int ferry_event_done(ferry_event *event) {
    return event ? device_of(event->engine)->event_done(event) : 1;
}
