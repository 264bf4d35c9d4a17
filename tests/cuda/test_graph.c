/* Steps in both modes, captured into a CUDA graph and replayed with other top-k, weights and rows: every replay against the oracle.
 * Two steps a graph, since the halves of the buffers alternate; and steps without a graph before and after. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "oracle/oracle.h"
#include "ranks/harness.h"
#include <cuda_runtime_api.h>
#include <stdio.h>

enum { RANKS = 4, TOKENS = 24, TOPK = 4, EXPERTS = 12, COLUMNS = 256, STEPS = 2, REPLAYS = 6 };

typedef struct step { /* pinned memory that kernels read and write */
    int64_t idx[TOKENS * TOPK];
    float weights[TOKENS * TOPK];
    _Alignas(16) uint16_t rows[TOKENS * COLUMNS];
    _Alignas(16) uint16_t sum[TOKENS * COLUMNS];
} step;

typedef struct kind {
    ferry_layout layout;
    ferry_mode mode;
} kind;

typedef struct graph_rank_things {
    rank_env *env;
    ferry_layout layout;
    ferry_mode mode;
    ferry_group *group;
    cudaStream_t native;
    ferry_stream *stream;
    step *step[STEPS];
    ferry_route *route[STEPS];
} things;

#define CUDA_OK(t, call)                                                                                         \
    do {                                                                                                         \
        cudaError_t error_ = (call);                                                                             \
        if (error_ != cudaSuccess)                                                                               \
            return ranks_fail((t)->env, "%s:%d: %s: %s", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
    } while (0)

static uint64_t mix(uint64_t z) { /* the output function of splitmix64 */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* The inputs of a rank in the n-th step of all. */
static void fill(step *s, int rank, int n) {
    uint64_t key = mix((uint64_t)(n * RANKS + rank + 1) * 0x9e3779b97f4a7c15u);
    for (int i = 0; i < TOKENS * TOPK; i++) {
        uint64_t bits = mix(key + (uint64_t)i);
        s->idx[i] = bits % 7 == 0 ? -1 : (int64_t)((bits >> 8) % EXPERTS);
        s->weights[i] = (float)(bits >> 40) * 0x1p-24f - 0.25f;
    }
    for (int i = 0; i < TOKENS * COLUMNS; i++) {
        uint64_t bits = mix(key ^ (uint64_t)(i + 77777));
        s->rows[i] = (uint16_t)((bits & 1) << 15 | (120 + bits % 13) << 7 | ((bits >> 20) & 0x7f));
    }
    memset(s->sum, 0xa5, sizeof s->sum);
}

/* The experts return what they got. */
static void same_row(void *context, int rank, int64_t slot, uint8_t *data) {
    const oracle *o = context;
    const oracle_rank *r = oracle_rank_of(o, rank);
    for (int64_t i = 0; i < r->received; i++)
        if (r->row[i].slot == slot) oracle_row_data(o, &r->row[i], data, NULL);
}

static bool compare(things *t, const oracle *o, const step *mine, int n) {
    uint16_t want[COLUMNS];
    uint64_t scratch[COLUMNS * 3 / 2]; /* over several hosts, half as much again */
    oracle_combine m = {.columns = COLUMNS,
                        .in_type = FERRY_BF16,
                        .out_type = FERRY_BF16,
                        .weighted = true,
                        .weights = mine->weights,
                        .row = same_row,
                        .context = (void *)(uintptr_t)o};
    for (int i = 0; i < TOKENS; i++) {
        oracle_combine_token(o, &m, t->env->rank, i, (uint8_t *)want, NULL, scratch);
        const char *difference = oracle_difference(want, mine->sum + i * COLUMNS, sizeof want);
        if (*difference) return ranks_fail(t->env, "step %d, token %d: %s", n, i, difference);
    }
    return true;
}

static bool check(things *t, int s, int n) {
    step *all = calloc(RANKS, sizeof *all);
    oracle_tokens tokens[RANKS];
    oracle_config config = {.ranks = RANKS,
                            .hosts = ranks_hosts(),
                            .experts = EXPERTS,
                            .topk = TOPK,
                            .max_tokens = TOKENS,
                            .layout = t->layout,
                            .mode = t->mode,
                            .columns = COLUMNS,
                            .dtype = FERRY_BF16};
    if (!all) return ranks_fail(t->env, "no memory");
    for (int r = 0; r < RANKS; r++) {
        fill(&all[r], r, n);
        tokens[r] = (oracle_tokens){TOKENS, all[r].idx, all[r].weights, (const uint8_t *)all[r].rows, NULL};
    }
    oracle *o = oracle_new(&config, tokens);
    bool good = o ? compare(t, o, t->step[s], n) : ranks_fail(t->env, "no memory");
    oracle_free(o);
    free(all);
    return good;
}

/* What a graph holds has not run: the host knows capacities, and no counts. */
static bool check_info(things *t, const ferry_route *route) {
    enum cudaStreamCaptureStatus status;
    ferry_route_info info = FERRY_ROUTE_INFO_INIT;
    CUDA_OK(t, cudaStreamIsCapturing(t->native, &status));
    RANK_OK(t->env, ferry_route_get_info(route, &info));
    bool known = t->mode == FERRY_THROUGHPUT && status == cudaStreamCaptureStatusNone;
    RANK_CHECK(t->env, known == (info.received >= 0) && known == (info.source_rows != NULL));
    RANK_CHECK(t->env, info.rows >= (known ? info.received : TOKENS * RANKS));
    return true;
}

/* Route, dispatch, combine out of the dispatch's view. */
static bool queue(things *t, int s) {
    step *x = t->step[s];
    ferry_route_config rc = FERRY_ROUTE_CONFIG_INIT;
    ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
    ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
    ferry_combine_in back = FERRY_COMBINE_IN_INIT;
    ferry_combine_out sum = FERRY_COMBINE_OUT_INIT;
    ferry_combine_options how = FERRY_COMBINE_OPTIONS_INIT;
    rc.topk_idx = ferry_tensor_2d(x->idx, FERRY_INT64, TOKENS, TOPK);
    rc.topk_weights = ferry_tensor_2d(x->weights, FERRY_FP32, TOKENS, TOPK);
    rc.layout = t->layout;
    rc.mode = t->mode;
    in.rows = ferry_tensor_2d(x->rows, FERRY_BF16, TOKENS, COLUMNS);
    sum.rows = ferry_tensor_2d(x->sum, FERRY_BF16, TOKENS, COLUMNS);
    how.weighted = 1;
    RANK_OK(t->env, ferry_route_create(t->group, &rc, &t->route[s], t->stream));
    if (!check_info(t, t->route[s])) return false;
    RANK_OK(t->env, ferry_dispatch(t->route[s], &in, &out, NULL, t->stream));
    back.rows = out.rows;
    RANK_OK(t->env, ferry_combine(t->route[s], &back, &sum, &how, t->stream));
    return true;
}

static void drop_routes(things *t) {
    for (int s = 0; s < STEPS; s++) {
        ferry_route_destroy(t->route[s]);
        t->route[s] = NULL;
    }
}

static bool run_plain(things *t, int *n) {
    ranks_step(t->env, "steps %d and %d, without a graph", *n, *n + 1);
    for (int s = 0; s < STEPS; s++) fill(t->step[s], t->env->rank, *n + s);
    for (int s = 0; s < STEPS; s++)
        if (!queue(t, s)) return false;
    RANK_OK(t->env, ferry_stream_sync(t->stream));
    for (int s = 0; s < STEPS; s++)
        if (!check(t, s, *n + s)) return false;
    drop_routes(t);
    *n += STEPS;
    return true;
}

static bool run_graph(things *t, int *n) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    ranks_step(t->env, "capturing");
    CUDA_OK(t, cudaStreamBeginCapture(t->native, cudaStreamCaptureModeThreadLocal));
    for (int s = 0; s < STEPS; s++)
        if (!queue(t, s)) return false;
    CUDA_OK(t, cudaStreamEndCapture(t->native, &graph));
    CUDA_OK(t, cudaGraphInstantiate(&exec, graph, 0));
    CUDA_OK(t, cudaGraphUpload(exec,
                               t->native)); /* a first launch may take memory, which would wait for kernels that wait */
    CUDA_OK(t, cudaStreamSynchronize(t->native));
    for (int replay = 0; replay < REPLAYS; replay++, *n += STEPS) {
        ranks_step(t->env, "replay %d", replay);
        for (int s = 0; s < STEPS; s++) fill(t->step[s], t->env->rank, *n + s);
        if (!ranks_meet(t->env)) return false;
        CUDA_OK(t, cudaGraphLaunch(exec, t->native));
        RANK_OK(t->env, ferry_stream_sync(t->stream));
        for (int s = 0; s < STEPS; s++)
            if (!check(t, s, *n + s)) return false;
    }
    RANK_CHECK(t->env, ranks_meet(t->env));
    CUDA_OK(t, cudaGraphExecDestroy(exec));
    CUDA_OK(t, cudaGraphDestroy(graph));
    drop_routes(t);
    return true;
}

static bool graph_rank(rank_env *env) {
    const kind *k = env->arg;
    things t = {.env = env, .layout = k->layout, .mode = k->mode};
    ferry_group_config cfg = ranks_config(EXPERTS, COLUMNS, TOKENS, TOPK);
    cfg.layouts = t.layout;
    int n = 0;
    for (int s = 0; s < STEPS; s++) t.step[s] = ranks_new(env, sizeof(step));
    if (!ranks_group(env, &cfg, &t.group)) return false;
    CUDA_OK(&t, cudaStreamCreateWithFlags(&t.native, cudaStreamNonBlocking));
    RANK_OK(env, ferry_stream_wrap(t.group, t.native, &t.stream));
    if (!run_plain(&t, &n) || !run_graph(&t, &n) || !run_plain(&t, &n) || !run_graph(&t, &n)) return false;
    RANK_OK(env, ferry_group_error(t.group));
    ferry_stream_destroy(t.stream);
    CUDA_OK(&t, cudaStreamDestroy(t.native)); /* wrapping it did not give it away */
    ferry_group_destroy(t.group);
    return true;
}

static void check_layout(ferry_layout layout, ferry_mode mode) {
    kind k = {layout, mode};
    if (ranks_device() != FERRY_CUDA) {
        printf("SKIP CUDA graphs: FERRY_TEST_DEVICE is not cuda\n");
        fflush(stdout);
        skip();
    }
    RANKS_ASSERT(RANKS_THREADS, RANKS, graph_rank, &k);
}

static void test_rank_layout(void **state) {
    (void)state;
    check_layout(FERRY_LAYOUT_RANK, FERRY_LATENCY);
}

static void test_slots_layout(void **state) {
    (void)state;
    check_layout(FERRY_LAYOUT_SLOTS, FERRY_LATENCY);
}

static void test_expert_layout(void **state) {
    (void)state;
    check_layout(FERRY_LAYOUT_EXPERT, FERRY_LATENCY);
}

static void test_rank_throughput(void **state) {
    (void)state;
    check_layout(FERRY_LAYOUT_RANK, FERRY_THROUGHPUT);
}

static void test_expert_throughput(void **state) {
    (void)state;
    check_layout(FERRY_LAYOUT_EXPERT, FERRY_THROUGHPUT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rank_layout),       cmocka_unit_test(test_slots_layout),
        cmocka_unit_test(test_expert_layout),     cmocka_unit_test(test_rank_throughput),
        cmocka_unit_test(test_expert_throughput),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
