/* What a device is: a table of verbs around the one thing it runs, a pass (pass.h). It brings waiting, moving and memory: the CPU device runs
 * a pass on its workers, a GPU as one kernel that gets the struct as its argument. */
#ifndef FERRY_DEVICE_DEVICE_H
#define FERRY_DEVICE_DEVICE_H

#include "device/fault.h"
#include "device/pass.h"
#include "link/far.h"

/* What a device needs of a group. */
typedef struct fe_engine {
    const struct fe_device *device;
    fe_heap heap;
    fe_watch watch;
    fe_far *far; /* NULL: all ranks are near */
    fe_fault fault;
    const fe_map *map;
    int homes_most;     /* that a map may have */
    int threads;        /* workers of a crew */
    int sms;            /* that a GPU's steps may use; 0: the device decides */
    size_t bench_bytes; /* a worker's workbench: a row as it travels, and its scales */
    void *state;        /* the device's own */
} fe_engine;

typedef struct fe_device {
    const char *name;
    const fe_memory *memory; /* NULL: ranks' spaces are in host memory */
    int parts; /* the most in which its steps tell other hosts of what crosses (pass.h); 0: it runs on one host only */
    bool records; /* it records and counts its passes itself; else fe_submit does (record.h) */
    ferry_status (*open)(fe_engine *engine);
    void (*stop)(fe_engine *engine); /* ends all streams; then routes and events may go, and then the device */
    void (*close)(fe_engine *engine);
    /* Waits until all streams are empty. */
    void (*drain)(fe_engine *engine);
    /* An era begins (docs/protocol.md, "Agreement"). All streams of all its ranks are empty: cells and the body's first bytes are zeroed, steps
     * are counted from 0 again, errors are forgotten, and the heap's mask and the map hold as they are now. */
    ferry_status (*renew)(fe_engine *engine, size_t body_bytes);
    /* stream NULL: run now, in this thread, and return its status. Otherwise the pass is copied and runs in the stream's order; an
     * error becomes the pass's outcome, or the stream's and the group's. */
    ferry_status (*submit)(fe_engine *engine, ferry_stream *stream, const fe_pass *pass);
    /* Bytes that a device wants beside a route's arrays; NULL: none. */
    size_t (*extra)(const fe_engine *engine, const fe_shape *shape);
    /* Memory for a route; NULL: none left. */
    void *(*alloc)(fe_engine *engine, size_t bytes);
    void (*release)(fe_engine *engine, void *memory, size_t bytes);
    /* Copies device memory to the host, once all that is queued on the stream (NULL: all passes so far) has been done. */
    ferry_status (*fetch)(fe_engine *engine, ferry_stream *stream, void *host, const void *from, size_t bytes);
    /* Errors that passes have left behind since, into the engine's fault. NULL: passes tell by themselves. */
    void (*look)(fe_engine *engine);
    /* What kernels of the caller's need; NULL: the device runs none. */
    ferry_status (*handle)(fe_engine *engine, ferry_device_group *handle);
    /* A function of the user's at the end of a stream. */
    ferry_status (*call)(ferry_stream *stream, void (*function)(void *), void *argument);
    ferry_status (*stream_create)(fe_engine *engine, ferry_stream **stream);
    /* A stream of the platform's, which stays the caller's; NULL: the platform has none. */
    ferry_status (*stream_wrap)(fe_engine *engine, void *native, ferry_stream **stream);
    void (*stream_destroy)(ferry_stream *stream);
    ferry_status (*stream_sync)(ferry_stream *stream);
    void (*stream_drain)(ferry_stream *stream); /* waits for all that is queued, and leaves errors where they are */
    int (*stream_idle)(ferry_stream *stream);
    /* What is put on the stream goes into a graph, and does not run now. NULL: never. */
    int (*stream_captured)(ferry_stream *stream);
    ferry_status (*event_create)(fe_engine *engine, ferry_event **event);
    void (*event_destroy)(ferry_event *event);
    ferry_status (*event_record)(ferry_event *event, ferry_stream *stream);
    ferry_status (*event_await)(ferry_stream *stream, ferry_event *event);
    ferry_status (*event_sync)(ferry_event *event);
    int (*event_done)(ferry_event *event);
} fe_device;

/* Public handles begin with their engine: that is how a call without a group finds its device. */
struct ferry_stream {
    fe_engine *engine;
};
struct ferry_event {
    fe_engine *engine;
};

/* Is this a put, get, signal or atomic on a rank of another host? */
static inline bool fe_pass_crosses(const fe_heap *heap, const fe_pass *pass) {
    return (pass->move == FE_MOVE_TRANSFER && pass->transfer.far_rank >= 0) ||
           (pass->move == FE_MOVE_ATOMIC && !fe_heap_near(heap, pass->atomic.owner));
}
/* Carries it out: over the network, the same for every device. */
ferry_status fe_device_cross(fe_far *far, const fe_pass *pass);

extern const fe_device fe_device_cpu;

#endif
