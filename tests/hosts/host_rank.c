/* One rank of tests/hosts/run, in a process of its own: steps, each compared with the oracle, until there have been enough or until the
 * others are out of reach.
 *
 *   host_rank RANK RANKS HOSTS ID-FILE STEPS [late|lost|callback]
 *
 * Rank 0 makes the unique id and leaves it in ID-FILE. `late`: the steps are to end in FERRY_TIMEOUT, whose sentence must name a rank of
 * another host; nothing else is success. `lost`: the same, since host 1 is killed; then those who are left agree at an id in ID-FILE.again, and
 * do ten steps more. `callback`: the group meets by a callback of the caller's, which knows of no address. */
#include "base/num.h"
#include "oracle/oracle.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { TOKENS = 96, HIDDEN = 1024, EXPERTS = 16, TOPK = 4, RANKS_MOST = 16 };

typedef struct world {
    int rank, ranks, hosts;
    int64_t *idx[RANKS_MOST];
    uint8_t *rows[RANKS_MOST];
    oracle *plan;
    uint8_t *expected; /* [TOKENS][HIDDEN] bf16 */
} world;

static uint64_t draw(uint64_t n) { /* splitmix64, Steele, Lea and Flood 2014 */
    n += 0x9e3779b97f4a7c15u;
    n = (n ^ (n >> 30)) * 0xbf58476d1ce4e5b9u;
    n = (n ^ (n >> 27)) * 0x94d049bb133111ebu;
    return n ^ (n >> 31);
}

/* What an expert returns is what it was given. */
static void give_back(void *context, int rank, int64_t slot, uint8_t *data) {
    const world *w = context;
    const oracle_rank *there = oracle_rank_of(w->plan, rank);
    for (int64_t i = 0; i < there->received; i++)
        if (there->row[i].slot == slot) {
            memcpy(data, w->rows[there->row[i].source] + (size_t)there->row[i].token * HIDDEN * 2, HIDDEN * 2);
            return;
        }
}

static bool draw_all(world *w) {
    for (int r = 0; r < w->ranks; r++) {
        w->idx[r] = malloc(sizeof(int64_t) * TOKENS * TOPK);
        w->rows[r] = malloc((size_t)TOKENS * HIDDEN * 2);
        if (!w->idx[r] || !w->rows[r]) return false;
        for (uint64_t i = 0; i < TOKENS * TOPK; i++) w->idx[r][i] = (int64_t)(draw(i * 64 + (uint64_t)r) % EXPERTS);
        for (uint64_t i = 0; i < (uint64_t)TOKENS * HIDDEN; i++) {
            uint16_t x = fe_bf16_from_f32((float)(draw(i * 64 + 32 + (uint64_t)r) % 2001) / 1000.0f - 1.0f);
            memcpy(w->rows[r] + i * 2, &x, 2);
        }
    }
    w->expected = malloc((size_t)TOKENS * HIDDEN * 2);
    return w->expected != NULL;
}

/* What must come of a step: of all, or without the masked. */
static bool plan(world *w, const uint8_t masked[RANKS_MOST]) {
    oracle_tokens tokens[RANKS_MOST];
    for (int r = 0; r < w->ranks; r++)
        tokens[r] = (oracle_tokens){.tokens = masked[r] ? 0 : TOKENS, .topk_idx = w->idx[r], .rows = w->rows[r]};
    oracle_config config = {.ranks = w->ranks,
                            .experts = EXPERTS,
                            .topk = TOPK,
                            .max_tokens = TOKENS,
                            .layout = FERRY_LAYOUT_RANK,
                            .columns = HIDDEN,
                            .dtype = FERRY_BF16,
                            .hosts = w->hosts,
                            .masked = masked};
    oracle_free(w->plan);
    w->plan = oracle_new(&config, tokens);
    void *scratch = malloc(HIDDEN * 12);
    if (!w->plan || !scratch) return false;
    oracle_combine combine = {
        .columns = HIDDEN, .in_type = FERRY_BF16, .out_type = FERRY_BF16, .row = give_back, .context = w};
    for (int t = 0; t < TOKENS; t++)
        oracle_combine_token(w->plan, &combine, w->rank, t, w->expected + (size_t)t * HIDDEN * 2, NULL, scratch);
    free(scratch);
    return true;
}

