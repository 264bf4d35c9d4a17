/* The dispatch of an exchange test: its tensors, and what must be in them afterwards. */
#include "ranks/exchange.h"

static ferry_dtype out_dtype(const xcase *c) {
    return c->cast ? FERRY_E4M3 : (ferry_dtype)c->dtype;
}

static void give_tables(exchange *x, flight *f) {
    bool by_rank = x->c->layout == FERRY_LAYOUT_RANK;
    int ranks = (int)x->c->ranks, blocks = by_rank ? 1 : x->me->local_experts;
    for (int i = 0; i < 2; i++) {
        void *memory = exchange_own(x, (size_t)(blocks * ranks) * 4);
        *(i ? &f->out.starts : &f->out.counts) =
            by_rank ? ferry_tensor_1d(memory, FERRY_INT32, ranks) : ferry_tensor_2d(memory, FERRY_INT32, blocks, ranks);
    }
}

static bool prepare_out(exchange *x, flight *f) {
    const xcase *c = x->c;
    size_t row_bytes = oracle_row_bytes(x->d->oracle[0]), scale_bytes = oracle_scale_bytes(x->d->oracle[0]);
    int64_t rows = x->info.rows, slack = c->out == 2 ? c->slack : 0;
    f->out = FERRY_DISPATCH_OUT_INIT;
    /* Views of the tables are memory of the route's: elsewhere than on the CPU nobody but the device can look at it. */
    if (c->out != 0 || ranks_device() != FERRY_CPU) give_tables(x, f);
    if (c->out == 0) return true;
    void *memory = NULL;
    if (c->out == 1 && !exchange_heap_rows(x, row_bytes, &memory)) return false;
    if (c->out == 2) memory = exchange_own(x, (size_t)rows * (row_bytes + (size_t)slack));
    f->out.rows = exchange_shaped(x, memory, out_dtype(c), c->columns, slack);
    if (scale_bytes) {
        int64_t n = (int64_t)scale_bytes / 4;
        ferry_dtype type = c->cast == FERRY_CAST_E4M3_UE8M0 ? FERRY_UE8M0X4 : FERRY_FP32;
        f->out.scales = exchange_shaped(x, exchange_own(x, (size_t)rows * scale_bytes), type, n, 0);
        if (c->strided) { /* column by column, inside each expert of SLOTS */
            ferry_tensor *t = &f->out.scales;
            int64_t of_each = t->shape[t->ndim - 2];
            t->strides[0] = of_each * n;
            t->strides[t->ndim - 2] = 1;
            t->strides[t->ndim - 1] = of_each;
        }
    }
    f->out.source = ferry_tensor_1d(exchange_own(x, (size_t)rows * 4), FERRY_INT32, rows);
    if (c->layout == FERRY_LAYOUT_RANK) {
        f->out.topk_idx = ferry_tensor_2d(exchange_own(x, (size_t)(rows * c->topk) * 4), FERRY_INT32, rows, c->topk);
        f->out.topk_weights = ferry_tensor_2d(exchange_own(x, (size_t)(rows * c->topk) * 4), FERRY_FP32, rows, c->topk);
    } else {
        f->out.topk_weights = ferry_tensor_1d(exchange_own(x, (size_t)rows * 4), FERRY_FP32, rows);
    }
    return true;
}

bool exchange_prepare_dispatch(exchange *x, int round) {
    const xcase *c = x->c;
    flight *f = &x->flight[round];
    f->in = FERRY_DISPATCH_IN_INIT;
    f->in.rows =
        exchange_give(x, x->d->rows[round][x->rank], (ferry_dtype)c->dtype, x->tokens, c->columns, false, c->slack);
    if (c->scales)
        f->in.scales = exchange_give(x, x->d->scales[round][x->rank], c->seed % 2 ? FERRY_FP32 : FERRY_INT32, x->tokens,
                                     c->scales, c->strided != 0, c->slack);
    f->options = FERRY_DISPATCH_OPTIONS_INIT;
    f->options.cast = (ferry_cast)c->cast;
    f->options.skip_topk = (int)c->skip_topk;
    f->options.zero_padding = (int)c->zero_pad;
    return prepare_out(x, f);
}

static bool check_blocks(exchange *x, const flight *f) {
    bool by_rank = x->c->layout == FERRY_LAYOUT_RANK;
    int ranks = (int)x->c->ranks, n = (by_rank ? 1 : x->me->local_experts) * ranks;
    bool whole = oracle_dropped(x->d->oracle[0]) == 0;
    if (n > 0 && (!f->seen.counts.data || !f->seen.starts.data)) return X_FAIL(x, "no counts or no starts");
    for (int i = 0; i < n; i++) {
        int32_t count, start;
        memcpy(&count, exchange_element(x, &f->seen.counts, !by_rank, by_rank ? i : i / ranks, i % ranks), 4);
        memcpy(&start, exchange_element(x, &f->seen.starts, !by_rank, by_rank ? i : i / ranks, i % ranks), 4);
        if (count != x->me->counts[i])
            return X_FAIL(x, "counts[%d][%d] is %d, not %d", i / ranks, i % ranks, count, x->me->counts[i]);
        if (start != x->me->starts[i] && (whole || count > 0))
            return X_FAIL(x, "starts[%d][%d] is %d, not %d", i / ranks, i % ranks, start, x->me->starts[i]);
    }
    return true;
}

