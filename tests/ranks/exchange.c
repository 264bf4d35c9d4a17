/* One rank of an exchange test: runs the case through the library and compares everything with the oracle. */
#include "ranks/exchange.h"
#include <stdio.h>
#include <stdlib.h>

bool exchange_looked(exchange *x, const char *call, ferry_status *status) {
    x->call = call;
    x->began_ms = ranks_now_ms();
    return x->before && x->before(x, call, status);
}

bool exchange_refused(exchange *x, ferry_status status, const char *file, int line) {
    x->status = status;
    snprintf(x->sentence, sizeof x->sentence, "%s", ferry_last_error());
    if (x->before) return false;
    return X_FAIL(x, "%s:%d: %s gave %s: %s", file, line, x->call, ferry_status_name(status), x->sentence);
}

void *exchange_own(exchange *x, size_t n) {
    void *p = x->owned_count < OWNED ? fe_memory_new(n) : NULL;
    if (!p) abort();
    memset(p, 0xa5, n);
    return x->owned[x->owned_count++] = p;
}

static int64_t stride_of(const ferry_tensor *t, int dim) {
    bool contiguous = true;
    for (int i = 0; i < t->ndim; i++) contiguous = contiguous && t->strides[i] == 0;
    if (!contiguous) return t->strides[dim];
    int64_t stride = 1;
    for (int i = dim + 1; i < t->ndim; i++) stride *= t->shape[i];
    return stride;
}

uint8_t *exchange_element(const exchange *x, const ferry_tensor *t, int inner, int64_t slot, int64_t column) {
    int64_t at = inner ? column * stride_of(t, t->ndim - 1) : 0;
    int outer = t->ndim - inner;
    int64_t per_expert = x->c->ranks * x->c->tokens;
    if (outer == 2)
        at += slot / per_expert * stride_of(t, 0) + slot % per_expert * stride_of(t, 1);
    else
        at += slot * stride_of(t, 0);
    return (uint8_t *)t->data + at * (int64_t)ferry_dtype_bytes(t->dtype);
}

ferry_tensor exchange_give(exchange *x, const void *from, ferry_dtype dtype, int64_t n, int64_t columns,
                           bool column_major, int64_t slack) {
    int64_t size = (int64_t)ferry_dtype_bytes(dtype), row = columns + slack / size;
    ferry_tensor t = ferry_tensor_2d(NULL, dtype, n, columns);
    if (column_major) {
        t.strides[0] = 1;
        t.strides[1] = n + 1;
        row = columns;
    } else if (slack / size > 0) {
        t.strides[0] = row;
        t.strides[1] = 1;
    }
    t.data = exchange_own(x, (size_t)((column_major ? (n + 1) * columns : n * row) * size));
    for (int64_t i = 0; from && i < n; i++)
        for (int64_t j = 0; j < columns; j++)
            memcpy(exchange_element(x, &t, 1, i, j), (const uint8_t *)from + (i * columns + j) * size, (size_t)size);
    return t;
}

ferry_tensor exchange_shaped(const exchange *x, void *data, ferry_dtype dtype, int64_t columns, int64_t slack) {
    ferry_tensor t = ferry_tensor_2d(data, dtype, x->info.rows, columns);
    int64_t row = columns + slack / (int64_t)ferry_dtype_bytes(dtype);
    t.strides[0] = row;
    t.strides[1] = 1;
    if (x->c->layout == FERRY_LAYOUT_SLOTS) {
        int64_t per_expert = x->c->ranks * x->c->tokens;
        t.ndim = 3;
        t.shape[0] = x->me->local_experts;
        t.shape[1] = per_expert;
        t.shape[2] = columns;
        t.strides[0] = per_expert * row;
        t.strides[1] = row;
        t.strides[2] = 1;
    }
    return t;
}

