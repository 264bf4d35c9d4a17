#include "cpu/pool.h"

#include <stdlib.h>

#define YIELD_NS 50000      /* idle helpers give the core away after this */
#define SLEEP_NS 1000000000 /* no wake-up is lost: this is only for the debugger that looks at an idle thread */

typedef struct fe_helper {
    fe_pool *pool;
    int worker;
    pthread_t thread;
} fe_helper;

void fe_pool_await_change(_Atomic uint32_t *word, uint32_t seen, int spin) {
    for (int i = 0; i < spin; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != seen) return;
        fe_pause();
    }
    int64_t sleep_from = fe_now_ns() + YIELD_NS;
    while (atomic_load_explicit(word, memory_order_acquire) == seen) {
        if (fe_now_ns() < sleep_from)
            sched_yield();
        else
            fe_futex_wait(word, seen, SLEEP_NS);
    }
}

static void *help(void *argument) {
    fe_helper *helper = argument;
    fe_pool *pool = helper->pool;
    for (uint32_t seen = 0;; seen++) {
        fe_pool_await_change(&pool->round, seen, pool->spin);
        if (atomic_load(&pool->stop)) return NULL;
        pool->work(pool->context, helper->worker, pool->workers);
        atomic_fetch_sub_explicit(&pool->busy, 1, memory_order_release);
    }
}

ferry_status fe_pool_open(fe_pool *pool, int workers, int spin, size_t bench_bytes) {
    *pool = (fe_pool){.spin = spin, .bench_bytes = (bench_bytes + 63) / 64 * 64};
    pool->bench = aligned_alloc(64, ((size_t)workers + 1) * pool->bench_bytes);
    pool->helper = calloc((size_t)workers, sizeof *pool->helper);
    pool->workers = 1;
    if (!pool->bench || !pool->helper) {
        fe_pool_close(pool);
        return fe_fail(FERRY_NOMEM, "no memory for %d CPU workers", workers);
    }
    for (int i = 1; i < workers; i++, pool->workers++) {
        pool->helper[i] = (fe_helper){.pool = pool, .worker = i};
        errno = fe_thread_start(&pool->helper[i].thread, help, &pool->helper[i]);
        if (!errno) continue;
        ferry_status status = fe_fail_errno("starting CPU worker %d of %d", i, workers);
        fe_pool_close(pool);
        return status;
    }
    return FERRY_OK;
}

static void start_round(fe_pool *pool) {
    atomic_fetch_add(&pool->round, 1); /* release for work and context */
    fe_futex_wake(&pool->round);
}

void fe_pool_close(fe_pool *pool) {
    atomic_store(&pool->stop, true);
    if (pool->helper && pool->workers > 1) start_round(pool);
    for (int i = 1; pool->helper && i < pool->workers; i++) pthread_join(pool->helper[i].thread, NULL);
    free(pool->helper);
    free(pool->bench);
    pool->helper = NULL;
    pool->bench = NULL;
}

void fe_pool_run(fe_pool *pool, fe_work_fn work, void *context, int64_t parts) {
    if (pool->workers == 1 || parts <= 1) {
        work(context, 0, 1);
        return;
    }
    pool->work = work;
    pool->context = context;
    atomic_store(&pool->busy, (uint32_t)pool->workers - 1);
    start_round(pool);
    work(context, 0, pool->workers);
    int spin = pool->spin;
    while (atomic_load_explicit(&pool->busy, memory_order_acquire) != 0) {
        if (spin > 0) {
            spin--;
            fe_pause();
        } else {
            sched_yield(); /* bounded by the helpers' share of the same work */
        }
    }
}
