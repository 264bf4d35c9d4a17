/* Every wrong argument of every public call: FERRY_INVALID (or what the header says instead), a sentence, and no effect. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "ranks/harness.h"
#include <pthread.h>
#include <stdio.h>

/* The call gives the status, and a sentence that holds `word`. */
#define REFUSED_AS(env, wanted, word, call)                                                                        \
    do {                                                                                                           \
        RANK_STATUS(env, wanted, call);                                                                            \
        if (!strstr(ferry_last_error(), (word)))                                                                   \
            return ranks_fail((env), "%s:%d: the sentence of %s does not have \"%s\": \"%s\"", __FILE__, __LINE__, \
                              #call, (word), ferry_last_error());                                                  \
    } while (0)
#define REFUSED(env, word, call) REFUSED_AS(env, FERRY_INVALID, word, call)

static void *const untouched = (void *)(uintptr_t)0x5150;

/* A field of the config, a value, and the word that the sentence must have. */
typedef struct wrong_config {
    const char *word;
    ferry_status status;
    void (*spoil)(ferry_group_config *cfg);
} wrong_config;

static const int32_t first_not_zero[] = {1, 2, 3, 4, 5}, first_falls[] = {0, 2, 1, 3, 4},
                     first_none[] = {0, 1, 1, 2, 3}, first_good[] = {0, 1, 2, 3, 4}, first_two[] = {0, 2, 3, 4, 5},
                     ranks_good[] = {0, 0, 0, 0, 0}, ranks_high[] = {0, 0, 1, 0}, ranks_low[] = {0, -1, 0, 0};

#define SPOIL(name, statement)                          \
    static void spoil_##name(ferry_group_config *cfg) { \
        statement;                                      \
    }
SPOIL(size, cfg->size = 0)
SPOIL(long, cfg->size = 8)
SPOIL(magic, cfg->magic ^= 1)
SPOIL(device, cfg->device = (ferry_device)7)
SPOIL(cuda, cfg->device = FERRY_CUDA)
SPOIL(experts, cfg->experts = 0)
SPOIL(experts_low, cfg->experts = -5)
SPOIL(hidden, cfg->hidden = 0)
SPOIL(hidden_odd, cfg->hidden = 20)
SPOIL(tokens, cfg->max_tokens = 0)
SPOIL(topk, cfg->max_topk = 0)
SPOIL(topk_high, cfg->max_topk = 65)
SPOIL(dtype, cfg->dtype = (ferry_dtype)99)
SPOIL(layouts, cfg->layouts = 8)
SPOIL(recv, cfg->max_recv_rows = -1)
SPOIL(heap, cfg->heap_bytes = -1)
SPOIL(timeout, cfg->timeout_ms = -1)
SPOIL(threads, cfg->threads = -1)
SPOIL(first_alone, cfg->expert_first = first_good)
SPOIL(rank_alone, cfg->expert_rank = ranks_good)
SPOIL(not_zero, (cfg->expert_first = first_not_zero, cfg->expert_rank = ranks_good))
SPOIL(falls, (cfg->expert_first = first_falls, cfg->expert_rank = ranks_good))
SPOIL(no_copy, (cfg->expert_first = first_none, cfg->expert_rank = ranks_good))
SPOIL(twice, (cfg->expert_first = first_two, cfg->expert_rank = ranks_good))
SPOIL(rank_high, (cfg->expert_first = first_good, cfg->expert_rank = ranks_high))
SPOIL(rank_low, (cfg->expert_first = first_good, cfg->expert_rank = ranks_low))

