/* Workers of one stream (or of the calling thread): worker 0 is whoever calls fe_pool_run, the others are helper threads. */
#ifndef FERRY_CPU_POOL_H
#define FERRY_CPU_POOL_H

#include "base/os.h"
#include "base/status.h"
#include <pthread.h>
#include <stdbool.h>

typedef void (*fe_work_fn)(void *context, int worker, int workers);

typedef struct fe_pool {
    int workers;
    int spin;
    char *bench; /* a workbench for each worker, and one behind them for whoever calls fe_pool_run */
    size_t bench_bytes;
    fe_work_fn work;
    void *context;
    _Alignas(64) _Atomic uint32_t round; /* futex word of the helpers: a new one starts them */
    _Alignas(64) _Atomic uint32_t busy;  /* helpers that have not finished this round */
    _Atomic bool stop;
    struct fe_helper *helper;
} fe_pool;

ferry_status fe_pool_open(fe_pool *pool, int workers, int spin, size_t bench_bytes);
void fe_pool_close(fe_pool *pool);

/* Calls work(context, i, workers) for every i at once, and returns when all have. What the workers stored is ordered before the
 * return. Work of one part is done by the caller alone, as work(context, 0, 1): waking a helper costs more. */
void fe_pool_run(fe_pool *pool, fe_work_fn work, void *context, int64_t parts);

static inline void *fe_pool_bench(const fe_pool *pool, int worker) {
    return pool->bench + (size_t)worker * pool->bench_bytes;
}

/* The bench of the caller's own. */
static inline void *fe_pool_own_bench(const fe_pool *pool) {
    return fe_pool_bench(pool, pool->workers);
}

/* Tokens that a worker takes at a time: enough shares for workers of unequal speed to end together, at most `most`. */
static inline int64_t fe_chunk_of(const fe_pool *pool, int64_t tokens, int64_t most) {
    int64_t chunk = tokens / (4 * (int64_t)pool->workers);
    return chunk < 1 ? 1 : chunk > most ? most : chunk;
}

/* Waits until *word != seen: pauses, yields, then sleeps. For threads of one process only. */
void fe_pool_await_change(_Atomic uint32_t *word, uint32_t seen, int spin);

#endif
