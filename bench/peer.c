#include "peer.h"
#include "options.h"
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUTE, DISPATCH, COMBINE, STEPS };
static const char *const step_name[STEPS] = {"route", "dispatch", "combine"};

void *peer_alloc(size_t bytes) {
    size_t whole = (bytes + 4095) / 4096 * 4096 + 4096;
    void *p = aligned_alloc(4096, whole);
    if (p) memset(p, 0, whole);
    return p;
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3")))
#endif
void peer_sum(uint16_t *out, const uint16_t *const *rows, int count, int hidden) {
    enum { BLOCK = 64 };
    for (int from = 0; from < hidden; from += BLOCK) {
        float sum[BLOCK] = {0};
        int n = hidden - from < BLOCK ? hidden - from : BLOCK;
        for (int r = 0; r < count; r++) {
            const uint16_t *row = rows[r] + from;
            for (int c = 0; c < n; c++) {
                uint32_t word = (uint32_t)row[c] << 16;
                float value;
                memcpy(&value, &word, 4);
                sum[c] += value;
            }
        }
        for (int c = 0; c < n; c++) {
            uint32_t word;
            memcpy(&word, &sum[c], 4);
            out[from + c] = (uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16);
        }
    }
}

static int home_of(const peer *p, int64_t expert) { /* as in ferry.h: r * E / R <= e < (r + 1) * E / R */
    for (int r = 0; r < p->ranks; r++)
        if (expert < (int64_t)(r + 1) * p->experts / p->ranks) return r;
    return p->ranks - 1;
}

/* The copies that `rank` sends, [tokens * topk] at most; rows to each rank in `sent`. */
static bool list_copies(const peer *p, int rank, int *first, peer_copy *copy, int *sent) {
    fe_draw draw = {(uint64_t)p->seed, p->ranks, p->experts, p->topk, p->tokens, p->skew};
    size_t cells = (size_t)p->tokens * (size_t)p->topk;
    int64_t *ids = malloc(cells * sizeof *ids);
    float *weights = malloc(cells * sizeof *weights);
    bool good = ids && weights && fe_draw_routes(&draw, rank, ids, weights) == 0;
    int n = 0;
    memset(sent, 0, (size_t)p->ranks * sizeof *sent);
    for (int t = 0; good && t < p->tokens; t++) {
        first[t] = n;
        for (int k = 0; k < p->topk; k++) {
            int64_t id = ids[(size_t)t * (size_t)p->topk + (size_t)k];
            int home = id < 0 ? -1 : home_of(p, id), i = first[t];
            while (i < n && copy[i].rank != home) i++;
            if (home >= 0 && i == n) copy[n++] = (peer_copy){home, sent[home]++};
        }
    }
    first[p->tokens] = n;
    free(ids);
    free(weights);
    return good;
}

static void starts_of(const int *rows, int *start, int n) {
    for (int i = 0, sum = 0; i < n; i++) {
        start[i] = sum;
        sum += rows[i];
    }
}

/* Who gets how much: counts by MPI_Alltoall, and the offsets back in the same way. Timed as "route". */
static void exchange_counts(peer *p) {
    starts_of(p->sent, p->sent_start, p->ranks);
    MPI_Alltoall(p->sent, 1, MPI_INT, p->received, 1, MPI_INT, MPI_COMM_WORLD);
    starts_of(p->received, p->received_start, p->ranks);
    MPI_Alltoall(p->received_start, 1, MPI_INT, p->begin, 1, MPI_INT, MPI_COMM_WORLD);
    p->received_rows = p->received_start[p->ranks - 1] + p->received[p->ranks - 1];
}

static bool open_peer(peer *p, const fe_draw_pool *pool) {
    size_t cells = (size_t)p->tokens * (size_t)p->topk;
    int *ints = calloc((size_t)p->ranks * 5, sizeof *ints);
    p->row_bytes = (size_t)p->hidden * 2;
    p->rows = peer_alloc((size_t)p->tokens * p->row_bytes);
    p->result = peer_alloc((size_t)p->tokens * p->row_bytes);
    p->first = malloc(((size_t)p->tokens + 1) * sizeof *p->first);
    p->copy = malloc(cells * sizeof *p->copy);
    p->sent = ints;
    if (!ints || !p->rows || !p->result || !p->first || !p->copy) return false;
    p->sent_start = ints + p->ranks;
    p->received = ints + 2 * p->ranks;
    p->received_start = ints + 3 * p->ranks;
    p->begin = ints + 4 * p->ranks;
    if (!list_copies(p, p->rank, p->first, p->copy, p->sent)) return false;
    exchange_counts(p);
    for (int t = 0; t < p->tokens; t++)
        fe_draw_row(pool, p->rank, t, (size_t)p->hidden, p->rows + (size_t)t * (size_t)p->hidden);
    return true;
}

static bool check_arrived(const peer *p, const fe_draw_pool *pool, const uint16_t *arrived, uint16_t *row) {
    size_t cells = (size_t)p->tokens * (size_t)p->topk;
    int *first = malloc(((size_t)p->tokens + 1) * sizeof *first), *sent = malloc((size_t)p->ranks * sizeof *sent);
    peer_copy *copy = malloc(cells * sizeof *copy);
    bool good = first && sent && copy;
    for (int source = 0; good && source < p->ranks; source++) {
        good = list_copies(p, source, first, copy, sent);
        for (int t = 0; good && t < p->tokens; t++) {
            for (int i = first[t]; i < first[t + 1]; i++) {
                if (copy[i].rank != p->rank) continue;
                size_t slot = (size_t)p->received_start[source] + (size_t)copy[i].at;
                fe_draw_row(pool, source, t, (size_t)p->hidden, row);
                good = good && memcmp(row, arrived + slot * (size_t)p->hidden, p->row_bytes) == 0;
            }
        }
    }
    free(first);
    free(sent);
    free(copy);
    return good;
}

/* Ranks ascending, as Ferry's contract has it: with two rows a sum has no order, with more the bits would differ. */
static bool check_sums(const peer *p, const fe_draw_pool *back, uint16_t *scratch) {
    size_t hidden = (size_t)p->hidden;
    for (int t = 0; t < p->tokens; t++) {
        const uint16_t *rows[64];
        int n = 0;
        for (int i = p->first[t]; i < p->first[t + 1]; i++, n++) {
            fe_draw_row(back, p->copy[i].rank, p->begin[p->copy[i].rank] + p->copy[i].at, hidden,
                        scratch + (size_t)n * hidden);
            rows[n] = scratch + (size_t)n * hidden;
        }
        peer_sum(scratch + (size_t)n * hidden, rows, n, p->hidden);
        if (memcmp(scratch + (size_t)n * hidden, p->result + (size_t)t * hidden, p->row_bytes) != 0) return false;
    }
    return true;
}

static const char *check(peer *p, const peer_program *program, const fe_draw_pool *pool, const fe_draw_pool *back) {
    uint16_t *scratch = malloc(((size_t)p->topk + 1) * p->row_bytes);
    int good[2] = {0, 0}, all[2];
    MPI_Barrier(MPI_COMM_WORLD);
    program->dispatch(p);
    if (scratch) good[0] = check_arrived(p, pool, program->arrived(p), scratch);
    MPI_Barrier(MPI_COMM_WORLD);
    program->combine(p);
    if (scratch) good[1] = check_sums(p, back, scratch);
    MPI_Allreduce(good, all, 2, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    free(scratch);
    return !all[0] ? "dispatch differs" : !all[1] ? "combine differs" : "ok";
}

static void measure(peer *p, const peer_program *program, double *us) {
    for (int step = 0; step < STEPS; step++) {
        for (int i = -p->warmup; i < p->iters; i++) {
            MPI_Barrier(MPI_COMM_WORLD);
            double start = MPI_Wtime();
            if (step == ROUTE) exchange_counts(p);
            if (step == DISPATCH) program->dispatch(p);
            if (step == COMBINE) program->combine(p);
            if (i >= 0) us[step * p->iters + i] = (MPI_Wtime() - start) * 1e6;
        }
    }
    MPI_Allreduce(MPI_IN_PLACE, us, STEPS * p->iters, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void add_step(cJSON *object, double *us, int iters, double bytes) {
    qsort(us, (size_t)iters, sizeof *us, ascending);
    double median = us[(int)ceil(0.5 * iters) - 1];
    cJSON_AddNumberToObject(object, "median_us", median);
    cJSON_AddNumberToObject(object, "min_us", us[0]);
    cJSON_AddNumberToObject(object, "p99_us", us[(int)ceil(0.99 * iters) - 1]);
    cJSON_AddNumberToObject(object, "bytes", bytes);
    cJSON_AddNumberToObject(object, "gbps", median > 0 ? bytes / median / 1e3 : 0);
}

static cJSON *make_json(const peer *p, const peer_program *program, double *us, const char *checked, double bytes) {
    char library[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    cJSON *object = cJSON_CreateObject(), *config = cJSON_AddObjectToObject(object, "config");
    MPI_Get_library_version(library, &length);
    library[strcspn(library, "\n,")] = 0;
    cJSON_AddStringToObject(config, "program", program->name);
    cJSON_AddStringToObject(config, "mpi", library);
    cJSON_AddNumberToObject(config, "ranks", p->ranks);
    cJSON_AddNumberToObject(config, "tokens", p->tokens);
    cJSON_AddNumberToObject(config, "hidden", p->hidden);
    cJSON_AddNumberToObject(config, "topk", p->topk);
    cJSON_AddNumberToObject(config, "experts", p->experts);
    cJSON_AddNumberToObject(config, "seed", p->seed);
    cJSON_AddNumberToObject(config, "skew", p->skew);
    cJSON_AddNumberToObject(config, "iters", p->iters);
    cJSON_AddStringToObject(config, "own", p->own ? "direct" : "mpi");
    cJSON_AddStringToObject(object, "check", checked);
    for (int step = 0; step < STEPS; step++)
        add_step(cJSON_AddObjectToObject(object, step_name[step]), us + step * p->iters, p->iters,
                 step == ROUTE ? 0 : bytes);
    return object;
}

static bool report(const cJSON *json, const peer *p, const peer_program *program) {
    char *text = cJSON_Print(json);
    bool to_stdout = p->json && strcmp(p->json, "-") == 0;
    FILE *file = to_stdout ? stdout : p->json ? fopen(p->json, "w") : NULL;
    bool good = !p->json || (file && text && fprintf(file, "%s\n", text) > 0);
    if (file && file != stdout) fclose(file);
    cJSON_free(text);
    for (int step = 0; step < STEPS && !to_stdout; step++) {
        const cJSON *s = cJSON_GetObjectItem(json, step_name[step]);
        printf("%s %-9s median %10.1f us  min %10.1f us  %7.2f GB/s\n", program->name, step_name[step],
               cJSON_GetObjectItem(s, "median_us")->valuedouble, cJSON_GetObjectItem(s, "min_us")->valuedouble,
               cJSON_GetObjectItem(s, "gbps")->valuedouble);
    }
    if (!good) fprintf(stderr, "%s: the JSON could not be written to %s\n", program->name, p->json);
    return good;
}

static bool run(peer *p, const peer_program *program, fe_draw_pool *pool, fe_draw_pool *back) {
    double bytes;
    double *us = calloc(STEPS * (size_t)p->iters, sizeof *us);
    fe_draw_pool_fill(pool, (uint64_t)p->seed, 0);
    fe_draw_pool_fill(back, ~(uint64_t)p->seed, 0);
    if (!us || !open_peer(p, pool) || !program->open(p)) {
        fprintf(stderr, "%s: rank %d has no memory for %d tokens of %d channels\n", program->name, p->rank, p->tokens,
                p->hidden);
        free(us);
        return false;
    }
    for (int slot = 0; slot < p->received_rows; slot++)
        fe_draw_row(back, p->rank, slot, (size_t)p->hidden, program->returned(p) + (size_t)slot * (size_t)p->hidden);
    const char *checked = p->check ? check(p, program, pool, back) : "not run";
    measure(p, program, us);
    if (p->check && strcmp(checked, "ok") == 0) checked = check(p, program, pool, back);
    bytes = (double)p->received_rows * (double)p->row_bytes;
    MPI_Allreduce(MPI_IN_PLACE, &bytes, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    bool good = !p->check || strcmp(checked, "ok") == 0;
    if (!good && p->rank == 0) fprintf(stderr, "%s: %s\n", program->name, checked);
    if (p->rank == 0) {
        cJSON *json = make_json(p, program, us, checked, bytes / p->ranks);
        good = report(json, p, program) && good;
        cJSON_Delete(json);
    }
    program->close(p);
    free(us);
    return good;
}

static fe_parsed parse(peer *p, const peer_program *program, int argc, char **argv) {
    const fe_option table[] = {
        {"tokens", FE_OPTION_INT, &p->tokens, "N", 1, 1 << 20, "tokens of each rank", NULL},
        {"hidden", FE_OPTION_INT, &p->hidden, "N", 16, FE_DRAW_ROW_MAX, "channels of a row", NULL},
        {"topk", FE_OPTION_INT, &p->topk, "N", 1, 64, "experts of each token", NULL},
        {"experts", FE_OPTION_INT, &p->experts, "N", 1, 1 << 16, "experts in all", NULL},
        {"seed", FE_OPTION_INT, &p->seed, "N", 0, 2147483647, "of routing and rows", NULL},
        {"skew", FE_OPTION_REAL, &p->skew, "ZIPF", 0, 10, "exponent of Zipf's law for the experts' popularity", NULL},
        {"iters", FE_OPTION_INT, &p->iters, "N", 1, 1000000, "steps that are timed", NULL},
        {"warmup", FE_OPTION_INT, &p->warmup, "N", 0, 1000000, "steps before them", NULL},
        {"own", FE_OPTION_CHOICE, &p->own, "mpi|direct", 0, 0,
         "a rank's rows to itself: through MPI, or copied straight", NULL},
        {"check", FE_OPTION_FLAG, &p->check, NULL, 0, 0, "compare what arrives and what is summed", NULL},
        {"json", FE_OPTION_TEXT, &p->json, "FILE", 0, 0, "write JSON to FILE, or to standard output for -", NULL},
    };
    const fe_usage usage = {program->name, program->summary, NULL};
    return fe_options_parse(&usage, table, sizeof table / sizeof *table, argc, argv);
}

int peer_main(int argc, char **argv, const peer_program *program) {
    static peer p = {.tokens = 4096, .hidden = 7168, .topk = 8, .experts = 256, .iters = 30, .warmup = 3};
    fe_draw_pool *pools = malloc(2 * sizeof *pools);
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &p.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &p.ranks);
    fe_options_program = "";
    fe_parsed parsed = parse(&p, program, argc, argv);
    int code = parsed == FE_PARSED_HELP ? 0 : 2;
    if (parsed == FE_PARSED_RUN) code = pools && run(&p, program, &pools[0], &pools[1]) ? 0 : 1;
    if (code == 1) MPI_Abort(MPI_COMM_WORLD, 1); /* the other ranks may be waiting for this one */
    free(p.rows);
    free(p.result);
    free(p.first);
    free(p.copy);
    free(p.sent);
    free(pools);
    MPI_Finalize();
    return code;
}