bool exchange_heap_rows(exchange *x, size_t row_bytes, void **memory) {
    int64_t *all = exchange_own(x, CASE_RANKS * sizeof *all), most = 1;
    size_t bytes = (size_t)x->info.rows * row_bytes;
    all[x->rank] = x->info.rows;
    X_OK(x, ferry_allgather(x->group, all + x->rank, all, sizeof *all, NULL));
    for (int r = 0; r < x->c->ranks; r++) most = all[r] > most ? all[r] : most;
    X_OK(x, ferry_heap_alloc(x->group, (size_t)most * row_bytes, memory));
    X_OK(x, fe_memory_write(x->group, *memory, exchange_own(x, bytes), bytes));
    return true;
}

/* Bytes from the first element to the last. */
static size_t span_of(const ferry_tensor *t) {
    int64_t last = 0;
    for (int i = 0; i < t->ndim; i++) {
        if (t->shape[i] == 0) return 0;
        last += (t->shape[i] - 1) * stride_of(t, i);
    }
    return (size_t)(last + 1) * ferry_dtype_bytes(t->dtype);
}

bool exchange_see(exchange *x, const ferry_tensor *t, bool filled, ferry_tensor *seen) {
    *seen = *t;
    if (ranks_device() == FERRY_CPU || !ferry_heap_ptr(x->group, t->data, x->rank)) return true;
    seen->data = exchange_own(x, span_of(t));
    if (filled) X_OK(x, fe_memory_read(x->group, seen->data, t->data, span_of(t)));
    return true;
}

bool exchange_show(exchange *x, const ferry_tensor *seen, const ferry_tensor *t) {
    if (seen->data != t->data) X_OK(x, fe_memory_write(x->group, t->data, seen->data, span_of(t)));
    return true;
}

/* Threads that share a GPU share 32 hardware queues, and a kernel that waits holds up what is behind it in its queue: with the group's own,
 * three streams a rank are safe up to here. */
#define OTHER_RANKS 4

ferry_group_config exchange_config(const exchange *x) {
    const xcase *c = x->c;
    ferry_group_config cfg = FERRY_GROUP_CONFIG_INIT;
    cfg.device = ranks_device();
    cfg.experts = (int)c->experts;
    cfg.hidden = (int)c->columns;
    cfg.max_tokens = (int)c->tokens;
    cfg.max_topk = (int)c->topk;
    cfg.dtype = c->dtype == FERRY_FP32 || c->in_type == FERRY_FP32 ? FERRY_FP32 : FERRY_BF16;
    cfg.layouts = (int)c->layout;
    cfg.max_recv_rows = x->d->recv_rows;
    cfg.heap_bytes =
        x->d->recv_rows * (c->columns * 4 + 4 * FERRY_MAX_TOPK + 256) * CASE_ROUNDS * (x->steps + 1) + (1 << 20);
    cfg.timeout_ms = (int)ranks_env_number("FERRY_TEST_TIMEOUT_MS", 5000);
    cfg.threads = (int)c->threads;
    cfg.expert_first = x->d->expert_first;
    cfg.expert_rank = x->d->expert_rank;
    return cfg;
}

bool exchange_open(exchange *x, const ferry_unique_id *id) {
    const xcase *c = x->c;
    x->config = exchange_config(x);
    x->id = *id;
    ranks_step(x->env, "ferry_group_create");
    X_OK(x, ferry_group_create(&x->id, x->rank, (int)c->ranks, &x->config, &x->group));
    ranks_step(x->env, "its function");
    const int32_t *experts;
    int local = ferry_group_local_experts(x->group, x->rank, &experts);
    if (local != x->me->local_experts) return X_FAIL(x, "%d local experts, not %d", local, x->me->local_experts);
    for (int i = 0; i < local; i++)
        if (experts[i] != x->me->experts[i])
            return X_FAIL(x, "local expert %d is expert %d, not %d", i, experts[i], x->me->experts[i]);
    if (c->stream) X_OK(x, ferry_stream_create(x->group, &x->stream));
    if (c->stream && c->split && c->ranks <= OTHER_RANKS) X_OK(x, ferry_stream_create(x->group, &x->other));
    return true;
}

