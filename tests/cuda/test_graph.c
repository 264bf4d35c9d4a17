/* Steps in both modes, captured into a CUDA graph and replayed with other top-k, weights and rows: every replay against the oracle.
 * Two steps a graph, since the halves of the buffers alternate: in the one the experts return what they got, out of the dispatch's view;
 * in the other rows of their own, out of the caller's memory. And steps without a graph before and after. */
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
enum { BLOCKS = EXPERTS / RANKS * RANKS, SLOTS = BLOCKS * TOKENS }; /* the most of any layout */

typedef struct step { /* pinned memory that kernels read and write */
    int64_t idx[TOKENS * TOPK];
    float weights[TOKENS * TOPK];
    _Alignas(16) uint16_t rows[TOKENS * COLUMNS];
    _Alignas(16) uint16_t sum[TOKENS * COLUMNS];
    _Alignas(16) uint16_t back[SLOTS * COLUMNS];
    int32_t counts[BLOCKS], starts[BLOCKS];
} step;

typedef struct kind {
    ferry_layout layout;
    ferry_mode mode;
    bool packed;
} kind;

typedef struct graph_rank_things {
    rank_env *env;
    const kind *kind;
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

static uint16_t number(uint64_t key, int i) { /* bf16 of either sign, none of them large or tiny */
    uint64_t bits = mix(key ^ (uint64_t)(i + 77777));
    return (uint16_t)((bits & 1) << 15 | (120 + bits % 13) << 7 | ((bits >> 20) & 0x7f));
}

/* The inputs of a rank in the n-th step of all. */
static void fill(step *s, int rank, int n) {
    uint64_t key = mix((uint64_t)(n * RANKS + rank + 1) * 0x9e3779b97f4a7c15u);
    for (int i = 0; i < TOKENS * TOPK; i++) {
        uint64_t bits = mix(key + (uint64_t)i);
        s->idx[i] = bits % 7 == 0 ? -1 : (int64_t)((bits >> 8) % EXPERTS);
        s->weights[i] = (float)(bits >> 40) * 0x1p-24f - 0.25f;
    }
    for (int i = 0; i < TOKENS * COLUMNS; i++) s->rows[i] = number(key, i);
    for (int i = 0; i < SLOTS * COLUMNS; i++) s->back[i] = number(~key, i);
    memset(s->sum, 0xa5, sizeof s->sum);
    memset(s->counts, 0xa5, sizeof s->counts);
    memset(s->starts, 0xa5, sizeof s->starts);
}

typedef struct experts { /* of all ranks */
    const oracle *o;
    const step *all;
} experts;

static void same_row(void *context, int rank, int64_t slot, uint8_t *data) {
    const experts *e = context;
    const oracle_rank *r = oracle_rank_of(e->o, rank);
    for (int64_t i = 0; i < r->received; i++)
        if (r->row[i].slot == slot) oracle_row_data(e->o, &r->row[i], data, NULL);
}

static void own_row(void *context, int rank, int64_t slot, uint8_t *data) {
    const experts *e = context;
    memcpy(data, e->all[rank].back + slot * COLUMNS, COLUMNS * sizeof(uint16_t));
}

static bool compare_tables(things *t, const oracle *o, const step *mine, int n) {
    const oracle_rank *me = oracle_rank_of(o, t->env->rank);
    int blocks = RANKS * (t->kind->layout == FERRY_LAYOUT_RANK ? 1 : me->local_experts);
    for (int i = 0; i < blocks; i++) {
        if (mine->counts[i] != me->counts[i])
            return ranks_fail(t->env, "step %d: counts[%d] is %d, not %d", n, i, mine->counts[i], me->counts[i]);
        if (me->counts[i] && mine->starts[i] != me->starts[i])
            return ranks_fail(t->env, "step %d: starts[%d] is %d, not %d", n, i, mine->starts[i], me->starts[i]);
    }
    return true;
}

static bool compare(things *t, const experts *e, int s, int n) {
    const step *mine = t->step[s];
    const oracle *o = e->o;
    uint16_t want[COLUMNS];
    uint64_t scratch[COLUMNS * 3 / 2]; /* over several hosts, half as much again */
    oracle_combine m = {.columns = COLUMNS,
                        .in_type = FERRY_BF16,
                        .out_type = FERRY_BF16,
                        .weighted = true,
                        .weights = mine->weights,
                        .row = s ? own_row : same_row,
                        .context = (void *)(uintptr_t)e};
    for (int i = 0; i < TOKENS; i++) {
        oracle_combine_token(o, &m, t->env->rank, i, (uint8_t *)want, NULL, scratch);
        const char *difference = oracle_difference(want, mine->sum + i * COLUMNS, sizeof want);
        if (*difference) return ranks_fail(t->env, "step %d, token %d: %s", n, i, difference);
    }
    return compare_tables(t, o, mine, n);
}

static bool check(things *t, int s, int n) {
    step *all = calloc(RANKS, sizeof *all);
    oracle_tokens tokens[RANKS];
    oracle_config config = {.ranks = RANKS,
                            .hosts = ranks_hosts(),
                            .experts = EXPERTS,
                            .topk = TOPK,
                            .max_tokens = TOKENS,
                            .layout = t->kind->layout,
                            .mode = t->kind->mode,
                            .packed = t->kind->packed,
                            .columns = COLUMNS,
                            .dtype = FERRY_BF16};
    if (!all) return ranks_fail(t->env, "no memory");
    for (int r = 0; r < RANKS; r++) {
        fill(&all[r], r, n);
        tokens[r] = (oracle_tokens){TOKENS, all[r].idx, all[r].weights, (const uint8_t *)all[r].rows, NULL};
    }
    oracle *o = oracle_new(&config, tokens);
    experts e = {o, all};
    bool good = o ? compare(t, &e, s, n) : ranks_fail(t->env, "no memory");
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
    bool known = t->kind->mode == FERRY_THROUGHPUT && status == cudaStreamCaptureStatusNone;
    RANK_CHECK(t->env, known == (info.received >= 0) && known == (info.source_rows != NULL));
    RANK_CHECK(t->env, info.rows >= (known ? info.received : TOKENS * RANKS));
    return true;
}

/* Rows of the experts' own: of every slot that there can be. */
static ferry_tensor own_rows(const things *t, step *x, const ferry_route *route) {
    ferry_route_info info = FERRY_ROUTE_INFO_INIT;
    ferry_route_get_info(route, &info);
    ferry_tensor rows = ferry_tensor_2d(x->back, FERRY_BF16, info.rows, COLUMNS);
    if (t->kind->layout != FERRY_LAYOUT_SLOTS) return rows;
    rows.ndim = 3;
    rows.shape[0] = info.local_experts;
    rows.shape[1] = RANKS * TOKENS;
    rows.shape[2] = COLUMNS;
    return rows;
}

/* Route, dispatch, combine. */
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
    rc.layout = t->kind->layout;
    rc.mode = t->kind->mode;
    rc.packed = t->kind->packed;
    in.rows = ferry_tensor_2d(x->rows, FERRY_BF16, TOKENS, COLUMNS);
    sum.rows = ferry_tensor_2d(x->sum, FERRY_BF16, TOKENS, COLUMNS);
    how.weighted = 1;
    int units = t->kind->layout == FERRY_LAYOUT_RANK ? 1 : EXPERTS / RANKS;
    out.counts = ferry_tensor_2d(x->counts, FERRY_INT32, units, RANKS);
    out.starts = ferry_tensor_2d(x->starts, FERRY_INT32, units, RANKS);
    if (t->kind->layout == FERRY_LAYOUT_RANK) {
        out.counts = ferry_tensor_1d(x->counts, FERRY_INT32, RANKS);
        out.starts = ferry_tensor_1d(x->starts, FERRY_INT32, RANKS);
    }
    RANK_OK(t->env, ferry_route_create(t->group, &rc, &t->route[s], t->stream));
    if (!check_info(t, t->route[s])) return false;
    RANK_OK(t->env, ferry_dispatch(t->route[s], &in, &out, NULL, t->stream));
    back.rows = s ? own_rows(t, x, t->route[s]) : out.rows;
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
    things t = {.env = env, .kind = env->arg};
    ferry_group_config cfg = ranks_config(EXPERTS, COLUMNS, TOKENS, TOPK);
    cfg.layouts = t.kind->layout;
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

static void check_kind(kind k) {
    if (ranks_device() != FERRY_CUDA) {
        printf("SKIP CUDA graphs: FERRY_TEST_DEVICE is not cuda\n");
        fflush(stdout);
        skip();
    }
    RANKS_ASSERT(RANKS_THREADS, RANKS, graph_rank, &k);
}

#define KIND(name, ...)                     \
    static void test_##name(void **state) { \
        (void)state;                        \
        check_kind((kind){__VA_ARGS__});    \
    }

KIND(rank_latency, FERRY_LAYOUT_RANK, FERRY_LATENCY, false)
KIND(rank_latency_packed, FERRY_LAYOUT_RANK, FERRY_LATENCY, true)
KIND(slots_latency, FERRY_LAYOUT_SLOTS, FERRY_LATENCY, false)
KIND(slots_latency_packed, FERRY_LAYOUT_SLOTS, FERRY_LATENCY, true)
KIND(expert_latency, FERRY_LAYOUT_EXPERT, FERRY_LATENCY, false)
KIND(rank_throughput, FERRY_LAYOUT_RANK, FERRY_THROUGHPUT, false)
KIND(slots_throughput, FERRY_LAYOUT_SLOTS, FERRY_THROUGHPUT, false)
KIND(expert_throughput, FERRY_LAYOUT_EXPERT, FERRY_THROUGHPUT, false)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rank_latency),     cmocka_unit_test(test_rank_latency_packed),
        cmocka_unit_test(test_slots_latency),    cmocka_unit_test(test_slots_latency_packed),
        cmocka_unit_test(test_expert_latency),   cmocka_unit_test(test_rank_throughput),
        cmocka_unit_test(test_slots_throughput), cmocka_unit_test(test_expert_throughput),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
