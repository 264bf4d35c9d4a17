/* ferry bench --model: what dispatch and combine would take on hardware that a topology file describes. model.c has the formulas,
 * model_file.c reads the files, model_report.c prints predictions, advice, and errors against measured rows. docs/model.md explains
 * all of it. */
#ifndef FERRY_TOOL_MODEL_H
#define FERRY_TOOL_MODEL_H

#include "bench.h"

enum { FE_MODEL_RANKS = 4096, FE_MODEL_WHY = 512, FE_MODEL_TEXT = 160 };

typedef struct fe_topology {
    char name[FE_MODEL_TEXT];
    int ranks_per_host;
    double near_gbps;     /* bytes that a rank writes to its neighbours, or pulls from them */
    double near_sum_gbps; /* the same while summing; on CPUs slower than copying */
    double cached_gbps;   /* either of them where a rank's rows stay in a cache of cache_bytes; 0: no such cache */
    double cache_bytes;
    bool near_own;          /* rows to oneself cost as much as others: true of CPUs, where all is one memory */
    double nic_gbps;        /* of one NIC, one direction */
    double nics_per_rank;   /* rails; less than 1 where ranks share one */
    double nic_latency_us;  /* a write until it is seen */
    double message_us;      /* between two writes of one rank */
    double write_bytes;     /* a write's size in THROUGHPUT: rows are batched */
    double proxy_us;        /* CPU time of a command; 0: the GPU writes by itself */
    double step_us;         /* launches and waits of a step, however little is carried */
    double latency_step_us; /* the same in LATENCY mode */
    double sm_gbps;         /* what one SM copies; 0: no SMs */
    int sms;                /* that there are */
    int cores;              /* pretend hosts: all ranks of all hosts share them; 0: real hosts */
} fe_topology;

typedef struct fe_shape {
    int ranks, tokens, hidden, topk, experts;
    int groups;                    /* a token's experts lie on at most so many hosts; 0: on any */
    int hosts;                     /* 0: ranks / ranks_per_host */
    int sms;                       /* of a rank; 0: enough */
    bool latency, fp8, per_expert; /* per_expert: a row for each expert, not for each rank */
} fe_shape;

typedef struct fe_traffic { /* of a rank, on average; rows of all its tokens */
    int hosts, local;
    double hosts_hit; /* of a token, its own host included */
    double near_rows; /* that a rank writes near, or pulls */
    double far_rows;  /* that it sends to other hosts */
    double all_rows;  /* that it receives, its own included */
} fe_traffic;

typedef enum fe_bound { FE_BOUND_NEAR, FE_BOUND_NIC, FE_BOUND_MESSAGES, FE_BOUND_SMS, FE_BOUND_CORES } fe_bound;

typedef struct fe_prediction {
    double us, fixed_us, near_us, nic_us, message_us, sm_us;
    fe_bound bound;
} fe_prediction;

/* model.c */
fe_traffic fe_model_traffic(const fe_topology *t, const fe_shape *s);
/* As it travels: with its scales; what comes back is bf16. */
double fe_model_row_bytes(const fe_shape *s, bool combine);
/* sms 0: as many as it takes. combine: else dispatch. */
fe_prediction fe_model_predict(const fe_topology *t, const fe_shape *s, bool combine);
/* The fewest SMs with which neither step is slower by more than 2% than with all. 0: no SMs there. */
int fe_model_sms(const fe_topology *t, const fe_shape *s);
/* NICs a rank: as many more as each make dispatch and combine together 5% faster. 0: no more are worth it. */
int fe_model_rails(const fe_topology *t, const fe_shape *s);

/* model_file.c: false: why */
bool fe_topology_read(const char *path, fe_topology *t, char why[FE_MODEL_WHY]);

typedef struct fe_measured { /* a row of a file of measurements */
    fe_shape shape;
    char name[FE_MODEL_TEXT];
    double us[2];       /* dispatch, combine; 0: not measured */
    bool calibrates[2]; /* the topology's numbers come from it */
} fe_measured;

/* What `ferry bench --json` wrote, an array of such, or an object with "rows" (docs/model.md). *rows is to be freed. */
bool fe_measured_read(const char *path, const fe_topology *t, fe_measured **rows, int *count, char why[FE_MODEL_WHY]);

/* model_report.c: an exit status */
int fe_model_run(const fe_bench_options *options);

#endif