static bool same_counts(exchange *x, const char *name, const int32_t *got, const int32_t *wanted, int n) {
    for (int i = 0; got && i < n; i++)
        if (got[i] != wanted[i]) return X_FAIL(x, "info.%s[%d] is %d, not %d", name, i, got[i], wanted[i]);
    return got || n == 0 || X_FAIL(x, "info.%s is NULL", name);
}

static bool same_number(exchange *x, const char *name, int64_t got, int64_t wanted) {
    return got == wanted || X_FAIL(x, "info.%s is %lld, not %lld", name, (long long)got, (long long)wanted);
}

static bool check_info(exchange *x) {
    const oracle_rank *me = x->me;
    const ferry_route_info *i = &x->info;
    bool whole = oracle_dropped(x->d->oracle[0]) == 0;
    bool good = same_number(x, "tokens", i->tokens, x->tokens) && same_number(x, "topk", i->topk, x->c->topk) &&
                same_number(x, "local_experts", i->local_experts, me->local_experts) &&
                same_number(x, "ranks", i->ranks, x->c->ranks) && same_number(x, "layout", i->layout, x->c->layout) &&
                same_number(x, "mode", i->mode, x->c->mode);
    if (!good) return false;
    if (x->c->mode == FERRY_LATENCY) {
        if (i->rows < me->rows)
            return X_FAIL(x, "info.rows is %lld, but rows span %lld", (long long)i->rows, (long long)me->rows);
        bool unknown = !i->expert_rows && !i->expert_start && !i->source_rows && !i->source_start && !i->rank_rows;
        return unknown || X_FAIL(x, "info has counts in LATENCY mode");
    }
    good = same_number(x, "rows", i->rows, me->rows) && same_number(x, "received", i->received, me->received) &&
           same_number(x, "sent", i->sent, me->sent) && same_number(x, "dropped", i->dropped, me->dropped) &&
           same_counts(x, "source_rows", i->source_rows, me->source_rows, i->ranks) &&
           same_counts(x, "rank_rows", i->rank_rows, me->rank_rows, i->ranks);
    if (!good) return false;
    if (x->c->layout == FERRY_LAYOUT_RANK) {
        if (i->expert_start) return X_FAIL(x, "info.expert_start is set for RANK");
        if (whole && !same_counts(x, "source_start", i->source_start, me->starts, i->ranks)) return false;
        return !whole || same_counts(x, "expert_rows", i->expert_rows, me->expert_rows, i->local_experts);
    }
    if (i->source_start) return X_FAIL(x, "info.source_start is set for another layout than RANK");
    return same_counts(x, "expert_rows", i->expert_rows, me->expert_rows, i->local_experts) &&
           (!whole || same_counts(x, "expert_start", i->expert_start, me->expert_start, i->local_experts));
}

/* FERRY_OVERFLOW where the oracle drops and the case does not: every rank sees it, and a rank that was full is named. */
static bool check_overflow(exchange *x, ferry_status status) {
    if (status == FERRY_OK && x->stream) status = ferry_stream_sync(x->stream);
    if (status != FERRY_OVERFLOW)
        return X_FAIL(x, "the route gave %s, not FERRY_OVERFLOW: %s", ferry_status_name(status), ferry_last_error());
    for (int r = 0; r < x->c->ranks; r++) {
        char name[32];
        snprintf(name, sizeof name, "rank %d", r);
        if (oracle_rank_of(x->d->oracle[0], r)->refused > 0 && strstr(ferry_last_error(), name)) return true;
    }
    return X_FAIL(x, "FERRY_OVERFLOW names no rank that was full: %s", ferry_last_error());
}

