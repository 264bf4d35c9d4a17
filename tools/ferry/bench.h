/* ferry bench, inside: bench.c reads the options, bench_plan.c makes the inputs, bench_lane.c runs a rank, bench_floor.c the
 * plain copies and sums it is compared with, bench_far.c what crosses between hosts, bench_gpu.c has what is different on a GPU, bench_check.c compares with the oracle, bench_count.c reads the counters,
 * bench_report.c prints. */
#ifndef FERRY_TOOL_BENCH_H
#define FERRY_TOOL_BENCH_H

#include "cpu/pool.h"
#include "cpu/rows.h"
#include "draw.h"
#include "oracle/oracle.h"
#include "ranks.h"
#include <cjson/cJSON.h>

typedef enum fe_measure {
    FE_M_ROUTE,
    FE_M_DISPATCH,
    FE_M_COMBINE,
    FE_M_ROUND,        /* dispatch and combine in one */
    FE_M_BARRIER,      /* a flag from every rank to every rank, and nothing else */
    FE_M_FLOOR_MEMCPY, /* three ways to copy, the best of which is dispatch's floor. On a GPU none of the floors is run */
    FE_M_FLOOR_COPY,
    FE_M_FLOOR_STREAM,
    FE_M_FLOOR_SUM,
    FE_M_COUNT
} fe_measure;

enum { FE_BENCH_BLOCKS = 5, FE_BENCH_SAY = 256 };

typedef struct fe_bench_options {
    int ranks, tokens, hidden, topk, experts, threads, iters, warmup, seed, layer, timeout_s, deadline_s;
    int layout, mode, dtype, ranks_as, weighted, zero_copy, device; /* places in the words of the option table */
    int sms, batch;
    double skew;
    bool cast, check, deliver_topk, graph;
    bool model;
    int groups;
    double within;
    const char *routes, *json, *topology, *against;
} fe_bench_options;

typedef struct fe_bench_counted { /* of one rank, by ferry_group_counters, over the whole bench */
    bool told;
    double rows_sent, bytes_sent, bytes_returned, rows_dropped, waits, wait_us;
    double fullest, experts, expert_rows; /* rows of its fullest expert; how many experts it has; rows of all of them */
    double waited_us[FE_RANKS_MAX];       /* for each rank */
} fe_bench_counted;

typedef struct fe_bench_shared { /* what ranks tell the parent */
    double flag_rtt_us;
    double
        wire_bytes[FE_RANKS_MAX]; /* several hosts: that a dispatch sends to other hosts, by rank, everything counted */
    double wire_us[FE_RANKS_MAX]; /* ... that its bare writes took */
    double wire_rate; /* bytes a second of bare writes out of the slowest rank, all ranks at once; 0: one host */
    double copy_rate; /* GPU: bytes read and written a second by a copy inside its memory; 0: not known */
    double link_rate; /* bytes a second from every GPU to another; 0: there is one */
    uint64_t card[FE_RANKS_MAX]; /* which GPU each rank is on: a number of the card's own */
    _Alignas(64) _Atomic uint32_t ping;
    _Alignas(64) _Atomic uint32_t pong;
    fe_bench_counted counted[FE_RANKS_MAX];
    char check[FE_RANKS_MAX][FE_BENCH_SAY]; /* "" : equal to the oracle */
    double us[];                            /* [FE_M_COUNT][ranks][iters] */
} fe_bench_shared;

typedef struct fe_bench {
    fe_bench_options o;
    ferry_layout layout;
    ferry_mode mode;
    bool launched; /* this process is one rank; `rank` is its number, and what ranks share is each one's own */
    int rank;
    bool processes, fp8, weighted, zero_copy, gpu;
    int max_tokens, threads;
    size_t in_bytes, row_bytes, scale_bytes,
        back_bytes;        /* of a row as given, as it travels, its scales, as it comes back */
    int hosts;             /* FERRY_HOSTS: pretended ones that the ranks are split over */
    size_t in_scale_bytes; /* of the scales as given: 0 with a cast */
    int64_t slots;         /* rows that a receive buffer of any rank must hold */
    int64_t copies;        /* rows received by all ranks together */
    oracle_tokens tokens[FE_RANKS_MAX];
    oracle *plan;
    fe_draw_pool *in_pool, *back_pool;
    char *landing[2];   /* floors: [ranks][slots] rows and their scales, in memory that ranks share */
    char *returning[2]; /* floors: [ranks][slots] rows to be summed; with bf16 the same as landing */
    size_t landing_bytes, returning_bytes;
    const fe_rows *kernels;
    fe_bench_shared *shared;
    size_t shared_bytes;
} fe_bench;