static const wrong_config wrong_configs[] = {
    {"size", FERRY_INVALID, spoil_size},
    {"size", FERRY_INVALID, spoil_long},
    {"magic", FERRY_INVALID, spoil_magic},
    {"7", FERRY_INVALID, spoil_device},
    {"", FERRY_UNSUPPORTED, spoil_cuda},
    {"0", FERRY_INVALID, spoil_experts},
    {"-5", FERRY_INVALID, spoil_experts_low},
    {"hidden", FERRY_INVALID, spoil_hidden},
    {"16", FERRY_INVALID, spoil_hidden_odd},
    {"max_tokens", FERRY_INVALID, spoil_tokens},
    {"max_topk", FERRY_INVALID, spoil_topk},
    {"65", FERRY_INVALID, spoil_topk_high},
    {"99", FERRY_INVALID, spoil_dtype},
    {"layouts", FERRY_INVALID, spoil_layouts},
    {"max_recv_rows", FERRY_INVALID, spoil_recv},
    {"heap_bytes", FERRY_INVALID, spoil_heap},
    {"timeout_ms", FERRY_INVALID, spoil_timeout},
    {"threads", FERRY_INVALID, spoil_threads},
    {"expert_", FERRY_INVALID, spoil_first_alone},
    {"expert_", FERRY_INVALID, spoil_rank_alone},
    {"expert_first", FERRY_INVALID, spoil_not_zero},
    {"expert_first", FERRY_INVALID, spoil_falls},
    {"expert 1", FERRY_INVALID, spoil_no_copy},
    {"expert 0", FERRY_INVALID, spoil_twice},
    {"expert_rank[2]", FERRY_INVALID, spoil_rank_high},
    {"-1", FERRY_INVALID, spoil_rank_low},
};

static bool config_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 8, 4), zeroed;
    ferry_group *g = untouched;
    ferry_unique_id bad_id;
    int64_t bytes = -7;
    memset(&zeroed, 0, sizeof zeroed);
    memset(&bad_id, 'x', sizeof bad_id);
    for (size_t i = 0; i < sizeof wrong_configs / sizeof *wrong_configs; i++) {
        const wrong_config *w = &wrong_configs[i];
        if (w->spoil == spoil_cuda && ranks_device() == FERRY_CUDA) continue; /* nothing is wrong with it */
        cfg = ranks_config(4, 16, 8, 4);
        w->spoil(&cfg);
        ranks_step(env, "wrong config %d (%s)", (int)i, w->word);
        REFUSED_AS(env, w->status, w->word, ferry_group_create(&env->id, 0, 1, &cfg, &g));
        RANK_CHECK(env, g == untouched && *ferry_last_error());
        if (w->status == FERRY_INVALID) REFUSED(env, w->word, ferry_group_bytes(&cfg, 1, &bytes));
    }
    cfg = ranks_config(4, 16, 8, 4);
    REFUSED(env, "id", ferry_group_create(NULL, 0, 1, &cfg, &g));
    REFUSED(env, "id", ferry_group_create(&bad_id, 0, 1, &cfg, &g));
    REFUSED(env, "", ferry_group_create(&env->id, 0, 1, NULL, &g));
    REFUSED(env, "", ferry_group_create(&env->id, 0, 1, &zeroed, &g));
    REFUSED(env, "", ferry_group_create(&env->id, 0, 1, &cfg, NULL));
    REFUSED(env, "-1", ferry_group_create(&env->id, -1, 1, &cfg, &g));
    REFUSED(env, "1", ferry_group_create(&env->id, 1, 1, &cfg, &g));
    REFUSED(env, "0", ferry_group_create(&env->id, 0, 0, &cfg, &g));
    REFUSED(env, "1025", ferry_group_create(&env->id, 0, FERRY_MAX_RANKS + 1, &cfg, &g));
    REFUSED(env, "", ferry_group_create_with(NULL, NULL, 0, 1, &cfg, &g));
    REFUSED(env, "", ferry_group_create_env(NULL, &g));
    REFUSED(env, "", ferry_unique_id_create(NULL));
    REFUSED(env, "", ferry_group_bytes(NULL, 1, &bytes));
    REFUSED(env, "", ferry_group_bytes(&cfg, 0, &bytes));
    REFUSED(env, "", ferry_group_bytes(&cfg, 1, NULL));
    RANK_CHECK(env, g == untouched && bytes == -7);
    /* A struct of a later version is taken as long as what this one does not know is zero. */
    struct later {
        ferry_group_config cfg;
        uint64_t unknown[4];
    } later = {.cfg = cfg};
    later.cfg.size = sizeof later;
    RANK_OK(env, ferry_group_bytes(&later.cfg, 1, &bytes));
    later.unknown[3] = 1;
    REFUSED(env, "", ferry_group_bytes(&later.cfg, 1, &bytes));
    /* After all this the id still makes its group. */
    if (!ranks_group(env, &cfg, &g)) return false;
    ferry_group_destroy(g);
    return true;
}