static bool make_route(exchange *x, bool *overflow) {
    const xcase *c = x->c;
    ferry_route_config *cfg = &x->route_config;
    *cfg = FERRY_ROUTE_CONFIG_INIT;
    int32_t *narrow = exchange_own(x, (size_t)x->tokens * (size_t)c->topk * 4);
    for (int64_t i = 0; i < x->tokens * c->topk; i++) narrow[i] = (int32_t)x->d->idx[x->rank][i];
    const void *idx = c->idx64 ? (const void *)x->d->idx[x->rank] : narrow;
    cfg->topk_idx = exchange_give(x, idx, c->idx64 ? FERRY_INT64 : FERRY_INT32, x->tokens, c->topk, c->strided != 0, 0);
    if (x->tokens == 0) cfg->topk_idx.data = NULL;
    if (c->weights)
        cfg->topk_weights =
            exchange_give(x, x->d->weights[x->rank], FERRY_FP32, x->tokens, c->topk, c->strided != 0, c->slack);
    cfg->layout = (ferry_layout)c->layout;
    cfg->mode = (ferry_mode)c->mode;
    cfg->expert_alignment = (int)c->align;
    cfg->expert_capacity = c->expert_cap;
    cfg->rank_capacity = c->rank_cap;
    cfg->overflow = (ferry_overflow)c->drop;
    cfg->packed = (int)c->packed;
    cfg->renormalise = (int)c->renorm;
    cfg->order = (ferry_order)c->order;
    ranks_step(x->env, "ferry_route_create");
    *overflow = !c->drop && oracle_dropped(x->d->oracle[0]) > 0;
    if (*overflow) return check_overflow(x, ferry_route_create(x->group, cfg, &x->route, x->stream));
    X_OK(x, ferry_route_create(x->group, cfg, &x->route, x->stream));
    x->info = FERRY_ROUTE_INFO_INIT;
    X_OK(x, ferry_route_get_info(x->route, &x->info));
    return x->careless || check_info(x);
}

/* ------------------------------------------------------------------------------------------------------------------
 * The whole
 * ---------------------------------------------------------------------------------------------------------------- */

static bool sync_stream(exchange *x) {
    if (x->stream) X_OK(x, ferry_stream_sync(x->stream));
    if (x->other) X_OK(x, ferry_stream_sync(x->other));
    return true;
}

/* Without a stream a row is compared as soon as it is there: the next call may be the one that fails. */
static bool dispatch_pair(exchange *x, int first, int last) {
    for (int i = first; i < last; i++)
        if (!exchange_prepare_dispatch(x, i)) return false;
    ranks_step(x->env, "ferry_dispatch %d", first);
    for (int i = first; i < last; i++) {
        flight *f = &x->flight[i];
        if (x->c->split)
            X_OK(x, ferry_dispatch_send(x->route, &f->in, &f->out, &f->options, x->stream));
        else
            X_OK(x, ferry_dispatch(x->route, &f->in, &f->out, &f->options, x->stream));
    }
    for (int i = first; i < last; i++) {
        if (x->c->split)
            X_OK(x, ferry_dispatch_recv(x->route, &x->flight[i].out, i % 2 && x->other ? x->other : x->stream));
        if (!x->stream && !exchange_check_dispatch(x, i)) return false;
    }
    if (!sync_stream(x)) return false;
    for (int i = first; x->stream && i < last; i++)
        if (!exchange_check_dispatch(x, i)) return false;
    return true;
}

static bool combine_pair(exchange *x, int first, int last) {
    for (int i = first; i < last; i++) {
        flight *f = &x->flight[i];
        if (!exchange_prepare_combine(x, i)) return false;
        ranks_step(x->env, "ferry_combine %d", i);
        if (x->c->split)
            X_OK(x, ferry_combine_send(x->route, &f->back, &f->how, x->stream));
        else
            X_OK(x, ferry_combine(x->route, &f->back, &f->sum, &f->how, x->stream));
    }
    for (int i = first; i < last; i++) {
        if (x->c->split)
            X_OK(x, ferry_combine_recv(x->route, &x->flight[i].sum, i % 2 && x->other ? x->other : x->stream));
        if (!x->stream && !exchange_check_combine(x, i)) return false;
    }
    if (!sync_stream(x)) return false;
    for (int i = first; x->stream && i < last; i++)
        if (!exchange_check_combine(x, i)) return false;
    return true;
}