/* bench_plan.c. false: why[FE_RANKS_WHY] says what is wrong. */
bool fe_bench_plan(fe_bench *b, char *why);
void fe_bench_plan_free(fe_bench *b);

typedef struct fe_floor fe_floor;

typedef struct fe_lane { /* one rank's things */
    fe_bench *bench;
    fe_rank *self;
    ferry_group *group;
    ferry_route *route;
    ferry_stream *stream;    /* GPU: of what is timed; else NULL */
    const int64_t *topk_idx; /* this rank's inputs, as the device reads them */
    const float *topk_weights;
    ferry_dispatch_in in;
    ferry_dispatch_out out; /* as it is to be given; every call gets a copy */
    ferry_combine_out result;
    uint8_t *result_rows;      /* host memory; on a GPU a copy of it */
    void *own_rows, *own_back; /* without --zero-copy: the caller's tensors */
    size_t own_rows_bytes, own_back_bytes;
    const void *filled[4]; /* combine buffers that hold the rows to be returned */
    fe_floor *floor;
    void *gpu[16]; /* memory of the GPU's, and how much of it */
    int gpu_count;
    ferry_route **made;      /* GPU: [batch] */
    void *graph[FE_M_COUNT]; /* GPU, with --graph: a batch of each step */
} fe_lane;

/* bench_lane.c: what a rank does, from the group's making to its end. */
bool fe_bench_lane(fe_rank *self);
bool fe_lane_dispatch(fe_lane *lane, ferry_dispatch_out *out, bool topk);
/* The combine's input, with this rank's rows filled in. */
bool fe_lane_back(fe_lane *lane, ferry_combine_in *in);
bool fe_lane_combine(fe_lane *lane, const ferry_combine_in *in);
bool fe_lane_new_route(fe_lane *lane, ferry_route **route);
/* What of a step is timed. */
bool fe_lane_step(fe_lane *lane, fe_measure m, ferry_combine_in *in, ferry_route **made);
/* All that was queued is done. */
bool fe_lane_sync(fe_lane *lane);
void fe_lane_draw_back(const fe_lane *lane, int64_t slot, void *row);

/* bench_gpu.c */
/* This rank's inputs and its result in the GPU's memory, and the stream. */
bool fe_gpu_open(fe_lane *lane);
void fe_gpu_close(fe_lane *lane);
void *fe_gpu_new(fe_lane *lane, size_t bytes);
/* The rows that this rank's experts return, to where combine takes them from. */
bool fe_gpu_fill_back(fe_lane *lane, const ferry_tensor *rows);
/* What was dispatched, in host memory: replaces the tensors' data by copies, which fe_gpu_forget frees. */
bool fe_gpu_see(fe_lane *lane, ferry_dispatch_out *out);
void fe_gpu_forget(ferry_dispatch_out *out);
/* Tables that host code can look at, instead of views. */
bool fe_gpu_give_tables(fe_lane *lane, ferry_dispatch_out *out);
bool fe_gpu_measure_copy(fe_lane *lane);
/* A batch of steps queued on the stream, between two looks at the clock; what one of them took goes to *us. */
bool fe_gpu_timed(fe_lane *lane, fe_measure m, double *us);

/* bench_far.c: what a dispatch puts on the wire, and how fast bare writes are. Nothing with one host. */
bool fe_far_measure(fe_lane *lane);

/* bench_check.c: a dispatch and a combine, compared with the oracle. What differs goes to shared->check. false: a call failed. */
bool fe_bench_check(fe_lane *lane);

/* bench_floor.c */
fe_floor *fe_floor_new(fe_lane *lane);
void fe_floor_free(fe_floor *floor);
void fe_floor_run(fe_floor *floor, fe_measure measure);

/* bench_count.c: this rank's counters, to where the report finds them; and what the report says of all of them. */
bool fe_bench_count(fe_lane *lane);
void fe_bench_print_counted(const fe_bench *b);
cJSON *fe_bench_json_counted(const fe_bench *b);

/* bench_report.c */
/* Sorts value[n] and returns what a share q of it does not exceed. */
double fe_bench_quantile(double *value, int n, double q);
cJSON *fe_bench_json(const fe_bench *b, int argc, char **argv);
void fe_bench_print(const fe_bench *b);

#endif
