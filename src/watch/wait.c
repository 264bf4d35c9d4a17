#include "base/env.h"
#include "watch/watch.h"

#ifndef YIELD_NS          /* else tests/unit/stress_wait.c, whose ranks sleep at once and until they are woken */
#define YIELD_NS 300000   /* yield at least this long before sleeping: waking a sleeper costs 50 us, a yield below 1 */
#define SLEEP_NS 10000000 /* longest sleep at a time: bounds what a lost wake-up could cost */
#endif

ferry_status fe_watch_init(fe_watch *watch, const fe_heap *heap, int timeout_ms) {
    /* Spinning pays only while the rank waited for has a core of its own. With more ranks than cores it costs a scheduler
     * slice (8 to 16 ms, measured) a flag, yielding 1 to 3 us. */
    int64_t spin;
    int threads =
        heap->near_ranks * (heap->hosts.count > 1 ? 2 : 1); /* with several hosts each has a proxy that polls */
    FE_TRY(fe_env_number(FE_ENV_FERRY_SPIN, threads > fe_cores() ? 0 : 100, 0, 1000000, &spin));
    *watch = (fe_watch){.heap = heap,
                        .timeout_ns = (int64_t)timeout_ms * 1000000,
                        .spin = (int)spin,
                        .dump_dir = fe_env_text(FE_ENV_FERRY_DUMP_DIR)};
    return fe_recorder_open(heap, &watch->recorder);
}

/* Sleepers and ringers agree by sequentially consistent order (Dekker): the sleeper announces itself, then looks; the ringer stores, then
 * looks for sleepers. One of them sees the other. */
static void sleep_on_bell(fe_control *mine, fe_ready_fn ready, const void *what, int64_t ns) {
    uint32_t seen = atomic_load(&mine->bell);
    atomic_fetch_add(&mine->sleepers, 1);
    if (!ready(what) && !atomic_load(&mine->aborted)) fe_futex_wait(&mine->bell, seen, ns < SLEEP_NS ? ns : SLEEP_NS);
    atomic_fetch_sub(&mine->sleepers, 1);
}

static fe_waited wait_slowly(const fe_watch *watch, fe_ready_fn ready, const void *what, int64_t deadline) {
    fe_control *mine = fe_heap_control(watch->heap, watch->heap->rank);
    int64_t now = fe_now_ns(), sleep_from = now + YIELD_NS;
    for (;; now = fe_now_ns()) {
        if (ready(what)) return FE_ARRIVED;
        if (atomic_load(&mine->aborted)) return FE_ABORTED;
        if (now >= deadline) return FE_LATE;
        if (now < sleep_from)
            sched_yield();
        else
            sleep_on_bell(mine, ready, what, deadline - now);
    }
}

bool fe_watch_spin(const fe_watch *watch, fe_ready_fn ready, const void *what) {
    for (int i = 0; i <= watch->spin; i++) {
        if (ready(what)) return true;
        if (i < watch->spin) fe_pause();
    }
    return false;
}

fe_waited fe_watch_wait(const fe_watch *watch, fe_ready_fn ready, const void *what, int64_t deadline) {
    return fe_watch_spin(watch, ready, what) ? FE_ARRIVED : fe_watch_rest(watch, ready, what, deadline);
}

fe_waited fe_watch_rest(const fe_watch *watch, fe_ready_fn ready, const void *what, int64_t deadline) {
    fe_control *mine = fe_heap_control(watch->heap, watch->heap->rank);
    atomic_fetch_add(&mine->waiting, 1);
    fe_waited waited = wait_slowly(watch, ready, what, deadline);
    atomic_fetch_sub(&mine->waiting, 1);
    return waited;
}

void fe_watch_ring(const fe_heap *heap, int rank) {
    fe_control *control = fe_heap_control(heap, rank);
    if (atomic_load(&control->sleepers) == 0) return;
    atomic_fetch_add(&control->bell, 1);
    fe_futex_wake(&control->bell);
}

static void abort_rank(const fe_heap *heap, int rank, uint32_t how) {
    fe_control *control = fe_heap_control(heap, rank);
    uint32_t running = 0;
    if (how == FE_GAVE_UP)
        atomic_compare_exchange_strong(&control->aborted, &running, how);
    else
        atomic_store(&control->aborted, how);
    atomic_fetch_add(&control->bell, 1);
    fe_futex_wake(&control->bell);
}

void fe_watch_abort(const fe_heap *heap) {
    for (int r = 0; r < heap->ranks; r++)
        if (fe_heap_near(heap, r)) abort_rank(heap, r, FE_GROUP_ABORTED);
}

void fe_watch_give_up(const fe_heap *heap) {
    abort_rank(heap, heap->rank, FE_GAVE_UP);
}

ferry_status fe_watch_aborted(const fe_heap *heap) {
    if (!atomic_load(&fe_heap_control(heap, heap->rank)->aborted)) return FERRY_OK;
    return fe_fail(FERRY_ABORTED, "rank %d: the group was aborted", heap->rank);
}
