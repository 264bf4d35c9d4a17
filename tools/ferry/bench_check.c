/* --check: one dispatch with everything delivered and one combine, compared bit by bit with tests/oracle. */
#include "bench.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* Keeps the first difference of this rank, and returns false. */
static bool differs(const fe_lane *lane, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool differs(const fe_lane *lane, const char *format, ...) {
    char *say = lane->bench->shared->check[lane->self->rank];
    if (*say) return false;
    int used = snprintf(say, FE_BENCH_SAY, "rank %d: ", lane->self->rank);
    va_list args;
    va_start(args, format);
    vsnprintf(say + used, (size_t)(FE_BENCH_SAY - used), format, args);
    va_end(args);
    return false;
}

static bool same(const fe_lane *lane, const char *what, int64_t at, const void *expected, const void *got,
                 size_t bytes) {
    if (!got) return differs(lane, "%s was not delivered", what);
    if (memcmp(expected, got, bytes) == 0) return true;
    return differs(lane, "%s %lld: %.150s", what, (long long)at, oracle_difference(expected, got, bytes));
}

static const char *row_at(const ferry_tensor *t, int64_t slot, size_t bytes) {
    return t->data ? (const char *)t->data + (size_t)slot * bytes : NULL;
}

/* Element c of row `slot` of a tensor whose strides may be any; SLOTS tensors have [expert, slot] before it. */
static bool check_scales(const fe_lane *lane, const ferry_tensor *t, int64_t slot, const uint8_t *expected,
                         size_t bytes) {
    if (!t->data) return differs(lane, "the scales were not delivered");
    int64_t word = t->strides[t->ndim - 1], row = t->strides[t->ndim - 2], start = slot * row;
    if (word == 0) { /* contiguous */
        word = 1;
        start = slot * (int64_t)(bytes / 4);
    } else if (t->ndim == 3) {
        start = slot / t->shape[1] * t->strides[0] + slot % t->shape[1] * row;
    }
    for (size_t i = 0; i < bytes / 4; i++)
        if (memcmp((const char *)t->data + (start + (int64_t)i * word) * 4, expected + i * 4, 4) != 0)
            return differs(lane, "scale %zu of the row in slot %lld", i, (long long)slot);
    return true;
}

static bool check_topk(const fe_lane *lane, const ferry_dispatch_out *out, const oracle_row *row) {
    const fe_bench *b = lane->bench;
    int32_t ids[FERRY_MAX_TOPK] = {0}, source = row->source * b->max_tokens + row->token;
    float weights[FERRY_MAX_TOPK] = {0};
    if (!same(lane, "source of slot", row->slot, &source, row_at(&out->source, row->slot, 4), 4)) return false;
    if (b->layout != FERRY_LAYOUT_RANK)
        return same(lane, "weight of slot", row->slot, &row->weight, row_at(&out->topk_weights, row->slot, 4), 4);
    size_t bytes = (size_t)b->o.topk * 4;
    oracle_row_topk(b->plan, lane->self->rank, row, ids, weights);
    return same(lane, "topk_idx of slot", row->slot, ids, row_at(&out->topk_idx, row->slot, bytes), bytes) &&
           same(lane, "topk_weights of slot", row->slot, weights, row_at(&out->topk_weights, row->slot, bytes), bytes);
}

static bool check_rows(const fe_lane *lane, const ferry_dispatch_out *out, uint8_t *row, uint8_t *scales) {
    const fe_bench *b = lane->bench;
    const oracle_rank *mine = oracle_rank_of(b->plan, lane->self->rank);
    size_t counts = b->layout == FERRY_LAYOUT_RANK ? (size_t)b->o.ranks : (size_t)(b->o.ranks * mine->local_experts);
    if (counts && !(same(lane, "counts", 0, mine->counts, out->counts.data, counts * 4) &&
                    same(lane, "starts", 0, mine->starts, out->starts.data, counts * 4)))
        return false;
    for (int64_t i = 0; i < mine->received; i++) {
        const oracle_row *r = &mine->row[i];
        oracle_row_data(b->plan, r, row, scales);
        if (!same(lane, "the row in slot", r->slot, row, row_at(&out->rows, r->slot, b->row_bytes), b->row_bytes))
            return false;
        if (b->scale_bytes && !check_scales(lane, &out->scales, r->slot, scales, b->scale_bytes)) return false;
        if (!check_topk(lane, out, r)) return false;
    }
    return true;
}

static void returned_row(void *context, int rank, int64_t slot, uint8_t *data) {
    const fe_bench *b = context;
    fe_draw_row(b->back_pool, rank, slot, (size_t)b->o.hidden, data);
}

static bool check_sums(const fe_lane *lane, uint8_t *row, uint8_t *scratch) {
    fe_bench *b = lane->bench;
    const oracle_tokens *mine = &b->tokens[lane->self->rank];
    oracle_combine combine = {.columns = b->o.hidden,
                              .in_type = FERRY_BF16,
                              .out_type = FERRY_BF16,
                              .weighted = b->weighted,
                              .weights = mine->topk_weights,
                              .row = returned_row,
                              .context = b};
    for (int t = 0; t < mine->tokens; t++) {
        oracle_combine_token(b->plan, &combine, lane->self->rank, t, row, NULL, scratch);
        if (!same(lane, "the sum of token", t, row, lane->result_rows + (size_t)t * b->back_bytes, b->back_bytes))
            return false;
    }
    return true;
}

/* A dispatch with everything delivered. false: a call failed; a difference goes elsewhere. */
static bool check_dispatch(fe_lane *lane, uint8_t *row, uint8_t *scales) {
    ferry_dispatch_out views = lane->out, out;
    bool good = !lane->bench->gpu || fe_gpu_give_tables(lane, &lane->out);
    good = good && fe_lane_dispatch(lane, &out, true) && fe_lane_sync(lane);
    lane->out = views;
    if (!good) return false;
    if (!lane->bench->gpu) {
        check_rows(lane, &out, row, scales);
        return true;
    }
    good = fe_gpu_see(lane, &out);
    if (good) check_rows(lane, &out, row, scales);
    fe_gpu_forget(&out);
    return good;
}

/* On a GPU: the result to the host, or (back) from it. */
static bool take_result(fe_lane *lane, bool back, size_t bytes) {
    void *there = lane->result.rows.data;
    if (!lane->bench->gpu) return true;
    return fe_memory_copy(back ? there : lane->result_rows, back ? lane->result_rows : there, bytes) ||
           fe_rank_fail(lane->self, "the result could not be copied from the GPU");
}

bool fe_bench_check(fe_lane *lane) {
    size_t hidden = (size_t)lane->bench->o.hidden;
    size_t bytes = (size_t)lane->bench->tokens[lane->self->rank].tokens * lane->bench->back_bytes;
    ferry_combine_in in;
    uint8_t *row = malloc(2 * hidden), *scratch = malloc(12 * hidden);
    bool good = row && scratch;
    if (!good) fe_rank_fail(lane->self, "no memory for the check");
    good = good && check_dispatch(lane, row, scratch);
    memset(lane->result_rows, 0xff, bytes);
    good = good && take_result(lane, true, bytes) && fe_lane_back(lane, &in) && fe_lane_combine(lane, &in);
    good = good && fe_lane_sync(lane) && take_result(lane, false, bytes);
    if (good) check_sums(lane, row, scratch);
    free(row);
    free(scratch);
    return good;
}
