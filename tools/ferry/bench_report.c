/* A bench's numbers: step times over all ranks, bytes, floors; as a table and as JSON. */
#include "bench.h"
#include "hardware.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

typedef struct stats {
    double median, min, p99;
} stats;

typedef struct floor_of {
    double us; /* 0: none */
    const char *kernel;
} floor_of;

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double fe_bench_quantile(double *value, int n, double q) {
    qsort(value, (size_t)n, sizeof *value, ascending);
    int at = (int)ceil(q * n) - 1;
    return value[at < 0 ? 0 : at];
}

/* A step takes as long as its slowest rank. */
static stats collect(const fe_bench *b, fe_measure m) {
    int iters = b->o.iters;
    double *slowest = calloc((size_t)iters, sizeof *slowest);
    if (!slowest) return (stats){0};
    for (int r = 0; r < b->o.ranks; r++) {
        const double *us = b->shared->us + ((size_t)m * (size_t)b->o.ranks + (size_t)r) * (size_t)iters;
        for (int i = 0; i < iters; i++) slowest[i] = fmax(slowest[i], us[i]);
    }
    stats s = {.median = fe_bench_quantile(slowest, iters, 0.5), .min = slowest[0]};
    s.p99 = fe_bench_quantile(slowest, iters, 0.99);
    free(slowest);
    return s;
}

typedef struct gpu_bytes { /* that a GPU cannot do without */
    double memory;         /* read and written in its own */
    double out, in;        /* over its links */
} gpu_bytes;

/* The first rank on this one's GPU stands for it. */
static int gpu_of(const fe_bench *b, int rank) {
    int first = 0;
    while (b->shared->card[first] != b->shared->card[rank]) first++;
    return first;
}

static int count_gpus(const fe_bench *b) {
    int count = 0;
    for (int r = 0; r < b->o.ranks; r++) count += gpu_of(b, r) == r;
    return count;
}

/* Each row read once and each copy written once: dispatch writes to other GPUs, combine reads from them. */
static gpu_bytes count_gpu(const fe_bench *b, fe_measure m, int gpu) {
    gpu_bytes n = {0};
    bool there = m == FE_M_DISPATCH || m == FE_M_ROUND, back = m == FE_M_COMBINE || m == FE_M_ROUND;
    double sent = (double)(b->row_bytes + b->scale_bytes), returned = (double)b->back_bytes;
    for (int to = 0; to < b->o.ranks; to++) {
        const oracle_rank *rank = oracle_rank_of(b->plan, to);
        bool here = gpu_of(b, to) == gpu;
        if (here && there) n.memory += (double)b->tokens[to].tokens * (double)(b->in_bytes + b->in_scale_bytes);
        if (here && back) n.memory += (double)b->tokens[to].tokens * returned;
        for (int from = 0; from < b->o.ranks; from++) {
            double rows = rank->source_rows[from], crossing = gpu_of(b, from) != gpu_of(b, to) ? rows : 0;
            if (here) n.memory += rows * ((there ? sent : 0) + (back ? returned : 0));
            if (here) n.in += there ? crossing * sent : 0;
            if (here) n.out += back ? crossing * returned : 0;
            if (gpu_of(b, from) == gpu) n.out += there ? crossing * sent : 0;
            if (gpu_of(b, from) == gpu) n.in += back ? crossing * returned : 0;
        }
    }
    return n;
}

/* Of the busiest GPU: what its memory and its links take at the rates of plain copies, whichever takes longer. */
static floor_of gpu_floor(const fe_bench *b, fe_measure m) {
    floor_of most = {0, NULL};
    if (m != FE_M_DISPATCH && m != FE_M_COMBINE && m != FE_M_ROUND) return most;
    for (int gpu = 0; gpu < b->o.ranks; gpu++) {
        if (gpu_of(b, gpu) != gpu) continue;
        gpu_bytes n = count_gpu(b, m, gpu);
        double memory = b->shared->copy_rate > 0 ? n.memory / b->shared->copy_rate * 1e6 : 0;
        double link = b->shared->link_rate > 0 ? fmax(n.out, n.in) / b->shared->link_rate * 1e6 : 0;
        if (memory > most.us) most = (floor_of){memory, "device copy"};
        if (link > most.us) most = (floor_of){link, "link copy"};
    }
    return most;
}

