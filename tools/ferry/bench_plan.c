/* The inputs of a bench: routing (drawn, or read from a trace), rows, and where every row will land. */
#include "base/env.h"
#include "base/os.h"
#include "bench.h"
#include "routes.h"
#include <stdio.h>
#include <stdlib.h>

static bool say(char *why, const char *what) {
    snprintf(why, FE_RANKS_WHY, "%s", what);
    return false;
}

static bool new_choices(fe_bench *b, int rank, int tokens, int64_t **ids, float **weights) {
    size_t cells = (size_t)tokens * (size_t)b->o.topk;
    *ids = malloc(cells * sizeof **ids + 1);
    *weights = malloc(cells * sizeof **weights + 1);
    b->tokens[rank] = (oracle_tokens){.tokens = tokens, .topk_idx = *ids, .topk_weights = *weights};
    if (tokens > b->max_tokens) b->max_tokens = tokens;
    return *ids && *weights;
}

/* Lines are dealt round robin: rank r gets lines r, r + ranks, ... */
static bool deal_trace(fe_bench *b, const fe_routes *trace, char *why) {
    int ranks = b->o.ranks, topk = b->o.topk = trace->topk;
    for (int r = 0; r < ranks; r++) {
        int64_t *ids;
        float *weights;
        if (!new_choices(b, r, (trace->tokens - r + ranks - 1) / ranks, &ids, &weights))
            return say(why, "no memory for the routes");
        for (int t = 0; t < b->tokens[r].tokens; t++) {
            for (int k = 0; k < topk; k++) {
                ids[t * topk + k] = trace->ids[(t * ranks + r) * topk + k];
                weights[t * topk + k] = trace->weights[(t * ranks + r) * topk + k];
            }
        }
    }
    return true;
}

static bool read_trace(fe_bench *b, char *why) {
    fe_routes trace;
    int64_t most = (int64_t)b->o.tokens * b->o.ranks;
    if (!fe_routes_read(b->o.routes, b->o.layer, b->o.tokens ? (int)most : 1 << 24, &trace, why)) return false;
    bool good = true;
    if (b->o.topk && b->o.topk != trace.topk) {
        snprintf(why, FE_RANKS_WHY, "--topk %d, but the trace has top-%d", b->o.topk, trace.topk);
        good = false;
    } else if (b->o.experts && b->o.experts < trace.experts) {
        snprintf(why, FE_RANKS_WHY, "--experts %d, but the trace has %d", b->o.experts, trace.experts);
        good = false;
    }
    if (good && !b->o.experts) b->o.experts = trace.experts;
    b->o.layer = trace.layer;
    good = good && deal_trace(b, &trace, why);
    fe_routes_free(&trace);
    return good;
}

static bool draw_routes(fe_bench *b, char *why) {
    if (!b->o.topk) b->o.topk = 8;
    if (!b->o.experts) b->o.experts = 256;
    if (!b->o.tokens) b->o.tokens = b->mode == FERRY_LATENCY ? 128 : 4096;
    fe_draw draw = {.seed = (uint64_t)b->o.seed,
                    .ranks = b->o.ranks,
                    .experts = b->o.experts,
                    .topk = b->o.topk,
                    .tokens = b->o.tokens,
                    .skew = b->o.skew};
    for (int r = 0; r < b->o.ranks; r++) {
        int64_t *ids;
        float *weights;
        if (!new_choices(b, r, b->o.tokens, &ids, &weights) || fe_draw_routes(&draw, r, ids, weights) != 0)
            return say(why, "no memory for the routes");
    }
    return true;
}

static void set_sizes(fe_bench *b) {
    size_t hidden = (size_t)b->o.hidden, scales = (hidden + 127) / 128 * 4;
    b->back_bytes = hidden * 2;
    b->row_bytes = b->fp8 ? hidden : hidden * 2;
    b->in_bytes = b->fp8 && !b->o.cast ? hidden : hidden * 2;
    b->scale_bytes = b->fp8 ? scales : 0;
    b->in_scale_bytes = b->fp8 && !b->o.cast ? scales : 0;
}

