/* A pass becomes a kernel. */
#include "cuda/device.h"

#include <stdio.h>

typedef cudaError_t (*launch_fn)(fe_cuda_args *args, cudaStream_t stream);

static const launch_fn launches[] = {
    [FE_MOVE_NOTHING] = fe_cuda_launch_nothing,   [FE_MOVE_COUNT] = fe_cuda_launch_count,
    [FE_MOVE_SPREAD] = fe_cuda_launch_spread,     [FE_MOVE_PLACE] = fe_cuda_launch_place,
    [FE_MOVE_SCATTER] = fe_cuda_launch_scatter,   [FE_MOVE_DELIVER] = fe_cuda_launch_deliver,
    [FE_MOVE_GATHER] = fe_cuda_launch_gather,     [FE_MOVE_REDUCE] = fe_cuda_launch_reduce,
    [FE_MOVE_PUBLISH] = fe_cuda_launch_publish,   [FE_MOVE_COLLECT] = fe_cuda_launch_collect,
    [FE_MOVE_TRANSFER] = fe_cuda_launch_transfer, [FE_MOVE_UNTIL] = fe_cuda_launch_until,
    [FE_MOVE_ATOMIC] = fe_cuda_launch_atomic,     [FE_MOVE_FANOUT] = fe_cuda_launch_fanout,
    [FE_MOVE_SUMS] = fe_cuda_launch_sums,
};