typedef struct world {
    ferry_group *g;
    int32_t idx[8 * 4];
    float weights[8 * 4];
    _Alignas(16) uint16_t rows[8 * 16], sum[8 * 16];
    ferry_route_config route;
    ferry_dispatch_in in;
    ferry_combine_in back;
    ferry_combine_out out;
} world;

static void fill_world(world *w) {
    for (int i = 0; i < 32; i++) {
        w->idx[i] = i % 4;
        w->weights[i] = 1;
    }
    memset(w->rows, 0, sizeof w->rows);
    w->route = FERRY_ROUTE_CONFIG_INIT;
    w->route.topk_idx = ferry_tensor_2d(w->idx, FERRY_INT32, 8, 4);
    w->route.topk_weights = ferry_tensor_2d(w->weights, FERRY_FP32, 8, 4);
    w->route.layout = FERRY_LAYOUT_RANK;
    w->in = FERRY_DISPATCH_IN_INIT;
    w->in.rows = ferry_tensor_2d(w->rows, FERRY_BF16, 8, 16);
    w->back = FERRY_COMBINE_IN_INIT;
    w->back.rows = ferry_tensor_2d(w->rows, FERRY_BF16, 8, 16);
    w->out = FERRY_COMBINE_OUT_INIT;
    w->out.rows = ferry_tensor_2d(w->sum, FERRY_BF16, 8, 16);
}

/* Every statement on a fresh copy of the config must be refused with the word. */
#define WRONG_ROUTE(word, statement)                                      \
    do {                                                                  \
        ferry_route_config cfg = w->route;                                \
        statement;                                                        \
        REFUSED(env, word, ferry_route_create(w->g, &cfg, &route, NULL)); \
        RANK_CHECK(env, route == untouched);                              \
    } while (0)

static bool wrong_routes(rank_env *env, world *w) {
    ferry_route *route = untouched;
    ranks_step(env, "wrong route configs");
    WRONG_ROUTE("size", cfg.size = 0);
    WRONG_ROUTE("magic", cfg.magic = 0);
    WRONG_ROUTE("topk_idx", cfg.topk_idx.data = NULL);
    WRONG_ROUTE("topk_idx", cfg.topk_idx.dtype = FERRY_FP32);
    WRONG_ROUTE("topk_idx", cfg.topk_idx.ndim = 1);
    WRONG_ROUTE("9", cfg.topk_idx.shape[0] = 9);
    WRONG_ROUTE("topk", cfg.topk_idx.shape[0] = -1);
    WRONG_ROUTE("5", (cfg.topk_idx.shape[1] = 5, cfg.topk_weights.shape[1] = 5));
    WRONG_ROUTE("0", (cfg.topk_idx.shape[1] = 0, cfg.topk_weights.shape[1] = 0));
    WRONG_ROUTE("topk_weights", cfg.topk_weights.dtype = FERRY_INT32);
    WRONG_ROUTE("topk_weights", cfg.topk_weights.shape[1] = 3);
    WRONG_ROUTE("topk_weights", cfg.topk_weights.shape[0] = 7);
    WRONG_ROUTE("layout", cfg.layout = (ferry_layout)3);
    WRONG_ROUTE("layout", cfg.layout = (ferry_layout)0);
    WRONG_ROUTE("mode", cfg.mode = (ferry_mode)2);
    WRONG_ROUTE("alignment", cfg.expert_alignment = -1);
    WRONG_ROUTE("expert_capacity", cfg.expert_capacity = -1);
    WRONG_ROUTE("rank_capacity", cfg.rank_capacity = -1);
    WRONG_ROUTE("packed", cfg.packed = 2);
    WRONG_ROUTE("order", cfg.order = (ferry_order)2);
    WRONG_ROUTE("overflow", cfg.overflow = (ferry_overflow)2);
    REFUSED(env, "", ferry_route_create(NULL, &w->route, &route, NULL));
    REFUSED(env, "", ferry_route_create(w->g, NULL, &route, NULL));
    REFUSED(env, "", ferry_route_create(w->g, &w->route, NULL, NULL));
    w->idx[13] = 4; /* token 3, choice 1: experts are 0..3 */
    REFUSED(env, "[3][1]", ferry_route_create(w->g, &w->route, &route, NULL));
    w->idx[13] = -2;
    REFUSED(env, "-2", ferry_route_create(w->g, &w->route, &route, NULL));
    RANK_CHECK(env, route == untouched);
    w->idx[13] = 1;
    return true;
}

