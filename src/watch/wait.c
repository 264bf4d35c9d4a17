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

/* Who is at an agreement is no longer called to it. */
static bool is_over(const fe_control *mine, bool patient) {
    uint32_t why = (uint32_t)atomic_load(&mine->aborted) & 0xff;
    return patient ? why == FE_GROUP_ABORTED || why == FE_GAVE_UP : why != FE_GOES_ON;
}

/* Sleepers and ringers agree by sequentially consistent order (Dekker): the sleeper announces itself, then looks; the ringer stores, then
 * looks for sleepers. One of them sees the other. */
static void sleep_on_bell(fe_control *mine, fe_ready_fn ready, const void *what, bool patient, int64_t ns) {
    uint32_t seen = atomic_load(&mine->bell);
    atomic_fetch_add(&mine->sleepers, 1);
    if (!ready(what) && !is_over(mine, patient)) fe_futex_wait(&mine->bell, seen, ns < SLEEP_NS ? ns : SLEEP_NS);
    atomic_fetch_sub(&mine->sleepers, 1);
}

static fe_waited wait_slowly(const fe_watch *watch, fe_ready_fn ready, const void *what, bool patient,
                             int64_t deadline) {
    fe_control *mine = fe_heap_control(watch->heap, watch->heap->rank);
    int64_t now = fe_now_ns(), sleep_from = now + YIELD_NS;
    for (;; now = fe_now_ns()) {
        if (ready(what)) return FE_ARRIVED;
        if (is_over(mine, patient)) return FE_ABORTED;
        if (now >= deadline) return FE_LATE;
        if (now < sleep_from)
            sched_yield();
        else
            sleep_on_bell(mine, ready, what, patient, deadline - now);
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
    fe_waited waited = wait_slowly(watch, ready, what, false, deadline);
    atomic_fetch_sub(&mine->waiting, 1);
    return waited;
}

fe_waited fe_watch_wait_on(const fe_watch *watch, fe_ready_fn ready, const void *what, int64_t deadline) {
    return wait_slowly(watch, ready, what, true, deadline);
}

void fe_watch_ring(const fe_heap *heap, int rank) {
    fe_control *control = fe_heap_control(heap, rank);
    if (atomic_load(&control->sleepers) == 0) return;
    atomic_fetch_add(&control->bell, 1);
    fe_futex_wake(&control->bell);
}

static void wake(fe_control *control) {
    atomic_fetch_add(&control->bell, 1);
    fe_futex_wake(&control->bell);
}

/* An abort is for good, and comes over anything else. */
static void abort_rank(const fe_heap *heap, int rank, fe_why how) {
    fe_control *control = fe_heap_control(heap, rank);
    uint64_t now = atomic_load(&control->aborted);
    do {
        if (how == FE_GAVE_UP && (uint32_t)now != FE_GOES_ON) break;
    } while (!atomic_compare_exchange_weak(&control->aborted, &now, now >> 32 << 32 | how));
    wake(control);
}

/* Without whom the group goes on, who may not know it yet, has only itself to stop; and so has who has left. */
void fe_watch_abort(const fe_heap *heap) {
    bool alone =
        fe_heap_why(heap, heap->rank) == FE_MASKED || atomic_load(&fe_heap_control(heap, heap->rank)->council.left);
    for (int r = 0; r < heap->ranks; r++)
        if (r == heap->rank || (!alone && fe_heap_reaches(heap, r))) abort_rank(heap, r, FE_GROUP_ABORTED);
}

void fe_watch_give_up(const fe_heap *heap) {
    abort_rank(heap, heap->rank, FE_GAVE_UP);
}

void fe_watch_recall(const fe_heap *heap, int rank) {
    fe_control *control = fe_heap_control(heap, rank);
    uint64_t going_on = heap->era << 32;
    if (atomic_compare_exchange_strong(&control->aborted, &going_on,
                                       going_on | (uint32_t)heap->rank << 8 | FE_RECALLED))
        wake(control);
}

void fe_watch_mask(const fe_heap *heap, int rank) {
    if (!fe_heap_near(heap, rank)) return;
    fe_control *control = fe_heap_control(heap, rank);
    uint64_t now = atomic_load(&control->aborted);
    do {
        if (now >> 32 >= heap->era || (now & 0xff) == FE_GROUP_ABORTED) return;
    } while (!atomic_compare_exchange_weak(&control->aborted, &now, now >> 32 << 32 | FE_MASKED));
    wake(control);
}

void fe_watch_exclude(const fe_heap *heap) {
    fe_control *mine = fe_heap_control(heap, heap->rank);
    uint64_t now = atomic_load(&mine->aborted);
    do {
        if ((now & 0xff) == FE_GROUP_ABORTED) return;
    } while (!atomic_compare_exchange_weak(&mine->aborted, &now, now >> 32 << 32 | FE_MASKED));
}

bool fe_watch_resume(const fe_heap *heap) {
    fe_control *mine = fe_heap_control(heap, heap->rank);
    uint64_t now = atomic_load(&mine->aborted);
    do {
        if ((now & 0xff) == FE_GROUP_ABORTED) return false;
    } while (!atomic_compare_exchange_weak(&mine->aborted, &now, heap->era << 32));
    return true;
}

void fe_watch_leave(const fe_heap *heap, bool hurt) {
    if (hurt) atomic_store(&fe_heap_control(heap, heap->rank)->failed, 1);
    atomic_store(&fe_heap_control(heap, heap->rank)->council.left, 1);
}

ferry_status fe_watch_ended(const fe_heap *heap, const char *during) {
    uint64_t now = atomic_load(&fe_heap_control(heap, heap->rank)->aborted);
    switch ((fe_why)(now & 0xff)) {
    case FE_RECALLED:
        return fe_fail(FERRY_ABORTED, "rank %d: rank %u asks for an agreement (ferry_group_agree)%s", heap->rank,
                       (uint32_t)now >> 8, during);
    case FE_MASKED: return fe_fail(FERRY_ABORTED, "rank %d: the other ranks go on without it%s", heap->rank, during);
    default: return fe_fail(FERRY_ABORTED, "rank %d: the group was aborted%s", heap->rank, during);
    }
}

ferry_status fe_watch_aborted(const fe_heap *heap) {
    return fe_heap_why(heap, heap->rank) == FE_GOES_ON ? FERRY_OK : fe_watch_ended(heap, "");
}

ferry_status fe_watch_still_counts(const fe_heap *heap) {
    return fe_heap_why(heap, heap->rank) == FE_MASKED ? fe_watch_ended(heap, "") : FERRY_OK;
}
