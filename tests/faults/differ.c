/* Calls that differ from the other ranks' in one thing. */
#include "faults/act.h"

static bool is(const char *a, const char *b) {
    return strcmp(a, b) == 0;
}

/* The rows of `t` become narrower, and stay where they are. */
static void narrow(ferry_tensor *t, int64_t columns) {
    if (t->strides[0] == 0 && t->strides[1] == 0) {
        t->strides[0] = t->shape[1];
        t->strides[1] = 1;
    }
    t->shape[1] = columns;
}

static bool differ_group(ferry_group_config *c, const char *detail) {
    if (is(detail, "hidden"))
        c->hidden *= 2;
    else if (is(detail, "experts"))
        c->experts++;
    else if (is(detail, "max_tokens"))
        c->max_tokens++;
    else if (is(detail, "max_topk"))
        c->max_topk += c->max_topk < FERRY_MAX_TOPK ? 1 : -1;
    else if (is(detail, "heap_bytes"))
        c->heap_bytes += 4096;
    else
        return false;
    return true;
}

static bool differ_route(ferry_route_config *c, const char *detail) {
    if (is(detail, "topk")) {
        if (c->topk_idx.shape[1] < 2) return false;
        if (c->topk_weights.data) narrow(&c->topk_weights, c->topk_idx.shape[1] - 1);
        narrow(&c->topk_idx, c->topk_idx.shape[1] - 1);
    } else if (is(detail, "layout"))
        c->layout = c->layout == FERRY_LAYOUT_RANK ? FERRY_LAYOUT_EXPERT : FERRY_LAYOUT_RANK;
    else if (is(detail, "mode"))
        c->mode = c->mode == FERRY_LATENCY ? FERRY_THROUGHPUT : FERRY_LATENCY;
    else if (is(detail, "packed"))
        c->packed = !c->packed;
    else if (is(detail, "topk_weights"))
        c->topk_weights.data = NULL;
    else if (is(detail, "rank_capacity"))
        c->rank_capacity = 1;
    else if (is(detail, "expert_capacity"))
        c->expert_capacity = 1;
    else if (is(detail, "expert_alignment"))
        c->expert_alignment = 32;
    else if (is(detail, "overflow"))
        c->overflow = FERRY_OVERFLOW_ERROR;
    else
        return false;
    return true;
}

static bool differ_dispatch(exchange *x, flight *f, const char *detail) {
    if (is(detail, "columns"))
        narrow(&f->in.rows, f->in.rows.shape[1] / 2);
    else if (is(detail, "dtype"))
        f->in.rows.dtype = FERRY_FP16;
    else if (is(detail, "cast"))
        f->options.cast = f->options.cast == FERRY_CAST_E4M3 ? FERRY_CAST_E4M3_POW2 : FERRY_CAST_E4M3;
    else if (is(detail, "skip_topk"))
        f->options.skip_topk = !f->options.skip_topk;
    else if (is(detail, "scales"))
        f->in.scales = ferry_tensor_2d(exchange_own(x, (size_t)x->tokens * 4), FERRY_FP32, x->tokens, 1);
    else
        return false;
    return true;
}

static bool differ_combine(exchange *x, flight *f, const char *detail) {
    int64_t rows = x->info.rows;
    if (is(detail, "columns")) {
        f->back.rows.shape[f->back.rows.ndim - 1] /= 2;
        narrow(&f->sum.rows, f->sum.rows.shape[1] / 2);
    } else if (is(detail, "dtype")) {
        f->back.rows.dtype = FERRY_FP16;
    } else if (is(detail, "weights")) {
        int64_t topk = x->c->layout == FERRY_LAYOUT_RANK ? x->c->topk : 1;
        void *memory = exchange_own(x, (size_t)(rows * topk) * 4);
        f->back.weights = x->c->layout == FERRY_LAYOUT_RANK ? ferry_tensor_2d(memory, FERRY_FP32, rows, topk)
                                                            : ferry_tensor_1d(memory, FERRY_FP32, rows);
        f->sum.weights = exchange_give(x, NULL, FERRY_FP32, x->tokens, x->c->topk, false, 0);
    } else {
        return false;
    }
    return true;
}

bool act_differ(exchange *x, const char *detail, bool group, bool route, bool dispatch) {
    bool done = true;
    if (group) return differ_group(&x->config, detail);
    if (route) return differ_route(&x->route_config, detail);
    for (int i = 0; done && i < x->c->rounds; i++) { /* of all rounds: which of them the call is about, only it knows */
        flight *f = &x->flight[i];
        if (dispatch ? f->in.rows.data != NULL : f->back.rows.data != NULL)
            done = dispatch ? differ_dispatch(x, f, detail) : differ_combine(x, f, detail);
    }
    return done;
}
