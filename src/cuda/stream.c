#include "cuda/device.h"

#include <stdlib.h>

static fe_cuda_stream *own(ferry_stream *stream) {
    return (fe_cuda_stream *)stream;
}

static ferry_status add_stream(fe_engine *engine, cudaStream_t native, bool wrapped, ferry_stream **stream) {
    fe_cuda *cuda = fe_cuda_of(engine);
    fe_cuda_stream *s = calloc(1, sizeof *s);
    if (!s) return fe_fail(FERRY_NOMEM, "rank %d: no memory for a stream", engine->heap.rank);
    s->base.engine = engine;
    s->native = native;
    s->wrapped = wrapped;
    pthread_mutex_lock(&cuda->lock);
    s->next = cuda->streams;
    cuda->streams = s;
    pthread_mutex_unlock(&cuda->lock);
    *stream = &s->base;
    return FERRY_OK;
}

ferry_status fe_cuda_stream_create(fe_engine *engine, ferry_stream **stream) {
    cudaStream_t native;
    FE_TRY(fe_cuda_enter(engine));
    FE_CUDA_TRY(cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking), engine->heap.rank, "making a stream");
    ferry_status status = add_stream(engine, native, false, stream);
    if (status != FERRY_OK) cudaStreamDestroy(native);
    return status;
}

ferry_status fe_cuda_stream_wrap(fe_engine *engine, void *native, ferry_stream **stream) {
    return add_stream(engine, native, true, stream);
}

void fe_cuda_stream_destroy(ferry_stream *stream) {
    fe_cuda_stream *s = own(stream);
    fe_cuda *cuda = fe_cuda_of(stream->engine);
    fe_cuda_stream_drain(stream);
    pthread_mutex_lock(&cuda->lock);
    for (fe_cuda_stream **at = &cuda->streams; *at; at = &(*at)->next) {
        if (*at != s) continue;
        *at = s->next;
        break;
    }
    pthread_mutex_unlock(&cuda->lock);
    if (!s->wrapped) cudaStreamDestroy(s->native);
    free(s);
}

void fe_cuda_stream_drain(ferry_stream *stream) {
    if (fe_cuda_enter(stream->engine) == FERRY_OK) cudaStreamSynchronize(own(stream)->native);
}

/* Kernels of a broken rank do nothing, do not say on which stream they were, and another call may have taken the report: each stream that may
 * have had some says once that the rank is broken. */
static ferry_status hear(fe_cuda_stream *s) {
    fe_engine *engine = s->base.engine;
    uint64_t now = engine->heap.era + 1;
    bool used = atomic_exchange(&s->used, false) || s->wrapped;
    ferry_status status = fe_cuda_take_untold(engine);
    if (!atomic_load(&engine->fault.broken)) return status;
    if (status == FERRY_OK && used && atomic_load(&s->told) != now)
        status = fe_cuda_core->fault_check(&engine->fault, &engine->heap, "what is on a stream");
    if (fe_fault_fatal(status)) atomic_store(&s->told, now);
    return status;
}

ferry_status fe_cuda_stream_sync(ferry_stream *stream) {
    fe_engine *engine = stream->engine;
    FE_TRY(fe_cuda_enter(engine));
    ferry_status status = fe_cuda_ok(cudaStreamSynchronize(own(stream)->native), engine->heap.rank, "a stream");
    if (status != FERRY_OK) {
        fe_cuda_core->fault_note(&engine->fault, status, true);
        return status;
    }
    FE_TRY(hear(own(stream)));
    return fe_cuda_core->still_counts(&engine->heap); /* kernels do not look */
}

/* Asking is no part of a graph that this thread may be capturing meanwhile. */
static int is_idle(cudaStream_t stream) {
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaError_t error = cudaStreamQuery(stream);
    cudaThreadExchangeStreamCaptureMode(&mode);
    return error != cudaErrorNotReady;
}

int fe_cuda_stream_idle(ferry_stream *stream) {
    return fe_cuda_enter(stream->engine) != FERRY_OK || is_idle(own(stream)->native);
}

ferry_status fe_cuda_call(ferry_stream *stream, void (*function)(void *), void *argument) {
    FE_TRY(fe_cuda_enter(stream->engine));
    return fe_cuda_ok(cudaLaunchHostFunc(own(stream)->native, function, argument), stream->engine->heap.rank,
                      "putting a function on a stream");
}

/* ---- captures ---- */

bool fe_cuda_captured(cudaStream_t stream) {
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(stream, &status) == cudaSuccess && status != cudaStreamCaptureStatusNone;
}

int fe_cuda_stream_captured(ferry_stream *stream) {
    return fe_cuda_captured(own(stream)->native);
}

