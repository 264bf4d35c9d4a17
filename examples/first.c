/* first.c - a whole program: two ranks, as threads of one process, send tokens to four experts and sum what comes back.
 *
 *     cc -std=c11 first.c -o first $(pkg-config --cflags --libs ferry) -lpthread
 *
 * Expert e multiplies a row by e + 1. So the right answer is known: a token of value x, with choices a and b of weights
 * v and w, must come back as x * (v * (a + 1) + w * (b + 1)). */
#include <ferry/ferry.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

enum { RANKS = 2, EXPERTS = 4, TOKENS = 3, TOPK = 2, HIDDEN = 8 };

typedef struct rank {
    const ferry_unique_id *id;
    int rank;
    ferry_group *group;
    ferry_route *route;
    int32_t choice[TOKENS][TOPK];
    float weight[TOKENS][TOPK], x[TOKENS][HIDDEN], y[TOKENS][HIDDEN];
    bool good;
} rank;

/* Every call says how it went. The sentence of ferry_last_error() has rank, value and limit. */
#define TRY(call)                                                                                   \
    do {                                                                                            \
        ferry_status status_ = (call);                                                              \
        if (status_ != FERRY_OK) {                                                                  \
            fprintf(stderr, "%s: %s: %s\n", #call, ferry_status_name(status_), ferry_last_error()); \
            return false;                                                                           \
        }                                                                                           \
    } while (0)

static void draw_tokens(rank *r) {
    for (int t = 0; t < TOKENS; t++) {
        for (int c = 0; c < HIDDEN; c++) r->x[t][c] = (float)(10 * (r->rank + 1) + t);
        r->choice[t][0] = (r->rank + t) % EXPERTS;
        r->choice[t][1] = (r->rank + t + 2) % EXPERTS;
        r->weight[t][0] = 0.75f;
        r->weight[t][1] = 0.25f;
    }
}

static bool join(rank *r) {
    ferry_group_config cfg = FERRY_GROUP_CONFIG_INIT;
    cfg.experts = EXPERTS;
    cfg.hidden = HIDDEN;
    cfg.dtype = FERRY_FP32;
    cfg.max_tokens = TOKENS;
    cfg.max_topk = TOPK;
    cfg.threads = 1;
    TRY(ferry_group_create(r->id, r->rank, RANKS, &cfg, &r->group)); /* waits for the other rank */
    return true;
}

/* Received rows lie packed by local expert. What came from where is in out->source. */
static void run_experts(const rank *r, const ferry_route_info *info, const ferry_dispatch_out *out, float *y) {
    const int32_t *expert;
    const float *x = out->rows.data;
    const int32_t *source = out->source.data;
    int experts = ferry_group_local_experts(r->group, r->rank, &expert);
    for (int i = 0; i < experts; i++) {
        for (int64_t row = info->expert_start[i]; row < info->expert_start[i] + info->expert_rows[i]; row++) {
            printf("rank %d: row %d is token %d of rank %d, for expert %d\n", r->rank, (int)row, source[row] % TOKENS,
                   source[row] / TOKENS, expert[i]);
            for (int c = 0; c < HIDDEN; c++) y[row * HIDDEN + c] = x[row * HIDDEN + c] * (float)(expert[i] + 1);
        }
    }
}

static bool carry(rank *r) {
    ferry_route_config cfg = FERRY_ROUTE_CONFIG_INIT;
    cfg.topk_idx = ferry_tensor_2d(r->choice, FERRY_INT32, TOKENS, TOPK);
    cfg.topk_weights = ferry_tensor_2d(r->weight, FERRY_FP32, TOKENS, TOPK);
    cfg.layout = FERRY_LAYOUT_EXPERT;
    TRY(ferry_route_create(r->group, &cfg, &r->route, NULL)); /* counts are exchanged here */
    ferry_route_info info = FERRY_ROUTE_INFO_INIT;
    TRY(ferry_route_get_info(r->route, &info));

    ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
    ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT; /* no memory given: views of the library's buffers */
    in.rows = ferry_tensor_2d(r->x, FERRY_FP32, TOKENS, HIDDEN);
    TRY(ferry_dispatch(r->route, &in, &out, NULL, NULL));

    ferry_combine_in back = FERRY_COMBINE_IN_INIT; /* the experts write where the combine reads */
    TRY(ferry_combine_buffer(r->route, FERRY_FP32, HIDDEN, &back.rows, NULL));
    for (int turn = 0; turn < RANKS; turn++) { /* one rank after the other, so that the lines stay in order */
        if (turn == r->rank) run_experts(r, &info, &out, back.rows.data);
        TRY(ferry_barrier(r->group, NULL));
    }

    ferry_combine_out result = FERRY_COMBINE_OUT_INIT;
    ferry_combine_options weighted = FERRY_COMBINE_OPTIONS_INIT;
    result.rows = ferry_tensor_2d(r->y, FERRY_FP32, TOKENS, HIDDEN);
    weighted.weighted = 1; /* with the route's weights */
    TRY(ferry_combine(r->route, &back, &result, &weighted, NULL));
    return true;
}

/* All numbers here are multiples of a quarter: float32 has them exactly, so equal means equal. */
static bool check(const rank *r) {
    bool good = true;
    for (int t = 0; t < TOKENS; t++) {
        float factor = 0;
        for (int k = 0; k < TOPK; k++) factor += r->weight[t][k] * (float)(r->choice[t][k] + 1);
        bool right = true;
        for (int c = 0; c < HIDDEN; c++) right = right && r->y[t][c] == r->x[t][c] * factor;
        printf("rank %d: token %d was %g, came back as %g: %s\n", r->rank, t, (double)r->x[t][0], (double)r->y[t][0],
               right ? "right" : "WRONG");
        good = good && right;
    }
    return good;
}

static void *run_rank(void *argument) {
    rank *r = argument;
    draw_tokens(r);
    r->good = join(r) && carry(r);
    if (!r->good && r->group) ferry_group_abort(r->group); /* else the other rank would wait until its deadline */
    ferry_route_destroy(r->route);
    ferry_group_destroy(r->group);
    return NULL;
}

int main(void) {
    static rank ranks[RANKS];
    pthread_t thread[RANKS];
    ferry_unique_id id;
    if (ferry_unique_id_create(&id) != FERRY_OK) {
        fprintf(stderr, "ferry_unique_id_create: %s\n", ferry_last_error());
        return 1;
    }
    for (int r = 0; r < RANKS; r++) {
        ranks[r].id = &id;
        ranks[r].rank = r;
        if (pthread_create(&thread[r], NULL, run_rank, &ranks[r]) != 0) {
            fprintf(stderr, "pthread_create failed\n");
            return 1;
        }
    }
    for (int r = 0; r < RANKS; r++) pthread_join(thread[r], NULL);
    bool good = true;
    for (int r = 0; r < RANKS; r++) good = good && ranks[r].good && check(&ranks[r]);
    return good ? 0 : 1;
}