static bool meet(const world *w, const char *file, ferry_unique_id *id) {
    char temporary[1024];
    if (strlen(file) + 5 > sizeof temporary) return false;
    memcpy(temporary, file, strlen(file) + 1);
    strcat(temporary, ".new");
    if (w->rank == 0) {
        if (ferry_unique_id_create(id) != FERRY_OK) return false;
        FILE *f = fopen(temporary, "w");
        if (!f) return false;
        bool whole = fwrite(id->bytes, sizeof id->bytes, 1, f) == 1;
        return fclose(f) == 0 && whole && rename(temporary, file) == 0;
    }
    for (int i = 0; i < 100; i++) {
        FILE *f = fopen(file, "r");
        bool whole = f && fread(id->bytes, sizeof id->bytes, 1, f) == 1;
        if (f) fclose(f);
        if (whole) return true;
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    return false;
}

static ferry_status step(const world *w, ferry_group *g, uint8_t *sum) {
    ferry_route_config cfg = FERRY_ROUTE_CONFIG_INIT;
    ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
    ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
    ferry_combine_in back = FERRY_COMBINE_IN_INIT;
    ferry_combine_out result = FERRY_COMBINE_OUT_INIT;
    ferry_route *route = NULL;
    cfg.topk_idx = ferry_tensor_2d(w->idx[w->rank], FERRY_INT64, TOKENS, TOPK);
    cfg.layout = FERRY_LAYOUT_RANK;
    in.rows = ferry_tensor_2d(w->rows[w->rank], FERRY_BF16, TOKENS, HIDDEN);
    result.rows = ferry_tensor_2d(sum, FERRY_BF16, TOKENS, HIDDEN);
    ferry_status status = ferry_route_create(g, &cfg, &route, NULL);
    if (status == FERRY_OK) status = ferry_dispatch(route, &in, &out, NULL, NULL);
    back.rows = out.rows;
    if (status == FERRY_OK) status = ferry_combine(route, &back, &result, NULL, NULL);
    ferry_route_destroy(route);
    return status;
}

/* The sentence must name a rank of another host: late itself, or one that a neighbour waits for, or has failed for want of. */
static bool names_far(const world *w, const char *sentence) {
    int each = w->ranks / w->hosts;
    for (int r = 0; r < w->ranks; r++) {
        char late[64], awaited[64];
        snprintf(late, sizeof late, "rank %d (on another host", r);
        snprintf(awaited, sizeof awaited, " rank %d on another host", r);
        if (r / each != w->rank / each && (strstr(sentence, late) || strstr(sentence, awaited))) return true;
    }
    return false;
}

static int run(const world *w, ferry_group *g, int steps, bool late) {
    uint8_t *sum = malloc((size_t)TOKENS * HIDDEN * 2);
    ferry_status status = sum ? FERRY_OK : FERRY_NOMEM;
    int done = 0;
    for (; status == FERRY_OK && done < steps; done++) {
        memset(sum, 0, (size_t)TOKENS * HIDDEN * 2);
        status = step(w, g, sum);
        if (status != FERRY_OK) break;
        const char *difference = oracle_difference(w->expected, sum, (size_t)TOKENS * HIDDEN * 2);
        if (!*difference) continue;
        printf("rank %d: step %d: %s\n", w->rank, done, difference);
        status = FERRY_MISMATCH;
    }
    bool called =
        status == FERRY_ABORTED && strstr(ferry_last_error(), "asks for an agreement"); /* a neighbour was first */
    bool good = late ? (status == FERRY_TIMEOUT && names_far(w, ferry_last_error())) || called : status == FERRY_OK;
    printf("rank %d: %d steps, %s%s%s%s\n", w->rank, done, ferry_status_name(status), status ? ": " : "",
           status ? ferry_last_error() : "", good ? "" : "  <- NOT WHAT WAS WANTED");
    free(sum);
    return good ? 0 : 1;
}

/* Without host 1, which is no more. */
static int go_on(world *w, ferry_group *g, const char *file) {
    uint8_t masked[RANKS_MOST], wanted[RANKS_MOST] = {0};
    char again[1024];
    ferry_unique_id id;
    for (int r = 0; r < w->ranks; r++) wanted[r] = r / (w->ranks / w->hosts) == 1;
    snprintf(again, sizeof again, "%s.again", file);
    ferry_status status = meet(w, again, &id) ? ferry_group_agree(g, &id, masked) : FERRY_SYSTEM;
    if (status != FERRY_OK || memcmp(masked, wanted, (size_t)w->ranks) != 0 || !plan(w, wanted)) {
        printf("rank %d: no agreement: %s\n", w->rank, status ? ferry_last_error() : "another mask");
        return 1;
    }
    return run(w, g, 10, false);
}

/* By the allgather of a group that was made before, as an engine's own would be. */
static int gather_by_group(void *context, const void *mine, void *all, size_t bytes) {
    return ferry_allgather(context, mine, all, bytes, NULL) == FERRY_OK ? 0 : 1;
}

static ferry_status create(const world *w, const ferry_unique_id *id, const char *mode, const ferry_group_config *cfg,
                           ferry_group **g) {
    if (strcmp(mode, "callback") != 0) return ferry_group_create(id, w->rank, w->ranks, cfg, g);
    ferry_group *first;
    ferry_status status = ferry_group_create(id, w->rank, w->ranks, cfg, &first);
    if (status != FERRY_OK) return status;
    status = ferry_group_create_with(gather_by_group, first, w->rank, w->ranks, cfg, g);
    ferry_group_destroy(first);
    return status;
}

/* For those who are to disturb the steps. */
static void tell_begun(const char *file) {
    char begun[1024];
    snprintf(begun, sizeof begun, "%s.begun", file);
    FILE *f = fopen(begun, "w");
    if (f) fclose(f);
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    world w = {.rank = atoi(argv[1]), .ranks = atoi(argv[2]), .hosts = atoi(argv[3])};
    ferry_group_config cfg = FERRY_GROUP_CONFIG_INIT;
    ferry_unique_id id;
    ferry_group *g = NULL;
    cfg.experts = EXPERTS;
    cfg.hidden = HIDDEN;
    cfg.max_tokens = TOKENS;
    cfg.max_topk = TOPK;
    cfg.threads = 1;
    static const uint8_t nobody[RANKS_MOST];
    const char *mode = argc > 6 ? argv[6] : "";
    if (w.ranks > RANKS_MOST || !draw_all(&w) || !plan(&w, nobody)) return 2;
    if (!meet(&w, argv[4], &id) || create(&w, &id, mode, &cfg, &g) != FERRY_OK) {
        printf("rank %d: no group: %s\n", w.rank, ferry_last_error());
        return 1;
    }
    if (w.rank == 0) tell_begun(argv[4]);
    int code = run(&w, g, atoi(argv[5]), strcmp(mode, "late") == 0 || strcmp(mode, "lost") == 0);
    if (code == 0 && strcmp(mode, "lost") == 0) code = go_on(&w, g, argv[4]);
    fflush(stdout);
    ferry_group_destroy(g);
    return code;
}
