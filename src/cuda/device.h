/* The CUDA device's host side. */
#ifndef FERRY_CUDA_DEVICE_H
#define FERRY_CUDA_DEVICE_H

#include "cuda/core.h"

#define FE_CUDA_SPARES 8 /* blocks of route memory that are kept for the next route */

typedef struct fe_cuda_stream {
    ferry_stream base;
    struct fe_cuda_stream *next;
    cudaStream_t native;
    bool wrapped;          /* the caller's, who may put things there by himself: graphs */
    _Atomic bool used;     /* since the last sync */
    _Atomic uint64_t told; /* a sync has told that the rank is broken: in this era, counted from 1 */
} fe_cuda_stream;

typedef struct fe_cuda_event {
    ferry_event base;
    cudaEvent_t native;
    bool recorded;
    cudaStream_t recorded_on;
    unsigned long long capture; /* it is of the graph of this capture; 0: of none */
} fe_cuda_event;

typedef struct fe_cuda {
    int device, blocks;
    int early; /* see launch.cuh */
    fe_cuda_world world;
    void *tables;        /* device memory: addresses of spaces, the map's arrays */
    cudaStream_t stream; /* for calls with a NULL stream ... */
    cudaStream_t waits;  /* ... and for those that wait for a word, which such a call of another thread may bring */
    _Atomic uint32_t ticket;
    _Atomic uint64_t launches;
    size_t route_shared;
    int route_warps;
    char **posts; /* [ranks] as kernels address them */
    int pinned;   /* ranks whose control block (and post, up to its boxes) are mapped for the GPU, this one first */
    bool boxes_pinned;    /* and this rank's boxes, where they are host memory */
    void *stage;          /* several hosts: see fe_cuda_args */
    bool told;            /* a fatal report has become the group's fault */
    fe_outcome untold;    /* an error of some stream, for the next sync */
    pthread_mutex_t word; /* of the report's word while an atomic is under way */
    pthread_mutex_t lock; /* of what follows, and of reports */
    fe_cuda_stream *streams;
    struct {
        void *memory;
        size_t bytes;
    } spare[FE_CUDA_SPARES];
} fe_cuda;

static inline fe_cuda *fe_cuda_of(const fe_engine *engine) {
    return engine->state;
}

/* Makes the group's GPU the calling thread's. */
ferry_status fe_cuda_enter(const fe_engine *engine);

/* pin.c: maps the memory for the GPU, and says where it is there; every pin wants an unpin. Any thread. */
cudaError_t fe_cuda_pin(void *base, size_t bytes, char **there);
void fe_cuda_unpin(void *base);

/* launch.c */
ferry_status fe_cuda_submit(fe_engine *engine, ferry_stream *stream, const fe_pass *pass);
size_t fe_cuda_extra_bytes(const fe_engine *engine, const fe_shape *shape);

/* report.c: what kernels have told, as statuses and sentences */
/* A fatal report that nobody has heard yet, with its sentence: now the group's fault. FERRY_OK: none. */
ferry_status fe_cuda_news(fe_engine *engine);
/* What was told and not yet heard becomes the group's fault, and the next sync's answer. */
void fe_cuda_look(fe_engine *engine);
/* What was wrong with the pass that its caller has waited for, and not with the group, by the number of its launch; with pass NULL, with
 * any that nobody waits for. It is not told again. */
ferry_status fe_cuda_take_soft(fe_engine *engine, const fe_pass *pass, uint64_t number);
/* The first error since the last such call that fe_cuda_look has found: of passes that nobody waited for. */
ferry_status fe_cuda_take_untold(fe_engine *engine);

/* stream.c */
ferry_status fe_cuda_stream_create(fe_engine *engine, ferry_stream **stream);
ferry_status fe_cuda_stream_wrap(fe_engine *engine, void *native, ferry_stream **stream);
void fe_cuda_stream_destroy(ferry_stream *stream);
ferry_status fe_cuda_stream_sync(ferry_stream *stream);
void fe_cuda_stream_drain(ferry_stream *stream);
int fe_cuda_stream_idle(ferry_stream *stream);
int fe_cuda_stream_captured(ferry_stream *stream);
/* A graph is being captured from the stream, or was until something spoilt it. */
bool fe_cuda_captured(cudaStream_t stream);
ferry_status fe_cuda_call(ferry_stream *stream, void (*function)(void *), void *argument);
ferry_status fe_cuda_event_create(fe_engine *engine, ferry_event **event);
void fe_cuda_event_destroy(ferry_event *event);
ferry_status fe_cuda_event_record(ferry_event *event, ferry_stream *stream);
ferry_status fe_cuda_event_await(ferry_stream *stream, ferry_event *event);
ferry_status fe_cuda_event_sync(ferry_event *event);
int fe_cuda_event_done(ferry_event *event);

#endif
