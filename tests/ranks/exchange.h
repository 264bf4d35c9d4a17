/* Inside of the exchange tests: one rank's objects, and the parts of its run. */
#ifndef FERRY_TESTS_RANKS_EXCHANGE_H
#define FERRY_TESTS_RANKS_EXCHANGE_H

#include "ranks/case.h"

typedef struct flight { /* one dispatch and its combine */
    ferry_dispatch_in in;
    ferry_dispatch_out out, seen; /* seen: out as host code may look at it */
    ferry_dispatch_options options;
    ferry_combine_in back;
    ferry_combine_out sum;
    ferry_combine_options how;
} flight;

#define OWNED 512

typedef struct exchange exchange;

/* Looks at a call of the library's before it is made, and may change what it is made with. true: a call was made in its place, which gave
 * *status. */
typedef bool (*exchange_before_fn)(exchange *x, const char *call, ferry_status *status);

struct exchange {
    rank_env *env;
    const case_data *d;
    const xcase *c;
    const oracle_rank *me; /* the same in every round */
    int rank, tokens;
    ferry_group *group;
    ferry_stream *stream, *other;
    ferry_route *route;
    ferry_unique_id id;
    ferry_group_config config;
    ferry_route_config route_config;
    ferry_route_info info;
    void *owned[OWNED]; /* freed at the end */
    int owned_count;
    flight flight[CASE_ROUNDS];
    int steps; /* of one group beyond the first: what its heap is to hold */
    /* For tests in which calls fail: with `before` set, a call that does ends the step and fails no check. */
    exchange_before_fn before;
    void *hand;    /* before's own */
    bool careless; /* what comes of its calls is not compared: it asked for something else than the case says */
    const char *call;
    int64_t began_ms; /* of the last call */
    ferry_status status;
    char sentence[RANKS_WHY / 2];
};

#define X_FAIL(x, ...) ranks_fail((x)->env, __VA_ARGS__)

/* A call of the library's that is to succeed. */
#define X_OK(x, expression)                                                                     \
    do {                                                                                        \
        ferry_status x_status_ = FERRY_OK;                                                      \
        if (!exchange_looked((x), #expression, &x_status_)) x_status_ = (expression);           \
        if (x_status_ != FERRY_OK) return exchange_refused((x), x_status_, __FILE__, __LINE__); \
    } while (0)
bool exchange_looked(exchange *x, const char *call, ferry_status *status);
bool exchange_refused(exchange *x, ferry_status status, const char *file, int line);

/* Memory of exactly n bytes, so that a sanitizer sees a touch beyond it; filled with a pattern that is no data. For tensors and for
 * host code alike. Freed with the exchange. */
void *exchange_own(exchange *x, size_t n);
/* Element (slot, column) of a tensor whose slots may be spread over [L, R * M]. inner: dimensions of one slot. */
uint8_t *exchange_element(const exchange *x, const ferry_tensor *t, int inner, int64_t slot, int64_t column);
/* A tensor [n, columns] of the caller's, with `slack` bytes between rows or column-major, filled from contiguous bytes. */
ferry_tensor exchange_give(exchange *x, const void *from, ferry_dtype dtype, int64_t n, int64_t columns,
                           bool column_major, int64_t slack);
/* [rows, columns] or [L, R * M, columns] over given memory. */
ferry_tensor exchange_shaped(const exchange *x, void *data, ferry_dtype dtype, int64_t columns, int64_t slack);
/* A heap allocation for info.rows rows: as large on every rank as the rank with the most rows needs it. */
bool exchange_heap_rows(exchange *x, size_t row_bytes, void **memory);

/* The tensor as host code may read and write it: itself on the CPU; elsewhere, when it lies in the rank's space, with memory of its own
 * of the same shape, and with what it holds if `filled`. */
bool exchange_see(exchange *x, const ferry_tensor *t, bool filled, ferry_tensor *seen);
/* What was written to `seen` goes to where t is. */
bool exchange_show(exchange *x, const ferry_tensor *seen, const ferry_tensor *t);

/* Goes on without the ranks that the case loses. */
bool exchange_lose(exchange *x);

bool exchange_prepare_dispatch(exchange *x, int round);
bool exchange_check_dispatch(exchange *x, int round);
bool exchange_prepare_combine(exchange *x, int round);
bool exchange_check_combine(exchange *x, int round);
bool exchange_check_counters(exchange *x); /* after the group's first exchange_step */

/* A run of one rank: begin, open, steps (each a route, its dispatches and its combines; use and done in between), a barrier, end. */
exchange *exchange_begin(rank_env *env, const case_data *d, int rank);
ferry_group_config exchange_config(const exchange *x);
bool exchange_open(exchange *x, const ferry_unique_id *id);
bool exchange_step(exchange *x);
bool exchange_barrier(exchange *x);
/* The next step's data: the same shapes. */
void exchange_use(exchange *x, const case_data *d);
void exchange_done(exchange *x);  /* frees the step's route and memory, which no stream uses any more */
void exchange_close(exchange *x); /* leaves the group */
void exchange_end(exchange *x);

#endif