bool exchange_step(exchange *x) {
    bool overflow;
    if (!make_route(x, &overflow)) return false;
    int together = x->c->split ? 2 : 1, rounds = overflow ? 0 : (int)x->c->rounds;
    for (int first = 0; first < rounds; first += together) {
        int last = first + together < rounds ? first + together : rounds;
        if (!dispatch_pair(x, first, last) || !combine_pair(x, first, last)) return false;
    }
    return true;
}

bool exchange_barrier(exchange *x) {
    ranks_step(x->env, "the last barrier");
    X_OK(x, ferry_barrier(x->group, NULL));
    return true;
}

exchange *exchange_begin(rank_env *env, const case_data *d, int rank) {
    exchange *x = calloc(1, sizeof *x);
    if (!x) abort();
    x->env = env;
    x->rank = rank;
    exchange_use(x, d);
    return x;
}

void exchange_use(exchange *x, const case_data *d) {
    x->d = d;
    x->c = &d->c;
    x->tokens = d->tokens[x->rank];
    x->me = oracle_rank_of(d->oracle[0], x->rank);
}

void exchange_done(exchange *x) {
    ferry_route_destroy(x->route);
    x->route = NULL;
    for (int i = 0; i < x->owned_count; i++) fe_memory_free(x->owned[i]);
    x->owned_count = 0;
}

void exchange_close(exchange *x) {
    ferry_stream_destroy(x->stream); /* first: what is still on them uses the route */
    ferry_stream_destroy(x->other);
    ferry_route_destroy(x->route);
    ferry_group_destroy(x->group);
    x->stream = x->other = NULL;
    x->route = NULL;
    x->group = NULL;
}

void exchange_end(exchange *x) {
    exchange_close(x);
    exchange_done(x);
    free(x);
}

/* The others mask at once a rank that lives, and find out by themselves about one that is gone. */
bool exchange_lose(exchange *x) {
    uint8_t masked[CASE_RANKS];
    for (int r = 0; x->c->alive && r < x->c->ranks; r++)
        if (x->d->masked[r]) X_OK(x, ferry_group_mask_set(x->group, r, 1));
    ranks_step(x->env, "ferry_group_agree");
    X_OK(x, ferry_group_agree(x->group, NULL, masked));
    for (int r = 0; r < x->c->ranks; r++)
        if (masked[r] != x->d->masked[r]) return X_FAIL(x, "masked[%d] is %d, not %d", r, masked[r], x->d->masked[r]);
    return true;
}

/* A rank that is lost does nothing, and if it lives is there until the others are through. One that goes frees its GPU memory, for which CUDA
 * waits for all kernels of the process: before the others' first (docs/gpu.md). */
static bool live_on(exchange *x) {
    bool lost = x->d->masked[x->rank], lives = x->c->alive, good = lost || !x->c->lost || exchange_lose(x);
    if (lost && !lives) exchange_close(x);
    if (x->c->lost && !lives && ranks_device() == FERRY_CUDA) good = ranks_meet(x->env) && good;
    good = good && (lost || (exchange_step(x) && exchange_check_counters(x) && exchange_barrier(x)));
    if (!good && x->group) ferry_group_abort(x->group);
    return (!lives || ranks_meet(x->env)) && good;
}

bool exchange_rank(rank_env *env) {
    exchange *x = exchange_begin(env, env->arg, env->rank);
    bool good = exchange_open(x, &env->id) && live_on(x);
    if (!good && x->group) ferry_group_abort(x->group);
    ranks_step(env, "the end");
    exchange_end(x);
    return good;
}