#define WRONG_DISPATCH(word, statement)                                        \
    do {                                                                       \
        ferry_dispatch_in in = w->in;                                          \
        ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;                      \
        ferry_dispatch_options how = FERRY_DISPATCH_OPTIONS_INIT;              \
        statement;                                                             \
        (void)how;                                                             \
        REFUSED(env, word, ferry_dispatch(route, &in, &out, &how, NULL));      \
        REFUSED(env, word, ferry_dispatch_send(route, &in, &out, &how, NULL)); \
    } while (0)

static bool wrong_dispatches(rank_env *env, world *w, ferry_route *route) {
    float scales[8 * 4];
    ferry_dispatch_out good = FERRY_DISPATCH_OUT_INIT;
    ranks_step(env, "wrong dispatches");
    WRONG_DISPATCH("size", in.size = 1);
    WRONG_DISPATCH("magic", in.magic = 0);
    WRONG_DISPATCH("magic", out.magic = 0);
    WRONG_DISPATCH("size", how.size = 0);
    WRONG_DISPATCH("rows", in.rows.data = NULL);
    WRONG_DISPATCH("7", in.rows.shape[0] = 7);
    WRONG_DISPATCH("24", in.rows.shape[1] = 24);
    WRONG_DISPATCH("16", in.rows.shape[1] = 12);
    WRONG_DISPATCH("rows", in.rows.ndim = 3);
    WRONG_DISPATCH("rows", in.rows.dtype = (ferry_dtype)42);
    WRONG_DISPATCH("rows", (in.rows.strides[0] = 64, in.rows.strides[1] = 2));
    WRONG_DISPATCH("cast", how.cast = (ferry_cast)4);
    WRONG_DISPATCH("cast", (how.cast = FERRY_CAST_E4M3, in.rows.dtype = FERRY_FP16));
    WRONG_DISPATCH("scales", (how.cast = FERRY_CAST_E4M3, in.scales = ferry_tensor_2d(scales, FERRY_FP32, 8, 1)));
    WRONG_DISPATCH("scales", in.scales = ferry_tensor_2d(scales, FERRY_FP32, 8, 2));
    WRONG_DISPATCH("scales", in.scales = ferry_tensor_2d(scales, FERRY_FP32, 7, 1));
    WRONG_DISPATCH("scales", in.scales = ferry_tensor_2d(scales, FERRY_BF16, 8, 1));
    WRONG_DISPATCH("rows", out.rows = ferry_tensor_2d(w->sum, FERRY_BF16, 7, 16));
    WRONG_DISPATCH("rows", out.rows = ferry_tensor_2d(w->sum, FERRY_FP16, 8, 16));
    WRONG_DISPATCH("source", out.source = ferry_tensor_1d(scales, FERRY_INT32, 7));
    WRONG_DISPATCH("counts", out.counts = ferry_tensor_1d(scales, FERRY_FP32, 1));
    REFUSED(env, "", ferry_dispatch(NULL, &w->in, &good, NULL, NULL));
    REFUSED(env, "", ferry_dispatch(route, NULL, &good, NULL, NULL));
    REFUSED(env, "", ferry_dispatch(route, &w->in, NULL, NULL, NULL));
    REFUSED(env, "", ferry_dispatch_recv(route, &good, NULL)); /* nothing was sent */
    ferry_dispatch_out sent[3] = {good, good, good};
    for (int i = 0; i < 2; i++) RANK_OK(env, ferry_dispatch_send(route, &w->in, &sent[i], NULL, NULL));
    REFUSED(env, "", ferry_dispatch_send(route, &w->in, &sent[2], NULL, NULL));
    for (int i = 0; i < 2; i++) RANK_OK(env, ferry_dispatch_recv(route, &sent[i], NULL));
    REFUSED(env, "", ferry_dispatch_recv(route, &good, NULL));
    return true;
}

#define WRONG_COMBINE(word, statement)                                   \
    do {                                                                 \
        ferry_combine_in in = w->back;                                   \
        ferry_combine_out out = w->out;                                  \
        ferry_combine_options how = FERRY_COMBINE_OPTIONS_INIT;          \
        statement;                                                       \
        (void)how;                                                       \
        REFUSED(env, word, ferry_combine(route, &in, &out, &how, NULL)); \
    } while (0)