static floor_of find_floor(const fe_bench *b, fe_measure m) {
    static const struct {
        fe_measure measure;
        const char *name;
    } copies[] = {{FE_M_FLOOR_MEMCPY, "memcpy"}, {FE_M_FLOOR_COPY, "copy"}, {FE_M_FLOOR_STREAM, "stream"}};
    floor_of best = {0, NULL};
    if (b->gpu) return gpu_floor(b, m);
    if (m == FE_M_COMBINE) return (floor_of){collect(b, FE_M_FLOOR_SUM).median, b->weighted ? "weighted sum" : "sum"};
    if (m != FE_M_DISPATCH) return best;
    for (size_t i = 0; i < sizeof copies / sizeof *copies; i++) {
        double us = collect(b, copies[i].measure).median;
        if (!best.kernel || us < best.us) best = (floor_of){us, copies[i].name};
    }
    return best;
}

/* Bytes a rank receives, on average over the ranks. */
static double bytes_of(const fe_bench *b, fe_measure m) {
    double rows = (double)b->copies / b->o.ranks;
    double there = rows * (double)(b->row_bytes + b->scale_bytes), back = rows * (double)b->back_bytes;
    if (m == FE_M_DISPATCH) return there;
    if (m == FE_M_COMBINE) return back;
    return m == FE_M_ROUND ? there + back : 0;
}

static const struct {
    fe_measure measure;
    const char *name;
} lines[] = {{FE_M_ROUTE, "route"},
             {FE_M_DISPATCH, "dispatch"},
             {FE_M_COMBINE, "combine"},
             {FE_M_ROUND, "round"},
             {FE_M_BARRIER, "barrier"}};
enum { LINES = sizeof lines / sizeof *lines };

static const char *layout_name(const fe_bench *b) {
    return b->layout == FERRY_LAYOUT_RANK ? "rank" : b->layout == FERRY_LAYOUT_EXPERT ? "expert" : "slots";
}

static const char *check_text(const fe_bench *b) {
    if (!b->o.check) return "not run";
    for (int r = 0; r < b->o.ranks; r++)
        if (b->shared->check[r][0]) return b->shared->check[r];
    return "ok";
}

/* What a rank works with. */
static const char *power_text(const fe_bench *b, char *text, size_t size) {
    if (!b->gpu)
        snprintf(text, size, "%d thread%s each, %s row kernels", b->threads, b->threads == 1 ? "" : "s",
                 b->kernels->name);
    else if (b->o.sms)
        snprintf(text, size, "%d SMs each on CUDA, %d steps a sample", b->o.sms, b->o.batch);
    else
        snprintf(text, size, "a GPU's share of SMs each on CUDA, %d steps a sample", b->o.batch);
    return text;
}

static const char *ranks_as(const fe_bench *b) {
    return b->launched ? "launched processes" : b->processes ? "processes" : "threads";
}

typedef struct wire { /* averages over all tokens of all ranks */
    double bytes, rows, overhead;
} wire;

/* Rows that cross: one for each other host where a token has a place. */
static wire count_wire(const fe_bench *b) {
    wire w = {0};
    double tokens = 0;
    int each = b->o.ranks / b->hosts;
    for (int r = 0; r < b->o.ranks; r++) {
        tokens += b->tokens[r].tokens;
        w.bytes += b->shared->wire_bytes[r];
        for (int t = 0; t < b->tokens[r].tokens; t++) {
            bool there[FE_RANKS_MAX] = {false};
            for (int k = 0; k < b->o.topk; k++) {
                int64_t slot = 0;
                int rank = oracle_place(b->plan, r, t, k, &slot);
                if (rank < 0 || rank / each == r / each || there[rank / each]) continue;
                there[rank / each] = true;
                w.rows++;
            }
        }
    }
    w.bytes /= tokens;
    w.rows /= tokens;
    w.overhead = w.bytes / (w.rows * (double)(b->row_bytes + b->scale_bytes)) - 1;
    return w;
}

/* What the wire alone takes of a step, as a share of its time. */
static double of_wire(const fe_bench *b, fe_measure m) {
    double rows = count_wire(b).rows * b->max_tokens;
    double bytes = rows * (double)(m == FE_M_DISPATCH ? b->row_bytes + b->scale_bytes : b->back_bytes);
    return bytes / b->shared->wire_rate * 1e6 / collect(b, m).median;
}