static bool check_bytes(exchange *x, const char *name, const oracle_row *row, const void *wanted, const void *got,
                        size_t n) {
    const char *difference = oracle_difference(wanted, got, n);
    return !*difference || X_FAIL(x, "%s of slot %lld (rank %d's token %d, local expert %d): %s", name,
                                  (long long)row->slot, row->source, row->token, row->local, difference);
}

static bool check_topk(exchange *x, const flight *f, const oracle_row *row) {
    const xcase *c = x->c;
    int32_t source = (int32_t)(row->source * c->tokens + row->token), idx[FERRY_MAX_TOPK];
    float weights[FERRY_MAX_TOPK];
    bool by_rank = c->layout == FERRY_LAYOUT_RANK;
    if (!check_bytes(x, "source", row, &source, exchange_element(x, &f->seen.source, 0, row->slot, 0), 4)) return false;
    if (!by_rank)
        return !c->weights || check_bytes(x, "topk_weights", row, &row->weight,
                                          exchange_element(x, &f->seen.topk_weights, 0, row->slot, 0), 4);
    oracle_row_topk(x->d->oracle[0], x->rank, row, idx, c->weights ? weights : NULL);
    for (int k = 0; k < c->topk; k++) {
        if (!check_bytes(x, "topk_idx", row, &idx[k], exchange_element(x, &f->seen.topk_idx, 1, row->slot, k), 4))
            return false;
        if (c->weights && !check_bytes(x, "topk_weights", row, &weights[k],
                                       exchange_element(x, &f->seen.topk_weights, 1, row->slot, k), 4))
            return false;
    }
    return true;
}

/* Slots of EXPERT that hold no row. */
static bool check_padding(exchange *x, const flight *f) {
    const xcase *c = x->c;
    size_t row_bytes = oracle_row_bytes(x->d->oracle[0]);
    uint8_t *used = exchange_own(x, (size_t)x->me->rows), *zeros = exchange_own(x, row_bytes);
    memset(used, 0, (size_t)x->me->rows);
    memset(zeros, 0, row_bytes);
    for (int64_t i = 0; i < x->me->received; i++) used[x->me->row[i].slot] = 1;
    for (int64_t slot = 0; slot < x->me->rows; slot++) {
        int32_t source = -1;
        if (used[slot]) continue;
        if (!c->skip_topk) memcpy(&source, exchange_element(x, &f->seen.source, 0, slot, 0), 4);
        if (source != -1) return X_FAIL(x, "source of padding slot %lld is %d, not -1", (long long)slot, source);
        if (c->zero_pad && memcmp(zeros, exchange_element(x, &f->seen.rows, 1, slot, 0), row_bytes) != 0)
            return X_FAIL(x, "padding slot %lld is not zero", (long long)slot);
    }
    return true;
}

static bool see_out(exchange *x, flight *f) {
    const ferry_dispatch_out *o = &f->out;
    f->seen = *o;
    return exchange_see(x, &o->rows, true, &f->seen.rows) && exchange_see(x, &o->scales, true, &f->seen.scales) &&
           exchange_see(x, &o->topk_idx, true, &f->seen.topk_idx) &&
           exchange_see(x, &o->topk_weights, true, &f->seen.topk_weights) &&
           exchange_see(x, &o->source, true, &f->seen.source);
}

bool exchange_check_dispatch(exchange *x, int round) {
    flight *f = &x->flight[round];
    const oracle *o = x->d->oracle[round];
    const oracle_rank *me = oracle_rank_of(o, x->rank);
    size_t row_bytes = oracle_row_bytes(o), scale_bytes = oracle_scale_bytes(o);
    uint8_t *row = exchange_own(x, row_bytes), *scales = exchange_own(x, scale_bytes);
    ranks_step(x->env, "comparing dispatch %d", round);
    if (x->careless) return true;
    if (!see_out(x, f) || !check_blocks(x, f)) return false;
    if (me->received && (!f->seen.rows.data || f->seen.rows.dtype != out_dtype(x->c)))
        return X_FAIL(x, "out.rows has dtype %d, not %d", f->seen.rows.dtype, out_dtype(x->c));
    for (int64_t i = 0; i < me->received; i++) {
        const oracle_row *want = &me->row[i];
        oracle_row_data(o, want, row, scales);
        if (!check_bytes(x, "row", want, row, exchange_element(x, &f->seen.rows, 1, want->slot, 0), row_bytes))
            return false;
        for (size_t s = 0; s < scale_bytes / 4; s++)
            if (!check_bytes(x, "scale", want, scales + 4 * s,
                             exchange_element(x, &f->seen.scales, 1, want->slot, (int64_t)s), 4))
                return false;
        if (!x->c->skip_topk && !check_topk(x, f, want)) return false;
    }
    return x->c->layout != FERRY_LAYOUT_EXPERT || check_padding(x, f);
}