/* Rows lie in memory that ranks share, so that every rank's check can see all inputs; each rank fills its own. */
static bool make_rows(fe_bench *b, char *why) {
    b->in_pool = malloc(sizeof *b->in_pool);
    b->back_pool = malloc(sizeof *b->back_pool);
    if (!b->in_pool || !b->back_pool) return say(why, "no memory for the rows");
    fe_draw_pool_fill(b->in_pool, (uint64_t)b->o.seed, b->fp8 && !b->o.cast);
    fe_draw_pool_fill(b->back_pool, ~(uint64_t)b->o.seed, 0);
    for (int r = 0; r < b->o.ranks; r++) {
        size_t tokens = (size_t)b->tokens[r].tokens;
        b->tokens[r].rows = fe_shared_new(tokens * b->in_bytes + 1);
        if (b->in_scale_bytes) b->tokens[r].scales = fe_shared_new(tokens * b->in_scale_bytes + 1);
        if (!b->tokens[r].rows || (b->in_scale_bytes && !b->tokens[r].scales))
            return say(why, "the system has no memory for the rows");
    }
    return true;
}

static bool make_plan(fe_bench *b, char *why) {
    oracle_config config = {.ranks = b->o.ranks,
                            .experts = b->o.experts,
                            .topk = b->o.topk,
                            .max_tokens = b->max_tokens,
                            .layout = b->layout,
                            .mode = b->mode,
                            .columns = b->o.hidden,
                            .hosts = b->hosts,
                            .dtype = b->fp8 && !b->o.cast ? FERRY_E4M3 : FERRY_BF16,
                            .scale_bytes = b->in_scale_bytes,
                            .cast = b->o.cast ? FERRY_CAST_E4M3 : FERRY_CAST_NONE};
    b->plan = oracle_new(&config, b->tokens);
    if (!b->plan) return say(why, "no memory for the plan");
    for (int r = 0; r < b->o.ranks; r++) {
        const oracle_rank *rank = oracle_rank_of(b->plan, r);
        b->copies += rank->received;
        for (int64_t i = 0; i < rank->received; i++)
            if (rank->row[i].slot >= b->slots) b->slots = rank->row[i].slot + 1;
    }
    return true;
}

static bool make_landings(fe_bench *b, char *why) {
    size_t slots = (size_t)(b->slots * b->o.ranks);
    b->landing_bytes = slots * (b->row_bytes + b->scale_bytes) + 1;
    b->returning_bytes = slots * b->back_bytes + 1;
    for (int half = 0; half < 2 && !b->gpu; half++) b->landing[half] = fe_shared_new(b->landing_bytes);
    for (int half = 0; half < 2 && !b->gpu; half++)
        b->returning[half] = b->fp8 ? fe_shared_new(b->returning_bytes) : b->landing[half];
    b->shared_bytes = sizeof *b->shared + sizeof(double) * FE_M_COUNT * (size_t)b->o.ranks * (size_t)b->o.iters;
    b->shared = fe_shared_new(b->shared_bytes);
    bool landings = b->landing[0] && b->landing[1] && b->returning[0] && b->returning[1];
    if (!b->shared || !(b->gpu || landings)) return say(why, "the system has no room to map the floors' buffers");
    return true;
}

/* The group's own rule, so that the floors run on as many threads. */
static bool set_threads(fe_bench *b, char *why) {
    int64_t threads = fe_cores() / b->o.ranks, wanted;
    if (threads < 1) threads = 1;
    if (fe_env_number(FE_ENV_FERRY_THREADS, threads, 1, 1024, &wanted) != FERRY_OK) return say(why, ferry_last_error());
    b->threads = b->o.threads ? b->o.threads : (int)wanted;
    return fe_rows_choose(&b->kernels) == FERRY_OK || say(why, ferry_last_error());
}

bool fe_bench_plan(fe_bench *b, char *why) {
    if (!(b->o.routes ? read_trace(b, why) : draw_routes(b, why))) return false;
    set_sizes(b);
    return set_threads(b, why) && make_rows(b, why) && make_plan(b, why) && make_landings(b, why);
}

void fe_bench_plan_free(fe_bench *b) {
    for (int r = 0; r < b->o.ranks; r++) {
        size_t tokens = (size_t)b->tokens[r].tokens;
        fe_shared_free((void *)b->tokens[r].rows, tokens * b->in_bytes + 1);
        fe_shared_free((void *)b->tokens[r].scales, tokens * b->in_scale_bytes + 1);
        free((void *)b->tokens[r].topk_idx);
        free((void *)b->tokens[r].topk_weights);
    }
    if (b->plan) oracle_free(b->plan);
    free(b->in_pool);
    free(b->back_pool);
    for (int half = 0; b->fp8 && half < 2; half++) fe_shared_free(b->returning[half], b->returning_bytes);
    for (int half = 0; half < 2; half++) fe_shared_free(b->landing[half], b->landing_bytes);
    fe_shared_free(b->shared, b->shared_bytes);
}