static void print_wire(const fe_bench *b) {
    wire w = count_wire(b);
    printf("\n%d hosts of %d ranks: %.0f bytes on the wire for each token, %.3f rows of %zu and %.1f%% beside them",
           b->hosts, b->o.ranks / b->hosts, w.bytes, w.rows, b->row_bytes + b->scale_bytes, 100 * w.overhead);
    if (b->shared->wire_rate > 0)
        printf("\nbare writes of 1 MiB: %.2f GB/s out of each rank; dispatch reaches %.0f%% of them, combine %.0f%%",
               b->shared->wire_rate / 1e9, 100 * of_wire(b, FE_M_DISPATCH), 100 * of_wire(b, FE_M_COMBINE));
}

void fe_bench_print(const fe_bench *b) {
    char power[80];
    printf("%d ranks as %s, %s, %s, %s; %d tokens a rank, hidden %d, top-%d of %d "
           "experts, %s%s\n\n",
           b->o.ranks, ranks_as(b), power_text(b, power, sizeof power),
           b->mode == FERRY_LATENCY ? "LATENCY" : "THROUGHPUT", layout_name(b), b->max_tokens, b->o.hidden, b->o.topk,
           b->o.experts, b->fp8 ? "fp8" : "bf16", b->o.cast ? " cast on the way" : "");
    printf("%-10s %11s %11s %11s %10s %10s %11s %9s\n", "", "median us", "min us", "p99 us", "MB/rank", "GB/s/rank",
           "floor us", "of floor");
    for (int i = 0; i < LINES; i++) {
        stats s = collect(b, lines[i].measure);
        floor_of floor = find_floor(b, lines[i].measure);
        double bytes = bytes_of(b, lines[i].measure);
        printf("%-10s %11.1f %11.1f %11.1f", lines[i].name, s.median, s.min, s.p99);
        if (bytes > 0) printf(" %10.2f %10.2f", bytes / 1e6, bytes / s.median / 1e3);
        if (floor.us > 0) printf(" %11.1f %8.0f%%  (%s)", floor.us, 100 * floor.us / s.median, floor.kernel);
        putchar('\n');
    }
    if (b->shared->copy_rate > 0) printf("\ndevice copy %.0f GB/s read and written", b->shared->copy_rate / 1e9);
    if (b->shared->link_rate > 0)
        printf("\nlink copy %.0f GB/s out of each of %d GPUs, and as much into it", b->shared->link_rate / 1e9,
               count_gpus(b));
    if (b->hosts > 1) print_wire(b);
    if (b->shared->flag_rtt_us > 0) printf("\nflag round trip %.2f us", b->shared->flag_rtt_us);
    fe_bench_print_counted(b);
    printf("\ncheck: %s\n", check_text(b));
}

static void add_config(cJSON *config, const fe_bench *b) {
    cJSON_AddNumberToObject(config, "ranks", b->o.ranks);
    cJSON_AddNumberToObject(config, "hosts", b->hosts);
    cJSON_AddStringToObject(config, "ranks_as", b->launched ? "launched" : b->processes ? "processes" : "threads");
    cJSON_AddStringToObject(config, "device", b->gpu ? "cuda" : "cpu");
    if (b->gpu) cJSON_AddNumberToObject(config, "sms", b->o.sms);
    if (b->gpu) cJSON_AddNumberToObject(config, "batch", b->o.batch);
    if (b->gpu) cJSON_AddBoolToObject(config, "graph", b->o.graph);
    cJSON_AddNumberToObject(config, "threads", b->threads);
    cJSON_AddNumberToObject(config, "tokens", b->max_tokens);
    cJSON_AddNumberToObject(config, "hidden", b->o.hidden);
    cJSON_AddNumberToObject(config, "topk", b->o.topk);
    cJSON_AddNumberToObject(config, "experts", b->o.experts);
    cJSON_AddStringToObject(config, "layout", layout_name(b));
    cJSON_AddStringToObject(config, "mode", b->mode == FERRY_LATENCY ? "latency" : "throughput");
    cJSON_AddStringToObject(config, "dtype", b->fp8 ? "fp8" : "bf16");
    cJSON_AddBoolToObject(config, "cast", b->o.cast);
    cJSON_AddBoolToObject(config, "weighted", b->weighted);
    cJSON_AddBoolToObject(config, "zero_copy", b->zero_copy);
    cJSON_AddBoolToObject(config, "deliver_topk", b->o.deliver_topk);
    cJSON_AddNumberToObject(config, "iters", b->o.iters);
    cJSON_AddNumberToObject(config, "warmup", b->o.warmup);
    cJSON_AddNumberToObject(config, "seed", b->o.seed);
    cJSON_AddNumberToObject(config, "skew", b->o.skew);
    if (!b->o.routes) return;
    cJSON_AddStringToObject(config, "routes", b->o.routes);
    cJSON_AddNumberToObject(config, "layer", b->o.layer);
}

