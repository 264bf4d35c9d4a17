/* The combine of an exchange test: the experts' outputs, and what must come of them. */
#include "ranks/exchange.h"

static bool back_rows(exchange *x, flight *f) {
    const xcase *c = x->c;
    size_t row_bytes = case_back_bytes(c);
    ferry_dtype type = (ferry_dtype)c->in_type;
    f->back = FERRY_COMBINE_IN_INIT;
    if (c->back == 0) {
        f->back.rows = f->out.rows;
    } else if (c->back == 1) {
        X_OK(x, ferry_combine_buffer(x->route, type, c->columns, &f->back.rows, x->stream));
        if (x->stream) X_OK(x, ferry_stream_sync(x->stream)); /* the host is what writes there */
    } else {
        void *memory = NULL;
        int64_t slack = c->back == 3 ? c->slack : 0;
        if (c->back == 2 && !exchange_heap_rows(x, row_bytes, &memory)) return false;
        if (c->back == 3) memory = exchange_own(x, (size_t)x->info.rows * (row_bytes + (size_t)slack));
        f->back.rows = exchange_shaped(x, memory, type, c->columns, slack);
    }
    return true;
}

bool exchange_prepare_combine(exchange *x, int round) {
    const xcase *c = x->c;
    flight *f = &x->flight[round];
    ferry_dtype type = (ferry_dtype)c->in_type;
    case_round this_round = {x->d, round};
    ferry_tensor rows;
    ranks_step(x->env, "preparing combine %d", round);
    if (!back_rows(x, f) || !exchange_see(x, &f->back.rows, false, &rows)) return false;
    bool by_rank = c->layout == FERRY_LAYOUT_RANK;
    int64_t weights = by_rank ? c->topk : 1;
    float *weight = c->grad ? exchange_own(x, (size_t)(x->info.rows * weights) * 4) : NULL;
    if (c->grad)
        f->back.weights = by_rank ? ferry_tensor_2d(weight, FERRY_FP32, x->info.rows, weights)
                                  : ferry_tensor_1d(weight, FERRY_FP32, x->info.rows);
    for (int64_t i = 0; i < x->me->received; i++) {
        int64_t slot = x->me->row[i].slot;
        case_expert_row(&this_round, x->rank, slot, exchange_element(x, &rows, 1, slot, 0));
        for (int k = 0; weight && k < weights; k++)
            weight[slot * weights + k] = case_expert_weight(&this_round, x->rank, slot, k);
    }
    if (!exchange_show(x, &rows, &f->back.rows)) return false;
    f->how = FERRY_COMBINE_OPTIONS_INIT;
    f->how.weighted = c->weighted != 0;
    if (c->weighted == 2)
        f->how.weights =
            exchange_give(x, x->d->other_weights[x->rank], FERRY_FP32, x->tokens, c->topk, c->strided != 0, 0);
    for (int b = 0; b < c->bias; b++)
        f->how.bias[b] = exchange_give(x, x->d->bias[b][x->rank], type, x->tokens, c->columns, false, c->slack);
    f->sum = FERRY_COMBINE_OUT_INIT;
    f->sum.rows = exchange_give(x, NULL, (ferry_dtype)c->out_type, x->tokens, c->columns, false, c->slack);
    if (c->grad) f->sum.weights = exchange_give(x, NULL, FERRY_FP32, x->tokens, c->topk, false, 0);
    return true;
}

static float weight_of_slot(void *round, int rank, int64_t slot, int choice) {
    const case_round *r = round;
    return case_expert_weight(round, rank, slot, r->data->c.layout == FERRY_LAYOUT_RANK ? choice : 0);
}

bool exchange_check_combine(exchange *x, int round) {
    const xcase *c = x->c;
    const flight *f = &x->flight[round];
    case_round this_round = {x->d, round};
    oracle_combine m = {.columns = (int)c->columns,
                        .in_type = (ferry_dtype)c->in_type,
                        .out_type = (ferry_dtype)c->out_type,
                        .weighted = c->weighted != 0,
                        .weights = c->weighted == 2 ? x->d->other_weights[x->rank]
                                                    : oracle_weights(x->d->oracle[round], x->rank),
                        .bias = {x->d->bias[0][x->rank], x->d->bias[1][x->rank]},
                        .row = case_expert_row,
                        .weight = c->grad ? weight_of_slot : NULL,
                        .context = &this_round};
    size_t out_bytes = (size_t)c->columns * ferry_dtype_bytes((ferry_dtype)c->out_type);
    uint8_t *out = exchange_own(x, out_bytes), *scratch = exchange_own(x, (size_t)c->columns * 12);
    float weights[FERRY_MAX_TOPK];
    ranks_step(x->env, "comparing combine %d", round);
    if (x->careless) return true;
    for (int t = 0; t < x->tokens; t++) {
        oracle_combine_token(x->d->oracle[round], &m, x->rank, t, out, weights, scratch);
        const char *difference = oracle_difference(out, exchange_element(x, &f->sum.rows, 1, t, 0), out_bytes);
        if (*difference) return X_FAIL(x, "combined token %d: %s", t, difference);
        for (int k = 0; c->grad && k < c->topk; k++) {
            float got;
            memcpy(&got, exchange_element(x, &f->sum.weights, 1, t, k), 4);
            if (memcmp(&got, &weights[k], 4) != 0)
                return X_FAIL(x, "weight of token %d, choice %d: %a, not %a", t, k, (double)got, (double)weights[k]);
        }
    }
    return true;
}