static bool wrong_combines(rank_env *env, world *w, ferry_route *route) {
    float floats[8 * 4];
    ferry_tensor view;
    ranks_step(env, "wrong combines");
    WRONG_COMBINE("size", in.size = 1);
    WRONG_COMBINE("magic", out.magic = 0);
    WRONG_COMBINE("magic", how.magic = 0);
    WRONG_COMBINE("rows", in.rows.data = NULL);
    WRONG_COMBINE("rows", in.rows.dtype = FERRY_E4M3);
    WRONG_COMBINE("rows", in.rows.shape[0] = 3);
    WRONG_COMBINE("16", (in.rows.shape[1] = 12, out.rows.shape[1] = 12));
    WRONG_COMBINE("rows", out.rows.data = NULL);
    WRONG_COMBINE("rows", out.rows.shape[0] = 7);
    WRONG_COMBINE("rows", out.rows.shape[1] = 8);
    WRONG_COMBINE("rows", out.rows.dtype = FERRY_INT32);
    WRONG_COMBINE("weights", how.weights = ferry_tensor_2d(floats, FERRY_FP32, 8, 3); how.weighted = 1);
    WRONG_COMBINE("weights", how.weights = ferry_tensor_2d(floats, FERRY_INT32, 8, 4); how.weighted = 1);
    WRONG_COMBINE("bias", how.bias[0] = ferry_tensor_2d(floats, FERRY_FP32, 8, 16));
    WRONG_COMBINE("bias", how.bias[0] = ferry_tensor_2d(floats, FERRY_BF16, 8, 8));
    WRONG_COMBINE("weights", in.weights = ferry_tensor_2d(floats, FERRY_FP32, 8, 4)); /* nowhere to bring them */
    WRONG_COMBINE("weights", (in.weights = ferry_tensor_2d(floats, FERRY_FP32, 8, 3),
                              out.weights = ferry_tensor_2d(floats, FERRY_FP32, 8, 4)));
    REFUSED(env, "", ferry_combine(NULL, &w->back, &w->out, NULL, NULL));
    REFUSED(env, "", ferry_combine(route, NULL, &w->out, NULL, NULL));
    REFUSED(env, "", ferry_combine(route, &w->back, NULL, NULL, NULL));
    REFUSED(env, "", ferry_combine_recv(route, &w->out, NULL));
    REFUSED(env, "", ferry_combine_buffer(route, FERRY_E4M3, 16, &view, NULL));
    REFUSED(env, "", ferry_combine_buffer(route, FERRY_BF16, 24, &view, NULL));
    REFUSED(env, "", ferry_combine_buffer(route, FERRY_BF16, 16, NULL, NULL));
    REFUSED(env, "", ferry_combine_buffer(NULL, FERRY_BF16, 16, &view, NULL));
    return true;
}

/* Weighted without weights anywhere; LATENCY combined before its first dispatch. */
static bool wrong_states(rank_env *env, world *w) {
    ferry_route *route;
    ferry_route_config cfg = w->route;
    ferry_combine_options weighted = FERRY_COMBINE_OPTIONS_INIT;
    weighted.weighted = 1;
    cfg.topk_weights.data = NULL;
    cfg.mode = FERRY_LATENCY;
    RANK_OK(env, ferry_route_create(w->g, &cfg, &route, NULL));
    REFUSED(env, "dispatch", ferry_combine(route, &w->back, &w->out, NULL, NULL));
    ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
    RANK_OK(env, ferry_dispatch(route, &w->in, &out, NULL, NULL));
    REFUSED(env, "weights", ferry_combine(route, &w->back, &w->out, &weighted, NULL));
    RANK_OK(env, ferry_combine(route, &w->back, &w->out, NULL, NULL));
    ferry_route_destroy(route);
    return true;
}