/* The number of the capture that the stream takes part in; 0: none, or one that is spoilt. */
static unsigned long long capture_of(cudaStream_t stream) {
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    unsigned long long id = 0;
#if CUDART_VERSION >= 13000
    cudaError_t error = cudaStreamGetCaptureInfo(stream, &status, &id, NULL, NULL, NULL, NULL);
#else
    cudaError_t error = cudaStreamGetCaptureInfo(stream, &status, &id, NULL, NULL, NULL);
#endif
    return error == cudaSuccess && status == cudaStreamCaptureStatusActive ? id : 0;
}

/* ---- events ---- */

static fe_cuda_event *of(ferry_event *event) {
    return (fe_cuda_event *)event;
}

static cudaError_t query(cudaEvent_t event) { /* as in is_idle */
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaError_t error = cudaEventQuery(event);
    cudaThreadExchangeStreamCaptureMode(&mode);
    return error;
}

ferry_status fe_cuda_event_create(fe_engine *engine, ferry_event **event) {
    fe_cuda_event *e = calloc(1, sizeof *e);
    if (!e) return fe_fail(FERRY_NOMEM, "rank %d: no memory for an event", engine->heap.rank);
    e->base.engine = engine;
    ferry_status status = fe_cuda_enter(engine);
    if (status == FERRY_OK)
        status = fe_cuda_ok(cudaEventCreateWithFlags(&e->native, cudaEventDisableTiming), engine->heap.rank,
                            "making an event");
    if (status != FERRY_OK) {
        free(e);
        return status;
    }
    *event = &e->base;
    return FERRY_OK;
}

void fe_cuda_event_destroy(ferry_event *event) {
    cudaEventDestroy(of(event)->native); /* streams that still have to pass it keep what they need */
    free(event);
}

ferry_status fe_cuda_event_record(ferry_event *event, ferry_stream *stream) {
    of(event)->recorded = stream != NULL;
    if (!stream) return FERRY_OK;
    FE_TRY(fe_cuda_enter(event->engine));
    of(event)->recorded_on = own(stream)->native;
    of(event)->capture = capture_of(own(stream)->native);
    return fe_cuda_ok(cudaEventRecord(of(event)->native, own(stream)->native), event->engine->heap.rank,
                      "recording an event");
}

/* A graph must not wait for an event from outside, nor a stream for one of a graph that is captured already: what has happened is not
 * waited for, and a graph's event by waiting for what was replayed so far. */
static bool is_over(const fe_cuda_event *e, cudaStream_t stream) {
    if (e->capture && e->capture == capture_of(e->recorded_on))
        return false; /* a wait joins the stream to the capture */
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaError_t error = cudaSuccess;
    if (!e->capture)
        error = cudaEventQuery(e->native);
    else if (!fe_cuda_captured(stream))
        error = cudaStreamSynchronize(e->recorded_on);
    cudaThreadExchangeStreamCaptureMode(&mode);
    cudaGetLastError();
    return error == cudaSuccess;
}

ferry_status fe_cuda_event_await(ferry_stream *stream, ferry_event *event) {
    if (!of(event)->recorded) return FERRY_OK;
    FE_TRY(fe_cuda_enter(event->engine));
    if (is_over(of(event), own(stream)->native)) return FERRY_OK;
    return fe_cuda_ok(cudaStreamWaitEvent(own(stream)->native, of(event)->native, 0), event->engine->heap.rank,
                      "waiting for an event");
}

ferry_status fe_cuda_event_sync(ferry_event *event) {
    fe_engine *engine = event->engine;
    int64_t deadline = fe_now_ns() + engine->watch.timeout_ns;
    if (!of(event)->recorded) return FERRY_OK;
    FE_TRY(fe_cuda_enter(engine));
    if (of(event)->capture) { /* of a graph: what was replayed on the stream so far is waited for */
        FE_CUDA_TRY(cudaStreamSynchronize(of(event)->recorded_on), engine->heap.rank, "an event of a graph");
        return fe_cuda_core->still_counts(&engine->heap);
    }
    for (;;) {
        cudaError_t error = query(of(event)->native);
        if (error != cudaErrorNotReady) {
            FE_TRY(fe_cuda_ok(error, engine->heap.rank, "an event"));
            return fe_cuda_core->still_counts(&engine->heap);
        }
        FE_TRY(fe_cuda_core->aborted(&engine->heap));
        if (fe_now_ns() > deadline)
            return fe_fail(FERRY_TIMEOUT, "rank %d: the host waited %lld ms for an event that did not happen",
                           engine->heap.rank, (long long)(engine->watch.timeout_ns / 1000000));
        sched_yield();
    }
}

int fe_cuda_event_done(ferry_event *event) {
    if (!of(event)->recorded || fe_cuda_enter(event->engine) != FERRY_OK) return 1;
    if (of(event)->capture) return is_idle(of(event)->recorded_on);
    return query(of(event)->native) != cudaErrorNotReady;
}