static size_t line(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/* From `at` on; the end. */
static char *lay_extra(const fe_engine *engine, const fe_shape *s, char *at, fe_cuda_extra *x) {
    size_t choices = (size_t)s->tokens * (size_t)s->topk, blocks = (size_t)fe_cuda_of(engine)->blocks;
    size_t bins = (size_t)s->ranks + (size_t)engine->map->homes;
    x->go = (fe_cuda_place *)(void *)at;
    at += line(choices * sizeof *x->go);
    x->at = (fe_cuda_place *)(void *)at;
    at += line(choices * sizeof *x->at);
    x->block_total = (int32_t *)(void *)at;
    at += line(blocks * bins * sizeof *x->block_total);
    x->of_rank = (fe_totals *)(void *)at;
    at += line(blocks * (size_t)s->ranks * sizeof *x->of_rank);
    x->wrong = (uint64_t *)(void *)at;
    return at + 64;
}

size_t fe_cuda_extra_bytes(const fe_engine *engine, const fe_shape *shape) {
    static char nowhere[1];
    fe_cuda_extra extra;
    return (size_t)(lay_extra(engine, shape, nowhere, &extra) - nowhere);
}

static int ticket_of(fe_cuda *cuda, const fe_pass *p) {
    if (fe_has_notes(p)) return fe_pass_tide(p) * 2 + p->half;
    return FE_CUDA_TIDES * 2 + (int)(atomic_fetch_add(&cuda->ticket, 1) % FE_CUDA_TICKETS);
}

static fe_cuda_args args_of(const fe_engine *engine, const fe_pass *pass, bool wait) {
    fe_cuda *cuda = fe_cuda_of(engine);
    fe_cuda_args args = {.pass = *pass,
                         .world = cuda->world,
                         .blocks = cuda->blocks,
                         .early = cuda->early,
                         .route_warps = cuda->route_warps,
                         .route_shared = cuda->route_shared,
                         .stage = cuda->stage,
                         .heap = &engine->heap};
    args.ticket = ticket_of(cuda, pass);
    args.tide = fe_pass_tide(pass);
    args.begins = fe_begins(pass);
    args.number = atomic_fetch_add(&cuda->launches, 1) + 1;
    args.awaited = wait;
    if (!pass->route) return args;
    args.route = *pass->route;
    if (args.route.far.boxes) args.world.boxes = *args.route.far.boxes;
    lay_extra(engine, &pass->route->shape, pass->route->extra, &args.extra);
    return args;
}

/* Waits for the stream: what became of the pass. The first failure is the call's own; later ones hear that the group has failed. What is done is
 * done: an abort, or a call to an agreement, that came after it is for the next call. */
static ferry_status finish(fe_engine *engine, cudaStream_t native, const fe_pass *pass, uint64_t number) {
    FE_CUDA_TRY(cudaStreamSynchronize(native), engine->heap.rank, pass->step);
    FE_TRY(fe_cuda_news(engine));
    if (atomic_load(&engine->fault.broken))
        FE_TRY(fe_cuda_core->fault_check(&engine->fault, &engine->heap, pass->step));
    FE_TRY(fe_cuda_core->still_counts(&engine->heap));
    return fe_cuda_take_soft(engine, pass, number);
}

static ferry_status launch(fe_engine *engine, cudaStream_t native, bool wait, const fe_pass *pass) {
    fe_cuda *cuda = fe_cuda_of(engine);
    fe_cuda_args args = args_of(engine, pass, wait);
    ferry_status status = fe_cuda_ok(launches[pass->move](&args, native), engine->heap.rank, pass->step);
    if (status != FERRY_OK && !fe_cuda_captured(native)) /* the others wait for it */
        fe_cuda_core->fault_note(&engine->fault, status, true);
    if (status != FERRY_OK || !wait) return status;
    FE_TRY(finish(engine, native, pass, args.number));
    if (pass->move == FE_MOVE_ATOMIC) *pass->atomic.old = cuda->world.report->old;
    return FERRY_OK;
}

/* One-sided calls to another host: the host carries them out, when the stream has come there, and returns when they are done. */
static ferry_status cross(fe_engine *engine, ferry_stream *stream, cudaStream_t native, const fe_pass *pass) {
    if (fe_cuda_captured(native))
        return fe_fail(FERRY_UNSUPPORTED, "rank %d: %s to a rank of another host cannot be captured into a graph",
                       engine->heap.rank, pass->step);
    if (stream) FE_CUDA_TRY(cudaStreamSynchronize(native), engine->heap.rank, pass->step);
    ferry_status status = fe_cuda_core->cross(engine->far, pass);
    if (fe_fault_fatal(status) && !pass->lenient) fe_cuda_core->fault_note(&engine->fault, status, true);
    return status;
}

/* The stream for waits is made by the first one: hardware queues are few. */
static ferry_status stream_of(fe_engine *engine, ferry_stream *stream, const fe_pass *pass, cudaStream_t *native) {
    fe_cuda *cuda = fe_cuda_of(engine);
    *native = stream ? ((fe_cuda_stream *)stream)->native : cuda->stream;
    if (stream || pass->move != FE_MOVE_UNTIL) return FERRY_OK;
    pthread_mutex_lock(&cuda->lock);
    cudaError_t error = cuda->waits ? cudaSuccess : cudaStreamCreateWithFlags(&cuda->waits, cudaStreamNonBlocking);
    *native = cuda->waits;
    pthread_mutex_unlock(&cuda->lock);
    return fe_cuda_ok(error, engine->heap.rank, "making a stream");
}

ferry_status fe_cuda_submit(fe_engine *engine, ferry_stream *stream, const fe_pass *pass) {
    fe_cuda *cuda = fe_cuda_of(engine);
    cudaStream_t native = NULL;
    FE_TRY(fe_cuda_enter(engine));
    fe_cuda_look(engine);
    FE_TRY(fe_cuda_core->fault_check(&engine->fault, &engine->heap, pass->step));
    FE_TRY(stream_of(engine, stream, pass, &native));
    if (stream) atomic_store(&((fe_cuda_stream *)stream)->used, true);
    if (fe_pass_crosses(&engine->heap, pass)) return cross(engine, stream, native, pass);
    if (engine->far) fe_cuda_core->stir(engine->far);
    if (pass->move == FE_MOVE_ATOMIC) pthread_mutex_lock(&cuda->word);
    ferry_status status = launch(engine, native, !stream || pass->outcome, pass);
    if (pass->move == FE_MOVE_ATOMIC) pthread_mutex_unlock(&cuda->word);
    if (!stream || !pass->outcome) return status;
    pass->outcome->status = status;
    snprintf(pass->outcome->sentence, sizeof pass->outcome->sentence, "%s",
             status == FERRY_OK ? "" : fe_cuda_core->last_error());
    return FERRY_OK;
}