static bool wrong_handles(rank_env *env, world *w, ferry_route *route) {
    ferry_route_info info = FERRY_ROUTE_INFO_INIT;
    ferry_stream *stream;
    ferry_event *event;
    REFUSED(env, "", ferry_route_get_info(NULL, &info));
    REFUSED(env, "", ferry_route_get_info(route, NULL));
    info.magic = 1;
    REFUSED(env, "magic", ferry_route_get_info(route, &info));
    REFUSED(env, "", ferry_stream_create(NULL, &stream));
    REFUSED(env, "", ferry_stream_create(w->g, NULL));
    REFUSED(env, "", ferry_event_create(NULL, &event));
    REFUSED(env, "", ferry_event_create(w->g, NULL));
    REFUSED(env, "", ferry_event_record(NULL, NULL));
    REFUSED(env, "", ferry_event_sync(NULL));
    REFUSED(env, "", ferry_stream_call(NULL, NULL, NULL));
    REFUSED(env, "", ferry_barrier(NULL, NULL));
    REFUSED(env, "", ferry_fence(NULL));
    REFUSED(env, "", ferry_quiet(NULL));
    REFUSED(env, "", ferry_group_abort(NULL));
    REFUSED(env, "", ferry_group_error(NULL));
    RANK_CHECK(env, ferry_group_rank(NULL) == -1 && ferry_group_ranks(NULL) == -1);
    RANK_CHECK(env, ferry_group_local_experts(NULL, 0, NULL) == -1);
    RANK_CHECK(env, ferry_group_local_experts(w->g, 1, NULL) == -1 && ferry_group_local_experts(w->g, -1, NULL) == -1);
    ferry_group_destroy(NULL);
    ferry_route_destroy(NULL);
    ferry_stream_destroy(NULL);
    ferry_event_destroy(NULL);
    return true;
}

static bool calls_rank(rank_env *env) {
    world *w = ranks_new(env, sizeof *w);
    ferry_group_config cfg = ranks_config(4, 16, 8, 4);
    ferry_route *route;
    ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
    cfg.layouts = FERRY_LAYOUT_RANK | FERRY_LAYOUT_EXPERT;
    if (!ranks_group(env, &cfg, &w->g)) return false;
    fill_world(w);
    if (!wrong_routes(env, w)) return false;
    RANK_OK(env, ferry_route_create(w->g, &w->route, &route, NULL));
    if (!wrong_dispatches(env, w, route) || !wrong_combines(env, w, route)) return false;
    if (!wrong_handles(env, w, route) || !wrong_states(env, w)) return false;
    /* Nothing of all this had an effect. */
    ranks_step(env, "the right calls after all the wrong ones");
    RANK_OK(env, ferry_group_error(w->g));
    RANK_OK(env, ferry_dispatch(route, &w->in, &out, NULL, NULL));
    RANK_OK(env, ferry_combine(route, &w->back, &w->out, NULL, NULL));
    ferry_route_destroy(route);
    ferry_group_destroy(w->g);
    return true;
}

static void test_group_configs(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, 1, config_rank, NULL);
}

static void test_calls(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_THREADS, 1, calls_rank, NULL);
}

static void test_names_never_null(void **state) {
    (void)state;
    for (int s = -1; s <= 20; s++) assert_non_null(ferry_status_name((ferry_status)s));
    assert_string_equal(ferry_status_name(FERRY_TIMEOUT), "FERRY_TIMEOUT");
    assert_string_equal(ferry_status_name((ferry_status)77), "unknown status");
    assert_int_equal(ferry_dtype_bytes((ferry_dtype)77), 0);
    assert_int_equal(ferry_dtype_bytes(FERRY_UE8M0X4), 4);
    assert_non_null(ferry_last_error());
    size_t count = 0;
    const ferry_env_entry *table = ferry_env_table(&count);
    assert_true(count > 5 && table == ferry_env_table(NULL));
    for (size_t i = 0; i < count; i++) assert_true(table[i].name && table[i].fallback && table[i].meaning);
}

static void *read_error(void *into) {
    snprintf(into, 64, "%s", ferry_last_error());
    return NULL;
}

static void test_sentence_is_of_its_thread(void **state) {
    (void)state;
    pthread_t thread;
    char other[64] = "x";
    assert_int_equal(ferry_unique_id_create(NULL), FERRY_INVALID);
    assert_true(*ferry_last_error());
    assert_int_equal(pthread_create(&thread, NULL, read_error, other), 0);
    pthread_join(thread, NULL);
    assert_string_equal(other, "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group_configs),
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_names_never_null),
        cmocka_unit_test(test_sentence_is_of_its_thread),
    };
    setenv("FERRY_TOUCH_MB", "1", 0);
    if (ranks_device() == FERRY_CPU) setenv("FERRY_CUDA_LIBRARY", "/nowhere/libferry_cuda.so", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