static void add_origin(cJSON *config, int argc, char **argv) {
    char version[32], date[32];
    int v = ferry_version();
    time_t now = time(NULL);
    struct tm utc;
    snprintf(version, sizeof version, "%d.%d.%d", v / 10000, v / 100 % 100, v % 100);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    cJSON_AddStringToObject(config, "version", version);
    cJSON_AddStringToObject(config, "date", date);
    cJSON *command = cJSON_AddArrayToObject(config, "command");
    cJSON_AddItemToArray(command, cJSON_CreateString("ferry"));
    for (int i = 0; i < argc; i++) cJSON_AddItemToArray(command, cJSON_CreateString(argv[i]));
    cJSON_AddItemToObject(config, "hardware", fe_hardware_json());
}

/* To the nanosecond. */
static void add_number(cJSON *object, const char *name, double value) {
    cJSON_AddNumberToObject(object, name, round(value * 1000) / 1000);
}

static void add_line(cJSON *object, const fe_bench *b, int i) {
    stats s = collect(b, lines[i].measure);
    floor_of floor = find_floor(b, lines[i].measure);
    double bytes = bytes_of(b, lines[i].measure);
    add_number(object, "median_us", s.median);
    add_number(object, "min_us", s.min);
    add_number(object, "p99_us", s.p99);
    if (bytes > 0 || floor.kernel) {
        cJSON_AddNumberToObject(object, "bytes", round(bytes));
        add_number(object, "gbps", s.median > 0 ? bytes / s.median / 1e3 : 0);
    }
    if (!floor.kernel) return;
    add_number(object, "floor_us", floor.us);
    add_number(object, "of_floor", s.median > 0 ? floor.us / s.median : 0);
    cJSON_AddStringToObject(object, "floor_kernel", floor.kernel);
}

cJSON *fe_bench_json(const fe_bench *b, int argc, char **argv) {
    cJSON *object = cJSON_CreateObject(), *config = cJSON_AddObjectToObject(object, "config");
    add_config(config, b);
    add_origin(config, argc, argv);
    cJSON_AddStringToObject(object, "check", check_text(b));
    for (int i = 0; i < LINES; i++) add_line(cJSON_AddObjectToObject(object, lines[i].name), b, i);
    if (b->shared->copy_rate > 0) add_number(object, "copy_gbps", b->shared->copy_rate / 1e9);
    if (b->shared->link_rate > 0) add_number(object, "link_gbps", b->shared->link_rate / 1e9);
    if (b->gpu) cJSON_AddNumberToObject(object, "gpus", count_gpus(b));
    if (b->hosts > 1) {
        cJSON *far = cJSON_AddObjectToObject(object, "far");
        wire w = count_wire(b);
        add_number(far, "wire_bytes_per_token", w.bytes);
        add_number(far, "wire_rows_per_token", w.rows);
        if (b->shared->wire_rate > 0) {
            add_number(far, "wire_gbps", b->shared->wire_rate / 1e9);
            add_number(far, "dispatch_of_wire", of_wire(b, FE_M_DISPATCH));
            add_number(far, "combine_of_wire", of_wire(b, FE_M_COMBINE));
        }
    }
    if (b->shared->flag_rtt_us > 0) add_number(object, "flag_rtt_us", b->shared->flag_rtt_us);
    if (b->shared->counted[0].told) cJSON_AddItemToObject(object, "counters", fe_bench_json_counted(b));
    return object;
}
